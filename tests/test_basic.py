"""linear, layer_norm, softmax, embedding, cross_entropy: values by plain loops, gradients, bitwise promises, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from cases import LAYOUTS, laid_out
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

import pyrnn
from pyrnn.testing.call import Call
from pyrnn.testing.strategies import symbols

BACKENDS = ("reference", "cython")
seeds = st.integers(0, 2**32 - 1)
leads = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)


def central_differences(op: Any, backend: str, arrays: dict[str, np.ndarray], rng: Any, **config: Any) -> None:
    """Hold every gradient of a float64 call against the slope along a random direction."""
    output, pullback = pyrnn.vjp(op, **arrays, **config, backend=backend)
    cotangent = rng.standard_normal(output.shape)
    grads = pullback(cotangent)
    step = 1e-6
    for name, array in arrays.items():
        direction = rng.standard_normal(array.shape)
        change = step * direction
        ahead = op(**{**arrays, name: array + change}, **config, backend=backend)
        behind = op(**{**arrays, name: array - change}, **config, backend=backend)
        slope = float((cotangent * (ahead - behind)).sum()) / (2 * step)
        terms = getattr(grads, name) * direction
        # Truncation of order step² times third derivatives; rounding of order eps / step times the outputs' sizes.
        size = 1 + float(np.abs(terms).sum()) + float(np.abs(cotangent * output).sum())
        assert abs(slope - float(terms.sum())) <= 1e-8 * size, name


@pytest.mark.parametrize("backend", BACKENDS)
@given(lead=leads, I=st.integers(0, 70), O=st.integers(1, 70), bias=st.booleans(), seed=seeds, data=st.data())
def test_linear(
    backend: str, lead: tuple[int, ...], I: int, O: int, bias: bool, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"x": (*lead, I), "w": (O, I), **({"b": (O,)} if bias else {})}
    layouts = st.sampled_from(LAYOUTS)
    arrays = {name: laid_out(rng.standard_normal(shape), data.draw(layouts)) for name, shape in shapes.items()}
    y = pyrnn.linear(**arrays, backend=backend)
    expected = np.einsum("...i,oi->...o", arrays["x"], arrays["w"]) + arrays.get("b", 0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13 * (I + 1))
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    y32 = pyrnn.linear(**single, backend=backend)
    assert y32.dtype == np.float32
    np.testing.assert_allclose(y32, expected, rtol=0, atol=2.0**-23 * (I + 2) * (1 + 4 * I))
    central_differences(pyrnn.linear, backend, arrays, rng)


@given(M=st.integers(1, 900), I=st.integers(1, 90), O=st.integers(1, 90), seed=seeds)
def test_linear_bits_depend_on_the_row_alone(M: int, I: int, O: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, I), (O, I), (O,)))
    results = []
    for count in (1, 2, 3):
        with pyrnn.num_threads(count):
            y, pullback = pyrnn.vjp(pyrnn.linear, x, w, b)
            results.append([y, *pullback(y)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    rows = rng.integers(0, M, 3)
    assert np.array_equal(results[0][0][rows], pyrnn.linear(x[rows], w, b))
    expected = results[0][0].astype(np.float64).T @ x  # the weight gradient over more than one block of rows
    np.testing.assert_allclose(results[0][2], expected, rtol=0, atol=2.0**-23 * M * np.abs(results[0][0]).max() * 4)


@pytest.mark.parametrize("backend", BACKENDS)
@given(lead=leads, F=st.integers(2, 20), affine=st.booleans(), seed=seeds)
def test_layer_norm(backend: str, lead: tuple[int, ...], F: int, affine: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.standard_normal((*lead, F)) * 3 + 1}
    if affine:
        arrays |= {"weight": rng.standard_normal(F), "bias": rng.standard_normal(F)}
    y = pyrnn.layer_norm(**arrays, eps=1e-3, backend=backend)
    for index in np.ndindex(*lead):
        row = [float(v) for v in arrays["x"][index]]
        mean = math.fsum(row) / F
        scale = 1 / math.sqrt(math.fsum((v - mean) ** 2 for v in row) / F + 1e-3)
        for j, v in enumerate(row):
            expected = (v - mean) * scale
            if affine:
                expected = expected * arrays["weight"][j] + arrays["bias"][j]
            assert abs(y[index][j] - expected) < 1e-12
    central_differences(pyrnn.layer_norm, backend, arrays, rng, eps=1e-3)
    assert pyrnn.layer_norm(arrays["x"].astype(np.float32), backend=backend).dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
@given(lead=leads, F=st.integers(1, 9), seed=seeds, data=st.data())
def test_softmax(backend: str, lead: tuple[int, ...], F: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*lead, F)) * 5
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    y = pyrnn.softmax(x, axis=axis, backend=backend)
    expected = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert np.isfinite(pyrnn.softmax(x * 1e4, axis=axis, backend=backend)).all()
    central_differences(pyrnn.softmax, backend, {"x": x}, rng, axis=axis)


@pytest.mark.parametrize("backend", BACKENDS)
@given(shape=leads, V=st.integers(1, 9), D=st.integers(1, 9), seed=seeds)
def test_embedding(backend: str, shape: tuple[int, ...], V: int, D: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, indices = rng.standard_normal((V, D)), rng.integers(0, V, shape)
    y, pullback = pyrnn.vjp(pyrnn.embedding, weight, indices=indices, backend=backend)
    assert y.shape == (*shape, D)
    cotangent = rng.standard_normal(y.shape)
    expected = np.zeros_like(weight)
    for at in np.ndindex(*shape):
        assert np.array_equal(y[at], weight[indices[at]])
        expected[indices[at]] += cotangent[at]
    np.testing.assert_allclose(pullback(cotangent).weight, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@given(lead=leads, C=st.integers(1, 9), masked=st.booleans(), seed=seeds)
def test_cross_entropy(backend: str, lead: tuple[int, ...], C: int, masked: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, targets = rng.standard_normal((*lead, C)) * 3, rng.integers(0, C, lead)
    mask = rng.integers(0, 2, lead).astype(bool) if masked else None
    loss, pullback = pyrnn.vjp(pyrnn.cross_entropy, logits, targets=targets, mask=mask, backend=backend)
    for at in np.ndindex(*lead):
        expected = math.log(math.fsum(math.exp(v) for v in logits[at])) - logits[at][targets[at]]
        assert abs(loss[at] - (0 if masked and not mask[at] else expected)) < 1e-12
    central_differences(pyrnn.cross_entropy, backend, {"logits": logits}, rng, targets=targets, mask=mask)
    if masked:
        logits[~mask], targets[~mask] = np.nan, -1
        poisoned, pullback_poisoned = pyrnn.vjp(
            pyrnn.cross_entropy, logits, targets=targets, mask=mask, backend=backend
        )
        cotangent = rng.standard_normal(loss.shape)
        assert np.array_equal(loss, poisoned)
        assert np.array_equal(pullback(cotangent).logits, pullback_poisoned(cotangent).logits)
        assert not pullback(cotangent).logits[~mask].any()


ROWS = {
    "layer_norm": lambda rng, M, F: (
        {"x": rng.standard_normal((M, F)), "weight": rng.standard_normal(F), "bias": rng.standard_normal(F)},
        {},
    ),
    "softmax": lambda rng, M, F: ({"x": rng.standard_normal((M, F)) * 4}, {}),
    "cross_entropy": lambda rng, M, F: (
        {"logits": rng.standard_normal((M, F)) * 4},
        {"targets": rng.integers(0, F, M), "mask": rng.random(M) < 0.9},
    ),
    "embedding": lambda rng, M, F: (
        {"weight": rng.standard_normal((1 + M // 3, F))},
        {"indices": rng.integers(0, 1 + M // 3, M)},
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ROWS)
@given(M=st.integers(60, 400), F=st.integers(1, 300), seed=seeds)  # mostly enough for more than one thread
def test_bits_of_a_row_are_its_own_alone(name: str, dtype: Any, M: int, F: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays, config = ROWS[name](rng, M, F)
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    op = getattr(pyrnn, name)
    cotangent = rng.standard_normal(op(**arrays, **config).shape).astype(dtype)
    results = []
    for count in (1, 2, 3, 5):
        with pyrnn.num_threads(count):
            y, pullback = pyrnn.vjp(op, **arrays, **config)
            results.append([y, *(grad for grad in pullback(cotangent) if grad is not None)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    first = next(iter(arrays))
    rows = rng.integers(0, M, 3)
    if name != "embedding":
        few = {**arrays, first: arrays[first][rows]}
        picked = {key: value[rows] for key, value in config.items()}
        y, pullback = pyrnn.vjp(op, **few, **picked)
        assert np.array_equal(results[0][0][rows], y)
        assert np.array_equal(results[0][1][rows], pullback(cotangent[rows])[0])
    # The reference in float64, where the kernel's blocks and tails are none of its concern.
    wide = {key: array.astype(np.float64) for key, array in arrays.items()}
    y, pullback = pyrnn.vjp(op, **wide, **config, backend="reference")
    exact = [y, *(grad for grad in pullback(cotangent.astype(np.float64)) if grad is not None)]
    unit = float(np.finfo(dtype).eps)
    for got, want in zip(results[0], exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=40 * unit, atol=(M + F) * unit * (1 + np.abs(want).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_and_softmax_at_the_ends_of_the_range(dtype: Any) -> None:
    lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max
    for size in (3, 16, 37):  # within a vector, one, and with a tail
        logits = np.full((4, size), -np.inf, dtype)
        logits[0, -1] = 0  # all but one impossible
        logits[1] = highest
        logits[2, :] = lowest / 2
        logits[2, 1] = highest / 2
        logits[3, 0] = np.nan
        targets = np.array([size - 1, 0, 1, 1])
        with np.errstate(all="ignore"):
            loss, pullback = pyrnn.vjp(pyrnn.cross_entropy, logits, targets=targets)
            weights = pyrnn.softmax(logits)
        np.testing.assert_allclose(loss, [0, np.log(size), 0, np.nan], rtol=1e-6)
        np.testing.assert_array_equal(weights[0], np.arange(size) == size - 1)
        np.testing.assert_allclose(weights[1], 1 / size, rtol=1e-6)
        np.testing.assert_array_equal(weights[2], np.arange(size) == 1)
        assert np.isnan(weights[3]).all()
        grad = pullback(np.ones(4, dtype)).logits
        assert not grad[0].any() and not grad[2].any() and np.isnan(grad[3]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(pyrnn.ops.OPS))
def test_a_pullback_gives_what_is_asked_for(name: str, backend: str) -> None:
    sizes = {"...": (2,), "N": 3, "M": 3, "K": 3, "Cin/groups": 5, "(K-1)·dilation": 2, "Cin": 5}
    named = {symbol: sizes.get(symbol, 2) for symbol in symbols(pyrnn.ops.OPS[name])}
    call = Call(name, named, optional=tuple(pyrnn.ops.OPS[name].arrays))
    options = {"embedding": {"indices": [0, 1]}, "cross_entropy": {"targets": [0, 1]}}
    arrays, config = call.arrays, options.get(name, {})
    outputs, pullback = pyrnn.vjp(getattr(pyrnn, name), **arrays, **config, backend=backend)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    nothing = pullback(outputs, [False] * len(pyrnn.ops.OPS[name].arrays))
    assert all(grad is None for grad in nothing)
    for array, grad in pullback([None] * len(outputs))._asdict().items():  # None stands for zero
        assert (grad is None) == (array not in arrays)
        assert grad is None or (grad.shape == arrays[array].shape and not grad.any())


def test_errors_name_the_argument() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"w: expected shape \(O, I\) = \(5, 3\), got \(5, 4\)"):
        pyrnn.linear(x, np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match=r"weight: expected shape \(F,\) = \(3,\), got \(2,\)"):
        pyrnn.layer_norm(x, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"eps: expected a positive finite number, got 0"):
        pyrnn.layer_norm(x, eps=0)
    with pytest.raises(ValueError, match=r"axis: expected an axis of 2 dimensions, got 2"):
        pyrnn.softmax(x, axis=2)
    with pytest.raises(ValueError, match=r"indices: expected values from 0 to V - 1 = 1, got -1 to 0"):
        pyrnn.embedding(x, indices=[0, -1])
    with pytest.raises(TypeError, match=r"indices: expected integers, got float64"):
        pyrnn.embedding(x, indices=[0.0])
    with pytest.raises(ValueError, match=r"targets: expected values from 0 to C - 1 = 2, got 0 to 3"):
        pyrnn.cross_entropy(x, targets=[0, 3])
    with pytest.raises(ValueError, match=r"targets: expected shape \(\.\.\.\) = \(2,\), got \(3,\)"):
        pyrnn.cross_entropy(x, targets=[0, 1, 2])
    with pytest.raises(TypeError, match=r"mask: expected booleans \(True = counts\), got int64"):
        pyrnn.cross_entropy(x, targets=[0, 1], mask=[0, 1])
