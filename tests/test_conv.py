"""causal_conv1d: the reference against the textbook, and what the property kit leaves.

The kit itself runs in `test_kit`. Here are an oracle of scalar loops, PyTorch, a kernel longer than the sequence,
streaming sample by sample, empty arrays, and the errors word by word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import backends_with
from hypothesis import given, settings

import pyrnn
from pyrnn.testing import Call, strategies

BACKENDS = backends_with("causal_conv1d")
MODERATE = (1.0, 4.0)
CLOSE = {"float32": 3e-5, "float64": 1e-12}

rng = np.random.default_rng(0)


def close(got: Any, want: Any, name: str = "") -> None:
    """Hold an array against another, to a few roundings of the largest value."""
    assert got.shape == want.shape, name
    size = 1 + float(np.abs(want).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE[str(got.dtype)] * size, err_msg=name)


def convolved_by_loops(call: Call) -> tuple[np.ndarray, np.ndarray]:
    x, w, o = call.arrays["x"], call.arrays["w"], call.options
    (B, T, inputs), (outputs, per_group, K) = x.shape, w.shape
    step, groups = o.get("dilation", 1), o.get("groups", 1)
    span = (K - 1) * step
    left = call.arrays.get("left", np.zeros((B, span, inputs)))
    y, left_n = np.zeros((B, T, outputs)), np.zeros((B, span, inputs))
    for row in range(B):
        length = int(o["lengths"][row]) if "lengths" in o else T

        def sample(t: int, channel: int, row: int = row) -> float:
            return float(x[row, t, channel] if t >= 0 else left[row, span + t, channel])

        for t in range(length):
            for out in range(outputs):
                first = out // (outputs // groups) * per_group
                terms = [
                    w[out, c, tap] * sample(t - (K - 1 - tap) * step, first + c)
                    for c in range(per_group)
                    for tap in range(K)
                ]
                y[row, t, out] = math.fsum([*terms, call.arrays["b"][out] if "b" in call.arrays else 0.0])
        for s in range(span):
            left_n[row, s] = [sample(length - span + s, channel) for channel in range(inputs)]
    return y, left_n


@given(strategies.calls("causal_conv1d", regimes=("tiny",), gains=MODERATE, dtypes=("float64",)))
def test_the_reference_is_the_textbook(call: Call) -> None:
    got = pyrnn.causal_conv1d(**call.arrays, **call.options, backend="reference")
    for one, want in zip(got, convolved_by_loops(call), strict=True):
        close(one, want)


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    """PyTorch on one thread: on small arrays more of them only wait for each other."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; it is an oracle here, never a requirement")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(call=strategies.calls("causal_conv1d", regimes=("tiny", "small", "long", "tall"), gains=MODERATE))
@settings(max_examples=40)
def test_convolution_agrees_with_torch(torch: Any, backend: str, dtype: str, call: Call) -> None:
    call = call.changed(dtype=dtype)
    t = {name: torch.tensor(a.astype(np.float64), requires_grad=True) for name, a in call.arrays.items()}
    left = t.get("left", torch.zeros(call.shape("left"), dtype=torch.float64))
    whole = torch.cat([left, t["x"]], dim=1)
    dilation, groups = call.options.get("dilation", 1), call.options.get("groups", 1)
    y = torch.nn.functional.conv1d(whole.transpose(1, 2), t["w"], t.get("b"), dilation=dilation, groups=groups)
    B, T = call.sizes["B"], call.sizes["T"]
    lengths = call.options.get("lengths", np.full(B, T))
    y = torch.where(torch.tensor(np.arange(T) < lengths[:, None])[..., None], y.transpose(1, 2), 0.0)
    left_n = torch.stack([whole[row, length : length + left.shape[1]] for row, length in enumerate(lengths)])
    outputs, pullback = pyrnn.vjp(pyrnn.causal_conv1d, **call.arrays, **call.options, backend=backend)
    close(outputs.y, y.detach().numpy(), "y")
    close(outputs.left_n, left_n.detach().numpy(), "left_n")
    cotangents = call.cotangents()
    torch.autograd.backward(
        [y, left_n], [torch.tensor(cotangents[name].astype(np.float64)) for name in ("y", "left_n")]
    )
    grads = pullback(list(cotangents.values()))
    for name, tensor in t.items():
        close(getattr(grads, name), tensor.grad.numpy(), f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "K", "dilation"), [(1, 7, 4), (3, 4, 8), (9, 2, 512), (20, 1, 5), (2, 3, 1)])
