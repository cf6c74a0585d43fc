"""ONNX Runtime and OpenVINO, on one ONNX model.

Both get their arrays in the layout that the model wants, in place and with outputs of their own choice bound ahead: no
transpose and no copy is counted against them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .. import Arrays, UnableError

Binder: TypeAlias = Callable[[Arrays, Arrays], Callable[[], Any]]
"""Takes inputs and outputs by name, once for many calls, and returns the call. Their memory is used, not kept alive."""


def onnxruntime_binder(model: bytes, threads: int) -> Binder:
    """Return ONNX Runtime on a model: all optimisations, its threads' spinning as it is by default."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def bind(inputs: Arrays, outputs: Arrays) -> Any:
        binding = session.io_binding()
        for give, arrays in ((binding.bind_ortvalue_input, inputs), (binding.bind_ortvalue_output, outputs)):
            for name, array in arrays.items():
                give(name, ort.OrtValue.ortvalue_from_numpy(array))  # which shares the array's memory
        return lambda: session.run_with_iobinding(binding)

    return bind


def openvino_binder(model: Any, threads: int) -> Binder:
    """Return OpenVINO on a model, ONNX or its own: its latency mode, in float32 throughout."""
    import openvino as ov

    core = ov.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(model) if isinstance(model, bytes) else model, "CPU", settings)

    def bind(inputs: Arrays, outputs: Arrays) -> Any:
        request = compiled.create_infer_request()
        for name, array in (inputs | outputs).items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        return lambda: request.infer()

    return bind


def refuse(case: Any) -> None:
    """Raise `UnableError` where a case is not for these two."""
    if case.dtype != "float32":
        raise UnableError("its kernels are float32 only")
    if case.trains:
        raise UnableError("it does not train")
