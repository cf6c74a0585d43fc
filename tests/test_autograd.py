"""The tape: every function's gradient against central differences, and the rules that keep a tape honest."""

from __future__ import annotations

import copy
import inspect
import math
import operator
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pyrnn
from pyrnn.autograd import functions as F
from pyrnn.autograd import is_recording, no_grad, to_arrays
from pyrnn.nn import Parameter
from pyrnn.ops import recurrent

Tensor = pyrnn.Tensor
SEEDS = st.integers(0, 2**32 - 1)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
FULL_SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=3)


def spaced(rng: np.random.Generator, shape: tuple[int, ...], offset: float = 0.25) -> np.ndarray:
    """Draw distinct values, none within 0.01 of 0 or of those of another offset: away from every kink."""
    count = math.prod(shape)
    order = rng.permutation(count) - count // 2 + offset + rng.uniform(-0.1, 0.1, count)
    return (0.1 * order).reshape(shape)


def check_gradients(function: Callable[..., Any], *arrays: np.ndarray, seed: int = 0) -> None:
    """Hold a function's gradients against central differences, and its dtypes against its operands'."""
    arrays = tuple(np.asarray(array) for array in arrays)  # numpy's arithmetic makes numbers of 0-d arrays
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    output = function(*tensors)
    cotangent = np.asarray(np.random.default_rng(seed).normal(size=output.shape))
    output.backward(cotangent)

    def value(*values: np.ndarray) -> float:
        with no_grad():
            return float((cotangent * function(*(Tensor(v) for v in values)).data).sum())

    step = 1e-6
    for place, (tensor, array) in enumerate(zip(tensors, arrays, strict=True)):
        numeric = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in arrays]
                moved[place][index] += sign * step
                ends.append(value(*moved))
            numeric[index] = (ends[0] - ends[1]) / (2 * step)
        assert tensor.grad.shape == array.shape
        np.testing.assert_allclose(tensor.grad, numeric, rtol=1e-6, atol=1e-7)

    small = [Tensor(array.astype(np.float32), requires_grad=True) for array in arrays]
    output = function(*small)
    output.backward(cotangent.astype(np.float32))
    assert [output.dtype, *(t.grad.dtype for t in small)] == [np.float32] * (1 + len(small))


# --- every function ---------------------------------------------------------------------------------------

UNARY: dict[str, tuple[Callable[..., Any], bool]] = {  # whether the operand is to be positive
    "negative": (F.negative, False),
    "abs": (F.abs, False),
    "exp": (F.exp, False),
    "log": (F.log, True),
    "sqrt": (F.sqrt, True),
    "tanh": (F.tanh, False),
    "sigmoid": (F.sigmoid, False),
    "relu": (F.relu, False),
    "softplus": (F.softplus, False),
    "gelu": (F.gelu, False),
    "gelu_tanh": (F.gelu_tanh, False),
    "clip": (lambda a: F.clip(a, -0.2, 0.1), False),
}
BINARY: dict[str, tuple[Callable[..., Any], bool]] = {
    "add": (F.add, False),
    "subtract": (F.subtract, False),
    "multiply": (F.multiply, False),
    "divide": (F.divide, False),
    "power": (F.power, True),
    "maximum": (F.maximum, False),
    "minimum": (F.minimum, False),
}
REDUCTIONS = {"sum": F.sum, "mean": F.mean, "max": F.max, "min": F.min}
OTHERS = {
    "matmul", "where", "getitem", "reshape", "transpose", "swapaxes", "expand_dims", "squeeze", "broadcast_to",
    "concatenate", "stack", "split", "gated_tanh", "rotate", "rotated",
}  # fmt: skip


def test_every_function_is_tested() -> None:
    public = {
        name
        for name, value in vars(F).items()
        if inspect.isfunction(value) and value.__module__ == F.__name__ and not name.startswith("_")
    }
    assert public == {*UNARY, *BINARY, *REDUCTIONS, *OTHERS}


@pytest.mark.parametrize("name", UNARY)
@given(shape=SHAPES, seed=SEEDS)
def test_unary(name: str, shape: tuple[int, ...], seed: int) -> None:
    function, positive = UNARY[name]
    x = spaced(np.random.default_rng(seed), shape)
    check_gradients(function, np.abs(x) + 0.5 if positive else x, seed=seed)


