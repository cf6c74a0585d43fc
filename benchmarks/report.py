"""The tables that are printed: Markdown, one for each mode, losses beside wins."""

from __future__ import annotations

from typing import Any

from .cases import FAMILIES
from .contenders import OUTSIDE
from .end_to_end import Result
from .measure import Ratio
from .record import Cell, Record

NONE = "–"
BUSY = "This machine had a load of {:.1f} before the run: what else it does may distort even ratios."


def columns(case: Any, peers: list[str]) -> list[str]:
    """Return the contenders that get a column beside pyrnn's."""
    cell = (case.family, case.mode) == ("recurrent", "step")
    return [name for peer in peers for name in ((peer, "torch-cell") if cell and peer == "torch" else (peer,))]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def header(names: list[str]) -> list[str]:
    return [row(names), f"|{'---|' * len(names)}"]


def heading(record: Record) -> list[str]:
    """Say what was run on what."""
    e = record.environment
    peers = ", ".join(f"{name} {version}" for name, version in e["peers"].items())
    level = f"{e['isa']}, forced by PYRNN_ISA" if e["forced"] else e["isa"]
    return [
        f"{e['cpu']}, {e['threads']} threads, ISA level {level}, OpenMP {'yes' if e['openmp'] else 'no'}",
        f"pyrnn {e['pyrnn']}, Python {e['python']}, NumPy {e['numpy']}{', ' * bool(peers)}{peers}",
        f"memory read at {record.bandwidth:.1f} GB/s; {record.settings['dtype']}, {record.settings['rounds']} rounds",
        *([f"pyrnn's backend is {e['backend']}, by PYRNN_BACKEND"] if e["backend"] != "cython" else []),
        *([BUSY.format(e["load"])] if e["load"] > 0.5 else []),
        *(f"not here: {name}: {why}" for name, why in record.settings["missing"].items()),
    ]


def table_header(case: Any, peers: list[str]) -> list[str]:
    family = FAMILIES[case.family]
    names = [f"{name} ÷" for name in columns(case, peers)]
    beside = [heading for mode, (_, heading) in family.BESIDE.items() if mode == case.mode]
    return header(["op", family.COLUMN, "pyrnn ms", "quartiles", "of peak", *beside, *names, "best peer ÷ [95%]"])


def table_row(cell: Cell, peers: list[str]) -> str:
    own = cell.times["pyrnn"]
    low, high = own.quartiles
    found = [
        f"{cell.against(name).median:.2f}" if name in cell.times else "wrong" if name in cell.wrong else NONE
        for name in columns(cell.case, peers)
    ]
    form = f", {cell.forms[cell.best]}" if cell.best in cell.forms else ""
    best = f"{ratio_text(cell.against(cell.best))} {cell.best}{form}" if cell.best else NONE
    beside = []
    if cell.case.mode in FAMILIES[cell.case.family].BESIDE:
        beside = [NONE if cell.beside is None else f"{cell.beside:.2f}"]
    parts = [cell.case.op, cell.case.shape, milliseconds(own.median), f"{milliseconds(low)}–{milliseconds(high)}"]
    parts += [f"{cell.rate / cell.peak:.0%}", *beside, *found, best]
    return row(parts)


def ratio_text(value: Ratio) -> str:
    interval = "" if value.low is None or value.high is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.median:.2f}{interval}"


def milliseconds(value: float) -> str:
    """Write a time to a thousandth part of itself, more or less."""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def memory_header(case: Any) -> list[str]:
    scores = ["of the scores"] if case.family == "attention" else []
    return header(
        ["op", FAMILIES[case.family].COLUMN, "pyrnn MB", "torch MB", "torch ÷", "results alone MB", *scores]
    )  # fmt: skip