def test_a_kernel_may_be_longer_than_the_sequence(backend: str, T: int, K: int, dilation: int) -> None:
    x, w = rng.standard_normal((2, T, 3)), rng.standard_normal((4, 3, K))
    left = rng.standard_normal((2, (K - 1) * dilation, 3))
    y, left_n = pyrnn.causal_conv1d(x, w, None, left, dilation=dilation, backend=backend)
    whole = np.concatenate([left, x], axis=1)
    want = sum(whole[:, tap * dilation : tap * dilation + T] @ w[..., tap].T for tap in range(K))
    close(y, want)
    assert np.array_equal(left_n, whole[:, T:])
    alone, _ = pyrnn.causal_conv1d(x, w, dilation=dilation, backend=backend)
    of_zeros, _ = pyrnn.causal_conv1d(x, w, None, np.zeros_like(left), dilation=dilation, backend=backend)
    assert np.array_equal(alone, of_zeros)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_sample_by_sample_is_the_whole(backend: str, groups: int) -> None:
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, 40, 6), (12, 6 // groups, 3), (12,)))
    options: dict[str, Any] = {"dilation": 4, "groups": groups, "backend": backend}
    whole, end = pyrnn.causal_conv1d(x, w, b, **options)
    left, steps = None, []
    for t in range(x.shape[1]):
        y, left = pyrnn.causal_conv1d(x[:, t : t + 1], w, b, left, **options)
        steps.append(y)
    assert np.array_equal(left, end)
    close(np.concatenate(steps, axis=1), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_left_is_that_of_what_comes_before(backend: str) -> None:
    x, w = rng.standard_normal((2, 11, 4)), rng.standard_normal((6, 2, 3))
    options: dict[str, Any] = {"dilation": 3, "groups": 2, "backend": backend}
    dy, dleft = rng.standard_normal((2, 11, 6)), rng.standard_normal((2, 6, 4))
    _, pull = pyrnn.vjp(pyrnn.causal_conv1d, x, w, **options)
    whole = pull((dy, dleft))
    first, pull_first = pyrnn.vjp(pyrnn.causal_conv1d, x[:, :4], w, **options)
    _, pull_second = pyrnn.vjp(pyrnn.causal_conv1d, x[:, 4:], w, None, first.left_n, **options)
    second = pull_second((dy[:, 4:], dleft))
    of_first = pull_first((dy[:, :4], second.left))
    close(np.concatenate([of_first.x, second.x], axis=1), whole.x)
    close(of_first.w + second.w, whole.w)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0), (0, 0, 0, 0)])
def test_degenerate_sizes(backend: str, sizes: tuple[int, ...]) -> None:
    B, T, inputs, outputs = sizes
    arrays = [
        np.ones(shape, np.float32) for shape in ((B, T, inputs), (outputs, inputs, 3), (outputs,), (B, 4, inputs))
    ]
    results, pullback = pyrnn.vjp(pyrnn.causal_conv1d, *arrays, dilation=2, backend=backend)
    assert results.y.shape == (B, T, outputs) and results.left_n.shape == (B, 4, inputs)
    if T == 0:
        assert np.array_equal(results.left_n, arrays[3])
    grads = pullback([np.ones_like(result) for result in results])
    for array, grad in zip(arrays, grads, strict=True):
        assert grad.shape == array.shape and np.isfinite(grad).all()


# --- errors --------------------------------------------------------------------------------------------------


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


PLAIN = {"x": zeros(2, 7, 6), "w": zeros(4, 3, 3), "groups": 2}
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": zeros(7, 6)}, ValueError, r"x: expected shape \(B, T, Cin\), got \(7, 6\)"),
    ({"w": zeros(4, 6, 3)}, ValueError, r"w: expected shape \(Cout, Cin/groups, K\) = \(4, 3, 3\), got \(4, 6, 3\)"),
    ({"w": zeros(4, 3, 0)}, ValueError, r"w: expected a kernel size K of at least 1, got 0"),
    ({"b": zeros(5)}, ValueError, r"b: expected shape \(Cout,\) = \(4,\), got \(5,\)"),
    (
        {"left": zeros(2, 3, 6), "dilation": 2},
        ValueError,
        r"left: expected shape \(B, \(K-1\)·dilation, Cin\) = \(2, 4, 6\), got \(2, 3, 6\)",
    ),
    (
        {"left": zeros(1, 2, 6)},
        ValueError,
        r"left: expected shape \(B, \(K-1\)·dilation, Cin\) = \(2, 2, 6\), got \(1, 2, 6\)",
    ),
    ({"groups": 4}, ValueError, r"groups: expected a divisor of Cin = 6 and of Cout = 4, got 4"),
    ({"groups": 0}, ValueError, r"groups: expected at least 1, got 0"),
    ({"groups": 2.0}, TypeError, r"groups: expected a whole number, got 2.0"),
    ({"dilation": 0}, ValueError, r"dilation: expected at least 1, got 0"),
    ({"lengths": [8, 1]}, ValueError, r"lengths: expected values from 0 to T = 7, got 1 to 8"),
    ({"x": np.zeros((2, 7, 6))}, TypeError, r"w: expected float64 like the arrays before it, got float32; cast with"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_what_is_wrong_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        pyrnn.causal_conv1d(**{**PLAIN, **change}, backend="reference")
