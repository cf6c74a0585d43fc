"""The picture of a run: best peer / pyrnn over the shapes, and a roofline. Also of a file that a run has written:

python -m benchmarks.plot results.json plot.png
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

COLOURS = ("#1b9e77", "#d95f02", "#7570b3")
MARKERS = "osD^vPXh"
DENSE = 0.35  # of a grid's places that must hold a cell for a heat map; shapes further apart are drawn as a list
WIDEST = 8.0  # the ratio at which colours end, and its inverse


@dataclass(frozen=True)
class Places:
    """How a family's cells are laid out in a heat map.

    Attributes
    ----------
    row, column
        What of a cell decides its row and its column; rows go up in the order of these.
    row_text, column_text
        What is written beside and below them.
    row_label, column_label
        What is written along the axes.
    """

    row: Callable[[dict[str, Any]], tuple[Any, ...]]
    column: Callable[[dict[str, Any]], tuple[Any, ...]]
    row_text: Callable[..., str]
    column_text: Callable[..., str]
    row_label: str
    column_label: str


def _to(inputs: int, outputs: int) -> str:
    return str(outputs) if inputs == outputs else f"{inputs}→{outputs}"


PLACES = {
    "recurrent": Places(
        row=lambda c: (c["H"] != c["I"], c["H"], c["I"]),
        column=lambda c: (c["B"], c["T"]),
        row_text=lambda _, H, I: _to(I, H),
        column_text=lambda B, T: f"{B}×{T}",
        row_label="H, or I→H",
        column_label="B×T",
    ),
    "attention": Places(
        row=lambda c: (c["Hq"] // c["Hkv"], c["D"]),
        column=lambda c: (c["B"] * c["Hq"], c["B"], c["N"]),
        row_text=lambda group, D: str(D) if group == 1 else f"{D}, {group} a head",
        column_text=lambda rows, B, N: f"{B}×{rows // B}×{N}",
        row_label="D, and queries' heads for a head of keys",
        column_label="B×H×N",
    ),
    "conv": Places(
        row=lambda c: (c["Cin"] != c["Cout"], c["Cout"], c["Cin"]),
        column=lambda c: (c["B"], c["T"], c["K"], c["dilation"]),
        row_text=lambda _, outputs, inputs: _to(inputs, outputs),
        column_text=lambda B, T, K, d: f"{B}×{T} k{K}d{d}",
        row_label="channels",
        column_label="B×T, kernel size, dilation",
    ),
    "models": Places(
        row=lambda c: (c["C"],),
        column=lambda c: (c["L"], c["N"]),
        row_text=str,
        column_text=lambda L, N: f"{L}×{N}",
        row_label="C",
        column_label="L×N",
    ),
}


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw what `Record.to_json` gives, into a PNG file.

    Parameters
    ----------
    document
        With at least one cell.
    path
        The file to write.
    """
    places = PLACES[document["settings"].get("family", "recurrent")]
    ops = list(dict.fromkeys(cell["op"] for cell in document["cells"]))
    colours = dict(zip(ops, COLOURS, strict=False))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in document["cells"]:
        if cell["best"]:
            groups.setdefault((cell["mode"], cell["op"]), []).append(cell)
    panels = [*groups.items(), (("", ""), document["cells"])]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = max(3.6, *(0.3 * _lines(cells, places) + 1.4 for _, cells in panels))
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, height * rows), squeeze=False)
    for axis, ((mode, op), cells) in zip(axes.flat, panels, strict=False):
        if not mode:
            _roofline(axis, cells, document["bandwidth_gbs"], colours)
        elif _dense(cells, places):
            _heat_map(axis, cells, f"{op}, {mode}", places)
        else:
            _list(axis, cells, f"{op}, {mode}", colours[op])
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


def _rows_and_columns(cells: list[dict[str, Any]], places: Places) -> tuple[list[Any], list[Any]]:
    return sorted({places.row(c) for c in cells}), sorted({places.column(c) for c in cells})


def _dense(cells: list[dict[str, Any]], places: Places) -> bool:
    down, across = _rows_and_columns(cells, places)
    return len(cells) >= DENSE * len(down) * len(across)


def _lines(cells: list[dict[str, Any]], places: Places) -> int:
    return len(_rows_and_columns(cells, places)[0]) if _dense(cells, places) else len(cells)


def _heat_map(axis: Any, cells: list[dict[str, Any]], title: str, places: Places) -> None:
    down, across = _rows_and_columns(cells, places)
    image = [[float("nan")] * len(across) for _ in down]
    for cell in cells:
        i, j = down.index(places.row(cell)), across.index(places.column(cell))
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
    axis.set_xticks(range(len(across)), [places.column_text(*key) for key in across], fontsize=7, rotation=60)
    axis.set_yticks(range(len(down)), [places.row_text(*key) for key in down], fontsize=7)
    axis.set(xlabel=places.column_label, ylabel=places.row_label)
    axis.set_title(f"{title} (bold: surely below 1)", fontsize=9)


def _list(axis: Any, cells: list[dict[str, Any]], title: str, colour: str) -> None:
    ordered = sorted(cells, key=lambda cell: cell["best"]["median"])
    for place, cell in enumerate(ordered):
        best = cell["best"]
        if best["low"] is not None:
            axis.plot([best["low"], best["high"]], [place, place], color=colour, lw=2)
        axis.plot(best["median"], place, "o", color=colour, ms=5)
    axis.axvline(1, color="black", lw=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(ordered)), [f"{cell['shape']}  {cell['best']['peer']}" for cell in ordered], fontsize=7)
    ticks = [t for t in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 50) if _in(t, ordered)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(f"{title}, with 95% intervals", fontsize=9)


def _in(tick: float, cells: list[dict[str, Any]]) -> bool:
    ends = [value for c in cells for value in (c["best"]["low"], c["best"]["median"], c["best"]["high"]) if value]
    return tick == 1 or min(ends) / 1.5 <= tick <= max(ends) * 1.5


def _roofline(axis: Any, cells: list[dict[str, Any]], bandwidth: float, colours: dict[str, str]) -> None:
    peak = max(cell["peak_gflops"] for cell in cells)
    intensities = [cell["flops"] / cell["bytes"] for cell in cells]
    low, high = min(*intensities, peak / bandwidth) / 2, max(*intensities, peak / bandwidth) * 2
    axis.plot([low, peak / bandwidth, high], [low * bandwidth, peak, peak], color="black", lw=1)
    modes = list(dict.fromkeys(cell["mode"] for cell in cells))
    for cell, intensity in zip(cells, intensities, strict=True):
        own = cell["contenders"]["pyrnn"]["median_ms"]
        colour, marker = colours[cell["op"]], MARKERS[modes.index(cell["mode"])]
        if cell["best"]:
            theirs = cell["contenders"][cell["best"]["peer"]]["median_ms"]
            rates = [1e-6 * cell["flops"] / time for time in (own, theirs)]
            axis.plot([intensity, intensity], rates, color="0.75", lw=1, zorder=1)
            axis.plot(intensity, rates[1], marker, color="white", mec=colour, ms=4, zorder=2)
        axis.plot(intensity, 1e-6 * cell["flops"] / own, marker, color=colour, ms=5, zorder=3)
    for mode, marker in zip(modes, MARKERS, strict=False):
        axis.plot([], [], marker, color="0.4", label=mode)
    for op, colour in colours.items():
        axis.plot([], [], "s", color=colour, label=op)
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
