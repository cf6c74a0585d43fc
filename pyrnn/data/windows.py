"""Sliding windows over a series, without copying it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_count
from ._types import Array


class Windows(NamedTuple):
    """Windows of a series and the steps that follow them.

    Attributes
    ----------
    inputs : ndarray, shape (windows, length, ...)
    targets : ndarray, shape (windows, horizon, ...)
    """

    inputs: Array
    targets: Array


def windows(series: ArrayLike, length: int, *, horizon: int = 0, stride: int = 1) -> Windows:
    """Cut a series into windows of `length` steps, each with the `horizon` steps after it.

    Window i begins at step ``i * stride``; every window and its targets lie wholly inside the
    series, so there are ``(time - length - horizon) // stride + 1``.

    Parameters
    ----------
    series : array_like, shape (time, ...)
    length : int
        Steps of a window.
    horizon : int, default 0
        Steps to foretell. With 0, `targets` have no steps.
    stride : int, default 1
        Steps between the beginnings of neighbouring windows.

    Returns
    -------
    Windows
        Read-only views of `series`: they overlap in its memory, and take none of their own.

    Raises
    ------
    TypeError, ValueError
        If `length` or `stride` is not positive, `horizon` negative, or `series` shorter than
        ``length + horizon``.

    Notes
    -----
    Where every step is to foretell the next one, cut windows of one step more and split them:
    ``w = windows(series, length + 1).inputs``, inputs ``w[:, :-1]``, targets ``w[:, 1:]``.
    `Batches` copies only the windows of the batch in hand.

    Examples
    --------
    >>> inputs, targets = windows([0, 1, 2, 3, 4, 5], 3, horizon=1, stride=2)
    >>> inputs
    array([[0, 1, 2],
           [2, 3, 4]])
    >>> targets
    array([[3],
           [5]])
    """
    series = np.asarray(series)
    length = check_count("length", length, 1)
    horizon = check_count("horizon", horizon, 0)
    stride = check_count("stride", stride, 1)
    if series.ndim == 0 or len(series) < length + horizon:
        raise ValueError(
            f"series: expected shape (T, ...) with T at least length + horizon = {length + horizon}, got {series.shape}"
        )
    views = np.lib.stride_tricks.sliding_window_view(series, length + horizon, axis=0)
    views = np.moveaxis(views, -1, 1)[::stride]
    return Windows(views[:, :length], views[:, length:])
