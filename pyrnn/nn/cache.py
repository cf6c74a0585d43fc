"""The KV cache: keys and values of the steps that rows have had, as a state that grows without being copied.

A state is ``(k, v, position, start)``: of each row the keys and values of the positions from ``start`` to before
``position``, the first of them at index 0. What stands past them is no part of it.

The arrays of a state are views of a buffer with room behind them. New keys are written there, where no state looks, if
the state at hand is the newest on its buffer; any other state (one that was used before, one whose rows were picked or
reset, a copy) has its keys copied into a buffer of its own first. What comes out does not depend on which it was.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_count
from ..autograd import functions
from ..autograd.tensor import namespace
from ._checks import check_array, check_positions

SMALLEST = 16  # the room of a buffer at least


class _Newest(NamedTuple):
    """The newest state on a buffer, whose keys may be followed by more in place."""

    keys: weakref.ref[Any]
    values: weakref.ref[Any]
    position: Any
    start: Any
    buffer: Any


# By the identity of the keys. Taking one out is how a call gets the right to write, so no two threads have it.
_newest: dict[int, _Newest] = {}


def initial_cache(batch: int, heads: int, features: int, dtype: Any, xp: Any) -> tuple[Any, ...]:
    """Return the state of rows that had no step yet."""
    batch = check_count("batch", batch, minimum=0)
    empty = [xp.zeros((batch, heads, 0, features), dtype) for _ in "kv"]
    return (*empty, np.zeros(batch, np.int64), np.zeros(batch, np.int64))


def check_cache(state: Any, batch: int, heads: int, features: int, dtype: Any) -> tuple[Any, ...]:
    """Hold a state against its form and return it, its positions as new arrays of int64."""
    if not isinstance(state, tuple) or len(state) != 4:
        came = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(f"state: expected a tuple (k, v, position, start), got {came}")
    sizes: dict[str, Any] = {"B": batch, "Hkv": heads, "D": features}
    for index, name in enumerate("kv"):
        check_array(f"state[{index}] ({name})", state[index], "B Hkv M D", sizes, dtype)
    position = check_positions("state[2] (position)", state[2], batch)
    start = check_positions("state[3] (start)", state[3], batch)
    held = position - start
    if held.size and (held.min() < 0 or held.max() > sizes["M"]):
        raise ValueError(
            f"state[2] (position): expected from start to start + M, M = {sizes['M']}, "
            f"got {held.min()} to {held.max()} more than start"
        )
    return state[0], state[1], position, start


class Cache:
    """Keys and values of rows that can be added to: those of a state for one call, or a stream's own.

    Parameters
    ----------
    state
        As `check_cache` returns it, of arrays.

    Attributes
    ----------
    position, start : integers (B,)
        The steps that each row has had, and the position of its first key.
    held : int
        The most keys of a row.
    uniform : bool
        Whether all rows hold as many.
    """

    __slots__ = ("_source", "buffer", "held", "position", "start", "uniform")

    def __init__(self, state: tuple[Any, ...]) -> None:
        keys, values, self.position, self.start = state
        offset = self.position - self.start
        self.held, self.uniform = _longest(offset), is_uniform(offset)
        self.buffer: Any = None
        self._source: tuple[Any, ...] = keys, values  # until there is a buffer
        newest = _newest.pop(id(keys), None)
        if newest is not None:
            if _is(newest, state):
                self.buffer = newest.buffer
            else:
                _newest.setdefault(id(keys), newest)

    @property
    def keys(self) -> Any:
        """The keys, shape (B, Hkv, held, D)."""
        return self._source[0] if self.buffer is None else self.buffer[0, :, :, : self.held]

    @property
    def values(self) -> Any:
        """The values, shape (B, Hkv, held, D)."""
        return self._source[1] if self.buffer is None else self.buffer[1, :, :, : self.held]

    def append(self, keys: Any, values: Any, counts: Any) -> None:
        """Add the steps of ``keys`` and ``values``, each (B, T, Hkv, D): of each row so many, or all."""
        time = keys.shape[1]
        if counts is None and self.uniform and len(self.position):
            first, held = self.held, self.held + time
            if not first and self.buffer is None:  # the first steps are copied when others follow, if they do
                self._source = keys.swapaxes(1, 2), values.swapaxes(1, 2)
                self.position, self.held = self.position + time, held
                return
            self._make_room(held)
            self.buffer[0, :, :, first:held] = keys.swapaxes(1, 2)
            self.buffer[1, :, :, first:held] = values.swapaxes(1, 2)
            self.position, self.held = self.position + time, held
            return
        offset = self.position - self.start
        after = offset + (time if counts is None else counts)
        self._make_room(_longest(after))
        self.position, self.held, self.uniform = self.start + after, _longest(after), is_uniform(after)
        valid = np.ones(keys.shape[:2], bool) if counts is None else np.arange(time) < counts[:, None]
        rows, steps = np.nonzero(valid)
        at = offset[rows] + steps
        self.buffer[0][rows, :, at] = keys[rows, steps]
        self.buffer[1][rows, :, at] = values[rows, steps]

    def add(self, both: Any) -> None:
        """Add one step to every row of a stream's own cache, its keys and values (2, B, Hkv, D)."""
        self._make_room(self.held + 1)
        if self.uniform:
            self.buffer[:, :, :, self.held] = both
        else:
            rows = np.arange(len(self.position))
            self.buffer[:, rows, :, self.position - self.start] = both.swapaxes(0, 1)
        self.position += 1
        self.held += 1

    def drop(self, start: Any, *, in_place: bool) -> None:
        """Forget the keys before these positions (B,)."""
        shift = start - self.start
        if not shift.any():
            return
        held = self.position - start
        source, before = (self.keys, self.values), self.held
        self.start, self.held, self.uniform = start, _longest(held), is_uniform(held)
        if not in_place:  # states look at what is there
            self._new_buffer(self.held, source[0])
        for target, array in zip(self.buffer, source, strict=True):
            if is_uniform(shift):
                first = int(shift[0])
                target[:, :, : self.held] = array[:, :, first : first + self.held]
            else:
                for row, (first, count) in enumerate(zip(shift.tolist(), held.tolist(), strict=True)):
                    target[row, :, :count] = array[row, :, first : first + count]
                    if in_place:
                        target[row, :, count:before] = 0
            if in_place:
                target[:, :, self.held : before] = 0

    def state(self) -> tuple[Any, ...]:
        """Return what is held as a state; its keys and values are views, and can't be written to."""
        keys, values = self.keys, self.values
        if isinstance(keys, np.ndarray):
            # A write would be seen by other states on the buffer.
            keys.flags.writeable = values.flags.writeable = False
        if self.buffer is not None:
            number = id(keys)
            alive = weakref.ref(keys, lambda _, newest=_newest: newest.pop(number, None))  # type: ignore[misc]
            _newest[number] = _Newest(alive, weakref.ref(values), self.position.copy(), self.start.copy(), self.buffer)
        return keys, values, self.position, self.start

    def _make_room(self, held: int) -> None:
        """See that there is a buffer with room for so many keys, and what is held is in it."""
        if self.buffer is not None and held <= self.buffer.shape[3]:
            return
        source, offset = (self.keys, self.values), self.position - self.start
        self._new_buffer(held, source[0])
        for target, array in zip(self.buffer, source, strict=True):
            if self.uniform:
                target[:, :, : self.held] = array[:, :, : self.held]
            else:  # what another state has written past a row's end stays there
                for row, count in enumerate(offset.tolist()):
                    target[row, :, :count] = array[row, :, :count]

    def _new_buffer(self, held: int, like: Any) -> None:
        """Make a buffer (2, B, Hkv, room, D) with room for so many keys, and for as many again at most."""
        batch, heads, _, features = like.shape
        room = max(SMALLEST, 1 << (held - 1).bit_length() if held else 0)
        self.buffer, self._source = namespace(like).zeros((2, batch, heads, room, features), like.dtype), ()


