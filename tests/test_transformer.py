"""Attention layers: against a dense oracle and PyTorch, in chunks, as streams, and the KV cache as a value."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrnn
from pyrnn import io, nn
from pyrnn.autograd import functions, no_grad, to_arrays
from pyrnn.backend import BUILT_IN, DEFAULT, Backend, get_backend
from pyrnn.nn import cache
from pyrnn.nn.positions import alibi_slopes, waves

Tensor = pyrnn.Tensor
SEEDS = st.integers(0, 2**32 - 1)
SPLIT = 4


BACKENDS = list(dict.fromkeys((DEFAULT, "reference")))
CHUNKED = [name for name in BUILT_IN if "chunk" in get_backend(name).claims["attention"].invariances]


class Exact(type(get_backend("cython"))):  # type: ignore[misc]
    """The compiled core with an attention that adds up key by key, in splits from key 0 on."""

    name = "exact"

    def attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        assert not needs and not config.dropout
        q, k, v, bias = arrays
        (batch, heads, queries, features), keys, dtype = q.shape, k.shape[2], q.dtype
        shared = np.arange(heads) // (heads // k.shape[1])
        k, v = k[:, shared], v[:, shared]
        scores = np.zeros((batch, heads, queries, keys), dtype)
        for d in range(features):
            scores = scores + q[..., None, d] * k[:, :, None, :, d]
        scores = scores * dtype.type(1 / math.sqrt(features)) + (0 if bias is None else bias)
        at, key = (config.q_start[:, None] + np.arange(queries))[:, None, :, None], np.arange(keys)
        left, right = config.window or (None, None)
        right = 0 if config.causal else right
        seen = np.ones((batch, 1, queries, keys), bool)
        seen &= True if left is None else key >= at - left
        seen &= True if right is None else key <= at + right
        if config.lengths is not None:
            seen &= (key < config.lengths[:, None])[:, None, None]
        if config.q_lengths is not None:
            seen &= (np.arange(queries) < config.q_lengths[:, None])[:, None, :, None]
        scores = np.where(seen, scores, -np.inf).astype(dtype)
        top = np.full((batch, heads, queries, 1), -np.inf, dtype)
        total, y = np.zeros_like(top), np.zeros((batch, heads, queries, v.shape[3]), dtype)
        for first in range(0, keys, SPLIT):
            part = scores[..., first : first + SPLIT]
            higher = np.maximum(top, part.max(axis=-1, keepdims=True))
            base = np.where(np.isfinite(higher), higher, 0).astype(dtype)
            weights, fade = np.exp(part - base), np.exp(top - base)
            sums, ys = np.zeros_like(total), np.zeros_like(y)
            for index in range(part.shape[-1]):
                sees = seen[..., first + index, None]
                sums = sums + weights[..., index, None]
                value = np.where(sees, v[:, :, first + index, None], 0).astype(dtype)
                ys = ys + weights[..., index, None] * value
            total, y, top = total * fade + sums, y * fade + ys, higher
        return (y / np.where(total == 0, 1, total).astype(dtype),), None


@contextmanager
def on_exact() -> Iterator[None]:
    """Run on `Exact`, with splits short enough for windows to let go of some."""
    with pytest.MonkeyPatch.context() as patch, pyrnn.use_backend(Exact()):
        patch.setattr("pyrnn.backend.KEY_SPLIT", SPLIT)
        yield


@contextmanager
def on(backend: str) -> Iterator[None]:
    if backend == "exact":
        with on_exact():
            yield
    else:
        with pyrnn.use_backend(backend):
            yield


EXACT = ["exact", *CHUNKED]


@st.composite
def attentions(draw: Any, dtype: str = "float64", causal: bool | None = None) -> nn.MultiHeadAttention:
    features, heads = draw(st.sampled_from([2, 4])), draw(st.sampled_from([1, 2, 3, 4]))
    causal = draw(st.booleans()) if causal is None else causal
    side = st.none() | st.integers(0, 9)
    return nn.MultiHeadAttention(
        features * heads,
        heads,
        num_kv_heads=draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0])),
        bias=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        causal=causal,
        window=draw(st.none() | st.tuples(side, side)),
        positions=draw(st.sampled_from([None, "rotary", "alibi"])),
        dtype=dtype,
        rng=draw(SEEDS),
    ).eval()


@st.composite
def causal_models(draw: Any, dtype: str) -> tuple[nn.SequenceLayer, int]:
    """Draw a layer or stack that can run in chunks, and its features."""
    layer = draw(attentions(dtype, causal=True))
    shake(layer, 1)
    kind = draw(st.sampled_from(["attention", "encoder", "transformer", "sequential"]))
    if kind == "attention":
        return layer, layer.heads.embed_dim
    options: dict[str, Any] = {
        name: layer.config[name] for name in ("num_kv_heads", "window", "positions", "dropout", "dtype")
    }
    options |= {
        "norm_first": draw(st.booleans()),
        "activation": draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        "rng": draw(SEEDS),
    }
    embed, heads = layer.config["embed_dim"], layer.config["num_heads"]
    if kind == "encoder":
        model: nn.SequenceLayer = nn.TransformerEncoderLayer(embed, heads, 5, causal=True, **options)
    else:
        final_norm = draw(st.sampled_from([None, False, True]))
        model = nn.Transformer(draw(st.integers(1, 3)), embed, heads, 5, final_norm=final_norm, **options)
        if kind == "sequential":
            place = draw(st.sampled_from(["none", "sinusoidal", "learned"]))
            before: list[nn.Module] = {
                "none": [],
                "sinusoidal": [nn.SinusoidalPositions(embed)],
                "learned": [nn.LearnedPositions(64, embed, dtype=dtype, rng=0)],
            }[place]
            model = nn.Sequential(*before, model, nn.Linear(embed, 3, dtype=dtype, rng=0))
    return model.eval(), embed


def shake(layer: nn.Module, seed: int) -> None:
    """Give biases and norms, which begin at 0 and 1, other numbers."""
    rng = np.random.default_rng(seed)
    for name, parameter in layer.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.write()[...] += 0.3 * rng.normal(size=parameter.shape)


def same(a: Any, b: Any) -> bool:
    """Tell whether two nested tuples of arrays or Tensors hold the same bits."""
    a, b = to_arrays(a), to_arrays(b)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and np.array_equal(a, b)


def picked(state: Any, rows: Any) -> Any:
    return tuple(picked(entry, rows) for entry in state) if isinstance(state, tuple) else state[rows]


def chunks(model: Any, x: np.ndarray, state: Any, lengths: Any, cuts: list[int]) -> tuple[Any, Any]:
    """Predict pieces of x, carrying the state."""
    outputs = []
    for start, stop in zip([0, *cuts], [*cuts, x.shape[1]], strict=True):
        left = None if lengths is None else np.clip(lengths - start, 0, stop - start)
        y, state = model.predict(x[:, start:stop], state, lengths=left)
        outputs.append(y)
    return np.concatenate(outputs, axis=1), state


def draw_inputs(data: Any, features: int, dtype: str, most: int = 20) -> tuple[np.ndarray, Any]:
    batch, time = data.draw(st.integers(0, 3)), data.draw(st.integers(0, most))
    rng = np.random.default_rng(data.draw(SEEDS))
    lengths = rng.integers(0, time + 1, batch) if data.draw(st.booleans()) else None
    x = rng.normal(size=(batch, time, features)).astype(dtype)
    if lengths is not None:
        x[np.arange(time) >= lengths[:, None]] = np.nan
    return x, lengths


def draw_cuts(data: Any, time: int) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, time), max_size=5)))


# --- against an oracle and PyTorch ----------------------------------------------------------------------------------


def turned(vector: np.ndarray, position: int) -> np.ndarray:
    """Rotate one head's vector, as complex numbers."""
    pairs = vector[0::2] + 1j * vector[1::2]
    pairs = pairs * np.exp(1j * position * 10000.0 ** (-np.arange(len(pairs)) * 2 / len(vector)))
    result = np.empty_like(vector)
    result[0::2], result[1::2] = pairs.real, pairs.imag
    return result


