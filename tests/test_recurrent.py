"""rnn, lstm and gru: the reference against the textbook, then what the property kit leaves to its user.

The kit itself runs in `test_kit`. Here are an oracle of scalar loops, exact equality where the kit asks for a bound,
sizes that cross the kernels' blocks, strange memory, and the errors word by word.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from cases import Call, calls, plain, with_nan_pads
from hypothesis import given
from hypothesis import strategies as st

import pyrnn

BACKENDS = ("reference", "cython", "numba")
KERNELS = BACKENDS[1:]
EPS = {"float32": 2.0**-24, "float64": 2.0**-53}


def bound(call: Call) -> float:
    """What rounding can do to an output, in the arithmetic of the call's dtype.

    A pre-activation is a chain of K = I + H + 1 terms, whose magnitudes here add up to less than 6√I + 2: it is off by
    at most K·eps times that. The activations have slope 1 at most and add a few eps. With |W_hh| summing to less than
    one a row and gates below 1, what a step inherits is not amplified by more than the LSTM's and GRU's sums over
    time, at most T times one step's error.
    """
    _, T, I = call.arrays["x"].shape
    H = call.arrays["w_hh"].shape[1]
    eps = EPS[str(call.arrays["x"].dtype)]
    return max(T, 1) * ((I + H + 1) * (6 * I**0.5 + 2) + 8) * eps


def widened(call: Call) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in call.arrays.items()}


@given(calls(dtypes=("float64",), batch=(0, 4), time=(0, 6), inputs=(1, 5), hidden=(1, 5)))
def test_reference_is_the_textbook(call: Call) -> None:
    expected = oracle.run(call.op, call.arrays, call.config)
    outputs = call.run("reference")
    assert outputs._fields == tuple(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(outputs, name), value, rtol=0, atol=bound(call))


@given(call=calls(dtypes=("float64",), batch=(1, 4), time=(1, 5)), backend=st.sampled_from(BACKENDS), data=st.data())
def test_pullback_gives_what_is_needed(call: Call, backend: str, data: st.DataObject) -> None:
    outputs, pullback = call.vjp(backend)
    cotangents = call.cotangents(outputs)
    full = pullback(cotangents)
    again = pullback(cotangents)
    needs = data.draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
    some = pullback(cotangents, needs)
    for name, a, b, c, need in zip(full._fields, full, again, some, needs, strict=True):
        if name not in call.arrays:
            assert a is None and c is None
            continue
        assert np.array_equal(a, b), "backward can run twice"
        assert (c is None) if not need else np.array_equal(a, c)
    # None stands for a zero gradient.
    absent = data.draw(st.integers(0, len(outputs) - 1))
    zeros = [np.zeros_like(v) if k == absent else v for k, v in enumerate(cotangents)]
    nones = [None if k == absent else v for k, v in enumerate(cotangents)]
    for a, b in zip(pullback(zeros), pullback(nones), strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@given(call=calls(ragged=True))
def test_padding_reaches_nothing(backend: str, call: Call) -> None:
    lengths = call.config["lengths"]
    outputs, pullback = call.vjp(backend)
    poisoned, pullback_poisoned = call.vjp(backend, x=with_nan_pads(call))
    for a, b in zip(outputs, poisoned, strict=True):
        assert np.array_equal(a, b)
    cotangents = call.cotangents(outputs)
    spoilt = [v.copy() for v in cotangents]
    for row, length in enumerate(lengths):
        spoilt[0][row, length:] = np.nan  # nor does the gradient of a padded output
    grads, grads_poisoned = pullback(cotangents), pullback_poisoned(spoilt)
    for a, b in zip(grads, grads_poisoned, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    for row, length in enumerate(lengths):
        assert not outputs.y[row, length:].any() and not grads.x[row, length:].any()
        if length:
            last = 0 if call.config["reverse"] else length - 1
            assert np.array_equal(outputs.h_n[row], outputs.y[row, last])
        else:
            expected = call.arrays["h0"][row] if "h0" in call.arrays else 0
            assert np.array_equal(outputs.h_n[row], np.broadcast_to(expected, outputs.h_n[row].shape))
            if "h0" in call.arrays:
                assert np.array_equal(grads.h0[row], cotangents[1][row])


@given(call=calls(ragged=True, batch=(1, 6), time=(1, 8)))
def test_a_ragged_row_is_the_row_alone(call: Call) -> None:
    outputs = call.run()
    for row, length in enumerate(call.config["lengths"]):
        alone = Call(call.op, dict(call.arrays), {**call.config, "lengths": None}, call.rng)
        changes = {"x": call.arrays["x"][row : row + 1, :length]}
        changes |= {name: call.arrays[name][row : row + 1] for name in ("h0", "c0") if name in call.arrays}
        expected = alone.run(**changes)
        assert np.array_equal(outputs.y[row, :length], expected.y[0])
        assert all(np.array_equal(a[row], b[0]) for a, b in zip(outputs[1:], expected[1:], strict=True))


@pytest.mark.parametrize("time", [255, 256, 257, 600])
@pytest.mark.parametrize("op", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("backend", KERNELS)
def test_long_sequences_cross_time_blocks(backend: str, op: str, time: int) -> None:
    # Longer than a block of steps for any batch, so that blocks must hand over state, gradients and weight sums.
    call = plain(op, B=3, T=time, I=4, H=5, dtype="float64", lengths=np.array([time, 7, time - 1]))
    outputs, pullback = call.vjp(backend)
    expected, pullback_expected = call.vjp("reference")
    cotangents = call.cotangents(outputs)
    for a, b in zip([*outputs, *pullback(cotangents)], [*expected, *pullback_expected(cotangents)], strict=True):
        assert (a is None and b is None) or np.abs(a - b).max() < 1e-11


# Products longer than a block of K, batches larger than a block of rows, several panels and a remainder in each.
@pytest.mark.parametrize("sizes", [(70, 5, 300, 150), (40, 3, 129, 260), (300, 4, 20, 33), (2, 300, 140, 40)])
@pytest.mark.parametrize("op", ["rnn", "lstm", "gru", "gru before"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", KERNELS)
def test_large_sizes_agree(backend: str, op: str, sizes: tuple[int, int, int, int], dtype: str) -> None:
    call = plain(op.split()[0], *sizes, dtype=dtype, **({"reset_after": False} if " " in op else {}))
    outputs, pullback = call.vjp(backend)
    expected, pullback_expected = call.vjp("reference", **widened(call))
    cotangents = call.cotangents(outputs)
    grads = pullback_expected([v.astype(np.float64) for v in cotangents])
    for mine, theirs in zip([*outputs, *pullback(cotangents)], [*expected, *grads], strict=True):
        if mine is not None:
            # Of the size of the largest value: errors of a chain of K terms grow with its root, here well below 100.
            assert np.abs(mine - theirs).max() <= 100 * EPS[dtype] * (1 + np.abs(theirs).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (2, 0, 2, 4), (1, 1, 1, 1), (2, 3, 0, 4), (0, 0, 0, 1), (2, 3, 2, 0)])
def test_degenerate_sizes(backend: str, op: str, sizes: tuple[int, int, int, int]) -> None:
    B, T, _, H = sizes
    call = plain(op, *sizes, dtype="float32")
    outputs, pullback = call.vjp(backend)
    assert outputs.y.shape == (B, T, H) and outputs.h_n.shape == (B, H)
    if T == 0:
        assert np.array_equal(outputs.h_n, call.arrays["h0"])
    grads = pullback(call.cotangents(outputs))
    for name, grad in grads._asdict().items():
        assert grad is None or (grad.shape == call.arrays[name].shape and np.isfinite(grad).all())


@pytest.mark.parametrize("backend", KERNELS)
def test_unaligned_and_foreign_strides(backend: str) -> None:
    call = plain("lstm", 3, 4, 5, 6, dtype="float32")
    expected = call.run(backend)
    shifted = {}
    for name, array in call.arrays.items():
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        shifted[name] = raw[1:].view(np.float32).reshape(array.shape)
        assert not shifted[name].flags.aligned
    assert all(np.array_equal(a, b) for a, b in zip(expected, call.run(backend, **shifted), strict=True))
    record = np.zeros((3, 4, 5), np.dtype([("a", "f4"), ("pad", "i2")]))  # a stride that is no multiple of the item
    record["a"] = call.arrays["x"]
    assert all(np.array_equal(a, b) for a, b in zip(expected, call.run(backend, x=record["a"]), strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_denormals_and_infinities_pass(backend: str) -> None:
    call = plain("lstm", 2, 3, 4, 5, dtype="float32")
    call.arrays["x"][0, 0] = 1e-41
    call.arrays["x"][1, 1] = np.inf
    outputs = call.run(backend)
    assert np.isfinite(outputs.y[0]).all()
    assert np.isfinite(outputs.h_n[0]).all()
    x = call.arrays["x"].copy()
    x[0, 0] = np.nan
    outputs = call.run(backend, x=x)
    assert np.isnan(outputs.y[0]).all() and not np.isnan(outputs.y[1, 0]).any(), "a NaN stays in its own row"


# --- errors -----------------------------------------------------------------------------------------------------


SHAPE_ERRORS = [
    ("lstm", "x", (2, 3), r"x: expected shape \(B, T, I\), got \(2, 3\)"),
    ("lstm", "w_ih", (24, 4), r"w_ih: expected shape \(4H, I\) = \(24, 5\), got \(24, 4\)"),
    ("lstm", "w_ih", (23, 5), r"w_ih: expected shape \(4H, I\) = \(4H, 5\), got \(23, 5\)"),
    ("lstm", "w_hh", (24, 5), r"w_hh: expected shape \(4H, H\) = \(24, 6\), got \(24, 5\)"),
    ("lstm", "b", (23,), r"b: expected shape \(4H,\) = \(24,\), got \(23,\)"),
    ("lstm", "h0", (1, 6), r"h0: expected shape \(B, H\) = \(2, 6\), got \(1, 6\)"),
    ("lstm", "c0", (2, 1, 6), r"c0: expected shape \(B, H\) = \(2, 6\), got \(2, 1, 6\)"),
    ("gru", "b_hn", (18,), r"b_hn: expected shape \(H,\) = \(6,\), got \(18,\)"),
    ("rnn", "w_hh", (6, 7), r"w_hh: expected shape \(H, H\) = \(6, 6\), got \(6, 7\)"),
]


@pytest.mark.parametrize(("op", "name", "shape", "message"), SHAPE_ERRORS)
def test_a_wrong_shape_is_named(op: str, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(op, 2, 3, 5, 6).run(**{name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 3, 5), np.float16)}, r"x: expected float32 or float64, got float16; cast with"),
        ({"x": np.zeros((2, 3, 5), np.int64)}, r"x: expected float32 or float64, got int64; cast with"),
        ({"x": np.zeros((2, 3, 5), ">f4")}, r"x: expected float32 or float64, got >f4; cast with"),
        ({"b": np.zeros(24)}, r"b: expected float32 like the arrays before it, got float64; cast with"),
        ({"x": [[[0.0] * 5] * 3] * 2}, r"x: expected a numpy.ndarray or a pyrnn.Tensor .* got list; convert"),
        ({"x": np.ma.zeros((2, 3, 5), np.float32)}, r"x: expected a numpy.ndarray .* got numpy.MaskedArray"),
        ({"w_hh": None}, r"w_hh: expected an array of shape \(4H, H\) = \(24, 6\), got None"),
    ],
)
def test_a_wrong_kind_of_array_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        plain("lstm", 2, 3, 5, 6).run(**change)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, 4], ValueError, r"lengths: expected values from 0 to T = 3, got 3 to 4"),
        ([-1, 2], ValueError, r"lengths: expected values from 0 to T = 3, got -1 to 2"),
        ([3], ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(1,\)"),
        ([1.0, 2.0], TypeError, r"lengths: expected integers, got float64"),
        ([True, False], TypeError, r"lengths: expected integers, got bool"),
        (3, TypeError, r"lengths: expected a sequence or numpy array of integers on the host, got int"),
    ],
)
def test_wrong_lengths_are_named(lengths: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain("lstm", 2, 3, 5, 6, lengths=lengths).run()


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"activation: expected one of 'tanh', 'relu', got 'gelu'"):
        plain("rnn", 2, 3, 5, 6, activation="gelu").run()
    with pytest.raises(TypeError, match=r"reverse: expected True or False, got 1"):
        plain("rnn", 2, 3, 5, 6, reverse=1).run()
    with pytest.raises(ValueError, match=r"b_hn: expected None with reset_after=False, got an array"):
        plain("gru", 2, 3, 5, 6, reset_after=False).run(b_hn=np.zeros(6, np.float32))
    with pytest.raises(TypeError, match=r"lstm: expected an option among lengths, reverse, checkpoint, got 'mask'"):
        plain("lstm", 2, 3, 5, 6, mask=None).vjp()
    with pytest.raises(TypeError, match=r"op: expected one of pyrnn's ops \(.*lstm.*\), got <built-in function len>"):
        pyrnn.vjp(len)
    with pytest.raises(TypeError, match=r"op: expected one of pyrnn's ops .* got <function cross_entropy"):
        pyrnn.vjp(pyrnn.nn.cross_entropy)  # of the same name, and another function
    with pytest.raises(
        TypeError, match=r"x: expected an array, since vjp is below the tape, got a Tensor; pass its .data"
    ):
        pyrnn.vjp(pyrnn.linear, pyrnn.Tensor(np.ones((1, 1))), np.ones((1, 1)))
    with pytest.raises(TypeError, match=r"linear: expected no options, got 'mask'"):
        pyrnn.vjp(pyrnn.linear, np.ones((1, 1)), np.ones((1, 1)), mask=None)


def test_wrong_cotangents_are_named() -> None:
    outputs, pullback = plain("rnn", 2, 3, 5, 6).vjp()
    with pytest.raises(ValueError, match=r"grad_outputs: expected 2 arrays, got 1"):
        pullback([outputs.y])
    with pytest.raises(ValueError, match=r"gradient of h_n: expected shape \(2, 6\), got \(2, 5\)"):
        pullback([None, np.zeros((2, 5), np.float32)])
    with pytest.raises(TypeError, match=r"gradient of y: expected float32 like"):
        pullback([np.zeros((2, 3, 6)), None])
    with pytest.raises(ValueError, match=r"needs: expected 5 booleans, got 1"):
        pullback([outputs.y, None], [True])


@pytest.mark.parametrize("backend", ["cython", "reference"])
@given(call=calls())
def test_checkpoint_is_the_same_training_in_segments(backend: str, call: Call) -> None:
    call.config["checkpoint"] = False
    whole, pull = call.vjp(backend)
    call.config["checkpoint"] = True
    outputs, pull_segments = call.vjp(backend)
    for want, got in zip(whole, outputs, strict=True):
        np.testing.assert_array_equal(got, want)
    cotangents = call.cotangents(whole)
    tolerance = {"float32": 2e-4, "float64": 1e-11}[str(call.arrays["x"].dtype)]
    for given_ones in (cotangents, [cotangents[0], *[None] * (len(whole) - 1)], [None, *cotangents[1:]]):
        wanted, grads = pull(given_ones), pull_segments(given_ones)
        for name, want, got in zip(wanted._fields, wanted, grads, strict=True):
            if want is None:
                assert got is None, name
            elif backend == "cython" and name in ("x", "h0", "c0"):
                np.testing.assert_array_equal(got, want, err_msg=name)
            else:
                limit = tolerance * max(1.0, float(np.abs(want).max(initial=0)))
                np.testing.assert_allclose(got, want, rtol=0, atol=limit, err_msg=name)


def test_checkpoint_keeps_little() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    B, T, H = 4, 400, 64
    x, w, v = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((B, T, H), (4 * H, H), (4 * H, H)))
    kept = {}
    for checkpoint in (False, True):
        pyrnn.empty_cache()
        tracemalloc.start()
        outputs, pull = pyrnn.vjp(pyrnn.lstm, x, w, v, checkpoint=checkpoint)
        kept[checkpoint] = tracemalloc.get_traced_memory()[0] - outputs[0].nbytes
        tracemalloc.stop()
        pull([outputs[0], None, None])
    assert kept[False] > 6 * x.nbytes, "states and gates of every step"
    assert kept[True] < kept[False] / 10, "states of every 20th"


def test_checkpoint_of_a_layer() -> None:
    layers = [pyrnn.nn.GRU(3, 5, num_layers=2, bidirectional=True, checkpoint=flag, rng=0) for flag in (False, True)]
    x = np.random.default_rng(0).standard_normal((2, 11, 3)).astype(np.float32)
    for layer in layers:
        layer(x, lengths=[11, 6])[0].sum().backward()
    for one, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        np.testing.assert_allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert "checkpoint=True" in repr(layers[1])
