"""Modules and layers: composition of ops by hand, the state protocol, bits that chunks and batches must not change."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrnn
from pyrnn import nn
from pyrnn.autograd import is_recording, no_grad, to_arrays
from pyrnn.backend import DEFAULT, choose, get_backend

Tensor = pyrnn.Tensor
SEEDS = st.integers(0, 2**32 - 1)
CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"activation": "relu"}),
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "gru before": (nn.GRU, {"reset_after": False}),
}
needs_exact_backend = pytest.mark.skipif(
    DEFAULT == "reference", reason="the reference adds up in BLAS's order and claims no invariance"
)


@st.composite
def recurrent_layers(draw: Any, dtype: Any = "float64", one_way: bool = False) -> Any:
    """Draw a recurrent layer."""
    cell, options = CELLS[draw(st.sampled_from(sorted(CELLS)))]
    return cell(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=False if one_way else draw(st.booleans()),
        bias=draw(st.booleans()),
        dtype=dtype,
        rng=draw(SEEDS),
        learn_initial_state=draw(st.booleans()),
        recurrent_init=draw(st.sampled_from(["uniform", "orthogonal"])),
        **options,
    )


@st.composite
def inputs(draw: Any, layer: Any, dtype: Any = "float64") -> tuple[np.ndarray, Any, Any]:
    """Draw x, a state or None, lengths or None; what is learned of the initial state is filled with numbers."""
    batch, time = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(SEEDS))
    x = rng.normal(size=(batch, time, layer.input_size)).astype(dtype)
    state = None
    if draw(st.booleans()):
        shape = (batch, layer.num_layers * (2 if layer.bidirectional else 1), layer.hidden_size)
        state = tuple(rng.normal(size=shape).astype(dtype) for _ in layer.leaves)
    for name, parameter in layer.named_parameters():
        if name in ("h_0", "c_0"):
            parameter.write()[...] = rng.normal(size=parameter.shape)
    lengths = rng.integers(0, time + 1, batch) if draw(st.booleans()) else None
    return x, state, lengths


def same(a: Any, b: Any) -> bool:
    """Tell whether two nested tuples of arrays or Tensors hold the same bits."""
    a, b = to_arrays(a), to_arrays(b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and np.array_equal(a, b)


# --- layers against the ops, the textbooks and PyTorch --------------------------------------------------------


def by_hand(layer: Any, x: np.ndarray, state: Any, lengths: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Run a recurrent layer as ops on its state_dict."""
    weights = layer.state_dict()
    if state is None and "h_0" in weights:
        state = tuple(np.stack([weights[f"{leaf}_0"]] * len(x)) if len(x) else
                      np.zeros((0, *weights["h_0"].shape), x.dtype) for leaf in layer.leaves)  # fmt: skip
    finals: list[Any] = []
    for number in range(layer.num_layers):
        outputs = []
        for suffix in (f"l{number}", f"l{number}_reverse")[: 1 + layer.bidirectional]:
            arrays = {
                op: weights.get(f"{name}_{suffix}")
                for op, name in (("w_ih", "weight_ih"), ("w_hh", "weight_hh"), ("b", "bias"), ("b_hn", "bias_hn"))
            }
            if state is not None:
                for leaf, value in zip(("h0", "c0"), state, strict=False):
                    arrays[leaf] = np.ascontiguousarray(value[:, len(finals)])
            config: dict[str, Any] = {"lengths": lengths, "reverse": suffix.endswith("reverse")}
            if isinstance(layer, nn.LSTM):
                del arrays["b_hn"]
                result = pyrnn.lstm(x, **arrays, **config)
            elif isinstance(layer, nn.GRU):
                result = pyrnn.gru(x, **arrays, reset_after=layer.reset_after, **config)
            else:
                del arrays["b_hn"]
                result = pyrnn.rnn(x, **arrays, activation=layer.activation, **config)
            outputs.append(result[0])
            finals.append(result[1:])
        x = np.concatenate(outputs, axis=-1)
    return x, tuple(np.stack([final[i] for final in finals], axis=1) for i in range(len(layer.leaves)))


