"""`CausalConv1d`, and what the stacks of them share: their context as state, and their frozen form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_count, check_flag
from ..autograd import Tensor, functions, no_grad
from ..autograd.tensor import namespace
from ..backend import choose
from ..ops.conv import CAUSAL_CONV1D, causal_conv1d
from . import init
from ._checks import check_array, check_dtype
from .frozen import Part, Step
from .init import Seed
from .module import Parameter, SequenceLayer, Shapes, registered


class Context(NamedTuple):
    """What a convolution carries along: so many earlier steps of so many channels."""

    steps: int
    channels: int


def check_contexts(state: Any, contexts: Sequence[Context], batch: int, dtype: Any) -> None:
    """Hold the state of some convolutions against its form: one array (B, (K-1)·dilation, C) for each."""
    count = len(contexts)
    if not isinstance(state, tuple) or len(state) != count:
        came = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        form = "(left,)" if count == 1 else f"of {count} arrays, one left context for each convolution"
        raise ValueError(f"state: expected a tuple {form}, each of shape (B, (K-1)·dilation, C), got {came}")
    for index, (value, context) in enumerate(zip(state, contexts, strict=True)):
        sizes = {"B": batch, "(K-1)·dilation": context.steps, "C": context.channels}
        check_array(f"state[{index}] (left)", value, "B (K-1)·dilation C", sizes, dtype)


class Convolutional(SequenceLayer):
    """What the layers made of causal convolutions share: the state is the left context of each of them."""

    def _convolutions(self) -> list[CausalConv1d]:
        """Return the convolutions that have a context, in the order of the state."""
        raise NotImplementedError

    def _contexts(self) -> list[Context]:
        return [Context(layer.span, layer.in_channels) for layer in self._convolutions()]

    @property
    def streamable(self) -> bool:
        """True: no output depends on later steps."""
        return True

    @property
    def receptive_field(self) -> int:
        """The number of steps that an output depends on: its own and those before it."""
        return 1 + sum(context.steps for context in self._contexts())

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for: zeros, (batch, (K-1)·dilation, C) for each convolution."""
        check_count("batch", batch, minimum=0)
        first = next(self.parameters())
        xp = namespace(first.data)
        return tuple(xp.zeros((batch, *context), first.dtype) for context in self._contexts())

    def _starts(self, state: Any, batch: int) -> tuple[Any, ...]:
        """Return the left context of each convolution, None for zeros, from a state that is checked."""
        contexts = self._contexts()
        if state is None:
            return (None,) * len(contexts)
        check_contexts(state, contexts, batch, next(self.parameters()).dtype)
        return tuple(state)


