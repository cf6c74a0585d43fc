"""The CuPy plugin: every op on an NVIDIA GPU, by kernels of its own.

It is a backend as anybody's would be, registered by entry point and built on the public plugin API alone.
``recurrent`` (with its ``plans``), ``attention``, ``conv``, ``basic`` and ``update`` describe calls and plan their
launches for the current device (``devices``); the kernels are CUDA C++ in ``kernels``, compiled by NVRTC through CuPy
for the sizes met (``modules``); products of matrices are cuBLAS's (``matrix``).
"""

from __future__ import annotations

from pyrnn import BackendUnavailableError

try:
    import cupy as _cupy
except ModuleNotFoundError as error:
    raise BackendUnavailableError("cupy", "CuPy is not installed", 'pip install "pyrnn[cuda13]"') from error

try:
    _count = _cupy.cuda.runtime.getDeviceCount()
    _capabilities = [int(_cupy.cuda.Device(number).compute_capability) for number in range(_count)]
except Exception as error:  # CuPy's own, without a driver or with one that is too old
    raise BackendUnavailableError("cupy", f"CuPy finds no GPU: {error}") from error
if not _capabilities:
    raise BackendUnavailableError("cupy", "CuPy finds no GPU: the driver lists none")
if max(_capabilities) < 80:
    best = max(_capabilities) / 10
    raise BackendUnavailableError("cupy", f"expected a GPU of compute capability 8.0 or more, got {best}")

from .backend import CupyBackend

__all__ = ["CupyBackend"]