@given(data=st.data())
def test_recurrent_layers_are_the_ops_composed(data: Any) -> None:
    layer = data.draw(recurrent_layers())
    x, state, lengths = data.draw(inputs(layer))
    expected_y, expected_state = by_hand(layer, x, state, lengths)
    y, new = to_arrays(layer(x, state, lengths=lengths))
    # Not bit for bit: the states come as views here, and BLAS may add views up in another order.
    np.testing.assert_allclose(y, expected_y, rtol=1e-12, atol=1e-14)
    for got, expected in zip(new, expected_state, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@given(data=st.data())
def test_parameter_counts_are_those_of_the_textbooks(data: Any) -> None:
    layer = data.draw(recurrent_layers())
    h, directions = layer.hidden_size, 2 if layer.bidirectional else 1
    expected = 0
    for number in range(layer.num_layers):
        i = layer.input_size if number == 0 else directions * h
        one = h * h + h * i + (h if layer.bias else 0)
        if isinstance(layer, nn.LSTM):
            count = 4 * one
        elif isinstance(layer, nn.GRU):
            count = 3 * one + (h if layer.bias and layer.reset_after else 0)
        else:
            count = one
        expected += directions * count
    if layer.learn_initial_state:
        expected += len(layer.leaves) * layer.num_layers * directions * h
    assert layer.num_parameters() == expected
    assert layer.num_parameters() == sum(a.size for a in layer.state_dict().values())


def test_parameter_names_and_shapes() -> None:
    layer = nn.GRU(3, 4, num_layers=2, bidirectional=True, learn_initial_state=True)
    assert {name: a.shape for name, a in layer.state_dict().items()} == {
        **{f"weight_ih_l0{d}": (12, 3) for d in ("", "_reverse")},
        **{f"weight_ih_l1{d}": (12, 8) for d in ("", "_reverse")},
        **{f"weight_hh_l{k}{d}": (12, 4) for k in (0, 1) for d in ("", "_reverse")},
        **{f"bias_l{k}{d}": (12,) for k in (0, 1) for d in ("", "_reverse")},
        **{f"bias_hn_l{k}{d}": (4,) for k in (0, 1) for d in ("", "_reverse")},
        "h_0": (4, 4),
    }
    assert list(nn.LSTM(3, 4).state_dict()) == ["weight_ih_l0", "weight_hh_l0", "bias_l0"]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("name", ["rnn", "rnn relu", "lstm", "gru"])
@given(data=st.data(), seed=SEEDS)
def test_recurrent_layers_against_pytorch(torch: Any, name: str, data: Any, seed: int) -> None:
    cell, options = CELLS[name]
    bidirectional, num_layers = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    layer = cell(3, 4, num_layers=num_layers, bidirectional=bidirectional, dtype="float64", rng=seed, **options)
    kind = {"RNN": torch.nn.RNN, "LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}[type(layer).__name__]
    nonlinearity = {"nonlinearity": options["activation"]} if "activation" in options else {}
    other = kind(3, 4, num_layers, batch_first=True, bidirectional=bidirectional, dtype=torch.float64, **nonlinearity)
    weights = layer.state_dict()
    filled = {key: np.zeros(value.shape) for key, value in other.state_dict().items()}
    for key, value in weights.items():
        if key.startswith("bias_hn"):
            filled[key.replace("bias_hn", "bias_hh")][-4:] = value
        else:
            filled[key.replace("bias_l", "bias_ih_l")][...] = value
    other.load_state_dict({key: torch.from_numpy(value) for key, value in filled.items()})

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 5, 3))
    state = tuple(rng.normal(size=(2, num_layers * (1 + bidirectional), 4)) for _ in layer.leaves)
    given_state = tuple(torch.from_numpy(np.ascontiguousarray(s.swapaxes(0, 1))) for s in state)
    their_x = torch.from_numpy(x).requires_grad_()
    their_y, their_state = other(their_x, given_state if len(state) == 2 else given_state[0])
    our_x = Tensor(x, requires_grad=True)
    y, new = layer(our_x, state)
    np.testing.assert_allclose(y.data, their_y.detach().numpy(), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(new, their_state if len(state) == 2 else (their_state,), strict=True):
        np.testing.assert_allclose(ours.data, theirs.detach().numpy().swapaxes(0, 1), rtol=1e-9, atol=1e-12)

    cotangent = rng.normal(size=y.shape)
    y.backward(cotangent)
    their_y.backward(torch.from_numpy(cotangent))
    np.testing.assert_allclose(our_x.grad, their_x.grad.numpy(), rtol=1e-9, atol=1e-12)
    for key, parameter in layer.named_parameters():
        if key.startswith("bias_hn"):
            theirs = getattr(other, key.replace("bias_hn", "bias_hh")).grad.numpy()[-4:]
        else:
            theirs = getattr(other, key.replace("bias_l", "bias_ih_l")).grad.numpy()
        np.testing.assert_allclose(parameter.grad, theirs, rtol=1e-9, atol=1e-12, err_msg=key)


def test_linear_embedding_layer_norm_against_numpy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4))
    linear = nn.Linear(4, 5, dtype="float64", rng=0)
    w, b = linear.weight.data, linear.bias.data
    np.testing.assert_allclose(linear(x).data, np.einsum("bti,oi->bto", x, w) + b, rtol=1e-12)
    assert np.abs(w).max() <= 0.5 and np.abs(b).max() <= 0.5
    without = nn.Linear(4, 5, bias=False, dtype="float64", rng=0)
    assert without.bias is None and list(without.state_dict()) == ["weight"] and without.num_parameters() == 20
    assert np.array_equal(without.weight.data, w)

    table = nn.Embedding(6, 3, rng=0)
    indices = rng.integers(0, 6, (2, 4))
    assert np.array_equal(table(indices).data, table.weight.data[indices])
    table(np.array([1, 1])).sum().backward()
    assert table.weight.grad[:, 0].tolist() == [0, 2, 0, 0, 0, 0]

    norm = nn.LayerNorm(4, eps=1e-3, dtype="float64")
    norm.weight.write()[...], norm.bias.write()[...] = rng.normal(size=(2, 4))
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-3) * norm.weight.data + norm.bias.data
    np.testing.assert_allclose(norm(x).data, expected, rtol=1e-12, atol=1e-14)

    np.testing.assert_allclose(nn.Tanh()(x).data, np.tanh(x), rtol=1e-15)
    np.testing.assert_allclose(nn.Sigmoid()(x).data, 1 / (1 + np.exp(-x)), rtol=1e-14)
    assert np.array_equal(nn.ReLU()(x).data, np.where(x > 0, x, 0))


