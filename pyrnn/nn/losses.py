"""Losses: means over the valid elements, 0 where there are none.

What ``lengths`` and ``mask`` leave out reaches nothing, loss or gradient: NaN and garbage in padding are harmless.
Arrays in give a number out; a Tensor among them gives a Tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._checks import check_lengths, check_positive, refuse_foreign, refuse_other_device
from ..autograd import Tensor, functions, to_arrays
from ..autograd.tensor import namespace
from ..ops import basic
from .layers import as_tensor


def mse_loss(prediction: Any, target: Any, *, lengths: Any = None, mask: Any = None) -> Any:
    """Return the mean of (prediction - target)².

    Parameters
    ----------
    prediction : array or Tensor, any shape
        With ``lengths``, (B, T, ...).
    target : array or Tensor of the same shape and dtype
    lengths : integers (B,), optional
        The valid steps of each row, along axis 1.
    mask : booleans, the shape of prediction or of its first axes, optional
        True where an element counts. With ``lengths`` too, what both let through.

    Returns
    -------
    loss : number or Tensor
        The mean over all valid elements, features included; 0 if there are none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; nothing is broadcast.
    """
    return _elementwise(lambda p, t: (p - t) * (p - t), prediction, target, lengths, mask)


def l1_loss(prediction: Any, target: Any, *, lengths: Any = None, mask: Any = None) -> Any:
    """Return the mean absolute error.

    Parameters
    ----------
    prediction, target, lengths, mask
        As in `mse_loss`.

    Returns
    -------
    loss : number or Tensor
        The mean over all valid elements, features included; 0 if there are none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; nothing is broadcast.
    """
    return _elementwise(lambda p, t: abs(p - t), prediction, target, lengths, mask)


def huber_loss(prediction: Any, target: Any, *, delta: float = 1.0, lengths: Any = None, mask: Any = None) -> Any:
    """Return the mean of Huber's loss: d²/2 for errors |d| ≤ δ, δ·(|d| - δ/2) beyond.

    Parameters
    ----------
    delta : float
        δ, positive.
    prediction, target, lengths, mask
        As in `mse_loss`.

    Returns
    -------
    loss : number or Tensor
        The mean over all valid elements, features included; 0 if there are none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape, or a `delta` that is not positive and finite.

    References
    ----------
    Huber (1964), "Robust Estimation of a Location Parameter".
    """
    delta = check_positive("delta", delta)

    def huber(p: Tensor, t: Tensor) -> Tensor:
        size = abs(p - t)
        near = functions.minimum(size, delta)
        return near * (size - 0.5 * near)

    return _elementwise(huber, prediction, target, lengths, mask)


def binary_cross_entropy_with_logits(logits: Any, targets: Any, *, lengths: Any = None, mask: Any = None) -> Any:
    """Return the mean cross-entropy, in nats, between yes/no answers and the logits of yes.

    Parameters
    ----------
    logits : array or Tensor, any shape
    targets : array or Tensor of the same shape and dtype
        The probabilities of yes, from 0 to 1.
    lengths, mask
        As in `mse_loss`.

    Returns
    -------
    loss : number or Tensor
        The mean over all valid elements; 0 if there are none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; nothing is broadcast.
    """

    # Each term is exact where it is small: no log of a rounded probability.
    def entropy(x: Tensor, t: Tensor) -> Tensor:
        return t * functions.softplus(-x) + (1 - t) * functions.softplus(x)

    return _elementwise(entropy, logits, targets, lengths, mask, names=("logits", "targets"))


def cross_entropy(logits: Any, targets: Any, *, lengths: Any = None, mask: Any = None) -> Any:
    """Return the mean of -log softmax(logits)[target], in nats.

    Parameters
    ----------
    logits : array or Tensor, shape (..., C)
        The classes are the last axis. With ``lengths``, (B, T, ..., C).
    targets : integers, shape (...)
        From 0 to C - 1 where they count; anything elsewhere, as -1.
    lengths, mask
        As in `mse_loss`; the mask has the shape of targets or of its first axes.

    Returns
    -------
    loss : number or Tensor
        The mean over all valid targets; 0 if there are none.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape, or a target that counts and is no class.

    See Also
    --------
    pyrnn.cross_entropy : The op below it, ``cross_entropy(logits, *, targets=..., mask=...)``: it gives each
        target's own loss, not their mean, and takes no ``lengths``.
    """
    _check_kind("logits", logits)
    valid = _valid("logits", logits, tuple(logits.shape[:-1]), lengths, mask)
    return _mean(basic.cross_entropy(logits, targets=targets, mask=valid), valid)


def _elementwise(
    loss: Callable[[Tensor, Tensor], Tensor],
    prediction: Any,
    target: Any,
    lengths: Any,
    mask: Any,
    names: tuple[str, str] = ("prediction", "target"),
) -> Any:
    """Return the mean of a loss of pairs over the valid ones."""
    for name, value in zip(names, (prediction, target), strict=True):
        _check_kind(name, value)
    if target.dtype != prediction.dtype:
        raise TypeError(
            f"{names[1]}: expected {prediction.dtype} like {names[0]}, got {target.dtype}; "
            f"cast with .astype(numpy.{prediction.dtype})"
        )
    if target.shape != prediction.shape:
        raise ValueError(
            f"{names[1]}: expected shape {prediction.shape} like {names[0]}, got {target.shape}; nothing is broadcast"
        )
    refuse_other_device(names[1], _array(target), namespace(_array(prediction)))
    valid = _valid(names[0], prediction, prediction.shape, lengths, mask)
    p, t = as_tensor(prediction), as_tensor(target)
    if valid is not None:
        p, t = functions.where(valid, p, 0.0), functions.where(valid, t, 0.0)
    result = _mean(loss(p, t), valid)
    return result if isinstance(prediction, Tensor) or isinstance(target, Tensor) else to_arrays(result)[()]


def _array(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _check_kind(name: str, value: Any) -> None:
    refuse_foreign(name, value)
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{name}: expected an array or Tensor, got {type(value).__name__}")


def _valid(name: str, prediction: Any, shape: tuple[int, ...], lengths: Any, mask: Any) -> Any:
    """Return booleans of a shape, True where an element counts; None where all do."""
    if lengths is None and mask is None:
        return None
    xp = namespace(_array(prediction))
    valid = xp.ones(shape, dtype=bool)
    if lengths is not None:
        if len(shape) < 2:
            raise ValueError(f"{name}: expected shape (B, T, ...) with lengths, got {tuple(prediction.shape)}")
        counts = xp.asarray(check_lengths("lengths", lengths, shape[0], shape[1]))
        steps = xp.arange(shape[1]) < counts[:, None]
        valid &= steps.reshape(steps.shape + (1,) * (len(shape) - 2))
    if mask is not None:
        refuse_other_device("mask", mask, xp)
        counts = xp.asarray(mask)
        if counts.dtype != np.bool_:
            raise TypeError(f"mask: expected booleans (True = counts), got {counts.dtype}")
        if counts.shape != shape[: counts.ndim]:
            raise ValueError(f"mask: expected shape {shape} or that of its first axes, got {counts.shape}")
        valid &= counts.reshape(counts.shape + (1,) * (len(shape) - counts.ndim))
    return valid


def _mean(losses: Any, valid: Any) -> Any:
    """Return the mean over the valid ones of an array's or a Tensor's elements."""
    if valid is not None:
        if isinstance(losses, Tensor):
            losses = functions.where(valid, losses, 0.0)  # a pair of zeros may have a loss too
        if not isinstance(valid, np.ndarray):  # on a device: the host does not wait for the count
            return losses.sum() / namespace(valid).maximum(valid.sum(), 1).astype(losses.dtype)
        count = int(valid.sum())
    else:
        count = losses.size
    return losses.sum() / max(count, 1)
