"""Attention in ONNX Runtime, by whichever of its operators is fastest, and in OpenVINO by its own.

ONNX Runtime's are ONNX's ``Attention``, the products and softmax that exporters write, and two of its own:
``MultiHeadAttention``, and ``GroupQueryAttention``, which alone knows a window and appends to a cache in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ...cases.attention import WINDOW
from .. import Arrays, Run, Runs, UnableError, quickest
from . import onnxruntime_binder, openvino_binder, refuse

OPSET = 23
OWN = "com.microsoft"


def prepare_onnxruntime(case: Any, data: Any, threads: int) -> Runs:
    """Return the fastest of ONNX Runtime's ways."""
    refuse(case)
    forms = (_attention, _products, _multi_head, _grouped)
    return {
        "onnxruntime": quickest({form.__name__[1:]: lambda f=form: f(case, data, threads) for form in forms})
    }  # fmt: skip


def prepare_openvino(case: Any, data: Any, threads: int) -> Runs:
    """Return OpenVINO's way: ``ScaledDotProductAttention``, its window by a mask."""
    import openvino as ov
    from openvino import opset13

    refuse(case)
    if case.Hq != case.Hkv:
        raise UnableError("its operator has no shared heads")
    q, k, v = arrays = _read(case, data)
    parameters = [opset13.parameter(list(array.shape), np.float32) for array in arrays]
    for name, parameter in zip("qkv", parameters, strict=True):
        parameter.output(0).get_tensor().set_names({name})
    mask = _mask(case)
    node = opset13.scaled_dot_product_attention(
        *parameters,
        *([] if mask is None or case.op == "causal" else [opset13.constant(mask)]),
        causal=mask is not None and case.op == "causal",
    )
    node.output(0).get_tensor().set_names({"y"})
    bind = openvino_binder(ov.Model([node], parameters), threads)
    return {"openvino": _run(bind, {"q": q, "k": k, "v": v}, np.empty(q.shape, np.float32), lambda y: y)}


def _read(case: Any, data: Any) -> tuple[Any, Any, Any]:
    """Return q, and the k and v that any query attends to."""
    k, v = (np.ascontiguousarray(a[:, :, case.N - case.keys_read :]) for a in (data.k, data.v))
    return data.q, k, v


def _mask(case: Any) -> Any:
    """Return the case's mask; None also where a token attends to all that it is given."""
    return None if case.mode == "decode" else case.mask


def _rows(array: Any) -> Any:
    """Return (B, N, H·D), as ONNX Runtime's own operators take it."""
    B, heads, N, D = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(B, N, heads * D)


def _attention(case: Any, data: Any, threads: int) -> Run:
    q, k, v = _read(case, data)
    constants = []
    options = {}
    if case.mode != "decode" and case.op == "causal":
        options["is_causal"] = 1
    elif _mask(case) is not None:
        constants = [numpy_helper.from_array(_mask(case), "mask")]
    node = helper.make_node("Attention", ["q", "k", "v", *(c.name for c in constants)], ["y"], **options)
    return _session([node], {"q": q, "k": k, "v": v}, constants, q.shape, threads, lambda y: y)


def _products(case: Any, data: Any, threads: int) -> Run:
    if case.Hq != case.Hkv:
        raise UnableError("shared heads are left to operators that know them")
    q, k, v = _read(case, data)
    constants = [numpy_helper.from_array(np.float32(case.D**-0.5), "scale")]
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned"], ["scores"]),
        helper.make_node("Softmax", ["biased" if _mask(case) is not None else "scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    if _mask(case) is not None:
        low = np.finfo(np.float32).min
        constants.append(numpy_helper.from_array(np.where(_mask(case), 0, low).astype(np.float32), "bias"))
        nodes.insert(3, helper.make_node("Add", ["scores", "bias"], ["biased"]))
    return _session(nodes, {"q": q, "k": k, "v": v}, constants, q.shape, threads, lambda y: y)


def _multi_head(case: Any, data: Any, threads: int) -> Run:
    if case.Hq != case.Hkv:
        raise UnableError("MultiHeadAttention has no shared heads")
    if case.op == "window" and case.mode != "decode":
        raise UnableError("MultiHeadAttention has no window")
    q, k, v = map(_rows, _read(case, data))
    causal = int(case.mode != "decode" and case.op == "causal")
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain=OWN, num_heads=case.Hq,
                            unidirectional=causal)  # fmt: skip
    return _session([node], {"q": q, "k": k, "v": v}, [], q.shape, threads, _heads(case))


def _grouped(case: Any, data: Any, threads: int) -> Run:
    if case.op == "full":
        raise UnableError("GroupQueryAttention is causal")
    options: dict[str, Any] = {"local_window_size": WINDOW} if case.op == "window" else {}
    given = {"q": data.q, "k": data.k, "v": data.v}
    inputs = ["q", "k", "v", "", ""]
    cache = {name: array.copy() for name, array in (("key", data.k), ("value", data.v))}
    before = {}
    if case.mode == "decode":  # the last key and value come with their query, and go behind those in the cache
        given["k"], given["v"] = data.k[:, :, -1:], data.v[:, :, -1:]
        before = {f"past_{name}": array for name, array in cache.items()}
        inputs[3:] = list(before)
    counts = {"last": np.full(case.B, case.N - 1, np.int32), "total": np.array([case.N], np.int32)}
    after = {f"present_{name}": array for name, array in cache.items()}
    node = helper.make_node("GroupQueryAttention", [*inputs, *counts], ["y", *after], domain=OWN, num_heads=case.Hq,
                            kv_num_heads=case.Hkv, **options)  # fmt: skip
    rows = {name: _rows(array) for name, array in given.items()}
    return _session([node], rows | before | counts, [], rows["q"].shape, threads, _heads(case), after)


def _heads(case: Any) -> Callable[[Any], Any]:
    return lambda y: y.reshape(case.B, case.queries, case.Hq, case.D).swapaxes(1, 2)


def _session(
    nodes: list[Any], inputs: Arrays, constants: list[Any], shape: Any, threads: int, read: Any,
    outputs: Arrays | None = None,
) -> Run:  # fmt: skip
    """Return the run of a graph in ONNX Runtime; ``read`` brings its y into pyrnn's layout."""

    def described(name: str, array: Any) -> Any:
        kind = TensorProto.INT32 if array.dtype == np.int32 else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, array.shape)

    y = np.empty(shape, np.float32)
    made = {"y": y, **(outputs or {})}
    graph = helper.make_graph(
        nodes, "attention", [described(*item) for item in inputs.items()], [described(*item) for item in made.items()],
        constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return _run(onnxruntime_binder(bytes(model.SerializeToString()), threads), inputs, y, read, outputs)


def _run(bind: Any, inputs: Arrays, y: Any, read: Callable[[Any], Any], outputs: Arrays | None = None) -> Run:
    call = bind(inputs, {"y": y, **(outputs or {})})

    def results() -> Arrays:
        call()
        return {"y": read(y).copy()}

    return Run(call, results, (inputs, y, outputs))
