"""`TCN`, the temporal convolutional network: residual blocks of dilated causal convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from .._checks import check_choice, check_count, check_flag, type_name
from ..autograd import Tensor, functions
from ..backend import Stage
from ._checks import check_array, check_dtype, check_probability
from ._sequence import blank, padding_of
from .conv import CausalConv1d, Convolutional, FrozenContexts, FrozenConv
from .frozen import Part, Step, into
from .init import Seed
from .layers import as_tensor
from .layers import dropout as drop
from .module import Module, Shapes, registered

# Each maps 0 to 0: padded steps stay zeros through a block.
ACTIVATIONS = {"relu": functions.relu, "tanh": functions.tanh}


def _counts(name: str, value: Any) -> list[int]:
    """Return whole numbers from 1 on, at least one of them."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {type_name(value)}")
    if not len(value):
        raise ValueError(f"{name}: expected at least one number, got none")
    return [check_count(f"{name}[{index}]", number) for index, number in enumerate(value)]


class TemporalBlock(Module):
    """One residual block of a `TCN`: two convolutions, each with activation and dropout, beside a shortcut.

    Parameters
    ----------
    layers
        The configurations of its convolutions by name, ``downsample`` among them where the channels differ.
    activation, dropout, generator
        The TCN's.
    """

    conv1: CausalConv1d
    conv2: CausalConv1d
    downsample: CausalConv1d | None = None

    def __init__(
        self, layers: Mapping[str, Mapping[str, Any]], activation: str, dropout: float, generator: np.random.Generator
    ) -> None:
        for name, config in layers.items():
            setattr(self, name, CausalConv1d(**config, rng=generator))
        self.activation, self.dropout, self.generator = activation, dropout, generator

    def forward(self, x: Any, lefts: Sequence[Any], lengths: Any) -> tuple[Tensor, list[Any]]:
        """Run over ``x``, zeros in its padding, from the contexts of both convolutions."""
        activate = ACTIVATIONS[self.activation]
        y, after = x, []
        for conv, left in zip((self.conv1, self.conv2), lefts, strict=True):
            y, (left,) = conv(y, None if left is None else (left,), lengths=lengths)
            y = activate(y)
            if self.training and self.dropout:
                y = drop(y, self.dropout, self.generator)
            after.append(left)
        shortcut = as_tensor(x) if self.downsample is None else self.downsample(x, lengths=lengths)[0]
        return activate(y + shortcut), after


