"""What is particular to the numba plugin: its cache, its threads, a forked child, the accuracy of its activations."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from pyrnn_numba import activations, attend, attend_back, backward, forward, matrix, taps, walk
from pyrnn_numba.vector import FEATURES, VECTOR_BYTES, emitted

import pyrnn
from pyrnn.testing import Call, strategies

KERNELS = {
    value
    for module in (walk, forward, backward, attend, attend_back, matrix, taps)
    for value in vars(module).values()
    if hasattr(value, "py_func") and "sources" in inspect.signature(value.py_func).parameters
}


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


CALLS = {
    "recurrent": """
        weights = np.ones((8, 3), "float32"), np.ones((8, 8), "float32")
        call(pyrnn.rnn, np.ones((9, 4, 3), "float32"), *weights)
        pyrnn.rnn(np.ones((1, 1, 3), "float32"), *weights, backend="numba")
    """,
    "attention": """
        q = np.ones((1, 1, 2, 3), "float32")
        call(pyrnn.attention, q, q, q, q[0, :, :, :2])
        call(pyrnn.additive_attention, *[q[0]] * 3, *[np.ones((2, 3), "float32")] * 2, np.ones(2, "float32"))
    """,
    "conv": """
        x = np.ones((2, 4, 2), "float32")
        call(pyrnn.causal_conv1d, x, np.ones((32, 2, 2), "float32"))
        call(pyrnn.causal_conv1d, x, np.ones((2, 1, 2), "float32"), groups=2)
    """,
}


@pytest.mark.parametrize(("family", "least"), [("recurrent", 9), ("attention", 8), ("conv", 8)])
def test_the_second_process_compiles_nothing(tmp_path: Path, family: str, least: int) -> None:
    code = f"""
        import sys
        import numpy as np, pyrnn

        def call(op, *arrays, **config):
            outputs, pullback = pyrnn.vjp(op, *arrays, backend="numba", **config)
            pullback(outputs)

        {CALLS[family].strip()}
        modules = [m for name, m in sys.modules.items() if name.startswith("pyrnn_numba")]
        kernels = {{id(k): k for m in modules for k in vars(m).values() if hasattr(k, "py_func")}}
        stats = [k.stats for k in kernels.values()]
        print(sum(len(s.cache_hits) for s in stats), sum(len(s.cache_misses) for s in stats))
    """
    hits, misses = map(int, python(code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert hits == 0 and misses >= least
    hits, misses = map(int, python(code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert hits >= least and misses == 0


def test_a_change_in_any_file_is_another_signature() -> None:
    # Numba looks at the file of a kernel alone; the rest it is made of is in its default argument.
    assert len(KERNELS) == 23
    for kernel in KERNELS:
        assert inspect.signature(kernel.py_func).parameters["sources"].default == walk.SOURCES


def test_many_threads_at_once_and_a_forked_child() -> None:
    call = Call("lstm", {"B": 40, "T": 10, "I": 30, "H": 70}, optional=("b", "h0"))
    expected = pyrnn.lstm(**call.arrays, backend="numba")

    def same(_: int) -> bool:
        results = pyrnn.lstm(**call.arrays, backend="numba")
        return all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))

    with pyrnn.num_threads(4), ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(64)))
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            with pyrnn.num_threads(4):
                os._exit(0 if same(0) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_no_features_at_all() -> None:
    x, w_ih, w_hh = np.zeros((2, 1, 3)), np.zeros((0, 3)), np.zeros((0, 0))
    assert pyrnn.rnn(x, w_ih, w_hh, backend="numba").y.shape == (2, 1, 0)


def test_parts_that_no_thread_takes_are_done_by_the_caller() -> None:
    # As at the interpreter's end, when a pool takes no more: an answer all the same.
    python(
        """
        import atexit, threading, time
        import numpy as np, pyrnn
        from pyrnn.testing import Call
        call = Call("lstm", {"B": 40, "T": 10, "I": 30, "H": 70})
        want = pyrnn.lstm(**call.arrays, backend="numba")

        def late():
            threading.main_thread().join()
            for _ in range(20):
                got = pyrnn.lstm(**call.arrays, backend="numba")
                assert np.array_equal(got.y, want.y)
            print("done", flush=True)

        pyrnn.set_num_threads(3)
        threading.Thread(target=late).start()
        """
    ).strip() == "done" or pytest.fail("the late thread did not come to its end")


@emitted()
def tanh_of(e, source, target):
    e.store(activations.tanh(e, e.load(source)), target)


@emitted()
def sigmoid_of(e, source, target):
    e.store(activations.sigmoid(e, e.load(source)), target)


@njit
def apply_tanh(unit, source, target, size):
    for at in range(0, size, VECTOR_BYTES):
        tanh_of(unit, source + at, target + at)


@njit
def apply_sigmoid(unit, source, target, size):
    for at in range(0, size, VECTOR_BYTES):
        sigmoid_of(unit, source + at, target + at)


@pytest.mark.parametrize(("apply", "exact"), [(apply_tanh, np.tanh), (apply_sigmoid, lambda x: 1 / (1 + np.exp(-x)))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_are_within_four_ulp(apply, exact, dtype: str) -> None:
    if dtype == "float32":  # every 1021st of all that there are
        x = np.arange(0, 2**32, 1021, np.uint64).astype(np.uint32).view(np.float32)
        x = x[np.isfinite(x)]
    else:
        size = np.geomspace(1e-300, 800, 100_000)
        x = np.concatenate([-size, [0.0], size])
    x = np.resize(x, len(x) // 16 * 16)
    y = np.empty_like(x)
    apply(x.dtype.type(0), x.ctypes.data, y.ctypes.data, x.nbytes)
    with np.errstate(over="ignore"):
        want = exact(x.astype(np.longdouble))
    normal = np.abs(want) >= np.finfo(dtype).tiny
    ulp = np.spacing(np.abs(want.astype(dtype)))
    assert float(np.max(np.abs(y - want)[normal] / ulp[normal])) < 4
    assert np.all(np.abs(y - want)[~normal] <= 2 * np.finfo(dtype).tiny)
    special = np.resize(np.array([np.nan, np.inf, -np.inf, -0.0], dtype), 16)
    found = np.empty_like(special)
    apply(x.dtype.type(0), special.ctypes.data, found.ctypes.data, special.nbytes)
    np.testing.assert_array_equal(found, exact(special))


def test_denormals_do_not_stay_off() -> None:
    call = Call("rnn", {"B": 2, "T": 2, "I": 3, "H": 4})
    pyrnn.rnn(**call.arrays, backend="numba")
    smallest = np.float32(1e-45)
    assert smallest * np.float32(1) > 0


@given(strategies.calls("gru", sizes={"B": (1, 3), "T": (1, 1)}, regimes=("tiny", "wide")))
def test_a_single_step_is_a_step_of_many(call: Call) -> None:
    # One step has a kernel of its own, which must give the same bits.
    arrays = dict(call.arrays)
    x = np.concatenate([arrays.pop("x"), np.ones((call.sizes["B"], 1, call.sizes["I"]), call.dtype)], axis=1)
    config = {k: v for k, v in call.config.items() if k == "reset_after"}
    one = pyrnn.gru(x[:, :1], **arrays, **config, backend="numba")
    two = pyrnn.gru(x, **arrays, **config, backend="numba")
    assert np.array_equal(one.y[:, 0], two.y[:, 0])


def test_products_of_any_strides() -> None:
    call = Call("lstm", {"B": 7, "T": 3, "I": 70, "H": 130}, dtype="float64")
    expected = pyrnn.lstm(**call.arrays, backend="numba")
    for layout in (np.asfortranarray, lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
        results = pyrnn.lstm(**{name: layout(array) for name, array in call.arrays.items()}, backend="numba")
        assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


# --- attention and convolution ---------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def listed(outputs) -> tuple[np.ndarray, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def agree(op, arrays, config, dtype: str = "float64") -> None:
    """Hold outputs and gradients against those of the reference."""
    tolerance = {"float32": 2e-4, "float64": 1e-11}[dtype]
    both = []
    for backend in ("numba", "reference"):
        with np.errstate(invalid="ignore"):  # NaN in what is padding
            outputs, pullback = pyrnn.vjp(op, *arrays, **config, backend=backend)
            rng = np.random.default_rng(1)
            cotangents = tuple(drawn(rng, dtype, *output.shape) for output in listed(outputs))
            both.append((*listed(outputs), *pullback(cotangents)))
    for a, b in zip(*both, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            scale = max(1.0, float(np.max(np.abs(b), where=np.isfinite(b), initial=0)))
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def identical(a, b) -> None:
    for one, other in zip(a, b, strict=True):
        assert (one is None and other is None) or np.array_equal(one, other, equal_nan=True)


def heads(seed: int, dtype: str, batch: int, asking: int, shared: int, n: int, m: int, d: int, dv: int):
    rng = np.random.default_rng(seed)
    shapes = (batch, asking, n, d), (batch, shared, m, d), (batch, shared, m, dv)
    return tuple(drawn(rng, dtype, *shape) for shape in shapes)


@given(st.data())
def test_attention_at_the_edges_of_tiles_and_splits(data) -> None:
    edge = [1, 2, 3, 5, 6, 7, 15, 16, 17, 33, 63, 64, 65, 130]
    one = st.sampled_from(edge)
    n, d, dv = data.draw(one), data.draw(one), data.draw(one)
    m = data.draw(st.sampled_from([*edge, 255, 256, 257, 400, 513]))
    shared, group = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    config = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "causal": st.booleans(),
                "window": st.tuples(st.integers(0, 300), st.none() | st.integers(0, 5)),
                "lengths": st.just(rng.integers(0, m + 1, 2)),
                "q_lengths": st.just(rng.integers(0, n + 1, 2)),
                "q_start": st.just(rng.integers(-3, m + 3, 2)),
                "mask": st.just(rng.random((2, 1, n, m)) < 0.7) | st.just(rng.random(m) < 0.7),
                "dropout": st.just(0.25),
            },
        )
    )
    config["seed"] = 2**63 + 7
    arrays = heads(seed, "float64", 2, shared * group, shared, n, m, d, dv)
    if data.draw(st.booleans()):
        shape = [size if data.draw(st.booleans()) else 1 for size in (2, shared * group, n, m)]
        arrays = (*arrays, drawn(rng, "float64", *shape))
    agree(pyrnn.attention, arrays, config)


def test_what_no_query_sees_reaches_nothing_and_what_one_sees_does() -> None:
    q, k, v = heads(0, "float64", 2, 4, 2, 70, 300, 20, 18)
    causal = {"causal": True, "lengths": [290, 5], "q_lengths": [66, 70], "q_start": [200, 0]}
    k[0, :, 266:], v[0, :, 266:] = np.nan, np.inf  # past the last query
    k[1, :, 5:], v[1, :, 5:], q[0, :, 66:] = np.nan, np.nan, -np.inf
    y, pullback = pyrnn.vjp(pyrnn.attention, q, k, v, **causal, backend="numba")
    cotangent = np.where(np.arange(70)[:, None] < [[[[66]]], [[[70]]]], np.ones((2, 4, 70, 18)), np.nan)
    assert all(np.isfinite(a).all() for a in (y, *pullback(cotangent)[:3]))
    agree(pyrnn.attention, (q, k, v), causal)
    # From position 230 on it is seen, and in a head alone.
    v[0, 1, 230, 3], v[0, 1, 231, 4], v[0, 0, 200, 17] = np.inf, np.nan, -np.inf
    agree(pyrnn.attention, (q, k, v), causal)
    agree(pyrnn.attention, (q, k, v), {**causal, "mask": np.arange(300) != 230})
    k[0, 1, 235, 2], q[0, 0, 40, 5] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        want = pyrnn.attention(q, k, v, **causal, backend="reference")
    y, pullback = pyrnn.vjp(pyrnn.attention, q, k, v, **causal, backend="numba")
    assert np.isnan(y[0, 2:, 35:66]).all() and np.array_equal(np.isnan(y), np.isnan(want))
    hidden = np.arange(300) != 230
    for config, unseen in ((causal, np.s_[266:]), ({**causal, "mask": hidden}, 230)):
        _, pullback = pyrnn.vjp(pyrnn.attention, q, k, v, **config, backend="numba")
        _, dk, dv, _ = pullback(cotangent)
        assert not dk[0, :, unseen].any() and not dv[0, :, unseen].any()


def test_rows_of_minus_infinity_and_rows_that_see_nothing_are_zero() -> None:
    q, k, v = heads(1, "float64", 1, 1, 1, 3, 5, 4, 4)
    bias = np.zeros((3, 5))
    bias[0], bias[1, :4] = -np.inf, -np.inf
    y = pyrnn.attention(q, k, v, bias, mask=np.array([[True], [True], [False]]), backend="numba")
    assert not y[0, 0, 0].any() and not y[0, 0, 2].any()
    np.testing.assert_allclose(y[0, 0, 1], v[0, 0, 4], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_in_chunks_and_without_what_nobody_sees_is_the_same_to_the_bit(dtype: str) -> None:
    q, k, v = heads(2, dtype, 2, 4, 2, 600, 600, 24, 40)
    config = {"causal": True, "window": (100, 0), "dropout": 0.1, "seed": 3}
    want = pyrnn.attention(q, k, v, **config, backend="numba")
    for cuts in ((1, 300, 301), (64, 129, 560, 599)):
        for first, last in zip((0, *cuts), (*cuts, 600), strict=True):
            part = pyrnn.attention(q[:, :, first:last], k[:, :, :last], v[:, :, :last], **config, backend="numba")
            identical([part], [want[:, :, first:last]])
    del config["dropout"]  # which knows positions from 0 on
    want = pyrnn.attention(q, k, v, **config, backend="numba")
    tail = pyrnn.attention(q[:, :, 400:], k[:, :, 256:], v[:, :, 256:], **config, backend="numba")
    identical([tail], [want[:, :, 400:]])
    identical([pyrnn.attention(q[1:, 2:], k[1:, 1:], v[1:, 1:], **config, backend="numba")], [want[1:, 2:]])


@pytest.mark.parametrize("batch", [1, 4])
def test_attention_does_not_depend_on_threads(batch: int) -> None:
    # One head of keys is shared out by splits and rows, several by heads.
    q, k, v = heads(3, "float32", batch, 2, 1, 300, 700, 40, 32)
    rng = np.random.default_rng(4)
    query, keys = drawn(rng, "float32", batch, 90, 30), drawn(rng, "float32", batch, 600, 24)
    weights = drawn(rng, "float32", 40, 30), drawn(rng, "float32", 40, 24), drawn(rng, "float32", 40)
    for op, arrays in (
        *(
            (pyrnn.attention, (q, k, v, drawn(rng, "float32", *s)))
            for s in ((300, 700), (1, 2, 1, 700), (batch, 1, 1, 1))
        ),
        (pyrnn.additive_attention, (query, keys, keys, *weights)),
        (pyrnn.multiplicative_attention, (query, keys, keys, drawn(rng, "float32", 30, 24))),
    ):
        results = []
        for threads in (1, 2, 3):
            with pyrnn.num_threads(threads):
                outputs, pullback = pyrnn.vjp(op, *arrays, backend="numba")
                results.append((*listed(outputs), *pullback(outputs)))
        identical(results[0], results[1])
        identical(results[0], results[2])


def test_attention_needs_no_memory_for_its_scores() -> None:
    q, k, v = heads(5, "float32", 1, 1, 1, 3000, 3000, 8, 8)
    pyrnn.vjp(pyrnn.attention, q[:, :, :2], k, v, backend="numba")[1](q[:, :, :2])
    tracemalloc.start()
    outputs, pullback = pyrnn.vjp(pyrnn.attention, q, k, v, backend="numba")
    pullback(outputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 4 / 10


@given(st.data())
def test_attention_with_weights_at_the_edges_of_tiles_and_splits(data) -> None:
    edge = st.sampled_from([1, 2, 5, 15, 16, 17, 33, 65])
    n, m, e, dv, a = (data.draw(edge) for _ in range(5))
    m += data.draw(st.sampled_from([0, 240, 256]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    config = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "lengths": st.just(rng.integers(0, m + 1, 2)),
                "mask": st.just(rng.random((2, n, m)) < 0.7) | st.just(rng.random((n, 1)) < 0.7),
            },
        )
    )
    query, keys, values = (drawn(rng, "float64", 2, t, f) for t, f in ((n, 7), (m, e), (m, dv)))
    hidden = drawn(rng, "float64", a, 7), drawn(rng, "float64", a, e), drawn(rng, "float64", a)
    if "lengths" in config:
        past = np.arange(m) >= config["lengths"][:, None]
        keys[past], values[past] = np.nan, np.inf
    agree(pyrnn.additive_attention, (query, keys, values, *hidden), config)
    agree(pyrnn.multiplicative_attention, (query, keys, values, drawn(rng, "float64", 7, e)), {**config, "scale": 0.3})


@given(st.data())
def test_convolution_at_the_edges_of_tiles(data) -> None:
    edge = st.sampled_from([1, 2, 3, 8, 9, 17, 33, 65])
    each, outputs = data.draw(edge), data.draw(edge)
    if data.draw(st.integers(0, 4)) == 0:
        each += 128  # more than a piece
    groups = data.draw(st.sampled_from([1, 1, 2, 5]))
    count, dilation = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    batch, time = data.draw(st.sampled_from([(1, 1), (2, 3), (9, 1), (9, 4), (2, 40), (1, 130)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = drawn(rng, "float64", batch, time, each * groups)
    w, b = drawn(rng, "float64", outputs * groups, each, count), drawn(rng, "float64", outputs * groups)
    left = drawn(rng, "float64", batch, (count - 1) * dilation, each * groups) if data.draw(st.booleans()) else None
    config = {"dilation": dilation, "groups": groups}
    if data.draw(st.booleans()):
        config["lengths"] = rng.integers(0, time + 1, batch)
        x[np.arange(time) >= config["lengths"][:, None]] = np.nan
    agree(pyrnn.causal_conv1d, (x, w, b if data.draw(st.booleans()) else None, left), config)


@pytest.mark.parametrize(("each", "outputs", "groups"), [(20, 70, 1), (200, 64, 1), (5, 3, 3), (1, 1, 40), (1, 2, 20)])
def test_convolution_in_chunks_alone_and_on_threads_is_the_same_to_the_bit(
    each: int, outputs: int, groups: int
) -> None:
    rng = np.random.default_rng(0)
    x, w = drawn(rng, "float32", 9, 200, each * groups), drawn(rng, "float32", outputs * groups, each, 3)
    config = {"dilation": 4, "groups": groups, "backend": "numba"}
    results = []
    for threads in (1, 2, 3):
        with pyrnn.num_threads(threads):
            result, pullback = pyrnn.vjp(pyrnn.causal_conv1d, x, w, **config)
            results.append((*result, *pullback(result)))
    identical(results[0], results[1])
    identical(results[0], results[2])
    left, pieces = None, []
    for first, last in ((0, 1), (1, 4), (4, 97), (97, 200)):
        y, left = pyrnn.causal_conv1d(x[:, first:last], w, None, left, **config)
        pieces.append(y)
    identical((np.concatenate(pieces, axis=1), left), result)
    identical(pyrnn.causal_conv1d(x[3:4], w, **config), (part[3:4] for part in result))


def test_it_is_listed_with_what_its_first_call_costs() -> None:
    (info,) = (info for info in pyrnn.backends() if info.name == "numba")
    assert "compile" in str(info)


def test_where_it_cannot_be_used_it_says_why() -> None:
    told = "import pyrnn; print(*pyrnn.backends(), sep='\\n')"
    assert "NUMBA_DISABLE_JIT is set" in python(told, NUMBA_DISABLE_JIT="1")
    assert "no fused multiply-add" in python(told, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert 'Numba is not installed; try: pip install "pyrnn[numba]"' in python(
        f"import sys; sys.modules['numba'] = None; {told}"
    )


@pytest.mark.skipif(not FEATURES.get("avx512f"), reason="this CPU's own vectors are tested by everything else")
def test_narrower_vectors_are_right_too() -> None:
    python(
        """
        import pyrnn
        report = pyrnn.testing.check_backend("numba", ["lstm"], properties=["value", "gradient"], max_examples=20)
        assert report.ok, report
        """,
        NUMBA_CPU_NAME="haswell",
        NUMBA_CPU_FEATURES="+avx,+avx2,+fma,+sse4.2,+bmi2",
    )
