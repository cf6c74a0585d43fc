"""Layers without a state of their own, and `Sequential`, which chains layers of both kinds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._checks import check_count, check_flag, check_positive
from ..autograd import Tensor, functions
from ..autograd.tensor import namespace
from ..backend import choose, choose_updates
from ..ops import basic
from . import init
from ._checks import check_array, check_dtype, check_probability, check_states
from ._sequence import Call, in_turn
from .frozen import FrozenLayer, FrozenLinear, FrozenSequential, Part
from .init import Seed
from .module import Module, Parameter, SequenceLayer, Shapes, registered


def as_tensor(x: Any) -> Tensor:
    """Return a Tensor as it is and an array as a Tensor."""
    return x if isinstance(x, Tensor) else Tensor(x)


@registered
class Linear(Module):
    """Map features linearly: y = x Wᵀ + b.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the parameters, uniformly between ±1/√in_features as PyTorch does.

    Attributes
    ----------
    weight : Parameter, shape (out_features, in_features)
    bias : Parameter, shape (out_features,), or None
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.in_features = check_count("in_features", in_features)
        self.out_features = check_count("out_features", out_features)
        kind = check_dtype(dtype)
        self.config = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": check_flag("bias", bias),
            "dtype": str(kind),
        }
        made = self._add_parameters(kind)
        if not bias:
            self.bias = None
        generator = np.random.default_rng(rng)
        bound = 1 / math.sqrt(in_features)
        for parameter in made.values():
            init.uniform_(parameter, -bound, bound, rng=generator)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        yield "weight", (config["out_features"], config["in_features"])
        if config["bias"]:
            yield "bias", (config["out_features"],)

    def forward(self, x: Any) -> Tensor:
        """Map ``x (..., in_features)`` to ``(..., out_features)``."""
        check_array("x", x, "... I", {"I": self.in_features}, self.weight.dtype)
        y: Tensor = basic.linear(x, self.weight, self.bias)
        return y

    def _freeze(self) -> Part:
        backend: Any = choose("linear")
        bias = None if self.bias is None else self.bias.data
        packed = backend.linear_pack(basic.LINEAR.Arrays(None, self.weight.data, bias), basic.LINEAR.Config())
        return FrozenLinear(backend, packed, self.in_features, self.out_features, self.weight.dtype)


@registered
class Embedding(Module):
    """Look vectors up in a table.

    Parameters
    ----------
    num_embeddings : int
        The size of the vocabulary.
    embedding_dim : int
        The size of a vector.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the table from the standard normal distribution as PyTorch does.

    Attributes
    ----------
    weight : Parameter, shape (num_embeddings, embedding_dim)
    """

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", rng: Seed = None) -> None:
        self.num_embeddings = check_count("num_embeddings", num_embeddings)
        self.embedding_dim = check_count("embedding_dim", embedding_dim)
        kind = check_dtype(dtype)
        self.config = {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "dtype": str(kind),
        }
        self._add_parameters(kind)
        init.normal_(self.weight, rng=rng)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        yield "weight", (config["num_embeddings"], config["embedding_dim"])

    def forward(self, indices: Any) -> Tensor:
        """Map integers of any shape ``(...)`` to vectors ``(..., embedding_dim)``."""
        y: Tensor = basic.embedding(self.weight, indices=indices)
        return y

    def _freeze(self) -> Part:
        return FrozenLayer(self)


