"""The basic family: what stands around the sequence ops in a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Backend
from .declaration import Op
from .options import axis as axis_option
from .options import check_range, positive
from .options import indices as indices_option
from .options import mask as mask_option


def _targets_are_classes(arrays: Any, config: Any) -> None:
    if isinstance(config.targets, np.ndarray):
        targets = config.targets if config.mask is None else config.targets[config.mask]
        check_range("targets", targets, arrays.logits.shape[-1], "C")


LINEAR = Op("linear", arrays={"x": "... I", "w": "O I"}, optional={"b": "O"}, outputs={"y": "... O"}, state=())
LAYER_NORM = Op(
    "layer_norm",
    arrays={"x": "... F"},
    optional={"weight": "F", "bias": "F"},
    outputs={"y": "... F"},
    options={"eps": positive(1e-5)},
)
SOFTMAX = Op("softmax", arrays={"x": "... F"}, outputs={"y": "... F"}, options={"axis": axis_option(-1)})
EMBEDDING = Op(
    "embedding",
    arrays={"weight": "V D"},
    outputs={"y": "... D"},
    options={"indices": indices_option("...", "V")},
)
CROSS_ENTROPY = Op(
    "cross_entropy",
    arrays={"logits": "... C"},
    outputs={"loss": "..."},
    options={"targets": indices_option("..."), "mask": mask_option("...")},
    rule=_targets_are_classes,
)


@LINEAR.public
def linear(x: Any, w: Any, b: Any = None, *, backend: str | Backend | None = None) -> Any:
    """Map features linearly: y = x Wᵀ + b.

    Parameters
    ----------
    x : array or Tensor, shape (..., I)
        float32 or float64, like all arrays of the call.
    w : shape (O, I)
    b : shape (O,), optional
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (..., O)

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; the message names it.
    """
    return LINEAR(x, w, b, backend=backend)


@LAYER_NORM.public
def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5, backend: str | Backend | None = None
) -> Any:
    """Bring the last axis to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    x : array or Tensor, shape (..., F)
    weight, bias : shape (F,), optional
    eps : float
        Added to the variance.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (..., F)

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; the message names it.

    References
    ----------
    Ba, Kiros, Hinton (2016), "Layer Normalization".
    """
    return LAYER_NORM(x, weight, bias, eps=eps, backend=backend)


@SOFTMAX.public
def softmax(x: Any, *, axis: int = -1, backend: str | Backend | None = None) -> Any:
    """Turn scores into weights that sum to 1 along an axis.

    Parameters
    ----------
    x : array or Tensor, shape (..., F)
    axis : int
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (..., F)

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.
    """
    return SOFTMAX(x, axis=axis, backend=backend)


@EMBEDDING.public
def embedding(weight: Any, *, indices: Any, backend: str | Backend | None = None) -> Any:
    """Look rows of a table up.

    Parameters
    ----------
    weight : array or Tensor, shape (V, D)
    indices : integers of any shape (...), from 0 to V - 1
        On the GPU nothing is raised for others, as the host would have to wait to see them: they give NaN.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (..., D)

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.
    """
    return EMBEDDING(weight, indices=indices, backend=backend)


@CROSS_ENTROPY.public
def cross_entropy(logits: Any, *, targets: Any, mask: Any = None, backend: str | Backend | None = None) -> Any:
    """Give each element's -log softmax(logits)[target]; `pyrnn.nn.cross_entropy` is their mean.

    Parameters
    ----------
    logits : array or Tensor, shape (..., C)
    targets : integers, shape (...), from 0 to C - 1
        On the GPU nothing is raised for others, as the host would have to wait to see them: their loss is NaN.
    mask : booleans, shape (...), optional
        False where an element does not count: its loss and gradient are 0, whatever it holds.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    loss : shape (...)
        In nats.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype, shape or range; the message names it.
    """
    return CROSS_ENTROPY(logits, targets=targets, mask=mask, backend=backend)
