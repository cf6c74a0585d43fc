"""What a run has found, as it is printed, written to JSON and drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .cases import FAMILIES
from .contenders import OUTSIDE, PEERS
from .measure import Ratio, Times, geometric_mean, ratio

VERSION = 1
"""Of the JSON's form."""


@dataclass(frozen=True)
class Cell:
    """A timed case.

    Attributes
    ----------
    times
        By contender; ``pyrnn`` is always there.
    left_out
        Why a chosen peer has no time, by name.
    wrong
        Those of them that gave another result.
    peak : float
        GFLOP/s, the best of its readings between the samples: what else the machine did can only lower one.
    forms
        In which form a contender that has several was timed, its fastest.
    """

    case: Any
    times: dict[str, Times]
    left_out: dict[str, str]
    wrong: list[str]
    peak: float
    forms: dict[str, str]

    @property
    def rate(self) -> float:
        """pyrnn's GFLOP/s."""
        return 1e-6 * self.case.flops / self.times["pyrnn"].median

    @property
    def best(self) -> str:
        """The fastest of the peers that are not pyrnn's own, "" if there is none."""
        outside = [name for name in self.times if name.startswith(OUTSIDE)]
        return min(outside, key=lambda name: self.times[name].median, default="")

    def against(self, name: str) -> Ratio:
        return ratio(self.times[name].samples, self.times["pyrnn"].samples)

    @property
    def beside(self) -> float | None:
        """What comes of a comparison with another run of pyrnn's own, the family's ``BESIDE``."""
        name, _ = FAMILIES[self.case.family].BESIDE.get(self.case.mode, ("", ""))
        return self.case.beside(self.against(name).median) if name in self.times else None

    def to_json(self) -> dict[str, Any]:
        case, best = self.case, self.best
        return {
            "op": case.op, "mode": case.mode, **case.sizes, "shape": case.shape, "dtype": case.dtype,
            "flops": case.flops, "bytes": case.bytes, "peak_gflops": self.peak, "share_of_peak": self.rate / self.peak,
            "contenders": {
                name: {
                    "median_ms": times.median, "quartiles_ms": times.quartiles, "calls": times.calls,
                    "samples_ms": times.samples,
                    **({} if name == "pyrnn" else {"ratio": ratio_json(self.against(name))}),
                }
                for name, times in self.times.items()
            },
            "forms": self.forms,
            "left_out": self.left_out,
            "wrong": self.wrong,
            "best": {"peer": best, **ratio_json(self.against(best))} if best else None,
            "ragged_cost" if case.family == "recurrent" else "beside": self.beside,
        }  # fmt: skip


def ratio_json(value: Ratio) -> dict[str, float | None]:
    return {"median": value.median, "low": value.low, "high": value.high}


@dataclass
class Record:
    """All that a run has found so far."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    bandwidth: float
    cells: list[Cell] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    end_to_end: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def summary(self) -> list[dict[str, Any]]:
        """Return, for each op and mode, the geometric mean of best peer / pyrnn and the worst cell."""
        rows = []
        for mode in dict.fromkeys(cell.case.mode for cell in self.cells):
            for op in dict.fromkeys(cell.case.op for cell in self.cells):
                found = [(cell, cell.against(cell.best)) for cell in self.cells
                         if cell.best and (cell.case.mode, cell.case.op) == (mode, op)]  # fmt: skip
                if not found:
                    continue
                worst, at_worst = min(found, key=lambda pair: pair[1].median)
                rows.append({
                    "op": op, "mode": mode, "cells": len(found),
                    "geometric_mean": geometric_mean([r.median for _, r in found]),
                    "worst": {"shape": worst.case.shape, "peer": worst.best, **ratio_json(at_worst)},
                    "below_one": sum(r.high is not None and r.high < 1 for _, r in found),
                })  # fmt: skip
        return rows

    def backends(self) -> list[dict[str, Any]]:
        """Return the geometric mean of each other backend's time / pyrnn's and its worst cell, by op and mode."""
        rows = []
        for mode in dict.fromkeys(cell.case.mode for cell in self.cells):
            for op in dict.fromkeys(cell.case.op for cell in self.cells):
                for name in (peer for peer in PEERS if peer not in OUTSIDE):
                    found = [(cell, cell.against(name)) for cell in self.cells
                             if name in cell.times and (cell.case.mode, cell.case.op) == (mode, op)]  # fmt: skip
                    if not found:
                        continue
                    worst, at_worst = max(found, key=lambda pair: pair[1].median)
                    rows.append({
                        "op": op, "mode": mode, "backend": name, "cells": len(found),
                        "geometric_mean": geometric_mean([r.median for _, r in found]),
                        "worst": {"shape": worst.case.shape, **ratio_json(at_worst)},
                    })  # fmt: skip
        return rows

    def losses(self) -> list[Cell]:
        """Return the cells where a peer is faster beyond doubt: the whole interval of the ratio lies under 1."""
        return [cell for cell in self.cells if cell.best and (cell.against(cell.best).high or 1) < 1]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "environment": self.environment,
            "settings": self.settings,
            "bandwidth_gbs": self.bandwidth,
            "cells": [cell.to_json() for cell in self.cells],
            "summary": self.summary(),
            "backends": self.backends(),
            "memory": self.memory,
            "end_to_end": self.end_to_end,
            "interrupted": self.interrupted,
        }
