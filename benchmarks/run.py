"""The run: mode by mode, case by case, the contenders of each prepared, compared and timed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pyrnn

from . import end_to_end, environment, memory, report
from .cases import FAMILIES
from .contenders import Runs, UnableError, differences, missing, prepare, prepare_pyrnn
from .measure import interleave
from .peak import Machine
from .record import Cell, Record


@dataclass(frozen=True)
class Settings:
    """What the command line asked for; ``shapes`` None leaves each mode its own."""

    family: str
    ops: list[str]
    modes: list[str]
    shapes: list[Any] | None
    peers: list[str]
    dtype: str
    threads: int
    rounds: int
    budget: float


def plan(settings: Settings) -> tuple[list[Any], list[str]]:
    """Return the cases in their order, and notes on what was left out."""
    family = FAMILIES[settings.family]
    cases: list[Any] = []
    notes: list[str] = []
    for mode in (mode for word in settings.modes for mode in family.MODES[word]):
        found, told = family.plan(settings.ops, mode, settings.shapes, settings.dtype)
        cases += found
        notes += told
    return cases, notes


def run(settings: Settings, cases: list[Any], notes: list[str]) -> Record:
    """Run the cases and print a table of each mode as it grows; Ctrl-C ends it with what there is."""
    with pyrnn.num_threads(settings.threads):
        return _run(settings, cases, notes)


def _run(settings: Settings, cases: list[Any], notes: list[str]) -> Record:
    lacking = {peer: missing(peer) for peer in settings.peers if missing(peer)}
    peers = [peer for peer in settings.peers if peer not in lacking]
    machine = Machine(settings.threads)
    record = Record(
        environment.describe(settings.threads, peers),
        {**vars(settings), "budget": None if math.isinf(settings.budget) else settings.budget, "missing": lacking},
        machine.bandwidth(),
    )
    progress = _progress(len(cases))
    for line in [*report.heading(record), *notes]:
        progress.say(line)
    end = time.perf_counter() + settings.budget
    mode = ""
    try:
        for index, case in enumerate(cases):
            progress.begin(f"{case.op} {case.mode} {case.shape}")
            if case.mode != mode:
                mode = case.mode
                for line in _mode_header(case, peers):
                    progress.say(line)
            share = max(0.0, end - time.perf_counter()) / (len(cases) - index)
            for line in _run_case(case, settings, peers, machine, share, record):
                progress.say(line)
            if case.mode in FAMILIES[case.family].TIMED:
                for name in record.cells[-1].wrong:
                    why = record.cells[-1].left_out[name]
                    progress.say(f"WRONG RESULT: {name}, {case.op} {case.mode} {case.shape}: {why}", sys.stderr)
            progress.done()
    except KeyboardInterrupt:
        record.interrupted = True
    progress.close()
    for line in report.closing(record):
        print(line)
    return record


def _mode_header(case: Any, peers: list[str]) -> list[str]:
    if case.mode in FAMILIES[case.family].TIMED:
        return [f"\n{case.mode}\n", *report.table_header(case, peers)]
    if case.mode.startswith("memory"):
        call = "training" if case.trains else "forward"
        return [f"\nPeak memory of a {call} call\n", *report.memory_header(case)]
    return []


def _run_case(
    case: Any, settings: Settings, peers: list[str], machine: Machine, budget: float, record: Record
) -> list[str]:
    """Run one case, add it to the record, and return the lines that tell of it."""
    if case.mode.startswith("memory"):
        names = ["pyrnn", *(peer for peer in peers if peer == "torch")]
        entry = {
            "op": case.op,
            "mode": case.mode,
            "shape": case.shape,
            "bytes": {name: memory.measure(name, case, settings.threads) for name in names},
            "floor_bytes": case.results_bytes,
            **({"scores_bytes": case.scores_bytes} if case.family == "attention" else {}),
        }
        record.memory.append(entry)
        return [report.memory_row(entry)]
    if case.mode == "end-to-end":
        size = end_to_end.Size(case.B, case.T, case.I, case.H)
        result = end_to_end.measure(
            size, settings.rounds, settings.threads, peers, machine.peak, record.bandwidth, budget
        )
        record.end_to_end.append(report.end_to_end_json(result))
        return report.end_to_end_table(result)
    cell = time_case(case, settings, peers, machine, budget)
    record.cells.append(cell)
    return [report.table_row(cell, peers)]


def time_case(case: Any, settings: Settings, peers: list[str], machine: Machine, budget: float = math.inf) -> Cell:
    """Prepare the contenders, hold their results against pyrnn's, and time those that agree."""
    data = FAMILIES[case.family].draw_data(case)
    runs: Runs = prepare_pyrnn(case, data, settings.threads)
    assert runs["pyrnn"].results is not None
    expected = runs["pyrnn"].results()
    for own in runs.values():
        own.call()
    left_out: dict[str, str] = {}
    wrong = []
    for peer in peers:
        try:
            for name, found in prepare(peer, case, data, settings.threads).items():
                difference = differences(expected, found.results(), case.dtype) if found.results else ""
                if difference:
                    left_out[name] = f"another result than pyrnn's: {difference}"
                    wrong.append(name)
                else:
                    runs[name] = found
        except UnableError as error:
            left_out[peer] = str(error)
        except Exception as error:  # a peer's own failure must not cost the cases of the others
            left_out[peer] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    times, peaks = interleave(
        {name: found.call for name, found in runs.items()}, settings.rounds, budget, lambda: machine.peak(case.dtype)
    )
    forms = {name: found.form for name, found in runs.items() if found.form}
    return Cell(case, times, left_out, wrong, max(peaks), forms)


class _Lines:
    """Progress as lines on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def begin(self, name: str) -> None:
        self.count += 1
        print(f"[{self.count}/{self.total}] {name}", file=sys.stderr, flush=True)

    def say(self, line: str, file: Any = None) -> None:
        print(line, file=file, flush=True)

    def done(self) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """Progress as tqdm's bar on stderr."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="case", file=sys.stderr, dynamic_ncols=True)
        self.done: Callable[[], Any] = self._bar.update
        self.close: Callable[[], Any] = self._bar.close

    def begin(self, name: str) -> None:
        self._bar.set_description(name)

    def say(self, line: str, file: Any = None) -> None:
        self._bar.write(line, file=file or sys.stdout)
        sys.stdout.flush()


def _progress(total: int) -> Any:
    return _Bar(total) if find_spec("tqdm") else _Lines(total)
