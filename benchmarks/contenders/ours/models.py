"""Streams of frozen models, on pyrnn's default backend and on its others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np

import pyrnn

from ...cases.models import TURN
from .. import STEPS, Run, Runs
from . import reference_can


def prepare_pyrnn(case: Any, data: Any, threads: int) -> Runs:
    """Return the stream's way."""
    return {"pyrnn": _stream(None, case, data)}


def prepare_numba(case: Any, data: Any, threads: int) -> Runs:
    """Return the stream's way on the Numba plugin."""
    return {"numba": _stream("numba", case, data)}


def prepare_reference(case: Any, data: Any, threads: int) -> Runs:
    """Return the stream's way on the NumPy reference, its BLAS on as many threads."""
    reference_can(case, threads)
    return {"reference": _stream("reference", case, data)}


def _stream(backend: str | None, case: Any, data: Any) -> Run:
    with pyrnn.use_backend(backend) if backend else nullcontext():
        frozen = data.model.freeze()
        past = frozen.run(data.past)[1] if case.op == "transformer" else None

    def fresh() -> Any:
        stream = frozen.stream(batch=1)
        if past is not None:
            stream.reset(past)
        return stream

    stream, out = fresh(), np.empty_like(data.x)
    left = TURN

    def step() -> Any:
        return stream.step(data.x, out=out)

    def token() -> Any:
        nonlocal left
        if not left:
            stream.reset(past)
            left = TURN
        left -= 1
        return stream.step(data.x, out=out)

    def results() -> Any:
        begun = fresh()
        return {"y": [begun.step(k * data.x) for k in STEPS][-1]}

    return Run(token if case.op == "transformer" else step, results)
