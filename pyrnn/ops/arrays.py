"""Which arrays an op takes: float32 or float64, all alike, of the backend's own kind."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import DOORS, FLOATS, package_of, type_name
from ..autograd import Tensor
from ..backend import Backend


def check_array(name: str, value: Any, dtype: Any, backend: Backend) -> Any:
    """Return the array's dtype, which is to be ``dtype`` unless that is None.

    Raises
    ------
    TypeError
        It is no array of this backend, or of another dtype; the message says what to do.
    """
    kind = type(value)
    if issubclass(kind, Tensor):
        raise TypeError(f"{name}: expected an array, since vjp is below the tape, got a Tensor; pass its .data")
    if not issubclass(kind, backend.array_type) or issubclass(kind, (np.ma.MaskedArray, np.matrix)):
        wanted = f"{backend.array_type.__module__}.{backend.array_type.__name__}"
        door = DOORS.get(package_of(value), "convert it with numpy.asarray(...)")
        if backend.array_type is not np.ndarray:
            door = f"copy it with {backend.xp.__name__}.asarray(...)"
        raise TypeError(
            f"{name}: expected a {wanted} or a pyrnn.Tensor of one for backend {backend.name!r}, "
            f"got {type_name(value)}; {door}"
        )
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}; cast with .astype(numpy.float32)")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype} like the arrays before it, got {value.dtype}; cast with .astype(numpy.{dtype})"
        )
    return value.dtype