# --- initialisation ---------------------------------------------------------------------------------------------


def test_initialisers() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 3), (3, 5), (4, 4)):
        q = nn.init.orthogonal_(nn.Parameter(np.empty(shape)), gain=2.0, rng=rng).data
        product = q @ q.T if shape[0] <= shape[1] else q.T @ q
        np.testing.assert_allclose(product, 4 * np.eye(min(shape)), atol=1e-14)
    with pytest.raises(ValueError, match=r"parameter: expected shape \(m, n\), got \(3,\)"):
        nn.init.orthogonal_(nn.Parameter(np.empty(3)))
    u = nn.init.uniform_(nn.Parameter(np.empty(10_000, np.float32)), -2, 3, rng=0).data
    assert u.min() >= -2 and u.max() <= 3 and abs(u.mean() - 0.5) < 0.1 and abs(u.std() - 5 / 12**0.5) < 0.1
    n = nn.init.normal_(nn.Parameter(np.empty(10_000)), 1, 3, rng=0).data
    assert abs(n.mean() - 1) < 0.2 and abs(n.std() - 3) < 0.2
    p = nn.Parameter(np.empty(3))
    assert nn.init.ones_(p) is p and p.data.tolist() == [1, 1, 1]
    assert nn.init.zeros_(p).data.tolist() == [0, 0, 0] and nn.init.constant_(p, 5).data.tolist() == [5, 5, 5]


def test_layers_are_drawn_as_they_say() -> None:
    plain = nn.LSTM(3, 16, num_layers=2, rng=7)
    bound = 1 / 4
    values = np.concatenate([a.ravel() for a in plain.state_dict().values()])
    assert np.abs(values).max() <= bound and np.abs(values).max() > 0.95 * bound
    again, other = nn.LSTM(3, 16, num_layers=2, rng=np.random.default_rng(7)), nn.LSTM(3, 16, num_layers=2, rng=8)
    assert all(np.array_equal(a, again.state_dict()[name]) for name, a in plain.state_dict().items())
    assert not np.array_equal(plain.weight_ih_l0.data, other.weight_ih_l0.data)
    wide = nn.LSTM(3, 16, num_layers=2, rng=7, dtype="float64")
    assert np.array_equal(wide.weight_ih_l0.data.astype(np.float32), plain.weight_ih_l0.data)

    forgetful = nn.LSTM(3, 16, num_layers=2, rng=7, forget_bias=1.0)
    for k in (0, 1):
        difference = getattr(forgetful, f"bias_l{k}").data - getattr(plain, f"bias_l{k}").data
        np.testing.assert_allclose(difference, np.repeat([0, 1, 0, 0], 16), atol=1e-7)  # one rounding of 1 + b
    orthogonal = nn.GRU(3, 4, rng=0, recurrent_init="orthogonal", dtype="float64")
    for gate in np.split(orthogonal.weight_hh_l0.data, 3):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-14)


# --- the state protocol -----------------------------------------------------------------------------------------


def chunks(layer: Any, x: np.ndarray, state: Any, lengths: Any, cuts: list[int]) -> tuple[Any, Any]:
    """Run over pieces of x, carrying the state."""
    outputs = []
    for start, stop in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        left = None if lengths is None else np.clip(lengths - start, 0, stop - start)
        y, state = layer(x[:, start:stop], state, lengths=left)
        outputs.append(to_arrays(y))
    return np.concatenate(outputs, axis=1), state


def draw_cuts(data: Any, time: int) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, time), max_size=4)))


@needs_exact_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data())
def test_running_in_chunks_gives_the_bits_of_running_whole(dtype: str, data: Any) -> None:
    layer = data.draw(recurrent_layers(dtype, one_way=True))
    x, state, lengths = data.draw(inputs(layer, dtype))
    assert layer.streamable
    cuts = draw_cuts(data, x.shape[1])
    assert same(chunks(layer, x, state, lengths, cuts), layer(x, state, lengths=lengths))


def deep_model(dtype: str = "float32", seed: int = 0) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Linear(3, 7, dtype=dtype, rng=rng),
        nn.Tanh(),
        nn.LSTM(7, 9, num_layers=2, dropout=0.3, dtype=dtype, rng=rng),
        nn.LayerNorm(9, dtype=dtype),
        nn.Dropout(0.2, rng=rng),
        nn.Sequential(nn.GRU(9, 5, dtype=dtype, rng=rng), nn.Sigmoid()),
        nn.ReLU(),
        nn.Linear(5, 2, dtype=dtype, rng=rng),
    )


@needs_exact_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(data=st.data(), batch=st.integers(1, 5), time=st.integers(1, 40), seed=SEEDS)
def test_sequential_in_chunks_and_in_batch_slices(dtype: str, data: Any, batch: int, time: int, seed: int) -> None:
    model = deep_model(dtype).eval()
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, time, 3)).astype(dtype)
    lengths = rng.integers(0, time + 1, batch) if data.draw(st.booleans()) else None
    y, state = model.predict(x, lengths=lengths)
    assert same(chunks(model, x, None, lengths, draw_cuts(data, time)), (y, state))
    first = data.draw(st.integers(0, batch - 1))
    rows = slice(first, data.draw(st.integers(first + 1, batch)))
    part = model.predict(x[rows], lengths=None if lengths is None else lengths[rows])

    def picked(tree: Any) -> Any:
        return tuple(map(picked, tree)) if isinstance(tree, tuple) else tree[rows]

    assert same(part, (y[rows], picked(state)))


