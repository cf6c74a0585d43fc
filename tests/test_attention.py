"""attention, additive_attention, multiplicative_attention: the reference, and what the property kit leaves.

The kit itself runs in `test_kit`. Here are an oracle of scalar loops, PyTorch, dropout's generator, keys beyond a
split, empty arrays, and the errors word by word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import backends_with
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import pyrnn
from pyrnn.backend import KEY_SPLIT
from pyrnn.reference.attention import kept, philox
from pyrnn.testing import Call, strategies
from pyrnn.testing.attention import seen_in

BACKENDS = backends_with("attention")
SCORED = ("additive_attention", "multiplicative_attention")
WITH_WEIGHTS = [(op, backend) for op in SCORED for backend in backends_with(op)]
MODERATE = (1.0, 4.0)
SMALL: dict[str, Any] = {"regimes": ("tiny", "small", "tall"), "gains": MODERATE, "dtypes": ("float64",)}
CLOSE = {"float32": 3e-5, "float64": 1e-12}  # for scores below 10 and sums of less than 100 terms

rng = np.random.default_rng(0)


def call_of(op: str, call: Call, backend: str, **changes: Any) -> Any:
    return getattr(pyrnn, op)(**{**call.arrays, **call.options, **changes}, backend=backend)


def vjp_of(op: str, call: Call, backend: str, **changes: Any) -> Any:
    return pyrnn.vjp(getattr(pyrnn, op), **{**call.arrays, **call.options, **changes}, backend=backend)


def close(got: Any, want: Any, name: str = "") -> None:
    """Hold an array against another, to a few roundings of the largest value."""
    assert got.shape == want.shape, name
    size = 1 + float(np.abs(want).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE[str(got.dtype)] * size, err_msg=name)


# --- scalar loops --------------------------------------------------------------------------------------------


def random_words(counter: list[int], seed: int) -> list[int]:
    """Philox4x32-10 as it stands in Salmon et al. (2011), on Python's integers."""
    c0, c1, c2, c3 = (word % 2**32 for word in counter)
    k0, k1 = seed % 2**32, seed // 2**32
    for _ in range(10):
        one, other = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (other >> 32) ^ c1 ^ k0, other % 2**32, (one >> 32) ^ c3 ^ k1, one % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def weighed(scores: dict[int, float], values: Any) -> tuple[dict[int, float], list[float]]:
    """Return the softmax of some keys' scores, and the sum of their values with these weights."""
    largest = max(scores.values(), default=0.0)
    terms = {key: math.exp(score - largest) for key, score in scores.items()}
    total = math.fsum(terms.values())
    weights = {key: term / total for key, term in terms.items()}
    return weights, [math.fsum(w * float(values[key][d]) for key, w in weights.items()) for d in range(len(values[0]))]


def at(array: Any, *index: int) -> Any:
    """Return an element of an array that is broadcast."""
    index = index[len(index) - array.ndim :]
    return array[tuple(0 if size == 1 else i for i, size in zip(index, array.shape, strict=True))]


