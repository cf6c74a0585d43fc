"""What layers alone ask of their arguments; the rest is in `pyrnn._checks`."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import FLOATS, refuse_foreign
from ..ops.shapes import Sizes, describe, match_shape


def check_probability(name: str, value: Any) -> float:
    """Return a number from 0 to 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, got {value!r}")
    return number


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
    refuse_foreign(name, value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(
            f"{name}: expected an array or Tensor of shape {describe(shape, sizes)}, got {type(value).__name__}"
        )
    if dtype is not None and value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype} like the layer's parameters, got {value.dtype}; cast with .astype(numpy.{dtype})"
        )
    match_shape(name, shape, value.shape, sizes)
