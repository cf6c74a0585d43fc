"""What the modules of `pyrnn.data` ask of their arguments."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
IntArray: TypeAlias = NDArray[np.int64]


def check_int(name: str, value: object, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`, or raise naming the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_lengths(lengths: ArrayLike, *, batch: int | None = None, steps: int | None = None) -> IntArray:
    """Return `lengths` as a fresh int64 array: one per row of `batch`, each in 0..`steps`."""
    given = np.asarray(lengths)
    if given.ndim != 1 or (batch is not None and len(given) != batch):
        expected = "(batch,)" if batch is None else f"(batch,) = ({batch},)"
        raise ValueError(f"lengths must have the shape {expected}, got {given.shape}")
    # An empty list has no integers to show, and NumPy calls it float64.
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got dtype {given.dtype}")
    if (given < 0).any():
        i = int(np.argmax(given < 0))
        raise ValueError(f"lengths must not be negative, got lengths[{i}] = {given[i]}")
    if steps is not None and (given > steps).any():
        i = int(np.argmax(given > steps))
        raise ValueError(f"lengths must be at most {steps} (time), got lengths[{i}] = {given[i]}")
    return given.astype(np.int64)
