"""Bounds on gradients, for use between ``backward`` and ``step``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._checks import check_number
from ..autograd import Tensor
from ..autograd.tensor import namespace
from ._checks import check_parameters


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, *, error_if_nonfinite: bool = False) -> Any:
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
        The norm before the scaling, computed in float64. Of gradients on a GPU it is an array of one element there, for
        which the host waits when it is read, and not before: except with ``error_if_nonfinite``.

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
    if with_grad and not isinstance(with_grad[0].grad, np.ndarray):
        return _clip_on_device(with_grad, limit, error_if_nonfinite)
    total = math.hypot(*(_norm(p.grad) for p in with_grad))
    _check_norm(total, error_if_nonfinite)
    scale = limit / (total + 1e-6)  # PyTorch's
    if not scale >= 1:  # NaN scales too
        with np.errstate(invalid="ignore"):  # 0 times an infinite gradient
            for parameter in with_grad:
                parameter.grad = parameter.grad * scale
    return total


def _clip_on_device(with_grad: list[Tensor], limit: float, error_if_nonfinite: bool) -> Any:
    """Do the same without waiting for the norm."""
    xp = namespace(with_grad[0].grad)
    total = xp.sqrt(xp.stack([xp.square(p.grad.astype("float64")).sum() for p in with_grad]).sum())
    if error_if_nonfinite:
        _check_norm(float(total), True)
    scale = xp.minimum(limit / (total + 1e-6), 1.0)  # of NaN it is NaN
    for parameter in with_grad:
        parameter.grad = parameter.grad * scale.astype(parameter.grad.dtype)
    return total


def _check_norm(total: float, error_if_nonfinite: bool) -> None:
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {total}")


def _norm(grad: Any) -> float:
    flat = np.asarray(grad, dtype="float64").ravel()
    return math.sqrt(float(np.square(flat).sum()))  # a dot product would wake the threads of BLAS beside our own


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
