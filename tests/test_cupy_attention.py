"""Attention on the GPU, its kernels run thread by thread on the CPU: see tests/cuda."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
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
FAMILY = ("attention", "additive_attention", "multiplicative_attention")
TOLERANCE = {None: 1e-5, "tf32": 2e-2, "bfloat16": 1e-1}  # of gradients of some size


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    with fake_cupy.installed(attributes={"MultiProcessorCount": 2}):
        from pyrnn_cupy import CupyBackend

        yield CupyBackend()


class Case:
    """A call of attention with arrays drawn, run on a backend and on the reference in float64."""

    def __init__(self, sizes: tuple[int, ...], dtype: str = "float32", bias: Any = None, **config: Any) -> None:
        B, Hq, Hkv, N, M, D, Dv = sizes
        rng = np.random.default_rng(0)
        shapes: list[Any] = [(B, Hq, N, D), (B, Hkv, M, D), (B, Hkv, M, Dv), bias]
        self.arrays = [None if shape is None else rng.standard_normal(shape).astype(dtype) for shape in shapes]
        self.dy = rng.standard_normal((B, Hq, N, Dv)).astype(dtype)
        self.config = config

    def reference(self) -> list[Any]:
        arrays = [None if array is None else array.astype(np.float64) for array in self.arrays]
        y, pullback = pyrnn.vjp(pyrnn.attention, *arrays, **self.config, backend="reference")
        return [y, *pullback([self.dy.astype(np.float64)])]

    def on(
        self, backend: Any, compute: str | None = None, view: Callable[[Any], Any] = lambda array: array
    ) -> list[Any]:
        arrays = [None if array is None else view(backend.xp.asarray(array)) for array in self.arrays]
        with pyrnn.use_backend(backend, compute=compute):
            y, pullback = pyrnn.vjp(pyrnn.attention, *arrays, **self.config)
        return [
            array if array is None else array.get() for array in (y, *pullback([view(backend.xp.asarray(self.dy))]))
        ]

    def check(self, backend: Any, compute: str | None = None, **options: Any) -> None:
        for got, want in zip(self.on(backend, compute, **options), self.reference(), strict=True):
            if want is not None:
                np.testing.assert_allclose(
                    got, want, rtol=0, atol=TOLERANCE[compute] * max(1.0, np.abs(want).max(initial=0))
                )


@pytest.mark.parametrize("op", FAMILY)
def test_the_properties_hold(backend: Any, op: str) -> None:
    # The other two run attention's kernels: of them, what their own part of the way could have wrong.
    properties = None if op == "attention" else ["value", "gradient", "layouts", "empty", "nan", "inference", "weights"]
    report = check_backend(backend, ops=[op], properties=properties, max_examples=2, progress=False)
    assert report.ok, report


EVERYTHING = {"window": (9, 3), "lengths": [80], "q_lengths": [60], "dropout": 0.3, "seed": 5}


@pytest.mark.parametrize("compute", [None, "tf32", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "config"),
    [
        ((1, 4, 2, 70, 90, 40, 20), {"bias": (4, 70, 90), **EVERYTHING}),
        ((1, 2, 1, 40, 70, 70, 130), {"causal": True}),
        ((1, 2, 1, 5, 70, 20, 30), {"bias": (2, 1, 70), "dropout": 0.5, "seed": 2**64 - 1}),
    ],
)
def test_precisions(backend: Any, compute: str | None, sizes: tuple[int, ...], config: dict[str, Any]) -> None:
    Case(sizes, **config).check(backend, compute)


@pytest.mark.parametrize("compute", ["tf32", "bfloat16"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 4, 40, 16, 8), (1, 1, 1, 40, 4, 16, 8), (1, 3, 1, 4, 40, 16, 8), (1, 1, 1, 20, 20, 400, 400)]
)
def test_the_backward_has_the_forwards_weights(backend: Any, compute: str, sizes: tuple[int, ...]) -> None:
    """Those of a query add up to 1, however large the scores are that they are computed from again."""
    case = Case(sizes, bias=(1, 1, 1, sizes[4]))
    case.arrays[0] *= 1000
    case.arrays[3] *= 0
    case.dy = np.ones_like(case.dy)
    *_, dv, dbias = case.on(backend, compute)
    np.testing.assert_allclose(dv.sum(axis=(1, 2)), case.dy[0, :, :, 0].size, rtol=1e-2)
    assert abs(dbias.sum()) < 1e-2


@pytest.mark.parametrize("bias", [shape for shape in itertools.product((1, 2), (1, 4), (1, 70), (1, 90))])
def test_the_gradient_of_a_bias_is_summed(backend: Any, bias: tuple[int, ...]) -> None:
    Case((2, 4, 2, 70, 90, 4, 4), bias=bias, lengths=[90, 30]).check(backend)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("features", [(300, 280), (1100, 3), (2, 600)])
def test_features_of_any_number(backend: Any, dtype: str, features: tuple[int, int]) -> None:
    Case((1, 1, 1, 20, 30, *features), dtype).check(backend)


@pytest.mark.parametrize("config", [{}, {"lengths": [0, 690]}, {"window": (300, 0)}])
def test_keys_are_split_where_there_are_few_queries(backend: Any, config: dict[str, Any]) -> None:
    Case((2, 2, 1, 1, 700, 20, 30), **config).check(backend)  # a block for each sequence, on two multiprocessors


def test_additive_attention_of_other_numbers_of_queries_than_of_keys(backend: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((3, 3, 4), (3, 5, 4), (3, 5, 6), (7, 4), (7, 4), (7,))]
    arrays[1][0, 4] = arrays[2][0, 4] = np.nan  # past the valid keys
    cotangents = [rng.standard_normal(shape) for shape in ((3, 3, 6), (3, 3, 5))]
    found = []
    for chosen, place in (("reference", np.asarray), (backend, backend.xp.asarray)):
        options = {"lengths": [4, 5, 0], "backend": chosen}
        outputs, pullback = pyrnn.vjp(pyrnn.additive_attention, *map(place, arrays), **options)
        grads = pullback([place(cotangent) for cotangent in cotangents])
        found.append([pyrnn.testing.subject.to_host(array) for array in (*outputs, *grads) if array is not None])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_views_are_read_as_they_lie(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that were split from features are a view, and what is computed of them lies as they do."""
    case = Case((2, 4, 4, 10, 20, 8, 12))
    copies = []
    contiguous = backend.xp.ascontiguousarray

    def counted(array: Any) -> Any:
        copies.append(array)
        return contiguous(array)

    monkeypatch.setattr(backend.xp, "ascontiguousarray", counted)

    def by_heads(array: Any) -> Any:
        return contiguous(array.swapaxes(1, 2)).swapaxes(1, 2)

    case.check(backend, view=by_heads)
    assert not copies
    y = pyrnn.attention(*(by_heads(backend.xp.asarray(array)) for array in case.arrays[:3]), backend=backend)
    assert y.swapaxes(1, 2).flags.c_contiguous
    case.check(backend, view=lambda array: contiguous(array.swapaxes(2, 3)).swapaxes(2, 3))
    assert copies


