"""CausalConv1d, TCN and WaveNet: loops by hand, chunks, streams, padding, gradients, PyTorch's weights."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrnn
from pyrnn import io, nn
from pyrnn.autograd import no_grad, to_arrays
from pyrnn.backend import DEFAULT, choose
from pyrnn.io import architecture, container
from pyrnn.nn.tcn import TemporalBlock
from pyrnn.reference.backend import ReferenceBackend

Tensor = pyrnn.Tensor
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = ["float32", "float64"]


@pytest.fixture(scope="module", params=sorted({DEFAULT, "reference"}), autouse=True)
def backend(request: Any) -> Iterator[str]:
    """The backend that every test of this file runs on."""
    with pyrnn.use_backend(request.param):
        yield request.param


def exact() -> bool:
    """Whether chunks are to give the bits of the whole, on the backend in use."""
    return "chunk" in choose("causal_conv1d").claims["causal_conv1d"].invariances


def agree(got: Any, want: Any, bits: bool | None = None) -> None:
    """Hold nested tuples of arrays or Tensors against each other: bit by bit where that is promised."""
    got, want = to_arrays(got), to_arrays(want)
    if isinstance(want, tuple):
        assert isinstance(got, tuple) and len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            agree(one, other, bits)
        return
    assert got.dtype == want.dtype and got.shape == want.shape
    if exact() if bits is None else bits:
        np.testing.assert_array_equal(got, want)
    else:
        tight = 1e-5 if want.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(got, want, rtol=tight, atol=tight)


@st.composite
def convs(draw: Any, dtype: str = "float64") -> nn.CausalConv1d:
    groups = draw(st.integers(1, 3))
    return nn.CausalConv1d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 5)),
        draw(st.integers(1, 4)),
        dilation=draw(st.integers(1, 5)),
        groups=groups,
        bias=draw(st.booleans()),
        weight_norm=draw(st.booleans()),
        dtype=dtype,
        rng=draw(SEEDS),
    )


@st.composite
def tcns(draw: Any, dtype: str = "float64") -> nn.TCN:
    channels = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    return nn.TCN(
        draw(st.integers(1, 9)),
        channels,
        draw(st.integers(1, 4)),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        dilations=draw(st.none() | st.lists(st.integers(1, 6), min_size=len(channels), max_size=len(channels))),
        weight_norm=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "tanh"])),
        dtype=dtype,
        rng=draw(SEEDS),
    )


@st.composite
def wavenets(draw: Any, dtype: str = "float64") -> nn.WaveNet:
    return nn.WaveNet(
        draw(st.integers(1, 4)),
        residual_channels=draw(st.integers(1, 9)),
        skip_channels=draw(st.integers(1, 9)),
        output_size=draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 4)),
        num_stacks=draw(st.integers(1, 3)),
        kernel_size=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        dtype=dtype,
        rng=draw(SEEDS),
    )


def layers(dtype: str = "float64") -> st.SearchStrategy[Any]:
    return st.one_of(convs(dtype), tcns(dtype), wavenets(dtype))


def small(dtype: str = "float64") -> list[Any]:
    """One of each, in training mode and with all that they may have."""
    return [
        nn.CausalConv1d(4, 6, 3, dilation=2, groups=2, weight_norm=True, dtype=dtype, rng=0),
        nn.TCN(4, [3, 3, 5], 3, activation="tanh", dropout=0.0, dtype=dtype, rng=0),
        nn.WaveNet(
            4, residual_channels=3, skip_channels=5, output_size=2, num_layers=3, num_stacks=2, dtype=dtype, rng=0
        ),
    ]


SMALL = pytest.mark.parametrize("number", range(3), ids=["CausalConv1d", "TCN", "WaveNet"])


def features(layer: Any) -> int:
    return int(layer.config.get("in_channels", layer.config.get("input_size")))


def inputs(layer: Any, batch: int, time: int, seed: int = 0) -> np.ndarray:
    dtype = next(layer.parameters()).dtype
    return np.random.default_rng(seed).normal(size=(batch, time, features(layer))).astype(dtype)


def some_state(layer: Any, batch: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in layer.initial_state(batch))


def some_lengths(data: Any, batch: int, time: int) -> Any:
    return data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))


# --- by hand --------------------------------------------------------------------------------------------------


def conv(x: np.ndarray, w: np.ndarray, b: Any, dilation: int = 1, groups: int = 1) -> np.ndarray:
    """Convolve (T, Cin) causally, number by number."""
    time, (outputs, columns, taps) = len(x), w.shape
    y = np.zeros((time, outputs))
    for t in range(time):
        for o in range(outputs):
            first = o // (outputs // groups) * columns
            total = 0.0 if b is None else float(b[o])
            for k in range(taps):
                at = t - (taps - 1 - k) * dilation
                if at >= 0:
                    total += sum(float(w[o, i, k]) * float(x[at, first + i]) for i in range(columns))
            y[t, o] = total
    return y


def by_hand(layer: Any, x: np.ndarray) -> np.ndarray:
    """Run a layer over one sequence (T, C) from its state_dict."""
    weights = layer.state_dict()

    def run(name: str, x: np.ndarray, dilation: int = 1, groups: int = 1) -> np.ndarray:
        if f"{name}weight_g" in weights:
            g, v = weights[f"{name}weight_g"], weights[f"{name}weight_v"]
            w = np.stack([g[o, 0, 0] * v[o] / math.sqrt((v[o] ** 2).sum()) for o in range(len(v))])
        else:
            w = weights[f"{name}weight"]
        return conv(x, w, weights.get(f"{name}bias"), dilation, groups)

    config = layer.config
    if isinstance(layer, nn.CausalConv1d):
        return run("", x, config["dilation"], config["groups"])
    if isinstance(layer, nn.TCN):
        for i in range(len(config["num_channels"])):
            act = (lambda a: np.maximum(a, 0)) if config["activation"] == "relu" else np.tanh
            dilation = 2**i if config["dilations"] is None else config["dilations"][i]
            y = act(run(f"network.{i}.conv1.", x, dilation))
            y = act(run(f"network.{i}.conv2.", y, dilation))
            x = act(y + (run(f"network.{i}.downsample.", x) if x.shape[1] != y.shape[1] else x))
        return x
    x, skips = run("input.", x), 0
    residual, skip = config["residual_channels"], config["skip_channels"]
    total = config["num_layers"] * config["num_stacks"]
    for i in range(total):
        z = run(f"layers.{i}.dilated.", x, 2 ** (i % config["num_layers"]))
        added = run(f"layers.{i}.res_skip.", np.tanh(z[:, :residual]) / (1 + np.exp(-z[:, residual:])))
        skips = skips + added[:, -skip:]
        if i < total - 1:
            x = x + added[:, :residual]
    for i in range(2):
        skips = run(f"head.{i}.", np.maximum(skips, 0))
    return skips


@given(data=st.data(), seed=SEEDS)
def test_layers_are_their_formulas(data: Any, seed: int) -> None:
    layer = data.draw(layers())
    batch, time = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 12))
    x = inputs(layer, batch, time, seed)
    lengths = some_lengths(data, batch, time)
    y, state = layer.eval()(x, lengths=lengths)
    for row in range(batch):
        valid = time if lengths is None else lengths[row]
        np.testing.assert_allclose(y.data[row, :valid], by_hand(layer, x[row, :valid]), rtol=1e-9, atol=1e-11)
        assert not y.data[row, valid:].any()
    assert [leaf.shape for leaf in state] == [leaf.shape for leaf in layer.initial_state(batch)]


def test_names_and_counts() -> None:
    norm, tcn, wavenet = small()
    assert {name: a.shape for name, a in norm.state_dict().items()} == {
        "weight_g": (6, 1, 1), "weight_v": (6, 2, 3), "bias": (6,),
    }  # fmt: skip
    assert list(nn.CausalConv1d(2, 3, 1, bias=False).state_dict()) == ["weight"]
    convolution = {"weight_g", "weight_v", "bias"}
    assert set(tcn.state_dict()) == {
        *(f"network.{i}.conv{k}.{name}" for i in range(3) for k in (1, 2) for name in convolution),
        *(f"network.{i}.downsample.{name}" for i in (0, 2) for name in ("weight", "bias")),
    }
    assert {name: a.shape for name, a in wavenet.state_dict().items() if name.endswith("weight")} == {
        "input.weight": (3, 4, 2),
        **{f"layers.{i}.dilated.weight": (6, 3, 2) for i in range(6)},
        **{f"layers.{i}.res_skip.weight": (8 if i < 5 else 5, 3, 1) for i in range(6)},
        "head.0.weight": (5, 5, 1),
        "head.1.weight": (2, 5, 1),
    }
    for layer in small():
        assert dict(layer.parameter_shapes(layer.config)) == {n: a.shape for n, a in layer.state_dict().items()}


# --- the receptive field ----------------------------------------------------------------------------------------


@given(data=st.data())
def test_just_so_many_steps_matter(data: Any) -> None:
    layer = data.draw(layers())
    field = layer.receptive_field
    assert field == 1 + sum(leaf.shape[1] for leaf in layer.initial_state(1)), "and that much is carried"
    x = inputs(layer, 2, field + 3)
    x[1, -field:] = x[0, -field:]
    y = layer.predict(x)[0][:, -1]
    agree(y[1], y[0])
    # With positive weights and no bias, silence stays silence, and whatever comes is heard, however little of it.
    for name, parameter in layer.named_parameters():
        nn.init.uniform_(parameter, *((0, 0) if name.endswith("bias") else (0.5, 1)), rng=0)
    impulses = np.zeros((field + 1, field + 1, features(layer)))
    impulses[np.arange(field + 1), np.arange(field, -1, -1)] = 0.1
    heard = layer.predict(impulses)[0][:, -1]
    assert (heard[field - 1] > 0).all() and not heard[field].any()
    if isinstance(layer, nn.WaveNet) and layer.config["kernel_size"] > 1:
        assert (heard[:field] > 0).all(), "dilations by two leave no gap"


def test_receptive_fields_of_the_papers() -> None:
    assert nn.TCN(1, [2] * 8, 7).receptive_field == 1 + 2 * 6 * 255
    assert nn.TCN(1, [2, 2], 3, dilations=[3, 5]).receptive_field == 1 + 2 * 2 * 8
    wavenet = nn.WaveNet(
        1, residual_channels=2, skip_channels=2, output_size=1, num_layers=10, num_stacks=3, kernel_size=2
    )
    assert wavenet.receptive_field == 1 + 1 + 3 * 1023
    assert nn.CausalConv1d(1, 1, 4, dilation=5).receptive_field == 16


# --- the state protocol -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), seed=SEEDS)
def test_chunks_are_the_whole(dtype: str, data: Any, seed: int) -> None:
    layer = data.draw(layers(dtype)).eval()
    batch, time = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 40))
    x = inputs(layer, batch, time, seed)
    state = some_state(layer, batch, seed) if data.draw(st.booleans()) else None
    lengths = some_lengths(data, batch, time)
    cuts = sorted(data.draw(st.lists(st.integers(0, time), max_size=5)))
    carried, outputs = state, []
    for start, stop in zip([0, *cuts], [*cuts, time], strict=True):
        valid = None if lengths is None else np.clip(np.subtract(lengths, start), 0, stop - start)
        y, carried = layer.predict(x[:, start:stop], carried, lengths=valid)
        outputs.append(y)
    assert layer.streamable
    agree((np.concatenate(outputs, axis=1), carried), layer.predict(x, state, lengths=lengths))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), batch=st.integers(0, 4), time=st.integers(0, 20), seed=SEEDS)
def test_run_is_predict_to_the_bit(dtype: str, data: Any, batch: int, time: int, seed: int) -> None:
    model = data.draw(layers(dtype))
    x, state = inputs(model, batch, time, seed), some_state(model, batch, seed)
    lengths = some_lengths(data, batch, time)
    frozen = model.freeze()
    agree(frozen.run(x, lengths=lengths), model.predict(x, lengths=lengths), bits=True)
    agree(frozen.run(x, state, lengths), model.predict(x, state, lengths=lengths), bits=True)
    agree(frozen.initial_state(batch), model.initial_state(batch), bits=True)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), batch=st.integers(1, 4), time=st.integers(1, 30), into=st.booleans(), seed=SEEDS)
def test_a_stream_is_predict(dtype: str, data: Any, batch: int, time: int, into: bool, seed: int) -> None:
    model = data.draw(layers(dtype))
    if data.draw(st.booleans()):
        wide = model.freeze().stream(1).step(inputs(model, 1, 1)[:, 0]).shape[1]
        model = nn.Sequential(model, nn.Linear(wide, 2, dtype=dtype, rng=0), nn.TCN(2, [3], 2, dtype=dtype, rng=0))
    x = inputs(model[0] if isinstance(model, nn.Sequential) else model, batch, time, seed)
    y, state = model.predict(x)
    stream = model.freeze().stream(batch)
    for t in range(time):
        out = np.full_like(y[:, t], np.nan) if into else None
        got = stream.step(x[:, t], out)
        assert out is None or got is out
        agree(got, y[:, t])
    agree(stream.state, state)
    kept = copy.deepcopy(state)
    stream.reset(state)
    for t in range(time):
        stream.step(x[:, t])
    agree(state, kept, bits=True)
    agree(stream.state, model.predict(np.concatenate([x, x], axis=1))[1])
    stream.reset()
    agree(stream.step(x[:, 0]), y[:, 0])


def bits(array: Any) -> bytes:
    """The bits of an array, but for what a NaN has beside being one."""
    return bytes(np.where(np.isnan(array), np.nan, array).astype(array.dtype).tobytes())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@given(data=st.data(), batch=st.integers(1, 3), silent=st.booleans(), seed=SEEDS)
def test_a_step_has_the_bits_of_the_whole(dtype: str, data: Any, batch: int, silent: bool, seed: int) -> None:
    if not exact():
        pytest.skip("this backend doesn't claim it")
    model = data.draw(st.one_of(tcns(dtype), wavenets(dtype))).eval()
    if silent:  # numbers near the smallest then come through to the end
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.uniform_(parameter, 0, 0, rng=0)
    tiny = np.finfo(dtype).tiny
    x = inputs(model, batch, 9, seed)
    special = st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e30, tiny, 1.3 * tiny, tiny / 8, -tiny / 3])
    for index in data.draw(st.lists(st.integers(0, x.size - 1), max_size=8)):
        x.flat[index] = data.draw(special)
    if data.draw(st.booleans()):
        x = (x * tiny).astype(dtype)
    stream = model.freeze().stream(batch)
    got = np.stack([stream.step(x[:, t]) for t in range(9)], axis=1)
    assert bits(got) == bits(model.freeze().run(x)[0]) == bits(model.predict(x)[0]) == bits(model(x)[0].data)


def test_a_step_takes_any_layout_and_may_write_over_its_input() -> None:
    for layer in (nn.TCN(4, [4], 2, rng=0), nn.TCN(4, [5, 4], 3, rng=0), small_wavenet(4, 4, rng=0)):
        x = inputs(layer, 3, 6)
        y = layer.predict(x)[0]
        stream = layer.freeze().stream(3)
        agree(stream.step(np.asfortranarray(x[:, 0])), y[:, 0])
        backwards = np.ascontiguousarray(x[::-1, 1, ::-1])[::-1, ::-1]
        agree(stream.step(backwards), y[:, 1])
        bare = np.zeros(3 * 4 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)
        bare[...] = x[:, 2]
        agree(stream.step(bare), y[:, 2])
        rows = np.zeros((4, 4), np.float32)
        rows[:3] = x[:, 3]
        agree(stream.step(rows[:3], rows[1:]), y[:, 3])
        same = x[:, 4].copy()
        assert stream.step(same, same) is same
        agree(same, y[:, 4])
        locked = x[:, 5].copy()
        locked.flags.writeable = False
        agree(stream.step(locked), y[:, 5])


def test_a_stream_s_outputs_and_states_are_the_caller_s() -> None:
    for layer in small():
        x = inputs(layer, 2, 3)
        stream = layer.freeze().stream(2)
        first, state = stream.step(x[:, 0]), stream.state
        kept = copy.deepcopy((first, state))
        stream.step(x[:, 1])
        agree((first, state), kept, bits=True)
        first[...] = np.nan
        for leaf in state:
            leaf[...] = np.nan
        agree(stream.step(x[:, 2]), layer.predict(x)[0][:, 2])


class Ring:
    """A step of a convolution that keeps its context in a ring of its own, as a compiled one may."""

    def __init__(self, backend: ReferenceBackend, packed: Any, state: tuple[Any, ...]) -> None:
        self.backend, self.packed, self.ring, self.at = backend, packed, state[0].copy(), 0
        state[0][...] = np.nan

    def __call__(self, x: np.ndarray, out: Any) -> np.ndarray:
        y, _ = self.backend.causal_conv1d_run(self.packed.copies, x[:, None], self.state())  # type: ignore[attr-defined]
        if self.ring.shape[1]:
            self.ring[:, self.at] = x
            self.at = (self.at + 1) % self.ring.shape[1]
        if out is None:
            return y[:, 0].copy()  # type: ignore[no-any-return]
        out[...] = y[:, 0]
        return out  # type: ignore[no-any-return]

    def state(self) -> tuple[np.ndarray]:
        return (np.roll(self.ring, -self.at, axis=1),)


class Rings(ReferenceBackend):
    """The reference with steps that keep their contexts themselves."""

    name = "rings"

    def causal_conv1d_pack(self, arrays: Any, config: Any) -> Any:
        class Packed:
            copies = super(Rings, self).causal_conv1d_pack(arrays, config)  # type: ignore[misc]
            stepper = lambda packed, state: Ring(self, packed, state)  # noqa: E731

        return Packed()

    def causal_conv1d_run(self, packed: Any, x: Any, state: Any = None, *, lengths: Any = None, out: Any = None) -> Any:
        packed = getattr(packed, "copies", packed)
        return super().causal_conv1d_run(packed, x, state, lengths=lengths, out=out)  # type: ignore[misc]


@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_that_keep_their_state_themselves_are_asked_for_it(wrapped: bool) -> None:
    with pyrnn.use_backend(Rings()):
        for layer in small():
            model = nn.Sequential(nn.Linear(4, 4, dtype="float64", rng=0), layer, nn.ReLU()) if wrapped else layer
            x = inputs(layer, 2, 11)
            y, state = model.predict(x)
            stream = model.freeze().stream(2)
            agree(np.stack([stream.step(x[:, t]) for t in range(11)], axis=1), y, bits=False)
            agree(stream.state, state, bits=False)
            stream.reset(state)
            agree(stream.state, state, bits=True)
            agree(stream.step(x[:, 0]), model.predict(x[:, :1], state)[0][:, 0], bits=False)


@SMALL
def test_a_state_is_a_value(number: int) -> None:
    layer = small()[number].eval()
    x = inputs(layer, 3, 9)
    _, state = layer.predict(x[:, :5])
    for leaf in state:
        leaf.flags.writeable = False
    kept = copy.deepcopy(state)
    first, second = layer.predict(x[:, 5:], state), layer.predict(x[:, 5:], state)
    agree(first, second, bits=True)
    agree(state, kept, bits=True)
    agree(first[0], layer.predict(x)[0][:, 5:])
    rows = np.array([2, 0])
    picked = layer.predict(x[rows, 5:], tuple(leaf[rows] for leaf in state))
    agree(picked, (first[0][rows], tuple(leaf[rows] for leaf in first[1])))
    frozen = layer.freeze()
    agree(frozen.run(x[:, 5:], state), first, bits=True)
    agree(state, kept, bits=True)


@SMALL
def test_initial_state_is_what_none_stands_for(number: int) -> None:
    layer = small()[number].eval()
    x = inputs(layer, 2, 6)
    agree(layer.predict(x, layer.initial_state(2)), layer.predict(x))
    assert all(leaf.shape[0] == 0 for leaf in layer.initial_state(0))


@SMALL
def test_padding_reaches_nothing(number: int) -> None:
    lengths = np.array([7, 0, 2])
    found = []
    for filler in (0.0, np.nan, np.inf):
        layer = small()[number]
        x = inputs(layer, 3, 7)
        x[np.arange(7) >= lengths[:, None]] = filler
        tensor = Tensor(x, requires_grad=True)
        start = tuple(Tensor(leaf, requires_grad=True) for leaf in some_state(layer, 3))
        y, state = layer(tensor, start, lengths=lengths)
        assert (y.data[np.arange(7) >= lengths[:, None]] == 0).all()
        cotangent = np.random.default_rng(1).normal(size=y.shape)
        cotangent[np.arange(7) >= lengths[:, None]] = filler
        y.backward(cotangent, retain_graph=True)
        for leaf in state:
            if leaf.size:
                leaf.backward(np.ones(leaf.shape), retain_graph=True)
        frozen = layer.freeze().run(x, to_arrays(start), lengths)
        agree(frozen, (y, state), bits=True)
        agree(tuple(leaf[1] for leaf in to_arrays(state)), tuple(leaf[1] for leaf in to_arrays(start)), bits=True)
        found.append([y.data, *to_arrays(state), tensor.grad, *(p.grad for p in layer.parameters()),
                      *(leaf.grad for leaf in start)])  # fmt: skip
        assert all(np.isfinite(array).all() for array in found[-1])
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


# --- training -----------------------------------------------------------------------------------------------------


@SMALL
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_against_differences(number: int, ragged: bool) -> None:
    layer = small()[number]
    rng = np.random.default_rng(3)
    x, lengths = inputs(layer, 2, 8, 5), [8, 3] if ragged else None
    tensors = {"x": Tensor(x, True), **{f"state {i}": Tensor(s, True) for i, s in enumerate(some_state(layer, 2))}}
    state = tuple(tensors.values())[1:]
    y, after = layer(tensors["x"], state, lengths=lengths)
    cotangents = [rng.normal(size=leaf.shape) for leaf in (y, *after)]

    def loss() -> Any:
        y, after = layer(tensors["x"], state, lengths=lengths)
        parts = [(leaf * c).sum() for leaf, c in zip((y, *after), cotangents, strict=True)]
        return sum(parts[1:], parts[0])

    loss().backward()
    with no_grad():
        for name, tensor in (*layer.named_parameters(), *tensors.items()):
            for index in rng.permutation(list(np.ndindex(tensor.shape)))[:12] if tensor.size else ():
                at, ends = tuple(index), []
                value = float(tensor.data[at])
                for moved in (value + 1e-6, value - 1e-6):
                    tensor.write()[at] = moved
                    ends.append(loss().item())
                tensor.write()[at] = value
                expected = (ends[0] - ends[1]) / 2e-6
                assert tensor.grad[at] == pytest.approx(expected, rel=1e-5, abs=1e-7), (name, at)


@SMALL
@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_gradients_through_carried_states(number: int, chunk: int) -> None:
    layer = small()[number]
    x = inputs(layer, 2, 9)
    (layer(x)[0] ** 2).sum().backward()
    whole = {name: p.grad for name, p in layer.named_parameters()}
    for cut in (False, True):
        layer.zero_grad()
        state, total = None, None
        for start in range(0, 9, chunk):
            y, state = layer(x[:, start : start + chunk], pyrnn.detach(state) if cut and state else state)
            total = (y**2).sum() if total is None else total + (y**2).sum()
        assert total is not None
        total.backward()
        same = [np.allclose(p.grad, whole[name], rtol=1e-9, atol=1e-11) for name, p in layer.named_parameters()]
        assert all(same) == (not cut or chunk >= 9 or number == 0)


def test_dropout_is_seeded_and_off_in_eval() -> None:
    x = np.random.default_rng(0).normal(size=(3, 9, 4)).astype(np.float32)
    layer = nn.TCN(4, [6, 6], dropout=0.4, rng=5)
    twin = copy.deepcopy(layer)
    first = layer(x)
    agree(twin(x), first, bits=True)
    assert not np.array_equal(layer(x)[0].data, first[0].data)
    agree(layer.predict(x), layer.eval()(x), bits=True)
    agree(layer(x), nn.TCN(4, [6, 6], dropout=0.0, rng=5)(x), bits=True)
    assert [name for name, _ in layer.named_generators()] == ["generator"]
    nothing = nn.TCN(4, [4], dropout=1.0, rng=0)  # what is left is the shortcut
    agree(nothing(x)[0], np.maximum(x, 0), bits=True)


def test_initialisation() -> None:
    plain = nn.CausalConv1d(6, 200, 3, groups=2, rng=1, dtype="float64")
    norm = nn.CausalConv1d(6, 200, 3, groups=2, rng=1, dtype="float64", weight_norm=True)
    bound = 1 / 3
    assert 0.95 * bound < np.abs(plain.weight.data).max() <= bound
    assert plain.bias is not None and 0.9 * bound < np.abs(plain.bias.data).max() <= bound
    np.testing.assert_array_equal(norm.weight_v.data, plain.weight.data)
    np.testing.assert_allclose(norm.folded()[0], plain.weight.data, rtol=1e-14)
    norm.weight_v.write()[...] *= 7  # the length is g's alone
    np.testing.assert_allclose(norm.folded()[0], plain.weight.data, rtol=1e-14)
    norm.weight_g.write()[...] *= 2
    np.testing.assert_allclose(norm.folded()[0], 2 * plain.weight.data, rtol=1e-14)
    for make in (lambda **o: nn.TCN(2, [3, 4], **o), lambda **o: small_wavenet(**o)):
        one, again, other = make(rng=7), make(rng=np.random.default_rng(7)), make(rng=8)
        wide = make(rng=7, dtype="float64")
        for name, array in one.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[name], array)
            np.testing.assert_allclose(wide.state_dict()[name], array, rtol=1e-6)
            assert not np.array_equal(other.state_dict()[name], array)


def small_wavenet(input_size: int = 2, output_size: int = 2, **options: Any) -> nn.WaveNet:
    sizes = {"residual_channels": 3, "skip_channels": 4, "output_size": output_size, "num_layers": 2}
    return nn.WaveNet(input_size, **sizes, **options)


# --- copies and files ---------------------------------------------------------------------------------------------


@SMALL
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "file", "file in a Sequential"])
def test_copies_give_the_same(number: int, how: str, tmp_path: Path) -> None:
    layer = small("float32")[number]
    x = inputs(layer, 2, 7)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    elif how == "file":
        io.save(layer, tmp_path / "m")
        twin = io.load(tmp_path / "m")
    else:
        io.save(nn.Sequential(layer), tmp_path / "m")
        twin = io.load(tmp_path / "m")[0]  # type: ignore[index]
    assert type(twin) is type(layer) and repr(twin) == repr(layer) and twin.config == layer.config
    agree(twin.predict(x), layer.predict(x), bits=True)
    assert json.loads(json.dumps(layer.architecture())) == layer.architecture()
    for parameter in twin.parameters():
        parameter.write()[...] = 0
    assert layer.predict(x)[0].any()


@SMALL
def test_architectures_are_held_against_the_arrays(number: int) -> None:
    layer = small("float32")[number]
    shapes = {n: container.TensorInfo("float32", a.shape) for n, a in layer.state_dict().items()}
    made = layer.architecture()
    architecture.check(made, shapes)
    assert repr(architecture.build(made)) == repr(layer)
    refused = 0
    for key, own in made["config"].items():
        for value in (0, -1, 10**9, 1.5, "3", None, [], [1], [1, "a"], [10**9] * 3, {"a": 1}, True):
            changed = {**made, "config": {**made["config"], key: value}}
            try:
                architecture.check(changed, shapes)
                twin = architecture.build(changed)
            except ValueError:
                refused += 1
            else:
                assert twin.config[key] == value or value == own
    assert refused > 9 * len(made["config"])
    for key in ("dtype", "input_size", "in_channels", "num_layers", "weight_norm"):
        rest = {name: value for name, value in made["config"].items() if name != key}
        if rest != made["config"]:
            with pytest.raises(ValueError, match=f"{key} is missing in the configuration"):
                architecture.check({**made, "config": rest}, shapes)


# --- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def authors_block(torch: Any, inputs: int, outputs: int, taps: int, dilation: int, norm: Any) -> Any:
    """Return a block as the authors of TCN write it, with the names of theirs."""
    pad = (taps - 1) * dilation

    class Chomp(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x[:, :, :-pad] if pad else x

    class Block(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = norm(torch.nn.Conv1d(inputs, outputs, taps, padding=pad, dilation=dilation))
            self.conv2 = norm(torch.nn.Conv1d(outputs, outputs, taps, padding=pad, dilation=dilation))
            self.net = torch.nn.Sequential(
                self.conv1, Chomp(), torch.nn.ReLU(), torch.nn.Dropout(0.0),
                self.conv2, Chomp(), torch.nn.ReLU(), torch.nn.Dropout(0.0),
            )  # fmt: skip
            self.downsample = torch.nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

        def forward(self, x: Any) -> Any:
            return torch.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))

    return Block()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("how", ["plain", "weight_norm", "parametrizations"])
@settings(max_examples=25)
@given(data=st.data(), seed=SEEDS)
def test_tcn_against_pytorch(torch: Any, how: str, data: Any, seed: int) -> None:
    channels, taps = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), data.draw(st.integers(1, 4))
    norms = {
        "plain": lambda layer: layer,
        "weight_norm": torch.nn.utils.weight_norm,
        "parametrizations": torch.nn.utils.parametrizations.weight_norm,
    }
    torch.manual_seed(seed)
    theirs = torch.nn.Module()
    theirs.network = torch.nn.Sequential(*(
        authors_block(torch, ([3, *channels])[i], channels[i], taps, 2**i, norms[how]) for i in range(len(channels))
    )).double()  # fmt: skip
    ours = nn.TCN(3, channels, taps, dropout=0.0, weight_norm=how != "plain", dtype="float64", rng=0)
    io.load_torch_state_dict(ours, {name: array.numpy() for name, array in theirs.state_dict().items()})

    x = np.random.default_rng(seed).normal(size=(2, 9, 3))
    x_ours, x_theirs = Tensor(x, True), torch.from_numpy(x.swapaxes(1, 2).copy()).requires_grad_()
    y, _ = ours(x_ours)
    expected = theirs.network(x_theirs)
    np.testing.assert_allclose(y.data, expected.detach().numpy().swapaxes(1, 2), rtol=1e-9, atol=1e-11)
    cotangent = np.random.default_rng(seed).normal(size=y.shape)
    y.backward(cotangent)
    expected.backward(torch.from_numpy(cotangent.swapaxes(1, 2).copy()))
    np.testing.assert_allclose(x_ours.grad, x_theirs.grad.numpy().swapaxes(1, 2), rtol=1e-8, atol=1e-10)
    places = {"original0": "weight_g", "original1": "weight_v"}
    found = {}
    for name, parameter in theirs.named_parameters():
        head, _, last = name.partition(".parametrizations.weight.")
        found[f"{head}.{places[last]}" if last else head] = parameter.grad.numpy()
    assert set(found) == set(ours.state_dict())
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, found[name], rtol=1e-8, atol=1e-10, err_msg=name)

    for parameter in theirs.parameters():
        torch.nn.init.zeros_(parameter.data)
    weights = {name: torch.from_numpy(array) for name, array in io.to_torch_state_dict(ours).items()}
    theirs.load_state_dict(weights, strict=False)  # the authors' state_dict has each convolution twice
    again = theirs.network(torch.from_numpy(x.swapaxes(1, 2).copy()))
    np.testing.assert_allclose(again.detach().numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-11)


@given(data=st.data(), seed=SEEDS)
def test_causal_conv1d_against_pytorch(torch: Any, data: Any, seed: int) -> None:
    ours = data.draw(convs())
    config = ours.config
    theirs = torch.nn.Conv1d(
        config["in_channels"], config["out_channels"], config["kernel_size"], dilation=config["dilation"],
        groups=config["groups"], bias=config["bias"], padding=ours.span, dtype=torch.float64,
    )  # fmt: skip
    if config["weight_norm"]:
        theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in io.to_torch_state_dict(ours).items()})  # strict
    x = inputs(ours, 2, 7, seed)
    expected = theirs(torch.from_numpy(x.swapaxes(1, 2).copy())).detach().numpy()[..., :7].swapaxes(1, 2)
    np.testing.assert_allclose(ours.predict(x)[0], expected, rtol=1e-9, atol=1e-11)


def test_wavenet_against_pytorch(torch: Any) -> None:
    ours = small_wavenet(num_stacks=2, dtype="float64", rng=0)
    weights = {name: torch.from_numpy(a) for name, a in io.to_torch_state_dict(ours).items()}
    pad, convolve = torch.nn.functional.pad, torch.nn.functional.conv1d

    def run(name: str, x: Any, dilation: int = 1) -> Any:
        w = weights[f"{name}.weight"]
        return convolve(pad(x, ((w.shape[2] - 1) * dilation, 0)), w, weights[f"{name}.bias"], dilation=dilation)

    x = inputs(ours, 2, 12)
    h, skips = run("input", torch.from_numpy(x.swapaxes(1, 2).copy())), 0
    for number in range(4):
        signal, gate = run(f"layers.{number}.dilated", h, 2 ** (number % 2)).chunk(2, dim=1)
        added = run(f"layers.{number}.res_skip", torch.tanh(signal) * torch.sigmoid(gate))
        if number < 3:
            h = h + added[:, :3]
        skips = skips + added[:, -4:]
    expected = run("head.1", torch.relu(run("head.0", torch.relu(skips))))
    np.testing.assert_allclose(ours.predict(x)[0], expected.numpy().swapaxes(1, 2), rtol=1e-10, atol=1e-12)


def test_weights_that_do_not_fit() -> None:
    model = nn.TCN(2, [2], weight_norm=False, rng=0)
    given = dict(io.to_torch_state_dict(nn.TCN(2, [2], rng=0)))
    with pytest.raises(ValueError, match="does not fit TCN; nothing was loaded") as error:
        io.load_torch_state_dict(model, given)
    assert "unexpected: network.0.conv1.weight_g (weight norm: was the model built with weight_norm=False?)" in str(
        error.value
    )
    assert "missing: network.0.conv1.weight, float32 of shape (2, 2, 3)" in str(error.value)


# --- words --------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument() -> None:
    conv, tcn, wavenet = nn.CausalConv1d(3, 4, 2, rng=0), nn.TCN(3, [4, 4], 2, rng=0), small_wavenet(rng=0)
    x = np.zeros((2, 5, 3), np.float32)
    left = np.zeros((2, 1, 3), np.float32)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"x: expected shape \(B, T, Cin\) = \(2, 5, 3\), got \(2, 5, 4\)",
         lambda: conv(np.zeros((2, 5, 4), np.float32))),
        (ValueError, r"x: expected shape \(B, T, I\) = .*, got \(5, 3\)", lambda: tcn(x[0])),
        (TypeError, "x: expected float32 like the layer's parameters, got float64; cast with",
         lambda: wavenet(np.zeros((2, 5, 2)))),
        (TypeError, "x: expected an array or Tensor of shape .*, got list", lambda: tcn([[[0.0]]], lengths=[1])),
        (ValueError, r"state: expected a tuple \(left,\), each of shape \(B, \(K-1\)·dilation, C\), got ndarray",
         lambda: conv(x, left)),
        (ValueError, r"state: expected a tuple of 4 arrays, one left context for each convolution, .*, got a tuple",
         lambda: tcn(x, (left,))),
        (ValueError, r"state\[0\] \(left\): expected shape \(B, \(K-1\)·dilation, C\) = \(2, 1, 3\), got \(1, 1, 3\)",
         lambda: conv(x, (left[:1],))),
        (ValueError, r"state\[1\] \(left\): expected shape \(B, \(K-1\)·dilation, C\) = \(2, 1, 4\), got \(2, 1, 3\)",
         lambda: tcn(x, (left,) * 4)),
        (TypeError, r"state\[0\] \(left\): expected float32 .*, got float64",
         lambda: conv(x, (left.astype(np.float64),))),
        (ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)", lambda: tcn(x, lengths=[1, 2, 3])),
        (ValueError, "lengths: expected values from 0 to T = 5, got 1 to 6", lambda: conv(x, lengths=[1, 6])),
        (ValueError, "lengths: expected values from 0 to T = 5, got 1 to 6",
         lambda: wavenet(np.zeros((2, 5, 2), np.float32), lengths=[1, 6])),
        (ValueError, r"groups: expected a divisor of in_channels = 3 and of out_channels = 4, got 2",
         lambda: nn.CausalConv1d(3, 4, 2, groups=2)),
        (ValueError, "kernel_size: expected at least 1, got 0", lambda: nn.CausalConv1d(3, 4, 0)),
        (TypeError, "dilation: expected a whole number, got 1.5", lambda: nn.CausalConv1d(3, 4, 2, dilation=1.5)),
        (TypeError, "weight_norm: expected True or False, got 1", lambda: nn.CausalConv1d(3, 4, 2, weight_norm=1)),
        (TypeError, "num_channels: expected a sequence of whole numbers, got int", lambda: nn.TCN(3, 4)),
        (TypeError, "num_channels: expected a sequence of whole numbers, got str", lambda: nn.TCN(3, "44")),
        (ValueError, "num_channels: expected at least one number, got none", lambda: nn.TCN(3, [])),
        (ValueError, r"num_channels\[1\]: expected at least 1, got 0", lambda: nn.TCN(3, [4, 0])),
        (ValueError, "dilations: expected one for each of the 2 blocks, got 1",
         lambda: nn.TCN(3, [4, 4], dilations=[1])),
        (ValueError, r"dilations\[0\]: expected at least 1, got 0", lambda: nn.TCN(3, [4], dilations=[0])),
        (ValueError, "dropout: expected a probability from 0 to 1, got 2", lambda: nn.TCN(3, [4], dropout=2)),
        (ValueError, "activation: expected one of 'relu', 'tanh', got 'gelu'",
         lambda: nn.TCN(3, [4], activation="gelu")),
        (TypeError, "dtype: expected 'float32' or 'float64', got 'float16'", lambda: nn.TCN(3, [4], dtype="float16")),
        (ValueError, "num_layers: expected at least 1, got 0",
         lambda: nn.WaveNet(1, residual_channels=1, skip_channels=1, output_size=1, num_layers=0)),
        (ValueError, "batch: expected at least 0, got -1", lambda: tcn.initial_state(-1)),
        (ValueError, r"x: expected shape \(B, T, I\) = \(2, 5, 3\), got \(2, 5, 2\)",
         lambda: tcn.freeze().run(x[..., :2])),
        (ValueError, r"state: expected a tuple of 4 arrays, one left context for each convolution, .*, got list",
         lambda: tcn.freeze().run(x, [left])),
        (ValueError, r"x_t: expected shape \(batch, features\) = \(2, 3\), got \(2, 4\)",
         lambda: tcn.freeze().stream(2).step(np.zeros((2, 4), np.float32))),
        (ValueError, r"out: expected float32 of shape \(2, 4\), got float32 of shape \(2, 3\)",
         lambda: tcn.freeze().stream(2).step(x[:, 0], np.zeros((2, 3), np.float32))),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_refused_step_leaves_the_state() -> None:
    for layer in small():
        stream = layer.freeze().stream(1)
        stream.step(inputs(layer, 1, 1)[:, 0])
        before = stream.state
        for bad in (np.ones((1, 9)), np.ones((1, 4), np.float32)):
            with pytest.raises((ValueError, TypeError), match="expected"):
                stream.step(bad)
        agree(stream.state, before, bits=True)


def test_threads_share_a_frozen_model() -> None:
    for layer in small("float32"):
        frozen, x = layer.freeze(), inputs(layer, 2, 40)
        y, state = layer.predict(x, lengths=[40, 9])

        def work(_: int, frozen: Any = frozen, x: Any = x) -> Any:
            stream = frozen.stream(2)
            return frozen.run(x, lengths=[40, 9]), np.stack([stream.step(x[:, t]) for t in range(40)], axis=1)

        with ThreadPoolExecutor(4) as pool:
            for run, streamed in pool.map(work, range(8)):
                agree(run, (y, state), bits=True)
                agree(streamed[:, :9], y[:, :9])


def test_a_step_in_place() -> None:
    for model in (
        nn.CausalConv1d(3, 3, 2, rng=0),
        nn.TCN(3, [4, 3], rng=0),
        nn.WaveNet(3, residual_channels=2, skip_channels=2, output_size=3, num_layers=2, rng=0),
    ):
        x = inputs(model, 2, 6)
        want, stream = model.predict(x)[0], model.freeze().stream(2)
        for t in range(6):
            array = x[:, t].copy()
            assert stream.step(array, out=array) is array
            agree(array, want[:, t])


def test_training_on_changes_nothing_that_is_frozen() -> None:
    for layer in small():
        x = inputs(layer, 2, 5)
        frozen, want = layer.freeze(), layer.predict(x)
        for parameter in layer.parameters():
            parameter.write()[...] = 0
        agree(frozen.run(x), want, bits=True)


def test_blocks_are_modules_of_the_model() -> None:
    model = nn.TCN(2, [3, 3], rng=0)
    assert [type(m) for _, m in model.named_modules()][1] is TemporalBlock
    assert repr(nn.CausalConv1d(2, 3, 4, dilation=2)) == (
        "CausalConv1d(in_channels=2, out_channels=3, kernel_size=4, dilation=2)"
    )
    assert model.to("reference").predict(np.ones((1, 2, 2), np.float32))[0].shape == (1, 2, 3)
