"""CUDA compiled for GPUs by NVRTC where there is none: whether a source compiles, and what its kernels will need.

It asks for neither a GPU nor a driver, just for two wheels: ``nvidia-cuda-nvrtc`` (the compiler) and
``nvidia-cuda-runtime`` (cuda_bf16.h and the like). The options are those that CuPy 14 gives to NVRTC for a RawModule.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# CuPy's own: functions without a qualifier are the device's, and float32 has no denormals.
CUPY_OPTIONS = ("--std=c++17", "-ftz=true", "--device-as-default-execution-space")

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>[^']+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)
_SHARED = re.compile(r"(\d+) bytes smem")


class Resources(NamedTuple):
    """What a thread of a kernel needs: registers, spilled bytes, stack; and the static shared memory of a block."""

    registers: int
    spill_loads: int
    spill_stores: int
    shared: int
    stack: int


class Compiled(NamedTuple):
    """A compiled source: the binary for a GPU, what the compiler said, and the kernels by name."""

    cubin: bytes
    log: str
    kernels: Mapping[str, Resources]


class CompileError(Exception):
    """The source is no valid CUDA; the compiler's words."""


def _wheels(pattern: str) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return sorted(path for folder in folders for path in Path(folder).glob(pattern))


def unavailable() -> str:
    """Return what is missing here, or an empty string."""
    for package, pattern in (
        ("nvidia-cuda-nvrtc", "cu*/lib/libnvrtc.so.*"),
        ("nvidia-cuda-runtime", "cu*/include/cuda_bf16.h"),
    ):
        if not _wheels(pattern):
            return f"no {package}; try: pip install {package}"
    return ""


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(_wheels("cu*/lib/libnvrtc.so.*")[-1]))


def _call(name: str, *args: Any) -> None:
    library = _library()
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    status = getattr(library, name)(*args)
    if status:
        raise CompileError(f"{name}: {library.nvrtcGetErrorString(status).decode()}")


def _read(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, data)
    return data.raw


def compile(
    source: str, arch: str = "sm_90", options: Sequence[str] = (), *, names: Sequence[str] = (), cupy: bool = True
) -> Compiled:
    """Compile CUDA C++ to a GPU's own code.

    Parameters
    ----------
    source
        CUDA C++.
    arch
        The GPU: ``"sm_80"`` (A100), ``"sm_90"`` (H100, H200), ``"sm_100"`` (B200).
    options
        More options, as ``"-DTILE=16"`` and ``"-Ifolder"``.
    names
        Expressions that name instances of templates, as ``"forward<float, 4>"``; `kernels` has them under these names.
    cupy
        Compile as CuPy does.

    Raises
    ------
    CompileError
        With the compiler's log.
    """
    include = _wheels("cu*/include/cuda_bf16.h")[-1].parent
    given = [*options, *(CUPY_OPTIONS if cupy else ()), f"-arch={arch}", "--ptxas-options=-v", f"-I{include}"]
    words = (ctypes.c_char_p * len(given))(*[option.encode() for option in given])
    program, lowered = ctypes.c_void_p(), {}
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        for name in names:
            _call("nvrtcAddNameExpression", program, name.encode())
        try:
            _call("nvrtcCompileProgram", program, len(given), words)
        except CompileError as error:
            raise CompileError(_read(program, "ProgramLog").rstrip(b"\0").decode() or str(error)) from None
        for name in names:
            symbol = ctypes.c_char_p()
            _call("nvrtcGetLoweredName", program, name.encode(), ctypes.byref(symbol))
            lowered[(symbol.value or b"").decode()] = name
        log, cubin = _read(program, "ProgramLog").rstrip(b"\0").decode(), _read(program, "CUBIN")
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))
    kernels = {}
    for entry in _ENTRY.finditer(log):
        shared = _SHARED.search(entry["rest"])
        numbers = [int(entry[field]) for field in ("registers", "loads", "stores")]
        numbers += [int(shared[1]) if shared else 0, int(entry["stack"])]
        kernels[lowered.get(entry["name"], entry["name"])] = Resources(*numbers)
    return Compiled(cubin, log, kernels)
