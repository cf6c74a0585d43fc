"""The recurrent family's cases: rnn, lstm and gru, forward, training and step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .words import parse

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
OPS = tuple(GATES)
TIMED = ("forward", "op", "train", "step", "ragged-forward", "ragged-train", "stacked-forward", "stacked-train")
MODES = {
    "forward": ("forward",),
    "op": ("op",),
    "train": ("train",),
    "step": ("step",),
    "ragged": ("ragged-forward", "ragged-train"),
    "stacked": ("stacked-forward", "stacked-train"),
    "memory": ("memory",),
    "end-to-end": ("end-to-end",),
}
"""What ``--mode`` takes, and the modes that each word stands for."""
PEERS = ("torch", "onnxruntime", "openvino", "numba", "reference")
FORM = "BxTxH, BxTxIxH"
COLUMN = "B×T×I×H"
BESIDE = {mode: ("padded", "÷ padded × fill") for mode in TIMED if mode.startswith("ragged")}
"""By mode, pyrnn's own second run that a case is held against, and the heading of what comes of it."""

Shape = tuple[int, int, int, int]
"""B, T, I, H."""

GRID_FLOPS = 1.1e11
"""What one LSTM forward of a cell of ``grid`` costs at most; ``full`` has the cells above it too."""
RANDOM_FLOPS = 2e10
"""The same bound for shapes that are drawn."""


def lstm_flops(shape: Shape) -> float:
    """Return the operations of one LSTM forward, by which sets of shapes are bounded."""
    B, T, I, H = shape
    return 2.0 * B * T * 4 * H * (I + H)


def _product(batches: Iterable[int], times: Iterable[int], hiddens: Iterable[int]) -> list[Shape]:
    return [(B, T, H, H) for H in hiddens for B in batches for T in times]


FULL = _product((1, 8, 32, 64, 128), (1, 50, 100, 400), (64, 128, 256, 512, 1024))
ODD: list[Shape] = [
    *_product((1, 32), (100,), (50, 100, 300, 650)),
    *((B, 100, I, H) for B in (1, 32) for I, H in ((40, 256), (256, 100), (1024, 128), (13, 650))),
]
README: list[Shape] = [
    *((1, 1, 64, 64), (1, 100, 256, 256), (8, 100, 100, 100), (32, 100, 128, 128), (32, 100, 256, 256)),
    *((64, 50, 512, 512), (1, 50, 1024, 1024)),
]
SETS: dict[str, list[Shape]] = {
    "readme": README,
    "grid": [*(shape for shape in FULL if lstm_flops(shape) <= GRID_FLOPS), *ODD],
    "odd": ODD,
    "full": [*FULL, *ODD],
}
"""The shapes that ``--shapes`` takes by name."""

DEFAULTS: dict[str, list[Shape]] = {
    "step": [(1, 1, H, H) for H in (64, 128, 256, 512, 1024)],
    "ragged": [(32, 100, 128, 128), (32, 100, 256, 256), (64, 400, 64, 64)],
    "stacked": [(1, 100, 128, 128), (32, 100, 128, 128), (32, 100, 256, 256)],
    "memory": [(32, 100, 256, 256), (64, 400, 128, 128)],
    "end-to-end": [(32, 100, 256, 256)],
}
"""The shapes of a mode where none are given; ``readme`` for all others."""


