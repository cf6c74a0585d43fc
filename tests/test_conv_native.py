"""The native convolution: what its kernel promises to the bit, and its packed and step-by-step forms."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cases import LAYOUTS, laid_out
from hypothesis import given
from hypothesis import strategies as st

import pyrnn
from pyrnn.ops.conv import CAUSAL_CONV1D

CYTHON: Any = pyrnn.get_backend("cython")


@dataclass
class Call:
    """A call of causal_conv1d; ``rng`` is for whatever else the test draws."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray | None
    left: np.ndarray | None
    dilation: int
    groups: int
    rng: np.random.Generator

    @property
    def span(self) -> int:
        return (self.w.shape[2] - 1) * self.dilation

    def run(self, **changes: Any) -> Any:
        arrays = {"x": self.x, "w": self.w, "b": self.b, "left": self.left, **changes}
        options = {"dilation": self.dilation, "groups": self.groups, "lengths": arrays.pop("lengths", None)}
        return pyrnn.causal_conv1d(**arrays, **options, backend="cython")

    def gradients(self, dy: np.ndarray | None, dleft_n: np.ndarray | None, **changes: Any) -> Any:
        arrays = {"x": self.x, "w": self.w, "b": self.b, "left": self.left, **changes}
        options = {"dilation": self.dilation, "groups": self.groups, "lengths": arrays.pop("lengths", None)}
        _, pullback = pyrnn.vjp(pyrnn.causal_conv1d, **arrays, **options, backend="cython")
        return pullback((dy, dleft_n))

    def pack(self) -> Any:
        config = CAUSAL_CONV1D.Config(dilation=self.dilation, groups=self.groups, lengths=None)
        return CYTHON.causal_conv1d_pack(CAUSAL_CONV1D.Arrays(None, self.w, self.b, None), config)

    def context(self) -> np.ndarray:
        if self.left is not None:
            return self.left
        return np.zeros((len(self.x), self.span, self.x.shape[2]), self.x.dtype)

    def like(self, array: np.ndarray) -> np.ndarray:
        return self.rng.standard_normal(array.shape).astype(array.dtype)

    def __repr__(self) -> str:  # what Hypothesis prints of a failing example
        shapes = {name: getattr(getattr(self, name), "shape", None) for name in ("x", "w", "b", "left")}
        return f"Call({shapes}, {self.x.dtype}, dilation={self.dilation}, groups={self.groups})"


