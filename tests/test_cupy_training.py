"""Training on the GPU, its kernels run thread by thread on the CPU: what crosses to the host, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn
from pyrnn import Tensor, io, nn, optim
from pyrnn.autograd import functions
from pyrnn.data import Batches
from pyrnn.testing import check_backend

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import emulator
import fake_cupy

pytestmark = pytest.mark.skipif(bool(emulator.unavailable()), reason=emulator.unavailable())
CLASSES, FEATURES = 7, 6
ATTENDING = ("rotary", "alibi")


@pytest.fixture(scope="module")
def cupy() -> Iterator[Any]:
    with fake_cupy.installed(attributes={"MultiProcessorCount": 4}) as module:
        yield module


@pytest.fixture
def backend(cupy: Any) -> Any:
    from pyrnn_cupy import CupyBackend

    return CupyBackend()


@pytest.fixture(params=["many", "one"])
def blocks(request: pytest.FixtureRequest, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have kernels launched with as many blocks as small arrays have work for, or with one that goes over all of it."""
    from pyrnn_cupy import basic, update

    if request.param == "one":
        for module, name in ((basic, "BLOCKS"), (basic, "TABLE_BLOCKS"), (update, "BLOCKS")):
            monkeypatch.setattr(module, name, 1)
    return str(request.param)


def head(width: int) -> nn.Linear:
    return nn.Linear(width, CLASSES, rng=1)


def transformer(positions: str) -> nn.Module:
    layers = nn.Transformer(1, 8, 2, 16, positions=positions, dropout=0.1, rng=0)
    return nn.Sequential(nn.Embedding(CLASSES, 8, rng=0), layers, head(8))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.Sequential(nn.LSTM(FEATURES, 8, rng=0), head(8)),
    "gru": lambda: nn.Sequential(
        nn.GRU(FEATURES, 4, num_layers=2, bidirectional=True, dropout=0.3, rng=0), nn.LayerNorm(8), nn.Tanh(), head(8)
    ),
    "tcn": lambda: nn.Sequential(nn.TCN(FEATURES, [8, 8], dropout=0.2, rng=0), nn.Dropout(0.2, rng=0), head(8)),
    "wavenet": lambda: nn.Sequential(nn.CausalConv1d(FEATURES, 8, 3, weight_norm=True, rng=0), nn.ReLU(), head(8)),
    "positions": lambda: nn.Sequential(nn.SinusoidalPositions(6), nn.LearnedPositions(20, 6, rng=0), head(6)),
    "rotary": lambda: transformer("rotary"),
    "alibi": lambda: transformer("alibi"),
}


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, CLASSES, (3, 9))
    return (targets if name in ATTENDING else rng.standard_normal((3, 9, FEATURES), np.float32)), targets


def train(
    model: nn.Module, optimizer: optim.Optimizer, x: Any, targets: Any, lengths: Any = None
) -> tuple[Tensor, Any]:
    y, _ = model(x, lengths=lengths)
    loss = nn.cross_entropy(y, targets, lengths=lengths)
    optimizer.zero_grad()
    loss.backward()
    norm = optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss, norm


@pytest.mark.parametrize("name", MODELS)
def test_a_step_copies_nothing_but_the_loss_that_is_read(cupy: Any, backend: Any, name: str) -> None:
    model = MODELS[name]().to(backend)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    x, targets = map(cupy.asarray, data(name))
    with pyrnn.use_backend(backend):
        train(model, optimizer, x, targets)  # tables are brought to the device once
        fake_cupy.transfers.reset()
        loss, norm = train(model, optimizer, x, targets)
        assert (fake_cupy.transfers.to_device, fake_cupy.transfers.to_host) == (0, 0)
        assert fake_cupy.transfers.launches > 0
    assert np.isfinite(float(loss)) and np.isfinite(float(norm))
    assert fake_cupy.transfers.to_host == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_is_captured_in_a_graph(cupy: Any, backend: Any, name: str) -> None:
    model = MODELS[name]().to(backend)
    given, _ = data(name)
    x = cupy.asarray(given)
    model.predict(x)  # kernels are compiled, and tables brought to the device
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        y, _ = model.predict(x)
        graph = stream.end_capture()
    x[...] = cupy.asarray(given[::-1].copy())
    graph.launch(stream)
    np.testing.assert_array_equal(y.get(), model.predict(x)[0].get())