@given(data=st.data())
def test_initial_state_is_what_none_stands_for(data: Any) -> None:
    layer = data.draw(recurrent_layers())
    x, _, lengths = data.draw(inputs(layer))
    start = layer.initial_state(len(x))
    assert all(leaf.shape[0] == len(x) for leaf in start)
    assert same(layer(x, start, lengths=lengths), layer(x, lengths=lengths))


@given(data=st.data())
def test_arguments_are_not_altered(data: Any) -> None:
    layer = data.draw(recurrent_layers())
    x, state, lengths = data.draw(inputs(layer))
    kept = copy.deepcopy((x, state, lengths))
    for array in (x, lengths, *(state or ())):
        if array is not None:
            array.flags.writeable = False
    tensors = Tensor(x, True), None if state is None else tuple(Tensor(s, True) for s in state)
    y, new = layer(*tensors, lengths=lengths)
    (y.sum() + sum(leaf.sum() for leaf in new)).backward()
    assert np.array_equal(x, kept[0]) and (state is None or same(state, kept[1]))
    assert lengths is None or np.array_equal(lengths, kept[2])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_reaches_nothing(bidirectional: bool) -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([4, 0, 2])
    gradients = []
    for filler in (0.0, np.nan, np.inf):
        model = nn.Sequential(
            nn.Linear(2, 4, dtype="float64", rng=1),
            nn.LayerNorm(4, dtype="float64"),
            nn.LSTM(4, 3, num_layers=2, bidirectional=bidirectional, dtype="float64", rng=2),
            nn.Linear(6 if bidirectional else 3, 1, dtype="float64", rng=3),
        )
        x = np.random.default_rng(5).normal(size=(3, 4, 2))
        x[np.arange(4) >= lengths[:, None]] = filler
        tensor = Tensor(x, requires_grad=True)
        y, state = model(tensor, lengths=lengths)
        assert (y.data[np.arange(4) >= lengths[:, None]] == 0).all()
        nn.mse_loss(y, np.ones(y.shape), lengths=lengths).backward()
        found = [y.data, *to_arrays(state)[2], tensor.grad, *(p.grad for p in model.parameters())]
        assert all(np.isfinite(a).all() for a in found)
        gradients.append(found)
    for other in gradients[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(gradients[0], other, strict=True))
    assert any(a.any() for a in gradients[0][4:])
    # An embedding may find anything there, too.
    words = np.array([[1, 2, -1], [3, 10**6, 10**6]])
    y, _ = nn.Sequential(nn.Embedding(5, 2, rng=rng), nn.Linear(2, 1, rng=rng))(words, lengths=[2, 1])
    assert (y.data[0, 2] == 0).all() and (y.data[1, 1:] == 0).all() and y.data[1, 0] != 0


def test_sequential_state_and_streamable() -> None:
    model = deep_model()
    state = model.initial_state(4)
    assert [len(entry) for entry in state] == [0, 0, 2, 0, 0, 2, 0, 0]
    assert state[2][0].shape == (4, 2, 9) and state[5][0][0].shape == (4, 1, 5) and state[5][1] == ()
    assert model.streamable and not nn.Sequential(nn.LSTM(2, 2), nn.GRU(2, 2, bidirectional=True)).streamable
    assert len(model) == 8 and model[-1] is list(model)[7] and list(dict(model.named_modules()))[:3] == ["", "0", "1"]

    class Backwards(nn.Module):
        streamable = False

        def forward(self, x: Any) -> Any:
            return x[:, ::-1]

    assert not nn.Sequential(Backwards()).streamable
    y, state = nn.Sequential()(np.ones((1, 2, 3)))
    assert y.shape == (1, 2, 3) and state == ()


# --- training ---------------------------------------------------------------------------------------------------


def gradients(model: nn.Module) -> dict[str, Any]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@given(data=st.data(), chunk=st.integers(1, 9))
def test_truncated_bptt(data: Any, chunk: int) -> None:
    layer = data.draw(recurrent_layers(one_way=True))
    x, state, _ = data.draw(inputs(layer))
    time, rng = x.shape[1], np.random.default_rng(0)
    weights = rng.normal(size=(*x.shape[:2], layer.hidden_size))
    starts = range(0, time, chunk)

    def run(cut: bool) -> dict[str, Any]:
        carried, total = state, None
        for start in starts:
            y, carried = layer(x[:, start : start + chunk], pyrnn.detach(carried) if cut else carried)
            loss = (y * weights[:, start : start + chunk]).sum()
            total = loss if total is None else total + loss
        if total is not None:
            total.backward()
        return gradients(layer)

    (layer(x, state)[0] * weights).sum().backward()
    whole = gradients(layer)
    if time:
        # The chunks' weight gradients are added up in another order than one run's.
        for name, expected in whole.items():
            if expected is not None:
                np.testing.assert_allclose(run(False)[name], expected, rtol=1e-9, atol=1e-11, err_msg=name)
    if time and chunk >= time:
        truncated = run(True)
        for name, expected in whole.items():
            if name in ("h_0", "c_0"):
                continue
            assert np.array_equal(truncated[name], expected), name