@dataclass(frozen=True)
class Case:
    """One thing to be timed: ``op`` in ``mode`` on arrays of ``shape`` and ``dtype``."""

    family: ClassVar[str] = "recurrent"
    op: str
    mode: str
    B: int
    T: int
    I: int
    H: int
    dtype: str

    @property
    def shape(self) -> str:
        """B×T×I×H as ``--shapes`` takes it, without I where it is H."""
        return "x".join(map(str, (self.B, self.T, self.H) if self.I == self.H else (self.B, self.T, self.I, self.H)))

    @property
    def sizes(self) -> dict[str, int]:
        return {"B": self.B, "T": self.T, "I": self.I, "H": self.H}

    @property
    def trains(self) -> bool:
        """Whether a backward pass belongs to it."""
        return self.mode.endswith("train") or self.mode == "memory"

    @property
    def ragged(self) -> bool:
        return self.mode.startswith("ragged")

    @property
    def stacked(self) -> bool:
        """Whether it is two layers in both directions, and not one in one."""
        return self.mode.startswith("stacked")

    @property
    def lengths(self) -> np.ndarray[Any, Any] | None:
        """The valid steps of each row: uniform in T/10..T in the ragged modes, else None."""
        if not self.ragged:
            return None
        return np.random.default_rng(0).integers(max(1, self.T // 10), self.T, self.B, endpoint=True)

    @property
    def steps(self) -> int:
        """The valid steps of all rows."""
        lengths = self.lengths
        return self.B * self.T if lengths is None else int(lengths.sum())

    @property
    def flops(self) -> float:
        """Additions and multiplications in the matrix products; a backward pass counts twice the forward."""
        rows = 2.0 * self.steps * GATES[self.op] * self.H
        forward = rows * (self.I + self.H)
        if self.stacked:
            forward = 2 * forward + 2 * rows * 3 * self.H
        return forward * (3 if self.trains else 1)

    @property
    def bytes(self) -> float:
        """What must be moved at least: inputs read, outputs written, weights read (and gradients of all, written)."""
        width, gates = np.dtype(self.dtype).itemsize, GATES[self.op] * self.H
        weights = gates * (self.I + self.H)
        outputs = self.H
        if self.stacked:
            weights, outputs = 2 * weights + 2 * gates * 3 * self.H, 2 * self.H
        once = self.steps * (self.I + outputs) + weights
        return float(width * once * (2 if self.trains else 1))

    @property
    def results_bytes(self) -> float:
        """What training must hold at the end: y and the gradients of x, the states and the weights."""
        return self.bytes / 2

    def beside(self, ratio: float) -> float:
        """Return the time by padded time times the share of valid steps: 1 is work that follows the valid steps."""
        return 1 / (ratio * self.steps / (self.B * self.T))

    def tiny(self) -> Case:
        """Return a case that calls the same and holds next to nothing."""
        return replace(self, B=2, T=2)


@dataclass(frozen=True)
class Data:
    """What a case is run on: a pyrnn layer, whose weights every contender gets, and arrays."""

    model: Any
    x: np.ndarray[Any, Any]
    states: tuple[np.ndarray[Any, Any], ...]
    dy: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any] | None


def draw_data(case: Case) -> Data:
    """Draw a case's weights and arrays, the same ones every time."""
    from pyrnn import nn

    rng = np.random.default_rng(0)
    layers = {"num_layers": 2, "bidirectional": True} if case.stacked else {}
    model = getattr(nn, case.op.upper())(case.I, case.H, dtype=case.dtype, rng=rng, **layers)
    kind = np.dtype(case.dtype).type
    width = case.H * (2 if case.stacked else 1)
    x = rng.standard_normal((case.B, case.T, case.I), kind)
    states = tuple(rng.uniform(-1, 1, (case.B, case.H)).astype(kind) for _ in model.leaves)
    dy = rng.standard_normal((case.B, case.T, width), kind)
    lengths = case.lengths
    if lengths is not None:
        for row, length in enumerate(lengths):
            dy[row, length:] = 0
    return Data(model, x, states, dy, lengths)


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes that ``--shapes`` names: sets, BxTxH or BxTxIxH, comma-separated.

    Raises
    ------
    ValueError
        A word is none of these.
    """
    return parse(text, SETS, FORM, _shape_of)


def _shape_of(word: str) -> Shape | None:
    """Return the shape that a word is, or None."""
    sizes = word.split("x")
    if len(sizes) not in (3, 4) or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        return None
    B, T, *features = map(int, sizes)
    return B, T, features[0], features[-1]


def draw_shapes(count: int, seed: int) -> list[Shape]:
    """Draw shapes log-uniformly: B in 1..128, T in 1..400, I and H in 8..1024, within `RANDOM_FLOPS`."""
    rng = np.random.default_rng(seed)
    low, high = np.log([1, 1, 8, 8]), np.log([129, 401, 1025, 1025])  # whole numbers: each size has its own interval
    found: list[Shape] = []
    while len(found) < count:
        B, T, I, H = (math.floor(size) for size in np.exp(rng.uniform(low, high)))
        if lstm_flops((B, T, I, H)) <= RANDOM_FLOPS:
            found.append((B, T, I, H))
    return found


def shapes_for(mode: str, given: list[Shape] | None) -> tuple[list[Shape], str]:
    """Return a mode's shapes, and a note on what was done with those that were given.

    ``step`` is one step of one row: of a shape only I and H count. ``ragged`` needs 32 rows of 10 steps.
    """
    word = next(word for word, modes in MODES.items() if mode in modes)
    shapes = DEFAULTS.get(word, SETS["readme"]) if given is None else given
    if word == "step":
        return list(dict.fromkeys((1, 1, I, H) for _, _, I, H in shapes)), ""
    if word == "ragged":
        fit = [shape for shape in shapes if shape[0] >= 32 and shape[1] >= 10]
        left = len(shapes) - len(fit)
        return fit, f"{left} of {len(shapes)} shapes left out: it takes B ≥ 32 and T ≥ 10" if left else ""
    return shapes, ""


def plan(ops: list[str], mode: str, given: list[Shape] | None, dtype: str) -> tuple[list[Case], list[str]]:
    """Return a mode's cases in their order, and notes on what was left out."""
    shapes, note = shapes_for(mode, given)
    ops = ["lstm"] if mode == "end-to-end" else ops
    return [Case(op, mode, *shape, dtype) for op in ops for shape in shapes], [f"{mode}: {note}"] if note else []
