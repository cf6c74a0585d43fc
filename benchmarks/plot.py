"""The picture of a run: best peer / pyrnn over the shapes, and a roofline. Also of a file that a run has written:

python -m benchmarks.plot results.json plot.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

COLOURS = {"rnn": "#1b9e77", "lstm": "#d95f02", "gru": "#7570b3"}
MARKERS = "osD^vPXh"
DENSE = 0.35  # of a grid's places that must hold a cell for a heat map; shapes further apart are drawn as a list
WIDEST = 8.0  # the ratio at which colours end, and its inverse


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw what `Record.to_json` gives, into a PNG file.

    Parameters
    ----------
    document
        With at least one cell.
    path
        The file to write.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        if cell["best"]:
            groups.setdefault((cell["mode"], cell["op"]), []).append(cell)
    panels = [*groups.items(), (("", ""), document["cells"])]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = max(3.6, *(0.3 * _lines(cells) + 1.4 for _, cells in panels))
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, height * rows), squeeze=False)
    for axis, ((mode, op), cells) in zip(axes.flat, panels, strict=False):
        if not mode:
            _roofline(axis, cells, document["bandwidth_gbs"])
        elif _dense(cells):
            _heat_map(axis, cells, f"{op}, {mode}")
        else:
            _list(axis, cells, f"{op}, {mode}")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    e = document["environment"]
    figure.suptitle(
        f"Best peer's time / pyrnn's (above 1: pyrnn is faster). {e['cpu']}, {e['threads']} threads, "
        f"ISA level {e['isa']}, {document['settings']['dtype']}",
        fontsize=10,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _places(cells: list[dict[str, Any]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the (H, I) that are rows, those with I = H first, and the (B, T) that are columns."""
    features = {(c["H"], c["I"]) for c in cells}
    return sorted(features, key=lambda pair: (pair[0] != pair[1], pair)), sorted({(c["B"], c["T"]) for c in cells})


def _dense(cells: list[dict[str, Any]]) -> bool:
    down, across = _places(cells)
    return len(cells) >= DENSE * len(down) * len(across)


def _lines(cells: list[dict[str, Any]]) -> int:
    return len(_places(cells)[0]) if _dense(cells) else len(cells)


def _shape(cell: dict[str, Any]) -> str:
    return f"{cell['B']}×{cell['T']}×{_features(cell['H'], cell['I'])}"


def _features(H: int, I: int) -> str:
    return str(H) if I == H else f"{I}→{H}"


def _heat_map(axis: Any, cells: list[dict[str, Any]], title: str) -> None:
    down, across = _places(cells)
    image = [[float("nan")] * len(across) for _ in down]
    for cell in cells:
        i, j = down.index((cell["H"], cell["I"])), across.index((cell["B"], cell["T"]))
        best = cell["best"]
        image[i][j] = best["median"]
        sure = best["high"] is not None and best["high"] < 1
        text = f"{best['median']:.2f}" if best["median"] < 10 else f"{best['median']:.0f}"
        dark = not 0.3 < best["median"] < 3.3
        axis.text(
            j, i, text, ha="center", va="center", fontsize=7, weight="bold" if sure else None,
            color="white" if dark else "black",
        )  # fmt: skip
    axis.imshow(image, cmap="RdBu", norm=LogNorm(1 / WIDEST, WIDEST), aspect="auto")
    axis.set_facecolor("0.8")  # what was not run
    axis.set_xticks(range(len(across)), [f"{B}×{T}" for B, T in across], fontsize=7, rotation=60)
    axis.set_yticks(range(len(down)), [_features(H, I) for H, I in down], fontsize=7)
    axis.set(xlabel="B×T", ylabel="H, or I→H")
    axis.set_title(f"{title} (bold: surely below 1)", fontsize=9)


def _list(axis: Any, cells: list[dict[str, Any]], title: str) -> None:
    ordered = sorted(cells, key=lambda cell: cell["best"]["median"])
    for place, cell in enumerate(ordered):
        best = cell["best"]
        colour = COLOURS[cell["op"]]
        if best["low"] is not None:
            axis.plot([best["low"], best["high"]], [place, place], color=colour, lw=2)
        axis.plot(best["median"], place, "o", color=colour, ms=5)
    axis.axvline(1, color="black", lw=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(ordered)), [f"{_shape(cell)}  {cell['best']['peer']}" for cell in ordered], fontsize=7)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50) if _in(t, ordered)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(f"{title}, with 95% intervals", fontsize=9)


def _in(tick: float, cells: list[dict[str, Any]]) -> bool:
    ends = [value for c in cells for value in (c["best"]["low"], c["best"]["median"], c["best"]["high"]) if value]
    return tick == 1 or min(ends) / 1.5 <= tick <= max(ends) * 1.5


def _roofline(axis: Any, cells: list[dict[str, Any]], bandwidth: float) -> None:
    peak = max(cell["peak_gflops"] for cell in cells)
    intensities = [cell["flops"] / cell["bytes"] for cell in cells]
    low, high = min(*intensities, peak / bandwidth) / 2, max(*intensities, peak / bandwidth) * 2
    axis.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", lw=1)
    modes = list(dict.fromkeys(cell["mode"] for cell in cells))
    for cell, intensity in zip(cells, intensities, strict=True):
        own = cell["contenders"]["pyrnn"]["median_ms"]
        colour, marker = COLOURS[cell["op"]], MARKERS[modes.index(cell["mode"])]
        if cell["best"]:
            theirs = cell["contenders"][cell["best"]["peer"]]["median_ms"]
            rates = [1e-6 * cell["flops"] / time for time in (own, theirs)]
            axis.plot([intensity, intensity], rates, color="0.75", lw=1, zorder=1)
            axis.plot(intensity, rates[1], marker, color="white", mec=colour, ms=4, zorder=2)
        axis.plot(intensity, 1e-6 * cell["flops"] / own, marker, color=colour, ms=5, zorder=3)
    for mode, marker in zip(modes, MARKERS, strict=False):
        axis.plot([], [], marker, color="0.4", label=mode)
    for op in dict.fromkeys(cell["op"] for cell in cells):
        axis.plot([], [], "s", color=COLOURS[op], label=op)
    axis.plot([], [], "o", color="white", mec="0.4", label="best peer")
    axis.set(xscale="log", yscale="log", xlabel="operations a byte that must move", ylabel="GFLOP/s")
    axis.legend(fontsize=7, loc="lower right")
    axis.grid(alpha=0.3)
    axis.set_title(f"Roofline: {peak:.0f} GFLOP/s, memory {bandwidth:.0f} GB/s", fontsize=9)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: python -m benchmarks.plot FILE.json FILE.png, got {len(sys.argv) - 1} arguments")
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
