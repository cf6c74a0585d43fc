"""What has to be said to the peers before they are imported, and what they and the machine are."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LEVELS = {
    "v3": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+bmi2",
    },
    "v2": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "+sse4.2",
    },
}
"""What holds PyTorch, NumPy's BLAS and Numba to the level that ``PYRNN_ISA`` forces on pyrnn."""


def forced_level() -> str:
    """Return the level that ``PYRNN_ISA`` forces, "" if none."""
    return os.environ.get("PYRNN_ISA", "")


def hold_peers_to_level() -> None:
    """Set the variables of the forced level; to be called before NumPy and PyTorch are imported."""
    for name, value in LEVELS.get(forced_level(), {}).items():
        os.environ.setdefault(name, value)


def describe(threads: int, peers: list[str]) -> dict[str, Any]:
    """Return what a table has to say of where it comes from."""
    import numpy

    import pyrnn
    from pyrnn._core import runtime
    from pyrnn.backend import choose

    return {
        "pyrnn": pyrnn.__version__,
        "backend": choose("lstm").name,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "peers": {peer: _version(peer) for peer in peers if peer != "reference"},
        "cpu": _cpu(),
        "machine": platform.machine(),
        "isa": runtime.isa_level(),
        "forced": bool(forced_level()),
        "openmp": runtime.has_openmp(),
        "threads": threads,
        "load": os.getloadavg()[0],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
