"""Who takes part. A contender's folder has a module for each family.

In it ``prepare_<contender>(case, data, threads)`` gives its `Run`s by name. The first contender is pyrnn itself;
`PEERS` are those that ``--peers`` chooses from, `OUTSIDE` of them other people's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]


class UnableError(Exception):
    """A contender can't do a case; the message says why."""


@dataclass(frozen=True)
class Run:
    """One way to run a case.

    Attributes
    ----------
    call
        What is timed.
    results
        Runs it from a fresh start and returns what came, by name, in pyrnn's layout; every contender of a case
        must return the same. None for what is another task by intent, shown for comparison.
    arrays
        What must live as long as the run.
    form
        In which of its forms a contender that has several is at its best here.
    """

    call: Callable[[], Any]
    results: Callable[[], Arrays] | None
    arrays: Any = None
    form: str = ""


Runs: TypeAlias = dict[str, Run]

STEPS = (np.float32(1.0), np.float32(-0.5), np.float32(2.0))
"""What x is multiplied by in the steps after which a stream's output is compared: a state not carried shows."""

PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("pytorch", ("torch",)),
    "onnxruntime": ("onnx_runtimes", ("onnxruntime", "onnx")),
    "openvino": ("onnx_runtimes", ("openvino", "onnx")),
    "numba": ("ours", ("numba",)),
    "reference": ("ours", ("threadpoolctl",)),
}
"""Each peer's folder here, and the packages that it needs."""
OUTSIDE = ("torch", "onnxruntime", "openvino")
"""The peers whose best is compared with pyrnn; the others are pyrnn's own backends."""
FORCED = ("torch", "numba", "reference")
"""Those whose instruction set follows ``PYRNN_ISA``."""


def missing(peer: str) -> str:
    """Return which packages a peer lacks here, "" if none."""
    lacking = [name for name in PEERS[peer][1] if find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


def prepare_pyrnn(case: Any, data: Any, threads: int) -> Runs:
    """Return pyrnn's own ways to run a case, the first of which the others are compared with."""
    return _prepared("pyrnn", "ours", case, data, threads)


def prepare(peer: str, case: Any, data: Any, threads: int) -> Runs:
    """Return a peer's ways to run a case.

    Raises
    ------
    UnableError
        It can't do that case.
    """
    return _prepared(peer, PEERS[peer][0], case, data, threads)


def _prepared(name: str, folder: str, case: Any, data: Any, threads: int) -> Runs:
    module = import_module(f".{folder}.{case.family}", __package__)
    runs: Runs = getattr(module, f"prepare_{name}")(case, data, threads)
    return runs


TRIALS = 3
LONG = 1.0  # seconds of a first call, after which it needs no second to be known


def quickest(forms: Mapping[str, Callable[[], Run]]) -> Run:
    """Return the fastest of a contender's forms, tried in turns; one that can't do the case is passed over.

    Raises
    ------
    UnableError
        None of them can.
    """
    runs: dict[str, Run] = {}
    unable = ""
    for name, make in forms.items():
        try:
            runs[name] = make()
        except UnableError as error:
            unable = str(error)
    if not runs:
        raise UnableError(unable)
    if len(runs) > 1:
        times = {name: [_seconds(run.call)] for name, run in runs.items()}
        for _ in range(TRIALS):
            for name, taken in times.items():
                if taken[0] < LONG:
                    taken.append(_seconds(runs[name].call))
        name = min(times, key=lambda name: min(times[name]))
    else:
        (name,) = runs
    return replace(runs[name], form=name)


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def differences(expected: Mapping[str, Any], got: Mapping[str, Any], dtype: str) -> str:
    """Return how a contender's results differ from pyrnn's beyond rounding, "" if they don't.

    The tolerance is for models that are wrong, not for roundings, which differ with the order of additions and
    with activations: 1e-3 of the largest element in float32, 1e-9 in float64.
    """
    tolerance = {"float32": 1e-3, "float64": 1e-9}[dtype]
    if set(expected) != set(got):
        return f"results {sorted(got)}, expected {sorted(expected)}"
    for name, array in expected.items():
        if got[name].shape != array.shape:
            return f"{name} has shape {got[name].shape}, expected {array.shape}"
        error = float(np.abs(got[name] - array).max(initial=0.0))
        scale = max(1.0, float(np.abs(array).max(initial=0.0)))
        if not error <= tolerance * scale:
            return f"{name} differs by {error:.2g} where the largest element is {scale:.2g}"
    return ""