def oracle(layer: nn.MultiHeadAttention, x: np.ndarray, lengths: Any, memory: Any = None, valid: Any = None) -> Any:
    """Run the layer query by query: y and the weights."""
    heads, weights = layer.heads, layer.state_dict()
    d, share = heads.features, heads.num_heads // heads.num_kv_heads
    sizes = np.cumsum([heads.embed_dim, heads.kv_dim])
    w = np.split(weights["in_proj_weight"], sizes) if "in_proj_weight" in weights else [
        weights[f"{name}_proj_weight"] for name in "qkv"
    ]  # fmt: skip
    b = np.split(weights.get("in_proj_bias", np.zeros(heads.embed_dim + 2 * heads.kv_dim)), sizes)
    y = np.zeros_like(x)
    given = (x, x) if memory is None else memory
    alpha = np.zeros((len(x), heads.num_heads, x.shape[1], given[0].shape[1]))
    left, right = heads.window or (None, None)
    right = 0 if heads.causal else right
    for row in range(len(x)):
        queries = x.shape[1] if lengths is None else lengths[row]
        keys = given[0].shape[1] if memory is not None else queries
        keys = keys if valid is None else valid[row]
        for i in range(queries):
            seen = [
                j for j in range(keys) if (left is None or j >= i - left) and (right is None or j <= i + right)
            ]  # fmt: skip
            joined = np.zeros(heads.embed_dim)
            for h in range(heads.num_heads):
                mine, theirs = slice(h * d, (h + 1) * d), slice(h // share * d, (h // share + 1) * d)
                query = (w[0] @ x[row, i] + b[0])[mine]
                scores, values = [], []
                for j in seen:
                    key = (w[1] @ given[0][row, j] + b[1])[theirs]
                    values.append((w[2] @ given[1][row, j] + b[2])[theirs])
                    if heads.positions == "rotary":
                        scores.append(turned(query, i) @ turned(key, j) / math.sqrt(d))
                    else:
                        slope = alibi_slopes(heads.num_heads)[h] if heads.positions == "alibi" else 0
                        scores.append(query @ key / math.sqrt(d) - slope * abs(i - j))
                if seen:
                    terms = np.exp(np.array(scores) - max(scores))
                    alpha[row, h, i, seen] = terms / terms.sum()
                    joined[mine] = alpha[row, h, i, seen] @ np.array(values)
            y[row, i] = weights["out_proj.weight"] @ joined + weights.get("out_proj.bias", 0)
    return y, alpha


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_attention_is_that_of_a_loop(backend: str, data: Any) -> None:
    layer = data.draw(attentions())
    shake(layer, 0)
    x, lengths = draw_inputs(data, layer.heads.embed_dim, "float64", most=8)
    expected, alpha = oracle(layer, np.nan_to_num(x), lengths)
    with pyrnn.use_backend(backend):
        y, state = layer(x, lengths=lengths)
        np.testing.assert_allclose(y.data, expected, rtol=0, atol=1e-12)
        predicted, after = layer.predict(x, lengths=lengths)
        np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-12)
        # Weights end with the last key that the state holds.
        looked = layer.attention_weights(x, lengths=lengths)
    np.testing.assert_allclose(looked, alpha[..., : looked.shape[3]], rtol=0, atol=1e-12)
    assert not alpha[..., looked.shape[3] :].any()
    if not layer.streamable:
        assert state == after == ()
        return
    counts = np.full(len(x), x.shape[1]) if lengths is None else lengths
    for mine in (to_arrays(state), after):
        assert mine[2].tolist() == counts.tolist() and mine[0].shape == after[0].shape
        for row, (position, start) in enumerate(zip(*mine[2:], strict=True)):
            np.testing.assert_allclose(
                mine[0][row, :, : position - start], after[0][row, :, : position - start], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), own=st.booleans(), seed=SEEDS)
def test_cross_attention_is_that_of_a_loop(backend: str, data: Any, own: bool, seed: int) -> None:
    sizes = {"kdim": 3, "vdim": 5} if own else {}
    layer = nn.MultiHeadAttention(8, 4, num_kv_heads=2, dtype="float64", rng=seed, **sizes).eval()
    shake(layer, 0)
    x, lengths = draw_inputs(data, 8, "float64", most=6)
    rng, size = np.random.default_rng(seed), data.draw(st.integers(0, 5))
    keys, values = (rng.normal(size=(len(x), size, n)) for n in (layer.config["kdim"], layer.config["vdim"]))
    if not own:
        values = keys
    valid = rng.integers(0, size + 1, len(x)) if data.draw(st.booleans()) else None
    expected, alpha = oracle(layer, np.nan_to_num(x), lengths, (keys, values), valid)
    if valid is not None:
        keys[np.arange(size) >= valid[:, None]] = np.nan
    options = {"lengths": lengths, "memory": (keys, values) if own else keys, "memory_lengths": valid}
    with pyrnn.use_backend(backend):
        y, state = layer(x, **options)
        looked = layer.attention_weights(x, **options)
    assert state == ()
    np.testing.assert_allclose(y.data, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(looked, alpha, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def share_weights(torch: Any, mine: nn.Module, theirs: Any, seed: int) -> None:
    """Fill theirs with numbers and load them; what is given back must be the same."""
    rng = np.random.default_rng(seed)
    filled = {name: torch.from_numpy(rng.normal(size=tuple(a.shape)) * 0.4) for name, a in theirs.state_dict().items()}
    theirs.load_state_dict(filled)
    io.load_torch_state_dict(mine, theirs.state_dict())
    back = io.to_torch_state_dict(mine)
    assert back.keys() == filled.keys() and all(np.array_equal(back[name], filled[name]) for name in back)


def hold_gradients(
    torch: Any, mine: nn.Module, theirs: Any, x: Any, y: Any, their_x: Any, their_y: Any, at: Any
) -> None:
    cotangent = np.where(at[..., None], np.random.default_rng(9).normal(size=y.shape), 0)
    np.testing.assert_allclose(y.data[at], their_y.detach().numpy()[at], rtol=1e-9, atol=1e-11)
    y.backward(cotangent)
    their_y.backward(torch.from_numpy(cotangent))
    np.testing.assert_allclose(x.grad[at], their_x.grad.numpy()[at], rtol=1e-8, atol=1e-10)
    gradients = {name: parameter.grad for name, parameter in mine.named_parameters()}
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(gradients[name], parameter.grad.numpy(), rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20)
@given(seed=SEEDS, causal=st.booleans(), bias=st.booleans(), own=st.sampled_from(["self", "memory", "kdim"]))
def test_multi_head_attention_against_pytorch(
    torch: Any, backend: str, seed: int, causal: bool, bias: bool, own: str
) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"kdim": 3, "vdim": 5} if own == "kdim" else {}
    causal = causal and own == "self"
    mine = nn.MultiHeadAttention(8, 2, bias=bias, causal=causal, dtype="float64", **sizes)
    theirs = torch.nn.MultiheadAttention(8, 2, bias=bias, batch_first=True, dtype=torch.float64, **sizes)
    share_weights(torch, mine, theirs, seed)
    x, lengths = rng.normal(size=(3, 6, 8)), np.array([6, 3, 1])
    keys, values = rng.normal(size=(3, 4, mine.config["kdim"])), rng.normal(size=(3, 4, mine.config["vdim"]))
    their_x, our_x = torch.from_numpy(x).requires_grad_(), Tensor(x, requires_grad=True)
    at = np.arange(6) < lengths[:, None]
    with pyrnn.use_backend(backend):
        if own == "self":
            ignored = torch.from_numpy(~at)
            mask = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
            their_y, their_weights = theirs(
                their_x, their_x, their_x, key_padding_mask=ignored, attn_mask=mask, average_attn_weights=False
            )
            options: dict[str, Any] = {"lengths": lengths}
        else:
            valid = np.array([4, 1, 2])
            ignored = torch.from_numpy(np.arange(4) >= valid[:, None])
            values = values if own == "kdim" else keys
            their_y, their_weights = theirs(
                their_x, torch.from_numpy(keys), torch.from_numpy(values), key_padding_mask=ignored,
                average_attn_weights=False,
            )  # fmt: skip
            options = {"lengths": lengths, "memory": (keys, values), "memory_lengths": valid}
        y, _ = mine(our_x, **options)
        weights = mine.attention_weights(x, **options)
        rows = np.broadcast_to(at[:, None, :, None], weights.shape)
        np.testing.assert_allclose(weights, np.where(rows, their_weights.detach().numpy(), 0), atol=1e-12)
        hold_gradients(torch, mine, theirs, our_x, y, their_x, their_y, at)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20)
