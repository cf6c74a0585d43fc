"""CUDA kernels compiled for the CPU and run there, exactly: see `cuda_on_cpu.h`, which is what makes them C++.

A kernel's ``.cu`` source stays as it is. It is preprocessed with that header before it; ``__shared__`` and
``__global__``, which no macro can express, are rewritten; and a C++ compiler makes one shared library of it for each
kernel asked for, kept on disk and found again by a digest of all that went into it.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
CXX = os.environ.get("CXX", "g++")
FLAGS = ("-std=c++17", "-march=native", "-ffp-contract=off", "-fPIC", "-fno-strict-aliasing", "-fno-gnu-unique", "-w")
# Found where it happens, and told with the line; the header has what these call, so no sanitizer library is needed.
CHECKS = ("-fsanitize=alignment,bounds,null", "-fno-sanitize-recover=all")
# Found by the address sanitizer, which ends the process; Python must be started with it: see `sanitizer_environment`.
SANITIZE = ("-fsanitize=address",)
LINK = ("-Wl,-Bsymbolic",) if sys.platform == "linux" else ()  # so that a kernel called "sync" is not the C library's
EMPTY_HEADERS = ("cuda_bf16.h", "cuda_runtime.h")  # what they declare and kernels use is in the header
MAX_STATIC_SHARED = 48 * 1024

_QUALIFIERS = r"(?:(?:extern|static|volatile|alignas\([^()]*\)|__attribute__\s*\(\([^()]*(?:\([^()]*\))?\)\))\s*)*"
_SHARED = re.compile(rf"({_QUALIFIERS})\b__shared__\b([^;]*);")
_DECLARATOR = re.compile(r"^(.*?)(\w+)\s*((?:\[[^\[\]]*\]\s*)*)$", re.S)
_ATTRIBUTE = re.compile(r"__attribute__\s*\(\([^()]*(?:\([^()]*\))?\)\)|alignas\([^()]*\)")


_ONE_LAUNCH = threading.Lock()  # at a time, as all have the same stacks
_STACK = 1 << 19  # bytes of a thread's stack, as in cuda_on_cpu.h


class EmulatorError(RuntimeError):
    """A kernel did what it must not: it deadlocked, diverged at a barrier, wrote out of bounds."""


class CompileError(Exception):
    """A kernel is no valid C++; the compiler's words."""


class Statistics(NamedTuple):
    """What a launch came to: the static shared memory of a block in bytes, and how often a thread waited."""

    static_shared: int
    switches: int


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("stacks", ctypes.c_void_p),
        ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("cooperative", ctypes.c_uint32),
        ("static_shared", ctypes.c_uint32),
        ("switches", ctypes.c_uint64),
        ("error", ctypes.c_char * 4096),
    )


def unavailable() -> str:
    """Return why nothing can be compiled here, or an empty string."""
    return "" if shutil.which(CXX) else f"no C++ compiler: {CXX} is not there"


