"""Models that run step by step, one row: TCN, WaveNet, and a decoder-only Transformer with its cache of keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .words import parse

OPS = ("tcn", "wavenet", "transformer")
TIMED = ("step",)
MODES = {"step": ("step",)}
PEERS = ("torch", "numba", "reference")
FORM = "CxL, CxLxN"
COLUMN = "C×L×N"
BESIDE: dict[str, tuple[str, str]] = {}
TAPS = {"tcn": 3, "wavenet": 2}
"""The kernel sizes; dilations double from layer to layer."""
TOKENS = 512
"""The tokens that a Transformer has read before, where a shape doesn't say."""
TURN = 64
"""After how many tokens a Transformer goes back to those it had read before: its steps would cost more and more."""

Shape = tuple[int, int, int]
"""C, L, N."""

DEFAULTS: dict[str, list[Shape]] = {
    "tcn": [(32, 6, TOKENS), (64, 8, TOKENS), (128, 8, TOKENS)],
    "wavenet": [(32, 10, TOKENS), (64, 10, TOKENS), (128, 10, TOKENS)],
    "transformer": [(128, 2, TOKENS), (256, 4, TOKENS), (512, 6, TOKENS)],
}
SETS: dict[str, list[Shape]] = {"grid": [(C, L, TOKENS) for C in (32, 64, 128, 256) for L in (4, 8)]}


@dataclass(frozen=True)
class Case:
    """One thing to be timed: a step of a model of L layers of C channels; N tokens a Transformer has read before."""

    family: ClassVar[str] = "models"
    op: str
    mode: str
    C: int
    L: int
    N: int
    dtype: str

    trains: ClassVar[bool] = False

    @property
    def shape(self) -> str:
        """C×L×N as ``--shapes`` takes it, N where it counts."""
        return f"{self.C}x{self.L}" + (f"x{self.N}" if self.op == "transformer" else "")

    @property
    def sizes(self) -> dict[str, int]:
        return {"C": self.C, "L": self.L, "N": self.N}

    @property
    def heads(self) -> int:
        """Of a Transformer: one for 64 channels, where they divide."""
        return self.C // 64 if self.C % 64 == 0 else 1

    @property
    def weights(self) -> int:
        """The weights of a step's matrix products.

        A TCN's layer has two convolutions, a WaveNet's a gated one and two 1×1 (with one in front of all, two behind
        and no residual of the last), a Transformer's four projections and a feed-forward part four times as wide.
        """
        square = self.C * self.C
        if self.op == "tcn":
            return self.L * 2 * TAPS["tcn"] * square
        if self.op == "wavenet":
            return (self.L * (2 * TAPS["wavenet"] + 2) + TAPS["wavenet"] + 2 - 1) * square
        return self.L * 12 * square

    @property
    def flops(self) -> float:
        """Additions and multiplications in the matrix products of a step."""
        return 2.0 * self.weights + (4.0 * self.L * self.N * self.C if self.op == "transformer" else 0.0)

    @property
    def bytes(self) -> float:
        """What must be moved at least: weights, keys and values read."""
        cached = 2 * self.L * self.N * self.C if self.op == "transformer" else 0
        return float(np.dtype(self.dtype).itemsize * (self.weights + cached + 2 * self.C))


@dataclass(frozen=True)
class Data:
    """What a case is run on: a pyrnn model, whose weights every contender gets, a step, and a Transformer's past."""

    model: Any
    x: np.ndarray[Any, Any]
    past: np.ndarray[Any, Any]


def draw_data(case: Case) -> Data:
    """Draw a case's weights and arrays, the same ones every time."""
    from pyrnn import nn

    rng = np.random.default_rng(0)
    kind = np.dtype(case.dtype).type
    C, L = case.C, case.L
    model: Any
    if case.op == "tcn":
        model = nn.TCN(C, [C] * L, TAPS["tcn"], dropout=0.0, dtype=case.dtype, rng=rng)
    elif case.op == "wavenet":
        model = nn.WaveNet(
            C, residual_channels=C, skip_channels=C, output_size=C, num_layers=L, num_stacks=1,
            kernel_size=TAPS["wavenet"], dtype=case.dtype, rng=rng,
        )  # fmt: skip
    else:
        options = {"norm_first": True, "dropout": 0.0, "dtype": case.dtype}
        model = nn.Transformer(L, C, case.heads, 4 * C, rng=rng, **options)
    past = rng.standard_normal((1, case.N, C), kind)
    return Data(model.eval(), rng.standard_normal((1, C), kind), past)


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes that ``--shapes`` names: sets, CxL or CxLxN, comma-separated.

    Raises
    ------
    ValueError
        A word is none of these.
    """
    return parse(text, SETS, FORM, _shape_of)


def _shape_of(word: str) -> Shape | None:
    """Return the shape that a word is, or None."""
    sizes = word.split("x")
    if len(sizes) not in (2, 3) or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        return None
    C, L, *tokens = map(int, sizes)
    return C, L, *(tokens or [TOKENS])


def draw_shapes(count: int, seed: int) -> list[Shape]:
    """Draw shapes log-uniformly: C in 16..512, L in 2..12, N in 16..2048."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log([16, 2, 16]), np.log([513, 13, 2049]), (count, 3)))
    return [(math.floor(C), math.floor(L), math.floor(N)) for C, L, N in sizes]


def plan(ops: list[str], mode: str, given: list[Shape] | None, dtype: str) -> tuple[list[Case], list[str]]:
    """Return a mode's cases in their order; N counts for the Transformer alone."""
    cases = [Case(op, mode, *shape, dtype) for op in ops for shape in (DEFAULTS[op] if given is None else given)]
    return list({(case.op, case.shape): case for case in cases}.values()), []
