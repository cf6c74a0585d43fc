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
from pyrnn.backend import Stage
from pyrnn.ops.conv import CAUSAL_CONV1D
from pyrnn.reference.conv import ChainOps

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


@dataclass
class Links:
    """A chain, each stage in the form (convolution or None, its context, what is added, then)."""

    stages: list[tuple[Call | None, np.ndarray | None, str, Any]]
    buffers: list[np.ndarray]  # those between the stages, the first one the input
    added: list[np.ndarray]

    def build(self, make: Any) -> tuple[Any, list[np.ndarray]]:
        """Return the chain, and the buffers that it has."""
        # Columns of wider arrays, so that rows are not next to each other; the first and the last are the caller's.
        wide = [np.full((len(b), b.shape[1] + 3), 7, b.dtype) for b in self.buffers]
        buffers = [w[:, 2 : 2 + b.shape[1]] for w, b in zip(wide, self.buffers, strict=True)]
        buffers[0], buffers[-1] = (self.buffers[i].copy() for i in (0, -1))
        stages = []
        for i, (conv, left, adds, then) in enumerate(self.stages):
            plus = {"nothing": None, "an array": self.added[i].copy(), "to": buffers[i + 1]}[adds]
            packed, context = (None, None) if conv is None else (conv.pack(), None if left is None else left.copy())
            stages.append(Stage(buffers[i], buffers[i + 1], packed, context, plus, then))
        return make(stages, buffers[0], buffers[-1]), buffers


