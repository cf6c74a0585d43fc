"""`WaveNet`: stacks of gated dilated causal convolutions with residual and skip connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._checks import check_count, check_flag
from ..autograd import Tensor, functions
from ..backend import Stage
from ._checks import check_array, check_dtype
from .conv import CausalConv1d, Convolutional, FrozenContexts, FrozenConv
from .frozen import Part, Step, into
from .init import Seed
from .module import Module, Shapes, registered


class GatedLayer(Module):
    """One layer of a `WaveNet`: its convolutions.

    Attributes
    ----------
    dilated : CausalConv1d, to 2·residual_channels
        Half of them for tanh, half for the gate.
    res_skip : CausalConv1d of kernel size 1, to residual_channels + skip_channels
        In the last layer, whose residual would go nowhere, to skip_channels alone.
    """

    dilated: CausalConv1d
    res_skip: CausalConv1d

    def forward(self, x: Any, left: Any, lengths: Any) -> tuple[Tensor, Any]:
        """Return what the gate lets through, for the residual and the skip, and the context after it."""
        z, (left,) = self.dilated(x, None if left is None else (left,), lengths=lengths)
        return self.res_skip(functions.gated_tanh(z), lengths=lengths)[0], left


@registered
class WaveNet(Convolutional):
    """WaveNet's stacks: gated dilated causal convolutions with residual and skip connections, and a head on the skips.

    A causal convolution takes the input to the residual channels. A layer convolves them, h = tanh(u) · σ(v), and a
    convolution of size 1 of h is added to them and to the skips. The head is relu, 1×1, relu, 1×1 on the sum of
    the skips. The state is the left context of each convolution, (B, (K - 1)·dilation, C), the input's first.

    Parameters
    ----------
    input_size : int
        The channels that come in.
    residual_channels, skip_channels, output_size : int
        The channels from layer to layer, to the head and out of it.
    num_layers : int
        The layers of one stack, with dilations 1, 2, 4, ..., 2^(num_layers - 1).
    num_stacks : int
        The stacks, one after the other.
    kernel_size : int
        K, of all convolutions that are not 1×1.
    bias : bool
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the parameters as `CausalConv1d` does.

    Attributes
    ----------
    receptive_field : int
        The number of steps that an output depends on: 1 + (K - 1)·(1 + num_stacks·(2^num_layers - 1)).

    References
    ----------
    van den Oord et al. (2016), "WaveNet: A Generative Model for Raw Audio".
    """

    input: CausalConv1d
    layers: list[GatedLayer]
    head: list[CausalConv1d]

    def __init__(
        self,
        input_size: int,
        *,
        residual_channels: int,
        skip_channels: int,
        output_size: int,
        num_layers: int,
        num_stacks: int = 1,
        kernel_size: int = 2,
        bias: bool = True,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.input_size = check_count("input_size", input_size)
        self.residual_channels = check_count("residual_channels", residual_channels)
        self.skip_channels = check_count("skip_channels", skip_channels)
        self.output_size = check_count("output_size", output_size)
        self.config = {
            "input_size": self.input_size,
            "residual_channels": self.residual_channels,
            "skip_channels": self.skip_channels,
            "output_size": self.output_size,
            "num_layers": check_count("num_layers", num_layers),
            "num_stacks": check_count("num_stacks", num_stacks),
            "kernel_size": check_count("kernel_size", kernel_size),
            "bias": check_flag("bias", bias),
            "dtype": str(check_dtype(dtype)),
        }
        generator = np.random.default_rng(rng)
        made = {name: CausalConv1d(**layer, rng=generator) for name, layer in _convolutions(self.config)}
        self.input = made["input"]
        self.layers = [GatedLayer() for _ in range(num_layers * num_stacks)]
        for number, layer in enumerate(self.layers):
            layer.dilated, layer.res_skip = made[f"layers.{number}.dilated"], made[f"layers.{number}.res_skip"]
        self.head = [made["head.0"], made["head.1"]]

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a network with this `config`."""
        for name, layer in _convolutions(config):
            for parameter, shape in CausalConv1d.parameter_shapes(layer):
                yield f"{name}.{parameter}", shape

    def _convolutions(self) -> list[CausalConv1d]:
        return [self.input, *(layer.dilated for layer in self.layers)]

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, input_size)
        state : tuple of arrays or Tensors, one for the input and one for each layer, optional
            The left contexts of the convolutions. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : shape (B, T, output_size)
        state
            That after the last valid step, in the same form.

        Raises
        ------
        TypeError, ValueError
            ``x``, ``state`` or ``lengths`` of the wrong kind, dtype or shape; the message names it.
        """
        check_array("x", x, "B T I", {"I": self.input_size}, self.input.weight.dtype)
        first, *lefts = self._starts(state, len(x))
        x, new = self.input(x, None if first is None else (first,), lengths=lengths)
        skips: Any = 0.0
        for number, (layer, left) in enumerate(zip(self.layers, lefts, strict=True)):
            added, left = layer(x, left, lengths)
            new += (left,)
            if number < len(self.layers) - 1:
                residual, added = functions.split(added, self.residual_channels)
                x = x + residual
            skips = added + skips
        for conv in self.head:
            skips, _ = conv(functions.relu(skips), lengths=lengths)
        return skips, new

    def _freeze(self) -> Part:
        return FrozenWaveNet(self)


def _convolutions(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through the convolutions of a WaveNet: their names and configurations."""

    def conv(name: str, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1) -> Any:
        return name, {
            "in_channels": inputs, "out_channels": outputs, "kernel_size": kernel_size, "dilation": dilation,
            "groups": 1, "bias": config["bias"], "weight_norm": False, "dtype": config["dtype"],
        }  # fmt: skip

    residual, skip, taps = config["residual_channels"], config["skip_channels"], config["kernel_size"]
    total = config["num_layers"] * config["num_stacks"]
    yield conv("input", config["input_size"], residual, taps)
    for number in range(total):
        yield conv(f"layers.{number}.dilated", residual, 2 * residual, taps, 2 ** (number % config["num_layers"]))
        yield conv(f"layers.{number}.res_skip", residual, skip if number == total - 1 else residual + skip)
    yield conv("head.0", skip, skip)
    yield conv("head.1", skip, config["output_size"])