@given(
    seed=SEEDS,
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu", "gelu_tanh"]),
    kind=st.sampled_from(["encoder", "causal encoder", "decoder", "stack"]),
)
def test_transformer_layers_against_pytorch(
    torch: Any, backend: str, seed: int, norm_first: bool, activation: str, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    if activation == "gelu_tanh":

        def theirs_is(x: Any) -> Any:
            return torch.nn.functional.gelu(x, approximate="tanh")
    else:
        theirs_is = getattr(torch.nn.functional, activation)
    options = {"dropout": 0.0, "norm_first": norm_first}
    other = {**options, "activation": theirs_is, "batch_first": True, "dtype": torch.float64}
    options |= {"activation": activation, "dtype": "float64"}
    x, lengths = rng.normal(size=(3, 6, 8)), np.array([6, 2, 4])
    at = np.arange(6) < lengths[:, None]
    their_x, our_x = torch.from_numpy(x).requires_grad_(), Tensor(x, requires_grad=True)
    ignored, later = torch.from_numpy(~at), torch.ones(6, 6, dtype=torch.bool).triu(1)
    with pyrnn.use_backend(backend):
        if kind == "decoder":
            mine: Any = nn.TransformerDecoderLayer(8, 2, 12, **options)
            theirs: Any = torch.nn.TransformerDecoderLayer(8, 2, 12, **other)
            share_weights(torch, mine, theirs, seed)
            memory, valid = rng.normal(size=(3, 5, 8)), np.array([5, 1, 3])
            their_y = theirs(
                their_x, torch.from_numpy(memory), tgt_mask=later, tgt_key_padding_mask=ignored,
                memory_key_padding_mask=torch.from_numpy(np.arange(5) >= valid[:, None]),
            )  # fmt: skip
            y, _ = mine(our_x, lengths=lengths, memory=memory, memory_lengths=valid)
        elif kind == "stack":
            mine = nn.Transformer(2, 8, 2, 12, **options)
            norm = torch.nn.LayerNorm(8, dtype=torch.float64) if norm_first else None
            theirs = torch.nn.TransformerEncoder(
                torch.nn.TransformerEncoderLayer(8, 2, 12, **other), 2, norm, enable_nested_tensor=False
            )
            share_weights(torch, mine, theirs, seed)
            their_y = theirs(their_x, mask=later, src_key_padding_mask=ignored)
            y, _ = mine(our_x, lengths=lengths)
        else:
            causal = kind == "causal encoder"
            mine = nn.TransformerEncoderLayer(8, 2, 12, causal=causal, **options)
            theirs = torch.nn.TransformerEncoderLayer(8, 2, 12, **other)
            share_weights(torch, mine, theirs, seed)
            their_y = theirs(their_x, src_mask=later if causal else None, src_key_padding_mask=ignored)
            y, _ = mine(our_x, lengths=lengths)
        hold_gradients(torch, mine, theirs, our_x, y, their_x, their_y, at)
    assert not y.data[~at].any()


def test_what_pytorch_can_not_express() -> None:
    layer = nn.MultiHeadAttention(8, 4, num_kv_heads=2, positions="rotary")
    with pytest.raises(ValueError, match="num_kv_heads=2, and PyTorch's has as many as num_heads") as raised:
        io.to_torch_state_dict(nn.Sequential(layer))
    assert "0, a MultiHeadAttention: has positions='rotary', and PyTorch's has none" in str(raised.value)
    plain = nn.MultiHeadAttention(8, 4)
    with pytest.raises(ValueError, match=r"unexpected: bias_k \(add_bias_kv in PyTorch"):
        io.load_torch_state_dict(plain, {**plain.state_dict(), "bias_k": np.zeros((1, 1, 8), np.float32)})


# --- chunks, streams, batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=60)
@given(data=st.data())
def test_chunks_streams_and_batches_have_the_bits_of_the_whole(backend: str, dtype: str, data: Any) -> None:
    model, features = data.draw(causal_models(dtype))
    x, lengths = draw_inputs(data, features, dtype)
    batch, time = x.shape[:2]
    cuts = draw_cuts(data, time)
    with on(backend):
        assert model.streamable
        whole = model.predict(x, lengths=lengths)
        assert same(chunks(model, x, None, lengths, cuts), whole)
        assert same(model.predict(x, model.initial_state(batch), lengths=lengths), whole)
        frozen = model.freeze()
        assert same(frozen.run(x, lengths=lengths), whole)
        if not batch:
            return
        rows = np.array(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4)))
        y, state = model.predict(x[rows], lengths=None if lengths is None else lengths[rows])
        held = [leaf.shape[2] for leaf in leaves(state) if leaf.ndim == 4]
        others = [leaf.shape[2] for leaf in leaves(whole[1]) if leaf.ndim == 4]
        assert same(y, whole[0][rows]) and all(a <= b for a, b in zip(held, others, strict=True))

        # A state with ragged rows, continued by calls and by a stream.
        x = np.random.default_rng(0).normal(size=(batch, 7, features)).astype(dtype)
        expected, after = model.predict(x, whole[1])
        assert same(chunks(model, x, whole[1], None, [1, 2, 3, 5]), (expected, after))
        assert same(frozen.run(x, whole[1]), (expected, after))
        stream = frozen.stream(batch)
        stream.reset(whole[1])
        for step in range(7):
            out = np.full_like(expected[:, 0], np.nan) if step % 2 else None
            y = stream.step(x[:, step], out)
            assert same(y, expected[:, step].copy()) and (out is None or y is out)
        assert same(stream.state, after)
        stream.reset()
        assert same(stream.step(x[:, 0]), model.predict(x[:, :1])[0][:, 0].copy())


