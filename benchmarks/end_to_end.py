"""One training step of a small language model, stage by stage: where the time goes, and how much of it must.

Embedding, two LSTM layers, linear, cross-entropy and AdamW on (B, T) tokens, pyrnn and PyTorch from the same weights.
Each stage's floor is the larger of its operations at the measured peak and its bytes at the measured bandwidth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import pyrnn
from pyrnn import nn, optim

from .measure import FEWEST, PAUSE, Ratio, Times, ratio

VOCABULARY = 10_000
LAYERS = 2
STAGES = (
    "embedding", "lstm", "linear", "loss", "loss backward", "linear backward", "lstm backward", "embedding backward",
    "adamw",
)  # fmt: skip
WHOLE = "whole step"
"""The same step, not taken apart: timed on its own."""


@dataclass(frozen=True)
class Size:
    """B×T tokens, embeddings of size I, H units, V words."""

    B: int
    T: int
    I: int
    H: int
    V: int = VOCABULARY

    def costs(self) -> dict[str, tuple[float, float]]:
        """Return each stage's operations and the bytes that it must read and write, in float32."""
        N, I, H, V = self.B * self.T, self.I, self.H, self.V
        inputs = [I, *[H] * (LAYERS - 1)]
        recurrent = sum(4 * H * (size + H + 1) for size in inputs)
        lstm = sum(2.0 * N * 4 * H * (size + H) for size in inputs)
        linear = 2.0 * N * H * V
        parameters = V * I + recurrent + V * (H + 1)
        numbers = {
            "embedding": (0.0, 2 * N * I),
            "lstm": (lstm, N * (I + H) + recurrent),
            "linear": (linear, N * (H + V) + V * H),
            "loss": (0.0, N * V),
            "loss backward": (0.0, 2 * N * V),
            "linear backward": (2 * linear, N * (V + 2 * H) + 2 * V * H),
            "lstm backward": (2 * lstm, 2 * N * (I + H) + 2 * recurrent),
            "embedding backward": (0.0, N * I + V * I),
            "adamw": (0.0, 7 * parameters),  # reads p, g, m, v; writes p, m, v
        }
        return {stage: (flops, 4.0 * count) for stage, (flops, count) in numbers.items()}


@dataclass(frozen=True)
class Trainer:
    """A framework's model: its parts, and the few words in which the frameworks differ.

    Attributes
    ----------
    cut
        Returns a new leaf of the tape on the same memory, which gets a gradient.
    loss
        Takes logits (B, T, V), returns the mean cross-entropy.
    """

    embedding: Callable[[], Any]
    lstm: Callable[[Any], Any]
    linear: Callable[[Any], Any]
    loss: Callable[[Any], Any]
    cut: Callable[[Any], Any]
    optimizer: Any

    def stages(self) -> Iterator[tuple[str, float]]:
        """Run one step taken apart and give each stage with its seconds."""
        lap = time.perf_counter()

        def took() -> float:
            nonlocal lap
            begin, lap = lap, time.perf_counter()
            return lap - begin

        embedded = self.embedding()
        yield "embedding", took()
        x = self.cut(embedded)
        y = self.lstm(x)
        yield "lstm", took()
        features = self.cut(y)
        logits = self.linear(features)
        yield "linear", took()
        scores = self.cut(logits)
        loss = self.loss(scores)
        yield "loss", took()
        loss.backward()
        yield "loss backward", took()
        logits.backward(scores.grad)
        yield "linear backward", took()
        y.backward(features.grad)
        yield "lstm backward", took()
        embedded.backward(x.grad)
        yield "embedding backward", took()
        self.optimizer.step()
        self.optimizer.zero_grad()
        yield "adamw", took()

    def step(self) -> float:
        """Run one step as a user would and return its loss."""
        loss = self.loss(self.linear(self.lstm(self.embedding())))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.item())


