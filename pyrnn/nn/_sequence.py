"""Layers one after the other, and what becomes of padding between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_lengths, valid_steps
from ..autograd import Tensor, functions
from ..autograd.tensor import namespace
from ._checks import check_array

Call = Callable[[Any, Any, Any], tuple[Any, Any]]  # x, state, lengths -> y, state


def in_turn(
    layers: Iterable[tuple[bool, Call]], x: Any, states: Iterable[Any], lengths: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Run layers, each with whether it has a state, from one state each: y and the states after it.

    A layer with a state knows ``lengths``; the others act on each step alone, padding too.
    """
    padding = None if lengths is None else padding_of(x, lengths)
    clean = padding is None  # whether padded steps hold zeros, or there are none
    new = []
    for (stateful, call), entry in zip(layers, states, strict=True):
        if stateful:
            x, entry = call(x, entry, lengths)
            clean = True
        else:
            # Zeros in: what a step without a state makes of NaN would still meet the weights' gradients.
            x, entry = call(x if clean else blank(x, padding), (), None)
            clean = padding is None
        new.append(entry)
    return x if clean else blank(x, padding), tuple(new)


def padding_of(x: Any, lengths: Any) -> np.ndarray[Any, Any]:
    """Return booleans (B, T), True where a step is padding."""
    if getattr(x, "ndim", 0) < 2:
        raise ValueError(f"x: expected shape (B, T, ...) with lengths, got {getattr(x, 'shape', type(x).__name__)}")
    batch, time = x.shape[:2]
    return ~valid_steps(check_lengths("lengths", lengths, batch, time), time)


def without_padding(x: Any, lengths: Any, features: int, dtype: Any) -> tuple[Any, Any, Any]:
    """Check x (B, T, E) and lengths: return x with zeros for padding, the valid steps of each row, where padding is."""
    check_array("x", x, "B T E", {"E": features}, dtype)
    if lengths is None:
        return x, None, None
    counts = check_lengths("lengths", lengths, *x.shape[:2])
    padding = padding_of(x, counts)
    return blank(x, padding), counts, padding


def blank(x: Any, padding: Any) -> Any:
    """Return ``x`` with zeros in place of its padded steps."""
    xp = namespace(x.data if isinstance(x, Tensor) else x)
    where = placed(xp, np.asarray, padding).reshape(padding.shape + (1,) * (x.ndim - 2))
    if isinstance(x, Tensor):
        return functions.where(where, 0.0, x)
    return xp.where(where, x.dtype.type(0), x)


# --- what the host computes and a device needs ---------------------------------------------------------------------


class _Words(NamedTuple):
    """A host array by its content."""

    shape: tuple[int, ...]
    dtype: str
    content: bytes


def placed(xp: Any, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``make(*arguments)``, an array that the host computes, as one of a module's.

    On a device it is kept: the next call with the same arguments (host arrays, and what can be hashed) copies nothing.
    """
    if xp is np:
        return make(*arguments)
    words = (_Words(a.shape, a.dtype.str, a.tobytes()) if isinstance(a, np.ndarray) else a for a in arguments)
    return _kept(xp, xp.empty(0).device.id, make, *words)


@lru_cache(maxsize=32)
def _kept(xp: Any, device: int, make: Callable[..., Any], *words: Any) -> Any:
    arguments = (np.frombuffer(w.content, w.dtype).reshape(w.shape) if isinstance(w, _Words) else w for w in words)
    return xp.asarray(make(*arguments))
