"""Kernels, compiled by NVRTC for the sizes met, and kept: by CuPy on disk too. Of None they get a null pointer."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import cupy
import numpy as np


@cache
def source(name: str) -> str:
    """Return a file of ``kernels`` with what it includes in place, so that the text alone decides what is compiled."""
    met: set[str] = set()

    def include(name: str) -> str:
        if name in met:
            return ""
        met.add(name)
        text = (resources.files(__package__) / "kernels" / name).read_text()
        return re.sub(
            r'^#include "([^"]+)"$', lambda match: include(match[1]), text.replace("#pragma once\n", ""), flags=re.M
        )

    return include(name)


def kernel(name: str, function: str, dtype: Any = None, *, cooperative: bool = False, **constants: Any) -> Any:
    """Return one kernel of a file for the current device, compiled with constants and a dtype as REAL."""
    if dtype is not None:
        constants["REAL"] = "double" if dtype == np.float64 else "float"
    return _kernel(cupy.cuda.Device().id, name, function, cooperative, *constants.items())


@lru_cache(maxsize=1024)
def _kernel(device: int, name: str, function: str, cooperative: bool, *constants: Any) -> Any:
    return _module(device, name, cooperative, *constants).get_function(function)


@lru_cache(maxsize=512)
def _module(device: int, name: str, cooperative: bool, *constants: Any) -> Any:
    """Return a file's kernels. A module belongs to one device, so that is a key."""
    options = ("-std=c++17", *(f"-D{key}={value}" for key, value in constants))
    return cupy.RawModule(code=source(name), options=options, enable_cooperative_groups=cooperative)


def to_device(host: np.ndarray) -> Any:
    """Return a copy on the device of what the host has for a call, which no CUDA graph could have anew.

    CUDA itself would let a stream capture the copy, from memory that CuPy then gives to others.
    """
    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError("no CUDA graph can be captured of lengths or other positions, which come from the host")
    return cupy.asarray(host)