@pytest.mark.parametrize("name", BINARY)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0), seed=SEEDS)
def test_binary_with_broadcasting(name: str, shapes: Any, seed: int) -> None:
    function, positive = BINARY[name]
    rng = np.random.default_rng(seed)
    a, b = spaced(rng, shapes.input_shapes[0], 0.25), spaced(rng, shapes.input_shapes[1], 0.75)
    # The divisor stands away from 0, where differences of a step's size say nothing.
    b = b + np.sign(b) if name == "divide" else b
    check_gradients(function, np.abs(a) + 0.5 if positive else a, b, seed=seed)


@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), seed=SEEDS)
def test_where_with_broadcasting(shapes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    condition = rng.random(shapes.input_shapes[2]) < 0.5
    a, b = (rng.normal(size=shape) for shape in shapes.input_shapes[:2])
    check_gradients(lambda a, b: F.where(condition, a, b), a, b, seed=seed)


def test_where_keeps_nan_of_what_is_not_taken_from_the_gradient() -> None:
    x = Tensor(np.array([1.0, np.nan]), requires_grad=True)
    F.where([True, False], x, 0.0).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


@given(
    shapes=hnp.mutually_broadcastable_shapes(signature="(n?,k),(k,m?)->(n?,m?)", max_dims=2, max_side=3),
    seed=SEEDS,
)
def test_matmul(shapes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    check_gradients(F.matmul, *(rng.normal(size=shape) for shape in shapes.input_shapes), seed=seed)


@pytest.mark.parametrize("name", REDUCTIONS)
@given(shape=FULL_SHAPES, keepdims=st.booleans(), seed=SEEDS, data=st.data())
def test_reductions(name: str, shape: tuple[int, ...], keepdims: bool, seed: int, data: Any) -> None:
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape)))
    x = spaced(np.random.default_rng(seed), shape)
    expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    assert np.array_equal(REDUCTIONS[name](Tensor(x), axis, keepdims).data, expected)
    check_gradients(lambda a: REDUCTIONS[name](a, axis, keepdims), x, seed=seed)


def test_equals_share_the_gradient_of_an_extreme() -> None:
    x = Tensor(np.array([2.0, 1.0, 2.0]), requires_grad=True)
    x.max().backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]
    a, b = (Tensor(np.array([3.0]), requires_grad=True) for _ in range(2))
    F.maximum(a, b).sum().backward()
    assert a.grad == b.grad == 0.5


@given(shape=FULL_SHAPES, seed=SEEDS, data=st.data())
def test_getitem(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = np.random.default_rng(seed).normal(size=shape)
    index = data.draw(
        hnp.basic_indices(shape, allow_newaxis=True) | hnp.integer_array_indices(shape) | hnp.arrays(bool, shape)
    )
    assert np.array_equal(Tensor(x)[index].data, x[index])
    check_gradients(lambda a: a[index], x, seed=seed)


@given(shape=FULL_SHAPES, seed=SEEDS, data=st.data())
def test_shapes(shape: tuple[int, ...], seed: int, data: Any) -> None:
    x = np.random.default_rng(seed).normal(size=shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    other = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = data.draw(st.permutations(range(len(shape))))
    wider = (2, *shape)
    cases: list[tuple[Callable[[Any], Any], np.ndarray]] = [
        (lambda a: F.reshape(a, -1), x.reshape(-1)),
        (lambda a: F.transpose(a), x.T),
        (lambda a: F.transpose(a, order), x.transpose(order)),
        (lambda a: F.swapaxes(a, axis, other), x.swapaxes(axis, other)),
        (lambda a: F.expand_dims(a, axis), np.expand_dims(x, axis)),
        (lambda a: F.squeeze(F.expand_dims(a, axis), axis), x),
        (lambda a: F.broadcast_to(a, wider), np.broadcast_to(x, wider)),
    ]
    for function, expected in cases:
        assert np.array_equal(function(Tensor(x)).data, expected)
        check_gradients(function, x, seed=seed)


@given(shape=FULL_SHAPES, sizes=st.lists(st.integers(0, 3), min_size=1, max_size=3), seed=SEEDS, data=st.data())
def test_concatenate_and_stack(shape: tuple[int, ...], sizes: list[int], seed: int, data: Any) -> None:
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    parts = []
    for size in sizes:
        part = list(shape)
        part[axis] = size
        parts.append(rng.normal(size=part))
    check_gradients(lambda *p: F.concatenate(p, axis), *parts, seed=seed)
    same = [rng.normal(size=shape) for _ in sizes]
    check_gradients(lambda *p: F.stack(p, axis), *same, seed=seed)


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]


@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3), st.integers(0, 3), SEEDS)
def test_split(shape: tuple[int, ...], size: int, seed: int) -> None:
    a = np.random.default_rng(seed).normal(size=shape)
    first, rest = F.split(Tensor(a), size)
    assert np.array_equal(first.data, a[..., :size]) and np.array_equal(rest.data, a[..., size:])
    check_gradients(lambda a: F.concatenate([part * part for part in F.split(a, size)], -1), a, seed=seed)
    check_gradients(lambda a: F.split(a, size)[0], a, seed=seed)
    check_gradients(lambda a: F.split(a, size)[1], a, seed=seed)


