"""A stand-in for CuPy 14 without a GPU: arrays are numpy's within, kernels run in the emulator.

It is as strict as CuPy: numpy's arrays are refused where CuPy refuses them, and what goes between host and device is
counted in `transfers`. Beyond that, new memory is NaN, and what a kernel writes beside an array is an error and what it
reads there is NaN. What CuPy has and this has not is an AttributeError.
"""

from __future__ import annotations

import operator
import sys
import tempfile
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import emulator
import fake_cublas
import numpy as np

GUARD, ALIGNMENT, UNWRITTEN = 512, 512, 0xFF
# Around an array is what is NaN as float and as double: who reads it gets NaN, even times 0. Signalling NaN, as far as
# one pattern can be for both, becomes another NaN by arithmetic: so what is added to it is seen as well.
_UNTOUCHED = np.array([0xFFBFDBDB, 0xFFF7DBDB], "<u4").tobytes() * (GUARD // 8)
_OUTSIDE = np.frombuffer(_UNTOUCHED, np.uint8)

# An NVIDIA H200, as cudaDeviceGetAttribute tells of it.
H200 = {
    "MultiProcessorCount": 132, "WarpSize": 32, "MaxThreadsPerBlock": 1024, "MaxThreadsPerMultiProcessor": 2048,
    "MaxBlocksPerMultiprocessor": 32, "MaxSharedMemoryPerBlock": 48 << 10, "MaxSharedMemoryPerBlockOptin": 227 << 10,
    "MaxSharedMemoryPerMultiprocessor": 228 << 10, "ReservedSharedMemoryPerBlock": 1024, "MaxRegistersPerBlock": 65536,
    "MaxRegistersPerMultiprocessor": 65536, "L2CacheSize": 60 << 20, "CooperativeLaunch": 1, "ClockRate": 1980000,
    "MemoryClockRate": 3201000, "GlobalMemoryBusWidth": 6144, "MaxBlockDimX": 1024, "MaxBlockDimY": 1024,
    "MaxBlockDimZ": 64, "MaxGridDimX": 2**31 - 1, "MaxGridDimY": 65535, "MaxGridDimZ": 65535,
}  # fmt: skip

# numpy's names that CuPy 14 lacks, and functions that need something done beside calling numpy's.
LACKING = set("""
    asmatrix block bmat bytes_ busday_count char ctypeslib datetime64 einsum_path errstate f2py frompyfunc geomspace
    get_include getbufsize geterr histogram_bin_edges info insert isnat longdouble ma matrix matvec memmap nanpercentile
    nanquantile ndenumerate nditer nested_iters object_ polyder polydiv polyint rec recarray record seterr show_runtime
    spacing str_ strings test timedelta64 unstack vecdot vecmat void
""".split())  # fmt: skip  # noqa: SIM905
REDUCTIONS = {"sum", "prod", "mean", "var", "std", "max", "min", "amax", "amin", "any", "all"}
SYNCHRONIZE = {"nonzero", "argwhere", "flatnonzero", "unique", "compress", "extract"}  # to know their results' sizes
IN_PLACE = {"put_along_axis", "copyto", "place", "putmask", "fill_diagonal", "sort"}
METHODS = """
    all any argmax argmin argpartition argsort choose clip compress conj conjugate cumprod cumsum diagonal dot flatten
    max mean min nonzero prod ravel repeat reshape round searchsorted sort squeeze std sum swapaxes take trace transpose
    var view
""".split()  # noqa: SIM905


@dataclass
class Settings:
    """What the stand-in pretends to be, and how kernels are run; `installed` changes them for a while."""

    attributes: dict[str, int] = field(default_factory=lambda: dict(H200))
    compute_capability: str = "90"
    num_regs: int = 64  # of every kernel: only a GPU's compiler knows
    seed: int = 0
    checks: bool = True
    sanitize: bool = False


@dataclass
class Transfers:
    """How often something was copied to the device and to the host, and how many kernels were launched."""

    to_device: int = 0
    to_host: int = 0
    launches: int = 0

    def reset(self) -> None:
        """Begin to count again."""
        self.to_device = self.to_host = self.launches = 0


settings, transfers = Settings(), Transfers()


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class CompileException(Exception):
    pass


# --- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """A piece of device memory with bytes around it that nothing may write to; or ``foreign`` memory, without them."""

    def __init__(self, size: int = 0, foreign: np.ndarray | None = None) -> None:
        self.size, self.guards = size, []
        if foreign is None:
            self.root = np.full(size + 2 * GUARD + ALIGNMENT, UNWRITTEN, np.uint8)
            self.start = GUARD + -(self.root.ctypes.data + GUARD) % ALIGNMENT
            self.guards = [self.root[self.start - GUARD :][:GUARD], self.root[self.start + size :][:GUARD]]
            for guard in self.guards:
                guard[:] = _OUTSIDE
        else:
            self.root, self.start = _root(foreign), 0
        self.ptr = self.root.ctypes.data + self.start if size else 0
        _memories[id(self.root)] = self
        if (pool := getattr(_thread, "pool", None)) is not None:
            pool.kept.append(self)

    def forget(self) -> None:
        """Make it as new."""
        self.root[self.start :][: self.size] = UNWRITTEN

    def check(self, kernel: str) -> None:
        """Raise if a kernel wrote around it."""
        for guard, begin in zip(self.guards, (-GUARD, self.size), strict=False):
            if guard.tobytes() != _UNTOUCHED:
                word = int(np.flatnonzero(guard != _OUTSIDE)[0]) // 4  # another NaN is other in its middle
                at = begin + 4 * word
                guard[:] = _OUTSIDE
                raise emulator.EmulatorError(f"{kernel}: an array of {self.size} bytes was written at byte {at}")


_memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def _root(array: Any) -> Any:
    """Return the array that has the memory of a view."""
    while hasattr(base := getattr(array, "base", None), "base"):
        array = base
    return array


class MemoryPointer:
    """An address within a piece of memory."""

    device_id = 0

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self.offset, self.ptr = mem, offset, mem.ptr + offset if mem.size else 0

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.offset + offset)

    def __int__(self) -> int:
        return self.ptr


