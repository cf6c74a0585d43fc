"""The explicit door for other libraries' arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

HOST, GPU = 1, 2  # kDLCPU, kDLCUDA


def from_dlpack(array: Any) -> Any:
    """Return a numpy array, or a cupy one on a GPU, on the memory of another library's array; nothing is copied.

    Parameters
    ----------
    array
        Any object with ``__dlpack__``, as PyTorch's and JAX's arrays are. A PyTorch tensor that requires a
        gradient is to be detached first.

    Raises
    ------
    TypeError
        It has no ``__dlpack__``, or lies neither in the host's memory nor in an NVIDIA GPU's.
    ImportError
        It lies on a GPU, and CuPy is not installed.
    """
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        raise TypeError(f"array: expected an object with __dlpack__, got {type(array).__name__}")
    if device()[0] == GPU:
        try:
            import cupy
        except ModuleNotFoundError as error:
            raise ImportError('array: it lies on a GPU, which needs CuPy; try: pip install "pyrnn[cuda13]"') from error
        return cupy.from_dlpack(array)
    if device()[0] != HOST:
        raise TypeError(
            f"array: expected one in the host's memory or an NVIDIA GPU's, got DLPack device {device()}; copy it first"
        )
    return np.from_dlpack(array)