@given(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), st.integers(1, 3), SEEDS)
def test_rotate(shape: tuple[int, ...], pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, angles = rng.normal(size=(*shape, 2 * pairs)), rng.normal(size=pairs)
    waves = [part.repeat(2) * np.tile(signs, pairs) for part, signs in
             ((np.cos(angles), (1, 1)), (np.sin(angles), (-1, 1)))]  # fmt: skip
    expected = (a[..., 0::2] + 1j * a[..., 1::2]) * np.exp(1j * angles)
    got = F.rotate(Tensor(a), *waves).data
    np.testing.assert_allclose(got[..., 0::2] + 1j * got[..., 1::2], expected, rtol=1e-13, atol=1e-14)
    assert np.array_equal(got, F.rotated(a, *waves))
    check_gradients(lambda t: F.rotate(t, *(wave.astype(t.dtype) for wave in waves)), a, seed=seed)


@given(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), st.integers(1, 4), SEEDS)
def test_gated_tanh(shape: tuple[int, ...], half: int, seed: int) -> None:
    a = np.random.default_rng(seed).normal(size=(*shape, 2 * half), scale=3)
    expected = np.tanh(a[..., :half]) / (1 + np.exp(-a[..., half:]))
    np.testing.assert_allclose(F.gated_tanh(Tensor(a)).data, expected, rtol=1e-13, atol=1e-15)
    check_gradients(F.gated_tanh, a, seed=seed)


@pytest.mark.parametrize(
    ("symbol", "kinds"),  # tensor, array, number
    [(symbol, kinds) for symbol in OPERATORS for kinds in ("tt", "ta", "at", "tn", "nt")]
    + [(operator.matmul, kinds) for kinds in ("tt", "ta", "at")],
)
def test_operators_with_tensors_arrays_and_numbers(symbol: Any, kinds: str) -> None:
    rng = np.random.default_rng(0)
    values = [1.5 if kind == "n" else rng.uniform(0.5, 2, (2, 2)) for kind in kinds]
    operands = [Tensor(v, requires_grad=True) if kind == "t" else v for kind, v in zip(kinds, values, strict=True)]
    result = symbol(*operands)
    assert isinstance(result, Tensor) and result.requires_grad
    np.testing.assert_allclose(result.data, symbol(*values), rtol=1e-15)
    result.sum().backward()
    place = kinds.index("t")

    def moved(by: float) -> Any:
        return symbol(*(v + by if i == place else v for i, v in enumerate(values))).sum()

    numeric = (moved(1e-6) - moved(-1e-6)) / 2e-6
    np.testing.assert_allclose(operands[place].grad.sum(), numeric, rtol=1e-7)


def test_methods_are_the_functions() -> None:
    x = np.random.default_rng(0).uniform(0.5, 2, (2, 3))
    t = Tensor(x)
    for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "sum", "mean", "max", "min"):
        assert np.array_equal(getattr(t, name)().data, getattr(F, name)(t).data)
    assert np.array_equal(t.reshape(3, 2).data, x.reshape(3, 2))
    assert np.array_equal(t.reshape((6,)).data, x.ravel())
    assert np.array_equal(t.T.data, x.T)
    assert np.array_equal(t.transpose(1, 0).data, x.T)
    assert np.array_equal(t.swapaxes(0, 1).data, x.T)
    assert np.array_equal(abs(-t).data, x)
    assert [row.shape for row in t] == [(3,), (3,)]


