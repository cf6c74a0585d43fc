"""The recurrent family on pyrnn's default backend and on its others."""

from __future__ import annotations

from typing import Any

import numpy as np

import pyrnn

from .. import STEPS, Arrays, Run, Runs
from . import reference_can


def prepare_pyrnn(case: Any, data: Any, threads: int) -> Runs:
    """Return pyrnn's own ways, the first of which the others are compared with."""
    if case.mode == "step":
        return {"pyrnn": _stream(data)}
    if case.mode == "op" or case.trains:
        runs = {"pyrnn": _on("cython", case, data)}
        if case.ragged:
            runs["padded"] = Run(_train(data, "cython", None).call, None)
        return runs
    frozen = data.model.freeze()

    def forward() -> Any:
        return frozen.run(data.x, lengths=data.lengths)

    runs = {"pyrnn": Run(forward, lambda: {"y": forward()[0]})}
    if case.ragged:
        runs["padded"] = Run(lambda: frozen.run(data.x), None)
    return runs


def prepare_numba(case: Any, data: Any, threads: int) -> Runs:
    """Return the Numba plugin's way."""
    return {"numba": _on("numba", case, data)}


def prepare_reference(case: Any, data: Any, threads: int) -> Runs:
    """Return the NumPy reference's way, its BLAS on as many threads."""
    reference_can(case, threads)
    return {"reference": _on("reference", case, data)}


def _on(backend: str, case: Any, data: Any) -> Run:
    """Return the way without weights that are packed ahead: through the op, or where it takes several, the layer."""
    if case.mode == "step":
        return _carry(data, backend)
    if case.stacked:
        return _tape(data, backend) if case.trains else _predict(data, backend)
    return _train(data, backend, data.lengths) if case.trains else _op(data, backend)


def _parts(data: Any) -> tuple[Any, list[str], list[Any]]:
    """Return the op of a single layer, and its weights' names and arrays as the op takes them."""
    weights = data.model.state_dict()
    return getattr(pyrnn, type(data.model).__name__.lower()), list(weights), list(weights.values())


def _op(data: Any, backend: str) -> Run:
    function, _, weights = _parts(data)

    def call() -> Any:
        return function(data.x, *weights, lengths=data.lengths, backend=backend)

    return Run(call, lambda: {"y": call()[0]})


def _train(data: Any, backend: str, lengths: Any) -> Run:
    function, names, weights = _parts(data)
    names = ["x", *names, *(f"{leaf}0" for leaf in data.model.leaves)]

    def call() -> Any:
        outputs, pullback = pyrnn.vjp(function, data.x, *weights, *data.states, lengths=lengths, backend=backend)
        return outputs[0], pullback([data.dy, *[None] * len(data.states)])

    def results() -> Arrays:
        y, grads = call()
        return {"y": y, **{f"d{name}": grad for name, grad in zip(names, grads, strict=True)}}

    return Run(call, results)


def _predict(data: Any, backend: str) -> Run:
    def call() -> Any:
        with pyrnn.use_backend(backend):
            return data.model.predict(data.x)

    return Run(call, lambda: {"y": call()[0]})


def _tape(data: Any, backend: str) -> Run:
    def call() -> Any:
        data.model.zero_grad()
        x = pyrnn.Tensor(data.x, requires_grad=True)
        with pyrnn.use_backend(backend):
            y, _ = data.model(x)
            y.backward(data.dy)
        return y, x.grad

    def results() -> Arrays:
        y, dx = call()
        return {"y": y.data, "dx": dx, **{f"d{name}": p.grad for name, p in data.model.named_parameters()}}

    return Run(call, results)


def _stream(data: Any) -> Run:
    frozen = data.model.freeze()
    x_t = np.ascontiguousarray(data.x[:, 0])
    y_t = np.empty((1, data.model.hidden_size), data.x.dtype)
    stream = frozen.stream(batch=1)

    def results() -> Arrays:
        fresh = frozen.stream(batch=1)
        return {"y": [fresh.step(k * x_t) for k in STEPS][-1]}

    return Run(lambda: stream.step(x_t, out=y_t), results)


def _carry(data: Any, backend: str) -> Run:
    function, _, weights = _parts(data)
    state: list[Any] = [np.zeros_like(leaf) for leaf in data.states]

    def step(x: Any, state: list[Any]) -> tuple[Any, list[Any]]:
        y, *state = function(x, *weights, *state, backend=backend)
        return y, state

    def call() -> Any:
        nonlocal state
        y, state = step(data.x, state)
        return y

    def results() -> Arrays:
        carried = [np.zeros_like(leaf) for leaf in data.states]
        for k in STEPS:
            y, carried = step(k * data.x, carried)
        return {"y": y[:, 0]}

    return Run(call, results)
