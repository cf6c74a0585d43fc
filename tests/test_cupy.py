"""The recurrent family on the GPU, its kernels run thread by thread on the CPU: see tests/cuda."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn
from pyrnn.testing import check_backend

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import emulator
import fake_cupy

pytestmark = pytest.mark.skipif(bool(emulator.unavailable()), reason=emulator.unavailable())
GATES = {"rnn": 1, "lstm": 4, "gru": 3}
# Of outputs and gradients of some size. TF32 keeps 10 bits of what is multiplied, bfloat16 7.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "tf32": 2e-2, "bfloat16": 1e-1}


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    with fake_cupy.installed(attributes={"MultiProcessorCount": 3}):
        from pyrnn_cupy import CupyBackend

        yield CupyBackend()


@pytest.mark.parametrize("op", GATES)
def test_the_properties_hold(backend: Any, op: str) -> None:
    report = check_backend(backend, ops=[op], max_examples=2, progress=False)
    assert report.ok, report


def parity(
    backend: Any, op: str, sizes: tuple[int, int, int, int], compute: str | None, dtype: str, **config: Any
) -> None:
    """Hold outputs and gradients of a call with all its arrays to the reference's."""
    B, T, I, H = sizes
    rng = np.random.default_rng(0)
    biases = [(H,)] if op == "gru" and config.get("reset_after", True) else [None] if op == "gru" else []
    states = [(B, H)] * (2 if op == "lstm" else 1)
    shapes = [(B, T, I), (GATES[op] * H, I), (GATES[op] * H, H), (GATES[op] * H,), *biases, *states]
    arrays = [None if shape is None else rng.standard_normal(shape).astype(dtype) for shape in shapes]
    arrays[2] *= H**-0.5
    function = getattr(pyrnn, op)
    wanted, pullback = pyrnn.vjp(function, *arrays, **config, backend="reference")
    cotangents = [rng.standard_normal(output.shape).astype(dtype) for output in wanted]
    wanted_grads = pullback(cotangents)
    on_device = [None if array is None else backend.xp.asarray(array) for array in arrays]
    with pyrnn.use_backend(backend, compute=compute):
        found, pullback = pyrnn.vjp(function, *on_device, **config)
        grads = pullback([backend.xp.asarray(cotangent) for cotangent in cotangents])
    tolerance = TOLERANCE[compute or dtype]
    for name, got, want in zip(
        (*wanted._fields, *wanted_grads._fields), (*found, *grads), (*wanted, *wanted_grads), strict=True
    ):
        if want is not None:
            limit = tolerance * max(1.0, float(np.abs(want).max(initial=0)))
            np.testing.assert_allclose(got.get(), want, rtol=0, atol=limit, err_msg=name)


# Rows and units in one block and in several, in one tile and in several; and a device too small for the weights.
@pytest.mark.parametrize("compute", [None, "tf32", "bfloat16"])
@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("sizes", [(3, 4, 2, 5), (40, 3, 5, 33), (70, 2, 3, 12)])
def test_precisions(backend: Any, op: str, sizes: tuple[int, int, int, int], compute: str | None) -> None:
    parity(backend, op, sizes, compute, "float32", lengths=np.arange(sizes[0]) % (sizes[1] + 1))


@contextmanager
def few_registers(processors: int, kibibytes: int) -> Iterator[Any]:
    """Give the backend of a device with few registers for weights, and so much shared memory."""
    attributes = {"MultiProcessorCount": processors, "MaxSharedMemoryPerBlockOptin": kibibytes << 10}
    with fake_cupy.installed(attributes=attributes):
        from pyrnn_cupy import CupyBackend, plans

        plans.REGISTERS = plans.MATRIX_REGISTERS = 32
        plans.FETCHED = plans.WITH_MEMORY = plans.WITH_MANY_ROWS = 0
        yield CupyBackend()


def forward_plan(hidden: int, batch: int, dtype: str, compute: str | None) -> Any:
    from pyrnn_cupy import devices, plans

    work = plans.Work(hidden, batch, 4, hidden, np.dtype(dtype).itemsize, compute, 1)
    return plans.plan(devices.current_device(), work)


# For a block's weights there is room in shared memory of 227 KiB, most of all if operands come there in parts; in less,
# some are read from the device's own.
@pytest.mark.parametrize("room", ["shared", "parts", "less"])
@pytest.mark.parametrize(
    ("dtype", "compute", "less"),
    [("float32", None, 64), ("float64", None, 96), ("float32", "tf32", 96), ("float32", "bfloat16", 96)],
)
def test_weights_beyond_the_registers(dtype: str, compute: str | None, less: int, room: str) -> None:
    with few_registers(5, less if room == "less" else 227) as backend:
        from pyrnn_cupy import plans

        if room == "parts":
            plans.TILE = -10_000  # the more parts, the better
        for batch in (18, 3):  # more rows than a tile has, and fewer
            parity(backend, "lstm", (batch, 3, 3, 132), compute, dtype, lengths=np.arange(batch) % 4)
        plan = forward_plan(132, 18, dtype, compute)
    assert plan is not None and 0 < plan.held < plan.rounds
    assert (plan.scratch > 0) == (plan.held + plan.in_shared < plan.rounds) == (room == "less")
    assert (plan.part < plan.rounds) == (room == "parts")


def test_weights_of_each_group_beyond_the_registers() -> None:
    with few_registers(6, 48) as backend:
        parity(backend, "lstm", (18, 3, 3, 64), None, "float64")
        plan = forward_plan(64, 18, "float64", None)
    assert plan.groups > 1 and plan.scratch > 0


