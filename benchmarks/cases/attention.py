"""The attention family's cases: every key, those before, or the last `WINDOW`; forward, training, and one token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from .words import parse

OPS = ("full", "causal", "window")
WINDOW = 256
"""The keys that a query of ``window`` attends to: its own and those before it."""
TIMED = ("forward", "train", "decode")
MODES = {
    "forward": ("forward",),
    "train": ("train",),
    "decode": ("decode",),
    "memory": ("memory-forward", "memory-train"),
}
PEERS = ("torch", "onnxruntime", "openvino", "numba", "reference")
FORM = "BxHxNxD, BxHq/HkvxNxD"
COLUMN = "B×H×N×D"
BESIDE = {mode: ("full", "own full ÷") for mode in ("forward", "train")}

Shape = tuple[int, int, int, int, int]
"""B, Hq, Hkv, N, D."""

GRID_FLOPS = 3e11
"""What one forward over every key costs at most in a cell of ``grid``; ``full`` has the cells above it too."""
RANDOM_FLOPS = 5e10
"""The same bound for shapes that are drawn."""
SCALE = 3
"""What queries are multiplied by: weights near 1 / N would leave nothing to see a wrong one by."""


def full_flops(shape: Shape) -> float:
    """Return the operations of one forward over every key, by which sets of shapes are bounded."""
    B, heads, _, N, D = shape
    return 4.0 * B * heads * N * N * D


FULL: list[Shape] = [
    (B, 8, 8, N, D) for B in (1, 8) for N in (128, 512, 2048, 8192) for D in (32, 64, 128)
]  # fmt: skip
ODD: list[Shape] = [
    (2, 6, 6, 333, 48), (1, 5, 5, 1000, 80), (3, 7, 7, 129, 17), (1, 12, 12, 1023, 64), (1, 8, 2, 1024, 64),
    (1, 32, 4, 512, 128), (4, 16, 1, 300, 64),
]  # fmt: skip
README: list[Shape] = [
    (1, 8, 8, 128, 64), (1, 8, 8, 512, 64), (1, 8, 8, 2048, 64), (8, 8, 8, 512, 64), (1, 8, 2, 1024, 64),
]  # fmt: skip
SETS: dict[str, list[Shape]] = {
    "readme": README,
    "grid": [*(shape for shape in FULL if full_flops(shape) <= GRID_FLOPS), *ODD],
    "odd": ODD,
    "full": [*FULL, *ODD],
}
DEFAULTS: dict[str, list[Shape]] = {
    "decode": [(1, 8, 8, 4096, 64), (8, 8, 8, 4096, 64), (1, 8, 8, 4096, 128), (1, 32, 8, 4096, 128)],
    "memory": [(1, 1, 1, 8192, 64), (1, 8, 8, 8192, 64)],
}


@dataclass(frozen=True)
class Case:
    """One thing to be timed: ``op`` says which keys a query attends to.

    N is the number of queries and of keys; in ``decode``, where there is one query, that of the keys.
    """

    family: ClassVar[str] = "attention"
    op: str
    mode: str
    B: int
    Hq: int
    Hkv: int
    N: int
    D: int
    dtype: str

    @property
    def shape(self) -> str:
        """B×H×N×D as ``--shapes`` takes it, H as Hq/Hkv where heads are shared."""
        heads = f"{self.Hq}" if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        return f"{self.B}x{heads}x{self.N}x{self.D}"

    @property
    def sizes(self) -> dict[str, int]:
        return {"B": self.B, "Hq": self.Hq, "Hkv": self.Hkv, "N": self.N, "D": self.D}

    @property
    def trains(self) -> bool:
        return self.mode.endswith("train")

    @property
    def queries(self) -> int:
        return 1 if self.mode == "decode" else self.N

    @property
    def keys_read(self) -> int:
        """The keys that any query attends to."""
        return min(self.N, WINDOW) if self.mode == "decode" and self.op == "window" else self.N

    @property
    def options(self) -> dict[str, Any]:
        """What pyrnn's op is told."""
        return {"full": {}, "causal": {"causal": True}, "window": {"window": (WINDOW - 1, 0)}}[self.op]

    @property
    def mask(self) -> np.ndarray[Any, Any] | None:
        """Booleans (N, M), True where a query may attend to a key; None where it may to all."""
        if self.op == "full":
            return None
        before = np.arange(self.N - self.queries, self.N)[:, None] - np.arange(self.N)
        return (before >= 0) & (before < (WINDOW if self.op == "window" else self.N))

    @property
    def pairs(self) -> int:
        """The queries and keys of a head that meet."""
        if self.mode == "decode":
            return self.keys_read
        if self.op == "full":
            return self.N * self.N
        most = min(self.N, WINDOW) if self.op == "window" else self.N
        return most * (most + 1) // 2 + (self.N - most) * most

    @property
    def flops(self) -> float:
        """Additions and multiplications for the pairs that meet; a backward pass counts twice the forward."""
        return 4.0 * self.B * self.Hq * self.pairs * self.D * (3 if self.trains else 1)

    @property
    def bytes(self) -> float:
        """What must be moved at least: inputs read and outputs written (and gradients of all)."""
        rows = 2 * self.Hq * self.queries + 2 * self.Hkv * self.keys_read
        return float(np.dtype(self.dtype).itemsize * self.B * rows * self.D * (2 if self.trains else 1))

    @property
    def results_bytes(self) -> float:
        """What a call must hold at the end: y, and in training the gradients of q, k and v."""
        rows = self.Hq * self.N + (self.Hq + 2 * self.Hkv) * self.N * self.trains
        return float(np.dtype(self.dtype).itemsize * self.B * rows * self.D)

    @property
    def scores_bytes(self) -> float:
        """The matrix of scores, which nobody needs to hold."""
        return float(np.dtype(self.dtype).itemsize * self.B * self.Hq * self.queries * self.N)

    def beside(self, ratio: float) -> float:
        """Return the time over every key divided by this one's, which is the ratio itself."""
        return ratio

    def tiny(self) -> Case:
        """Return a case that calls the same and holds next to nothing."""
        return replace(self, N=2)