@st.composite
def chains(draw: Any) -> Links:
    dtype, batch = draw(st.sampled_from(["float32", "float64"])), draw(st.integers(1, 4))
    channels = st.sampled_from([1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 40])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def make(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    width = draw(channels) * draw(st.integers(1, 3))
    stages, buffers, added = [], [make(batch, width)], []
    for _ in range(draw(st.integers(1, 5))):
        then = draw(st.sampled_from(["nothing", "relu", "tanh", "gate"]))
        conv = left = None
        if draw(st.integers(0, 2)):
            groups = draw(st.sampled_from([g for g in (1, 2, 3, width) if width % g == 0]))
            taps, dilation = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 7]))
            outputs = groups * draw(channels if groups < width else st.integers(1, 2))
            outputs *= 2 if then == "gate" and outputs % 2 else 1
            b = make(outputs) if draw(st.booleans()) else None
            conv = Call(make(batch, 1, width), make(outputs, width // groups, taps), b, None, dilation, groups, rng)
            left = make(batch, conv.span, width) if taps > 1 or draw(st.booleans()) else None
            width = outputs
        elif then == "gate" and width % 2:
            then = "tanh"
        added.append(make(batch, width))
        adds = draw(st.sampled_from(["nothing", "an array"] + ["to"] * (then != "gate")))
        stages.append((conv, left, adds, then))
        width //= 2 if then == "gate" else 1
        buffers.append(make(batch, width))
    return Links(stages, buffers, added)


@given(chains(), st.integers(0, 2**32))
def test_a_chain_is_its_stages(links: Links, seed: int) -> None:
    # The default runs the stages in array code, of the same convolutions.
    native, buffers = links.build(CYTHON.causal_conv1d_chain)
    plain, wanted = links.build(lambda *given: ChainOps.causal_conv1d_chain(CYTHON, *given))
    assert type(native) is not type(plain)
    rng = np.random.default_rng(seed)
    for t in range(4):
        x = rng.standard_normal(buffers[0].shape).astype(buffers[0].dtype)
        out = np.empty_like(links.buffers[-1]) if t % 2 else None
        y = native(x, out)
        assert out is None or y is out
        same((y,), (plain(x, None),))
        same(buffers, wanted)
        assert not np.shares_memory(y, buffers[-1]) and all((b.base is None) or (b.base == 7).any() for b in buffers)
    same(native.state(), plain.state())
    assert len(native.state()) == sum(left is not None for _, left, _, _ in links.stages)


@pytest.mark.parametrize("then", ["relu", "tanh", "gate"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_stands_between_convolutions_has_numpy_s_bits(then: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    tiny = np.finfo(dtype).tiny
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, tiny, -tiny, tiny / 4, -tiny / 4, 1e38, -1e38, 1.0, -1.0]
    x, plus = ((rng.standard_normal((3, 1024)) * 2.0 ** rng.integers(-140, 6, (3, 1024))).astype(dtype) for _ in "xp")
    x[:, :13], x[0, 13:26], plus[0, 13:26] = special, 0, special
    x[1, 40:60], plus[1, 40:60] = 2 * tiny, -1.75 * tiny  # their sum is below the smallest normal number
    shape = (3, 512 if then == "gate" else 1024)
    for added in (None, plus, -x):
        results = []
        for make in (CYTHON.causal_conv1d_chain, lambda *given: ChainOps.causal_conv1d_chain(CYTHON, *given)):
            source, to = x.copy(), np.empty(shape, dtype)
            with np.errstate(invalid="ignore"):
                results.append(make([Stage(source, to, plus=added, then=then)], source, to)(x, None))
        got, want = (np.where(np.isnan(result), np.nan, result).astype(dtype) for result in results)
        same((got,), (want,))


def test_a_chain_of_large_convolutions_on_several_threads() -> None:
    rng = np.random.default_rng(0)
    w = [rng.standard_normal(shape).astype(np.float32) / 30 for shape in ((1024, 512, 2), (512, 512, 1))]
    x = rng.standard_normal((3, 5, 512)).astype(np.float32)
    results = []
    for number in (1, 2, 3):
        with pyrnn.num_threads(number):
            calls = [Call(x, one, None, None, 2, 1, rng) for one in w]
            buffers = [np.zeros((3, 512), np.float32) for _ in range(3)]
            left = np.zeros((3, 2, 512), np.float32)
            stages = [
                Stage(buffers[0], buffers[1], calls[0].pack(), left, then="gate"),
                Stage(buffers[1], buffers[2], calls[1].pack(), plus=buffers[2], then="tanh"),
            ]
            step = CYTHON.causal_conv1d_chain(stages, buffers[0], buffers[2])
            results.append((*(step(x[:, t], None) for t in range(5)), *step.state()))
    same(results[1], results[0])
    same(results[2], results[0])


def test_what_a_chain_refuses() -> None:
    rng = np.random.default_rng(0)
    packed = Call(rng.standard_normal((2, 5, 4)), rng.standard_normal((6, 4, 2)), None, None, 3, 1, rng).pack()
    x, left, y = np.zeros((2, 4)), np.zeros((2, 3, 4)), np.zeros((2, 6))
    wide = np.zeros((2, 12))
    good = {"source": x, "to": y, "packed": packed, "left": left}
    step = CYTHON.causal_conv1d_chain([Stage(**good)], x, y)
    with pytest.raises(ValueError, match=r"x_t: expected float64 of shape \(batch, features\) = \(2, 4\)"):
        step(np.zeros((2, 5)), None)
    with pytest.raises(ValueError, match=r"out: expected float64 of shape \(batch, features\) = \(2, 6\)"):
        step(np.zeros((2, 4)), np.zeros((2, 4)))
    for changes, message in (
        ({"source": x.astype(np.float32)}, r"source of shape \(2, 4\)"),
        ({"source": np.zeros((2, 5))}, r"source of shape \(2, 4\)"),
        ({"to": np.zeros((1, 6))}, r"to of shape \(2, 6\)"),
        ({"to": wide[:, ::2]}, r"to of shape \(2, 6\), channels side by side"),
        ({"to": np.zeros((2, 5))}, "to of 6 channels, got 5"),
        ({"then": "gate"}, "to of 6 channels, got 12"),
        ({"plus": np.zeros((2, 4))}, r"plus of shape \(2, 6\)"),
        ({"packed": None, "left": None}, r"source of shape \(2, 6\)"),
    ):
        with pytest.raises(ValueError, match=f"stages: expected {message}"):
            CYTHON.causal_conv1d_chain([Stage(**{**good, **changes})], x, y)
    with pytest.raises(ValueError, match=r"state: expected left of shape \(B, 3, 4\) of the weights' dtype"):
        CYTHON.causal_conv1d_chain([Stage(**{**good, "left": None})], x, y)


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