@pytest.mark.parametrize("name", ["lstm", "tcn", "wavenet"])
@pytest.mark.parametrize("lengths", [None, [9, 4, 0]])
def test_training_goes_as_on_the_host(cupy: Any, backend: Any, name: str, lengths: Any) -> None:
    x, targets = data(name)
    losses = []
    for chosen, place in (("cython", np.asarray), (backend, cupy.asarray)):
        model = MODELS[name]().eval()  # without dropout, which draws other elements on a device
        model.to(chosen)
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        with pyrnn.use_backend(chosen):
            losses.append([float(train(model, optimizer, place(x), place(targets), lengths)[0]) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][2] < losses[0][0]


def test_there_and_back_gives_the_parameters_bit_for_bit(cupy: Any, backend: Any, tmp_path: Path) -> None:
    model = MODELS["lstm"]()
    before = model.state_dict()
    model.to(backend)
    assert all(isinstance(parameter.data, cupy.ndarray) for parameter in model.parameters())
    io.save(model, tmp_path / "model.safetensors")
    model.to("cython")
    loaded = io.load(tmp_path / "model.safetensors").state_dict()
    for name, array in model.state_dict().items():
        assert isinstance(array, np.ndarray) and np.array_equal(array, before[name])
        assert np.array_equal(loaded[name], before[name])


def test_a_training_is_resumed_on_the_device(cupy: Any, backend: Any, tmp_path: Path) -> None:
    x, targets = map(cupy.asarray, data("tcn"))
    runs = []
    with pyrnn.use_backend(backend):
        for _ in range(2):
            model = MODELS["tcn"]().to(backend)
            runs.append((model, optim.AdamW(model.parameters(), lr=1e-2)))
        (model, optimizer), (again, again_optimizer) = runs
        train(model, optimizer, x, targets)
        io.save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer)
        io.load_checkpoint(tmp_path / "run.safetensors", model=again, optimizer=again_optimizer)
        for run in runs:
            train(*run, x, targets)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert np.array_equal(one.data.get(), other.data.get())


