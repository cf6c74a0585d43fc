"""The updates of the cupy backend's optimisers, one launch for each parameter, and the factors of its dropout."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from .modules import kernel

THREADS, BLOCKS = 256, 2112  # sixteen blocks for each multiprocessor of an H200


def _run(name: str, dtype: Any, count: int, *arguments: Any) -> None:
    if count:
        run = kernel("update.cu", name, dtype)
        run((min(-(-count // THREADS), BLOCKS),), (THREADS,), arguments)


def _as_one(*arrays: Any) -> bool:
    """Tell whether arrays that are written to lie in memory in their order."""
    return all(array is None or array.flags.c_contiguous for array in arrays)


class UpdateOps:
    """What an optimiser and dropout ask of the cupy backend."""

    def sgd_update(self, array: Any, grad: Any, momentum_buffer: Any = None, **numbers: Any) -> None:
        """Take a step of SGD."""
        if not _as_one(array, momentum_buffer):
            return super().sgd_update(array, grad, momentum_buffer, **numbers)  # type: ignore[misc]
        lr, momentum, decay = (array.dtype.type(numbers[name]) for name in ("lr", "momentum", "weight_decay"))
        kept = (array, cupy.ascontiguousarray(grad), momentum_buffer, np.int64(array.size))
        _run("sgd_update", array.dtype, array.size, *kept, lr, momentum, decay, np.int32(numbers["nesterov"]))
        return None

    def adam_update(self, array: Any, grad: Any, exp_avg: Any, exp_avg_sq: Any, **numbers: Any) -> None:
        """Take a step of Adam, of AdamW where the weight decay is ``decoupled``."""
        if not _as_one(array, exp_avg, exp_avg_sq):
            return super().adam_update(array, grad, exp_avg, exp_avg_sq, **numbers)  # type: ignore[misc]
        lr, beta1, beta2, step = (numbers[name] for name in ("lr", "beta1", "beta2", "step"))
        weight_decay = numbers["weight_decay"]
        decay, added = (1 - lr * weight_decay, 0.0) if numbers["decoupled"] else (1.0, weight_decay)
        root, rate = math.sqrt(1 - beta2**step), lr / (1 - beta1**step)
        factors = (decay, added, beta1, beta2, 1 - beta1, 1 - beta2, root, numbers["eps"], rate)
        kept = (array, cupy.ascontiguousarray(grad), exp_avg, exp_avg_sq, np.int64(array.size))
        _run("adam_update", array.dtype, array.size, *kept, *map(array.dtype.type, factors))
        return None

    def dropout_factors(
        self, shape: tuple[int, ...], dtype: Any, p: float, generator: np.random.Generator, xp: Any = cupy
    ) -> Any:
        """Return 0 with probability p, else 1 / (1 - p): drawn on the device, by a seed that the generator gives."""
        factors = cupy.empty(shape, dtype)
        low, high = generator.integers(2**32, size=2, dtype=np.uint64).astype(np.uint32)
        scale = dtype.type(0 if p == 1 else 1 / (1 - p))
        numbers = (low, high, np.int64(math.ceil(p * 2**32)), scale, np.int64(factors.size))
        _run("dropout_factors", dtype, -(-factors.size // 4), *numbers, factors)
        return factors