@registered
class LayerNorm(Module):
    """Bring the last axis to mean 0 and variance 1, then scale and shift it.

    Parameters
    ----------
    normalized_shape : int
        The size of the last axis.
    eps : float
        Added to the variance.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight, bias : Parameter, shape (normalized_shape,)

    References
    ----------
    Ba, Kiros, Hinton (2016), "Layer Normalization".
    """

    weight: Parameter
    bias: Parameter

    def __init__(self, normalized_shape: int, eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        self.normalized_shape = check_count("normalized_shape", normalized_shape)
        self.eps = check_positive("eps", eps)
        kind = check_dtype(dtype)
        self.config = {"normalized_shape": self.normalized_shape, "eps": self.eps, "dtype": str(kind)}
        self._add_parameters(kind)
        init.ones_(self.weight)
        init.zeros_(self.bias)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        yield "weight", (config["normalized_shape"],)
        yield "bias", (config["normalized_shape"],)

    def forward(self, x: Any) -> Tensor:
        """Normalise ``x (..., normalized_shape)``."""
        check_array("x", x, "... F", {"F": self.normalized_shape}, self.weight.dtype)
        y: Tensor = basic.layer_norm(x, self.weight, self.bias, eps=self.eps)
        return y

    def _freeze(self) -> Part:
        return FrozenLayer(self)


def dropout(x: Any, p: float, generator: np.random.Generator) -> Any:
    """Set each element to 0 with probability ``p`` and multiply the others by 1 / (1 - p).

    References
    ----------
    Srivastava et al. (2014), "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
    """
    array = x.data if isinstance(x, Tensor) else x
    factors = choose_updates(array).dropout_factors(x.shape, x.dtype, p, generator, namespace(array))
    return functions.multiply(x, factors)


@registered
class Dropout(Module):
    """Set each element to 0 with probability ``p`` in training, the others growing by 1 / (1 - p).

    Parameters
    ----------
    p : float
    rng : numpy.random.Generator or int, optional
        What it draws from, at every call in training.
    """

    def __init__(self, p: float = 0.5, *, rng: Seed = None) -> None:
        self.p = check_probability("p", p)
        self.config = {"p": self.p}
        self.generator = np.random.default_rng(rng)

    def forward(self, x: Any) -> Tensor:
        """Drop elements of ``x``, of any shape; in eval mode it stays as it is."""
        tensor = as_tensor(x)
        return dropout(tensor, self.p, self.generator) if self.training and self.p else tensor

    def _freeze(self) -> Part:
        return FrozenLayer(self)


class _Activation(Module):
    def __init__(self) -> None:
        self.config: dict[str, Any] = {}

    def _freeze(self) -> Part:
        return FrozenLayer(self)


@registered
class Tanh(_Activation):
    """The hyperbolic tangent, element by element."""

    def forward(self, x: Any) -> Tensor:
        """Map each element of ``x``."""
        return functions.tanh(as_tensor(x))


@registered
class ReLU(_Activation):
    """max(x, 0), element by element."""

    def forward(self, x: Any) -> Tensor:
        """Map each element of ``x``."""
        return functions.relu(as_tensor(x))


@registered
class Sigmoid(_Activation):
    """The logistic function 1 / (1 + e^-x), element by element."""

    def forward(self, x: Any) -> Tensor:
        """Map each element of ``x``."""
        return functions.sigmoid(as_tensor(x))


@registered
class Sequential(SequenceLayer):
    """Run layers one after the other: always ``y, state = model(x, state=None, *, lengths=None)``.

    The state has one entry per layer, ``()`` for a layer without one. With ``lengths``, padding reaches
    nothing in layers without a state either, and padded steps of ``y`` are 0. A layer that is no
    `SequenceLayer` is taken to act on each step alone; one that does not sets ``streamable = False``.

    Parameters
    ----------
    *layers : Module
        Named "0", "1", ... in the state_dict.
    """

    def __init__(self, *layers: Module) -> None:
        for index, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layers[{index}]: expected a Module, got {type(layer).__name__}")
            setattr(self, str(index), layer)
        self._length = len(layers)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Module:
        if not isinstance(index, int) or not -self._length <= index < self._length:
            raise IndexError(f"index: expected a whole number below {self._length}, got {index!r}")
        layer: Module = getattr(self, str(index % self._length))
        return layer

    def __iter__(self) -> Iterator[Module]:
        return (self[index] for index in range(self._length))

    @property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        """The layers' architectures."""
        return {"layers": [layer.architecture() for layer in self]}

    @property
    def streamable(self) -> bool:
        """Whether all its layers can run in chunks."""
        return all(getattr(layer, "streamable", True) for layer in self)

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for."""
        return tuple(layer.initial_state(batch) if isinstance(layer, SequenceLayer) else () for layer in self)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """Run the layers on ``x (B, T, ...)``.

        Raises
        ------
        ValueError
            The state has not one entry per layer, or one for a layer without a state.
        """
        stateful = [isinstance(layer, SequenceLayer) for layer in self]
        states = check_states(state, [type(layer).__name__ for layer in self], stateful)
        return in_turn(zip(stateful, map(_call, self), strict=True), x, states, lengths)

    def _freeze(self) -> Part:
        return FrozenSequential([layer._freeze() for layer in self])


def _call(layer: Module) -> Call:
    """Return a layer's call in the form of one with a state."""
    if isinstance(layer, SequenceLayer):
        return lambda x, state, lengths: layer(x, state, lengths=lengths)
    return lambda x, state, lengths: (layer(x), ())