def test_one_launch_where_launches_of_steps_would_take_longer(backend: Any) -> None:
    from pyrnn_cupy import devices, plans

    h200 = devices.Device(processors=132, shared=227 << 10, cache=60 << 20, capability=90)

    def in_one_launch(hidden: int, batch: int, compute: str | None = None) -> bool:
        return plans.plan(h200, plans.Work(hidden, batch, 4, hidden, 4, compute, 1)) is not None

    assert all(in_one_launch(hidden, batch) for hidden in (1, 100, 512, 768) for batch in (1, 16, 64))
    assert in_one_launch(2048, 1) and in_one_launch(2048, 16, "bfloat16")
    assert not in_one_launch(2048, 256) and not in_one_launch(5000, 1)  # too much work; too many units


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_in_any_order_of_threads(backend: Any, seed: int, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.settings, "seed", seed)
    parity(backend, "lstm", (9, 5, 3, 20), None, "float64", reverse=reverse)


# Three blocks that wait for each other, or a block with its group; and tiles, one fetched while another is multiplied.
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("sizes", [(40, 6, 5, 33), (100, 6, 2, 5)])
def test_blocks_and_tiles_in_any_order(
    backend: Any, sizes: tuple[int, int, int, int], compute: str | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_cupy.settings, "seed", seed)
    parity(backend, "lstm", sizes, compute, "float32", lengths=np.arange(sizes[0]) % (sizes[1] + 1))


@pytest.mark.parametrize("op", GATES)
def test_steps_where_weights_find_no_room(backend: Any, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyrnn_cupy import plans

    monkeypatch.setattr(plans, "plan", lambda *_: None)
    parity(backend, op, (4, 5, 3, 20), None, "float64", lengths=[3, 0, 5, 5], reverse=True)


def test_a_gru_that_resets_before_its_product(backend: Any) -> None:
    parity(backend, "gru", (4, 5, 3, 20), None, "float64", lengths=[3, 0, 5, 5], reset_after=False)


def test_relu_does_not_hide_nan(backend: Any) -> None:
    cupy = backend.xp
    x, ones = cupy.asarray([[[-1.0], [np.nan], [1.0]]]), cupy.ones((2, 1))
    y = pyrnn.rnn(x, ones, cupy.ones((2, 2)), activation="relu", backend=backend).y.get()
    np.testing.assert_array_equal(y[0], [[0, 0], [np.nan] * 2, [np.nan] * 2])


def test_an_old_gpu_is_refused() -> None:
    with (
        fake_cupy.installed(compute_capability="75"),
        pytest.raises(
            pyrnn.BackendUnavailableError, match=r"expected a GPU of compute capability 8.0 or more, got 7.5"
        ),
    ):
        import pyrnn_cupy  # noqa: F401


def test_what_cublas_says_is_said(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = backend.xp
    monkeypatch.setattr(cupy.cuda.device, "get_cublas_handle", lambda: 0)
    with pyrnn.use_backend(backend), pytest.raises(RuntimeError, match=r"^cublasSetStream_v2: CUBLAS_STATUS_NOT_INIT"):
        pyrnn.linear(cupy.ones((2, 3)), cupy.ones((4, 3)))


@pytest.mark.parametrize("way", ["in one launch", "step by step"])
def test_a_training_step_is_captured_in_a_graph(backend: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyrnn_cupy import plans

    if way == "step by step":
        monkeypatch.setattr(plans, "plan", lambda *_: None)
    cupy = backend.xp
    rng = np.random.default_rng(0)
    x, w_ih, w_hh = (cupy.asarray(rng.standard_normal(shape)) for shape in ((2, 3, 4), (20, 4), (20, 5)))

    def step() -> tuple[Any, ...]:
        with pyrnn.use_backend(backend):
            outputs, pullback = pyrnn.vjp(pyrnn.lstm, x, w_ih, w_hh)
            return *outputs, *pullback([outputs[0], None, None])[:3]

    step()
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        found = step()
        graph = stream.end_capture()
    for _ in range(2):
        x[...] = cupy.asarray(rng.standard_normal(x.shape))
        graph.launch(stream)
        for got, want in zip(found, step(), strict=True):
            np.testing.assert_array_equal(got.get(), want.get())


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        ("rnn", [(2, 3, 4), (5, 4), (5, 5)]),
        ("causal_conv1d", [(2, 3, 4), (5, 4, 2)]),
        ("attention", [(2, 1, 3, 4), (2, 1, 3, 4), (2, 1, 3, 4)]),
    ],
)
def test_lengths_are_not_captured(backend: Any, op: str, shapes: list[tuple[int, ...]]) -> None:
    cupy = backend.xp
    arrays = [cupy.zeros(shape) for shape in shapes]
    stream = cupy.cuda.Stream(non_blocking=True)
    with pyrnn.use_backend(backend), stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=r"^no CUDA graph can be captured of lengths"):
            getattr(pyrnn, op)(*arrays, lengths=[3, 2])
        stream.end_capture()


def test_nothing_is_copied(backend: Any) -> None:
    cupy = backend.xp
    x, w_ih, w_hh = (cupy.zeros(shape, np.float32) for shape in ((2, 3, 4), (20, 4), (20, 5)))
    fake_cupy.transfers.reset()
    with pyrnn.use_backend(backend):
        (y, *_), pullback = pyrnn.vjp(pyrnn.lstm, x, w_ih, w_hh)
        pullback([y, None, None])
    assert (fake_cupy.transfers.to_device, fake_cupy.transfers.to_host) == (0, 0)
