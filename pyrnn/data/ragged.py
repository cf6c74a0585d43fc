"""Sequences of unequal length: as a list, padded to one array, or packed end to end.

    list of (T_i, ...)  -- pad -->  Padded (B, T, ...)  -- pack -->  Packed (sum of T_i, ...)
                       <-- unpad --                    <-- unpack --

Every form carries the same `lengths`, which is also what the ops and layers of pyrnn take.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_count, check_lengths, valid_steps
from ._types import Array, IntArray


class Padded(NamedTuple):
    """A batch of sequences in one array, each filled up at its end.

    Attributes
    ----------
    data : ndarray, shape (batch, time, ...)
        Row b holds sequence b in ``data[b, :lengths[b]]`` and padding after it.
    lengths : ndarray of int64, shape (batch,)
        Valid steps of each row.
    """

    data: Array
    lengths: IntArray


class Packed(NamedTuple):
    """A batch of sequences end to end, with no padding.

    The layout is row-major, sequence after sequence: with
    ``ends = lengths.cumsum()``, sequence b is ``data[ends[b] - lengths[b] : ends[b]]``.
    This is not PyTorch's `PackedSequence`, which is time-major (the first steps of all sequences,
    then the second steps, ...) and sorts the batch. Here the batch keeps its order.

    Attributes
    ----------
    data : ndarray, shape (lengths.sum(), ...)
        The valid steps.
    lengths : ndarray of int64, shape (batch,)
        Steps of each sequence.
    """

    data: Array
    lengths: IntArray


def pad(sequences: Iterable[ArrayLike], *, value: complex = 0.0, length: int | None = None) -> Padded:
    """Put sequences of unequal length into one array.

    Parameters
    ----------
    sequences : iterable of array_like, shapes (T_i, ...)
        At least one; all of the same numeric dtype and the same trailing shape. T_i may be 0.
    value : scalar
        What padding is filled with; must be a value of the sequences' dtype.
    length : int, optional
        Time steps of the result. By default those of the longest sequence.

    Returns
    -------
    Padded
        `data` of shape (batch, time, ...) in the sequences' dtype, and `lengths` of shape (batch,).

    Raises
    ------
    TypeError
        If dtypes differ (none is promoted in silence) or are not numeric.
    ValueError
        If there are no sequences, trailing shapes differ, a sequence is longer than `length`, or
        `value` is not a value of the dtype.

    Examples
    --------
    >>> data, lengths = pad([[1, 2, 3], [4]])
    >>> data
    array([[1, 2, 3],
           [4, 0, 0]])
    >>> lengths
    array([3, 1])
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError(
            "sequences: expected at least one, got none: "
            "the dtype and the trailing shape of the result would be unknown"
        )
    for i, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(f"sequences[{i}]: expected shape (T, ...), got a scalar")
        if array.dtype != arrays[0].dtype:
            raise TypeError(
                f"sequences: expected the same dtype in all, got {arrays[0].dtype} in sequences[0] "
                f"and {array.dtype} in sequences[{i}]; cast one with .astype()"
            )
        if array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"sequences: expected the same shape after the time axis in all, got "
                f"{arrays[0].shape} in sequences[0] and {array.shape} in sequences[{i}]"
            )
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    steps = _time_steps(lengths, length, "sequences")
    data = _filled((len(arrays), steps, *arrays[0].shape[1:]), value, arrays[0].dtype)
    for row, array in zip(data, arrays, strict=True):
        row[: len(array)] = array
    return Padded(data, lengths)


def unpad(data: ArrayLike, lengths: ArrayLike) -> list[Array]:
    """Take a padded batch apart.

    Parameters
    ----------
    data : array_like, shape (batch, time, ...)
    lengths : array_like of int, shape (batch,)
        Valid steps of each row.

    Returns
    -------
    list of ndarray, shapes (lengths[b], ...)
        Views of `data`, not copies: they share its memory, and keep it alive.

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not integers in 0..time, one per row.
    """
    data, lengths = _check_padded(data, lengths)
    return [row[:length] for row, length in zip(data, lengths, strict=True)]