@pytest.mark.parametrize("name", ["lstm", "tcn"])
def test_a_frozen_model_runs_and_streams(cupy: Any, backend: Any, name: str) -> None:
    model, x = MODELS[name]().to(backend), cupy.asarray(data(name)[0])
    want, _ = model.predict(x)
    frozen = model.freeze()
    y, _ = frozen.run(x)
    stream = frozen.stream(batch=3)
    steps = [stream.step(x[:, t]).get() for t in range(3)]
    np.testing.assert_allclose(y.get(), want.get(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.stack(steps, 1), want.get()[:, :3], rtol=1e-5, atol=1e-6)


# --- what is refused, with the fix ------------------------------------------------------------------------------------


def test_host_arrays_are_refused_by_a_model_on_the_device(cupy: Any, backend: Any) -> None:
    model, embedding = MODELS["lstm"]().to(backend), nn.Embedding(CLASSES, 2, rng=0).to(backend)
    x, targets = data("lstm")
    fix = r"copy (it|one) with cupy\.asarray"
    for call in (
        lambda: model(x),
        lambda: embedding(targets),
        lambda: nn.mse_loss(cupy.asarray(x), x),
        lambda: nn.mse_loss(cupy.asarray(x), cupy.asarray(x), mask=targets > 0),
        lambda: pyrnn.cross_entropy(cupy.asarray(x), targets=targets % FEATURES, backend=backend),
        lambda: functions.where(targets > 0, Tensor(cupy.ones(targets.shape)), 0.0),
        lambda: Tensor(cupy.asarray(x)) + x,
    ):
        with pytest.raises(TypeError, match=fix):
            call()


def test_device_arrays_are_refused_by_a_model_on_the_host(cupy: Any, backend: Any) -> None:
    model, embedding = MODELS["lstm"](), nn.Embedding(CLASSES, 2, rng=0)
    x, targets = data("lstm")
    for call in (
        lambda: model(cupy.asarray(x)),
        lambda: embedding(cupy.asarray(targets)),
        lambda: nn.mse_loss(x, cupy.asarray(x)),
        lambda: nn.mse_loss(x, x, mask=cupy.asarray(targets > 0)),
        lambda: Tensor(x) * cupy.asarray(x),
    ):
        with pytest.raises(TypeError, match=r"\.get\(\)"):
            call()


def test_an_optimiser_made_before_the_move_is_refused(cupy: Any, backend: Any) -> None:
    model = MODELS["lstm"]()
    optimizer = optim.Adam(model.parameters())
    model.to(backend)
    for parameter in model.parameters():
        parameter.grad = cupy.ones_like(parameter.data)
    with pytest.raises(TypeError, match=r"exp_avg of params\[0\], made before the model was moved"):
        optimizer.step()


def test_an_index_that_is_none_gives_nan(cupy: Any, backend: Any) -> None:
    table, indices = cupy.ones((5, 2))[1:4], cupy.asarray([0, 3, -1])  # numbers lie on both sides
    assert np.isnan(pyrnn.embedding(table, indices=indices, backend=backend).get()).tolist() == [[0, 0], [1, 1], [1, 1]]
    logits = cupy.zeros((3, 3))
    for mask, lost in ((None, [0, 1, 1]), ([True, False, True], [0, 0, 1])):
        options = {"targets": indices, "mask": mask, "backend": backend}
        loss, pullback = pyrnn.vjp(pyrnn.cross_entropy, logits, **options)
        for found in (loss, *pullback([cupy.ones(3)])):
            assert np.isnan(found.get()).reshape(3, -1).all(axis=1).tolist() == lost
    with pytest.raises(ValueError, match="indices: expected values from 0"):
        pyrnn.embedding(table, indices=[0, 3], backend=backend)  # a list is the host's, and looked at


# --- parts ------------------------------------------------------------------------------------------------------------


def test_kit(cupy: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.settings, "seed", 1)  # of the order in which threads run
    ops = ["linear", "layer_norm", "softmax", "embedding", "cross_entropy"]
    report = check_backend(backend, ops=ops, max_examples=10, progress=False)
    assert report.ok, str(report)


def test_matrices_whose_rows_share_memory(cupy: Any, backend: Any) -> None:
    rng = np.random.default_rng(0)
    w, row, dy_row = rng.standard_normal((4, 3)), rng.standard_normal(3), rng.standard_normal(4)
    found = []
    for chosen, xp in (("reference", np), (backend, cupy)):
        x, dy = xp.broadcast_to(xp.asarray(row), (5, 3)), xp.broadcast_to(xp.asarray(dy_row), (5, 4))
        y, pullback = pyrnn.vjp(pyrnn.linear, x, xp.asarray(w), backend=chosen)
        found.append([pyrnn.testing.subject.to_host(array) for array in (y, *pullback([dy])[:2])])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 1])
def test_long_rows(
    cupy: Any, backend: Any, blocks: str, dtype: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_cupy.settings, "seed", seed)  # of the order in which threads run
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 2000)).astype(dtype), rng.standard_normal((2, 3, 2000)).astype(dtype)
    weight, targets = rng.standard_normal(2000).astype(dtype), rng.integers(0, 2000, (2, 3))
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    for op, arrays, options, grad in (
        (pyrnn.layer_norm, (x, weight, weight), {}, dy),
        (pyrnn.softmax, (x,), {}, dy),
        (pyrnn.cross_entropy, (x,), {"targets": targets}, dy[..., 0]),
        (pyrnn.embedding, (x[0],), {"indices": targets % 3}, dy),
    ):
        want, pull_want = pyrnn.vjp(op, *arrays, **options, backend="reference")
        placed = {name: cupy.asarray(value) for name, value in options.items()}
        got, pull_got = pyrnn.vjp(op, *map(cupy.asarray, arrays), **placed, backend=backend)
        np.testing.assert_allclose(got.get(), want, **close)
        for one, other in zip(pull_got(cupy.asarray(grad)), pull_want(grad), strict=True):
            np.testing.assert_allclose(one.get(), other, **close)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: optim.Adam(p, lr=0.1, weight_decay=0.1),
        lambda p: optim.AdamW(p, lr=0.1),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_updates(
    cupy: Any, backend: Any, blocks: str, dtype: str, make: Callable[..., optim.Optimizer], turned: bool
) -> None:
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((5, 70)).astype(dtype), rng.standard_normal((3, 5, 70)).astype(dtype)
    found = []
    for chosen, place in ((pyrnn.get_backend("reference"), np.asarray), (backend, cupy.asarray)):
        parameter = Tensor(place(start.copy()).T if turned else place(start.copy()), requires_grad=True)
        optimizer = make([parameter])
        with pyrnn.use_backend(chosen):
            for grad in grads:
                parameter.grad = place(grad).T if turned else place(grad)
                optimizer.step()
        found.append(pyrnn.testing.subject.to_host(parameter.data))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4 if dtype == "float32" else 1e-12)


