"""The explicit door for other libraries' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def from_dlpack(array: Any) -> np.ndarray:
    """Return a numpy array on the memory of another library's CPU array; nothing is copied.

    Parameters
    ----------
    array
        Any object with ``__dlpack__``, as PyTorch's and JAX's arrays are. A PyTorch tensor that requires a
        gradient is to be detached first.

    Raises
    ------
    TypeError
        It has no ``__dlpack__``, or it does not lie in the host's memory.
    """
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        raise TypeError(f"array: expected an object with __dlpack__, got {type(array).__name__}")
    if device()[0] != 1:  # kDLCPU
        raise TypeError(f"array: expected one in the host's memory, got DLPack device {device()}; copy it first")
    return np.from_dlpack(array)
