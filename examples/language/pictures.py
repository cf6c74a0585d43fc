"""The pictures: how models learn, and what a head of attention looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"lstm": "C0", "tcn": "C1", "transformer": "C2"}


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, int, float]]], levels: Mapping[str, float], path: Path
) -> None:
    """Draw the bits per byte of held-out text against the time of training and the bytes seen, with fixed levels."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for axes, column, unit, label in zip(
        panels, (0, 1), (1, 1e6), ("seconds of training", "million bytes seen"), strict=True
    ):
        for name, curve in curves.items():
            points = np.array(curve[1:])  # the first is the model as it was drawn, near 8 bits
            axes.plot(points[:, column] / unit, points[:, 2], "o-", color=COLOURS[name], ms=4, label=name)
        for style, (name, bits) in zip(("--", ":"), levels.items(), strict=True):
            axes.axhline(bits, color="0.4", ls=style, lw=1.2, label=name)
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(color="0.93")
    panels[0].set_ylabel("bits per byte of held-out text")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_attention(weights: np.ndarray, line: bytes, title: str, path: Path) -> None:
    """Draw how a head that reads a line looks back over it: a row for each byte, (N, N)."""
    figure, axes = plt.subplots(figsize=(8, 7.4), layout="constrained")
    characters = [{" ": "␣", "\n": "⏎"}.get(character, character) for character in line.decode("ascii", "replace")]
    image: Any = axes.imshow(np.where(np.tri(len(line), dtype=bool), weights, np.nan), cmap="Blues", vmin=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(np.arange(len(line)), characters, family="monospace", fontsize=8)
    axes.tick_params(length=0)
    axes.set(title=title, xlabel="looked at", ylabel="the byte that was read last")
    figure.colorbar(image, label="weight", shrink=0.7)
    figure.savefig(path, dpi=120)
    plt.close(figure)
