"""The recurrent family in ONNX Runtime and OpenVINO: time-major, as the model wants it.

In the step mode the state's buffers change places after each call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import STEPS, Arrays, Run, Runs, UnableError
from . import onnxruntime_binder, openvino_binder, refuse

ORDER = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""ONNX's gates (i, o, f, c; z, r, h) by their places in pyrnn's order (i, f, g, o; r, z, n)."""
OPSET = 17


def prepare_onnxruntime(case: Any, data: Any, threads: int) -> Runs:
    """Return ONNX Runtime's way."""
    _refuse(case)
    return {"onnxruntime": _run(case, data, onnxruntime_binder(_model(case, data), threads))}


def prepare_openvino(case: Any, data: Any, threads: int) -> Runs:
    """Return OpenVINO's way."""
    _refuse(case)
    return {"openvino": _run(case, data, openvino_binder(_model(case, data), threads))}


def _refuse(case: Any) -> None:
    refuse(case)
    if case.ragged:
        raise UnableError("ragged batches are compared with torch's packed sequences")


def _run(case: Any, data: Any, bind: Any) -> Run:
    """Return the run of a model whose arrays ``bind(inputs, outputs)`` takes once for many calls.

    The runtimes use the arrays' memory without keeping it alive: `Run.arrays` does.
    """
    x = np.ascontiguousarray(data.x.swapaxes(0, 1))
    y = np.empty(_output_shape(case), x.dtype)
    if case.mode == "step":
        return _steps(case, data, bind, x, y)
    call = bind({"X": x}, {"Y": y})

    def results() -> Arrays:
        call()
        return {"y": (y if case.stacked else y[:, 0]).swapaxes(0, 1).copy()}

    return Run(call, results, (x, y))


def _steps(case: Any, data: Any, bind: Any, x: Any, y: Any) -> Run:
    """Return the run that carries the state from step to step, in two sets of buffers that change places."""
    states = [[np.zeros((1, 1, case.H), x.dtype) for _ in data.model.leaves] for _ in range(2)]
    begin = [{f"initial_{leaf}": a for leaf, a in zip(data.model.leaves, s, strict=True)} for s in states]
    end = [{f"Y_{leaf}": a for leaf, a in zip(data.model.leaves, s, strict=True)} for s in states]
    calls = [bind({"X": x, **begin[0]}, {"Y": y, **end[1]}), bind({"X": x, **begin[1]}, {"Y": y, **end[0]})]
    turn = 0

    def step() -> None:
        nonlocal turn
        calls[turn]()
        turn = 1 - turn

    def results() -> Arrays:
        nonlocal turn
        given, turn = x.copy(), 0
        for leaf in states[0]:
            leaf[...] = 0
        for k in STEPS:
            x[...] = k * given
            step()
        x[...] = given
        return {"y": y[0, 0].copy()}

    return Run(step, results, (x, y, states))


def _output_shape(case: Any) -> tuple[int, ...]:
    return (case.T, case.B, 2 * case.H) if case.stacked else (case.T, 1, case.B, case.H)


def _model(case: Any, data: Any) -> bytes:
    """Return the ONNX model of a case: one layer, or two in both directions with what joins them."""
    weights = data.model.state_dict()
    directions = 2 if case.stacked else 1
    constants: list[Any] = []
    nodes: list[Any] = []

    def constant(name: str, array: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def recurrent(layer: int, x: str, y: str) -> None:
        suffixes = (f"l{layer}", f"l{layer}_reverse")[:directions]
        stacked = [_weights(case, weights, suffix) for suffix in suffixes]
        names = [constant(f"{part}{layer}", np.stack(arrays)) for part, *arrays in zip("WRB", *stacked, strict=True)]
        inputs, outputs = [x, *names], [y]
        if case.mode == "step":
            inputs += ["", *(f"initial_{leaf}" for leaf in data.model.leaves)]
            outputs += [f"Y_{leaf}" for leaf in data.model.leaves]
        options: dict[str, Any] = {"linear_before_reset": 1} if case.op == "gru" else {}
        direction = "bidirectional" if directions == 2 else "forward"
        nodes.append(
            helper.make_node(case.op.upper(), inputs, outputs, hidden_size=case.H, direction=direction, **options)
        )

    def join(x: str, y: str) -> None:  # (T, 2, B, H) to (T, B, 2·H)
        nodes.append(helper.make_node("Transpose", [x], [f"{x}_turned"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"{x}_turned", "joined"], [y]))

    if case.stacked:
        constant("joined", np.array([case.T, case.B, 2 * case.H], np.int64))
        recurrent(0, "X", "first")
        join("first", "between")
        recurrent(1, "between", "second")
        join("second", "Y")
    else:
        recurrent(0, "X", "Y")

    def described(name: str, shape: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    leaves = data.model.leaves if case.mode == "step" else ()
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [described("X", (case.T, case.B, case.I)), *(described(f"initial_{n}", (1, 1, case.H)) for n in leaves)],
        [described("Y", _output_shape(case)), *(described(f"Y_{n}", (1, 1, case.H)) for n in leaves)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _weights(case: Any, weights: Any, suffix: str) -> tuple[Any, Any, Any]:
    """Return W, R and B of one direction, in ONNX's gate order."""
    order = ORDER[case.op]

    def ordered(array: Any) -> Any:
        blocks = np.split(array, len(order))
        return np.concatenate([blocks[place] for place in order])

    b = ordered(weights[f"bias_{suffix}"])
    recurrent_bias = np.zeros_like(b)
    if case.op == "gru":
        recurrent_bias[2 * case.H :] = weights[f"bias_hn_{suffix}"]
    w, r = ordered(weights[f"weight_ih_{suffix}"]), ordered(weights[f"weight_hh_{suffix}"])
    return w, r, np.concatenate([b, recurrent_bias])
