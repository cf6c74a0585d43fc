"""The loader protocol: seeded, re-iterable, resumable; and `Batches`, its use on plain arrays.

The batches of an epoch are a pure function of (seed, epoch). So a loader's whole state is three
integers, seed, epoch and position, whatever generator it was given and whoever else draws from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_count, package_of
from ..autograd.tensor import namespace
from ._types import Array, IntArray

Seed: TypeAlias = np.random.Generator | int | None
BatchT = TypeVar("BatchT")


class Loader(ABC, Generic[BatchT]):
    """Base of the loaders: each ``for batch in loader`` is one epoch, in a new order.

    ``iter(loader)`` always begins the next epoch, even if the last one was broken off, with one
    exception: the first one after `load_state_dict` goes on where the saved loader stood.
    Two loaders with the same data, settings and seed give the same batches, epoch after epoch.

    Derived classes say how an epoch is cut into batches of indices (`_plan`), what is handed out
    for one (`_batch`), and what a saved state must agree with (`_settings`).

    Parameters
    ----------
    shuffle : bool
        Whether epochs are shuffled.
    rng : numpy.random.Generator, int or None
        Where the seed comes from: a generator (one integer is drawn from it, now and never again),
        an int, or None for a seed from the operating system.
    """

    def __init__(self, *, shuffle: bool, rng: Seed) -> None:
        try:
            generator = np.random.default_rng(rng)
        except (TypeError, ValueError) as error:
            message = f"rng: expected a numpy.random.Generator, an int >= 0 or None, got {rng!r}"
            raise type(error)(message) from error
        self._shuffle = bool(shuffle)
        self._seed = int(generator.integers(2**63))
        # (epoch, position): where the running iteration stands, and where the next one begins.
        self._now = self._next = (0, 0)

    @abstractmethod
    def _plan(self, rng: np.random.Generator | None) -> list[IntArray]:
        """Indices of each batch of an epoch, drawn from `rng`, which is None without shuffling."""

    @abstractmethod
    def _batch(self, index: IntArray) -> BatchT:
        """What is handed out for the examples of `index`."""

    @abstractmethod
    def _settings(self) -> dict[str, int]:
        """What the batches depend on besides the seed."""

    def _epoch_plan(self, epoch: int) -> list[IntArray]:
        return self._plan(np.random.default_rng([self._seed, epoch]) if self._shuffle else None)

    @property
    def epoch(self) -> int:
        """Number of the running epoch, or of the next one if none is running; the first is 0."""
        return self._now[0]

    def __len__(self) -> int:
        """Batches in the epoch `epoch`, from its beginning."""
        return len(self._epoch_plan(self.epoch))

    def __iter__(self) -> Iterator[BatchT]:
        epoch, position = self._now = self._next
        self._next = (epoch + 1, 0)
        return self._iterate(epoch, position)

    def _iterate(self, epoch: int, position: int) -> Iterator[BatchT]:
        for done, index in enumerate(self._epoch_plan(epoch)[position:], start=position + 1):
            self._now = (epoch, done)
            yield self._batch(index)
        self._now = (epoch + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, in plain values that JSON can hold.

        Taken inside the loop over the loader, the batch in hand counts as done.

        Returns
        -------
        dict
            `seed`, `epoch`, `position` (batches of the epoch already handed out), and `settings`,
            which `load_state_dict` compares with its own.
        """
        epoch, position = self._now
        settings = self._settings() | {"shuffle": self._shuffle}
        return {"seed": self._seed, "epoch": epoch, "position": position, "settings": settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader stood: the next iteration gives the batches it had left.

        Parameters
        ----------
        state : mapping
            What `state_dict` of a loader with the same data and settings gave.

        Raises
        ------
        TypeError, ValueError
            If `state` is not such a mapping, or of a loader with other data or other settings.
            The loader is then as it was.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise ValueError(f"state: expected a mapping with the keys {list(own)}, got {state!r}")
        if state["settings"] != own["settings"]:
            raise ValueError(
                f"state: expected that of a loader with the same data and settings {own['settings']}, "
                f"got {state['settings']}"
            )
        seed, epoch, position = (check_count(f"state[{key!r}]", state[key], 0) for key in ("seed", "epoch", "position"))
        self._seed = seed
        self._now = self._next = (epoch, position)


class Batches(Loader[tuple[Array, ...]]):
    """Batches of the rows of arrays that belong together, such as inputs, targets and lengths.

    Parameters
    ----------
    *arrays : array_like, shapes (examples, ...)
        At least one; all with the same number of rows. Kept, not copied. One on a GPU stays there, and so do its
        batches; of a batch only the numbers of its rows go over.
    batch_size : int
        Rows of a batch.
    shuffle : bool, default True
        Whether every epoch has an order of its own; otherwise it is that of the arrays.
    rng : numpy.random.Generator, int or None
        Seed of the shuffling; see `Loader`.
    drop_last : bool, default False
        Leave out the rows that do not fill a batch.

    Yields
    ------
    tuple of ndarray, shapes (batch, ...)
        The same rows of each array, copied. A tuple for a single array, too.

    Raises
    ------
    TypeError, ValueError
        If there are no arrays, their rows differ in number, or `batch_size` is not positive.

    Examples
    --------
    >>> for x, y in Batches([1, 2, 3], [10, 20, 30], batch_size=2, shuffle=False):
    ...     print(x, y)
    [1 2] [10 20]
    [3] [30]
    """

    def __init__(
        self,
        *arrays: ArrayLike,
        batch_size: int,
        shuffle: bool = True,
        rng: Seed = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(shuffle=shuffle, rng=rng)
        self._arrays = tuple(_kept(array) for array in arrays)
        if not self._arrays:
            raise ValueError("arrays: expected at least one, got none")
        for i, array in enumerate(self._arrays):
            if array.ndim == 0:
                raise ValueError(f"arrays[{i}]: expected shape (examples, ...), got a scalar")
            if len(array) != len(self._arrays[0]):
                raise ValueError(
                    f"arrays: expected the same number of rows in all, got {len(self._arrays[0])} "
                    f"in arrays[0] and {len(array)} in arrays[{i}]"
                )
        self._batch_size = check_count("batch_size", batch_size, 1)
        self._drop_last = bool(drop_last)

    def _plan(self, rng: np.random.Generator | None) -> list[IntArray]:
        order = draw_order(len(self._arrays[0]), rng)
        return cut(order, self._batch_size, drop_last=self._drop_last)

    def _batch(self, index: IntArray) -> tuple[Array, ...]:
        return tuple(_rows(array, index) for array in self._arrays)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return count_batches(len(self._arrays[0]), self._batch_size, drop_last=self._drop_last)

    def _settings(self) -> dict[str, int]:
        return {
            "examples": len(self._arrays[0]),
            "batch_size": self._batch_size,
            "drop_last": self._drop_last,
        }


def _kept(array: Any) -> Any:
    return array if package_of(array) == "cupy" else np.asarray(array)


def _rows(array: Any, index: IntArray) -> Any:
    xp = namespace(array)
    return array[index] if xp is np else array.take(xp.asarray(index), axis=0)


def draw_order(count: int, rng: np.random.Generator | None) -> IntArray:
    """0..count-1, shuffled if there is a generator."""
    return np.arange(count) if rng is None else rng.permutation(count)


def count_batches(examples: int, batch_size: int, *, drop_last: bool) -> int:
    """How many batches `cut` makes."""
    return (examples if drop_last else examples + batch_size - 1) // batch_size


def cut(order: IntArray, batch_size: int, *, drop_last: bool) -> list[IntArray]:
    """Consecutive batches of `order`; the last may be short, or is dropped."""
    count = count_batches(len(order), batch_size, drop_last=drop_last)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(count)]
