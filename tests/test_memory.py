"""The memory of large arrays: kept for the next ones, never shared by two that are in use."""

from __future__ import annotations

import gc
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyrnn._core.memory import cached_bytes, empty

import pyrnn

LARGE = 1 << 18  # bytes from which memory is kept


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    gc.collect()
    pyrnn.empty_cache()


def test_memory_is_used_again() -> None:
    array = empty((LARGE,), "float32")
    where = array.ctypes.data
    assert where % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
    del array
    assert cached_bytes() >= 4 * LARGE
    assert empty((LARGE,), "float32").ctypes.data == where
    pyrnn.empty_cache()
    assert cached_bytes() == 0


def test_a_view_keeps_the_memory() -> None:
    array = empty((4, LARGE), "float32")
    array[...] = 1
    view = array[2, 10:20].T
    del array
    other = empty((4, LARGE), "float32")
    other[...] = 2
    assert cached_bytes() == 0 and (view == 1).all()


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=30))
def test_no_two_arrays_in_use_overlap(asked: list[tuple[int, bool]]) -> None:
    live: list[tuple[np.ndarray, int]] = []
    for number, (size, drop) in enumerate(asked):
        array = empty((size * LARGE // 8 + number, 2), "float32")
        array[...] = number
        live.append((array, number))
        del array
        if drop:
            live.pop(len(live) // 2)
        for kept, value in live:
            assert kept[0, 0] == value and kept[-1, -1] == value


def test_small_and_empty_arrays_are_numpys_own() -> None:
    for shape in ((), (0,), (3, 0, 5), (7, 11)):
        array = empty(shape, "float64")
        assert array.shape == shape and array.dtype == np.float64
        del array
    assert cached_bytes() == 0


def test_any_number_of_dimensions() -> None:
    for count in range(20):
        array = empty((1,) * count, "float32")
        assert array.shape == (1,) * count
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    indices = np.array([3, 1]).reshape(2, *(1,) * 15)
    np.testing.assert_array_equal(pyrnn.embedding(table, indices=indices), table[indices])


def test_results_are_arrays_like_any_other() -> None:
    x = np.ones((64, 50, 32), np.float32)
    y = pyrnn.nn.LSTM(32, 64, rng=0).predict(x)[0]
    assert y.nbytes > LARGE
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(y)), y)
    y += 1  # writable, and its own
    assert y.copy().flags.owndata


def test_from_several_threads() -> None:
    layer = pyrnn.nn.GRU(16, 64, rng=0)
    x = np.random.default_rng(0).standard_normal((64, 40, 16)).astype(np.float32)
    want, wrong = layer.predict(x)[0].copy(), []

    def work() -> None:
        for _ in range(10):
            if not np.array_equal(layer.predict(x)[0], want):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