def test_sigmoid_and_softplus_are_exact_in_their_tails() -> None:
    for x in (-700.0, -40.0, -1e-3, 0.0, 1e-3, 40.0, 700.0):
        e = math.exp(-abs(x))
        sigmoid = 1 / (1 + e) if x >= 0 else e / (1 + e)
        softplus = max(x, 0.0) + math.log1p(e)
        assert F.sigmoid(Tensor(np.array(x))).item() == pytest.approx(sigmoid, rel=1e-15)
        assert F.softplus(Tensor(np.array(x))).item() == pytest.approx(softplus, rel=1e-15)


# --- dtypes, and tapes that are never dropped in silence ------------------------------------------------------


def test_mixed_dtypes_are_refused_with_the_fix() -> None:
    a, b = Tensor(np.ones(2, np.float32), True), Tensor(np.ones(2, np.float64), True)
    for operands in ((a, b), (b, a), (a, b.data), (b.data, a)):
        with pytest.raises(TypeError, match=r"expected float\d\d like the other operand.*cast with .astype"):
            operator.add(*operands)
    with pytest.raises(TypeError, match="expected float32"):
        F.concatenate([a, np.ones(2)])
    with pytest.raises(TypeError, match="expected float32 or float64, got int64"):
        Tensor(np.arange(3))


def test_an_array_on_the_left_keeps_the_tape() -> None:
    t = Tensor(np.ones(3), requires_grad=True)
    result = np.array([1.0, 2.0, 3.0]) * t
    assert isinstance(result, Tensor)
    result.sum().backward()
    assert t.grad.tolist() == [1.0, 2.0, 3.0]


def test_asarray_of_a_tensor_that_needs_a_gradient_raises() -> None:
    t = Tensor(np.ones(3), requires_grad=True)
    for convert in (np.asarray, np.array, lambda t: t.numpy(), lambda t: np.asarray(t * 2)):
        with pytest.raises(TypeError, match="would drop its tape"):
            convert(t)
    assert np.asarray(t.detach()).tolist() == [1, 1, 1]


def test_data_is_read_only() -> None:
    t = Tensor(np.ones(3))
    with pytest.raises(ValueError, match="read-only"):
        t.data[0] = 2


@pytest.mark.parametrize("operation", ["multiply", "lstm"])
def test_a_stale_tape_raises(operation: str) -> None:
    rng = np.random.default_rng(0)
    w = Tensor(rng.normal(size=(8, 2)), requires_grad=True)
    loss = (w * w).sum() if operation == "multiply" else recurrent.lstm(rng.normal(size=(1, 3, 2)), w, w)[0].sum()
    w.write()[...] = 0
    with pytest.raises(RuntimeError, match=f"an array that '{operation}' saved was written"):
        loss.backward()
    assert w.grad is None


def test_a_write_is_seen_through_views_and_detached_tensors() -> None:
    for view in (lambda t: t, lambda t: t[0], lambda t: t.reshape(-1), lambda t: t.T, lambda t: F.squeeze(t[:1], 0)):
        t = Tensor(np.ones((2, 2)), requires_grad=True)
        v = view(t)
        loss = (v * v).sum()
        t.detach().write()[...] = 5
        with pytest.raises(RuntimeError, match="was written"):
            loss.backward()


def test_setitem_on_the_tape_raises() -> None:
    t = Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(RuntimeError, match="no_grad"):
        t[0] = 3
    with no_grad():
        t[0] = 3
    assert t.data.tolist() == [3, 1]


def test_backward_twice_needs_retain_graph() -> None:
    t = Tensor(np.array([3.0]), requires_grad=True)
    loss = (t * t).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert t.grad.tolist() == [12.0]
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_backward_without_a_tape_or_with_a_wrong_gradient_raises() -> None:
    with pytest.raises(RuntimeError, match="no tape"):
        Tensor(np.ones(1)).backward()
    t = Tensor(np.ones(3, np.float32), requires_grad=True)
    with pytest.raises(ValueError, match=r"grad: expected an array of shape \(3,\), got None"):
        (t * 2).backward()
    with pytest.raises(ValueError, match=r"grad: expected float32 of shape \(3,\), got float64"):
        (t * 2).backward(np.ones(3))