class FrozenWaveNet(FrozenContexts):
    """A `WaveNet`.

    With σ(v) = (1 + tanh(v / 2)) / 2, a layer is tanh of all of z, one addition, one product: both halves stand in the
    weights around it. A power of two changes no bit of a result but its exponent.
    """

    def __init__(self, layer: WaveNet) -> None:
        super().__init__(layer, layer.input_size, layer.output_size)
        self.residual, self.skip = layer.residual_channels, layer.skip_channels
        self.input = FrozenConv(layer.input, *layer.input.folded())
        halves = self.backend.xp.repeat([1, 0.5], self.residual).astype(self.dtype)
        self.layers = []
        for inner in layer.layers:
            weight, bias = inner.dilated.folded()
            dilated = weight * halves[:, None, None], None if bias is None else bias * halves
            weight, bias = inner.res_skip.folded()
            res_skip = weight * self.dtype.type(0.5), bias
            self.layers.append((FrozenConv(inner.dilated, *dilated), FrozenConv(inner.res_skip, *res_skip)))
        self.head = [FrozenConv(conv, *conv.folded()) for conv in layer.head]

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        self.check_input("B T I", x)
        xp, residual = self.backend.xp, self.residual
        first, *lefts = (None,) * len(self.contexts) if state is None else state
        x, new = self.input.run(x, None if first is None else (first,), lengths)
        skips = xp.zeros((*x.shape[:2], self.skip), self.dtype)
        for (dilated, res_skip), left in zip(self.layers, lefts, strict=True):
            z, after = dilated.run(x, None if left is None else (left,), lengths)
            new += after
            xp.tanh(z, out=z)
            gate = z[..., residual:]
            gate += 1
            added, _ = res_skip.run(z[..., :residual] * gate, None, lengths)
            if res_skip.out_features > self.skip:
                x += added[..., :residual]
            skips += added[..., -self.skip :]
        for conv in self.head:
            skips, _ = conv.run(xp.maximum(skips, 0, out=skips), None, lengths)
        return into(out, skips), new

    def step(self, state: tuple[Any, ...]) -> Step:
        first = self.buffer(state, self.in_features)
        # The residual and the skips stand side by side, so that one addition serves both. The first skips stay zeros.
        flow = self.buffer(state, self.residual + self.skip)
        stages = [Stage(first, flow[:, : self.residual], self.input.packed, state[0])]
        for (dilated, res_skip), left in zip(self.layers, state[1:], strict=True):
            h, after = self.buffer(state, self.residual), self.buffer(state, res_skip.out_features)
            stages += [
                Stage(flow[:, : self.residual], h, dilated.packed, left, then="gate"),
                Stage(h, after, res_skip.packed, plus=flow[:, -res_skip.out_features :]),
            ]
            flow = after
        head, last = self.head
        rectified, hidden, y = (self.buffer(state, width) for width in (self.skip, self.skip, self.out_features))
        stages += [
            Stage(flow, rectified, then="relu"),
            Stage(rectified, hidden, head.packed, then="relu"),
            Stage(hidden, y, last.packed),
        ]
        return self.backend.causal_conv1d_chain(stages, first, y)
