"""A check of any function's gradients, by differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Tensor
from .general import STEP, slope

ELEMENTS = 200  # of an array, checked one by one; of larger ones as many, picked at random


def check_gradients(function: Callable[..., Any], *arrays: Any, seed: int = 0, tolerance: float = 1e-7) -> None:
    """Hold the gradients of any function on Tensors against central differences.

    The function is called on float64 Tensors, its outputs are multiplied with random cotangents and summed, and each
    element of each gradient (of large arrays, 200 picked at random) is compared with a difference of fourth order.

    Parameters
    ----------
    function
        Takes as many Tensors and gives a Tensor or several. It must give the same for the same, and be smooth near the
        arrays given: at a kink (of a relu, of a maximum) a difference is no derivative.
    *arrays
        Where to check, numpy arrays; taken as float64.
    seed
        Of the cotangents.
    tolerance
        The error allowed relative to the size of the gradient, beside what the differences themselves may be off by.

    Raises
    ------
    AssertionError
        A gradient is wrong; the message names the argument and the element.
    TypeError
        The function gives something else than Tensors, or there is no array.
    """
    if not arrays:
        raise TypeError("arrays: expected at least one array to take a gradient of")
    rng = np.random.default_rng(seed)
    points = [np.array(array, np.float64) for array in arrays]
    tensors = [Tensor(point.copy(), requires_grad=True) for point in points]
    outputs = _outputs(function, tensors)
    cotangents = [rng.standard_normal(output.shape) for output in outputs]
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if output.requires_grad:
            output.backward(cotangent, retain_graph=True)

    def total(moved: list[np.ndarray]) -> float:
        found = _outputs(function, [Tensor(point) for point in moved])
        return float(sum((v * np.asarray(o.data)).sum() for v, o in zip(cotangents, found, strict=True)))

    size = sum(float(np.abs(v * np.asarray(o.data)).sum()) for v, o in zip(cotangents, outputs, strict=True))
    for number, (point, tensor) in enumerate(zip(points, tensors, strict=True)):
        grad = np.zeros(point.shape) if tensor.grad is None else np.asarray(tensor.grad)
        if grad.shape != point.shape:
            raise AssertionError(f"gradient of argument {number}: expected shape {point.shape}, got {grad.shape}")
        picked = rng.permutation(point.size)[:ELEMENTS]
        for flat in sorted(int(k) for k in picked):
            at = tuple(int(i) for i in np.unravel_index(flat, point.shape))

            def along(t: float, at: tuple[int, ...] = at, number: int = number) -> float:
                moved = [p.copy() for p in points]
                moved[number][at] += t
                return total(moved)

            coarse, fine = slope(along, STEP), slope(along, STEP / 2)
            error = abs(coarse - fine) + 1e-15 * (1 + size) / STEP + tolerance * (1 + abs(fine))
            if not abs(grad[at] - fine) <= error:
                where = f"{list(at)}" if at else ""
                raise AssertionError(
                    f"gradient of argument {number}{where}: expected {fine:.9g} by differences, within {error:.2g}, "
                    f"got {grad[at]:.9g}"
                )


def _outputs(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    outputs = function(*tensors)
    found = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    for output in found:
        if not isinstance(output, Tensor):
            raise TypeError(f"function: expected it to give Tensors, got {type(output).__name__}")
    return found