def test_arrays_may_share_memory(backend: Any) -> None:
    case = Case((1, 2, 2, 40, 40, 20, 20))
    case.arrays[:3] = [case.arrays[0]] * 3
    x = backend.xp.asarray(case.arrays[0])
    for v in (x, x[..., :12]):
        case.arrays[2], case.dy = v.get(), case.dy[..., : v.shape[-1]]
        y, pullback = pyrnn.vjp(pyrnn.attention, x, x, v, backend=backend)
        got = [y, *pullback([backend.xp.asarray(case.dy)])[:3]]
        for array, want in zip(got, case.reference(), strict=False):
            np.testing.assert_allclose(array.get(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compute", [None, "tf32", "bfloat16"])
def test_what_some_do_not_see_may_be_nan(backend: Any, compute: str | None) -> None:
    case = Case((1, 2, 1, 40, 40, 8, 8), causal=True)
    want = case.on(backend, compute)
    for array in case.arrays[1:3]:
        array[..., 30, :] = np.nan
    y, dq, dk, dv = case.on(backend, compute)[:4]
    for got, before in ((y, want[0]), (dq, want[1])):
        np.testing.assert_allclose(got[:, :, :30], before[:, :, :30], rtol=0, atol=1e-5)
        assert np.isnan(got[:, :, 30:]).all()
    assert np.isnan(dk[..., :31, :]).all() and np.isnan(dv[..., :31, :]).all()  # seen by what sees it


def test_a_score_of_minus_infinity_is_seen(backend: Any) -> None:
    """Its weight is 0, and that times infinity is NaN."""
    case = Case((1, 1, 1, 6, 5, 4, 3))
    case.arrays[0] = abs(case.arrays[0])
    case.arrays[1][..., 2, 0] = -np.inf
    with np.errstate(invalid="ignore"):
        want = case.reference()
    for got, wanted in zip(case.on(backend)[:4], want, strict=False):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    assert np.isnan(want[1][..., 0]).all()


@pytest.mark.parametrize("compute", [None, "tf32", "bfloat16"])
def test_padding_may_be_the_largest_number(backend: Any, compute: str | None) -> None:
    """Rounded, it is infinite."""
    case = Case((1, 2, 1, 40, 40, 8, 8), lengths=[30], q_lengths=[20])
    want = case.on(backend, compute)
    for array in (case.arrays[0][:, :, 20:], case.dy[:, :, 20:], case.arrays[1][:, :, 30:], case.arrays[2][:, :, 30:]):
        array[...] = np.finfo(np.float32).max
    for got, before in zip(case.on(backend, compute)[:4], want, strict=False):
        np.testing.assert_allclose(got, before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("op", FAMILY)
def test_no_copy_between_host_and_device(backend: Any, op: str) -> None:
    rng = np.random.default_rng(0)
    if op == "attention":
        shapes = [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6)]
    else:
        shapes = [
            (2, 3, 4),
            (2, 5, 4),
            (2, 5, 6),
            *([(7, 4), (7, 4), (7,)] if op == "additive_attention" else [(4, 4)]),
        ]
    arrays = [backend.xp.asarray(rng.standard_normal(shape)) for shape in shapes]
    for config, copies in (({}, 0), ({"lengths": [3, 2]}, 1)):
        fake_cupy.transfers.reset()
        outputs, pullback = pyrnn.vjp(getattr(pyrnn, op), *arrays, **config, backend=backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pullback([backend.xp.ones_like(output) for output in outputs])
        assert (fake_cupy.transfers.to_device, fake_cupy.transfers.to_host) == (copies, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_threads_changes_no_bit(backend: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (Case((1, 4, 2, 70, 90, 40, 20), bias=(4, 70, 90), **EVERYTHING), compute)
        for compute in (None, "tf32", "bfloat16")
    ]
    cases.append((Case((1, 1, 1, 2, 600, 4, 4), bias=(1,)), None))
    cases.append((Case((1, 1, 1, 70, 90, 0, 4), bias=(70, 90)), None))  # without products of queries and keys
    want = [case.on(backend, compute) for case, compute in cases]
    monkeypatch.setattr(fake_cupy.settings, "seed", seed)
    for (case, compute), before in zip(cases, want, strict=True):
        for got, first in zip(case.on(backend, compute), before, strict=True):
            np.testing.assert_array_equal(got, first)


def test_plans_keep_to_what_a_device_has(backend: Any) -> None:
    from pyrnn_cupy.attention import COSTS, STATIC, plan
    from pyrnn_cupy.devices import Device

    for shared, size, rows, compute in itertools.product(
        (99 << 10, 163 << 10, 227 << 10), (4, 8), (1, 20, 4096), COSTS
    ):
        device = Device(132, shared, 50 << 20, 90)
        for features in (0, 1, 16, 17, 64, 65, 128, 256, *((512, 1024) if shared > 200 << 10 else ())):
            for own, out in (((features,), (features,)), ((features, features), ())):
                if compute != "EXACT" and size == 8:
                    continue
                found = plan(device, size, compute, 1, rows, own, out)
                assert found is not None or compute != "EXACT"
                assert found is None or found.shared <= shared - STATIC


def test_what_a_kernel_is_allowed_does_not_shrink(backend: Any) -> None:
    """Another thread may make a call of other sizes between a kernel's permission and its launch."""

    def allowed(features: int) -> dict[int, int]:
        Case((1, 2, 2, 20, 20, features, 8)).on(backend)
        found = {key: kernel for key, kernel in fake_cupy._kernels.items() if kernel.name.startswith("attention")}
        return {key: kernel.max_dynamic_shared_size_bytes for key, kernel in found.items()}

    before, after = allowed(150), allowed(100)
    assert {key: after[key] for key in before} == before


def test_more_features_than_there_is_room_for(backend: Any) -> None:
    q = backend.xp.zeros((1, 1, 2, 50_000), np.float32)
    with pytest.raises(ValueError, match="q, v: 50000 and 50000 features find no room on this GPU"):
        pyrnn.attention(q, q, q, backend=backend)