def memory_row(entry: dict[str, Any]) -> str:
    own, theirs = entry["bytes"]["pyrnn"], entry["bytes"].get("torch")
    other = [f"{theirs / 1e6:.1f}", f"{theirs / own:.2f}"] if theirs is not None and own else [NONE, NONE]
    scores = [f"{own / entry['scores_bytes']:.1%}"] if "scores_bytes" in entry else []
    return row([entry["op"], entry["shape"], f"{own / 1e6:.1f}", *other, f"{entry['floor_bytes'] / 1e6:.1f}", *scores])


def end_to_end_table(result: Result) -> list[str]:
    size = result.size
    names = list(result.times)
    lines = [
        f"\nA training step: {size.B}×{size.T} tokens of {size.V:,}, embeddings of {size.I}, 2 LSTM layers of "
        f"{size.H}, AdamW\n",
        *header(["stage", *(f"{name} ms" for name in names), "torch ÷ [95%]", "floor ms", "pyrnn ÷ floor"]),
    ]
    for stage, floor in result.floors.items():
        medians = [result.times[name][stage].median for name in names]
        other = ratio_text(result.ratios[stage]) if stage in result.ratios else NONE
        own = f"{medians[0] / floor:.1f}"
        lines.append(row([stage, *map(milliseconds, medians), other, milliseconds(floor), own]))
    return lines


def end_to_end_json(result: Result) -> dict[str, Any]:
    size = result.size
    return {
        "B": size.B, "T": size.T, "I": size.I, "H": size.H, "vocabulary": size.V, "losses": result.losses,
        "stages": {
            stage: {
                "floor_ms": floor,
                "median_ms": {name: times[stage].median for name, times in result.times.items()},
                "samples_ms": {name: times[stage].samples for name, times in result.times.items()},
                "ratio": vars(result.ratios[stage]) if stage in result.ratios else None,
            }
            for stage, floor in result.floors.items()
        },
    }  # fmt: skip


def closing(record: Record) -> list[str]:
    """Sum up: geometric means with the worst cell, every cell that is lost, and what was left out and why."""
    lines = []
    summary = record.summary()
    if summary:
        lines += ["\nBest peer ÷ pyrnn (above 1: pyrnn is faster)\n"]
        lines += header(["op", "mode", "cells", "geometric mean", "worst cell", "surely below 1"])
        for s in summary:
            worst = s["worst"]
            at = f"{worst['shape']}: {worst['median']:.2f} {worst['peer']}"
            lines.append(
                row([s["op"], s["mode"], str(s["cells"]), f"{s['geometric_mean']:.2f}", at, str(s["below_one"])])
            )
    lost = record.losses()
    if summary:
        lines.append(f"\nCells whose whole interval lies below 1: {len(lost) or 'none'}")
    for cell in lost:
        lines.append(f"- {cell.case.op} {cell.case.mode} {cell.case.shape}: "
                     f"{ratio_text(cell.against(cell.best))} {cell.best}")  # fmt: skip
    backends = record.backends()
    if backends:
        lines += ["\npyrnn's other backends ÷ pyrnn (above 1: they are slower)\n"]
        lines += header(["backend", "op", "mode", "cells", "geometric mean", "worst cell"])
        for b in backends:
            at = f"{b['worst']['shape']}: {b['worst']['median']:.2f}"
            lines.append(row([b["backend"], b["op"], b["mode"], str(b["cells"]), f"{b['geometric_mean']:.2f}", at]))
    reasons: dict[str, list[str]] = {}
    for cell in record.cells:
        for name, why in cell.left_out.items():
            reasons.setdefault(f"{name}, {cell.case.mode}: {why}", []).append(f"{cell.case.op} {cell.case.shape}")
    if reasons:
        lines.append("\nLeft out (–):")
        lines += [f"- {reason} ({len(cases)} cells)" for reason, cases in reasons.items()]
    if any(name in record.environment["peers"] for name in OUTSIDE) and any(
        cell.best and cell.against(cell.best).low is None for cell in record.cells
    ):
        lines.append("\nAn interval takes six rounds or more.")
    if record.interrupted:
        lines.append("\nInterrupted: the cases after the last one printed are missing.")
    return lines