def test_dropout_is_drawn_on_the_device(cupy: Any, backend: Any, blocks: str) -> None:
    from pyrnn.reference.attention import philox

    generator, same = np.random.default_rng(3), np.random.default_rng(3)
    fake_cupy.transfers.reset()
    factors = backend.dropout_factors((7, 243), np.dtype("float32"), 0.3, generator)
    assert fake_cupy.transfers.to_device == 0
    low, high = same.integers(2**32, size=2, dtype=np.uint64)
    words = np.stack(philox((np.arange(426), 0, 0, 0), int(low) | int(high) << 32), axis=-1).reshape(-1)[:1701]
    kept = (words >= np.ceil(0.3 * 2**32)).reshape(7, 243)
    np.testing.assert_allclose(factors.get(), kept / 0.7, rtol=1e-6)
    assert not backend.dropout_factors((5,), np.dtype("float64"), 1.0, generator).get().any()


def test_a_norm_is_clipped_as_on_the_host(cupy: Any) -> None:
    for values in ([3.0, 4.0], [0.1, 0.2], [np.inf, 1.0], [np.nan, 1.0]):
        found = []
        for place in (np.asarray, cupy.asarray):
            parameter = Tensor(place([1.0, 1.0]), requires_grad=True)
            parameter.grad = place(values)
            with np.errstate(invalid="ignore"):  # 0 times infinity
                norm = float(optim.clip_grad_norm_([parameter], 2.0))
            found.append([norm, *pyrnn.testing.subject.to_host(parameter.grad)])
        np.testing.assert_allclose(*found)
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        optim.clip_grad_norm_([parameter], 2.0, error_if_nonfinite=True)


def test_powers_on_the_device(cupy: Any) -> None:
    for power in (lambda x: x**2, lambda x: x**0, lambda x: 2.0**x, lambda x: x**x):
        found = []
        for place in (np.asarray, cupy.asarray):
            x = Tensor(place([0.5, 2.0, 3.0]), requires_grad=True)
            power(x).sum().backward()
            found.append(pyrnn.testing.subject.to_host(x.grad))
        np.testing.assert_allclose(*found)


def test_batches_of_device_arrays_stay_there(cupy: Any) -> None:
    x, lengths = np.arange(12.0).reshape(6, 2), np.arange(6)
    host, device = Batches(x, lengths, batch_size=4, rng=0), Batches(cupy.asarray(x), lengths, batch_size=4, rng=0)
    fake_cupy.transfers.reset()
    for want, got in zip(host, device, strict=True):
        assert isinstance(got[0], cupy.ndarray) and isinstance(got[1], np.ndarray)
        assert np.array_equal(got[0].get(), want[0]) and np.array_equal(got[1], want[1])
    assert fake_cupy.transfers.to_device == 2  # the numbers of the rows


def test_from_dlpack_takes_an_array_on_a_gpu(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    monkeypatch.setattr(cupy, "from_dlpack", lambda array: ("taken", array))
    foreign = Foreign()
    assert pyrnn.from_dlpack(foreign) == ("taken", foreign)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="which needs CuPy"):
        pyrnn.from_dlpack(foreign)