def leaves(state: Any) -> Iterator[np.ndarray]:
    if isinstance(state, tuple):
        for entry in state:
            yield from leaves(entry)
    else:
        yield state


@pytest.mark.parametrize("backend", EXACT)
@settings(max_examples=40)
@given(data=st.data(), seed=SEEDS)
def test_a_decoder_layer_carries_its_memory(backend: str, data: Any, seed: int) -> None:
    model = nn.TransformerDecoderLayer(
        8, 4, 6, num_kv_heads=data.draw(st.sampled_from([1, 2, 4])), norm_first=data.draw(st.booleans()),
        window=data.draw(st.none() | st.tuples(st.integers(0, 9), st.none())),
        positions=data.draw(st.sampled_from([None, "rotary", "alibi"])), rng=seed,
    ).eval()  # fmt: skip
    x, lengths = draw_inputs(data, 8, "float32")
    batch, time = x.shape[:2]
    rng = np.random.default_rng(seed)
    memory = rng.normal(size=(batch, 5, 8)).astype(np.float32)
    valid = rng.integers(0, 6, batch) if data.draw(st.booleans()) else None
    with on(backend):
        y, state = model.predict(x, lengths=lengths, memory=memory, memory_lengths=valid)
        start = to_arrays(call(model.initial_state, batch, memory=memory, memory_lengths=valid))
        frozen = model.freeze()
        assert same(frozen.initial_state(batch, memory=memory, memory_lengths=valid), start)
        assert same(chunks(model, x, start, lengths, draw_cuts(data, time)), (y, state))
        assert same(frozen.run(x, start, lengths), (y, state))
        if not batch:
            return
        stream = frozen.stream(batch)
        with pytest.raises(ValueError, match=r"memory: expected an array of shape \(B, M, E\)"):
            stream.step(np.zeros((batch, 8), np.float32))
        stream.reset(start)
        x = np.nan_to_num(x)
        y, state = model.predict(x, start)
        for step in range(time):
            assert same(stream.step(x[:, step]), y[:, step].copy())
        assert same(stream.state, state)


def call(function: Any, *args: Any, **kwargs: Any) -> Any:
    with no_grad():
        return function(*args, **kwargs)


@pytest.mark.parametrize("backend", CHUNKED)
@pytest.mark.parametrize("positions", [None, "rotary", "alibi"])
@pytest.mark.parametrize("window", [None, (100, 0), (300, 0)])
def test_long_sequences_over_true_splits(backend: str, positions: str | None, window: Any) -> None:
    model = nn.Transformer(2, 16, 2, 8, window=window, positions=positions, rng=0).eval()
    x = np.random.default_rng(0).normal(size=(2, 1100, 16)).astype(np.float32)
    lengths = np.array([1100, 700])
    with pyrnn.use_backend(backend):
        whole = model.predict(x, lengths=lengths)
        assert same(chunks(model, x, None, lengths, [1, 255, 257, 512, 513, 900, 1099]), whole)
        whole = model.predict(x)
        stream = model.freeze().stream(2)
        for step in range(1100):
            assert same(stream.step(x[:, step]), whole[0][:, step].copy())
        assert same(stream.state, whole[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_model_is_near_on_a_backend_that_claims_nothing(backend: str) -> None:
    model = nn.Sequential(
        nn.Embedding(11, 8, rng=0), nn.LearnedPositions(30, 8, rng=0), nn.Transformer(2, 8, 2, 16, rng=0),
        nn.Linear(8, 11, rng=0),
    ).eval()  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 11, (3, 20))
    with pyrnn.use_backend(backend):
        y, state = model.predict(tokens)
        frozen = model.freeze()
        stream = frozen.stream(3)
        assert same(frozen.run(tokens), (y, state))
        got = np.stack([stream.step(tokens[:, t]) for t in range(20)], axis=1)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-5)
    for mine, theirs in zip(leaves(stream.state), leaves(state), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    assert frozen.backend == backend


# --- the cache is a value -------------------------------------------------------------------------------------------


def valid_part(state: Any) -> list[Any]:
    """Return what a state says, its padding left out."""
    k, v, position, start = to_arrays(state)
    held = position - start
    return [(k[b, :, :n].copy(), v[b, :, :n].copy(), int(position[b]), int(start[b])) for b, n in enumerate(held)]


def same_rows(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        same(one[:2], two[:2]) and one[2:] == two[2:] for one, two in zip(a, b, strict=True)
    )


@settings(max_examples=60)
@given(data=st.data())
def test_any_tree_of_continuations_gives_what_each_path_gives(data: Any) -> None:
    """States continued in any order, some twice, some with rows picked or reset, some copied."""
    layer = data.draw(attentions("float32", causal=True))
    rng = np.random.default_rng(data.draw(SEEDS))
    features = layer.heads.embed_dim

    def steps(batch: int) -> tuple[np.ndarray, Any]:
        time = int(rng.integers(0, 6))
        lengths = rng.integers(0, time + 1, batch) if rng.integers(2) else None
        return rng.normal(size=(batch, time, features)).astype(np.float32), lengths

    with on_exact():
        # Of each: the state, what it says, and each row's own history of inputs.
        batch = data.draw(st.integers(1, 3))
        empty = np.zeros((0, features), np.float32)
        found = [(layer.predict(np.zeros((batch, 0, features), np.float32))[1], [empty] * batch)]
        kept = [valid_part(found[0][0])]
        for _ in range(data.draw(st.integers(1, 12))):
            state, histories = found[data.draw(st.integers(max(0, len(found) - 3), len(found) - 1))]
            action = data.draw(st.sampled_from(["go", "go", "go", "pick", "reset", "copy"]))
            if action == "pick":
                rows = np.array(data.draw(st.lists(st.integers(0, len(histories) - 1), min_size=1, max_size=3)))
                state, histories = picked(state, rows), [histories[row] for row in rows]
            elif action == "reset":
                row = data.draw(st.integers(0, len(histories) - 1))
                position, start = state[2].copy(), state[3].copy()
                position[row] = start[row] = 0
                state = (*state[:2], position, start)
                histories = [*histories[:row], empty, *histories[row + 1 :]]
            elif action == "copy":
                state = pickle.loads(pickle.dumps(state))
            x, lengths = steps(len(histories))
            y, new = layer.predict(x, state, lengths=lengths)
            counts = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
            longer = [np.concatenate([h, x[b, :n]]) for b, (h, n) in enumerate(zip(histories, counts, strict=True))]
            for b, (history, n) in enumerate(zip(longer, counts, strict=True)):
                alone, after = layer.predict(history[None])
                assert same(y[b, :n], alone[0, len(history) - n :]) and not y[b, n:].any()
                assert same_rows(valid_part(new)[b : b + 1], valid_part(after))
            found.append((new, longer))
            kept.append(valid_part(new))
            assert all(same_rows(valid_part(entry[0]), was) for entry, was in zip(found, kept, strict=True))


def test_a_state_is_continued_in_place_and_once() -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=True, rng=0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 8)).astype(np.float32)
    with on_exact():
        _, first = layer.predict(x[:, 1:20], layer.predict(x[:, :1])[1])
        bytes_before = [leaf.tobytes() for leaf in first]
        _, second = layer.predict(x[:, 20:21], first)
        assert np.shares_memory(first[0], second[0]) and np.shares_memory(first[1], second[1])
        _, branch = layer.predict(x[:, 30:31], first)  # there is something behind it now
        assert not np.shares_memory(first[0], branch[0])
        _, third = layer.predict(x[:, 21:22], second)
        assert np.shares_memory(first[0], third[0])
        assert [leaf.tobytes() for leaf in first] == bytes_before
        for state, steps in ((third, [20, 21]), (branch, [30])):
            expected = layer.predict(np.concatenate([x[:, :20], x[:, steps]], axis=1))[1]
            assert same(state, expected)
        for state in (first, third, branch):
            with pytest.raises(ValueError, match="read-only"):
                state[0][...] = 0
        with no_grad():  # a Tensor's array is the same one
            _, fourth = layer(x[:, 22:23], pyrnn.detach(third))
            assert isinstance(fourth[0], Tensor) and np.shares_memory(to_arrays(fourth)[0], third[0])
    assert len(cache._newest) < 50
    del first, second, third, fourth, branch, state, expected
    assert not cache._newest