def _is(newest: _Newest, state: tuple[Any, ...]) -> bool:
    return (
        newest.keys() is state[0]
        and newest.values() is state[1]
        and np.array_equal(newest.position, state[2])
        and np.array_equal(newest.start, state[3])
    )


def _longest(held: Any) -> int:
    return int(held.max()) if held.size else 0


def is_uniform(values: Any) -> bool:
    """Tell whether all rows have the same."""
    return len(values) < 2 or bool((values == values[0]).all())


# --- on a tape: the same by functions that gradients go through ----------------------------------------------------


def joined(held: Any, new: Any, offset: Any, counts: Any) -> Any:
    """Return a Tensor (B, Hkv, M, D): each row's first ``offset`` keys, then ``counts`` new ones (B, T, Hkv, D)."""
    time = new.shape[1]
    before = _longest(offset)
    both = new
    if before:
        both = functions.concatenate([held[:, :, :before].swapaxes(1, 2), new], axis=1)
    if not is_uniform(offset):
        size = int((offset + time).max())
        at = np.arange(size) - offset[:, None]
        # Past a row's last key any will do: no query sees it.
        index = np.where(at < 0, np.arange(size), np.minimum(at, time - 1) + before) if time else np.arange(size)[None]
        both = functions.getitem(both, (np.arange(len(offset))[:, None], index))
    both = both.swapaxes(1, 2)
    if counts is not None or not len(offset):
        both = both[:, :, : _longest(offset + (time if counts is None else counts))]
    return both


def dropped(held: Any, shift: Any, count: Any) -> Any:
    """Return a Tensor (B, Hkv, M, D) without each row's first ``shift`` keys, so many of which are left."""
    if not shift.any():
        return held
    size = _longest(count)
    if is_uniform(shift):
        return held[:, :, int(shift[0]) : int(shift[0]) + size]
    index = np.minimum(np.arange(size) + shift[:, None], held.shape[2] - 1)
    turned = held.swapaxes(1, 2)
    return functions.getitem(turned, (np.arange(len(shift))[:, None], index)).swapaxes(1, 2)
