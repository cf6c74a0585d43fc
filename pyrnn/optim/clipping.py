"""Bounds on gradients, for use between ``backward`` and ``step``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .._checks import check_number
from ..autograd import Tensor
from ..autograd.tensor import namespace
from ._checks import check_parameters


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, *, error_if_nonfinite: bool = False
) -> float:
    """Scale all gradients together so that their Euclidean norm is at most ``max_norm``.

    Parameters
    ----------
    parameters
        Those without a gradient are passed over.
    max_norm : float
        At least 0.
    error_if_nonfinite : bool
        Raise where the norm is infinite or NaN. Without it, as in PyTorch, an infinite norm makes finite
        gradients 0, and NaN makes all NaN.

    Returns
    -------
    float
        The norm before the scaling, computed in float64.

    Raises
    ------
    RuntimeError
        The norm is not finite, with ``error_if_nonfinite``; the gradients are as they were.

    References
    ----------
    Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural networks".
    """
    limit = check_number("max_norm", max_norm)
    with_grad = [p for p in check_parameters("parameters", parameters) if p.grad is not None]
    total = math.hypot(*(_norm(p.grad) for p in with_grad))
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {total}")
    scale = limit / (total + 1e-6)  # PyTorch's
    if not scale >= 1:  # NaN scales too
        with np.errstate(invalid="ignore"):  # 0 times an infinite gradient
            for parameter in with_grad:
                parameter.grad = parameter.grad * scale
    return total


def _norm(grad: object) -> float:
    xp = namespace(grad)
    flat = xp.asarray(grad, dtype="float64").ravel()
    return math.sqrt(float(xp.square(flat).sum()))  # a dot product would wake the threads of BLAS beside our own


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Hold each element of each gradient between ± ``clip_value``.

    Parameters
    ----------
    parameters
        Those without a gradient are passed over.
    clip_value : float
        At least 0.
    """
    limit = check_number("clip_value", clip_value)
    for parameter in check_parameters("parameters", parameters):
        if parameter.grad is not None:
            parameter.grad = namespace(parameter.grad).clip(parameter.grad, -limit, limit)
