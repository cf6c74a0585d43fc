"""The options of ops: each has a default and a check that brings a caller's value into its domain, or raises."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._checks import (
    check_choice,
    check_count,
    check_finite,
    check_flag,
    check_lengths,
    check_number,
    check_positive,
    refuse_other_device,
    type_name,
)
from ..backend import Backend
from .shapes import Sizes, is_broadcast, match_shape


class Option(NamedTuple):
    """An option's default, what brings a caller's value into its domain (or raises, naming it), and the domain.

    ``kind`` is the name of the function that declared it; ``domain`` has the values of one that is chosen among few,
    ``shape`` and ``bound`` are the symbols of one that is an array, or that sizes bound. ``of_backend`` is False if
    backends never see it. ``computed`` is True if the default has to go through the check as well.
    """

    default: Any
    check: Callable[[str, Any, Sizes, Backend], Any]
    kind: str
    domain: tuple[Any, ...] = ()
    shape: str = ""
    bound: str = ""
    of_backend: bool = True
    computed: bool = False


def flag(default: bool, *, of_backend: bool = True) -> Option:
    """Declare an option that is True or False."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> bool:
        return check_flag(name, value)

    return Option(default, check, "flag", (False, True), of_backend=of_backend)


def choice(*values: str) -> Option:
    """Declare an option that is one of some words; the first is the default."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> str:
        return check_choice(name, value, values)

    return Option(values[0], check, "choice", values)


def positive(default: float) -> Option:
    """Declare an option that is a positive number."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> float:
        return check_positive(name, value)

    return Option(default, check, "positive")


def axis(default: int) -> Option:
    """Declare an option that is an axis of the ``...`` dimensions and the one after them."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> int:
        ndim = len(sizes["..."]) + 1
        number = operator.index(value)
        if not -ndim <= number < ndim:
            raise ValueError(f"{name}: expected an axis of {ndim} dimensions, got {value!r}")
        return number

    return Option(default, check, "axis")


def number(default: float | None) -> Option:
    """Declare an option that is a finite number; None is a default that the op itself explains."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> float | None:
        return None if value is None and default is None else check_finite(name, value)

    return Option(default, check, "number")


def whole(default: int, *, divides: str = "") -> Option:
    """Declare an option that is a whole number from 1 to 2**31; it ``divides`` the sizes of these symbols."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> int:
        number = check_count(name, value)
        if number > FARTHEST:
            raise ValueError(f"{name}: expected at most 2**31, got {number}")
        return number

    return Option(default, check, "whole", bound=divides)


def probability() -> Option:
    """Declare an option that is a probability below 1; 0 by default."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> float:
        return check_number(name, value, below=1)

    return Option(0.0, check, "probability")


def seed() -> Option:
    """Declare the seed of what is random: a whole number of 64 bits, or None where nothing is."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> int | None:
        if value is not None and check_count(name, value, minimum=0) >= 2**64:
            raise ValueError(f"{name}: expected a whole number below 2**64, got {value}")
        return None if value is None else int(value)

    return Option(None, check, "seed")


def lengths(bound: str = "T") -> Option:
    """Declare the valid steps of each row: host integers (B,) from 0 to the bound's size, or None for all."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> np.ndarray | None:
        return None if value is None else check_lengths(name, value, sizes["B"], sizes[bound], bound)

    return Option(None, check, "lengths", shape="B", bound=bound)


def window() -> Option:
    """Declare a window (left, right) around each position: whole numbers, None where there is no limit."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> tuple[int | None, int | None] | None:
        return check_window(name, value)

    return Option(None, check, "window")


def check_window(name: str, value: Any) -> tuple[int | None, int | None] | None:
    """Return (left, right); a side that no array is long enough to reach the end of is no limit."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a pair (left, right), got {value!r}")
    sides = (None if side is None else check_count(name, side, minimum=0) for side in value)
    left, right = (None if side is None or side > 2**40 else side for side in sides)
    return left, right


def positions(first: Callable[[Sizes], int]) -> Option:
    """Declare where each row's first element stands: host integers (B,), or one for all; backends get (B,) int64.

    ``first`` gives the default.
    """

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> np.ndarray:
        batch = sizes["B"]
        if value is None:
            return np.full(batch, first(sizes), np.int64)
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            value = [value] * batch
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise TypeError(f"{name}: expected a whole number or integers (B,) on the host, got {type_name(value)}")
        array = np.array(value)  # a copy: checked and kept, whatever its owner does with it
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"{name}: expected integers, got {array.dtype}; cast with .astype(int)")
        if array.shape != (batch,):
            raise ValueError(f"{name}: expected shape (B,) = ({batch},), got {array.shape}")
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > FARTHEST:
            raise ValueError(f"{name}: expected values from -2**31 to 2**31, got {array.min()} to {array.max()}")
        return array.astype(np.int64, copy=False)

    return Option(None, check, "positions", shape="B", computed=True)


FARTHEST = 2**31  # a position, from 0: they are added up in 64 bits


def indices(shape: str, bound: str = "") -> Option:
    """Declare an array of integers; with ``bound``, from 0 to that symbol's size - 1.

    What is in an array on a device is not looked at, as the host would have to wait for it.
    """

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> Any:
        if value is None:
            raise TypeError(f"{name}: expected an array of integers, got None")
        refuse_other_device(name, value, backend.xp)
        on_device = backend.xp is not np and isinstance(value, backend.array_type)
        array = value if on_device else np.asarray(value)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"{name}: expected integers, got {array.dtype}; cast with .astype(int)")
        match_shape(name, shape, array.shape, sizes)
        if bound and not on_device:
            check_range(name, array, sizes[bound], bound)
        return backend.xp.array(array, np.int64)  # a copy: backward needs it as it is now

    return Option(None, check, "indices", shape=shape, bound=bound, computed=True)


def check_range(name: str, array: Any, size: int, symbol: str) -> None:
    """Raise ValueError where an integer array leaves 0 .. size - 1."""
    if array.size and (int(array.min()) < 0 or int(array.max()) >= size):
        raise ValueError(
            f"{name}: expected values from 0 to {symbol} - 1 = {size - 1}, got {int(array.min())} to {int(array.max())}"
        )


def mask(shape: str) -> Option:
    """Declare a boolean array, True where an element counts; None for all. A broadcast one gets its dimensions."""

    def check(name: str, value: Any, sizes: Sizes, backend: Backend) -> Any:
        if value is None:
            return None
        refuse_other_device(name, value, backend.xp)
        array = backend.xp.array(value)  # a copy: backward needs it as it is now
        if array.dtype != np.bool_:
            raise TypeError(f"{name}: expected booleans (True = counts), got {array.dtype}")
        match_shape(name, shape, array.shape, sizes)
        return array.reshape((1,) * (len(shape.split()) - array.ndim) + array.shape) if is_broadcast(shape) else array

    return Option(None, check, "mask", shape=shape)