class MemoryPool:
    """The memory that is in use; and what was taken from this pool, which is nobody else's while the pool is there."""

    def __init__(self) -> None:
        self.kept: list[Memory] = []

    def malloc(self, size: int) -> MemoryPointer:
        with using_allocator(self.malloc):
            return MemoryPointer(Memory(size), 0)

    def used_bytes(self) -> int:
        return sum(memory.size for found in _memories.valuerefs() if (memory := found()) is not None)

    total_bytes = used_bytes

    def free_all_blocks(self, stream: Any = None) -> None:
        pass


@contextmanager
def using_allocator(allocator: Any) -> Iterator[None]:
    """Take memory from a pool, whose ``malloc`` is given."""
    before, _thread.pool = getattr(_thread, "pool", None), allocator.__self__
    try:
        yield
    finally:
        _thread.pool = before


# --- calls of numpy ---------------------------------------------------------------------------------------------------


def _inner(value: Any) -> Any:
    """Return numpy's arrays for ours, in tuples, lists and dicts too; one of the host's is refused."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if type(value) in (tuple, list):
        return type(value)(map(_inner, value))
    return {key: _inner(part) for key, part in value.items()} if isinstance(value, dict) else value


def _outer(value: Any, order: str = "K") -> Any:
    """Return our arrays for numpy's: a view of device memory as it is, all else copied into new device memory."""
    if isinstance(value, (tuple, list)):
        parts = [_outer(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    memory = _memories.get(id(_root(value)))
    if memory is not None:
        return _wrap(value, memory, memory)
    value = np.asarray(value)
    if value.dtype.kind not in "biufcV" or value.dtype.itemsize > 16:
        raise ValueError(f"Unsupported dtype {value.dtype}")
    result = ndarray(value.shape, value.dtype, strides=np.empty_like(value, order=order).strides)
    result._a[...] = value
    return result


def _wrap(inner: Any, memory: Memory, base: Any = None) -> ndarray:
    result = ndarray.__new__(ndarray)
    result._a, result._memory, result.base = inner, memory, base
    return result


def _call(function: Callable[..., Any], args: Any, kwargs: Any, out: Any = None, order: str = "K") -> Any:
    """Call one of numpy's functions on ours; on a stream that captures, write down the call instead."""
    used, args, kwargs = args, _inner(args), _inner(kwargs)
    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        target = out._a
        _in_place(lambda: function(*args, out=target, **kwargs), out, *used)
        return out
    result = _outer(function(*args, **kwargs), order)
    graph = get_current_stream()._graph
    if graph is not None and isinstance(result, (tuple, list)):
        raise NotImplementedError("a function with several results, in a capture")
    if graph is not None and isinstance(result, ndarray) and result.base is None:
        result._memory.forget()  # it is not computed yet
        target = result._a
        graph.record(lambda: target.__setitem__(..., function(*args, **kwargs)), result, *used)
    return result


def _elementwise(function: Callable[..., Any], *args: Any, out: Any = None, **kwargs: Any) -> Any:
    """Call a ufunc, which takes arrays and numbers alone and gives C-contiguous arrays, as CuPy's do."""
    for value in args:
        if not isinstance(value, (ndarray, np.generic, bool, int, float, complex)):
            raise TypeError(f"Unsupported type {type(value)}")
    return _call(function, args, kwargs, out, "C")


def _in_place(write: Callable[[], Any], *used: Any) -> None:
    """Write now; on a stream that captures, whenever its graph is launched, if the arrays ``used`` are still there."""
    graph = get_current_stream()._graph
    if graph is None:
        write()
    else:
        graph.record(write, *used)


def _function(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return one of numpy's functions or methods made ours."""

    def call(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        if name in REDUCTIONS and kwargs.keys() & {"where", "initial"}:
            raise TypeError(f"{name}() got an unexpected keyword argument")
        if name in ("take", "take_along_axis", "put_along_axis"):
            args = tuple(map(_index, args))
        if name == "where" and len(args) > 1 and not isinstance(args[0], ndarray):
            raise AttributeError(f"{type(args[0]).__name__!r} object has no attribute 'astype'")
        if name in IN_PLACE and (name != "sort" or function is np.ndarray.sort):
            inner, words = _inner(args), _inner(kwargs)
            return _in_place(lambda: function(*inner, **words), *args)
        if name in SYNCHRONIZE or (name == "where" and len(args) == 1):
            _count_to_host()
        result = _call(function, args, kwargs, out)
        return _outer(np.bool_(result)) if name in ("allclose", "array_equal", "array_equiv") else result

    call.__name__ = call.__qualname__ = name
    return call


class ufunc:
    """One of numpy's, for arrays on the device."""

    def __init__(self, inner: np.ufunc) -> None:
        self._inner, self.__name__ = inner, inner.__name__
        self.nin, self.nout, self.nargs = inner.nin, inner.nout, inner.nargs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) > self.nin:
            kwargs["out"], args = args[self.nin], args[: self.nin]
        return _elementwise(self._inner, *args, **kwargs)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        values = () if b is None else (_inner(b),)
        target, index = a._a, _inner(_index(indices))
        _in_place(lambda: self._inner.at(target, index, *values), a, b)

    def reduce(self, array: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return _call(self._inner.reduce, (array, axis, dtype), {"keepdims": keepdims}, out)

    def accumulate(self, array: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
        return _call(self._inner.accumulate, (array, axis, dtype), {}, out)

    def outer(self, a: Any, b: Any, **kwargs: Any) -> Any:
        return _elementwise(self._inner.outer, a, b, **kwargs)


def _count_to_host() -> None:
    _refuse_while_capturing()
    transfers.to_host += 1


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_basic(index: Any) -> bool:
    kinds = (int, np.integer, slice, type(None), type(Ellipsis))
    return all(isinstance(part, kinds) and not isinstance(part, bool) for part in _parts(index))


def _index(index: Any) -> Any:
    """Copy indices that are the host's to the device, as CuPy does."""
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return _to_device(index) if isinstance(index, (list, np.ndarray)) else index


def _getitem(array: np.ndarray, index: Any) -> np.ndarray:
    found = array[index]
    return found if isinstance(found, np.ndarray) else array[(*_parts(index), ...)]  # an element is a view too


# --- arrays -----------------------------------------------------------------------------------------------------------


class Flags:
    """Which of the memory layouts an array has."""

    def __init__(self, array: ndarray) -> None:
        self.c_contiguous, self.f_contiguous = array._a.flags.c_contiguous, array._a.flags.f_contiguous
        self.owndata, self.fnc, self.forc = array.base is None, array._a.flags.fnc, array._a.flags.forc

    def __getitem__(self, name: str) -> bool:
        names = {"C_CONTIGUOUS": self.c_contiguous, "F_CONTIGUOUS": self.f_contiguous, "OWNDATA": self.owndata}
        return bool(names[name])


class ndarray:
    """An array on a device that is not there."""

    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    base: Any  # None, or for a view the memory that it is of

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        dtype = np.dtype(dtype)
        at = memptr or MemoryPointer(Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize), 0)
        self._memory, self.base = at.mem, None
        self._a = np.ndarray(shape, dtype, at.mem.root, at.mem.start + at.offset, strides, order)

    shape = property(lambda self: self._a.shape, lambda self, shape: setattr(self._a, "shape", shape))
    strides = property(lambda self: self._a.strides)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    flags = property(Flags)
    device = property(lambda self: Device(0))
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    real = property(lambda self: _call(np.real, (self,), {}))
    imag = property(lambda self: _call(np.imag, (self,), {}))

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._memory, self._a.ctypes.data - self._memory.root.ctypes.data - self._memory.start)

    # To the host, each counted, and to other libraries.

    def get(self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True) -> Any:
        _count_to_host()
        if out is None:
            return np.array(self._a, order=order)  # type: ignore[call-overload]
        if out.dtype != self.dtype or out.shape != self.shape:
            raise TypeError(f"{out.dtype} array of {out.shape} cannot be obtained from {self.dtype} of {self.shape}")
        out[...] = self._a
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        _refuse_while_capturing()
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"only a numpy.ndarray of {self.dtype} and {self.shape} can be set")
        transfers.to_device += 1
        self._a[...] = arr

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return bytes(self.get().tobytes(order))

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> Any:
        return _array, (self.get(order="A"),)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = None if self._a.flags.c_contiguous else self.strides
        own = {"data": (self.data.ptr, False), "strides": strides, "version": 3, "stream": 1}
        return {**self._a.__array_interface__, **own}

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        return self._a.__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> Any:
        return self._a.__dlpack_device__()  # the CPU: it is the truth

    # Copies, elements, and writing in place.

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        if not copy and np.asarray(self._a, dtype, order) is self._a:
            return self
        return _call(np.array, (self, dtype), {"order": order})

    def copy(self, order: str = "C") -> ndarray:
        return _call(np.array, (self,), {"order": order})

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def fill(self, value: Any) -> None:
        self[...] = value

    def __len__(self) -> int:
        return len(self._a)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> ndarray:
        if any(getattr(part, "dtype", None) == np.bool_ for part in _parts(index)):
            _count_to_host()  # how many a mask has
        return _call(_getitem, (self, _index(index)), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(value, ndarray) and _is_basic(index):
            value = np.asarray(value, self.dtype)
            if value.shape:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            value = value[()]
        elif not isinstance(value, ndarray):
            value = _to_device(value, self.dtype)
        target, index, inner = self._a, _inner(_index(index)), _inner(value)
        _in_place(lambda: target.__setitem__(index, inner), self, value)

    # numpy's functions come here, and go on to this module's.

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        if not all(isinstance(value, (ndarray, np.ndarray, np.generic, int, float, complex)) for value in inputs):
            return NotImplemented
        own = getattr(module, function.__name__, None)
        own = own if method == "__call__" else getattr(own, method, None)
        return NotImplemented if own is None else own(*inputs, **kwargs)

    def __array_function__(self, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        own = getattr(module, function.__name__, None)
        if own is None or not all(issubclass(kind, (ndarray, np.ndarray)) for kind in kinds):
            return NotImplemented
        return own(*args, **kwargs)


def _binary(operation: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def operate(self: ndarray, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", ...) is None:  # as pyrnn.Tensor says that it comes first
            return NotImplemented
        return _elementwise(operation, other, self) if swapped else _elementwise(operation, self, other)

    return operate


def _unary(operation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: _elementwise(operation, self)


def _writing(function: np.ufunc) -> Callable[..., Any]:
    return lambda self, other: _elementwise(function, self, other, out=self)


_OPERATORS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "pow": np.power, "and_": np.bitwise_and, "or_": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}  # fmt: skip
for _name in (*_OPERATORS, "matmul"):
    _word = _name.strip("_")
    setattr(ndarray, f"__{_word}__", _binary(getattr(operator, _name)))
    setattr(ndarray, f"__r{_word}__", _binary(getattr(operator, _name), swapped=True))
for _name, _ufunc in _OPERATORS.items():
    setattr(ndarray, f"__i{_name.strip('_')}__", _writing(_ufunc))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _unary(getattr(operator, _name)))
for _name in METHODS:
    setattr(ndarray, _name, _function(_name, getattr(np.ndarray, _name)))


# --- making arrays ----------------------------------------------------------------------------------------------------


def _to_device(value: Any, dtype: Any = None, order: Any = "K") -> ndarray:
    _refuse_while_capturing()
    transfers.to_device += 1
    host = value if isinstance(value, np.ndarray) else _inner(value)  # a list may have our arrays in it
    return _outer(np.array(host, dtype, order=order or "K"))


def _array(
    obj: Any, dtype: Any = None, copy: Any = True, order: Any = "K", subok: bool = False, ndmin: int = 0, **_: Any
) -> Any:
    if isinstance(obj, ndarray):
        result = obj.astype(obj.dtype if dtype is None else dtype, order or "K", copy=bool(copy))
    else:
        result = _to_device(obj, dtype, order)
    return result.reshape((1,) * (ndmin - result.ndim) + result.shape) if ndmin > result.ndim else result


def _asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> Any:
    return _array(a, dtype, copy, order)


def _empty(name: str) -> Callable[..., Any]:
    def create(*args: Any, **kwargs: Any) -> Any:
        result = _outer(getattr(np, name)(*_inner(args), **_inner(kwargs)))
        result._memory.forget()
        return result

    return create


def _from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    inner = np.from_dlpack(array)
    return _wrap(inner, Memory(inner.nbytes, foreign=inner))


def _asnumpy(a: Any, stream: Any = None, order: Any = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def _gemm(transa: str, transb: str, a: Any, b: Any, out: Any = None, alpha: float = 1.0, beta: float = 0.0) -> Any:
    """Compute out = alpha op(a) op(b) + beta out, as `cupy.cublas.gemm` does; a new array is Fortran-contiguous."""
    assert a.ndim == b.ndim == 2 and a.dtype == b.dtype
    if a.dtype.char not in "fdFD":
        raise TypeError("invalid dtype")
    left, right = ({"N": m, "T": m.T, "H": m.conj().T}[trans]._a for m, trans in ((a, transa), (b, transb)))
    shape = (left.shape[0], right.shape[1])
    if out is None:
        out, beta = ndarray(shape, a.dtype, order="F"), 0.0
    assert out.shape == shape and out.dtype == a.dtype
    target = out._a

    def write() -> None:
        product = alpha * (left @ right)
        target[...] = product + beta * target if beta else product

    _in_place(write, a, b, out)
    return out


class _Generator:
    """A numpy generator whose numbers are the device's."""

    def __init__(self, seed: Any = None) -> None:
        self._inner = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        return _function(name, getattr(self._inner, name))


# --- kernels ----------------------------------------------------------------------------------------------------------


class RawModule:
    """CUDA C++, compiled for the emulator: each kernel when it is first asked for."""

    def __init__(
        self,
        *,
        code: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError("Argument 'options' has incorrect type (expected tuple)")
        self.code, self.options, self.enable_cooperative_groups = code, options, enable_cooperative_groups
        self.name_expressions = tuple(name_expressions or ())
        self._module: emulator.Module | None = None

    def compile(self, log_stream: Any = None) -> None:
        for name in self.name_expressions:
            self.get_function(name)

    def get_function(self, name: str) -> RawKernel:
        try:
            if self._module is None:
                how = {"checks": settings.checks, "sanitize": settings.sanitize}
                options = (f"-D__CUDA_ARCH__={settings.compute_capability}0", *self.options)
                self._module = emulator.Module(self.code, options, **how)
            made = self._module.kernel(name)
        except emulator.CompileError as error:
            raise CompileException(str(error)) from None
        if name not in self.name_expressions and not made.is_extern_c:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        cooperative = self.enable_cooperative_groups
        return RawKernel(self.code, name, self.options, enable_cooperative_groups=cooperative, _made=made)


class RawKernel:
    """A kernel of a `RawModule`, or of its own source."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        enable_cooperative_groups: bool = False,
        _made: emulator.Kernel | None = None,
    ) -> None:
        self.code, self.options, self.name, self.__name__ = code, options, name, name
        self.enable_cooperative_groups, self._made = enable_cooperative_groups, _made
        self._max_shared = settings.attributes["MaxSharedMemoryPerBlock"]
        self.shared_size_bytes = 0  # as far as launches have shown
        self.kernel = types.SimpleNamespace(ptr=id(self))
        _kernels[id(self)] = self

    num_regs = property(lambda self: settings.num_regs)
    max_threads_per_block = property(lambda self: settings.attributes["MaxThreadsPerBlock"])
    local_size_bytes = const_size_bytes = property(lambda self: 0)

    @property
    def attributes(self) -> dict[str, int]:
        names = ("num_regs", "max_threads_per_block", "shared_size_bytes", "local_size_bytes", "const_size_bytes")
        return {name: getattr(self, name) for name in (*names, "max_dynamic_shared_size_bytes")}

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > settings.attributes["MaxSharedMemoryPerBlockOptin"] - self.shared_size_bytes:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._max_shared = int(size)

    def compile(self, log_stream: Any = None) -> None:
        if self._made is None:
            self._made = RawModule(code=self.code, options=self.options).get_function(self.name)._made

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0) -> None:
        self.compile()
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError("grid and block: expected tuples")
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        limits, threads = settings.attributes, int(np.prod(block))
        most = [limits[f"Max{what}Dim{axis}"] for what in ("Grid", "Block") for axis in "XYZ"]
        fits = all(0 < size <= limit for size, limit in zip(grid + block, most, strict=True))
        if not fits or threads > limits["MaxThreadsPerBlock"] or shared_mem > self._max_shared:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: invalid argument: {grid}, {block}, {shared_mem} bytes")
        if self.enable_cooperative_groups:
            resident = occupancy(self.kernel.ptr, threads, shared_mem) * limits["MultiProcessorCount"]
            if np.prod(grid) > resident:
                if grid[1] * grid[2] > 1:
                    raise ValueError(f"The specified grid size {grid} exceeds the limit ({resident}).")
                reduced = f"The grid size will be reduced from {grid[0]} to {resident}"
                warnings.warn(f"{reduced}, as the specified grid size exceeds the limit.", stacklevel=2)
                grid = (resident, 1, 1)
        values = [_argument(value) for value in args]
        _in_place(lambda: self._launch(grid, block, values, shared_mem), *args)

    def _launch(self, grid: Any, block: Any, values: list[Any], shared: int) -> None:
        assert self._made is not None
        transfers.launches += 1
        how = {"shared": shared, "cooperative": self.enable_cooperative_groups, "seed": settings.seed}
        self.shared_size_bytes = self._made.launch(grid, block, values, **how).static_shared
        for found in _memories.valuerefs():  # a list of its own: other threads may make arrays
            if (memory := found()) is not None:
                memory.check(self.name)


_kernels: weakref.WeakValueDictionary[int, RawKernel] = weakref.WeakValueDictionary()


def _argument(value: Any) -> Any:
    """Return an argument as CuPy types it: an int is of 8 bytes, a float a double, a numpy array of one its value."""
    if value is None or isinstance(value, np.generic):
        return value
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, MemoryPointer):
        return np.uint64(value.ptr)
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.reshape(())[()]
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"You are trying to pass a numpy.ndarray of shape {value.shape} as a kernel parameter. "
            "Only numpy.ndarrays of size one can be passed by value."
        )
    kinds = {bool: np.bool_, int: np.int64, float: np.float64, complex: np.complex128}
    if type(value) not in kinds:
        raise TypeError(f"Unsupported type {type(value)}")
    return kinds[type(value)](value)


def occupancy(function: int, threads: int, shared: int) -> int:
    """Return how many blocks fit on a multiprocessor, by threads, registers and shared memory."""
    kernel, limits, lanes = _kernels[function], settings.attributes, -(-threads // 32) * 32
    memory = shared + kernel.shared_size_bytes + limits["ReservedSharedMemoryPerBlock"]
    return min(
        limits["MaxBlocksPerMultiprocessor"],
        limits["MaxThreadsPerMultiProcessor"] // lanes,
        limits["MaxRegistersPerMultiprocessor"] // (lanes * kernel.num_regs),
        limits["MaxSharedMemoryPerMultiprocessor"] // memory,
    )


# --- devices, streams, graphs -----------------------------------------------------------------------------------------


class Device:
    """The one device."""

    attributes = property(lambda self: dict(settings.attributes))
    compute_capability = property(lambda self: settings.compute_capability)
    mem_info = property(lambda self: (140 << 30, 141 << 30))

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)
        if self.id:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self) -> Device:
        return self

    use = __enter__

    def __exit__(self, *_: Any) -> None:
        pass

    synchronize = __exit__

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    __hash__ = object.__hash__


class Graph:
    """Calls written down while a stream captured, to be made again."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], Any]] = []
        self._memories: list[weakref.ref[Memory]] = []

    def record(self, call: Callable[[], Any], *used: Any) -> None:
        self._calls.append(call)
        memories = [value._memory if isinstance(value, ndarray) else value for value in used]
        self._memories += [weakref.ref(memory) for memory in memories if isinstance(memory, Memory)]

    def launch(self, stream: Any = None) -> None:
        if any(memory() is None for memory in self._memories):
            raise RuntimeError("a graph is launched whose arrays are gone: CuPy's pool gives their memory to others")
        for call in self._calls:
            call()

    def upload(self, stream: Any = None) -> None:
        pass


class Stream:
    """A stream, on which all is done at once, unless it captures."""

    null: Stream
    done = True

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr, self.device_id = (0, -1) if null else (id(self), 0)
        self._graph: Graph | None = None
        self._before: list[Stream] = []

    def __enter__(self) -> Stream:
        self._before.append(get_current_stream())
        return self.use()

    def __exit__(self, *_: Any) -> None:
        self._before.pop().use()

    def use(self) -> Stream:
        _thread.stream = self
        return self

    def synchronize(self) -> None:
        if self._graph is not None:
            raise _not_while_capturing()

    def record(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        pass

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self._graph = Graph()

    def end_capture(self) -> Graph:
        graph, self._graph = self._graph, None
        if graph is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the operation cannot be performed in the present state")
        return graph

    def is_capturing(self) -> bool:
        return self._graph is not None


Stream.null = Stream(null=True)
_thread = threading.local()


def get_current_stream(device_id: int = -1) -> Stream:
    return getattr(_thread, "stream", Stream.null)


def _not_while_capturing() -> CUDARuntimeError:
    return CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


def _refuse_while_capturing() -> None:
    if get_current_stream()._graph is not None:
        raise _not_while_capturing()


class Event:
    """A moment on a stream."""

    done = True

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass


# --- the module -------------------------------------------------------------------------------------------------------


def _load_nvidia_dynamic_lib(name: str) -> Any:
    """Find cuBLAS, as the package cuda-pathfinder does, by which CuPy finds it."""
    if name != "cublas":
        raise ImportError(f"no stand-in for {name}")
    return types.SimpleNamespace(abs_path=str(fake_cublas.library(Path(_libraries.name), emulator.CXX, _multiply)))


_libraries = tempfile.TemporaryDirectory()


def _multiply(product: Callable[[], None], stream: int, *addresses: int) -> None:
    """Do a product of cuBLAS's, or write it down if its stream captures, with the memory that lies at the addresses."""
    graph = get_current_stream()._graph
    if stream != get_current_stream().ptr:
        return  # that stream has not come to it yet
    if graph is None:
        product()
        return
    memories = [memory for found in _memories.valuerefs() if (memory := found()) is not None]
    graph.record(product, *(m for m in memories if any(m.ptr <= at < m.ptr + m.size for at in addresses)))


class _Module(types.ModuleType):
    """A module with some names of its own, and with those of one of numpy's, whose functions are made ours."""

    def __init__(self, name: str, inner: Any = None, **names: Any) -> None:
        super().__init__(name)
        self.__dict__.update(names, __path__=[], _inner=inner)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name, None)
        if value is None or name in LACKING or name.startswith("_") or isinstance(value, types.ModuleType):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if isinstance(value, np.ufunc):
            value = ufunc(value)
        elif callable(value) and not isinstance(value, type):
            value = _function(name, value)
        setattr(self, name, value)
        return value


_runtime = _Module(
    "cupy.cuda.runtime", getDeviceCount=lambda: 1, getDevice=lambda: 0, setDevice=lambda device: None,
    deviceSynchronize=lambda: None, runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13000,
    memGetInfo=lambda: Device().mem_info, CUDARuntimeError=CUDARuntimeError,
    getDeviceProperties=lambda device: {"name": b"NVIDIA H200 (a stand-in)", "major": 9, "minor": 0},
)  # fmt: skip
_driver = _Module(
    "cupy.cuda.driver", CUDADriverError=CUDADriverError, occupancyMaxActiveBlocksPerMultiprocessor=occupancy
)
_cuda = _Module(
    "cupy.cuda", Device=Device, Stream=Stream, Event=Event, Graph=Graph, MemoryPointer=MemoryPointer, runtime=_runtime,
    driver=_driver, compiler=_Module("cupy.cuda.compiler", CompileException=CompileException),
    is_available=lambda: True, get_current_stream=get_current_stream, alloc=lambda size: MemoryPointer(Memory(size), 0),
    get_elapsed_time=lambda start, end: 1000 * (end.time - start.time), MemoryPool=MemoryPool,
    using_allocator=using_allocator, device=_Module("cupy.cuda.device", get_cublas_handle=lambda: 1),
)  # fmt: skip
module = _Module(
    "cupy", np, __version__="14.2.0", newaxis=None, ndarray=ndarray, ufunc=ufunc, cuda=_cuda, RawModule=RawModule,
    RawKernel=RawKernel, array=_array, asarray=_asarray, asanyarray=_asarray,
    ascontiguousarray=lambda a, dtype=None: _array(a, dtype, None, "C", ndmin=1),
    asfortranarray=lambda a, dtype=None: _array(a, dtype, None, "F"),
    empty=_empty("empty"), empty_like=_empty("empty_like"), from_dlpack=_from_dlpack, asnumpy=_asnumpy,
    get_array_module=lambda *args: module if any(isinstance(a, ndarray) for a in args) else np,
    get_default_memory_pool=MemoryPool, get_default_pinned_memory_pool=MemoryPool, is_available=lambda: True,
    cublas=_Module("cupy.cublas", gemm=_gemm), linalg=_Module("cupy.linalg", np.linalg),
    random=_Module("cupy.random", np.random, default_rng=_Generator),
)  # fmt: skip
_cupyx = _Module("cupyx", scatter_add=lambda a, index, value: module.add.at(a, index, value))
_pathfinder = _Module("cuda.pathfinder", load_nvidia_dynamic_lib=_load_nvidia_dynamic_lib)
_parts_of_it = (
    _Module("cuda", pathfinder=_pathfinder), _pathfinder,
    module, _cuda, _cuda.device, _runtime, _driver, _cuda.compiler, module.cublas, module.linalg, module.random, _cupyx
)  # fmt: skip
MODULES = {part.__name__: part for part in _parts_of_it}


def install() -> Any:
    """Make ``import cupy`` give the stand-in, and return it."""
    sys.modules.update(MODULES)
    return module


@contextmanager
def installed(**changes: Any) -> Iterator[Any]:
    """Install the stand-in for a while, for which the plugin is imported anew; afterwards all is as it was before.

    Parameters
    ----------
    changes
        Fields of `Settings`, as ``seed=1``; ``attributes`` are added to the H200's: ``{"MultiProcessorCount": 4}``.

    Yields
    ------
    module
        What ``import cupy`` gives.
    """
    found = _take_away()
    before = dict(vars(settings))
    attributes = {**settings.attributes, **changes.pop("attributes", {})}
    vars(settings).update(changes, attributes=attributes)
    try:
        yield install()
    finally:
        vars(settings).update(before)
        _take_away()
        sys.modules.update(found)


def _take_away() -> dict[str, Any]:
    """Take CuPy or its stand-in, and the plugin, out of the modules imported, and return them."""
    names = [name for name in sys.modules if name in MODULES or name.partition(".")[0] == "pyrnn_cupy"]
    return {name: sys.modules.pop(name) for name in names}