@dataclass(frozen=True)
class Data:
    """What a case is run on: q and dy (B, Hq, N, D), k and v (B, Hkv, M, D)."""

    q: np.ndarray[Any, Any]
    k: np.ndarray[Any, Any]
    v: np.ndarray[Any, Any]
    dy: np.ndarray[Any, Any]


def draw_data(case: Case) -> Data:
    """Draw a case's arrays, the same ones every time."""
    rng = np.random.default_rng(0)
    kind = np.dtype(case.dtype).type
    q, dy = (rng.standard_normal((case.B, case.Hq, case.queries, case.D), kind) for _ in range(2))
    k, v = (rng.standard_normal((case.B, case.Hkv, case.N, case.D), kind) for _ in range(2))
    return Data(kind(SCALE) * q, k, v, dy)


def parse_shapes(text: str) -> list[Shape]:
    """Return the shapes that ``--shapes`` names: sets, BxHxNxD or BxHq/HkvxNxD, comma-separated.

    Raises
    ------
    ValueError
        A word is none of these, or Hq is no multiple of Hkv.
    """
    return parse(text, SETS, FORM, _shape_of)


def _shape_of(word: str) -> Shape | None:
    """Return the shape that a word is, or None."""
    sizes = word.split("x")
    heads = sizes[1].split("/") if len(sizes) == 4 else []
    numbers = [*sizes[:1], *heads, *sizes[2:]]
    if len(heads) not in (1, 2) or not all(number.isdecimal() and int(number) for number in numbers):
        return None
    if int(heads[0]) % int(heads[-1]):
        raise ValueError(f"expected Hq that is a multiple of Hkv, got {word!r}")
    return int(sizes[0]), int(heads[0]), int(heads[-1]), int(sizes[2]), int(sizes[3])


def draw_shapes(count: int, seed: int) -> list[Shape]:
    """Draw shapes log-uniformly: B in 1..8, Hkv in 1..16, N in 64..8192, D in 16..128; a quarter shares its heads."""
    rng = np.random.default_rng(seed)
    low, high = np.log([1, 1, 64, 16]), np.log([9, 17, 8193, 129])  # whole numbers: each size has its own interval
    found: list[Shape] = []
    while len(found) < count:
        B, heads, N, D = (math.floor(size) for size in np.exp(rng.uniform(low, high)))
        shape = (B, heads * int(rng.choice([1, 1, 1, 1, 1, 1, 2, 4])), heads, N, D)
        if full_flops(shape) <= RANDOM_FLOPS:
            found.append(shape)
    return found


def plan(ops: list[str], mode: str, given: list[Shape] | None, dtype: str) -> tuple[list[Case], list[str]]:
    """Return a mode's cases in their order, and notes on what was left out."""
    word = next(word for word, modes in MODES.items() if mode in modes)
    shapes = DEFAULTS.get(word, README) if given is None else given
    notes = []
    if mode == "decode" and "full" in ops:
        ops = [op for op in ops if op != "full"]
        notes = ["decode: full left out: a last token's every key is causal's"]
    return [Case(op, mode, *shape, dtype) for op in ops for shape in shapes], notes