@st.composite
def calls(draw: Any) -> Call:
    # Around the widths of vectors and panels, the heights of tiles and the blocks of rows; depthwise one time in three.
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 31, 48, 64, 80, 131])
    inputs, outputs = draw(channels), draw(channels)
    if draw(st.integers(0, 2)) == 0:
        groups, inputs, outputs = draw(channels), 1, 1
    taps, dilation = draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 3, 8, 40]))
    batch, time = draw(st.sampled_from([(1, 1), (1, 7), (2, 5), (3, 50), (9, 1), (1, 300), (4, 83)]))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def make(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    b = make(groups * outputs) if draw(st.booleans()) else None
    left = make(batch, (taps - 1) * dilation, groups * inputs) if draw(st.booleans()) else None
    x, w = make(batch, time, groups * inputs), make(groups * outputs, inputs, taps)
    return Call(x, w, b, left, dilation, groups, rng)


def same(got: Any, want: Any) -> None:
    """Compare to the bit, the signs of zeros too."""
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if one is not None and one.tobytes() != other.tobytes():
            np.testing.assert_array_equal(one, other)
            raise AssertionError("a zero has another sign, or the dtype is another")


@given(calls())
def test_each_output_is_one_chain(call: Call) -> None:
    # One sequence alone, and one step with its context, give what the whole batch gives.
    whole, left_n = call.run()
    row = int(call.rng.integers(len(call.x)))
    alone = call.run(x=call.x[row : row + 1], left=None if call.left is None else call.left[row : row + 1])
    same(alone, (whole[row : row + 1], left_n[row : row + 1]))
    same(call.run(left=call.context()), (whole, left_n))
    t = int(call.rng.integers(call.x.shape[1]))
    everything = np.concatenate([call.context(), call.x], axis=1)
    step = call.run(x=call.x[:, t : t + 1], left=everything[:, t : t + call.span])
    same(step, (whole[:, t : t + 1], everything[:, t + 1 : t + 1 + call.span]))


@given(calls(), st.integers(1, 40))
def test_chunks_give_the_whole(call: Call, chunk: int) -> None:
    whole = call.run()
    left, parts = call.left, []
    for t in range(0, call.x.shape[1], chunk):
        y, left = call.run(x=call.x[:, t : t + chunk], left=left)
        parts.append(y)
    same((np.concatenate(parts, axis=1), left), whole)


@given(calls(), st.integers(2, 5))
def test_the_number_of_threads_changes_nothing(call: Call, threads: int) -> None:
    lengths = call.rng.integers(0, call.x.shape[1] + 1, len(call.x))
    results = []
    y, left_n = call.run()
    dy, dleft_n = call.like(y), call.like(left_n)
    for number in (1, threads):
        with pyrnn.num_threads(number):
            results.append((*call.run(lengths=lengths), *call.gradients(dy, dleft_n, lengths=lengths)))
    same(*results)


@pytest.mark.parametrize("shape", [(2, 300, 96, 96, 3, 8, 1), (1, 4, 512, 512, 3, 1, 1), (4, 500, 256, 256, 5, 2, 256)])
def test_large_calls_on_several_threads(shape: tuple[int, ...]) -> None:
    batch, time, inputs, outputs, taps, dilation, groups = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, time, inputs)).astype(np.float32)
    w = rng.standard_normal((outputs, inputs // groups, taps)).astype(np.float32)
    call = Call(x, w, None, None, dilation, groups, rng)
    dy = rng.standard_normal((batch, time, outputs)).astype(np.float32)
    results = []
    for number in (1, 2, 3):
        with pyrnn.num_threads(number):
            results.append((*call.run(), *call.gradients(dy, None)))
    same(results[1], results[0])
    same(results[2], results[0])


@given(calls())
def test_packed_weights_give_the_same(call: Call) -> None:
    packed = call.pack()
    before = call.w.copy()
    call.w[...] = np.nan  # a packed object has its own
    got = CYTHON.causal_conv1d_run(packed, call.x, None if call.left is None else (call.left,))
    call.w[...] = before
    lengths = call.rng.integers(0, call.x.shape[1] + 1, len(call.x))
    same((got[0], *got[1]), call.run())
    # In place: the state that goes in is the one that comes out, and y has gaps between its rows.
    state = (call.context().copy(),)
    wide = np.full((*call.x.shape[:2], 2 * call.w.shape[0]), 7, call.x.dtype)
    y = wide[..., : call.w.shape[0]]
    out = CYTHON.causal_conv1d_run(packed, call.x, state, lengths=lengths, out=(y, state))
    assert out[0] is y and out[1][0] is state[0]
    same((y, *state), call.run(lengths=lengths))
    assert (wide[..., call.w.shape[0] :] == 7).all()


@given(calls())
def test_a_stepper_gives_what_the_whole_gives(call: Call) -> None:
    whole, left_n = call.run()
    state = (call.context().copy(),)
    step = call.pack().stepper(state)
    for t in range(call.x.shape[1]):
        out = np.empty_like(whole[:, t]) if t % 2 else None
        y = step(call.x[:, t], out)
        assert out is None or y is out
        same((y,), (whole[:, t],))
        if t == call.x.shape[1] // 2:
            so_far = np.concatenate([call.context(), call.x], axis=1)[:, t + 1 : t + 1 + call.span]
            same(step.state(), (so_far,))
    same(step.state(), (left_n,))
    assert step.state()[0] is state[0]


@given(calls(), st.sampled_from(LAYOUTS))
def test_any_layout_gives_the_same_bits(call: Call, layout: str) -> None:
    other = {
        name: laid_out(array, layout)
        for name in ("x", "w", "b", "left")
        if (array := getattr(call, name)) is not None and array.size
    }
    outputs = call.run()
    same(call.run(**other), outputs)
    dy, dleft_n = (call.like(output) for output in outputs)
    want = call.gradients(dy, dleft_n)
    same(call.gradients(laid_out(dy, layout), laid_out(dleft_n, layout) if dleft_n.size else dleft_n, **other), want)


@given(calls())
def test_pads_reach_nothing(call: Call) -> None:
    lengths = call.rng.integers(0, call.x.shape[1] + 1, len(call.x))
    pads = np.arange(call.x.shape[1]) >= lengths[:, None]
    outputs = call.run(lengths=lengths)
    dy, dleft_n = (call.like(output) for output in outputs)
    grads = call.gradients(dy, dleft_n, lengths=lengths)
    x, dy_nan = call.x.copy(), dy.copy()
    x[pads] = np.nan
    dy_nan[pads] = np.nan
    same(call.run(x=x, lengths=lengths), outputs)
    same(call.gradients(dy_nan, dleft_n, x=x, lengths=lengths), grads)
    assert not outputs[0][pads].any() and not grads.x[pads].any()


@given(calls())
def test_gradients_of_one_output_alone(call: Call) -> None:
    outputs = call.run()
    dy, dleft_n = (call.like(output) for output in outputs)
    for alone, full in (
        ((dy, None), (dy, np.zeros_like(dleft_n))),
        ((None, dleft_n), (np.zeros_like(dy), dleft_n)),
    ):
        for got, want in zip(call.gradients(*alone), call.gradients(*full), strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (2, 0, 3, 2), (2, 4, 0, 2), (2, 4, 3, 0)])
@pytest.mark.parametrize("taps", [1, 3])
def test_empty_arrays(shape: tuple[int, ...], taps: int) -> None:
    batch, time, inputs, outputs = shape
    rng = np.random.default_rng(0)
    shapes = ((batch, time, inputs), (outputs, inputs, taps), (outputs,), (batch, (taps - 1) * 2, inputs))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    results = []
    for backend in ("cython", "reference"):
        outs, pullback = pyrnn.vjp(pyrnn.causal_conv1d, *arrays, dilation=2, backend=backend)
        results.append((*outs, *pullback([np.ones_like(out) for out in outs])))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_what_a_packed_convolution_refuses() -> None:
    rng = np.random.default_rng(0)
    call = Call(rng.standard_normal((2, 5, 4)), rng.standard_normal((3, 4, 2)), None, None, 3, 1, rng)
    packed = call.pack()
    with pytest.raises(TypeError, match="packed weights are made for this machine's CPU"):
        pickle.dumps(packed)
    with pytest.raises(ValueError, match="x: expected 4 channels of the weights' dtype, got 5 of float64"):
        CYTHON.causal_conv1d_run(packed, np.zeros((2, 5, 5)))
    wrong = r"state: expected left of shape \(B, 3, 4\) of the weights' dtype, got \(2, 2, 4\) of float64"
    with pytest.raises(ValueError, match=wrong):
        packed.stepper((np.zeros((2, 2, 4)),))
    step = packed.stepper((np.zeros((2, 3, 4)),))
    with pytest.raises(ValueError, match=r"x_t: expected float64 of shape \(batch, features\) = \(2, 4\)"):
        step(np.zeros((2, 5)), None)
    with pytest.raises(ValueError, match=r"out: expected float64 of shape \(batch, features\) = \(2, 3\)"):
        step(np.zeros((2, 4)), np.zeros((2, 4)))
