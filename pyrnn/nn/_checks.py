"""What layers alone ask of their arguments; the rest is in `pyrnn._checks`."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_positions(name: str, value: Any, batch: int) -> np.ndarray[Any, Any]:
    """Return how many steps each row has had as a new array (B,) of int64."""
    if not isinstance(value, (np.ndarray, list, tuple)):
        raise TypeError(f"{name}: expected integers (B,) = ({batch},) on the host, got {type(value).__name__}")
    array = np.array(value)  # a copy: no state shares it
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, got {array.dtype}; cast with .astype(int)")
    if array.shape != (batch,):
        raise ValueError(f"{name}: expected shape (B,) = ({batch},), got {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name}: expected values from 0 on, got {array.min()}")
    return array.astype(np.int64, copy=False)


def check_recurrent_state(
    state: Any, leaves: tuple[str, ...], batch: int, stacked: int, hidden: int, dtype: Any
) -> None:
    """Hold a recurrent layer's state against its form: a tuple of leaves, each (B, L·D, H)."""
    sizes = {"B": batch, "L·D": stacked, "H": hidden}
    form = f"({', '.join(leaves)}{',' if len(leaves) == 1 else ''})"
    if not isinstance(state, tuple) or len(state) != len(leaves):
        came = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(
            f"state: expected a tuple {form}, each of shape (B, L·D, H) = {tuple(sizes.values())}, got {came}"
        )
    for index, (leaf, value) in enumerate(zip(leaves, state, strict=True)):
        check_array(f"state[{index}] ({leaf})", value, "B L·D H", dict(sizes), dtype)


def check_states(state: Any, names: Sequence[str], stateful: Sequence[bool]) -> tuple[Any, ...]:
    """Return the state of a sequence of layers, one entry for each; () or None for one without a state."""
    if state is None:
        return (None,) * len(names)
    if not isinstance(state, tuple) or len(state) != len(names):
        came = f"{len(state)} of them" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(f"state: expected a tuple of one entry per layer, {len(names)} of them, got {came}")
    for index, (name, has_one, entry) in enumerate(zip(names, stateful, state, strict=True)):
        empty = entry is None or (isinstance(entry, tuple) and not entry)
        if not has_one and not empty:
            raise ValueError(
                f"state[{index}]: expected () for a {name}, which has no state, got a {type(entry).__name__}"
            )
    return state