def test_detach_cuts_the_gradient_between_chunks() -> None:
    layer = nn.LSTM(2, 3, dtype="float64", rng=0)
    x = Tensor(np.random.default_rng(0).normal(size=(1, 4, 2)), requires_grad=True)
    for cut, reaches in ((lambda s: s, True), (pyrnn.detach, False)):
        x.grad = None
        _, state = layer(x[:, :2])
        y, _ = layer(x[:, 2:], cut(state))
        y.sum().backward()
        assert x.grad[:, :2].any() == reaches and x.grad[:, 2:].all()


def central_differences(loss: Callable[[], float], parameter: nn.Parameter) -> np.ndarray:
    numeric = np.zeros(parameter.shape)
    for index in np.ndindex(parameter.shape):
        kept, ends = float(parameter.data[index]), []
        for sign in (1, -1):
            parameter.write()[index] = kept + sign * 1e-6
            ends.append(loss())
        parameter.write()[index] = kept
        numeric[index] = (ends[0] - ends[1]) / 2e-6
    return numeric


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_a_stack_and_its_learned_initial_state(name: str, bidirectional: bool) -> None:
    cell, options = CELLS[name]
    layer = cell(
        2, 3, num_layers=2, bidirectional=bidirectional, learn_initial_state=True, dtype="float64", rng=0, **options
    )
    rng = np.random.default_rng(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, rng=rng)
    x, lengths = rng.normal(size=(3, 4, 2)), [4, 0, 2]
    y, state = layer(x, lengths=lengths)
    weights = [rng.normal(size=leaf.shape) for leaf in (y, *state)]

    def loss() -> Any:
        y, state = layer(x, lengths=lengths)
        return sum(((leaf * w).sum() for leaf, w in zip(state, weights[1:], strict=True)), (y * weights[0]).sum())

    loss().backward()
    found = gradients(layer)
    assert {"h_0"} <= set(found)
    with no_grad():
        for key, parameter in layer.named_parameters():
            numeric = central_differences(lambda: loss().item(), parameter)
            np.testing.assert_allclose(found[key], numeric, rtol=1e-6, atol=1e-8, err_msg=key)


def test_dropout_is_seeded_scaled_and_off_in_eval() -> None:
    x = np.ones((50, 40), np.float32)
    layer = nn.Dropout(0.25, rng=3)
    first, second = layer(x).data, layer(x).data
    assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.05 and not np.array_equal(first, second)
    assert np.array_equal(nn.Dropout(0.25, rng=3)(x).data, first)
    assert np.array_equal(nn.Dropout(0.25, rng=3)(x.astype(np.float64)).data != 0, nn.Dropout(0.25, rng=3)(
        x.astype(np.float64)).data != 0)  # fmt: skip
    before = layer.generator.bit_generator.state
    assert np.array_equal(layer.eval()(x).data, x) and layer.generator.bit_generator.state == before
    assert not nn.Dropout(1.0)(x).data.any() and np.array_equal(nn.Dropout(0.0)(x).data, x)
    t = Tensor(x, requires_grad=True)
    layer.train()(t).sum().backward()
    assert set(np.unique(t.grad)) == {np.float32(0), np.float32(1 / 0.75)}


def test_dropout_between_layers_but_not_after_the_last() -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    one = nn.LSTM(2, 6, dropout=0.5, rng=0)
    assert same(one(x), one.eval()(x))
    two = nn.LSTM(2, 6, num_layers=2, dropout=0.5, rng=0)
    twin = copy.deepcopy(two)
    in_training = two(x)
    assert same(in_training, twin(x)) and not same(in_training, two(x))
    assert not same(in_training, two.eval()(x)) and same(two(x), two(x))
    everything = nn.LSTM(2, 6, num_layers=2, dropout=1.0, rng=0)  # the second layer then sees zeros
    second = nn.LSTM(6, 6, rng=0)
    second.load_state_dict({k.replace("l1", "l0"): v for k, v in everything.state_dict().items() if "l1" in k})
    assert same(everything(x)[0], second(np.zeros((4, 5, 6), np.float32))[0])
    assert same(everything(x)[1][0].data[:, 0], everything.eval()(x)[1][0].data[:, 0])  # its own state is not dropped


# --- predict ----------------------------------------------------------------------------------------------------


def test_predict_is_eval_without_a_tape_and_leaves_the_mode_alone() -> None:
    model = deep_model()
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    y, state = model.predict(x, lengths=[5, 3])
    assert type(y) is np.ndarray and type(state[2][0]) is np.ndarray
    assert all(module.training for module in model.modules())
    assert same((y, state), model.eval()(x, lengths=[5, 3])) and not same(y, model.train()(x, lengths=[5, 3])[0])
    y2, _ = model.predict(x, state)
    assert same(y2, model.eval()(x, state)[0])
    linear = nn.Linear(3, 2, rng=0)
    assert type(linear.predict(x)) is np.ndarray and same(linear.predict(x), linear(x))
    modes = []

    class Probe(nn.Module):
        def forward(self, x: Any) -> Any:
            modes.append((self.training, is_recording()))
            return x

    assert Probe().predict((x, (x,)))[1][0] is x
    assert modes == [(False, False)] and is_recording()