def sanitizer_environment() -> dict[str, str]:
    """Return the environment in which a Python can load libraries compiled with ``sanitize=True``."""
    path = subprocess.run([CXX, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    return {**os.environ, "LD_PRELOAD": path.strip(), "ASAN_OPTIONS": "detect_leaks=0"}


class _Stacks:
    """The stacks of all threads that are resident at once, for every kernel of the process. Their number only grows.

    The lowest page of each can't be touched, so that an overflow is seen. Stacks of a library's own would be more
    pieces of memory than Linux lets a process have, and new ones for each launch take longer than most launches.
    """

    def __init__(self) -> None:
        self._memory, self._count = mmap.mmap(-1, mmap.PAGESIZE), 0

    def base(self, count: int) -> int:
        """Return where so many stacks begin."""
        if count > self._count:
            self._count = count
            self._memory = mmap.mmap(-1, count * _STACK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
            forbid = ctypes.CDLL(None).mprotect
            for thread in range(count):
                forbid(ctypes.c_void_p(self._address() + thread * _STACK), ctypes.c_size_t(mmap.PAGESIZE), 0)
        return self._address()

    def _address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)
_stacks = _Stacks()


class Kernel:
    """A kernel that can be launched.

    Attributes
    ----------
    name
        Its name, or the expression that names an instance of a template.
    parameters
        What it takes, as ``("p4", "i4", "f4", "s24")``: integers, floating-point numbers and structures with their
        bytes, and pointers with those of the floating-point number that they point to, or 0.
    """

    def __init__(self, name: str, library: ctypes.CDLL) -> None:
        self.name = name
        self._launch = library.pyrnn_launch
        self._launch.restype = None
        library.pyrnn_parameters.restype = ctypes.c_char_p
        self.parameters = tuple(library.pyrnn_parameters().decode().split())
        self.is_extern_c = hasattr(library, name) if name.isidentifier() else False

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        shared: int = 0,
        cooperative: bool = False,
        seed: int = 0,
    ) -> Statistics:
        """Run the kernel and wait for it.

        Parameters
        ----------
        grid, block
            Up to three sizes each.
        args
            For a pointer a numpy array, whose first element it will point to, or None; for all else a numpy scalar.
        shared
            Bytes of dynamic shared memory.
        cooperative
            All blocks are resident at once.
        seed
            Other than 0, it shuffles the order in which threads and blocks run.

        Raises
        ------
        EmulatorError
            The kernel did what it must not.
        TypeError
            An argument is not of its parameter's type: a GPU would read something else.
        """
        sizes = [(*map(int, size), 1, 1)[:3] for size in (grid, block)]
        if not 0 < int(np.prod(sizes[1])) <= 1024 or min(sizes[0]) < 1:
            raise EmulatorError(f"{self.name}: a grid of {sizes[0]} blocks of {sizes[1]} threads can't be launched")
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name}: expected {len(self.parameters)} arguments, got {len(args)}")
        pairs = zip(self.parameters, args, strict=True)
        values = [_pack(f"{self.name}, argument {i}", *pair) for i, pair in enumerate(pairs)]
        addresses = (ctypes.c_void_p * max(1, len(values)))(*[value.ctypes.data for value in values])
        launch = _Launch(tuple(sizes[0]), tuple(sizes[1]), None, shared, seed, cooperative)
        with _ONE_LAUNCH:
            launch.stacks = _stacks.base(int(np.prod(sizes[1])) * (int(np.prod(sizes[0])) if cooperative else 1))
            self._launch(ctypes.byref(launch), addresses)
        error = launch.error.decode(errors="replace")
        if not error and launch.static_shared > MAX_STATIC_SHARED:
            error = f"{launch.static_shared} bytes of static shared memory, where {MAX_STATIC_SHARED} are the most"
        if error:
            raise EmulatorError(f"{self.name}: {error}")
        return Statistics(launch.static_shared, launch.switches)


def _pack(what: str, parameter: str, value: Any) -> np.ndarray:
    """Return memory that holds an argument's bytes, as many as the parameter has."""
    kind, size = parameter[0], int(parameter[1:])
    if kind == "p":
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "f" and size not in (0, value.itemsize):
                raise TypeError(f"{what}: expected an array of float{8 * size}, got {value.dtype}")
            return np.array(value.ctypes.data, np.uint64)
        if value is None or (isinstance(value, np.integer) and value.itemsize == 8):
            return np.array(value or 0, np.uint64)
        raise TypeError(f"{what}: expected an array for a pointer, got {value!r}")
    if not isinstance(value, np.generic):
        raise TypeError(f"{what}: expected a value of {size} bytes, got {type(value).__name__}")
    found = {"u": "i", "b": "i", "V": "s"}.get(value.dtype.kind, value.dtype.kind)
    fits = value.itemsize == size
    if kind == found == "i" and value.itemsize > size:  # a GPU reads the low bytes: right if the number fits
        fits = -(2 ** (8 * size - 1)) <= value < 2 ** (8 * size)
    if kind not in (found, "s") or not fits:
        names = {"i": "an integer", "f": "a floating-point number", "s": "a structure"}
        raise TypeError(f"{what}: expected {names[kind]} of {size} bytes, got {value.dtype} {value!r}")
    return np.array(value)


