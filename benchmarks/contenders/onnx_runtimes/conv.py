"""Causal convolution in ONNX Runtime and OpenVINO: ``Conv`` on (B, C, T), which pads in front by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .. import Arrays, Run, Runs
from . import Binder, onnxruntime_binder, openvino_binder, refuse

OPSET = 17


def prepare_onnxruntime(case: Any, data: Any, threads: int) -> Runs:
    """Return ONNX Runtime's way."""
    refuse(case)
    return {"onnxruntime": _run(data, onnxruntime_binder(_model(case, data), threads))}


def prepare_openvino(case: Any, data: Any, threads: int) -> Runs:
    """Return OpenVINO's way."""
    refuse(case)
    return {"openvino": _run(data, openvino_binder(_model(case, data), threads))}


def _run(data: Any, bind: Binder) -> Run:
    x = np.ascontiguousarray(data.x.swapaxes(1, 2))
    y = np.empty(data.dy.swapaxes(1, 2).shape, x.dtype)
    call = bind({"X": x}, {"Y": y})

    def results() -> Arrays:
        call()
        return {"y": y.swapaxes(1, 2).copy()}

    return Run(call, results, (x, y))


def _model(case: Any, data: Any) -> bytes:
    node = helper.make_node(
        "Conv", ["X", "W", "B"], ["Y"],
        kernel_shape=[case.K], dilations=[case.dilation], group=case.groups, pads=[case.context, 0],
    )  # fmt: skip
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (case.B, channels, case.T))
        for name, channels in (("X", case.Cin), ("Y", case.Cout))
    )
    constants = [numpy_helper.from_array(data.w, "W"), numpy_helper.from_array(data.b, "B")]
    graph = helper.make_graph([node], "conv", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