def test_predict_in_one_thread_does_not_touch_training_in_another() -> None:
    x = np.ones((2, 3), np.float32)
    stop, started, seen = threading.Event(), threading.Event(), []

    class Slow(nn.Module):
        def __init__(self) -> None:
            self.dropout = nn.Dropout(0.5, rng=0)

        def forward(self, x: Any) -> Any:
            started.set()
            stop.wait(10)
            return self.dropout(x)

    model = Slow()
    thread = threading.Thread(target=lambda: seen.append(model.predict(x)))
    thread.start()
    assert started.wait(10)
    in_training = model.training and not np.array_equal(model.dropout(np.ones((9, 9))).data, np.ones((9, 9)))
    stop.set()
    thread.join()
    assert in_training and np.array_equal(seen[0], x)


def test_predictions_from_many_threads_are_the_same() -> None:
    model = deep_model()
    xs = np.random.default_rng(0).normal(size=(8, 2, 30, 3)).astype(np.float32)
    expected = [model.predict(x) for x in xs]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: [model.predict(xs[i]) for _ in range(5)]}))
        for i in range(len(xs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(result, expected[i]) for i in range(len(xs)) for result in found[i])


# --- Module -----------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """A model of one's own, with every kind of member."""

    def __init__(self) -> None:
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.layers = [nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)]
        self.named = {"a": nn.Linear(2, 1, rng=2)}
        self.again = self.layers[0]
        self.tied = (self.scale, self.layers[1].weight)
        self.words = {"the": 0, "of": 1}
        self.parent = [self]

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x) * self.scale
        return self.named["a"](x)


SHARED_NAMES = [
    "scale", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "named.a.weight", "named.a.bias",
]  # fmt: skip


