"""Good company: threads, forks, limits set by others, interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyrnn._core.runtime import has_openmp
from threadpoolctl import threadpool_limits

import pyrnn
from pyrnn import threads


def layer(B: int = 16, T: int = 20, H: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(B, T, H), (4 * H, H), (4 * H, H), (4 * H,)]
    return [(rng.standard_normal(shape) / 8).astype(np.float32) for shape in shapes]


def test_settings_and_their_order() -> None:
    machine = pyrnn.get_num_threads()
    assert machine == threads.machine_threads() >= 1
    try:
        pyrnn.set_num_threads(3)
        assert pyrnn.get_num_threads() == 3
        with pyrnn.num_threads(2):
            assert pyrnn.get_num_threads() == 2
            other = []
            thread = threading.Thread(target=lambda: other.append(pyrnn.get_num_threads()))
            thread.start()
            thread.join()
            assert other == [3], "the with block holds in its own thread"
        assert pyrnn.get_num_threads() == 3
    finally:
        pyrnn.set_num_threads(None)
    assert pyrnn.get_num_threads() == machine


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n: expected at least 1 thread, got 0"),
        (2**40, ValueError, "n: expected at most 4096 threads, got 1099511627776"),
        (1.5, TypeError, "n: expected a whole number of threads, got 1.5"),
    ],
)
def test_a_wrong_number_of_threads(n: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyrnn.set_num_threads(n)


def test_the_quota_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpu.max"
    for text, expected in (("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("nonsense", None)):
        file.write_text(text)
        assert threads._cpu_quota(str(file)) == expected
    assert threads._cpu_quota(str(tmp_path / "none")) is None
    monkeypatch.setattr(threads, "CPU_QUOTA", 1)
    assert pyrnn.get_num_threads() == 1
    with pyrnn.num_threads(2):
        assert pyrnn.get_num_threads() == 2, "what is asked for comes before the quota"


@pytest.mark.parametrize("loaded", ["", "pyrnn.get_backend('cython'); "])
def test_the_environment_is_honoured(loaded: str) -> None:
    code = f"import pyrnn; {loaded}print(pyrnn.get_num_threads())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "1"


@pytest.mark.skipif(not has_openmp(), reason="a serial build has no OpenMP pool to limit")
def test_threadpoolctl_reaches_the_kernels() -> None:
    pyrnn.lstm(*layer())
    with threadpool_limits(1):
        assert pyrnn.get_num_threads() == 1
    with threadpool_limits(3):
        assert pyrnn.get_num_threads() == min(3, threads.CPU_QUOTA or 3)


def test_many_threads_call_at_once() -> None:
    arrays = layer()
    expected = pyrnn.lstm(*arrays)
    cotangents = [np.ones_like(part) for part in expected]
    _, pullback = pyrnn.vjp(pyrnn.lstm, *arrays)
    grads = pullback(cotangents)

    def call(_: int) -> bool:
        outputs, back = pyrnn.vjp(pyrnn.lstm, *arrays)
        mine = [*outputs, *(g for g in back(cotangents) if g is not None)]
        theirs = [*expected, *(g for g in grads if g is not None)]
        return all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(64)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_works() -> None:
    arrays = layer()
    expected = pyrnn.lstm(*arrays).y  # the parent's OpenMP pool exists by now
    child = os.fork()
    if child == 0:
        ok = np.array_equal(pyrnn.lstm(*arrays).y, expected) and pyrnn.get_num_threads() == 1
        os._exit(0 if ok else 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


def test_more_threads_than_cores() -> None:
    arrays = layer()
    with pyrnn.num_threads(1):
        expected = pyrnn.lstm(*arrays).y
    with pyrnn.num_threads(4 * (os.cpu_count() or 1)):
        assert np.array_equal(pyrnn.lstm(*arrays).y, expected)


# Far more work than can be done in the time allowed: only an answered interrupt ends it.
ENDLESS = {
    "lstm": "pyrnn.lstm(np.broadcast_to(np.ones(256, 'f4'), (1, 3_000_000, 256)), *np.ones((2, 1024, 256), 'f4'))",
    "attention": "pyrnn.attention(*[np.broadcast_to(np.ones(64, 'f4'), (100, 8, 8000, 64))] * 3)",
}


@pytest.mark.parametrize("op", ENDLESS)
def test_an_interrupt_is_answered_inside_a_call(op: str) -> None:
    # In a process of its own: a library that other tests load may leave signals with a stack that is gone.
    code = f"""
import os, signal, threading
import numpy as np
import pyrnn
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
pyrnn.get_backend("cython")
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {ENDLESS[op]}
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "interrupted", result.stderr


def test_denormals_count_as_zero_inside_and_are_back_outside() -> None:
    one = np.ones((1, 1), np.float32)
    x = np.array([[[1e-40], [2e-38]]], np.float32)  # a denormal, and a small number that is none
    y, _ = pyrnn.rnn(x, one, 0 * one, activation="relu")
    assert y[0, 0, 0] == 0 and y[0, 1, 0] == x[0, 1, 0]
    assert (np.array([1e-310]) / 2 > 0).all(), "flush-to-zero ends with the call"