def trainers(size: Size, threads: int, peers: list[str]) -> dict[str, Trainer]:
    """Return pyrnn's and, where it is asked for, PyTorch's model with the same weights and tokens."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, size.V, (2, size.B, size.T))
    embedding = nn.Embedding(size.V, size.I, rng=rng)
    lstm, linear = nn.LSTM(size.I, size.H, num_layers=LAYERS, rng=rng), nn.Linear(size.H, size.V, rng=rng)
    found = {
        "pyrnn": Trainer(
            embedding=lambda: embedding(tokens),
            lstm=lambda x: lstm(x)[0],
            linear=linear,
            loss=lambda logits: nn.cross_entropy(logits, targets),
            cut=lambda tensor: pyrnn.Tensor(tensor.data, requires_grad=True),
            optimizer=optim.AdamW([p for part in (embedding, lstm, linear) for p in part.parameters()]),
        )
    }
    if "torch" in peers and find_spec("torch"):
        found["torch"] = _torch(size, threads, (embedding, lstm, linear), tokens, targets)
    return found


def _torch(size: Size, threads: int, parts: Any, tokens: Any, targets: Any) -> Trainer:
    import torch

    import pyrnn.io

    torch.set_num_threads(threads)
    embedding, linear = torch.nn.Embedding(size.V, size.I), torch.nn.Linear(size.H, size.V)
    lstm = torch.nn.LSTM(size.I, size.H, num_layers=LAYERS, batch_first=True)
    for theirs, ours in zip((embedding, lstm, linear), parts, strict=True):
        weights = pyrnn.io.to_torch_state_dict(ours)
        theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    given, wanted = torch.from_numpy(tokens), torch.from_numpy(targets).reshape(-1)
    parameters = [p for part in (embedding, lstm, linear) for p in part.parameters()]
    return Trainer(
        embedding=lambda: embedding(given),
        lstm=lambda x: lstm(x)[0],
        linear=linear,
        loss=lambda logits: torch.nn.functional.cross_entropy(logits.reshape(-1, size.V), wanted),
        cut=lambda tensor: tensor.detach().requires_grad_(),
        optimizer=torch.optim.AdamW(parameters, fused=True),  # its fastest; the other numbers are pyrnn's by default
    )


@dataclass(frozen=True)
class Result:
    """The times of a step by stage, and what they are to be held against.

    ``times[name][stage]``, ``floors[stage]`` and ``ratios[stage]``; stages end with `WHOLE`. The floors are
    milliseconds.
    """

    size: Size
    times: dict[str, dict[str, Times]]
    floors: dict[str, float]
    ratios: dict[str, Ratio]
    losses: dict[str, list[float]]


def measure(
    size: Size,
    rounds: int,
    threads: int,
    peers: list[str],
    peak: Callable[[], float],
    bandwidth: float,
    budget: float = math.inf,
) -> Result:
    """Time a training step by stages, the frameworks in turns.

    Parameters
    ----------
    peak
        Reads the multiply-add peak now, in GFLOP/s: once a round.
    bandwidth : float
        GB/s.
    budget : float
        Seconds after which no further round begins, once there are `FEWEST`.

    Raises
    ------
    RuntimeError
        The frameworks' losses differ after three steps: they don't train the same model.
    """
    end = time.perf_counter() + budget
    models = trainers(size, threads, peers)
    losses = {name: [model.step() for _ in range(3)] for name, model in models.items()}
    for name, values in losses.items():
        if not np.allclose(values, losses["pyrnn"], rtol=1e-4):
            raise RuntimeError(f"end-to-end: the losses of {name}, {values}, are not pyrnn's, {losses['pyrnn']}")
    samples: dict[str, dict[str, list[float]]] = {name: {s: [] for s in (*STAGES, WHOLE)} for name in models}
    peaks = []
    for turn in range(rounds):
        if turn >= FEWEST and time.perf_counter() > end:
            break
        peaks.append(peak())
        for name in list(models)[:: -1 if turn % 2 else 1]:
            time.sleep(PAUSE)
            models[name].step()
            begin = time.perf_counter()
            models[name].step()
            samples[name][WHOLE].append(1e3 * (time.perf_counter() - begin))
            for stage, seconds in models[name].stages():
                samples[name][stage].append(1e3 * seconds)
    rate = max(peaks)  # what else the machine did can only lower a reading
    floors = {stage: 1e-6 * max(flops / rate, moved / bandwidth) for stage, (flops, moved) in size.costs().items()}
    floors[WHOLE] = sum(floors.values())
    ratios = {
        stage: ratio(samples["torch"][stage], samples["pyrnn"][stage])
        for stage in (*STAGES, WHOLE)
        if "torch" in models
    }
    times = {name: {stage: Times(s, 1) for stage, s in stages.items()} for name, stages in samples.items()}
    return Result(size, times, floors, ratios, losses)
