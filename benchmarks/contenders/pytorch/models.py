"""Streaming steps in PyTorch: each convolution with the inputs it has seen, a Transformer with its cache of keys.

A convolution of one step is one matrix product with the inputs under its taps. They are kept in a ring of rows, which
moves nothing. ``torch.compile`` takes no part: it compiles such a network for a minute, with the inputs in a tensor, as
a list would be compiled anew for each step, and what came of it was slower than TorchScript's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .. import STEPS, Run, Runs, quickest
from .transformer import Decoder

WARM = 5
"""TorchScript compiles in its first calls."""


def prepare_torch(case: Any, data: Any, threads: int) -> Runs:
    """Return the faster of the plain network and the scripted one."""
    torch.set_num_threads(threads)
    networks: dict[str, Callable[[Any], Any]] = {
        "tcn": _tcn,
        "wavenet": _wavenet,
        "transformer": lambda data: Decoder(data.model, case.heads, data.past),
    }
    make = networks[case.op]
    return {
        "torch": quickest({
            "eager": lambda: _run(make(data), data),
            "script": lambda: _run(_scripted(make(data)), data),
        })
    }  # fmt: skip


def _scripted(network: Any) -> Any:
    with warnings.catch_warnings():
        # PyTorch would rather have torch.compile used.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(network)


@torch.inference_mode()
def _run(network: Any, data: Any) -> Run:
    """Return the run of a network that keeps its state."""
    x = torch.from_numpy(data.x)
    for _ in range(WARM):
        network(x)
    network.reset()

    @torch.inference_mode()
    def call() -> Any:
        return network(x)

    @torch.inference_mode()
    def results() -> Any:
        network.reset()
        y = [network(float(k) * x) for k in STEPS][-1].numpy().copy()
        network.reset()
        return {"y": y}

    return Run(call, results)


class Ring(nn.Module):
    """A dilated convolution, a step at a time; the inputs in a list that begins again at its end."""

    def __init__(self, weight: Tensor, bias: Tensor, taps: int, dilation: int) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.back = [k * dilation for k in reversed(range(taps))]
        self.size, self.at = self.back[0] + 1, 0
        self.zero = torch.zeros(1, weight.shape[1] // taps, dtype=weight.dtype)
        self.rows = [self.zero] * self.size

    def forward(self, x: Tensor) -> Tensor:
        self.rows[self.at] = x
        seen = [self.rows[(self.at + self.size - back) % self.size] for back in self.back]
        self.at = (self.at + 1) % self.size
        return linear(torch.cat(seen, 1), self.weight, self.bias)

    @torch.jit.export
    def reset(self) -> None:
        self.at = 0
        for place in range(self.size):
            self.rows[place] = self.zero


def _convolution(layer: Any) -> Ring:
    """Return a step of one of pyrnn's convolutions, its weights (Cout, K·Cin) in the order of the taps."""
    weight, bias = (torch.from_numpy(array.copy()) for array in layer.folded())
    return Ring(weight.transpose(1, 2).reshape(len(weight), -1).contiguous(), bias, layer.kernel_size, layer.dilation)


class TCN(nn.Module):
    """Residual blocks of two convolutions."""

    def __init__(self, convolutions: list[Ring]) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleList(convolutions[::2]), nn.ModuleList(convolutions[1::2])

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second):  # noqa: B905 - TorchScript knows no strict
            y = torch.relu_(second(torch.relu_(first(x))))
            x = torch.relu_(y.add_(x))
        return x

    @torch.jit.export
    def reset(self) -> None:
        for layer in self.first:
            layer.reset()
        for layer in self.second:
            layer.reset()


def _tcn(data: Any) -> TCN:
    layers = [layer for block in data.model.network for layer in (block.conv1, block.conv2)]
    return TCN([_convolution(layer) for layer in layers])


class WaveNet(nn.Module):
    """Gated convolutions, each with what it adds to the residual and to the skips."""

    def __init__(self, first: Ring, gated: list[Ring], weights: list[Tensor], biases: list[Tensor], C: int) -> None:
        super().__init__()
        self.first, self.gated, self.C = first, nn.ModuleList(gated), C
        self.weights, self.biases = weights, biases  # of the 1×1 convolutions: a layer's, then the head's

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = torch.zeros_like(x)
        layer = 0
        for gated in self.gated:
            z = gated(x)
            h = torch.tanh(z[:, : self.C]).mul_(torch.sigmoid(z[:, self.C :]))
            added = linear(h, self.weights[layer], self.biases[layer])
            layer += 1
            if layer < len(self.gated):  # the last one's residual goes nowhere
                x = x + added[:, : self.C]
                added = added[:, self.C :]
            skips = skips + added
        y = linear(torch.relu(skips), self.weights[layer], self.biases[layer])
        return linear(torch.relu_(y), self.weights[layer + 1], self.biases[layer + 1])

    @torch.jit.export
    def reset(self) -> None:
        self.first.reset()
        for gated in self.gated:
            gated.reset()


def _wavenet(data: Any) -> WaveNet:
    model = data.model
    pointwise = [*(layer.res_skip for layer in model.layers), *model.head]
    folded = [layer.folded() for layer in pointwise]
    weights = [torch.from_numpy(weight[:, :, 0].copy()) for weight, _ in folded]
    biases = [torch.from_numpy(bias.copy()) for _, bias in folded]
    gated = [_convolution(layer.dilated) for layer in model.layers]
    return WaveNet(_convolution(model.input), gated, weights, biases, data.x.shape[1])
