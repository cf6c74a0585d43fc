"""The attention family on pyrnn's default backend and on its others."""

from __future__ import annotations

from typing import Any

import pyrnn

from .. import Arrays, Run, Runs
from . import reference_can


def prepare_pyrnn(case: Any, data: Any, threads: int) -> Runs:
    """Return pyrnn's way, and beside a causal or a window's the same call over every key."""
    runs = {"pyrnn": _on(None, case, data, case.options)}
    if case.op != "full" and case.mode in ("forward", "train"):
        runs["full"] = Run(_on(None, case, data, {}).call, None)
    return runs


def prepare_numba(case: Any, data: Any, threads: int) -> Runs:
    """Return the Numba plugin's way."""
    return {"numba": _on("numba", case, data, case.options)}


def prepare_reference(case: Any, data: Any, threads: int) -> Runs:
    """Return the NumPy reference's way, its BLAS on as many threads."""
    reference_can(case, threads)
    return {"reference": _on("reference", case, data, case.options)}


def _on(backend: str | None, case: Any, data: Any, options: dict[str, Any]) -> Run:
    if case.trains:
        return _train(backend, data, options)

    def call() -> Any:
        return pyrnn.attention(data.q, data.k, data.v, backend=backend, **options)

    return Run(call, lambda: {"y": call()})


def _train(backend: str | None, data: Any, options: dict[str, Any]) -> Run:
    def call() -> Any:
        y, pullback = pyrnn.vjp(pyrnn.attention, data.q, data.k, data.v, backend=backend, **options)
        return y, pullback(data.dy)

    def results() -> Arrays:
        y, (dq, dk, dv, _) = call()
        return {"y": y, "dq": dq, "dk": dk, "dv": dv}

    return Run(call, results)
