"""What runs here: version, instruction set, threads, backends."""

from __future__ import annotations

import platform
import sys

import numpy as np

from ._version import __version__
from .backend import DEFAULT, backends
from .threads import get_num_threads


def empty_cache() -> None:
    """Give back the memory that the default backend keeps for its next large arrays.

    It keeps that of arrays that are gone, up to 512 MB or a sixteenth of the machine's memory, since fresh memory is
    slow. Nothing that is in use is touched.
    """
    if (memory := sys.modules.get("pyrnn._core.memory")) is not None:
        memory.empty_cache()


def show_config() -> None:
    """Print pyrnn's version, the ISA level in use, OpenMP, threads, and the backends, with why any is not available."""
    try:
        from ._core.runtime import has_openmp, isa_level

        core = f"ISA level {isa_level()}, OpenMP {'yes' if has_openmp() else 'no (serial)'}"
    except ImportError as error:
        core = f"not built: {error}"
    print(f"pyrnn {__version__}, Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}")
    print(f"core: {core}")
    print(f"threads: {get_num_threads()}")
    print(f"backends (default {DEFAULT}):")
    for info in backends():
        print(f"  {info}")
