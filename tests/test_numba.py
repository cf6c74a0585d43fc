"""What is particular to the numba plugin: its cache, its threads, a forked child, the accuracy of its activations."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from numba import njit
from pyrnn_numba import activations, backward, forward, walk
from pyrnn_numba.vector import FEATURES, VECTOR_BYTES, emitted

import pyrnn
from pyrnn.testing import Call, strategies

KERNELS = [
    value
    for module in (walk, forward, backward)
    for value in vars(module).values()
    if hasattr(value, "py_func") and "sources" in inspect.signature(value.py_func).parameters
]


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = """
        import numpy as np, pyrnn
        from pyrnn_numba import backward, forward, walk
        x = np.ones((9, 4, 3), "float32")
        weights = np.ones((8, 3), "float32"), np.ones((8, 8), "float32")
        outputs, pullback = pyrnn.vjp(pyrnn.rnn, x, *weights, backend="numba")
        pullback(outputs)
        pyrnn.rnn(x[:1, :1], *weights, backend="numba")
        kernels = {id(k): k for m in (walk, forward, backward) for k in vars(m).values() if hasattr(k, "stats")}
        stats = [k.stats for k in kernels.values()]
        print(sum(len(s.cache_hits) for s in stats), sum(len(s.cache_misses) for s in stats))
    """
    hits, misses = map(int, python(code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert hits == 0 and misses >= 9
    hits, misses = map(int, python(code, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert hits >= 9 and misses == 0


def test_a_change_in_any_file_is_another_signature() -> None:
    # Numba looks at the file of a kernel alone; the rest it is made of is in its default argument.
    assert len(KERNELS) == 10
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