class Module:
    """A CUDA source, of which kernels can be had by name.

    Parameters
    ----------
    source
        CUDA C++.
    options
        As NVRTC takes them: ``-I`` and ``-D`` are heeded, the rest, which are for a GPU, are not.
    filename
        What messages call the source.
    optimize
        The compiler's ``-O``. With more, a kernel that runs a few times takes longer to compile than it saves.
    checks
        Find misaligned and null pointers and indices beyond an array's bounds, at some cost in time.
    sanitize
        Compile with the address sanitizer instead, which also watches dynamic shared memory and arrays of the host's.
    """

    def __init__(
        self,
        source: str,
        options: Sequence[str] = (),
        *,
        filename: str = "kernel.cu",
        optimize: int = 1,
        checks: bool = True,
        sanitize: bool = False,
    ) -> None:
        self._sanitize = SANITIZE if sanitize else ()
        self._flags = [*FLAGS, f"-O{optimize}", *(self._sanitize or (CHECKS if checks else ()))]
        include = (f"-I{_cache_folder()}", *_heeded(options), "-include", str(HEADER))
        text = f'#line 1 "{filename}"\n{source}\n'
        self._text = _preprocessed((CXX, "-E", "-x", "c++", *self._flags, *include, "-"), text)
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by its name, or by an expression for a template's instance, as ``"forward<float, 4>"``."""
        if name not in self._kernels:
            self._kernels[name] = Kernel(name, self._library(name))
        return self._kernels[name]

    def _library(self, name: str) -> ctypes.CDLL:
        export = (
            f'\n# 1 "name expression"\nextern "C" void pyrnn_launch(pyrnn_cpu::Launch *launch, void **arguments) '
            f"{{ pyrnn_cpu::run_kernel(launch, arguments, {name}); }}\n"
            f'extern "C" const char *pyrnn_parameters() {{ return pyrnn_cpu::parameters({name}); }}\n'
        )
        text = self._text + export
        digest = hashlib.sha256("\0".join([text, *self._flags, *LINK, _target()]).encode()).hexdigest()[:32]
        path = _cache_folder() / f"{digest}.so"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=_cache_folder()) as folder:
                compiled, linked = f"{folder}/kernel.o", f"{folder}/kernel.so"
                _run([CXX, "-c", "-x", "c++-cpp-output", *self._flags, "-o", compiled, "-"], text)
                _run([CXX, "-shared", *LINK, *self._sanitize, "-o", linked, compiled], "")
                os.replace(linked, path)
        return ctypes.CDLL(str(path))


@lru_cache(maxsize=128)
def _preprocessed(command: tuple[str, ...], text: str) -> str:
    return rewrite(_run(command, text))


def rewrite(text: str) -> str:
    """Return preprocessed CUDA as C++: ``__shared__`` variables become references into the running block's memory."""
    return re.sub(r"\b__global__\b", "", _SHARED.sub(_rewrite_shared, text))


def _rewrite_shared(match: re.Match[str]) -> str:
    qualifiers, declared = match.groups()
    base, found = "", []
    for part in _split(_ATTRIBUTE.sub("", declared)):
        declarator = _DECLARATOR.match(part.strip())
        if declarator is None:
            raise CompileError(f"a declaration of __shared__ memory that is not understood: {declared}")
        kind, name, bounds = (text.strip() for text in declarator.groups())
        base = base or ("volatile " if "volatile" in qualifiers else "") + kind.rstrip("* ")
        kind = base + " " + "*" * kind.count("*")
        if re.fullmatch(r"\[\s*\]", bounds):
            found.append(f"{kind} *const {name} = ({kind} *)pyrnn_cpu::dynamic_shared();")
        else:
            found.append(
                f"typedef {kind} pyrnn_type_{name}{bounds}; static int pyrnn_id_{name}; pyrnn_type_{name} &{name} = "
                f'pyrnn_cpu::static_shared<pyrnn_type_{name}>(pyrnn_id_{name}, "{name}");'
            )
    found.append("do {} while (0);")  # no C++ outside of a function, where there is no block to have the memory
    return " ".join(found) + "\n" * match[0].count("\n")


def _split(declarators: str) -> list[str]:
    """Split at the commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in declarators:
        depth += (letter in "<([{") - (letter in ">)]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _heeded(options: Sequence[str]) -> list[str]:
    """Return those of NVRTC's options that also hold here, each as one word."""
    kept: list[str] = []
    words = iter(options)
    long = {"--include-path": "-I", "--define-macro": "-D", "--undefine-macro": "-U"}
    for word in words:
        name, _, value = word.partition("=")
        if name in long:
            kept.append(long[name] + (value or next(words)))
        elif word in ("-I", "-D", "-U"):
            kept.append(word + next(words))
        elif word[:2] in ("-I", "-D", "-U"):
            kept.append(word)
    return kept


def _run(command: Sequence[str], text: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stdout


@cache
def _target() -> str:
    """Return what the compiler says of itself and of this machine, which a library is good for."""
    return _run([CXX, "-march=native", "-dM", "-E", "-x", "c++", "-"], "")


@cache
def _cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrnn" / "cuda_on_cpu"
    folder = Path(os.environ.get("PYRNN_CUDA_ON_CPU_CACHE") or default)
    folder.mkdir(parents=True, exist_ok=True)
    for name in EMPTY_HEADERS:
        (folder / name).touch()
    return folder