@registered
class TCN(Convolutional):
    """The temporal convolutional network: residual blocks of two dilated causal convolutions each.

    A block gives activation(F(x) + x), where F is twice a `CausalConv1d`, the activation and dropout; a convolution of
    size 1 stands in for x where the channels differ. Its state is the left context of each convolution,
    (B, (K - 1)·dilation, C), two for each block in their order.

    Parameters
    ----------
    input_size : int
        The channels that come in.
    num_channels : sequence of int
        The channels of each block.
    kernel_size : int
        K, of every convolution.
    dropout : float
        Probability with which, in training, an element is dropped after each activation within a block.
    dilations : sequence of int, optional
        That of each block; 1, 2, 4, ... by default.
    weight_norm : bool
        Learn the length and the direction of the convolutions' weights apart; see `CausalConv1d`.
    activation : {"relu", "tanh"}
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the parameters as `CausalConv1d` does, and then drops.

    Attributes
    ----------
    receptive_field : int
        The number of steps that an output depends on: 1 + Σ 2·(K - 1)·dilation.

    References
    ----------
    Bai, Kolter, Koltun (2018), "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling"; the parameters have the names of the authors' own implementation.
    """

    network: list[TemporalBlock]

    def __init__(
        self,
        input_size: int,
        num_channels: Sequence[int],
        kernel_size: int = 3,
        *,
        dropout: float = 0.2,
        dilations: Sequence[int] | None = None,
        weight_norm: bool = True,
        activation: str = "relu",
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.input_size = check_count("input_size", input_size)
        self.num_channels = _counts("num_channels", num_channels)
        self.dilations = None if dilations is None else _counts("dilations", dilations)
        if self.dilations is not None and len(self.dilations) != len(self.num_channels):
            raise ValueError(
                f"dilations: expected one for each of the {len(self.num_channels)} blocks, got {len(self.dilations)}"
            )
        self.config = {
            "input_size": self.input_size,
            "num_channels": self.num_channels,
            "kernel_size": check_count("kernel_size", kernel_size),
            "dropout": check_probability("dropout", dropout),
            "dilations": self.dilations,
            "weight_norm": check_flag("weight_norm", weight_norm),
            "activation": check_choice("activation", activation, tuple(ACTIVATIONS)),
            "dtype": str(check_dtype(dtype)),
        }
        self.generator = np.random.default_rng(rng)
        self.network = [
            TemporalBlock(layers, activation, self.config["dropout"], self.generator) for layers in _blocks(self.config)
        ]

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a network with this `config`."""
        for number, layers in enumerate(_blocks(config)):
            for name, layer in layers.items():
                for parameter, shape in CausalConv1d.parameter_shapes(layer):
                    yield f"network.{number}.{name}.{parameter}", shape

    def _convolutions(self) -> list[CausalConv1d]:
        return [conv for block in self.network for conv in (block.conv1, block.conv2)]

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, input_size)
        state : tuple of arrays or Tensors, two for each block, optional
            The left contexts of its convolutions. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : shape (B, T, num_channels[-1])
        state
            That after the last valid step, in the same form.

        Raises
        ------
        TypeError, ValueError
            ``x``, ``state`` or ``lengths`` of the wrong kind, dtype or shape; the message names it.
        """
        check_array("x", x, "B T I", {"I": self.input_size}, next(self.parameters()).dtype)
        lefts = self._starts(state, len(x))
        if lengths is not None:
            x = blank(x, padding_of(x, lengths))
        new: list[Any] = []
        for number, block in enumerate(self.network):
            x, after = block(x, lefts[2 * number : 2 * number + 2], lengths)
            new += after
        return x, tuple(new)

    def _freeze(self) -> Part:
        return FrozenTCN(self)


def _blocks(config: Mapping[str, Any]) -> Iterator[dict[str, dict[str, Any]]]:
    """Go through the blocks of a TCN: the configurations of their convolutions by name."""
    inputs = config["input_size"]
    dilations = (2**number for number in count()) if config["dilations"] is None else config["dilations"]
    for outputs, dilation in zip(config["num_channels"], dilations, strict=False):
        plain = {"out_channels": outputs, "groups": 1, "bias": True, "dtype": config["dtype"]}
        dilated = {
            **plain,
            "kernel_size": config["kernel_size"],
            "dilation": dilation,
            "weight_norm": config["weight_norm"],
        }
        layers = {"conv1": {"in_channels": inputs, **dilated}, "conv2": {"in_channels": outputs, **dilated}}
        if inputs != outputs:
            layers["downsample"] = {"in_channels": inputs, **plain, "kernel_size": 1, "weight_norm": False}
        yield layers
        inputs = outputs


class FrozenBlock:
    """A `TemporalBlock`: its convolutions, packed, and that of its shortcut or None."""

    def __init__(self, block: TemporalBlock) -> None:
        self.convs = [FrozenConv(conv, *conv.folded()) for conv in (block.conv1, block.conv2)]
        self.downsample = None if block.downsample is None else FrozenConv(block.downsample, *block.downsample.folded())
        self.width = block.conv2.out_channels


class FrozenTCN(FrozenContexts):
    """A `TCN`."""

    def __init__(self, layer: TCN) -> None:
        super().__init__(layer, layer.input_size, layer.num_channels[-1])
        self.blocks = [FrozenBlock(block) for block in layer.network]
        self.activation = layer.config["activation"]

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        self.check_input("B T I", x)
        xp = self.backend.xp
        if lengths is not None:
            x = blank(x, padding_of(x, lengths))
        lefts: Any = (None,) * len(self.contexts) if state is None else state
        new: list[Any] = []

        def activate(y: Any) -> Any:
            return xp.tanh(y, out=y) if self.activation == "tanh" else xp.maximum(y, 0, out=y)

        for block in self.blocks:
            y = x
            for conv in block.convs:
                left = lefts[len(new)]
                y, after = conv.run(y, None if left is None else (left,), lengths)
                activate(y)
                new += after
            y += x if block.downsample is None else block.downsample.run(x, None, lengths)[0]
            x = activate(y)
        return into(out, x), tuple(new)

    def step(self, state: tuple[Any, ...]) -> Step:
        lefts, then = iter(state), self.activation
        first = x = self.buffer(state, self.in_features)
        stages = []
        for block in self.blocks:
            hidden, y, after = (self.buffer(state, block.width) for _ in range(3))
            conv1, conv2 = (conv.packed for conv in block.convs)
            shortcut = None if block.downsample is None else block.downsample.packed
            stages += [
                Stage(x, hidden, conv1, next(lefts), then=then),
                Stage(hidden, y, conv2, next(lefts), then=then),
                Stage(x, after, shortcut, plus=y, then=then),
            ]
            x = after
        return self.backend.causal_conv1d_chain(stages, first, x)