def attention_by_loops(call: Call) -> np.ndarray:
    q, k, v, o = call.arrays["q"], call.arrays["k"], call.arrays["v"], call.options
    B, Hq, N, D = q.shape
    M, Dv = v.shape[2:]
    y = np.zeros((B, Hq, N, Dv))
    scale = 1 / math.sqrt(D) if o.get("scale") is None else o["scale"]
    left, right = o.get("window") or (None, None)
    for b in range(B):
        start = o.get("q_start", M - N)
        start = int(start[b]) if np.ndim(start) else start
        for h in range(Hq):
            shared = h // (Hq // k.shape[1])
            for i in range(o["q_lengths"][b] if "q_lengths" in o else N):
                p = start + i
                scores = {}
                for j in range(o["lengths"][b] if "lengths" in o else M):
                    sees = (left is None or j >= p - left) and (right is None or j <= p + right)
                    sees = sees and not (o.get("causal") and j > p)
                    if sees and ("mask" not in o or at(o["mask"], b, h, i, j)):
                        scores[j] = scale * math.fsum(q[b, h, i, d] * k[b, shared, j, d] for d in range(D))
                        scores[j] += at(call.arrays["bias"], b, h, i, j) if "bias" in call.arrays else 0
                if not scores:
                    continue
                weights, y[b, h, i] = weighed(scores, v[b, shared])
                if o.get("dropout"):
                    least = math.ceil(o["dropout"] * 2**32)
                    survive = {j: random_words([j // 4, p, h, b], o["seed"])[j % 4] >= least for j in weights}
                    y[b, h, i] = [
                        math.fsum(w * v[b, shared, j, d] for j, w in weights.items() if survive[j]) / (1 - o["dropout"])
                        for d in range(Dv)
                    ]
    return y


def scored_by_loops(call: Call) -> tuple[np.ndarray, np.ndarray]:
    a, o = call.arrays, call.options
    query, keys, values = a["query"], a["keys"], a["values"]
    (B, N, Dq), (_, M, Dk) = query.shape, keys.shape
    ctx, alpha = np.zeros((B, N, values.shape[2])), np.zeros((B, N, M))

    def score(one: Any, key: Any) -> float:
        if call.op == "additive_attention":
            return math.fsum(
                a["v"][n]
                * math.tanh(
                    math.fsum(a["w_query"][n, d] * one[d] for d in range(Dq))
                    + math.fsum(a["w_key"][n, d] * key[d] for d in range(Dk))
                )
                for n in range(len(a["v"]))
            )
        w = a.get("w", np.eye(Dq))
        return o.get("scale", 1.0) * math.fsum(one[d] * w[d, e] * key[e] for d in range(Dq) for e in range(Dk))

    for b in range(B):
        valid = o["lengths"][b] if "lengths" in o else M
        for i in range(N):
            seen = [j for j in range(valid) if "mask" not in o or at(o["mask"], b, i, j)]
            if seen:
                weights, ctx[b, i] = weighed({j: score(query[b, i], keys[b, j]) for j in seen}, values[b])
                alpha[b, i, list(weights)] = list(weights.values())
    return ctx, alpha


@given(strategies.calls("attention", regimes=("tiny",), gains=MODERATE, dtypes=("float64",)))
def test_attention_is_the_textbook(call: Call) -> None:
    close(call_of("attention", call, "reference"), attention_by_loops(call))


@pytest.mark.parametrize("op", SCORED)
@given(data=st.data())
def test_attention_with_weights_is_the_textbook(op: str, data: st.DataObject) -> None:
    call = data.draw(strategies.calls(op, regimes=("tiny",), gains=MODERATE, dtypes=("float64",)))
    for got, want in zip(call_of(op, call, "reference"), scored_by_loops(call), strict=True):
        close(got, want)


# --- PyTorch -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """PyTorch on one thread: on small arrays more of them only wait for each other."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is an oracle here, never a requirement")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def with_gradients(torch: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.tensor(array.astype(np.float64), requires_grad=True) for name, array in arrays.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(call=strategies.calls("attention", **SMALL, config={"dropout": (0.0,)}))
@settings(max_examples=40)
def test_attention_agrees_with_torch(torch: Any, backend: str, dtype: str, call: Call) -> None:
    call = call.changed(dtype=dtype)
    pairs = seen_in(call)
    sees = pairs.any(axis=-1)[..., None]
    t = with_gradients(torch, call.arrays)
    added = torch.zeros(pairs.shape, dtype=torch.float64) + t.get("bias", 0.0)
    # A row that sees nothing is NaN there: it sees all instead, and neither its output nor a gradient counts.
    added = added.masked_fill(torch.tensor(~pairs & sees), -math.inf)
    y = torch.nn.functional.scaled_dot_product_attention(
        t["q"], t["k"], t["v"], attn_mask=added, scale=call.options.get("scale"), enable_gqa=True
    )
    outputs, pullback = vjp_of("attention", call, backend)
    close(outputs, np.where(sees, y.detach().numpy(), 0), "y")
    close(call_of("attention", call, backend), np.where(sees, y.detach().numpy(), 0), "y")
    cotangents = call.cotangents()["y"]
    y.backward(torch.tensor(np.where(sees, cotangents, 0).astype(np.float64)))
    grads = pullback(cotangents)
    for name, tensor in t.items():
        close(getattr(grads, name), tensor.grad.numpy(), f"gradient of {name}")


@pytest.mark.parametrize(("op", "backend"), WITH_WEIGHTS)
@given(data=st.data())
@settings(max_examples=40)
def test_attention_with_weights_agrees_with_torch(torch: Any, op: str, backend: str, data: st.DataObject) -> None:
    call = data.draw(strategies.calls(op, **SMALL))
    pairs = seen_in(call)
    sees = torch.tensor(pairs.any(axis=-1)[..., None])
    t = with_gradients(torch, call.arrays)
    if op == "additive_attention":
        hidden = torch.tanh((t["query"] @ t["w_query"].T)[:, :, None] + (t["keys"] @ t["w_key"].T)[:, None])
        scores = hidden @ t["v"]
    else:
        mapped = t["query"] @ t["w"] if "w" in t else t["query"]
        scores = call.options.get("scale", 1.0) * mapped @ t["keys"].transpose(1, 2)
    alpha = torch.softmax(scores.masked_fill(torch.tensor(~pairs) & sees, -math.inf), dim=-1)
    alpha = torch.where(sees, alpha, 0.0)
    ctx = alpha @ t["values"]
    outputs, pullback = vjp_of(op, call, backend)
    close(outputs.ctx, ctx.detach().numpy(), "ctx")
    close(outputs.alpha, alpha.detach().numpy(), "alpha")
    cotangents = call.cotangents()
    torch.autograd.backward([ctx, alpha], [torch.tensor(cotangents[name]) for name in ("ctx", "alpha")])
    grads = pullback(list(cotangents.values()))
    for name, tensor in t.items():
        close(getattr(grads, name), tensor.grad.numpy(), f"gradient of {name}")


# --- dropout -------------------------------------------------------------------------------------------------

ALL = 2**32 - 1
KNOWN_ANSWERS = [  # of Random123's tests: counter, key, words
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: str) -> None:
    seed = key[0] + 2**32 * key[1]
    assert [f"{int(word):08x}" for word in philox(counter, seed)] == words.split()
    assert [f"{word:08x}" for word in random_words(list(counter), seed)] == words.split()


def dropped_weights(
    backend: str, *, rows: int = 2, heads: int = 3, queries: int = 50, keys: int = 70, **config: Any
) -> Any:
    """Return attention's weights by one-hot values: all queries see all keys alike."""
    q, k = np.zeros((rows, heads, queries, 4), np.float32), np.zeros((rows, heads, keys, 4), np.float32)
    v = np.broadcast_to(np.eye(keys, dtype=np.float32), (rows, heads, keys, keys))
    return keys * pyrnn.attention(q, k, v, backend=backend, **config)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(backend: str, share: float) -> None:
    weights = dropped_weights(backend, dropout=share, seed=7)
    count = weights.size
    deviation = math.sqrt(share * (1 - share) / count)
    assert abs((weights == 0).mean() - share) < 4 * deviation
    np.testing.assert_allclose(weights[weights != 0], 1 / (1 - share), rtol=1e-5)
    for axis in range(4):  # in each row, head, query and key
        spread = (weights == 0).mean(axis=tuple(a for a in range(4) if a != axis)) - share
        assert np.abs(spread).max() < 5 * deviation * math.sqrt(weights.shape[axis])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_depends_on_all_of_its_counter_and_on_nothing_else(backend: str) -> None:
    first = dropped_weights(backend, dropout=0.5, seed=7)
    assert np.array_equal(first, dropped_weights(backend, dropout=0.5, seed=7))
    for seed in (8, 7 + 2**32, 7 + 2**63):
        share = (first == dropped_weights(backend, dropout=0.5, seed=seed)).mean()
        assert abs(share - 0.5) < 0.03, f"as if of the same seed: {seed}"
    flat = (first != 0).reshape(2 * 3 * 50, 70)
    assert len(np.unique(flat, axis=0)) == len(flat), "rows, heads and queries have each their own"
    fewer = dropped_weights(backend, rows=1, heads=2, queries=20, keys=31, q_start=20 + 5, dropout=0.5, seed=7)
    assert np.array_equal(fewer != 0, first[:1, :2, 5:25, :31] != 0), "positions count, not sizes"
    more = dropped_weights(backend, dropout=0.6, seed=7)
    assert (more[first == 0] == 0).all() and (more == 0).mean() > 0.55, "a larger share drops the same, and more"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_may_be_far_or_negative(backend: str) -> None:
    Config = pyrnn.ops.OPS["attention"].Config
    for start in (-(2**31), -3, 2**31 - 10, 2**31):
        weights = dropped_weights(backend, rows=1, heads=1, queries=20, keys=9, q_start=start, dropout=0.3, seed=1)
        config = Config(False, None, None, None, None, None, np.array([start]), 0.3, 1)
        assert np.array_equal(weights != 0, kept(config, 1, 1, 20, 9))


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keys", [KEY_SPLIT - 1, KEY_SPLIT, KEY_SPLIT + 1, 3 * KEY_SPLIT + 5])
def test_splits_of_keys_are_one_sum(backend: str, keys: int) -> None:
    # Scores that grow from key to key, so that each split has a maximum of its own and the last ones outweigh.
    q = np.ones((1, 2, 3, 1))
    k = np.linspace(-40, 40, keys)[None, None, :, None].repeat(2, axis=1)
    v = rng.standard_normal((1, 2, keys, 5))
    cotangent = rng.standard_normal((1, 2, 3, 5))
    want, pull = pyrnn.vjp(pyrnn.attention, q, k, v, causal=True, backend="reference")
    wanted = pull(cotangent)
    plain = np.exp(k[0, 0, : keys - 2, 0])
    close(want[0, 0, 0], (plain / plain.sum()) @ v[0, 0, : keys - 2])
    for dtype in ("float32", "float64"):
        got, pullback = pyrnn.vjp(pyrnn.attention, *(a.astype(dtype) for a in (q, k, v)), causal=True, backend=backend)
        close(got, want, "y")
        for name, grad, of in zip(wanted._fields, pullback(cotangent.astype(dtype)), wanted, strict=True):
            if of is not None:
                # A score of 40 is off by 40 roundings, and so is what it weighs.
                np.testing.assert_allclose(grad, of, rtol=0, atol=200 * CLOSE[dtype], err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes",
    [
        (0, 2, 3, 4, 5, 6),
        (2, 0, 3, 4, 5, 6),
        (2, 2, 0, 4, 5, 6),
        (2, 2, 3, 0, 5, 6),
        (2, 2, 3, 4, 0, 6),
        (2, 2, 3, 4, 5, 0),
    ],
)
def test_degenerate_sizes(backend: str, sizes: tuple[int, ...]) -> None:
    B, H, N, D, M, Dv = sizes
    arrays = [np.ones(shape, np.float32) for shape in ((B, H, N, D), (B, H, M, D), (B, H, M, Dv), (N, M))]
    y, pullback = pyrnn.vjp(pyrnn.attention, *arrays, causal=True, dropout=0.5, seed=3, backend=backend)
    assert y.shape == (B, H, N, Dv) and np.isfinite(y).all()
    for array, grad in zip(arrays, pullback(np.ones_like(y)), strict=True):
        assert grad.shape == array.shape and np.isfinite(grad).all()
    if M == 0:
        assert not y.any(), "a query that may attend to nothing gives zeros"


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    call=strategies.calls(
        "attention", **SMALL, config={"mask": (None,), "dropout": (0.0,)}, optional={"bias": (False,)}
    )
)
@settings(max_examples=30)
def test_a_bias_of_minus_infinity_is_a_mask(backend: str, call: Call) -> None:
    draw = call.rng(20)
    mask = draw.random(tuple(call.sizes[symbol] for symbol in ("B", "Hq", "N", "M"))) < 0.6
    bias = draw.standard_normal(mask.shape).astype(call.dtype)
    want, pull_want = vjp_of("attention", call, backend, mask=mask, bias=bias)
    got, pull_got = vjp_of("attention", call, backend, bias=np.where(mask, bias, -np.inf).astype(call.dtype))
    close(got, want)
    cotangent = call.cotangents()["y"]
    for name, grad in pull_got(cotangent)._asdict().items():
        close(grad, getattr(pull_want(cotangent), name), name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (4, 1, 5), (1, 4, 3, 5), (2, 1, 1, 1)])
def test_a_bias_s_gradient_has_its_shape(backend: str, shape: tuple[int, ...]) -> None:
    q, k, v = (rng.standard_normal(shape) for shape in ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6)))
    bias, dy = rng.standard_normal(shape), rng.standard_normal((2, 4, 3, 6))
    full, pull = pyrnn.vjp(pyrnn.attention, q, k, v, np.broadcast_to(bias, (2, 4, 3, 5)).copy(), backend="reference")
    y, pullback = pyrnn.vjp(pyrnn.attention, q, k, v, bias, backend=backend)
    close(y, full)
    grad, wanted = pullback(dy).bias, pull(dy).bias
    whole = (1,) * (4 - len(shape)) + shape
    over = tuple(axis for axis, size in enumerate(whole) if size == 1)
    assert grad.shape == shape
    close(grad.reshape(whole), wanted.sum(axis=over, keepdims=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tape_goes_through_what_is_broadcast(backend: str) -> None:
    q, k, v, bias = (
        pyrnn.Tensor(rng.standard_normal(shape), requires_grad=True)
        for shape in ((1, 4, 3, 8), (1, 2, 5, 8), (1, 2, 5, 6), (4, 1, 5))
    )
    pyrnn.testing.check_gradients(
        lambda q, k, v, bias: pyrnn.attention(q, k, v, bias, causal=True, dropout=0.2, seed=1, backend=backend),
        *(np.asarray(t.data) for t in (q, k, v, bias)),
    )
    y = pyrnn.attention(q, k, v, bias, lengths=[3], backend=backend)
    y.sum().backward()
    assert not np.asarray(k.grad)[:, :, 3:].any() and not np.asarray(bias.grad)[..., 3:].any()


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=strategies.calls("attention", **SMALL, config={"causal": (True,), "dropout": (0.0,), "window": (None,)}))
@settings(max_examples=30)
def test_a_causal_query_does_not_look_ahead(backend: str, call: Call) -> None:
    """Later keys and queries may become anything."""
    N, M = call.sizes["N"], call.sizes["M"]
    assume(N <= M and "q_start" not in call.config and call.config.get("lengths") is None)
    step = int(call.rng(20).integers(M - N, M))  # the position of a query
    arrays = {name: array.copy() for name, array in call.arrays.items() if name != "bias"}
    before = pyrnn.attention(**arrays, **call.options, backend=backend)
    for name in ("k", "v"):
        arrays[name][:, :, step + 1 :] = np.nan
    arrays["q"][:, :, step - (M - N) + 1 :] = np.nan
    after = pyrnn.attention(**arrays, **call.options, backend=backend)
    close(after[:, :, : step - (M - N) + 1], before[:, :, : step - (M - N) + 1])


# --- errors --------------------------------------------------------------------------------------------------


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


PLAIN = {"q": zeros(2, 4, 3, 8), "k": zeros(2, 2, 5, 8), "v": zeros(2, 2, 5, 6)}
SHARED = r"\(B or 1, Hq or 1, N or 1, M or 1\) = \(2 or 1, 4 or 1, 3 or 1, 5 or 1\)"
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"q": zeros(4, 3, 8)}, ValueError, r"q: expected shape \(B, Hq, N, D\), got \(4, 3, 8\)"),
    (
        {"k": zeros(2, 2, 5, 7)},
        ValueError,
        r"k: expected shape \(B, Hkv, M, D\) = \(2, 2, 5, 8\), got \(2, 2, 5, 7\)",
    ),
    (
        {"v": zeros(2, 2, 4, 6)},
        ValueError,
        r"v: expected shape \(B, Hkv, M, Dv\) = \(2, 2, 5, 6\), got \(2, 2, 4, 6\)",
    ),
    (
        {"k": zeros(2, 3, 5, 8), "v": zeros(2, 3, 5, 6)},
        ValueError,
        r"q: expected a number of heads Hq that is a multiple of Hkv = 3, got 4",
    ),
    (
        {"k": zeros(2, 0, 5, 8), "v": zeros(2, 0, 5, 6)},
        ValueError,
        r"q: expected a number of heads Hq that is a multiple of Hkv = 0, got 4",
    ),
    ({"bias": zeros(2, 4, 3, 4)}, ValueError, rf"bias: expected shape {SHARED}, got \(2, 4, 3, 4\)"),
    ({"bias": zeros(1, 2, 4, 3, 5)}, ValueError, rf"bias: expected shape {SHARED}, got \(1, 2, 4, 3, 5\)"),
    ({"bias": np.zeros(5)}, TypeError, r"bias: expected float32 like the arrays before it, got float64; cast with"),
    ({"causal": 1}, TypeError, r"causal: expected True or False, got 1"),
    ({"window": 3}, TypeError, r"window: expected a pair \(left, right\), got 3"),
    ({"window": (1,)}, TypeError, r"window: expected a pair \(left, right\), got \(1,\)"),
    ({"window": (-1, 0)}, ValueError, r"window: expected at least 0, got -1"),
    ({"window": (1.5, 0)}, TypeError, r"window: expected a whole number, got 1.5"),
    ({"mask": np.ones(5, int)}, TypeError, r"mask: expected booleans \(True = counts\), got int64"),
    ({"mask": np.ones(4, bool)}, ValueError, rf"mask: expected shape {SHARED}, got \(4,\)"),
    ({"scale": math.inf}, ValueError, r"scale: expected a finite number, got inf"),
    ({"scale": "1"}, TypeError, r"scale: expected a number, got '1'"),
    ({"lengths": [6, 1]}, ValueError, r"lengths: expected values from 0 to M = 5, got 1 to 6"),
    ({"q_lengths": [4, 1]}, ValueError, r"q_lengths: expected values from 0 to N = 3, got 1 to 4"),
    ({"lengths": [1]}, ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(1,\)"),
    (
        {"q_start": 1.5},
        TypeError,
        r"q_start: expected a whole number or integers \(B,\) on the host, got float",
    ),
    ({"q_start": [1, 2, 3]}, ValueError, r"q_start: expected shape \(B,\) = \(2,\), got \(3,\)"),
    ({"q_start": [0.5, 1]}, TypeError, r"q_start: expected integers, got float64; cast with .astype\(int\)"),
    (
        {"q_start": 2**31 + 1},
        ValueError,
        r"q_start: expected values from -2\*\*31 to 2\*\*31, got 2147483649 to 2147483649",
    ),
    ({"dropout": 1.0}, ValueError, r"dropout: expected a number, at least 0 and less than 1, got 1.0"),
    ({"dropout": 0.5}, ValueError, r"seed: expected a whole number with dropout > 0, got None"),
    ({"seed": -1}, ValueError, r"seed: expected at least 0, got -1"),
    ({"seed": 2**64}, ValueError, r"seed: expected a whole number below 2\*\*64, got 18446744073709551616"),
    ({"seed": 0.5}, TypeError, r"seed: expected a whole number, got 0.5"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        pyrnn.attention(**{**PLAIN, **change}, backend="reference")


QUERIES = {"query": zeros(2, 3, 4), "keys": zeros(2, 5, 6), "values": zeros(2, 5, 7)}
ADDITIVE = {**QUERIES, "w_query": zeros(8, 4), "w_key": zeros(8, 6), "v": zeros(8)}
WRONG_WEIGHTS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("additive_attention", {"v": zeros(7)}, ValueError, r"v: expected shape \(A,\) = \(8,\), got \(7,\)"),
    ("additive_attention", {"v": None}, TypeError, r"v: expected an array of shape \(A,\) = \(8,\), got None"),
    (
        "additive_attention",
        {"w_key": zeros(8, 5)},
        ValueError,
        r"w_key: expected shape \(A, Dk\) = \(8, 6\), got \(8, 5\)",
    ),
    (
        "additive_attention",
        {"mask": np.ones((2, 3, 4), bool)},
        ValueError,
        r"mask: expected shape \(B or 1, N or 1, M or 1\) = \(2 or 1, 3 or 1, 5 or 1\), got \(2, 3, 4\)",
    ),
    (
        "additive_attention",
        {"lengths": [6, 1]},
        ValueError,
        r"lengths: expected values from 0 to M = 5, got 1 to 6",
    ),
    ("multiplicative_attention", {}, ValueError, r"keys: expected Dk = Dq = 4 without w, got 6"),
    (
        "multiplicative_attention",
        {"w": zeros(4, 5)},
        ValueError,
        r"w: expected shape \(Dq, Dk\) = \(4, 6\), got \(4, 5\)",
    ),
    (
        "multiplicative_attention",
        {"w": zeros(4, 6), "scale": None},
        TypeError,
        r"scale: expected a number, got None",
    ),
    (
        "multiplicative_attention",
        {"w": zeros(4, 6), "scale": math.nan},
        ValueError,
        r"scale: expected a finite number, got nan",
    ),
]


@pytest.mark.parametrize(("op", "change", "error", "message"), WRONG_WEIGHTS)
def test_what_is_wrong_with_weights_is_named(
    op: str, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    plain = ADDITIVE if op == "additive_attention" else QUERIES
    with pytest.raises(error, match=f"^{message}"):
        getattr(pyrnn, op)(**{**plain, **change}, backend="reference")
