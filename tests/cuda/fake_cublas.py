"""A stand-in for the one function of cuBLAS that the plugin calls, on addresses, with cuBLAS's demands on sizes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_64F = 68, 77, 75, 70
CUBLAS_GEMM_DEFAULT = -1
TYPES = {0: np.float32, 1: np.float64}
DROPPED_BITS = {CUBLAS_COMPUTE_32F_FAST_TF32: 13, CUBLAS_COMPUTE_32F_FAST_16BF: 16}


def get_cublas_handle() -> int:
    return 1


def gemmStridedBatchedEx(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
    A: int, Atype: int, lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int, beta: int,
    C: int, Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """Compute C = alpha op(A) op(B) + beta C of matrices by columns, ``batchCount`` times.

    Raises
    ------
    ValueError
        A size or a leading dimension that cuBLAS refuses.
    """
    least = (k if transa else m, n if transb else k, m)
    if min(m, n, k, batchCount) < 0 or any(
        given < max(1, rows) for given, rows in zip((lda, ldb, ldc), least, strict=True)
    ):
        raise ValueError(f"CUBLAS_STATUS_INVALID_VALUE: {m=} {n=} {k=} {transa=} {transb=} {lda=} {ldb=} {ldc=}")
    if not Atype == Btype == Ctype or (computeType == CUBLAS_COMPUTE_64F) != (Atype == 1):
        raise ValueError(f"CUBLAS_STATUS_NOT_SUPPORTED: {Atype=} {Btype=} {Ctype=} {computeType=}")
    dtype = TYPES[Atype]
    scale, keep = (_at(address, (1,), (1,), dtype)[0] for address in (alpha, beta))
    for number in range(batchCount):
        a, b, c = (
            _at(address + number * stride * np.dtype(dtype).itemsize, shape, (1, leading), dtype)
            for address, stride, shape, leading in (
                (A, strideA, (k, m) if transa else (m, k), lda),
                (B, strideB, (n, k) if transb else (k, n), ldb),
                (C, strideC, (m, n), ldc),
            )
        )
        a, b = (_rounded(x.T if turned else x, computeType) for x, turned in ((a, transa), (b, transb)))
        product = scale * (a @ b)
        c[...] = product + keep * c if keep else product


def _at(address: int, shape: tuple[int, ...], steps: tuple[int, ...], dtype: Any) -> Any:
    """Return the array at an address, with so many elements from one index to the next."""
    size = np.dtype(dtype).itemsize
    if not all(shape):
        return np.zeros(shape, dtype)
    count = 1 + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    memory = np.frombuffer((ctypes.c_char * (count * size)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(memory, shape, [step * size for step in steps])


def _rounded(x: Any, compute: int) -> Any:
    dropped = DROPPED_BITS.get(compute)
    if dropped is None:
        return x
    bits = np.ascontiguousarray(x).view(np.uint32)
    half = (np.uint32(1) << np.uint32(dropped - 1)) - np.uint32(1) + (bits >> np.uint32(dropped) & np.uint32(1))
    rounded = (bits + half) >> np.uint32(dropped) << np.uint32(dropped)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)
