"""Convolution on the GPU, its kernels run thread by thread on the CPU: see tests/cuda."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn
from pyrnn.testing import check_backend

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import emulator
import fake_cupy

pytestmark = pytest.mark.skipif(bool(emulator.unavailable()), reason=emulator.unavailable())


@pytest.fixture(scope="module")
def cupy() -> Iterator[Any]:
    with fake_cupy.installed() as module:
        yield module


@pytest.fixture
def backend(cupy: Any) -> Any:
    from pyrnn_cupy import CupyBackend

    return CupyBackend()


@pytest.fixture(params=["kernels", "products"])
def way(request: pytest.FixtureRequest, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have small calls run by kernels, as they would, or tap by tap as large ones do."""
    from pyrnn_cupy import conv

    if request.param == "products":
        monkeypatch.setattr(conv, "PRODUCT_CHANNELS", 1)
        monkeypatch.setattr(conv, "PRODUCT_STEPS", 1)
    return str(request.param)


def test_kit(backend: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cupy.settings, "seed", 1)  # of the order in which threads run
    report = check_backend(backend, ops=["causal_conv1d"], max_examples=8, progress=False)
    assert report.ok, str(report)


# Batch, steps, inputs, outputs, taps, dilation, groups: one side or the other of each choice that is made by size.
SHAPES = [
    (3, 20, 4, 4, 4, 3, 4),  # depthwise
    (2, 9, 6, 12, 2, 20, 6),  # with two outputs an input, the dilation longer than the sequence
    (1, 40, 33, 33, 19, 1, 33),  # more taps and channels than a block has
    (2, 9, 2, 12, 3, 1, 2),  # too many outputs for the depthwise kernels
    (1, 5, 2, 2, 11, 3, 2),
    (2, 33, 8, 12, 3, 1, 2),
    (2, 40, 20, 70, 3, 4, 1),  # more outputs than a tile has
    (1, 300, 33, 9, 2, 1, 1),  # rows in tiles of both heights
    (3, 70, 50, 64, 2, 3, 1),  # products
    (2, 66, 96, 96, 2, 2, 2),  # products by groups
    (1, 1, 4, 4, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(cupy: Any, backend: Any, shape: tuple[int, ...], dtype: str) -> None:
    B, T, inputs, outputs, K, dilation, groups = shape
    rng = np.random.default_rng(0)
    sizes = [(B, T, inputs), (outputs, inputs // groups, K), (outputs,), (B, (K - 1) * dilation, inputs)]
    arrays = [rng.standard_normal(size).astype(dtype) for size in sizes]
    lengths = rng.integers(0, T + 1, B)
    for row, length in enumerate(lengths):
        arrays[0][row, length:] = np.nan
    options = {"dilation": dilation, "groups": groups, "lengths": lengths}
    want, pull_want = pyrnn.vjp(pyrnn.causal_conv1d, *arrays, **options, backend="reference")
    got, pull_got = pyrnn.vjp(pyrnn.causal_conv1d, *map(cupy.asarray, arrays), **options, backend=backend)
    grads = [rng.standard_normal(array.shape).astype(dtype) for array in want]
    close = {"rtol": 1e-3 if dtype == "float32" else 1e-10, "atol": 1e-3 if dtype == "float32" else 1e-10}
    found = (*got, *pull_got(list(map(cupy.asarray, grads))))
    for array, wanted in zip(found, (*want, *pull_want(grads)), strict=True):
        np.testing.assert_allclose(array.get(), wanted, **close)
        assert array.dtype == dtype


def test_transposed_and_strided(cupy: Any, backend: Any, way: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 3, 2)).astype("float32")
    x = rng.standard_normal((2, 12, 3)).astype("float32")
    want = pyrnn.causal_conv1d(x, w, backend="reference").y
    twice, turned = cupy.asarray(x.repeat(2, axis=1))[:, ::2], cupy.asarray(np.ascontiguousarray(x.swapaxes(1, 2)))
    for view in (twice, turned.swapaxes(1, 2), cupy.asarray(x[::-1])[::-1]):
        np.testing.assert_allclose(
            pyrnn.causal_conv1d(view, cupy.asarray(w), backend=backend).y.get(), want, rtol=1e-5, atol=1e-5
        )


def test_lower_precision_only_where_asked_for(cupy: Any, backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = (cupy.asarray(rng.standard_normal(size).astype("float32")) for size in ((1, 64, 64), (64, 64, 2)))
    exact = pyrnn.causal_conv1d(x, w, backend=backend).y.get()
    want = pyrnn.causal_conv1d(x.get().astype(float), w.get().astype(float), backend="reference").y
    assert abs(exact - want).max() < 1e-4
    for compute, least, most in (("tf32", 1e-4, 0.1), ("bfloat16", 1e-3, 1.0)):
        with pyrnn.use_backend(backend, compute=compute):
            off = abs(pyrnn.causal_conv1d(x, w).y.get() - want).max()
        assert least < off < most


@pytest.mark.parametrize("lengths", [None, [5, 0]])
def test_nothing_crosses_but_lengths(cupy: Any, backend: Any, way: str, lengths: Any) -> None:
    x, w, b = (cupy.ones(size, "float32") for size in ((2, 7, 3), (4, 3, 2), (4,)))
    fake_cupy.transfers.reset()
    outputs, pullback = pyrnn.vjp(pyrnn.causal_conv1d, x, w, b, lengths=lengths, backend=backend)
    pullback([outputs.y, outputs.left_n])
    assert fake_cupy.transfers.to_host == 0
    assert fake_cupy.transfers.to_device == (lengths is not None)


def test_a_weight_gradient_has_the_same_bits_again(cupy: Any, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for channels, groups in ((40, 40), (9, 1)):
        sizes = ((3, 150, channels), (channels, channels // groups, 3))
        x, w = (cupy.asarray(rng.standard_normal(size).astype("float32")) for size in sizes)
        found = []
        for seed in (0, 5):
            monkeypatch.setattr(fake_cupy.settings, "seed", seed)
            outputs, pullback = pyrnn.vjp(pyrnn.causal_conv1d, x, w, groups=groups, backend=backend)
            found.append(pullback([outputs.y, None]).w.get())
        assert np.array_equal(*found)