def pack(data: ArrayLike, lengths: ArrayLike) -> Packed:
    """Drop the padding of a padded batch.

    Parameters
    ----------
    data : array_like, shape (batch, time, ...)
    lengths : array_like of int, shape (batch,)
        Valid steps of each row.

    Returns
    -------
    Packed
        `data` of shape (lengths.sum(), ...), a copy, sequence after sequence; and `lengths`.

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not integers in 0..time, one per row.

    Examples
    --------
    >>> pack([[1, 2, 3], [4, 0, 0]], [3, 1]).data
    array([1, 2, 3, 4])
    """
    data, lengths = _check_padded(data, lengths)
    return Packed(data[valid_steps(lengths, data.shape[1])], lengths)


def unpack(packed: Packed, *, value: complex = 0.0, length: int | None = None) -> Padded:
    """Give a packed batch its padding back.

    Parameters
    ----------
    packed : Packed
        `data` of shape (lengths.sum(), ...) and `lengths` of shape (batch,).
    value : scalar
        What padding is filled with; must be a value of the dtype of `packed.data`.
    length : int, optional
        Time steps of the result. By default those of the longest sequence, 0 if there is none.

    Returns
    -------
    Padded
        `data` of shape (batch, time, ...), and `lengths` of shape (batch,).

    Raises
    ------
    TypeError, ValueError
        If `lengths` are not non-negative integers that sum to the steps of `packed.data`, or
        `value` or `length` does not fit, as in `pad`.
    """
    steps_end_to_end = np.asarray(packed.data)
    lengths = check_lengths("packed.lengths", np.asarray(packed.lengths))
    if steps_end_to_end.ndim == 0 or len(steps_end_to_end) != lengths.sum():
        raise ValueError(
            f"packed.data: expected shape (lengths.sum(), ...) = ({lengths.sum()}, ...), got {steps_end_to_end.shape}"
        )
    steps = _time_steps(lengths, length, "packed")
    shape = (len(lengths), steps, *steps_end_to_end.shape[1:])
    data = _filled(shape, value, steps_end_to_end.dtype)
    data[valid_steps(lengths, steps)] = steps_end_to_end
    return Padded(data, lengths)


def _check_padded(data: ArrayLike, lengths: ArrayLike) -> tuple[Array, IntArray]:
    data = np.asarray(data)
    if data.ndim < 2:
        raise ValueError(f"data: expected shape (B, T, ...), got {data.shape}")
    return data, check_lengths("lengths", np.asarray(lengths), *data.shape[:2])


def _time_steps(lengths: IntArray, length: int | None, name: str) -> int:
    longest = int(lengths.max(initial=0))
    if length is None:
        return longest
    length = check_count("length", length, 0)
    if longest > length:
        raise ValueError(
            f"length: expected at least that of the longest sequence, got {length} where sequence "
            f"{int(lengths.argmax())} of {name} has {longest} steps"
        )
    return length


def _filled(shape: tuple[int, ...], value: complex, dtype: np.dtype) -> Array:
    """An array full of `value`, which may be rounded to `dtype` but not altered beyond that."""
    if dtype.kind not in "biufc":
        raise TypeError(f"sequences: expected a numeric or bool dtype, got {dtype}")
    given = np.asarray(value)
    if given.ndim or given.dtype.kind not in ("biufc" if dtype.kind == "c" else "biuf"):
        raise TypeError(f"value: expected a scalar of the sequences' dtype {dtype}, got {value!r}")
    with np.errstate(all="ignore"):
        fill = given.astype(dtype)
    rounded = dtype.kind in "fc" and np.isfinite(fill) == np.isfinite(given)
    if not rounded and fill != given:
        raise ValueError(f"value: expected a value of the sequences' dtype {dtype}, got {value!r}")
    return np.full(shape, fill)