def test_keys_are_copied_a_logarithm_of_times() -> None:
    layer = nn.MultiHeadAttention(4, 2, causal=True, window=None, rng=0)
    x = np.random.default_rng(0).normal(size=(2, 1000, 4)).astype(np.float32)
    buffers, state = [], layer.initial_state(2)
    with pyrnn.use_backend(BACKENDS[0]):
        for step in range(1000):
            state = layer.predict(x[:, step : step + 1], state)[1]
            base = state[0].base
            if step and (not buffers or buffers[-1] is not base):  # the first step is no buffer's yet
                buffers.append(base)
    assert len(buffers) == 7, "16, 32, ..., 1024"
    assert buffers[-1].shape == (2, 2, 2, 1024, 2)


@pytest.mark.parametrize("left", [0, 1, 3, 4, 5, 11])
def test_a_window_lets_go_of_whole_splits(left: int) -> None:
    layer = nn.MultiHeadAttention(4, 1, causal=True, window=(left, None), rng=0)
    x = np.random.default_rng(0).normal(size=(1, 120, 4)).astype(np.float32)
    with on_exact():
        whole, _ = layer.predict(x)
        stream, state, longest, moves, base = layer.freeze().stream(), None, 0, 0, None
        for step in range(120):
            y, state = layer.predict(x[:, step : step + 1], state)
            assert same(y, whole[:, step : step + 1].copy())
            assert same(stream.step(x[:, step]), whole[:, step].copy())
            position, start = int(state[2][0]), int(state[3][0])
            assert start % SPLIT == 0 and start <= max(0, position - left) and state[0].shape[2] == position - start
            longest, moves, base = max(longest, position - start), moves + (state[0].base is not base), state[0].base
        assert longest < 2 * max(left, SPLIT) + SPLIT
        assert stream._step.state()[0].base.shape[3] <= max(16, 4 * max(left, SPLIT))
        assert moves <= 120 // SPLIT + 3
        np.testing.assert_array_equal(stream.state[3], state[3])


def test_two_threads_continue_one_state() -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=True, rng=0)
    x = np.random.default_rng(0).normal(size=(16, 1, 40, 8)).astype(np.float32)
    with pyrnn.use_backend(Exact()):
        expected = [layer.predict(part)[0] for part in x]
        _, shared = layer.predict(np.zeros((1, 0, 8), np.float32))
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        state, outputs = shared, []
        with pyrnn.use_backend(Exact()):
            for step in range(40):
                y, state = layer.predict(x[number, :, step : step + 1], state)
                outputs.append(y)
        results[number] = np.concatenate(outputs, axis=1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(results[number], expected[number]) for number in range(16))


def test_a_stream_writes_in_place_and_hands_out_copies() -> None:
    model = nn.Transformer(1, 8, 2, 8, rng=0)
    x = np.random.default_rng(0).normal(size=(1, 12, 8)).astype(np.float32)
    with pyrnn.use_backend(BACKENDS[0]):
        _, start = model.predict(x[:, :4])
        kept = copy.deepcopy(start)
        stream = model.freeze().stream()
        stream.reset(start)
        buffer = None
        for step in range(4, 12):
            stream.step(x[:, step])
            assert buffer is None or stream._step.state()[0][0].base is buffer
            buffer = stream._step.state()[0][0].base
            state = stream.state
            assert not np.shares_memory(state[0][0], buffer) and state[0][0].shape[2] == step + 1
            state[0][0][...] = 0
        assert same(start, kept)
        np.testing.assert_allclose(stream.step(x[:, 0]), model.predict(
            np.concatenate([x, x[:, :1]], axis=1))[0][:, -1], atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.uint64, list, tuple])
def test_a_stream_goes_on_from_positions_of_any_integers(kind: Any) -> None:
    def cast(state: Any) -> Any:
        if isinstance(state, tuple):
            return tuple(map(cast, state))
        if state.dtype.kind != "i":
            return state
        return kind(state.tolist()) if kind in (list, tuple) else state.astype(kind)

    x = np.random.default_rng(0).normal(size=(3, 300, 8)).astype(np.float32)
    stack = nn.Sequential(nn.SinusoidalPositions(8), nn.Transformer(1, 8, 2, 8, positions="rotary", rng=0))
    decoder = nn.TransformerDecoderLayer(8, 2, 8, rng=0).freeze()
    for model, start in (
        (stack.freeze(), stack.initial_state(3)),
        (decoder, decoder.initial_state(3, memory=x[:, :6], memory_lengths=[6, 0, 3])),
    ):
        whole, _ = model.run(x, start)
        _, state = model.run(x[:, :250], start)
        stream = model.stream(3)
        stream.reset(cast(state))
        assert np.array_equal(np.stack([stream.step(x[:, step]) for step in range(250, 300)], axis=1), whole[:, 250:])


@pytest.mark.parametrize(
    "model",
    [nn.Transformer(1, 8, 2, 8), nn.TCN(8, [8]), nn.LSTM(8, 8), nn.Sequential(nn.Linear(8, 8), nn.GRU(8, 8))],
    ids=lambda model: type(model).__name__,
)
def test_a_frozen_model_takes_no_state_of_tensors(model: Any) -> None:
    _, state = model(zeros(2, 3, 8))
    frozen = model.freeze()
    for call in (lambda: frozen.run(zeros(2, 3, 8), state), lambda: frozen.stream(2).reset(state)):
        with pytest.raises(TypeError, match="state: expected arrays, since a frozen model has no tape"):
            call()


def test_a_window_wider_than_any_sequence_is_no_limit() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    wide, plain = (nn.MultiHeadAttention(8, 2, causal=True, window=window, rng=0) for window in ((2**63 - 1, 0), None))
    with pyrnn.use_backend(BACKENDS[0]):
        assert same(wide.predict(x), plain.predict(x))


# --- training -------------------------------------------------------------------------------------------------------


