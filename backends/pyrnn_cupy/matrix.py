"""Products of matrices by cuBLAS, of views as they lie: a matrix is copied only if neither of its axes has stride 1."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from cupy.cuda import cublas, device

FLOAT32, FLOAT64 = 0, 1  # CUDA_R_32F, CUDA_R_64F of library_types.h
COMPUTE = {  # cublasComputeType_t
    None: "CUBLAS_COMPUTE_32F",
    "tf32": "CUBLAS_COMPUTE_32F_FAST_TF32",
    "bfloat16": "CUBLAS_COMPUTE_32F_FAST_16BF",
}


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
    shape = (*a.shape[:-1], b.shape[-1])
    if out is None:
        out = cupy.empty(shape, a.dtype)
    if not out.size:
        return out
    if not a.shape[-1]:
        if not add:
            out.fill(0)
        return out
    double = a.dtype == np.float64
    kind = FLOAT64 if double else FLOAT32
    mode = getattr(cublas, "CUBLAS_COMPUTE_64F" if double else COMPUTE[compute])
    one, beta = np.ones(1, a.dtype), np.full(1, add, a.dtype)
    a, a_trans, a_row, a_batch = _laid_out(a)
    b, b_trans, b_row, b_batch = _laid_out(b)
    _, _, out_row, out_batch = _laid_out(out)
    rows, columns = shape[-2:]
    # cuBLAS has columns where we have rows: it computes outᵀ = bᵀ · aᵀ.
    cublas.gemmStridedBatchedEx(
        device.get_cublas_handle(), b_trans, a_trans, columns, rows, a.shape[-1], one.ctypes.data,
        b.data.ptr, kind, b_row, b_batch, a.data.ptr, kind, a_row, a_batch, beta.ctypes.data,
        out.data.ptr, kind, out_row, out_batch, shape[0] if len(shape) == 3 else 1, mode, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return out


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
