"""Where a step stands in its row: sinusoidal and learned positions as layers, attention's waves and slopes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from .._checks import check_count, check_lengths
from ..autograd import Tensor, functions
from ..autograd.tensor import namespace
from ..backend import choose
from ..ops import basic
from . import init
from ._checks import check_array, check_dtype, check_positions
from ._sequence import blank, padding_of, placed
from .frozen import Part, Step, into
from .init import Seed
from .layers import as_tensor
from .module import Parameter, SequenceLayer, Shapes, registered

BLOCK = 256  # positions of which the waves are computed at once, so that their bits depend on the position alone


def waves(positions: Any, features: int, dtype: Any) -> Any:
    """Return the sines and cosines of position · 10000^(-2i / features) for each feature 2i and 2i + 1.

    Parameters
    ----------
    positions : integers, of any shape (...)
        At least one, none of them negative.
    features : int
    dtype : {"float32", "float64"}

    Returns
    -------
    array, shape (2, ..., features)
        The sines, then the cosines: computed in float64.
    """
    first, last = int(positions.min()) // BLOCK, int(positions.max()) // BLOCK
    if first == last:
        return wave_block(first, features, dtype)[:, positions - first * BLOCK]
    numbers, index = np.unique(positions // BLOCK, return_inverse=True)
    table = np.concatenate([wave_block(int(number), features, dtype) for number in numbers], axis=1)
    return table[:, index.reshape(positions.shape) * BLOCK + positions % BLOCK]


@lru_cache(maxsize=128)
def wave_block(number: int, features: int, dtype: Any) -> Any:
    """Return the `waves` of the positions from number · BLOCK on, shape (2, BLOCK, features)."""
    at = np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.float64)
    angles = at[:, None] * 10000.0 ** (-np.arange(0, features, 2) / max(1, features))
    block = np.stack([np.sin(angles), np.cos(angles)]).repeat(2, axis=2)[..., :features].astype(dtype)
    block.flags.writeable = False
    return block


def alibi_slopes(heads: int) -> Any:
    """Return the slope of each head.

    They are 2^(-8/n), 2^(-16/n), ..., for a power of two n; else those of the one below, and then every other one of
    its double.

    References
    ----------
    Press, Smith, Lewis (2022), "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation".
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([slopes, between])[:heads]


class _Positions(SequenceLayer):
    """What the two layers share: each step has something added to it by its position, which the state counts."""

    embedding_dim: int
    max_length: int | None = None

    @property
    def streamable(self) -> bool:
        """True: a step depends on its position alone."""
        return True

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for: ``(position,)``, zeros of int64, shape (batch,)."""
        return (np.zeros(check_count("batch", batch, minimum=0), np.int64),)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Add to each step what belongs to its position.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, E)
        state : ``(position,)``, optional
            Integers (B,): the steps of each row before the first one. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; ``y`` is 0 past them.

        Returns
        -------
        y : shape (B, T, E)
        state
            That after the last valid step, in the same form.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong kind, dtype or shape, or more positions than there are; the message names it.
        """
        check_array("x", x, "B T E", {"E": self.embedding_dim}, self._dtype())
        batch, time = x.shape[:2]
        position = self.initial_state(batch)[0] if state is None else check_position_state(state, batch)
        counts = None if lengths is None else check_lengths("lengths", lengths, batch, time)
        after = position + (time if counts is None else counts)
        check_bound(self.max_length, position, after)
        if not x.size:
            return as_tensor(x), (after,)
        padding = None if counts is None else padding_of(x, counts)
        at = position[:, None] + np.arange(time)
        if (position == position[0]).all():
            at = at[:1]
        y = functions.add(as_tensor(x), self._rows(at, x.dtype, namespace(x.data if isinstance(x, Tensor) else x)))
        return (y if padding is None else blank(y, padding)), (after,)

    def _dtype(self) -> Any:
        """Return the dtype that x has to be of; None for either."""
        return None

    def _rows(self, at: Any, dtype: Any, xp: Any) -> Any:
        """Return what is added at some positions (..., E)."""
        raise NotImplementedError

    def _freeze(self) -> Part:
        return FrozenPositions(self)