def test_gradients_add_up_over_uses_and_calls() -> None:
    t = Tensor(np.array([2.0]), requires_grad=True)
    (t + t * t + t).sum().backward()  # 2 + 2t
    assert t.grad.tolist() == [6.0]
    (3 * t).sum().backward()
    assert t.grad.tolist() == [9.0]


def test_leaves_do_not_share_their_gradients() -> None:
    a, b = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    (a + b).sum().backward()
    a.grad[0] = 7
    assert b.grad.tolist() == [1, 1]


@pytest.mark.parametrize("unused", [{"y"}, {"h_n"}, {"c_n"}, {"y", "h_n"}, {"y", "c_n"}, {"h_n", "c_n"}])
def test_an_output_that_is_not_used_has_a_zero_gradient(unused: set[str]) -> None:
    rng = np.random.default_rng(0)
    x, w_hh = rng.normal(size=(2, 3, 2)), rng.normal(size=(8, 2))
    w = Tensor(rng.normal(size=(8, 2)), requires_grad=True)
    outputs = recurrent.lstm(x, w, w_hh)
    used = [value for name, value in outputs._asdict().items() if name not in unused]
    sum((value.sum() for value in used[1:]), used[0].sum()).backward()
    _, pullback = pyrnn.vjp(pyrnn.lstm, x, w.data, w_hh)
    ones = [np.zeros(v.shape) if n in unused else np.ones(v.shape) for n, v in outputs._asdict().items()]
    np.testing.assert_allclose(w.grad, pullback(ones).w_ih, rtol=1e-12)


# --- long chains, modes, threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("walk", [True, False], ids=["backward", "dropped without backward"])
def test_a_long_chain_does_not_recurse(walk: bool) -> None:
    t = Tensor(np.array([1.0]), requires_grad=True)
    y: Any = t
    for _ in range(50_000):
        y = y + 1.0
    if walk:
        y.backward()
        assert t.grad.tolist() == [1.0]
    del y


def test_no_grad_records_nothing_and_ends() -> None:
    t = Tensor(np.ones(2), requires_grad=True)
    with no_grad():
        assert not (t * 2).requires_grad and not is_recording()
        with no_grad():
            pass
        assert not is_recording()

    @no_grad()
    def double() -> Any:
        return t * 2

    assert not double().requires_grad
    assert not double().requires_grad  # a decorated function can be called again
    assert (t * 2).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_recording()


def test_no_grad_holds_in_its_own_thread_only() -> None:
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with no_grad():
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    assert is_recording()
    done.set()
    thread.join()


def test_tapes_of_many_threads_do_not_mix() -> None:
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        t = Tensor(np.array([float(number)]), requires_grad=True)
        for _ in range(50):
            y = t
            for _ in range(20):
                y = y * 1.0 + t
            y.sum().backward()
        results[number] = t.grad.tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [50 * 21.0] for i in range(8)}


def test_detach_and_to_arrays_keep_the_form_of_a_state() -> None:
    t = Tensor(np.ones(2), requires_grad=True) * 2
    outputs = recurrent.rnn(Tensor(np.ones((1, 1, 1)), True), np.ones((1, 1)), np.ones((1, 1)))
    cut = pyrnn.detach((t, (np.zeros(1), ()), outputs))
    assert not cut[0].requires_grad and cut[1] == (np.zeros(1), ())
    assert type(cut[2]) is type(outputs) and not cut[2].y.requires_grad
    arrays = to_arrays((t, (outputs,)))
    assert type(arrays[0]) is np.ndarray and type(arrays[1][0].h_n) is np.ndarray


def test_a_tensor_with_a_tape_is_not_copied_in_silence() -> None:
    import copy

    leaf = Parameter(np.ones(2))
    twin = copy.deepcopy(leaf)
    assert type(twin) is Parameter and twin.requires_grad and twin.data.tolist() == [1, 1]
    with pytest.raises(TypeError, match=r"\.detach\(\) first"):
        copy.deepcopy(leaf * 2)


