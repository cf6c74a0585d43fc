"""The convolution family on pyrnn's default backend and on its others."""

from __future__ import annotations

from typing import Any

import pyrnn
from pyrnn.backend import choose
from pyrnn.ops.conv import CAUSAL_CONV1D

from .. import Arrays, Run, Runs
from . import reference_can


def prepare_pyrnn(case: Any, data: Any, threads: int) -> Runs:
    """Return pyrnn's way: in ``forward`` on weights packed ahead, as a frozen layer has them."""
    return {"pyrnn": _packed(case, data) if case.mode == "forward" else _on(None, case, data)}


def prepare_numba(case: Any, data: Any, threads: int) -> Runs:
    """Return the Numba plugin's way, without weights that are packed ahead."""
    return {"numba": _on("numba", case, data)}


def prepare_reference(case: Any, data: Any, threads: int) -> Runs:
    """Return the NumPy reference's way, its BLAS on as many threads."""
    reference_can(case, threads)
    return {"reference": _on("reference", case, data)}


def _options(case: Any) -> dict[str, Any]:
    return {"dilation": case.dilation, "groups": case.groups}


def _packed(case: Any, data: Any) -> Run:
    backend: Any = choose("causal_conv1d")
    arrays = CAUSAL_CONV1D.Arrays(None, data.w, data.b, None)
    packed = backend.causal_conv1d_pack(arrays, CAUSAL_CONV1D.Config(**_options(case), lengths=None))

    def call() -> Any:
        return backend.causal_conv1d_run(packed, data.x)

    return Run(call, lambda: {"y": call()[0]})


def _on(backend: str | None, case: Any, data: Any) -> Run:
    if case.trains:
        return _train(backend, case, data)

    def call() -> Any:
        return pyrnn.causal_conv1d(data.x, data.w, data.b, backend=backend, **_options(case))

    return Run(call, lambda: {"y": call()[0]})


def _train(backend: str | None, case: Any, data: Any) -> Run:
    def call() -> Any:
        outputs, pullback = pyrnn.vjp(
            pyrnn.causal_conv1d, data.x, data.w, data.b, backend=backend, **_options(case)
        )  # fmt: skip
        return outputs[0], pullback([data.dy, None])

    def results() -> Arrays:
        y, (dx, dw, db, _) = call()
        return {"y": y, "dx": dx, "dw": dw, "db": db}

    return Run(call, results)