@registered
class SinusoidalPositions(_Positions):
    """Add to each step sines and cosines of its position, of wavelengths from 2π to 20,000π.

    Feature 2i of the step at position p gets sin(p / 10000^(2i/E)), feature 2i + 1 the cosine of the same. Its state is
    ``(position,)``, integers (B,).

    Parameters
    ----------
    embedding_dim : int
        E, the features of a step.

    References
    ----------
    Vaswani et al. (2017), "Attention Is All You Need", section 3.5.
    """

    def __init__(self, embedding_dim: int) -> None:
        self.embedding_dim = check_count("embedding_dim", embedding_dim)
        self.config = {"embedding_dim": self.embedding_dim}

    def _rows(self, at: Any, dtype: Any, xp: Any) -> Any:
        return placed(xp, _alternating, at, self.embedding_dim, np.dtype(dtype))


def _alternating(at: Any, features: int, dtype: Any) -> Any:
    """Return the sine of each even feature and the cosine of each odd one, shape (..., features)."""
    sines, cosines = waves(at, features, dtype)
    return np.where(np.arange(features) % 2, cosines, sines)


@registered
class LearnedPositions(_Positions):
    """Add to each step a vector that is learned for its position. Its state is ``(position,)``, integers (B,).

    Parameters
    ----------
    max_length : int
        How many positions there are; more are an error.
    embedding_dim : int
        E, the features of a step.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the table, normally with standard deviation 0.02.

    Attributes
    ----------
    weight : Parameter, shape (max_length, embedding_dim)

    References
    ----------
    Gehring et al. (2017), "Convolutional Sequence to Sequence Learning"; Radford et al. (2019), "Language Models are
    Unsupervised Multitask Learners", whose draw it is.
    """

    weight: Parameter

    def __init__(self, max_length: int, embedding_dim: int, *, dtype: Any = "float32", rng: Seed = None) -> None:
        self.max_length = check_count("max_length", max_length)
        self.embedding_dim = check_count("embedding_dim", embedding_dim)
        kind = check_dtype(dtype)
        self.config = {"max_length": self.max_length, "embedding_dim": self.embedding_dim, "dtype": str(kind)}
        self._add_parameters(kind)
        init.normal_(self.weight, std=0.02, rng=rng)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        yield "weight", (config["max_length"], config["embedding_dim"])

    def _dtype(self) -> Any:
        return self.weight.dtype

    def _rows(self, at: Any, dtype: Any, xp: Any) -> Any:
        # Padding may stand past the table's end; what is added there is blanked.
        return basic.embedding(self.weight, indices=placed(xp, np.minimum, at, self.weight.shape[0] - 1))


def check_position_state(state: Any, batch: int) -> Any:
    """Return the position of a positions layer's state."""
    if not isinstance(state, tuple) or len(state) != 1:
        came = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(f"state: expected a tuple (position,) of integers (B,) = ({batch},), got {came}")
    return check_positions("state[0] (position)", state[0], batch)


def check_bound(max_length: int | None, position: Any, after: Any) -> None:
    """Raise ValueError where a row goes past the last position that there is."""
    if max_length is not None and after.size and after.max() > max_length:
        row = int(after.argmax())
        raise ValueError(
            f"x: expected at most max_length = {max_length} steps in a row, got {after[row]} in row {row}: "
            f"{position[row]} in the state and {after[row] - position[row]} in x"
        )


class FrozenPositions(Part):
    """A layer of positions: a copy of it in eval mode."""

    stateful = True

    def __init__(self, layer: _Positions) -> None:
        self.backend = choose("embedding")
        self.layer: Any = copy.deepcopy(layer).to(self.backend).eval()
        self.in_features = layer.embedding_dim

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        y, after = self.layer.predict(x, state, lengths=lengths)
        return into(out, y), after

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        state: tuple[Any, ...] = self.layer.initial_state(batch)
        return state

    def check_state(self, state: Any, batch: int) -> None:
        if state is not None:
            check_position_state(state, batch)

    def step(self, state: tuple[Any, ...]) -> Step:
        (position,) = state
        uniform = bool((position == position[0]).all())
        bound, rows, xp = self.layer.max_length, self.layer._rows, self.backend.xp
        table = None if bound is None else self.layer.weight.data

        def step(x: Any, out: Any) -> Any:
            at = position[:1] if uniform else position
            check_bound(bound, at, at + 1)
            y = xp.add(x, rows(at, x.dtype, xp) if table is None else table[at], out=out)
            position[...] += 1
            return y

        return step