def test_functions_take_arrays_too() -> None:
    x = np.array([0.5, 2.0])
    for name in ("exp", "log", "sqrt", "tanh", "sigmoid", "relu", "softplus", "abs", "negative"):
        result = getattr(F, name)(x)
        assert isinstance(result, Tensor) and not result.requires_grad
        assert np.array_equal(result.data, getattr(F, name)(Tensor(x)).data)


def test_the_zeroth_power_is_flat_at_zero_too() -> None:
    x = Tensor(np.array([0.0, 3.0]), requires_grad=True)
    (x**0).sum().backward()
    assert np.array_equal(x.grad, [0.0, 0.0])


def test_the_gradient_of_a_number_is_an_array_of_its_own() -> None:
    x = Tensor(np.array(2.0), requires_grad=True)
    (x * x + x).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad.shape == () and x.grad == 5
    a, b = (Tensor(np.ones(2), requires_grad=True) for _ in range(2))
    seed = np.ones(2)
    (a + b).backward(seed)
    assert not any(np.shares_memory(p, q) for p, q in ((a.grad, b.grad), (a.grad, seed), (b.grad, seed)))


def test_writing_a_value_with_a_tape_is_refused() -> None:
    target, value = Tensor(np.zeros(2)), Tensor(np.ones(1), requires_grad=True)
    with pytest.raises(RuntimeError, match="the value needs a gradient, and writing it here would drop its tape"):
        target[:1] = value
    target[:1] = value.detach()
    assert np.array_equal(target.data, [1, 0])


def test_detach_reaches_into_tuples_lists_and_dicts() -> None:
    leaf = Tensor(np.ones(1), requires_grad=True)
    array = np.zeros(1)
    cut = pyrnn.detach({"a": (leaf, [leaf * 2, array]), "b": 3})
    assert not cut["a"][0].requires_grad and not cut["a"][1][0].requires_grad
    assert cut["a"][1][1] is array and cut["b"] == 3 and isinstance(cut["a"], tuple)


def test_outputs_and_gradients_can_be_pickled() -> None:
    x, w = np.ones((1, 2, 3)), np.ones((3, 3))
    outputs, pullback = pyrnn.vjp(pyrnn.rnn, x, w, w)
    for value in (outputs, pullback(outputs)):
        again = pickle.loads(pickle.dumps(value))
        assert type(again) is type(value) and np.array_equal(again[0], value[0])


def test_numbers_can_be_formatted() -> None:
    assert f"{Tensor(np.array(1.25)):.1f}" == "1.2" and "Tensor" in f"{Tensor(np.ones(2))}"


def test_a_copy_is_a_copy() -> None:
    p = Parameter(np.ones(2))
    other = copy.copy(p)
    q = (p * p).sum()
    other.write()[...] = 0
    q.backward()
    assert isinstance(other, Parameter) and np.array_equal(p.grad, [2, 2]) and np.array_equal(p.data, [1, 1])


def test_indices_and_masks_may_be_used_again() -> None:
    w = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    index, mask, condition = np.array([0, 1]), np.array([True, False]), np.array([True, False])
    total = w[index].sum() + pyrnn.embedding(w, indices=index).sum()
    total = total + pyrnn.cross_entropy(w[:2], targets=index, mask=mask).sum() + F.where(condition, w[0], 0.0).sum()
    expected, pullback = w.grad, total.backward
    pullback(retain_graph=True)
    expected, w.grad = w.grad, None
    index[:], mask[:], condition[:] = 2, True, True
    pullback()
    assert np.array_equal(w.grad, expected)


def test_views_can_be_written_to() -> None:
    base = Tensor(np.zeros((2, 3)))
    with no_grad():
        for view in (base[0], base.T[0], base.reshape(6)[:1]):
            view[0] = 1.0
        with pytest.raises(IndexError):
            base[10] = 1.0
    assert base.data[0, 0] == 1 and base.version.count == 3, "a write that fails is none"


def test_an_infinite_gradient_stops_at_relu() -> None:
    x = Tensor(np.array([-1.0, 1.0]), requires_grad=True)
    F.relu(x).backward(np.array([np.inf, 2.0]))
    assert np.array_equal(x.grad, [0, 2])


def test_backward_from_many_threads_adds_up() -> None:
    w = Tensor(np.zeros(1), requires_grad=True)

    def work() -> None:
        for _ in range(300):
            (w * 1.0).sum().backward()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert w.grad[0] == 1200
