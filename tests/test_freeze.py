"""`freeze()`: the model's own bits, packed once, whole and step by step, from any thread."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrnn
from pyrnn import nn

CELLS = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}


def equal(got: Any, want: Any) -> None:
    """Hold two nested tuples of arrays against each other, bit by bit."""
    if isinstance(want, tuple):
        assert isinstance(got, tuple) and len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            equal(one, other)
    else:
        assert type(got) is np.ndarray and got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@st.composite
def layers(draw: st.DrawFn, streamable: bool = False) -> tuple[Any, int]:
    """Draw a recurrent layer, or one among others in a Sequential, and its input size."""
    features, hidden = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    options: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": not streamable and draw(st.booleans()),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "learn_initial_state": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "rng": 0,
    }
    name = draw(st.sampled_from(list(CELLS)))
    if name == "GRU":
        options["reset_after"] = draw(st.booleans())
    if name == "RNN":
        options["activation"] = draw(st.sampled_from(["tanh", "relu"]))
    layer = CELLS[name](features, hidden, **options)
    if options["learn_initial_state"]:
        for leaf in layer.leaves:
            parameter = getattr(layer, f"{leaf}_0")
            parameter.write()[...] = np.random.default_rng(1).standard_normal(parameter.shape)
    if draw(st.booleans()):
        kind, wide = options["dtype"], hidden * (2 if options["bidirectional"] else 1)
        rest = [
            nn.LayerNorm(wide, dtype=kind),
            nn.Dropout(0.5, rng=0),
            nn.Tanh(),
            nn.Linear(wide, 3, dtype=kind, rng=0),
        ]
        layer = nn.Sequential(nn.Linear(features, features, dtype=kind, rng=0), layer, *rest[: draw(st.integers(0, 4))])
    return layer, features


def inputs(model: Any, batch: int, time: int, features: int) -> np.ndarray:
    dtype = next(iter(model.parameters())).dtype
    return np.random.default_rng(2).standard_normal((batch, time, features)).astype(dtype)


@given(layers(), st.integers(0, 5), st.integers(0, 12), st.data())
def test_run_is_predict_to_the_bit(drawn: tuple[Any, int], batch: int, time: int, data: st.DataObject) -> None:
    model, features = drawn
    x = inputs(model, batch, time, features)
    lengths = data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    frozen = model.freeze()
    y, state = model.predict(x, lengths=lengths)
    equal(frozen.run(x, lengths=lengths), (y, state))
    equal(frozen.run(x, state), model.predict(x, state))
    equal(frozen.initial_state(batch), pyrnn.detach(model.initial_state(batch)))


@given(layers(streamable=True), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_a_stream_is_predict_step_by_step(drawn: tuple[Any, int], batch: int, time: int, into: bool) -> None:
    model, features = drawn
    x = inputs(model, batch, time, features)
    y, state = model.predict(x)
    stream = model.freeze().stream(batch)
    for t in range(time):
        out = np.full_like(y[:, t], np.nan) if into else None
        got = stream.step(x[:, t], out)
        assert out is None or got is out
        equal(got, y[:, t].copy())
    equal(stream.state, state)
    stream.reset()
    equal(stream.step(x[:, 0]), y[:, 0].copy())
    stream.reset(state)
    equal(stream.step(x[:, 0]), model.predict(x[:, :1], state)[0][:, 0].copy())


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_backend_without_panels_keeps_copies(backend: str) -> None:
    model = nn.GRU(3, 5, num_layers=2, rng=0)
    x = inputs(model, 2, 6, 3)
    with pyrnn.use_backend(backend):
        frozen, want = model.freeze(), model.predict(x)
    assert frozen.backend == backend, "it stays where it was frozen"
    equal(frozen.run(x), want)
    stream = frozen.stream(2)
    equal(np.stack([stream.step(x[:, t]) for t in range(6)], axis=1), want[0])


def test_training_on_changes_nothing() -> None:
    model = nn.Sequential(nn.LSTM(3, 20, rng=0), nn.LayerNorm(20), nn.Linear(20, 2, rng=0))
    x = inputs(model, 2, 5, 3)
    frozen, want = model.freeze(), model.predict(x)
    for parameter in model.parameters():
        parameter.write()[...] = 0
    equal(frozen.run(x), want)


def test_stacks_and_directions_share_one_output() -> None:
    model = nn.LSTM(40, 33, num_layers=2, bidirectional=True, rng=0)
    x = inputs(model, 33, 9, 40)
    equal(
        model.freeze().run(x, lengths=[*range(10)] * 3 + [9, 4, 1]),
        model.predict(x, lengths=[*range(10)] * 3 + [9, 4, 1]),
    )


def test_threads_share_a_frozen_model() -> None:
    model = nn.LSTM(16, 64, num_layers=2, rng=0)
    frozen = model.freeze()
    batches = [inputs(model, size, 30, 16) for size in (1, 2, 7, 32)] * 4
    wanted = [model.predict(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(frozen.run, batches), wanted, strict=True):
            equal(got, want)
    streams = [frozen.stream(4) for _ in range(8)]
    x = inputs(model, 4, 40, 16)
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        results[number] = np.stack([streams[number].step(x[:, t]) for t in range(40)], axis=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        equal(results[number], model.predict(x)[0])


@pytest.mark.parametrize("batch", [1, 24, 70])
@pytest.mark.parametrize("hidden", [8, 40, 300])
def test_a_single_step_is_the_same_for_any_number_of_threads(batch: int, hidden: int) -> None:
    # Its panels are packed on the way, or were before; a team shares rows or units.
    for cell in (
        nn.LSTM(247, hidden, rng=0),
        nn.GRU(247, hidden, rng=0),
        nn.GRU(247, hidden, reset_after=False, rng=0),
    ):
        x = inputs(cell, batch, 1, 247)
        with pyrnn.num_threads(1):
            want = cell.predict(x)
        for threads in (2, 3, 4):
            with pyrnn.num_threads(threads):
                equal(cell.predict(x), want)
                equal(cell.freeze().run(x), want)
                stream = cell.freeze().stream(batch)
                equal(stream.step(x[:, 0]), want[0][:, 0].copy())


def test_a_stream_over_weights_larger_than_a_cache() -> None:
    # There every other step goes over the weights backwards.
    model = nn.LSTM(300, 400, rng=0)
    x = inputs(model, 2, 5, 300)
    stream = model.freeze().stream(2)
    equal(np.stack([stream.step(x[:, t]) for t in range(5)], axis=1), model.predict(x)[0])


def test_a_step_in_place() -> None:
    model = nn.RNN(5, 5, rng=0)
    x = inputs(model, 2, 4, 5)
    stream, array = model.freeze().stream(2), x[:, 0].copy()
    assert stream.step(array, out=array) is array
    equal(array, model.predict(x[:, :1])[0][:, 0].copy())


def test_strided_inputs_and_states() -> None:
    model = nn.GRU(3, 4, rng=0)
    x = inputs(model, 6, 8, 3)
    frozen = model.freeze()
    turned = np.asfortranarray(x)
    equal(frozen.run(turned), model.predict(x))
    state = (np.random.default_rng(0).standard_normal((4, 1, 6)).astype(np.float32).transpose(2, 1, 0),)
    equal(frozen.run(x[::-1], state), model.predict(x[::-1].copy(), state))
    stream = frozen.stream(3)
    equal(stream.step(turned[::2, 0]), model.predict(x[::2, :1])[0][:, 0].copy())


def test_embeddings_take_integers() -> None:
    model = nn.Sequential(nn.Embedding(11, 4, rng=0), nn.LSTM(4, 6, rng=0), nn.Linear(6, 11, rng=0))
    tokens = np.array([[1, 2, 10], [0, 0, 5]])
    want = model.predict(tokens)
    frozen = model.freeze()
    equal(frozen.run(tokens), want)
    stream, out = frozen.stream(2), np.empty((2, 11), np.float32)
    for t in range(3):
        equal(stream.step(tokens[:, t], out), want[0][:, t].copy())
    with pytest.raises(ValueError, match=r"x_t: expected an array of shape \(batch, ...\) = \(2, ...\), got \(3,\)"):
        stream.step(tokens[0])


def test_a_backend_of_the_model_and_of_the_moment() -> None:
    model = nn.LSTM(2, 3, rng=0).to("reference")
    assert model.freeze().backend == "reference"
    with pyrnn.use_backend("cython"):
        assert model.freeze().backend == "cython"


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.run(zeros(2, 3, 4)), ValueError,
         r"x: expected shape \(B, T, I\) = \(2, 3, 5\), got \(2, 3, 4\)"),
        (lambda f: f.run(np.zeros((2, 3, 5))), TypeError,
         "x: expected float32 like the layer's parameters, got float64"),
        (lambda f: f.run(zeros(5)), ValueError,
         r"x: expected an array of shape \(B, T, ...\), got \(5,\)"),
        (lambda f: f.run([[[1.0]]]), ValueError,
         r"x: expected an array of shape \(B, T, ...\), got list"),
        (lambda f: f.run(pyrnn.Tensor(zeros(2, 3, 5))), TypeError,
         "x: expected an array, since a frozen model has no tape"),
        (lambda f: f.run(zeros(2, 3, 5), lengths=[3, 4]), ValueError,
         "lengths: expected values from 0 to T = 3, got 3 to 4"),
        (lambda f: f.run(zeros(2, 3, 5), (1,)), ValueError,
         r"state: expected a tuple \(h, c\)"),
        (lambda f: f.run(zeros(2, 3, 5), (zeros(1, 1, 6),) * 2), ValueError,
         r"state\[0\] \(h\): expected shape"),
        (lambda f: f.stream(0), ValueError,
         "batch: expected at least 1, got 0"),
        (lambda f: f.stream(2).step(zeros(2, 4)), ValueError,
         r"x_t: expected shape \(batch, features\) = \(2, 5\), got \(2, 4\)"),
        (lambda f: f.stream(2).step(np.zeros((2, 5))), TypeError,
         "x_t: expected float32 like the layer's parameters, got float64"),
        (lambda f: f.stream(2).step(zeros(2, 5), zeros(2, 5)), ValueError,
         r"out: expected float32 of shape \(2, 6\), got float32 of shape \(2, 5\)"),
        (lambda f: f.stream(2).step(zeros(2, 5), zeros(6, 2).T), ValueError,
         "out: expected a contiguous array"),
        (lambda f: f.stream(2).step(zeros(2, 5), [1]), TypeError,
         "out: expected an array"),
        (lambda f: pickle.dumps(f), TypeError,
         "pickle the model, and freeze it where it is to run"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(nn.LSTM(5, 6, rng=0).freeze())


def test_what_can_not_be_frozen() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            self.lstm = nn.LSTM(2, 3, rng=0)

    with pytest.raises(TypeError, match="freeze: Mine is a class of your own"):
        nn.Sequential(Mine()).freeze()
    with pytest.raises(
        ValueError, match="dtype: expected None or one that is supported for this model: 'float32'; got 'int8'"
    ):
        nn.LSTM(2, 3).freeze("int8")
    with pytest.raises(ValueError, match="supported for this model: 'float64'; got 'bfloat16'"):
        nn.LSTM(2, 3, dtype="float64").freeze("bfloat16")
    with pytest.raises(ValueError, match="freeze: expected parameters of one dtype, got float32 and float64"):
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype="float64")).freeze()
    both = nn.Sequential(nn.Linear(2, 2, rng=0), nn.GRU(2, 2, bidirectional=True, rng=0)).freeze()
    assert not both.streamable
    with pytest.raises(ValueError, match=r"stream: 1\.GRU needs the whole sequence for its first output"):
        both.stream()
    assert repr(both) == "<frozen model on 'cython'>"


def test_a_refused_step_leaves_the_state() -> None:
    stream = nn.LSTM(2, 3, num_layers=2, rng=0).freeze().stream()
    before = stream.state
    for x, out in (((1, 3), None), ((1, 2), np.zeros((1, 2), np.float32))):
        with pytest.raises(ValueError, match="expected"):
            stream.step(np.ones(x, np.float32), out)
    equal(stream.state, before)


def test_the_state_handed_out_is_a_copy() -> None:
    stream = nn.LSTM(2, 3, rng=0).freeze().stream()
    stream.step(np.ones((1, 2), np.float32))
    kept = stream.state
    was = copy.deepcopy(kept)
    stream.step(np.ones((1, 2), np.float32))
    equal(kept, was)


def test_in_a_forked_child() -> None:
    code = """
import os, numpy as np
from pyrnn import nn
model = nn.LSTM(300, 300, rng=0)
x = np.ones((1, 300), np.float32)
frozen = model.freeze()
stream = frozen.stream()
first = stream.step(x)
pid = os.fork()
if pid == 0:
    again = frozen.stream().step(x)
    os._exit(0 if np.array_equal(first, again) and np.isfinite(stream.step(x)).all() else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
