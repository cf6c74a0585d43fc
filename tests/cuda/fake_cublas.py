"""A stand-in for cuBLAS: a library with the functions that the plugin calls, with cuBLAS's demands on sizes.

The library hands its arguments on to Python, so that they go through C as cuBLAS's do.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = r"""
#include <stdint.h>
typedef int (*Gemm)(void *, int, int, int64_t, int64_t, int64_t, const void *, const void *, int, int64_t, long long,
                    const void *, int, int64_t, long long, const void *, void *, int, int64_t, long long, int64_t, int);
static Gemm gemm;
static void *current;
extern "C" void pyrnn_hand_on_to(Gemm to) { gemm = to; }
extern "C" int cublasSetStream_v2(void *handle, void *stream) { return handle ? (current = stream, 0) : 1; }
extern "C" const char *cublasGetStatusString(int status) {
    return status == 1 ? "CUBLAS_STATUS_NOT_INITIALIZED" : status == 7 ? "CUBLAS_STATUS_INVALID_VALUE"
                                                                       : "CUBLAS_STATUS_NOT_SUPPORTED";
}
extern "C" int cublasGemmStridedBatchedEx_64(
    void *handle, int transa, int transb, int64_t m, int64_t n, int64_t k, const void *alpha, const void *A, int Atype,
    int64_t lda, long long strideA, const void *B, int Btype, int64_t ldb, long long strideB, const void *beta, void *C,
    int Ctype, int64_t ldc, long long strideC, int64_t batchCount, int computeType, int algo
) {
    if (!handle) return 1;
    if (algo != -1) return 15;
    return gemm(current, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype,
                ldc, strideC, batchCount, computeType);
}
"""
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_32F_FAST_16BF, COMPUTE_64F = 68, 77, 75, 70
TYPES = {0: np.float32, 1: np.float64}
DROPPED_BITS = {COMPUTE_32F: 0, COMPUTE_32F_FAST_TF32: 13, COMPUTE_32F_FAST_16BF: 16, COMPUTE_64F: 0}
_int, _pointer, _size = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
_matrix = (_pointer, _int, _size, _size)
_sizes = (_int, _int, _size, _size, _size)
_GEMM = ctypes.CFUNCTYPE(_int, _pointer, *_sizes, _pointer, *_matrix, *_matrix, _pointer, *_matrix, _size, _int)


@cache
def library(folder: Path, compiler: str, do: Callable[..., None]) -> Path:
    """Return the library, made in a folder.

    ``do`` is given each product to be done, now or when a graph is launched, its stream, and where its matrices lie.
    """
    path = folder / "libcublas.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-x", "c++", "-o", path, "-"], input=SOURCE, text=True, check=True
    )
    hook = _GEMM(lambda *arguments: _gemm(do, *arguments))
    ctypes.CDLL(str(path)).pyrnn_hand_on_to(hook)
    _kept.append(hook)
    return path


_kept: list[Any] = []  # what C calls must not go away


def _gemm(
    do: Callable[..., None], stream: int | None, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
    A: int, Atype: int, lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int, beta: int,
    C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int,
) -> int:  # fmt: skip
    """Compute C = alpha op(A) op(B) + beta C of matrices by columns, ``batchCount`` times, and return a status."""
    least = (k if transa else m, n if transb else k, m)
    if min(m, n, k, batchCount) < 0 or any(
        given < max(1, rows) for given, rows in zip((lda, ldb, ldc), least, strict=True)
    ):
        return INVALID_VALUE
    if not Atype == Btype == Ctype or (computeType == COMPUTE_64F) != (Atype == 1) or computeType not in DROPPED_BITS:
        return NOT_SUPPORTED
    dtype = TYPES[Atype]
    scale, keep = (_at(address, (1,), (1,), dtype)[0] for address in (alpha, beta))

    def compute() -> None:
        for number in range(batchCount):
            a, b, c = (
                _at(address + number * stride * np.dtype(dtype).itemsize, shape, (1, leading), dtype)
                for address, stride, shape, leading in (
                    (A, strideA, (k, m) if transa else (m, k), lda),
                    (B, strideB, (n, k) if transb else (k, n), ldb),
                    (C, strideC, (m, n), ldc),
                )
            )
            a, b = (
                _rounded(x.T if turned else x, DROPPED_BITS[computeType]) for x, turned in ((a, transa), (b, transb))
            )
            product = scale * (a @ b)
            c[...] = product + keep * c if keep else product

    do(compute, stream or 0, A, B, C)
    return SUCCESS


def _at(address: int, shape: tuple[int, ...], steps: tuple[int, ...], dtype: Any) -> Any:
    """Return the array at an address, with so many elements from one index to the next."""
    size = np.dtype(dtype).itemsize
    if not all(shape):
        return np.zeros(shape, dtype)
    count = 1 + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    memory = np.frombuffer((ctypes.c_char * (count * size)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(memory, shape, [step * size for step in steps])


def _rounded(x: Any, dropped: int) -> Any:
    if not dropped:
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    half = (np.uint32(1) << np.uint32(dropped - 1)) - np.uint32(1) + (bits >> np.uint32(dropped) & np.uint32(1))
    rounded = (bits + half) >> np.uint32(dropped) << np.uint32(dropped)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)
