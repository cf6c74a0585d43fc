"""What layers ask of their arguments; each check names the argument that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops.arrays import FLOATS
from ..ops.shapes import Sizes, describe, match_shape


def check_size(name: str, value: Any, minimum: int = 1) -> int:
    """Return a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_probability(name: str, value: Any) -> float:
    """Return a number from 0 to 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {value!r}")
    return number


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of some words."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def check_dtype(value: Any) -> np.dtype[Any]:
    """Return float32 or float64."""
    try:
        dtype = None if value is None else np.dtype(value)  # numpy takes None for float64
    except TypeError:
        dtype = None
    if dtype is None or dtype not in FLOATS:
        raise TypeError(f"dtype: expected 'float32' or 'float64', got {value!r}")
    return dtype


def check_array(name: str, value: Any, shape: str, sizes: Sizes, dtype: Any = None) -> None:
    """Hold an array or Tensor against a symbolic shape and, unless it is None, a dtype."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(
            f"{name}: expected an array or Tensor of shape {describe(shape, sizes)}, got {type(value).__name__}"
        )
    if dtype is not None and value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype} like the layer's parameters, got {value.dtype}; cast with .astype(numpy.{dtype})"
        )
    match_shape(name, shape, value.shape, sizes)