def test_members_are_found_in_order_and_once() -> None:
    model = Shared()
    assert [name for name, _ in model.named_parameters()] == SHARED_NAMES == list(model.state_dict())
    assert [name for name, _ in model.named_modules()] == ["", "layers.0", "layers.1", "named.a"]
    assert len(list(model.parameters())) == 7 and model.num_parameters() == 1 + 6 + 6 + 3
    assert "Shared(" in repr(model) and "(layers.0): Linear(in_features=2, out_features=2)" in repr(model)
    model.eval()
    assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.train().modules())
    model(np.ones((1, 2), np.float32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_load_state_dict_names_all_that_is_wrong_and_changes_nothing() -> None:
    model = Shared()
    before = model.state_dict()
    bad = {
        **{key: value + 1 for key, value in before.items()},
        "extra": np.ones(1),
        "scale": np.ones(1),
        "layers.1.weight": np.ones((3, 2), np.float32),
        "layers.1.bias": [0.0, 0.0],
    }
    del bad["layers.0.bias"], bad["named.a.bias"]
    with pytest.raises(ValueError, match=r"state_dict: does not fit Shared; nothing was loaded") as error:
        model.load_state_dict(bad)
    for line in (
        "missing: layers.0.bias",
        "missing: named.a.bias",
        "unexpected: extra",
        "scale: expected float32 of shape (1,), got float64 of shape (1,)",
        "layers.1.weight: expected float32 of shape (2, 2), got float32 of shape (3, 2)",
        "layers.1.bias: expected float32 of shape (2,), got a list",
    ):
        assert f"\n  {line}" in str(error.value)
    assert str(error.value).count("\n") == 6
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_load_state_dict_writes_in_place_and_is_seen_by_tapes() -> None:
    source, target = nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)
    array = target.weight.data
    x = np.ones((1, 2), np.float32)
    loss = (target(Tensor(x, True)) ** 2).sum()
    state = source.state_dict()
    target.load_state_dict(state)
    assert np.shares_memory(target.weight.data, array) and same(source(x), target(x))
    with pytest.raises(RuntimeError, match="was written"):
        loss.backward()
    state["weight"][...] = 0  # a copy: neither model changes
    assert same(source(x), target(x)) and source.weight.data.all()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("moved", [False, True])
def test_models_can_be_copied_and_pickled(how: Any, moved: bool) -> None:
    model = deep_model().eval()
    if moved:
        model.to("reference")
    model[0].train()
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    twin = how(model)
    assert repr(twin) == repr(model) and same(twin.predict(x), model.predict(x))
    assert twin[0].training and not twin.training
    assert [type(p) for p in twin.parameters()] == [nn.Parameter] * len(list(model.parameters()))
    assert twin._backend is model._backend
    before = model.state_dict()
    for parameter in twin.parameters():
        parameter.write()[...] = 0
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    tied = how(SharedTies())
    assert tied.a.weight is tied.b and tied.num_parameters() == 4


class SharedTies(nn.Module):
    def __init__(self) -> None:
        self.a = nn.Linear(2, 2, bias=False, rng=0)
        self.b = self.a.weight


def test_the_order_in_which_a_backend_is_chosen() -> None:
    reference, default = get_backend("reference"), get_backend(DEFAULT)
    seen: list[Any] = []

    class Probe(nn.Module):
        def forward(self, x: Any) -> Any:
            seen.append(choose("linear"))
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            self.first, self.second = Probe(), Probe()

        def forward(self, x: Any) -> Any:
            return self.second(self.first(x))

    model = Outer()
    arrays = [p.data for p in model.parameters()]
    model(0)
    assert model.to("reference") is model
    model(0)
    model.second.to(DEFAULT)
    model(0)
    with pyrnn.use_backend(DEFAULT):
        model(0)
    assert seen == [default, default, reference, reference, reference, default, default, default]
    assert all(np.shares_memory(a, p.data) for a, p in zip(arrays, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="backend: expected one of"):
        model.to("nowhere")


def test_to_does_not_copy_and_runs_on_the_backend() -> None:
    model = nn.LSTM(2, 3, rng=0)
    array = model.weight_ih_l0.data
    x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    expected = model.predict(x)
    found = model.to(get_backend("reference")).predict(x)
    assert np.shares_memory(model.weight_ih_l0.data, array)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)  # float32 on another backend


# --- configuration and architecture -----------------------------------------------------------------------------

EXAMPLES = [
    nn.RNN(2, 3, activation="relu", dtype="float64", rng=0),
    nn.LSTM(2, 3, num_layers=2, bidirectional=True, dropout=0.5, forget_bias=1.0, rng=0),
    nn.GRU(2, 3, reset_after=False, bias=False, learn_initial_state=True, recurrent_init="orthogonal", rng=0),
    nn.CausalConv1d(4, 6, 3, dilation=2, groups=2, bias=False, weight_norm=True, rng=0),
    nn.TCN(2, (3, 4), dropout=0.1, dilations=(1, 3), activation="tanh", rng=0),
    nn.WaveNet(2, residual_channels=3, skip_channels=4, output_size=5, num_layers=2, num_stacks=2, bias=False, rng=0),
    nn.Linear(2, 3, bias=False, rng=0),
    nn.Embedding(5, 2, dtype=np.float64, rng=0),
    nn.LayerNorm(3, eps=1e-3),
    nn.Dropout(0.1, rng=0),
    nn.Tanh(),
    nn.ReLU(),
    nn.Sigmoid(),
    nn.SinusoidalPositions(4),
    nn.LearnedPositions(5, 4, rng=0),
    nn.MultiHeadAttention(8, 4, num_kv_heads=2, causal=True, window=(3, None), positions="rotary", dropout=0.1, rng=0),
    nn.TransformerEncoderLayer(8, 2, 4, norm_first=True, activation="gelu", rng=0),
    nn.TransformerDecoderLayer(8, 2, 4, positions="alibi", max_length=9, rng=0),
    nn.Transformer(2, 8, 2, 4, final_norm=True, dtype="float64", rng=0),
]


@pytest.mark.parametrize("layer", EXAMPLES, ids=lambda layer: type(layer).__name__)
def test_config_makes_the_same_architecture(layer: Any) -> None:
    architecture = layer.architecture()
    assert json.loads(json.dumps(architecture)) == architecture == {
        "class": type(layer).__name__, "config": layer.config,
    }  # fmt: skip
    twin = nn.REGISTRY[architecture["class"]](**architecture["config"])
    assert type(twin) is type(layer) and twin.config == layer.config and repr(twin) == repr(layer)
    shapes = {name: (a.shape, a.dtype) for name, a in layer.state_dict().items()}
    assert {name: (a.shape, a.dtype) for name, a in twin.state_dict().items()} == shapes
    architecture["config"]["dtype"] = "changed"
    assert layer.config.get("dtype") != "changed"


def test_the_registry_holds_the_library_s_layers() -> None:
    assert set(nn.REGISTRY) == {type(layer).__name__ for layer in EXAMPLES} | {"Sequential"}


def test_architecture_of_sequential_and_of_a_class_of_one_s_own() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh()))
    assert model.architecture() == {
        "class": "Sequential",
        "config": {
            "layers": [
                {"class": "Linear", "config": {"in_features": 2, "out_features": 3, "bias": True, "dtype": "float32"}},
                {"class": "Sequential", "config": {"layers": [{"class": "Tanh", "config": {}}]}},
            ]
        },
    }

    class Linear(nn.Linear):
        pass

    for own in (Shared(), Linear(2, 2), nn.Sequential(Shared())):
        with pytest.raises(TypeError, match=r"is a class of your own.*state_dict"):
            own.architecture()


def test_repr() -> None:
    assert repr(nn.LSTM(3, 8)) == "LSTM(input_size=3, hidden_size=8)"
    assert repr(EXAMPLES[1]) == (
        "LSTM(input_size=2, hidden_size=3, num_layers=2, bidirectional=True, dropout=0.5, forget_bias=1.0)"
    )
    assert repr(nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n  (0): Tanh()\n  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )


