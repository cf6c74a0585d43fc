"""Initialisers: each writes a parameter in place and returns it. What is random takes a numpy Generator."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from .._checks import check_number
from ..autograd import Tensor
from ..autograd.tensor import namespace

T = TypeVar("T", bound=Tensor)
Seed = np.random.Generator | int | None


def uniform_(parameter: T, a: float = 0.0, b: float = 1.0, *, rng: Seed = None) -> T:
    """Fill with draws from the uniform distribution on [a, b).

    Parameters
    ----------
    parameter : Parameter or Tensor
        Written in place.
    a, b : float
    rng : numpy.random.Generator or int, optional
        A generator or a seed.

    Returns
    -------
    parameter
        The same one.
    """
    return _fill(parameter, np.random.default_rng(rng).uniform(a, b, parameter.shape))


def normal_(parameter: T, mean: float = 0.0, std: float = 1.0, *, rng: Seed = None) -> T:
    """Fill with draws from a normal distribution.

    Parameters
    ----------
    parameter : Parameter or Tensor
        Written in place.
    mean : float
    std : float
        The standard deviation, at least 0.
    rng : numpy.random.Generator or int, optional
        A generator or a seed.

    Returns
    -------
    parameter
        The same one.

    Raises
    ------
    ValueError
        `std` is negative or not finite.
    """
    return _fill(parameter, np.random.default_rng(rng).normal(mean, check_number("std", std), parameter.shape))


def orthogonal_(parameter: T, gain: float = 1.0, *, rng: Seed = None) -> T:
    """Fill a matrix with a random one whose rows (or, where they are more, columns) are orthonormal.

    Parameters
    ----------
    parameter : shape (m, n)
    gain : float
        Multiplies it.
    rng
        A generator or a seed.

    Returns
    -------
    parameter
        The same one.

    Raises
    ------
    ValueError
        The parameter is no matrix.

    References
    ----------
    Saxe, McClelland, Ganguli (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks". The signs are Mezzadri's (2007), which make the draw uniform.
    """
    if parameter.ndim != 2:
        raise ValueError(f"parameter: expected shape (m, n), got {parameter.shape}")
    rows, columns = parameter.shape
    draw = np.random.default_rng(rng).normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(draw)
    q = q * np.sign(np.diagonal(r))
    return _fill(parameter, gain * (q if rows >= columns else q.T))


def constant_(parameter: T, value: float) -> T:
    """Fill with one number.

    Parameters
    ----------
    parameter : Parameter or Tensor
        Written in place.
    value : float

    Returns
    -------
    parameter
        The same one.
    """
    return _fill(parameter, np.full(parameter.shape, value))


def zeros_(parameter: T) -> T:
    """Fill with 0.

    Parameters
    ----------
    parameter : Parameter or Tensor
        Written in place.

    Returns
    -------
    parameter
        The same one.
    """
    return constant_(parameter, 0.0)


def ones_(parameter: T) -> T:
    """Fill with 1.

    Parameters
    ----------
    parameter : Parameter or Tensor
        Written in place.

    Returns
    -------
    parameter
        The same one.
    """
    return constant_(parameter, 1.0)


def _fill(parameter: T, values: Any) -> T:
    # Drawn in float64 on the host whatever the parameter: one seed gives one model in either precision.
    array = parameter.write()
    array[...] = namespace(array).asarray(values, dtype=array.dtype)
    return parameter