def numeric_gradient(function: Any, array: np.ndarray, at: list[tuple[int, ...]], h: float = 1e-6) -> list[float]:
    result = []
    for index in at:
        kept = array[index]
        array[index] = kept + h
        up = function()
        array[index] = kept - h
        down = function()
        array[index] = kept
        result.append((up - down) / (2 * h))
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["attention", "rotary", "alibi", "encoder", "decoder", "stack"])
def test_gradients_are_those_of_finite_differences(backend: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    x, lengths, memory = rng.normal(size=(3, 5, 8)), np.array([5, 0, 3]), rng.normal(size=(3, 4, 8))
    options: dict[str, Any] = {"dtype": "float64", "rng": 1, "num_kv_heads": 2}
    network = {**options, "dropout": 0.0, "activation": "gelu"}
    extra = {"memory": memory, "memory_lengths": [4, 2, 0]} if kind == "decoder" else {}
    model: Any = {
        "attention": lambda: nn.MultiHeadAttention(8, 4, causal=True, window=(2, None), **options),
        "rotary": lambda: nn.MultiHeadAttention(8, 4, positions="rotary", **options),
        "alibi": lambda: nn.MultiHeadAttention(8, 4, causal=True, positions="alibi", **options),
        "encoder": lambda: nn.TransformerEncoderLayer(8, 4, 6, norm_first=True, **network),
        "decoder": lambda: nn.TransformerDecoderLayer(8, 4, 6, **{**network, "activation": "gelu_tanh"}),
        "stack": lambda: nn.Sequential(
            nn.LearnedPositions(5, 8, dtype="float64", rng=0), nn.Transformer(2, 8, 4, 6, final_norm=True, **network)
        ),
    }[kind]()
    shake(model, 5)
    cotangent = rng.normal(size=x.shape)

    def loss() -> float:
        with no_grad():
            return float((to_arrays(model(x, lengths=lengths, **extra)[0]) * cotangent).sum())

    with pyrnn.use_backend(backend):
        tensor = Tensor(x, requires_grad=True)
        y, _ = model(tensor, lengths=lengths, **extra)
        y.backward(cotangent)
        for array, grad in [(x, tensor.grad), *((p.write(), p.grad) for p in model.parameters())]:
            at = [tuple(rng.integers(0, size) for size in array.shape) for _ in range(4)]
            np.testing.assert_allclose([grad[i] for i in at], numeric_gradient(loss, array, at), rtol=1e-5, atol=1e-7)
        assert not tensor.grad[1].any() and not tensor.grad[2, 3:].any()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(data=st.data())
def test_training_in_chunks_is_training_on_the_whole(backend: str, data: Any) -> None:
    """With the state on the tape, ragged rows and windows included, gradients are those of the whole."""
    layer = data.draw(attentions(causal=True))
    x, lengths = draw_inputs(data, layer.heads.embed_dim, "float64", most=12)
    cuts = draw_cuts(data, x.shape[1])
    found = []
    with pytest.MonkeyPatch.context() as patch, pyrnn.use_backend(backend):
        patch.setattr("pyrnn.backend.KEY_SPLIT", SPLIT)
        for bounds in ([], cuts):
            tensor, state, outputs = Tensor(x, requires_grad=True), None, []
            for start, stop in zip([0, *bounds], [*bounds, x.shape[1]], strict=True):
                left = None if lengths is None else np.clip(lengths - start, 0, stop - start)
                y, state = layer(tensor[:, start:stop], state, lengths=left)
                outputs.append(y)
            y = functions.concatenate(outputs, axis=1)
            cotangent = np.random.default_rng(1).normal(size=y.shape)
            held = state[0].sum() + (state[1] * state[1]).sum() if lengths is None else 0.0
            ((y * cotangent).sum() + held).backward()
            found.append([y.data, tensor.grad, *(p.grad for p in layer.parameters())])
            layer.zero_grad()
    for one, other in zip(*found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_truncated_bptt_cuts_the_tape(backend: str) -> None:
    model = nn.Sequential(
        nn.SinusoidalPositions(8), nn.Transformer(2, 8, 2, 16, window=(5, 0), dropout=0.1, dtype="float64", rng=0)
    )
    optimiser = pyrnn.optim.SGD(model.parameters(), lr=0.05)
    rng = np.random.default_rng(0)
    x, target, losses = rng.normal(size=(2, 24, 8)), rng.normal(size=(2, 24, 8)), []
    with pyrnn.use_backend(backend):
        for _ in range(15):
            state, total = None, 0.0
            for start in range(0, 24, 8):
                optimiser.zero_grad()
                y, state = model(x[:, start : start + 8], state)
                loss = nn.mse_loss(y, target[:, start : start + 8])
                loss.backward()
                optimiser.step()
                state = pyrnn.detach(state)
                total += loss.item()
            losses.append(total)
    assert losses[-1] < 0.9 * losses[0]
    assert state[1][0][2].tolist() == [24, 24]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_draws_from_its_generator(backend: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, 8)).astype(np.float32)

    def outputs(seed: int, dropout: float) -> tuple[np.ndarray, ...]:
        layer = nn.MultiHeadAttention(8, 2, dropout=dropout, causal=True, rng=seed)
        layer.load_state_dict(reference.state_dict())
        return layer(x)[0].data, layer(x)[0].data, layer.predict(x)[0]

    reference = nn.MultiHeadAttention(8, 2, causal=True, rng=0)
    with pyrnn.use_backend(backend):
        plain = reference.predict(x)[0]
        first, second, quiet = outputs(1, 0.5)
        assert same(outputs(1, 0.5), (first, second, quiet)) and not np.allclose(first, second)
        assert not np.allclose(outputs(2, 0.5)[0], first) and same(quiet, plain)
        assert same(outputs(1, 0.0)[0], plain)
        # The mean of many draws is what comes without dropping: weights grow as others go.
        layer = nn.MultiHeadAttention(8, 2, dropout=0.3, causal=True, rng=3)
        layer.load_state_dict(reference.state_dict())
        mean = np.mean([layer(x)[0].data for _ in range(600)], axis=0)
    np.testing.assert_allclose(mean, plain, atol=0.12)


# --- positions, activations, files ----------------------------------------------------------------------------------


def test_sinusoidal_positions_are_those_of_the_paper() -> None:
    for features in (1, 4, 5):
        layer = nn.SinusoidalPositions(features)
        x = np.zeros((2, 600, features))
        y, state = layer.predict(x, (np.array([0, 1000]),))
        for row, start in enumerate((0, 1000)):
            for step in (0, 1, 255, 256, 599):
                p = start + step
                expected = [(math.sin, math.cos)[i % 2](p / 10000 ** (i // 2 * 2 / features)) for i in range(features)]
                np.testing.assert_allclose(y[row, step], expected, atol=1e-12)
        assert state[0].tolist() == [600, 1600]
    far = 10**9
    assert same(waves(np.array([far]), 4, np.dtype("float64"))[:, 0], waves(np.arange(far - 300, far + 9), 4,
                np.dtype("float64"))[:, 300].copy())  # fmt: skip


@given(data=st.data(), learned=st.booleans())
def test_positions_in_chunks_and_streams(data: Any, learned: bool) -> None:
    layer: Any = nn.LearnedPositions(300, 3, rng=0) if learned else nn.SinusoidalPositions(3)
    x, lengths = draw_inputs(data, 3, "float32")
    batch, time = x.shape[:2]
    start = (np.random.default_rng(time).integers(230, 260, batch),)
    kept = copy.deepcopy(start)
    whole = layer.predict(x, start, lengths=lengths)
    assert same(chunks(layer, x, start, lengths, draw_cuts(data, time)), whole) and same(start, kept)
    table = layer.weight.data if learned else layer.predict(np.zeros((1, 300, 3), np.float32))[0][0]
    for row in range(batch):
        count = time if lengths is None else lengths[row]
        assert same(whole[0][row, :count], x[row, :count] + table[start[0][row] :][:count])
        assert not whole[0][row, count:].any() and whole[1][0][row] == start[0][row] + count
    frozen = layer.freeze()
    assert same(frozen.run(x, start, lengths), whole) and layer.streamable
    if batch:
        x = np.nan_to_num(x)
        stream = frozen.stream(batch)
        for begin in (None, start):
            stream.reset(begin)
            for step in range(time):
                out = np.empty((batch, 3), np.float32)
                assert same(stream.step(x[:, step], out), layer.predict(x, begin)[0][:, step].copy())
            assert same(stream.state, layer.predict(x, begin)[1])


def test_alibi_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    np.testing.assert_allclose(alibi_slopes(12), [2.0**-n for n in range(1, 9)] + [2.0 ** -(n + 0.5) for n in range(4)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gelu_to_the_last_places(dtype: str) -> None:
    x = np.concatenate([np.linspace(-9, 9, 4001), [-40, 40, 0, 1e-30]]).astype(dtype)
    exact = np.array([0.5 * float(a) * math.erfc(-float(a) / math.sqrt(2)) for a in x])
    slope = np.array([0.5 * math.erfc(-float(a) / math.sqrt(2)) + float(a) * math.exp(-float(a) ** 2 / 2)
                      / math.sqrt(2 * math.pi) for a in x])  # fmt: skip
    tensor = Tensor(x, requires_grad=True)
    y = functions.gelu(tensor)
    y.sum().backward()
    eps = np.finfo(dtype).eps
    assert (np.abs(y.data - exact) <= 2 * eps * np.abs(x)).all()
    assert (np.abs(tensor.grad - slope) <= 4 * eps).all() and y.dtype == tensor.grad.dtype == dtype
    near, wide = functions.gelu_tanh(Tensor(x)).data, x.astype(np.float64)
    expected = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(near, expected, atol=9 * eps)
    assert np.isnan(functions.gelu(np.array([np.nan])).data[0])


MODELS: dict[str, Any] = {
    "attention": lambda: nn.MultiHeadAttention(
        8, 4, num_kv_heads=2, causal=True, window=(3, None), positions="alibi", dropout=0.25, rng=0
    ),
    "cross": lambda: nn.MultiHeadAttention(8, 4, kdim=3, vdim=5, bias=False, dtype="float64", rng=0),
    "bound": lambda: nn.MultiHeadAttention(8, 2, causal=True, max_length=7, positions="rotary", rng=0),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True, window=(2, 2), rng=0),
    "decoder": lambda: nn.TransformerDecoderLayer(8, 2, 16, positions="rotary", num_kv_heads=1, rng=0),
    "stack": lambda: nn.Transformer(2, 8, 2, 16, final_norm=True, activation="gelu_tanh", rng=0),
    "sequential": lambda: nn.Sequential(
        nn.Embedding(9, 8, rng=0), nn.SinusoidalPositions(8), nn.LearnedPositions(12, 8, rng=0),
        nn.Transformer(1, 8, 2, 16, norm_first=True, rng=0), nn.Linear(8, 9, rng=0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_are_saved_copied_and_pickled(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    shake(model, 2)
    io.save(model, tmp_path / "model.safetensors")
    loaded = io.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.architecture() == model.architecture()
        assert same(tuple(other.state_dict().values()), tuple(model.state_dict().values()))
        assert list(other.state_dict()) == list(model.state_dict())
    shapes = dict(type(model).parameter_shapes(model.config)) if name != "sequential" else None
    assert shapes is None or shapes == {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("cross", "decoder", "sequential")])
@pytest.mark.parametrize("key", ["embed_dim", "d_model", "num_heads", "nhead", "num_kv_heads", "num_layers", "window"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", [1], 10**30, None])
def test_a_file_may_claim_anything(name: str, key: str, value: Any, tmp_path: Path) -> None:
    model = MODELS[name]()
    if key not in model.config or (key, value) == ("window", None) or value is model.config[key]:
        return
    model.config[key] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyrnn.io.models._architecture", lambda model, weights: model.architecture())
        io.save(model, tmp_path / "model.safetensors")
    with pytest.raises(io.FileError):
        io.load(tmp_path / "model.safetensors")


def test_parameters_are_drawn_as_they_say() -> None:
    layer = nn.MultiHeadAttention(64, 4, rng=0)
    assert not layer.in_proj_bias.data.any() and not layer.out_proj.bias.data.any()
    bound = math.sqrt(6 / (4 * 64))
    assert 0.99 * bound < np.abs(layer.in_proj_weight.data).max() <= bound
    assert list(layer.state_dict()) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    again = nn.MultiHeadAttention(64, 4, rng=0)
    assert same(tuple(again.state_dict().values()), tuple(layer.state_dict().values()))
    grouped = nn.MultiHeadAttention(8, 4, num_kv_heads=1, kdim=3)
    assert {name: a.shape for name, a in grouped.state_dict().items()} == {
        "q_proj_weight": (8, 8), "k_proj_weight": (2, 3), "v_proj_weight": (2, 8), "in_proj_bias": (12,),
        "out_proj.weight": (8, 8), "out_proj.bias": (8,),
    }  # fmt: skip
    stack = nn.Transformer(2, 8, 2, 4, rng=0)
    one, two = (layer.linear1.weight.data for layer in stack.layers)
    assert not np.array_equal(one, two) and stack.norm is None
    assert nn.Transformer(1, 8, 2, 4, norm_first=True).norm is not None


# --- errors ---------------------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


CAUSAL: dict[str, Any] = {"causal": True, "rng": 0}


def held(k: Any = None, v: Any = None, position: Any = (3, 1), start: Any = (0, 0)) -> tuple[Any, ...]:
    k = zeros(2, 2, 3, 4) if k is None else k
    return k, zeros(*k.shape) if v is None else v, np.array(position), np.array(start)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.MultiHeadAttention(8, 3), ValueError, "num_heads: expected a divisor of embed_dim = 8, got 3"),
        (lambda: nn.MultiHeadAttention(8, 4, num_kv_heads=3), ValueError,
         "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        (lambda: nn.MultiHeadAttention(6, 2, positions="rotary"), ValueError,
         "positions: rotary ones need an even number of features in a head, got 3"),
        (lambda: nn.MultiHeadAttention(8, 2, positions="learned"), ValueError,
         "positions: expected None, 'rotary' or 'alibi', got 'learned'"),
        (lambda: nn.MultiHeadAttention(8, 2, window=3), TypeError,
         "window: expected a pair (left, right), got 3"),
        (lambda: nn.MultiHeadAttention(8, 2, window=(-1, 0)), ValueError, "window: expected at least 0, got -1"),
        (lambda: nn.MultiHeadAttention(8, 2, max_length=3), ValueError,
         "max_length: expected None of a layer that is not causal, got 3"),
        (lambda: nn.MultiHeadAttention(8, 2, max_length=3, window=(2, 0), causal=True), ValueError,
         "max_length: expected None with a window, which bounds the cache, got 3"),
        (lambda: nn.MultiHeadAttention(8, 2, kdim=3, causal=True), ValueError,
         "kdim, vdim: expected E = 8 of a layer that is causal or has a window or positions, got 3 and None"),
        (lambda: nn.MultiHeadAttention(8, 2, dropout=1), ValueError, "dropout: expected a probability below 1, got 1"),
        (lambda: nn.TransformerEncoderLayer(8, 2, activation="swish"), ValueError,
         "activation: expected one of 'relu', 'gelu', 'gelu_tanh', got 'swish'"),
        (lambda: nn.Transformer(0, 8, 2), ValueError, "num_layers: expected at least 1, got 0"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 7)), ValueError,
         "x: expected shape (B, T, E) = (2, 3, 8), got (2, 3, 7)"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8, dtype=float)), TypeError,
         "x: expected float32 like the layer's parameters, got float64"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), held()), ValueError,
         "state: expected () of a layer that is not causal, got a tuple"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), zeros(3)), ValueError,
         "state: expected () of a layer that is not causal, got a ndarray"),
        (lambda: nn.MultiHeadAttention(8, 2).freeze().run(zeros(2, 3, 8), zeros(3)), ValueError,
         "state: expected () of a model without a state, got a ndarray"),
        (lambda: nn.MultiHeadAttention(8, 2, dropout="a"), TypeError,
         "dropout: expected a probability from 0 to 1, got 'a'"),
        (lambda: nn.TCN(8, [8], dropout=None), TypeError, "dropout: expected a probability from 0 to 1, got None"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), memory_lengths=[1, 1]), ValueError,
         "memory_lengths: expected None without a memory"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4).initial_state(2, memory_lengths=[1, 1]), ValueError,
         "memory_lengths: expected None without a memory"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4).freeze().initial_state(2, memory_lengths=[1, 1]), ValueError,
         "memory_lengths: expected None without a memory"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), memory=zeros(2, 4, 7)), ValueError,
         "memory: expected shape (B, M, kdim) = (2, 4, 8), got (2, 4, 7)"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), memory=zeros(2, 4, 8), memory_lengths=[5, 1]), ValueError,
         "memory_lengths: expected values from 0 to M = 4, got 1 to 5"),
        (lambda: nn.MultiHeadAttention(8, 2)(zeros(2, 3, 8), memory=(zeros(2, 4, 8),)), ValueError,
         "memory: expected an array or a pair (keys, values), got a tuple of 1"),
        (lambda: nn.MultiHeadAttention(8, 2, kdim=3, vdim=5)(zeros(2, 3, 8)), ValueError,
         "memory: expected one, as kdim = 3 and vdim = 5 are not E = 8, got None"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 3, 8), memory=zeros(2, 4, 8)), ValueError,
         "memory: expected None of a layer that is causal or has a window or positions"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), ()), ValueError,
         "state: expected a tuple (k, v, position, start), got a tuple of 0"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(zeros(2, 3, 3, 4))), ValueError,
         "state[0] (k): expected shape (B, Hkv, M, D) = (2, 2, 3, 4), got (2, 3, 3, 4)"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(v=zeros(2, 2, 2, 4))), ValueError,
         "state[1] (v): expected shape (B, Hkv, M, D) = (2, 2, 3, 4), got (2, 2, 2, 4)"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(position=(4, 1))), ValueError,
         "state[2] (position): expected from start to start + M, M = 3, got 1 to 4 more than start"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(position=(3.0, 1))), TypeError,
         "state[2] (position): expected integers, got float64; cast with .astype(int)"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(start=(-1, 0))), ValueError,
         "state[3] (start): expected values from 0 on, got -1"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(position=(2**63 - 1, 1))), ValueError,
         "state[2] (position): expected values up to 2**62, got 9223372036854775807"),
        (lambda: nn.MultiHeadAttention(8, 2, **CAUSAL)(zeros(2, 1, 8), held(start=(0,))), ValueError,
         "state[3] (start): expected shape (B,) = (2,), got (1,)"),
        (lambda: nn.MultiHeadAttention(8, 2, max_length=3, **CAUSAL)(zeros(2, 1, 8), held()), ValueError,
         "x: expected at most max_length = 3 steps in a row, got 4 in row 0: 3 in the state and 1 in x"),
        (lambda: nn.LearnedPositions(4, 8)(zeros(2, 3, 8), (np.array([1, 2]),)), ValueError,
         "x: expected at most max_length = 4 steps in a row, got 5 in row 1: 2 in the state and 3 in x"),
        (lambda: nn.SinusoidalPositions(8)(zeros(2, 3, 8), ()), ValueError,
         "state: expected a tuple (position,) of integers (B,) = (2,), got a tuple of 0"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4)(zeros(2, 3, 8)), ValueError,
         "memory: expected an array of shape (B, M, E) = (2, M, 8), as the state has none; give one with the first "
         "call, or initial_state(batch, memory=...)"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4)(zeros(2, 3, 8), held()), ValueError,
         "state: expected a tuple (cache, memory) of tuples, got a tuple of 4"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4)(zeros(2, 3, 8), (held(), (zeros(2, 2, 3, 4),))), ValueError,
         "state[1]: expected a tuple (k, v, length) or (), got a tuple of 1"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 4)(zeros(2, 3, 8), (held(), (*held()[:2], np.array([4, 0])))),
         ValueError, "state[1][2] (length): expected values from 0 to M = 3, got 4"),
        (lambda: nn.Transformer(2, 8, 2, 4)(zeros(2, 3, 8), (None,)), ValueError,
         "state: expected a tuple of one entry per layer, 2 of them, got 1 of them"),
        (lambda: nn.Transformer(2, 8, 2, 4, causal=False), TypeError,
         "causal: a Transformer always is; a stack that is not is a Sequential of TransformerEncoderLayers"),
        (lambda: nn.MultiHeadAttention(8, 2, kdim=3).freeze(), ValueError,
         "freeze: a MultiHeadAttention with a kdim or vdim of its own attends to a memory alone"),
        (lambda: nn.MultiHeadAttention(8, 2).freeze().stream(), ValueError,
         "stream: MultiHeadAttention needs the whole sequence for its first output"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 4)).freeze().stream(), ValueError,
         "stream: 1.TransformerEncoderLayer needs the whole sequence for its first output"),
    ],
)  # fmt: skip
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pyrnn.use_backend(BACKENDS[0]), pytest.raises(error) as raised:
        make()
    assert message in str(raised.value)


def test_a_stream_says_that_its_bound_is_reached() -> None:
    layer = nn.MultiHeadAttention(8, 2, max_length=2, **CAUSAL)
    with pyrnn.use_backend(BACKENDS[0]):
        stream = layer.freeze().stream(2)
        for _ in range(2):
            stream.step(zeros(2, 8))
        kept = stream.state
        with pytest.raises(ValueError, match="expected at most max_length = 2 steps in a row, got 3 in row 0"):
            stream.step(zeros(2, 8))
        assert same(stream.state, kept)


def test_a_backend_without_attention_says_so() -> None:
    class Bare(Backend):
        name = "bare"

    with pytest.raises(NotImplementedError, match="backend 'bare' has no op 'attention'"), pyrnn.use_backend(Bare()):
        nn.MultiHeadAttention(8, 2).predict(zeros(1, 2, 8))
