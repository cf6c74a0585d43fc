"""The basic family of the cupy backend: linear by cuBLAS, the others by the kernels of ``basic.cu``.

What these are not for, as softmax along another axis than the last, is left to the defaults.
"""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from pyrnn.backend import current_compute

from .matrix import column_sums, product
from .modules import kernel

THREADS, BLOCKS = 256, 2112  # of basic.cu; sixteen blocks for each multiprocessor of an H200
LONG_ROW = 1024  # elements of which a block takes care, in place of a warp
TABLE_BLOCKS = 4096


def _rows(array: Any, axes: int = 1) -> Any:
    """Return an array as rows (N, ...) of its last axes, beside each other in memory."""
    shape = array.shape[array.ndim - axes :]
    return cupy.ascontiguousarray(array).reshape(math.prod(array.shape[: array.ndim - axes]), *shape)


def _flat(array: Any) -> Any:
    return cupy.ascontiguousarray(array).reshape(-1)


def _over_rows(name: str, rows: int, length: int, dtype: Any, *arguments: Any) -> None:
    """Run a kernel on so many rows of a length."""
    width = THREADS if length > LONG_ROW else 32
    run = kernel("basic.cu", name, dtype, WIDTH=width)
    run((min(-(-rows * width // THREADS), BLOCKS),), (THREADS,), arguments)


class BasicOps:
    """linear, layer_norm, softmax, embedding, cross_entropy of the cupy backend."""

    def linear_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, w, b = arrays
        compute = current_compute()
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = product(rows, w.T, compute=compute)
        if b is not None:
            y += b
        return (y.reshape(*x.shape[:-1], w.shape[0]),), (x.shape, rows, w, compute) if needs else None

    def linear_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        shape, rows, w, compute = saved
        dy = grad_outputs.y.reshape(len(rows), w.shape[0])
        return type(needs)(
            x=product(dy, w, compute=compute).reshape(shape) if needs.x else None,
            w=product(dy.T, rows, compute=compute) if needs.w else None,
            b=column_sums(dy) if needs.b else None,
        )

    def layer_norm_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, features, dtype = _rows(arrays.x), arrays.x.shape[-1], arrays.x.dtype
        weight, bias = (None if a is None else cupy.ascontiguousarray(a) for a in (arrays.weight, arrays.bias))
        y = cupy.empty(arrays.x.shape, dtype)
        means, scales = (cupy.empty(len(x), dtype) if needs else None for _ in range(2))
        if x.size:
            sizes = (np.int64(len(x)), np.int64(features))
            numbers = (dtype.type(config.eps), *sizes, means, scales, y)
            _over_rows("layer_norm_forward", *x.shape, dtype, x, weight, bias, *numbers)
        return (y,), (x, weight, means, scales) if needs else None

    def layer_norm_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        x, weight, means, scales = saved
        shape = grad_outputs.y.shape
        dy = _rows(grad_outputs.y)
        dx = cupy.empty(shape, x.dtype) if needs.x else None
        products = cupy.empty(x.shape, x.dtype) if needs.weight else None
        if x.size and (needs.x or needs.weight):
            sizes = (np.int64(size) for size in x.shape)
            arguments = (x, weight, means, scales, dy, *sizes, dx, products)
            _over_rows("layer_norm_backward", *x.shape, x.dtype, *arguments)
        return type(needs)(
            x=dx,
            weight=column_sums(products) if needs.weight else None,
            bias=column_sums(dy) if needs.bias else None,
        )

    def softmax_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, axis = arrays.x, config.axis % arrays.x.ndim
        if axis != x.ndim - 1:
            return super().softmax_forward(arrays, config, needs=needs)  # type: ignore[misc]
        y, rows = cupy.empty(x.shape, x.dtype), _rows(x)
        if x.size:
            _over_rows("softmax_forward", *rows.shape, x.dtype, rows, *map(np.int64, rows.shape), y)
        return (y,), (y, axis) if needs else None

    def softmax_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        y, axis = saved
        if axis != y.ndim - 1:
            return super().softmax_backward(saved, grad_outputs, needs=needs)  # type: ignore[misc]
        dx, rows = cupy.empty(y.shape, y.dtype), _rows(y)
        if y.size:
            sizes = map(np.int64, rows.shape)
            _over_rows("softmax_backward", *rows.shape, y.dtype, rows, _rows(grad_outputs.y), *sizes, dx)
        return type(needs)(x=dx)

    def embedding_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        table, indices = cupy.ascontiguousarray(arrays.weight), _flat(config.indices)
        y = cupy.empty((*config.indices.shape, table.shape[1]), table.dtype)
        if y.size:
            sizes = map(np.int64, (len(indices), *table.shape))
            _over_rows("embedding_forward", *_grid(y), table.dtype, table, indices, *sizes, y)
        return (y,), (table.shape, indices) if needs else None

    def embedding_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        shape, indices = saved
        dy, grad = _rows(grad_outputs.y), cupy.empty(shape, grad_outputs.y.dtype)
        if grad.size:
            order = cupy.argsort(indices)  # stable, so that sums have one order
            firsts = cupy.searchsorted(indices[order], cupy.arange(shape[0] + 1))
            run = kernel("basic.cu", "embedding_backward", dy.dtype, WIDTH=32)
            across = min(-(-shape[1] // 32), max(1, TABLE_BLOCKS // shape[0]))
            run((shape[0], across), (THREADS,), (dy, order, firsts, np.int64(shape[1]), grad))
        return type(needs)(weight=grad)

    def cross_entropy_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        logits, dtype = _rows(arrays.logits), arrays.logits.dtype
        if not logits.size:
            return super().cross_entropy_forward(arrays, config, needs=needs)  # type: ignore[misc]
        targets, mask = _flat(config.targets), None if config.mask is None else _flat(config.mask)
        loss = cupy.empty(arrays.logits.shape[:-1], dtype)
        largests, totals = (cupy.empty(len(logits), dtype) if needs else None for _ in range(2))
        kept = (*map(np.int64, logits.shape), largests, totals)
        _over_rows("cross_entropy_forward", *logits.shape, dtype, logits, targets, mask, *kept, loss)
        return (loss,), (logits, targets, mask, largests, totals) if needs else None

    def cross_entropy_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        if not saved[0].size:
            return super().cross_entropy_backward(saved, grad_outputs, needs=needs)  # type: ignore[misc]
        logits, targets, mask, largests, totals = saved
        dloss = _flat(grad_outputs.loss)
        grad = cupy.empty((*grad_outputs.loss.shape, logits.shape[1]), logits.dtype)
        kept = (targets, mask, largests, totals, dloss, *map(np.int64, logits.shape))
        _over_rows("cross_entropy_backward", *logits.shape, logits.dtype, logits, *kept, grad)
        return type(needs)(logits=grad)


def _grid(array: Any) -> tuple[int, int]:
    """Return an array's elements as rows that `_over_rows` deals out to warps."""
    return -(-array.size // 32), 32
