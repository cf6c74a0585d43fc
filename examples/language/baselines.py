"""How many bits a byte costs without a network: a model that counts, and lzma."""

from __future__ import annotations

import lzma

import numpy as np
from numpy.typing import NDArray

from .text import Bytes, Text


class CountModel:
    """Probabilities of a byte after the last ones, by counting: interpolated absolute discounting.

    Each order takes a discount from every count that it has, and what that frees goes to the next lower order; below
    order 0 every byte is as likely as any.

    Parameters
    ----------
    text : bytes, shape (N,)
    order : int
        So many bytes of context.

    References
    ----------
    Ney, Essen, Kneser (1994), "On structuring probabilistic dependences in stochastic language modelling".
    """

    def __init__(self, text: Bytes, order: int = 3) -> None:
        self.tables = []
        for length in range(order + 1):
            grams, counts = np.unique(self._grams(text, length), return_counts=True)
            once, twice = ((counts == times).sum() for times in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
            contexts, first = np.unique(grams >> 8, return_index=True)
            kinds = np.diff(first, append=len(grams))
            self.tables.append((grams, counts, contexts, np.add.reduceat(counts, first), kinds, discount))

    @staticmethod
    def _grams(text: Bytes, length: int) -> NDArray[np.uint64]:
        """Return each byte with so many before it as one number; NUL bytes stand before the first."""
        grams = text.astype(np.uint64)
        for back in range(1, length + 1):
            grams[back:] |= text[:-back].astype(np.uint64) << np.uint64(8 * back)
        return grams

    def probabilities(self, text: Bytes) -> NDArray[np.float64]:
        """Return the probability of each byte of a text after those before it, shape (N,)."""
        result = np.full(len(text), 1 / 256)
        for length, (grams, counts, contexts, totals, kinds, discount) in enumerate(self.tables):
            asked = self._grams(text, length)
            count = _found(grams, counts, asked)
            total, kind = (_found(contexts, values, asked >> np.uint64(8)) for values in (totals, kinds))
            known = total > 0
            share = np.maximum(count - discount, 0) + discount * kind * result
            result = np.where(known, share / np.maximum(total, 1), result)
        return result

    def bits(self, text: Bytes) -> float:
        """Return the mean bits of a byte."""
        return float(-np.log2(self.probabilities(text)).mean())


def _found(keys: NDArray[np.uint64], values: NDArray[np.int64], asked: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the value of each key that is asked for, 0 where there is none."""
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0).astype(np.float64)


def lzma_bits(text: Text) -> float:
    """Return the bits with which lzma writes a held-out byte once it has the training text."""
    dictionary = max(1 << 26, len(text.train) + len(text.held_out))  # from end to end; preset 9 has 64 MiB
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
    before, both = (
        len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))
        for data in (text.train.tobytes(), text.train.tobytes() + text.held_out.tobytes())
    )
    return 8 * (both - before) / len(text.held_out)
