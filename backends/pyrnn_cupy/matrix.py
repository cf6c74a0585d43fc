"""Products of matrices by cuBLAS, of views as they lie: copied only where neither axis has stride 1.

cuBLAS is called itself, as CuPy's functions for it refuse a stream that captures a graph, which cuBLAS allows.
Sums down columns are a kernel of our own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np
from cuda.pathfinder import load_nvidia_dynamic_lib
from cupy.cuda import device

from .modules import kernel

FLOAT32, FLOAT64 = 0, 1  # CUDA_R_32F, CUDA_R_64F of library_types.h
COMPUTE = {None: 68, "tf32": 77, "bfloat16": 75}  # CUBLAS_COMPUTE_32F, and 32F_FAST_TF32, 32F_FAST_16BF
COMPUTE_FLOAT64 = 70  # CUBLAS_COMPUTE_64F
DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
SUM_COLUMNS, SUM_THREADS = 32, 512  # of a block of sums.cu
SUM_BLOCKS, SUM_ROWS = 512, 64  # at most so many blocks, with at least so many rows each


@cache
def _cublas() -> Any:
    """Return cuBLAS, as CuPy finds it."""
    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    integer, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    matrix = (pointer, integer, size, size)
    library.cublasSetStream_v2.argtypes = (pointer, pointer)
    library.cublasGemmStridedBatchedEx_64.argtypes = (
        pointer, integer, integer, size, size, size, pointer, *matrix, *matrix, pointer, *matrix, size, integer, integer
    )  # fmt: skip
    library.cublasGetStatusString.argtypes, library.cublasGetStatusString.restype = (integer,), ctypes.c_char_p
    return library


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_cublas(), function)(device.get_cublas_handle(), *arguments)
    if status:
        raise RuntimeError(f"{function}: {_cublas().cublasGetStatusString(status).decode()}")


def product(a: Any, b: Any, out: Any = None, *, add: bool = False, compute: str | None = None) -> Any:
    """Return a @ b of one matrix each or of as many of both, in ``out`` if that is given, perhaps added to it.

    Parameters
    ----------
    a : shape (M, K) or (S, M, K)
    b : shape (K, N) or (S, K, N)
    out : shape (M, N) or (S, M, N), optional
        Its last axis has stride 1.
    add : bool
        Add to ``out``.
    compute : {None, "tf32", "bfloat16"}
        The precision of float32 products: their own, or what is asked for.
    """
    if out is None:
        out = cupy.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
    if a.shape[-1]:
        repeated_product(a, b, out, add=add, compute=compute)()
    elif not add:
        out.fill(0)
    return out


def repeated_product(a: Any, b: Any, out: Any, *, add: bool = False, compute: str | None = None) -> Callable[[], None]:
    """Return a function that does a product whenever it is called, of what its arrays then hold.

    Those whose axes both have other strides than 1 are copied before.
    """
    if not out.size:
        return lambda: None
    double = a.dtype == np.float64
    kind = FLOAT64 if double else FLOAT32
    mode = COMPUTE_FLOAT64 if double else COMPUTE[compute]
    one, beta = np.ones(1, a.dtype), np.full(1, add, a.dtype)
    a, a_trans, a_row, a_batch = _laid_out(a)
    b, b_trans, b_row, b_batch = _laid_out(b)
    _, _, out_row, out_batch = _laid_out(out)
    rows, columns = out.shape[-2:]

    def multiply() -> None:
        _call("cublasSetStream_v2", cupy.cuda.get_current_stream().ptr)
        # cuBLAS has columns where we have rows: it computes outᵀ = bᵀ · aᵀ.
        _call(
            "cublasGemmStridedBatchedEx_64", b_trans, a_trans, columns, rows, a.shape[-1], one.ctypes.data,
            b.data.ptr, kind, b_row, b_batch, a.data.ptr, kind, a_row, a_batch, beta.ctypes.data,
            out.data.ptr, kind, out_row, out_batch, out.shape[0] if out.ndim == 3 else 1, mode, DEFAULT_ALGORITHM,
        )  # fmt: skip

    return multiply


def _laid_out(x: Any) -> tuple[Any, int, int, int]:
    """Return matrices as cuBLAS takes them, whether they are turned, and the elements to the next line and matrix."""
    size = x.itemsize
    rows, columns = x.shape[-2:]
    row, column = (stride / size for stride in x.strides[-2:])
    batch = x.strides[0] // size if x.ndim == 3 else 0
    if (columns == 1 or column == 1) and (rows == 1 or row >= columns):
        return x, 0, int(row) if rows > 1 else columns, batch
    if (rows == 1 or row == 1) and (columns == 1 or column >= rows):
        return x, 1, int(column) if columns > 1 else rows, batch
    return _laid_out(cupy.ascontiguousarray(x))


def column_sums(rows: Any, lengths: Any = None) -> Any:
    """Return the sums (F,) of the rows of (N, F), or of the valid steps of (B, T, F), in an order fixed by the sizes.

    Parameters
    ----------
    rows : shape (N, F) or (B, T, F)
    lengths : int32 (B,) on the device, optional
        The valid steps of each row; what stands past them is not read.
    """
    if rows.ndim == 2:
        rows = rows[None]
    if rows.strides[-1] != rows.itemsize and rows.shape[-1] > 1:
        rows = cupy.ascontiguousarray(rows)
    batch, time, columns = rows.shape
    if batch * time == 1 and lengths is None:
        return rows.reshape(columns).copy()
    run = kernel("sums.cu", "column_sums", rows.dtype)
    across = -(-columns // SUM_COLUMNS)
    while True:
        count = batch * time
        parts = min(max(1, SUM_BLOCKS // max(1, across)), max(1, count // SUM_ROWS))
        out = cupy.empty((parts, columns), rows.dtype)
        if not columns:
            return out[0]
        steps = (np.int64(stride // rows.itemsize) for stride in rows.strides[:2])
        share = -(-count // parts)
        sizes = (np.int32(time), np.int64(count), np.int64(share), np.int64(columns))
        run((across, parts), (SUM_THREADS,), (rows, lengths, *steps, *sizes, out))
        if parts == 1:
            return out[0]
        rows, lengths, batch, time = out[None], None, 1, parts
