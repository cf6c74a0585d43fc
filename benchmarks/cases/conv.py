"""The convolution family's cases: dense and depthwise causal convolutions, forward and training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .words import parse

OPS = ("dense", "depthwise")
TIMED = ("forward", "op", "train")
MODES = {mode: (mode,) for mode in TIMED}
PEERS = ("torch", "onnxruntime", "openvino", "numba", "reference")
FORM = "BxTxC, BxTxCinxCout, with kK and dDILATION behind (k3d1)"
COLUMN = "B×T×Cin×Cout, k, d"
BESIDE: dict[str, tuple[str, str]] = {}

Shape = tuple[int, int, int, int, int, int]
"""B, T, Cin, Cout, K, dilation."""

WORD = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(?:x([1-9]\d*))?(?:k([1-9]\d*))?(?:d([1-9]\d*))?")
RANDOM_FLOPS = 2e10
"""What one dense forward of a shape that is drawn costs at most."""


def dense_flops(shape: Shape) -> float:
    """Return the operations of one dense forward, by which shapes that are drawn are bounded."""
    B, T, inputs, outputs, taps, _ = shape
    return 2.0 * B * T * inputs * outputs * taps


def _square(B: int, T: int, channels: Any, taps: Any, dilations: Any) -> list[Shape]:
    return [(B, T, C, C, K, d) for C in channels for K in taps for d in dilations]


ODD: list[Shape] = [
    (1, 100, 50, 50, 3, 1), (32, 100, 40, 256, 3, 2), (1, 16000, 64, 64, 2, 256), (4, 333, 100, 300, 5, 7),
    (16, 400, 256, 80, 4, 16), (2, 1000, 33, 65, 6, 33),
]  # fmt: skip
README: list[Shape] = [
    (16, 400, 64, 64, 3, 1), (16, 400, 128, 128, 3, 8), (8, 1024, 256, 256, 2, 64), (1, 16000, 32, 32, 2, 512),
    (8, 1024, 512, 512, 3, 1), (8, 1024, 64, 64, 7, 1),
]  # fmt: skip
SETS: dict[str, list[Shape]] = {
    "readme": README,
    "grid": [*_square(8, 1024, (32, 64, 128, 256, 512), (2, 3, 7), (1, 16, 512)), *ODD],
    "odd": ODD,
    "full": [*_square(8, 1024, (32, 64, 128, 256, 512), range(2, 8), (1, 2, 8, 32, 128, 512)), *ODD],
}


@dataclass(frozen=True)
class Case:
    """One thing to be timed: ``depthwise`` has a group for each channel, and as many outputs as inputs."""

    family: ClassVar[str] = "conv"
    op: str
    mode: str
    B: int
    T: int
    Cin: int
    Cout: int
    K: int
    dilation: int
    dtype: str

    @property
    def shape(self) -> str:
        """The shape as ``--shapes`` takes it, without Cout where it is Cin."""
        channels = f"{self.Cin}" if self.Cin == self.Cout else f"{self.Cin}x{self.Cout}"
        return f"{self.B}x{self.T}x{channels}k{self.K}d{self.dilation}"

    @property
    def sizes(self) -> dict[str, int]:
        return {"B": self.B, "T": self.T, "Cin": self.Cin, "Cout": self.Cout, "K": self.K, "dilation": self.dilation}

    @property
    def trains(self) -> bool:
        return self.mode == "train"

    @property
    def groups(self) -> int:
        return self.Cin if self.op == "depthwise" else 1

    @property
    def context(self) -> int:
        """The steps before the first that it looks at."""
        return (self.K - 1) * self.dilation

    @property
    def flops(self) -> float:
        """Additions and multiplications; a backward pass counts twice the forward."""
        return 2.0 * self.B * self.T * self.Cout * (self.Cin // self.groups) * self.K * (3 if self.trains else 1)

    @property
    def bytes(self) -> float:
        """What must be moved at least: inputs and weights read, outputs written (and gradients of all, written)."""
        once = self.B * self.T * (self.Cin + self.Cout) + self.Cout * (self.Cin // self.groups * self.K + 1)
        return float(np.dtype(self.dtype).itemsize * once * (2 if self.trains else 1))


@dataclass(frozen=True)
class Data:
    """What a case is run on: x (B, T, Cin), w (Cout, Cin / groups, K), b (Cout,) and dy (B, T, Cout)."""

    x: np.ndarray[Any, Any]
    w: np.ndarray[Any, Any]
    b: np.ndarray[Any, Any]
    dy: np.ndarray[Any, Any]


def draw_data(case: Case) -> Data:
    """Draw a case's weights and arrays, the same ones every time."""
    rng = np.random.default_rng(0)
    kind = np.dtype(case.dtype).type
    inputs = case.Cin // case.groups
    limit = (inputs * case.K) ** -0.5
    x = rng.standard_normal((case.B, case.T, case.Cin), kind)
    w = rng.uniform(-limit, limit, (case.Cout, inputs, case.K)).astype(kind)
    b = rng.uniform(-limit, limit, case.Cout).astype(kind)
    return Data(x, w, b, rng.standard_normal((case.B, case.T, case.Cout), kind))


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes that ``--shapes`` names: sets, or sizes as in 16x400x128x64k3d8, comma-separated.

    Raises
    ------
    ValueError
        A word is none of these.
    """
    return parse(text, SETS, f"{FORM},", _shape_of)


def _shape_of(word: str) -> Shape | None:
    """Return the shape that a word is, or None."""
    sizes = WORD.fullmatch(word)
    if not sizes:
        return None
    B, T, inputs, outputs, taps, dilation = sizes.groups()
    return int(B), int(T), int(inputs), int(outputs or inputs), int(taps or 3), int(dilation or 1)


def draw_shapes(count: int, seed: int) -> list[Shape]:
    """Draw shapes: B in 1..32, T in 16..4096, channels in 32..512, dilation in 1..512 log-uniformly, K in 2..7."""
    rng = np.random.default_rng(seed)
    low, high = np.log([1, 16, 32, 32, 1]), np.log([33, 4097, 513, 513, 513])  # whole numbers, each its own interval
    found: list[Shape] = []
    while len(found) < count:
        B, T, inputs, outputs, dilation = (math.floor(size) for size in np.exp(rng.uniform(low, high)))
        shape = (B, T, inputs, outputs, int(rng.integers(2, 8)), dilation)
        if dense_flops(shape) <= RANDOM_FLOPS:
            found.append(shape)
    return found


def plan(ops: list[str], mode: str, given: list[Shape] | None, dtype: str) -> tuple[list[Case], list[str]]:
    """Return a mode's cases in their order; of a shape ``depthwise`` takes Cin alone."""
    shapes = README if given is None else given
    alone = list(dict.fromkeys((B, T, C, C, K, d) for B, T, C, _, K, d in shapes))
    return [Case(op, mode, *s, dtype) for op in ops for s in (alone if op == "depthwise" else shapes)], []
