"""Batches of sequences of similar length, so that little of a padded batch is padding.

Both loaders sort by length, divide the sorted sequences into buckets of equal count, and shuffle
three times: among equal lengths, within buckets, and the finished batches. They differ in where
they cut: `Buckets` after a number of sequences, `TokenBatches` before a padded size is exceeded.
"""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_count, check_lengths
from ._types import IntArray
from .loader import Loader, Seed, count_batches, cut, draw_order


class _ByLength(Loader[IntArray]):
    """What both loaders share: the lengths, and an order of similar lengths next to each other."""

    def __init__(self, lengths: ArrayLike, *, num_buckets: int, shuffle: bool, rng: Seed) -> None:
        super().__init__(shuffle=shuffle, rng=rng)
        self._lengths = check_lengths("lengths", np.asarray(lengths))
        self._num_buckets = check_count("num_buckets", num_buckets, 1)

    def _batch(self, index: IntArray) -> IntArray:
        return index

    def _settings(self) -> dict[str, int]:
        return {
            "sequences": len(self._lengths),
            "lengths_crc32": zlib.crc32(self._lengths.astype("<i8").tobytes()),
            "num_buckets": self._num_buckets,
        }

    def _sort(self, order: IntArray, rng: np.random.Generator | None, *, multiple: int = 1) -> IntArray:
        """`order` by length; shuffled within buckets whose size is a multiple of `multiple`."""
        # A stable sort of shuffled indices leaves equal lengths shuffled.
        by_length = order[np.argsort(self._lengths[order], kind="stable")]
        if rng is not None:
            bucket_size = multiple * -(-len(order) // (multiple * self._num_buckets))
            for start in range(0, len(order), max(bucket_size, 1)):
                rng.shuffle(by_length[start : start + bucket_size])
        return by_length

    @staticmethod
    def _shuffled(batches: list[IntArray], rng: np.random.Generator | None) -> list[IntArray]:
        return [batches[i] for i in draw_order(len(batches), rng)]


class Buckets(_ByLength):
    """Batches of `batch_size` sequences each, all from one bucket of similar lengths.

    Parameters
    ----------
    lengths : array_like of int, shape (sequences,)
        Length of each sequence.
    batch_size : int
        Sequences of a batch. At most one batch of an epoch is shorter.
    num_buckets : int, default 100
        Buckets that the sequences are divided into, fewer where they would not fill a batch each.
        More buckets, less padding; fewer buckets, more varied batches. With 1, batches are drawn
        from all sequences alike, whatever their length.
    shuffle : bool, default True
        Whether every epoch has batches and an order of its own. Otherwise there is nothing to
        draw within buckets, and batches go from the shortest sequences to the longest.
    rng : numpy.random.Generator, int or None
        Seed of the shuffling; see `Loader`.
    drop_last : bool, default False
        Leave out the sequences by which all batches become full: others in every epoch if
        shuffled, the last ones of `lengths` if not.

    Yields
    ------
    ndarray of int64, shape (batch,)
        Indices of the sequences of a batch.

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not non-negative integers, or `batch_size` or `num_buckets` not positive.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int,
        *,
        num_buckets: int = 100,
        shuffle: bool = True,
        rng: Seed = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(lengths, num_buckets=num_buckets, shuffle=shuffle, rng=rng)
        self._batch_size = check_count("batch_size", batch_size, 1)
        self._drop_last = bool(drop_last)

    def _plan(self, rng: np.random.Generator | None) -> list[IntArray]:
        order = draw_order(len(self._lengths), rng)
        if self._drop_last:
            # Before sorting: afterwards it would be the longest that no epoch ever shows.
            order = order[: len(order) - len(order) % self._batch_size]
        # Buckets of whole batches, so that none but the last has a short batch.
        order = self._sort(order, rng, multiple=self._batch_size)
        return self._shuffled(cut(order, self._batch_size, drop_last=False), rng)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return count_batches(len(self._lengths), self._batch_size, drop_last=self._drop_last)

    def _settings(self) -> dict[str, int]:
        own = {"batch_size": self._batch_size, "drop_last": self._drop_last}
        return super()._settings() | own


class TokenBatches(_ByLength):
    """Batches of as many sequences as fit a budget of padded steps.

    The padded size of a batch, its number of sequences times the longest of them, never exceeds
    `max_tokens`. So every batch costs about the same memory and time.

    Parameters
    ----------
    lengths : array_like of int, shape (sequences,)
        Length of each sequence.
    max_tokens : int
        Padded steps that a batch may have.
    num_buckets : int, default 100
        Buckets of similar lengths that the sequences are divided into and shuffled within. More
        buckets, less padding; fewer buckets, more varied batches.
    shuffle : bool, default True
        Whether every epoch has batches and an order of its own. Otherwise there is nothing to
        draw within buckets, and batches go from the shortest sequences to the longest.
    rng : numpy.random.Generator, int or None
        Seed of the shuffling; see `Loader`. The number of batches may differ between epochs.

    Yields
    ------
    ndarray of int64, shape (batch,)
        Indices of the sequences of a batch.

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not non-negative integers, one exceeds `max_tokens`, or `max_tokens` or
        `num_buckets` is not positive.
    """

    def __init__(
        self,
        lengths: ArrayLike,
        max_tokens: int,
        *,
        num_buckets: int = 100,
        shuffle: bool = True,
        rng: Seed = None,
    ) -> None:
        super().__init__(lengths, num_buckets=num_buckets, shuffle=shuffle, rng=rng)
        self._max_tokens = check_count("max_tokens", max_tokens, 1)
        longest = int(self._lengths.max(initial=0))
        if longest > self._max_tokens:
            raise ValueError(
                f"max_tokens: expected at least the longest length, got {max_tokens} where "
                f"lengths[{int(self._lengths.argmax())}] = {longest}"
            )

    def _plan(self, rng: np.random.Generator | None) -> list[IntArray]:
        order = self._sort(draw_order(len(self._lengths), rng), rng)
        starts = []
        count = longest = 0
        for i, length in enumerate(self._lengths[order].tolist()):
            count, longest = count + 1, max(longest, length)
            if i == 0 or count * longest > self._max_tokens:
                starts.append(i)
                count, longest = 1, length
        batches = [order[start:end] for start, end in pairwise([*starts, len(order)])]
        return self._shuffled(batches, rng)

    def _settings(self) -> dict[str, int]:
        return super()._settings() | {"max_tokens": self._max_tokens}
