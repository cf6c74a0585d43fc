"""Optimisers against their formulas, number by number, and against PyTorch; resumption to the same bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyrnn
from pyrnn import nn, optim
from pyrnn.nn import Parameter


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


STEPS = 5
RATES = st.floats(1e-4, 0.5)
DECAYS = st.sampled_from([0.0, 0.01, 0.3])
SGD_OPTIONS = st.fixed_dictionaries(
    {"lr": RATES, "momentum": st.sampled_from([0.5, 0.9]), "weight_decay": DECAYS, "nesterov": st.booleans()}
) | st.fixed_dictionaries({"lr": RATES, "weight_decay": DECAYS})
ADAM_OPTIONS = st.fixed_dictionaries(
    {
        "lr": RATES,
        "betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)),
        "eps": st.floats(1e-10, 1e-2),
        "weight_decay": DECAYS,
    }
)

# --- one number at a time, by the papers and PyTorch's documentation ------------------------------------------


def sgd(w: float, grads: list[float], lr: float, momentum: float = 0, weight_decay: float = 0, nesterov: bool = False):
    velocity = None
    for g in grads:
        g = g + weight_decay * w
        if momentum:
            velocity = g if velocity is None else momentum * velocity + g
            g = g + momentum * velocity if nesterov else velocity
        w = w - lr * g
    return w


def adam(w: float, grads: list[float], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay: float = 0):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        g = g + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


def adamw(w: float, grads: list[float], lr: float, betas=(0.9, 0.999), eps=1e-8, weight_decay: float = 1e-2):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        w = w - lr * weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


CASES = [
    ("SGD", SGD_OPTIONS, sgd),
    ("Adam", ADAM_OPTIONS, adam),
    ("AdamW", ADAM_OPTIONS, adamw),
]


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 3)), rng.normal(size=(STEPS, 2, 3))


def run(optimizer: optim.Optimizer, parameter: Parameter, grads: Any) -> None:
    for g in grads:
        parameter.grad = g.astype(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(("name", "options", "oracle"), CASES, ids=[case[0] for case in CASES])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_optimizer_against_its_formula(
    name: str, options: Any, oracle: Callable[..., float], data: Any, seed: int
) -> None:
    chosen = data.draw(options)
    start, grads = drawn(seed)
    parameter = Parameter(start.copy())
    run(getattr(optim, name)([parameter], **chosen), parameter, grads)
    expected = np.array([oracle(start[i], [g[i] for g in grads], **chosen) for i in np.ndindex(start.shape)]).reshape(
        start.shape
    )
    # A dozen roundings a step, in another order; where β₂ is 0, g/√g² is ±1 whatever the rounding.
    np.testing.assert_allclose(parameter.data, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("name", "options", "oracle"), CASES, ids=[case[0] for case in CASES])
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_optimizer_against_pytorch(torch: Any, name: str, options: Any, oracle: Any, data: Any, seed: int) -> None:
    chosen = data.draw(options)
    start, grads = drawn(seed)
    parameter, other = Parameter(start.copy()), torch.nn.Parameter(torch.from_numpy(start.copy()))
    run(getattr(optim, name)([parameter], **chosen), parameter, grads)
    reference = getattr(torch.optim, name)([other], **chosen)
    for g in grads:
        other.grad = torch.from_numpy(g.copy())
        reference.step()
    np.testing.assert_allclose(parameter.data, other.detach().numpy(), rtol=1e-11, atol=1e-13)


def test_defaults_are_those_of_pytorch(torch: Any) -> None:
    for name in ("SGD", "Adam", "AdamW"):
        ours = getattr(optim, name)([Parameter(np.ones(1))])
        theirs = getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(1))]).defaults
        mine = {key: getattr(ours, key) for key in ours.hyper}
        if "beta1" in mine:
            mine["betas"] = (mine.pop("beta1"), mine.pop("beta2"))
        assert mine == {key: theirs[key] for key in mine}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, momentum=0.9), optim.Adam, optim.AdamW])
def test_state_and_updates_keep_the_dtype_and_the_array(make: Any, dtype: Any) -> None:
    array = np.ones((2, 2), dtype)
    parameter = Parameter(array)
    optimizer = make([parameter])
    run(optimizer, parameter, drawn(0)[1][:, :, :2])
    assert parameter.dtype == dtype and np.shares_memory(parameter.data, array) and (array != 1).all()
    arrays = [value for value in optimizer.state_dict().values() if isinstance(value, np.ndarray)]
    assert arrays and all(a.dtype == dtype for a in arrays)


# --- the backends' updates --------------------------------------------------------------------------------------

UPDATES = {name: options for name, options, _ in CASES}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda a: a,
    "transposed": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UPDATES)
@given(
    data=st.data(), rows=st.integers(0, 300), layout=st.sampled_from(sorted(LAYOUTS)), seed=st.integers(0, 2**32 - 1)
)
def test_backends_agree_and_elements_stand_alone(
    name: str, dtype: Any, data: Any, rows: int, layout: str, seed: int
) -> None:
    chosen = data.draw(UPDATES[name])
    if "eps" in chosen:
        chosen["eps"] = data.draw(st.floats(1e-3, 1e-2))
    rng = np.random.default_rng(seed)
    shape = (rows, 73)  # to 21,900 elements: more than one thread is then used
    start = rng.normal(size=shape).astype(dtype)
    grads = [rng.normal(size=shape).astype(dtype) for _ in range(3)]

    def trained(backend: str, threads: int, lie: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, Any]:
        parameter = Parameter(lie(start.copy()))
        optimizer = getattr(optim, name)([parameter], **chosen)
        with pyrnn.use_backend(backend), pyrnn.num_threads(threads):
            for grad in grads:
                parameter.grad = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](grad)
                optimizer.step()
        return parameter.data, optimizer.state_dict()

    native, state = trained("cython", 1, LAYOUTS["plain"])
    for threads in (2, 3):
        other, other_state = trained("cython", threads, LAYOUTS[layout])
        assert np.array_equal(native, other)
        assert all(np.array_equal(value, other_state[key]) for key, value in state.items())
    plain, plain_state = trained("reference", 1, LAYOUTS[layout])
    size = 1 + np.abs(start).max(initial=0) + sum(np.abs(g).max(initial=0) for g in grads)
    # A step lr·m/(√v + eps) may magnify the rounding of m by lr/eps, where v is nearly 0.
    tolerance = 10 * float(np.finfo(dtype).eps) * size * (1 + chosen["lr"] / chosen.get("eps", 1))
    np.testing.assert_allclose(native, plain, rtol=0, atol=tolerance)
    for key, value in plain_state.items():
        np.testing.assert_allclose(state[key], value, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("backend", ["reference", "cython"])
def test_a_read_only_parameter_is_not_written(backend: str) -> None:
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    parameter = Parameter(array)
    parameter.grad = np.ones(3, np.float32)
    for make in (optim.SGD, optim.AdamW):
        with pyrnn.use_backend(backend), pytest.raises(ValueError, match="read-only"):
            make([parameter]).step()
    assert (array == 1).all()


def test_an_update_runs_on_the_backend_that_ops_run_on() -> None:
    asked: list[str] = []

    class Listening(pyrnn.Backend):
        name = "listening"

        def sgd_update(self, *arrays: Any, **numbers: Any) -> None:
            asked.append(self.name)
            super().sgd_update(*arrays, **numbers)

    class Elsewhere(Listening):
        name = "elsewhere"
        array_type = dict  # takes no arrays that this one has

    model = nn.Linear(2, 3, rng=0).to(Listening())
    twin = copy.deepcopy(model)
    for each in (model, twin):
        for parameter in each.parameters():
            parameter.grad = np.ones(parameter.shape, np.float32)
        optim.SGD(each.parameters(), 0.1).step()
        assert asked == ["listening"] * 2
        asked.clear()
    with pyrnn.use_backend("reference"):
        optim.SGD(model.parameters(), 0.1).step()
    with pyrnn.use_backend(Elsewhere()):
        before = model.weight.data.copy()
        optim.SGD(model.parameters(), 0.1).step()
    assert not asked and (model.weight.data < before).all()


def test_a_step_makes_older_tapes_stale() -> None:
    parameter = Parameter(np.ones(2))
    loss = (parameter * parameter).sum()
    parameter.grad = np.ones(2)
    optim.SGD([parameter], 0.1).step()
    with pytest.raises(RuntimeError, match="was written"):
        loss.backward()


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.AdamW([used, unused], 0.1)
    used.grad = np.ones(2)
    optimizer.step()
    assert (used.data != 1).all() and (unused.data == 1).all()
    optimizer.zero_grad()
    assert used.grad is None
    before = used.data.copy()
    optimizer.step()
    assert np.array_equal(used.data, before)


# --- resumption -----------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "plain SGD": lambda p: optim.SGD(p, 0.05),
    "Adam": lambda p: optim.Adam(p, 0.01, betas=(0.8, 0.95)),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
}


def training(name: str) -> tuple[nn.Module, optim.Optimizer, optim.LRScheduler]:
    model = nn.Sequential(nn.LSTM(2, 3, num_layers=2, dropout=0.3, rng=0), nn.Linear(3, 1, rng=1))
    optimizer = MAKERS[name](model.parameters())
    return model, optimizer, optim.CosineAnnealingLR(optimizer, 10, warmup_steps=2)


def train(model: nn.Module, optimizer: optim.Optimizer, schedule: optim.LRScheduler, steps: range) -> list[float]:
    losses = []
    for number in steps:
        rng = np.random.default_rng(number)
        x = rng.normal(size=(3, 4, 2)).astype(np.float32)
        y, _ = model(x)
        loss = nn.mse_loss(y, x[:, :, :1])
        optimizer.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_training_goes_on_to_the_same_bits(name: str) -> None:
    whole = training(name)
    losses = train(*whole, range(8))
    first = training(name)
    assert train(*first, range(4)) == losses[:4]
    saved = [part.state_dict() for part in first]
    generators = [generator.bit_generator.state for _, generator in first[0].named_generators()]
    train(*first, range(4, 6))  # what was saved is a copy: going on does not change it

    second = training(name)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    for (_, generator), state in zip(second[0].named_generators(), generators, strict=True):
        generator.bit_generator.state = state
    assert train(*second, range(4, 8)) == losses[4:]
    for key, value in whole[0].state_dict().items():
        assert np.array_equal(value, second[0].state_dict()[key]), key
    assert whole[1].lr == second[1].lr


def test_load_state_dict_names_all_that_is_wrong_and_loads_nothing() -> None:
    parameter = Parameter(np.ones(2, np.float32))
    optimizer = optim.Adam([parameter], 0.1)
    run(optimizer, parameter, np.ones((1, 2)))
    before = optimizer.state_dict()
    bad = {**before, "0.exp_avg": np.zeros(3), "momentum": 0.9, "lr": 0.7}
    del bad["0.step"]
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        optimizer.load_state_dict(bad)
    for line in (
        "missing: 0.step",
        "unexpected: momentum",
        "0.exp_avg: expected float32 of shape (2,), got float64 of shape (3,)",
    ):
        assert line in str(error.value)
    after = optimizer.state_dict()
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[key], before[key]) for key in after)
    schedule = optim.StepLR(optimizer, 2)
    with pytest.raises(ValueError, match=r"missing: base_lr\n  missing: warmup_steps\n  .*\n  .*\n  unexpected: x"):
        schedule.load_state_dict({"last_step": 1, "x": 3})
    whole = optim.StepLR(optimizer, 5, 0.5).state_dict()
    with pytest.raises(ValueError, match="gamma: expected a number, at least 0 and finite, got nan"):
        schedule.load_state_dict({**whole, "gamma": float("nan")})
    assert schedule.state_dict()["step_size"] == 2, "nothing is loaded by halves"
    schedule.load_state_dict(whole)
    assert schedule.state_dict() == whole, "its own numbers come with it"
    with pytest.raises(ValueError, match="lr: expected a number, at least 0 and finite, got nan"):
        optimizer.load_state_dict({**before, "lr": float("nan")})


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("Adam", {"lr": 9, "0.step": None}, TypeError, "0.step: expected a whole number, got None"),
        ("Adam", {"lr": 9, "0.step": -2.9}, TypeError, "0.step: expected a whole number, got -2.9"),
        ("Adam", {"lr": 9, "0.step": -2}, ValueError, "0.step: expected at least 0, got -2"),
        ("Adam", {"lr": 9, "beta1": 5.0}, ValueError, "beta1: expected a number, at least 0 and less than 1, got 5.0"),
        ("Adam", {"lr": 9, "0.exp_avg_sq": np.zeros(2)}, ValueError, "0.exp_avg_sq: expected float32"),
        ("SGD", {"lr": 9, "nesterov": 1}, TypeError, "nesterov: expected True or False, got 1"),
        ("SGD", {"lr": 9, "nesterov": True, "momentum": 0.0}, ValueError, "nesterov: expected a momentum"),
    ],
)
def test_a_state_dict_is_loaded_whole_or_not_at_all(kind: str, changes: Any, error: type, message: str) -> None:
    parameter = Parameter(np.ones(2, np.float32))
    optimizer = {"Adam": optim.Adam, "SGD": lambda p: optim.SGD(p, momentum=0.5)}[kind]([parameter])
    before = optimizer.state_dict()
    arrays = {name: value + 1 for name, value in before.items() if isinstance(value, np.ndarray)}
    with pytest.raises(error, match=message):
        optimizer.load_state_dict({**before, **arrays, **changes})
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("make", "changes", "error"),
    [
        (lambda o: optim.CosineAnnealingLR(o, 9), {"base_lr": 3.0, "warmup_steps": 9}, ValueError),
        (lambda o: optim.CosineAnnealingLR(o, 9), {"base_lr": 3.0, "total_steps": 0}, ValueError),
        (lambda o: optim.CosineAnnealingLR(o, 9), {"base_lr": 3.0, "last_step": 1.5}, TypeError),
        (lambda o: optim.StepLR(o, 2), {"base_lr": 3.0, "step_size": 0}, ValueError),
        (lambda o: optim.StepLR(o, 2), {"base_lr": 3.0, "gamma": 10.0, "last_step": 10**6}, OverflowError),
    ],
)
def test_a_schedule_is_loaded_whole_or_not_at_all(make: Any, changes: Any, error: type) -> None:
    optimizer = optim.SGD([Parameter(np.ones(2))], 0.5)
    schedule = make(optimizer)
    before = schedule.state_dict()
    with pytest.raises(error):
        schedule.load_state_dict({**before, **changes})
    assert schedule.state_dict() == before
    assert optimizer.lr == 0.5


# --- clipping -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), limit=st.floats(0.01, 20))
def test_clip_grad_norm(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    parameters = [Parameter(np.zeros(shape)) for shape in ((2, 3), (4,), (), (1,))]
    grads = [np.asarray(rng.normal(size=p.shape)) for p in parameters[:-1]]  # the last one has none
    for parameter, g in zip(parameters, grads, strict=False):
        parameter.grad = g.copy()
    norm = math.sqrt(math.fsum(float(v) ** 2 for g in grads for v in g.ravel()))
    assert optim.clip_grad_norm_(iter(parameters), limit) == pytest.approx(norm, rel=1e-14)
    factor = min(1.0, limit / (norm + 1e-6))
    for parameter, g in zip(parameters, grads, strict=False):
        np.testing.assert_allclose(parameter.grad, g * factor, rtol=1e-14)
    assert parameters[-1].grad is None


def test_clip_grad_norm_keeps_small_gradients_to_the_bit_and_the_dtype() -> None:
    parameter = Parameter(np.zeros(3, np.float32))
    parameter.grad = small = np.array([0.1, 0.2, 0.3], np.float32)
    optim.clip_grad_norm_(parameter, 10)
    assert np.array_equal(parameter.grad, small)
    optim.clip_grad_norm_(parameter, 0.01)
    assert parameter.grad.dtype == np.float32


def test_clip_grad_norm_does_not_overflow_in_float32() -> None:
    parameter = Parameter(np.zeros(2, np.float32))
    parameter.grad = np.array([3e30, 4e30], np.float32)
    assert optim.clip_grad_norm_([parameter], 1.0) == pytest.approx(5e30, rel=1e-6)
    np.testing.assert_allclose(parameter.grad, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_raises_where_asked(bad: float) -> None:
    parameter = Parameter(np.zeros(2))
    parameter.grad = np.array([1.0, bad])
    with pytest.raises(RuntimeError, match="norm of the gradients is"):
        optim.clip_grad_norm_([parameter], 1.0, error_if_nonfinite=True)
    assert parameter.grad[0] == 1
    assert not math.isfinite(optim.clip_grad_norm_([parameter], 1.0))


def test_clip_grad_value() -> None:
    parameters = [Parameter(np.zeros(4)), Parameter(np.zeros(1))]
    parameters[0].grad = np.array([-3.0, -0.5, 0.5, 3.0])
    optim.clip_grad_value_(parameters, 1)
    assert parameters[0].grad.tolist() == [-1, -0.5, 0.5, 1] and parameters[1].grad is None


# --- schedules --------------------------------------------------------------------------------------------------


def rates(schedule: optim.LRScheduler, steps: int) -> list[float]:
    found = [schedule.optimizer.lr]
    for _ in range(steps):
        schedule.step()
        found.append(schedule.optimizer.lr)
    return found


@given(base=RATES, size=st.integers(1, 5), gamma=st.floats(0.1, 1), warmup=st.integers(0, 4))
def test_step_schedule(base: float, size: int, gamma: float, warmup: int) -> None:
    schedule = optim.StepLR(optim.SGD([Parameter(np.ones(1))], base), size, gamma, warmup_steps=warmup)
    expected = [base * (i + 1) / (warmup + 1) for i in range(warmup)]
    rate = base
    for after in range(13 - warmup):
        if after and after % size == 0:
            rate *= gamma
        expected.append(rate)
    assert rates(schedule, 12) == pytest.approx(expected, rel=1e-12)


@given(base=RATES, total=st.integers(5, 12), floor=st.sampled_from([0.0, 1e-3]), warmup=st.integers(0, 4))
def test_cosine_schedule(base: float, total: int, floor: float, warmup: int) -> None:
    schedule = optim.CosineAnnealingLR(optim.SGD([Parameter(np.ones(1))], base), total, floor, warmup_steps=warmup)
    expected = []
    for i in range(16):
        if i < warmup:
            expected.append(base * (i + 1) / (warmup + 1))
        elif i <= total:
            # The same curve by the half-angle: cos²(x/2) = (1 + cos x)/2.
            expected.append(floor + (base - floor) * math.cos(math.pi * (i - warmup) / (total - warmup) / 2) ** 2)
        else:
            expected.append(floor)
    assert rates(schedule, 15) == pytest.approx(expected, rel=1e-9, abs=1e-16)


def test_schedules_without_warmup_against_pytorch(torch: Any) -> None:
    for ours, theirs in (
        (lambda o: optim.StepLR(o, 3, 0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
        (
            lambda o: optim.CosineAnnealingLR(o, 10, 0.01),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, 0.01),
        ),
    ):
        other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.3)
        schedule, expected = theirs(other), [0.3]
        for _ in range(10):
            other.step()
            schedule.step()
            expected.append(other.param_groups[0]["lr"])
        assert rates(ours(optim.SGD([Parameter(np.ones(1))], 0.3)), 10) == pytest.approx(expected, rel=1e-9)


# --- words ------------------------------------------------------------------------------------------------------


def test_numbers_out_of_their_domain_are_named() -> None:
    one = [Parameter(np.ones(1))]
    good = optim.SGD(one)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "lr: expected a number, at least 0 and finite, got -1", lambda: optim.SGD(one, -1)),
        (ValueError, "lr: .*got nan", lambda: optim.Adam(one, math.nan)),
        (TypeError, "lr: expected a number, got '0.1'", lambda: optim.Adam(one, "0.1")),
        (ValueError, "momentum: .*got -0.1", lambda: optim.SGD(one, momentum=-0.1)),
        (ValueError, "nesterov: expected a momentum", lambda: optim.SGD(one, nesterov=True)),
        (ValueError, "beta2: expected a number, at least 0 and less than 1, got 1",
         lambda: optim.Adam(one, betas=(0.9, 1))),
        (ValueError, "betas: expected two numbers", lambda: optim.Adam(one, betas=(0.9,))),
        (ValueError, "eps: .*got -1", lambda: optim.Adam(one, eps=-1)),
        (ValueError, "weight_decay: .*got -1", lambda: optim.AdamW(one, weight_decay=-1)),
        (ValueError, "params: expected at least one Parameter", lambda: optim.SGD([])),
        (TypeError, r"params\[0\]: expected a Parameter, got ndarray", lambda: optim.SGD([np.ones(1)])),
        (ValueError, r"params\[1\]: the same Parameter as params\[0\]", lambda: optim.SGD(one * 2)),
        (ValueError, r"params\[0\]: expected a Parameter, got a Tensor that was computed",
         lambda: optim.SGD([one[0] * 2])),
        (ValueError, "max_norm: .*got -1", lambda: optim.clip_grad_norm_(one, -1)),
        (ValueError, "clip_value: .*got -1", lambda: optim.clip_grad_value_(one, -1)),
        (ValueError, "step_size: expected at least 1, got 0", lambda: optim.StepLR(good, 0)),
        (ValueError, "gamma: .*got -2", lambda: optim.StepLR(good, 1, -2)),
        (TypeError, "warmup_steps: expected a whole number, got 1.5",
         lambda: optim.StepLR(good, 1, warmup_steps=1.5)),
        (ValueError, "warmup_steps: expected fewer than total_steps = 3, got 3",
         lambda: optim.CosineAnnealingLR(good, 3, warmup_steps=3)),
        (TypeError, "optimizer: expected an Optimizer, got list", lambda: optim.StepLR([], 1)),
    ]  # fmt: skip
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_training_lowers_a_loss_on_every_optimizer() -> None:
    x = np.random.default_rng(0).normal(size=(8, 5, 2)).astype(np.float32)
    target = np.cumsum(x[:, :, :1], axis=1)
    for make in MAKERS.values():
        model = nn.Sequential(nn.GRU(2, 8, rng=0), nn.Linear(8, 1, rng=1))
        optimizer = make(model.parameters())
        losses = []
        for _ in range(60):
            loss = nn.mse_loss(model(x)[0], target)
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


def test_pyrnn_gives_its_upper_floors() -> None:
    assert pyrnn.optim is optim and pyrnn.nn is nn