@registered
class CausalConv1d(Convolutional):
    """Convolve over time, each output with its own and earlier inputs alone; see `pyrnn.causal_conv1d`.

    Its state is ``(left,)``, the last (K - 1)·dilation inputs, (B, (K - 1)·dilation, in_channels).

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int
        K, the number of taps.
    dilation : int
        Steps from one tap to the next.
    groups : int
        Groups of channels that have nothing to do with each other; it divides both numbers of channels.
    bias : bool
    weight_norm : bool
        Learn the length and the direction of each output channel's weights apart: w = g · v / ‖v‖.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the parameters, uniformly between ±1/√(K · in_channels / groups) as PyTorch does; g is ‖v‖ then.

    Attributes
    ----------
    weight : Parameter, shape (out_channels, in_channels / groups, K)
        Its last tap is that of the present step, as in PyTorch. With ``weight_norm`` there are instead:
    weight_g : Parameter, shape (out_channels, 1, 1)
    weight_v : Parameter, shape (out_channels, in_channels / groups, K)
    bias : Parameter, shape (out_channels,), or None

    References
    ----------
    Salimans, Kingma (2016), "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural
    Networks".
    """

    weight: Parameter
    weight_g: Parameter
    weight_v: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        weight_norm: bool = False,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.in_channels = check_count("in_channels", in_channels)
        self.out_channels = check_count("out_channels", out_channels)
        self.kernel_size = check_count("kernel_size", kernel_size)
        self.dilation = check_count("dilation", dilation)
        self.groups = check_count("groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels = {self.in_channels} and of "
                f"out_channels = {self.out_channels}, got {self.groups}"
            )
        self.weight_norm = check_flag("weight_norm", weight_norm)
        kind = check_dtype(dtype)
        self.config = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": check_flag("bias", bias),
            "weight_norm": self.weight_norm,
            "dtype": str(kind),
        }
        made = self._add_parameters(kind)
        if not bias:
            self.bias = None
        generator = np.random.default_rng(rng)
        bound = 1 / math.sqrt(self.kernel_size * (self.in_channels // self.groups))
        for name, parameter in made.items():
            if name != "weight_g":
                init.uniform_(parameter, -bound, bound, rng=generator)
        if self.weight_norm:
            self.weight_g.write()[...] = self._length().data

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        outputs, groups = config["out_channels"], check_count("groups", config["groups"])
        shape = (outputs, config["in_channels"] // groups, config["kernel_size"])
        if config["weight_norm"]:
            yield "weight_g", (outputs, 1, 1)
            yield "weight_v", shape
        else:
            yield "weight", shape
        if config["bias"]:
            yield "bias", (outputs,)

    @property
    def span(self) -> int:
        """(K - 1)·dilation: the steps of its context."""
        return (self.kernel_size - 1) * self.dilation

    def _convolutions(self) -> list[CausalConv1d]:
        return [self]

    def _length(self) -> Tensor:
        """Return ‖v‖ for each output channel, (out_channels, 1, 1)."""
        return functions.sqrt(functions.sum(self.weight_v * self.weight_v, axis=(1, 2), keepdims=True))

    def _weight(self) -> Tensor:
        """Return the weights that it convolves with."""
        return self.weight_v * (self.weight_g / self._length()) if self.weight_norm else self.weight

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, in_channels)
        state : tuple ``(left,)``, optional
            The steps before the first. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : shape (B, T, out_channels)
        state
            That after the last valid step.

        Raises
        ------
        TypeError, ValueError
            ``x``, ``state`` or ``lengths`` of the wrong kind, dtype or shape; the message names it.
        """
        weight = self._weight()
        check_array("x", x, "B T Cin", {"Cin": self.in_channels}, weight.dtype)
        (left,) = self._starts(state, len(x))
        y, left = causal_conv1d(x, weight, self.bias, left, dilation=self.dilation, groups=self.groups, lengths=lengths)
        return y, (left,)

    def folded(self) -> tuple[Any, Any]:
        """Return the weights that it convolves with, weight norm multiplied in, and the bias or None, as arrays."""
        with no_grad():
            return self._weight().data, None if self.bias is None else self.bias.data

    def _freeze(self) -> Part:
        return FrozenConv(self, *self.folded())


class FrozenContexts(Part):
    """What the frozen forms share: the state is a tuple of left contexts."""

    stateful = True

    def __init__(self, layer: Convolutional, in_features: int, out_features: int) -> None:
        self.backend = choose("causal_conv1d")
        self.contexts = layer._contexts()
        self.in_features: int = in_features
        self.out_features, self.dtype = out_features, next(layer.parameters()).dtype

    def width(self, features: int | None) -> int | None:
        return self.out_features

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        return tuple(self.backend.xp.zeros((batch, *context), self.dtype) for context in self.contexts)

    def check_state(self, state: Any, batch: int) -> None:
        if state is not None:
            check_contexts(state, self.contexts, batch, self.dtype)

    def buffer(self, state: tuple[Any, ...], channels: int) -> Any:
        """Return a buffer of a chain, zeros, of as many rows as the state has."""
        return self.backend.xp.zeros((len(state[0]), channels), self.dtype)

    def check_input(self, symbols: str, x: Any) -> None:
        if x.ndim != 3 or x.shape[2] != self.in_features or x.dtype != self.dtype:
            check_array("x", x, symbols, {symbols.rpartition(" ")[2]: self.in_features}, self.dtype)


class FrozenConv(FrozenContexts):
    """A `CausalConv1d`, with the weights and the bias that it is to run with."""

    def __init__(self, layer: CausalConv1d, weight: Any, bias: Any) -> None:
        super().__init__(layer, layer.in_channels, layer.out_channels)
        arrays = CAUSAL_CONV1D.Arrays(None, weight, bias, None)
        config = CAUSAL_CONV1D.Config(dilation=layer.dilation, groups=layer.groups, lengths=None)
        self.packed = self.backend.causal_conv1d_pack(arrays, config)
        self._run_op: Any = self.backend.causal_conv1d_run

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        self.check_input("B T Cin", x)
        written = None if out is None else (out, self.initial_state(len(x)))
        y, after = self._run_op(self.packed, x, state, lengths=lengths, out=written)
        return y, after

    def step(self, state: tuple[Any, ...]) -> Step:
        return self.backend.stepper("causal_conv1d", self.packed, state, self.out_features)
