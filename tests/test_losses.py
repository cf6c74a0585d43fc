"""Losses against plain loops, with whatever stands in the padding; their gradients against central differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrnn
from pyrnn import nn

Tensor = pyrnn.Tensor
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


# --- one element, by the textbook ---------------------------------------------------------------------------


def squared(p: float, t: float) -> float:
    return (p - t) ** 2


def absolute(p: float, t: float) -> float:
    return math.fabs(p - t)


def huber(p: float, t: float, delta: float) -> float:
    d = math.fabs(p - t)
    return d * d / 2 if d <= delta else delta * (d - delta / 2)


def binary(x: float, t: float) -> float:
    yes = 1 / (1 + math.exp(-x))
    return -t * math.log(yes) - (1 - t) * math.log(1 - yes)


def categorical(logits: Any, target: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[target]


PAIRS = {
    "mse": (nn.mse_loss, squared),
    "l1": (nn.l1_loss, absolute),
    "huber": (lambda *a, **k: nn.huber_loss(*a, delta=0.7, **k), lambda p, t: huber(p, t, 0.7)),
    "bce": (nn.binary_cross_entropy_with_logits, binary),
}


@st.composite
def batches(draw: Any) -> dict[str, Any]:
    """Draw a shape (B, T) or (B, T, F) with lengths, a mask, both or neither."""
    shape = (draw(st.integers(0, 3)), draw(st.integers(0, 4)), *draw(st.sampled_from([(), (1,), (3,)])))
    rng = np.random.default_rng(draw(SEEDS))
    lengths = rng.integers(0, shape[1] + 1, shape[0]) if draw(st.booleans()) else None
    mask = rng.random(shape[: draw(st.integers(1, len(shape)))]) < 0.6 if draw(st.booleans()) else None
    return {"shape": shape, "rng": rng, "lengths": lengths, "mask": mask}


def counts(index: tuple[int, ...], lengths: Any, mask: Any) -> bool:
    """Tell whether an element counts."""
    if lengths is not None and index[1] >= lengths[index[0]]:
        return False
    return mask is None or bool(mask[index[: mask.ndim]])


def mean_over_valid(function: Any, prediction: Any, target: Any, lengths: Any, mask: Any) -> float:
    losses = [
        function(prediction[index], target[index]) for index in np.ndindex(target.shape) if counts(index, lengths, mask)
    ]
    return math.fsum(losses) / len(losses) if losses else 0.0


def check_gradient(loss: Any, prediction: np.ndarray, valid: np.ndarray) -> None:
    """Hold the gradient against central differences where it counts, and against 0 elsewhere."""
    tensor = Tensor(prediction, requires_grad=True)
    loss(tensor).backward()
    assert tensor.grad.shape == prediction.shape
    numeric = np.zeros_like(prediction)
    for index in np.ndindex(prediction.shape):
        if valid[index]:
            up, down = prediction.copy(), prediction.copy()
            up[index] += 1e-6
            down[index] -= 1e-6
            numeric[index] = (loss(up) - loss(down)) / 2e-6
    np.testing.assert_allclose(tensor.grad, numeric, rtol=1e-6, atol=1e-8)
    assert (tensor.grad[~valid] == 0).all()


@pytest.mark.parametrize("name", PAIRS)
@given(batch=batches())
def test_pair_losses(name: str, batch: dict[str, Any]) -> None:
    loss, oracle = PAIRS[name]
    shape, rng = batch["shape"], batch["rng"]
    where = {"lengths": batch["lengths"], "mask": batch["mask"]}
    target = rng.random(shape) if name == "bce" else rng.normal(size=shape)
    # Away from the kinks at 0 and ±δ, where central differences say nothing.
    prediction = target + rng.choice([-2, -1, -0.5, 0.5, 1, 2], shape) * rng.uniform(0.8, 1.2, shape)
    valid = np.array([counts(index, **where) for index in np.ndindex(shape)], dtype=bool).reshape(shape)
    expected = mean_over_valid(oracle, prediction, target, **where)

    prediction[~valid], target[~valid] = np.nan, rng.choice([np.nan, np.inf, -1e300], (~valid).sum())
    assert loss(prediction, target, **where) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert loss(Tensor(prediction), Tensor(target), **where).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    check_gradient(lambda p: loss(p, target, **where), prediction, valid)


@given(batch=batches(), classes=st.integers(1, 4))
def test_cross_entropy(batch: dict[str, Any], classes: int) -> None:
    shape, rng = batch["shape"], batch["rng"]
    where = {"lengths": batch["lengths"], "mask": batch["mask"]}
    logits, targets = rng.normal(size=(*shape, classes)), rng.integers(0, classes, shape)
    valid = np.array([counts(index, **where) for index in np.ndindex(shape)], dtype=bool).reshape(shape)
    expected = mean_over_valid(categorical, logits, targets, **where)

    logits[~valid], targets[~valid] = np.nan, rng.choice([-1, -100, classes, 10**9], (~valid).sum())
    assert nn.cross_entropy(logits, targets, **where) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    every = np.broadcast_to(valid[..., None], logits.shape)
    check_gradient(lambda z: nn.cross_entropy(z, targets, **where), logits, every)


@pytest.mark.parametrize("name", [*PAIRS, "cross_entropy"])
def test_nothing_valid_gives_zero_and_zero_gradients(name: str) -> None:
    prediction = Tensor(np.full((2, 3, 4), np.nan), requires_grad=True)
    if name == "cross_entropy":
        loss, target = nn.cross_entropy, np.full((2, 3), -1)
    else:
        loss, target = PAIRS[name][0], np.full((2, 3, 4), np.nan)
    for where in ({"lengths": [0, 0]}, {"mask": np.zeros((2, 3), bool)}):
        result = loss(prediction, target, **where)
        assert result.item() == 0
        result.backward()
        assert (prediction.grad == 0).all()


def test_nan_where_it_counts_is_not_hidden() -> None:
    prediction = np.array([[1.0, np.nan]])
    assert math.isnan(nn.mse_loss(prediction, np.zeros((1, 2)), lengths=[2]))
    assert nn.mse_loss(prediction, np.zeros((1, 2)), lengths=[1]) == 1


def test_arrays_in_give_a_number_of_their_dtype_and_tensors_a_tensor() -> None:
    for dtype in (np.float32, np.float64):
        a = np.ones((2, 2), dtype)
        for loss in (nn.mse_loss, nn.l1_loss, nn.huber_loss, nn.binary_cross_entropy_with_logits):
            assert type(loss(a, a)) is dtype and type(loss(a, a, lengths=[1, 2])) is dtype
            for result in (loss(Tensor(a), a), loss(a, Tensor(a)), loss(Tensor(a), a, mask=a > 0)):
                assert isinstance(result, Tensor) and result.dtype == dtype and result.shape == ()
        assert type(nn.cross_entropy(a, np.array([0, 1]))) is dtype
        assert nn.cross_entropy(Tensor(a), np.array([0, 1])).dtype == dtype


def test_a_target_that_needs_a_gradient_gets_it() -> None:
    target = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    nn.mse_loss(np.array([3.0, 3.0]), target).backward()
    assert target.grad.tolist() == [-2.0, -1.0]


def test_binary_cross_entropy_is_exact_in_its_tails() -> None:
    for x, t, expected in ((60.0, 1.0, math.exp(-60)), (-60.0, 0.0, math.exp(-60)), (1e4, 0.0, 1e4), (-1e4, 1.0, 1e4)):
        assert nn.binary_cross_entropy_with_logits(np.array([x]), np.array([t])) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("loss", [nn.mse_loss, nn.l1_loss, nn.huber_loss])
def test_nothing_is_broadcast(loss: Any) -> None:
    for shape in ((3, 1), (3,), (1, 3), (), (3, 3, 1)):
        with pytest.raises(ValueError, match=r"target: expected shape \(3, 3\) like prediction, got"):
            loss(np.zeros((3, 3)), np.zeros(shape))


def test_errors_name_the_argument() -> None:
    p = np.zeros((2, 3, 4))
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, r"targets: expected shape \(2, 3, 4\) like logits",
         lambda: nn.binary_cross_entropy_with_logits(p, p[:1])),
        (TypeError, r"target: expected float64 like prediction, got float32",
         lambda: nn.mse_loss(p, p.astype(np.float32))),
        (TypeError, "target: expected an array or Tensor, got float", lambda: nn.mse_loss(p, 0.0)),
        (TypeError, "prediction: expected an array or Tensor, got list", lambda: nn.mse_loss([0.0], p)),
        (ValueError, r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)",
         lambda: nn.mse_loss(p, p, lengths=[1, 1, 1])),
        (ValueError, "lengths: expected values from 0 to T = 3", lambda: nn.mse_loss(p, p, lengths=[1, 4])),
        (TypeError, "lengths: expected integers", lambda: nn.mse_loss(p, p, lengths=[1.0, 2.0])),
        (ValueError, r"prediction: expected shape \(B, T, ...\) with lengths",
         lambda: nn.mse_loss(p[0, 0], p[0, 0], lengths=[1])),
        (ValueError, r"mask: expected shape \(2, 3, 4\) or that of its first axes, got \(2, 4\)",
         lambda: nn.mse_loss(p, p, mask=np.ones((2, 4), bool))),
        (TypeError, "mask: expected booleans", lambda: nn.mse_loss(p, p, mask=np.ones((2, 3)))),
        (ValueError, "delta: expected a positive finite number, got 0", lambda: nn.huber_loss(p, p, delta=0)),
        (TypeError, "logits: expected an array or Tensor, got list", lambda: nn.cross_entropy([[0.0]], [0])),
        (ValueError, r"targets: expected shape \(...\) = \(2, 3\), got \(2,\)",
         lambda: nn.cross_entropy(p, np.zeros(2, int))),
        (ValueError, "targets: expected values from 0 to C - 1 = 3, got -1 to -1",
         lambda: nn.cross_entropy(p, np.full((2, 3), -1))),
        (TypeError, "targets: expected integers, got float64", lambda: nn.cross_entropy(p, np.zeros((2, 3)))),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


@given(batch=batches())
def test_losses_against_pytorch(torch: Any, batch: dict[str, Any]) -> None:
    shape, rng = batch["shape"], batch["rng"]
    if not math.prod(shape):
        return  # PyTorch gives NaN there
    p, t = rng.normal(size=shape), rng.random(shape)
    functional = torch.nn.functional
    for ours, theirs in (
        (nn.mse_loss, functional.mse_loss),
        (nn.l1_loss, functional.l1_loss),
        (nn.huber_loss, functional.huber_loss),
        (nn.binary_cross_entropy_with_logits, functional.binary_cross_entropy_with_logits),
    ):
        expected = theirs(torch.from_numpy(p), torch.from_numpy(t)).item()
        assert ours(p, t) == pytest.approx(expected, rel=1e-12)
    logits, targets = p.reshape(-1, shape[-1]), rng.integers(0, shape[-1], math.prod(shape[:-1]))
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert nn.cross_entropy(logits, targets) == pytest.approx(expected, rel=1e-12, abs=1e-15)