# --- words ------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, rng=0)
    x = np.zeros((2, 5, 3), np.float32)
    leaf = np.zeros((2, 2, 4), np.float32)
    model = nn.Sequential(nn.Linear(3, 3, rng=0), lstm)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"x: expected shape \(B, T, I\) = \(2, 5, 3\), got \(2, 5, 4\)",
         lambda: lstm(np.zeros((2, 5, 4), np.float32))),
        (ValueError, r"x: expected shape \(B, T, I\) = .*, got \(5, 3\)", lambda: lstm(x[0])),
        (TypeError, "x: expected float32 like the layer's parameters, got float64; cast with",
         lambda: lstm(x.astype(np.float64))),
        (TypeError, "x: expected an array or Tensor of shape .*, got list", lambda: lstm([[[0.0]]])),
        (ValueError, r"state: expected a tuple \(h, c\), each of shape \(B, L·D, H\) = \(2, 2, 4\), got a tuple of 1",
         lambda: lstm(x, (leaf,))),
        (ValueError, r"state: expected a tuple \(h, c\), .*, got ndarray", lambda: lstm(x, leaf)),
        (ValueError, r"state\[1\] \(c\): expected shape \(B, L·D, H\) = \(2, 2, 4\), got \(2, 1, 4\)",
         lambda: lstm(x, (leaf, leaf[:, :1]))),
        (TypeError, r"state\[0\] \(h\): expected float32 .*, got float64",
         lambda: lstm(x, (leaf.astype(np.float64), leaf))),
        (ValueError, r"state: expected a tuple \(h,\)", lambda: nn.GRU(3, 4, rng=0)(x, (leaf, leaf))),
        (ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)", lambda: lstm(x, lengths=[1, 2, 3])),
        (ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)", lambda: model(x, lengths=[1, 2, 3])),
        (ValueError, r"x: expected shape \(B, T, ...\) with lengths", lambda: model(x[0, 0], lengths=[1])),
        (ValueError, "state: expected a tuple of one entry per layer, 2 of them, got 1 of them",
         lambda: model(x, ((),))),
        (ValueError, r"state\[0\]: expected \(\) for a Linear", lambda: model(x, ((leaf,), (leaf, leaf)))),
        (ValueError, r"state\[0\]: expected \(\) for a Linear, which has no state, got a ndarray",
         lambda: model(x, (leaf, (leaf, leaf)))),
        (ValueError, r"x: expected shape \(..., I\) = \(2, 5, 3\), got \(2, 5, 4\)",
         lambda: model[0](np.zeros((2, 5, 4), np.float32))),
        (TypeError, "x: expected float32", lambda: model[0](np.zeros((2, 5, 3)))),
        (ValueError, r"x: expected shape \(..., F\)", lambda: nn.LayerNorm(4)(x)),
        (ValueError, "indices: expected values from 0 to V - 1 = 4, got 7 to 7", lambda: nn.Embedding(5, 2)([7])),
        (ValueError, "hidden_size: expected at least 1, got 0", lambda: nn.LSTM(3, 0)),
        (TypeError, "input_size: expected a whole number, got 2.0", lambda: nn.LSTM(2.0, 3)),
        (ValueError, "dropout: expected a probability from 0 to 1, got 1.5", lambda: nn.LSTM(3, 4, dropout=1.5)),
        (ValueError, "p: expected a probability from 0 to 1, got -1", lambda: nn.Dropout(-1)),
        (TypeError, "bidirectional: expected True or False, got 2", lambda: nn.LSTM(3, 4, bidirectional=2)),
        (TypeError, "dtype: expected 'float32' or 'float64', got 'float16'", lambda: nn.LSTM(3, 4, dtype="float16")),
        (TypeError, "dtype: expected 'float32' or 'float64', got None", lambda: nn.Linear(3, 4, dtype=None)),
        (TypeError, "dtype: expected 'float32' or 'float64', got 'floaty'", lambda: nn.Linear(3, 4, dtype="floaty")),
        (ValueError, "recurrent_init: expected one of 'uniform', 'orthogonal', got 'zeros'",
         lambda: nn.LSTM(3, 4, recurrent_init="zeros")),
        (ValueError, "activation: expected one of 'tanh', 'relu', got 'gelu'", lambda: nn.RNN(3, 4, activation="gelu")),
        (ValueError, "forget_bias: expected 0 with bias=False, got 1.0",
         lambda: nn.LSTM(3, 4, bias=False, forget_bias=1.0)),
        (TypeError, r"layers\[1\]: expected a Module, got function",
         lambda: nn.Sequential(nn.Tanh(), lambda x: x)),
        (ValueError, "eps: expected a positive finite number, got 0", lambda: nn.LayerNorm(3, eps=0)),
        (ValueError, "batch: expected at least 0, got -1", lambda: lstm.initial_state(-1)),
        (ValueError, "std: expected a number, at least 0", lambda: nn.init.normal_(nn.Parameter(leaf), std=-1)),
        (NotImplementedError, "Module has no forward", lambda: nn.Module()(x)),
        (NotImplementedError, "SequenceLayer has no initial_state", lambda: nn.SequenceLayer().initial_state(1)),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_a_parameter_is_not_replaced_by_an_array() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(
        TypeError, match=r"weight: expected a Parameter, got numpy.ndarray; .* write to weight.write\(\)"
    ):
        layer.weight = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"weight: expected a Parameter, got pyrnn\.Tensor"):
        layer.weight *= 0.5
    layer.weight = nn.Parameter(np.zeros((2, 3), np.float32))
    layer.bias = None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_foreign_arrays_are_told_the_way() -> None:
    class Tensor:
        shape, dtype = (2, 3, 4), "torch.float32"

    Tensor.__module__ = "torch"
    message = r"got torch.Tensor; pass pyrnn.from_dlpack"
    for call in (
        lambda: nn.GRU(4, 5)(Tensor()),
        lambda: nn.mse_loss(np.zeros(1), Tensor()),
        lambda: pyrnn.Tensor(Tensor()),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_sequential_index() -> None:
    model = nn.Sequential(nn.Tanh(), nn.ReLU())
    assert isinstance(model[-1], nn.ReLU) and [type(layer) for layer in model] == [nn.Tanh, nn.ReLU]
    for index in (2, -3, slice(1)):
        with pytest.raises(IndexError, match="index: expected a whole number below 2"):
            model[index]
