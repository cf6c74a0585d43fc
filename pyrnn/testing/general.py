"""Properties that any op can have: values, gradients, layouts, errors; independence of calls, rows and threads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import assume

from ..ops.shapes import is_broadcast, split_dimension
from ..reference.backend import ReferenceBackend
from ..threads import num_threads
from .bounds import allowed
from .call import LAYOUTS, Call
from .properties import (
    Expected,
    all_within,
    arguments,
    expected,
    expected_gradients,
    prop,
    same,
    same_bits,
    same_kind,
    within,
)
from .strategies import fitting
from .subject import BackendSubject, Subject, to_host

MODERATE = (1.0, 4.0)


@prop("value")
def value(subject: Subject, call: Call) -> None:
    """Outputs are the reference's in float64, within the running error bound; dtype and shape are as declared."""
    all_within(subject.forward(call), expected(call).outputs, call.dtype)


@prop("gradient", backward=True)
def gradient(subject: Subject, call: Call) -> None:
    """Outputs and gradients in training are the reference's in float64, within the running error bound."""
    want = expected(call)
    outputs, pullback = subject.vjp(call)
    all_within(outputs, want.outputs, call.dtype)
    cotangents = call.cotangents()
    all_within(pullback(cotangents), expected_gradients(call, want, cotangents), call.dtype, "gradient of ")


# --- sizes, one after the other ---

# One below, at and above what kernels are cut for, and some in between. Steps and units are costly, so fewer of them.
LADDER = (*range(5, 10), 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 192, 255, 256, 257)
LADDER = (*LADDER, 300, 384, 400, 500, 511, 512, 513, 600, 640, 768, 800, 1000, 1023, 1024, 1025)
LADDERS = {
    "H": [*(size for size in LADDER if size <= 257), 320, 512],
    "T": [16, 17, 32, 33, 64, 65, 129, 1024],
    "Hq": [*range(5, 10), 16, 33],
    "Hkv": [*range(5, 10), 16, 33],
    "K": [*range(5, 10), 16, 33],
}
# Some pairs, for the ops that have the symbols.
PAIRS = (
    {"T": 320, "H": 33}, {"B": 200, "H": 80}, {"B": 72, "T": 72, "H": 24},
    {"N": 70, "M": 300, "D": 64}, {"N": 33, "M": 513, "Dv": 40}, {"M": 1024, "D": 64, "Hq": 8},
    {"N": 40, "M": 260, "A": 24}, {"N": 40, "M": 260, "Dk": 70},
    {"T": 300, "Cin": 48, "Cout": 48}, {"T": 70, "Cin": 130, "Cout": 33, "K": 7},
)  # fmt: skip


def resized(call: Call, **symbols: int) -> Call:
    """Return a call of other sizes, its options' arrays drawn anew by the call's seed."""
    sizes = {**call.sizes, **{name: (size,) if name == "..." else size for name, size in symbols.items()}}
    config = dict(call.config)
    if "..." in symbols:
        config.pop("axis", None)  # the number of dimensions may be another
    if "Hkv" in symbols:
        sizes["Hq"] = sizes["Hkv"]
    sizes = fitting(call.op, sizes, call.optional)
    rng = call.rng(10)
    one = call.changed(sizes=sizes)
    for name, option in call.declared.options.items():
        if option.kind == "whole" and option.bound and name in config:
            config[name] = math.gcd(config[name], *(sizes[symbol] for symbol in option.bound.split()))
        if option.shape and config.get(name) is not None:
            most = {"lengths": sizes.get(option.bound), "mask": 1, "positions": sizes.get("M")}.get(option.kind)
            if most is None:
                most = sizes[option.bound or "C"] - 1
            drawn = rng.integers(0, most, one.shape(name), endpoint=True)
            if option.kind == "lengths":
                drawn[:1] = most  # one row at least is as long as all
            config[name] = (drawn > 0 if option.kind == "mask" else drawn).tolist()
    return call.changed(sizes=sizes, config=config)


@prop(
    "sizes",
    share=0.02,
    draws={"regimes": ("tiny",), "sizes": {"...": (1, 1)}, "gains": (1.0,), "zeros": (0.0,)},
)
def sizes(subject: Subject, call: Call) -> None:
    """Value and gradient hold at one size of each dimension after the other, up to a thousand, and at some pairs."""
    rungs = [{symbol: size} for symbol in call.sizes for size in LADDERS.get(symbol, LADDER)]
    for rung in (*rungs, *(pair for pair in PAIRS if set(pair) <= set(call.sizes))):
        one = resized(call, **rung)
        where = f"with {' and '.join(f'{name} = {size}' for name, size in rung.items())}, "
        want = expected(one)
        all_within(subject.forward(one), want.outputs, one.dtype, where)
        if subject.has_backward(one.op):
            outputs, pullback = subject.vjp(one)
            all_within(outputs, want.outputs, one.dtype, f"{where}for training, ")
            cotangents = one.cotangents()
            bounds = expected_gradients(one, want, cotangents)
            all_within(pullback(cotangents), bounds, one.dtype, f"{where}gradient of ")


# --- differences -------------------------------------------------------------------------------------------

STEP = 2.0**-10


def slope(function: Any, step: float) -> float:
    """Return the derivative at 0 by central differences of fourth order (Abramowitz, Stegun 1964, 25.3.6)."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return float((8 * near - far) / (12 * step))


def differences(
    call: Call, run: Any, direction: Mapping[str, np.ndarray], cotangents: Mapping[str, Any]
) -> tuple[float, float]:
    """Return the slope of ⟨v, f⟩ along a direction by differences, and what it may be off by.

    ``run`` maps arrays to outputs in float64. The error is what two step sizes differ by (truncation), and the rounding
    of the outputs, which a difference divides by the step.
    """
    base = {name: array.astype(np.float64) for name, array in call.arrays.items()}

    def along(t: float) -> float:
        moved = {name: array + t * direction[name] if name in direction else array for name, array in base.items()}
        outputs = run(moved)
        if call.config.get("activation") == "relu":  # a difference across a kink is no derivative
            assume(np.array_equal(outputs["y"] > 0, here > 0))
        return float(sum((v * outputs[name]).sum(dtype=np.float64) for name, v in cotangents.items()))

    here = next(iter(run(base).values()))
    coarse, fine = slope(along, STEP), slope(along, STEP / 2)
    want = expected(call.changed(dtype="float64"), base).outputs
    noise = sum(float((np.abs(v) * allowed(want[name], "float64")).sum()) for name, v in cotangents.items())
    return fine, abs(coarse - fine) + 4 * noise / STEP + 1e-12 * (1 + abs(fine))


@prop(
    "difference",
    backward=True,
    share=0.5,
    draws={"dtypes": ("float64",), "regimes": ("tiny", "small"), "gains": MODERATE},
)
def difference(subject: Subject, call: Call) -> None:
    """In float64, each gradient is the slope by central differences, in a random direction, with random cotangents."""
    _, pullback = subject.vjp(call)
    cotangents = call.cotangents()
    grads = pullback(cotangents)
    rng = call.rng(1)

    def run(arrays: Mapping[str, Any]) -> Any:
        return subject.forward(call, {name: subject.on_device(a) for name, a in arrays.items()})

    for name, array in call.arrays.items():
        direction = rng.standard_normal(array.shape)
        want, error = differences(call, run, {name: direction}, cotangents)
        grad = grads[name]
        if grad is None:
            raise AssertionError(f"gradient of {name}: expected an array, got None")
        got = float((grad * direction).sum())
        if not abs(got - want) <= error:
            raise AssertionError(
                f"gradient of {name}: along a direction expected {want:.9g} by differences, within {error:.2g}, "
                f"got {got:.9g}"
            )


@prop(
    "adjoint", backward=True, share=0.3, draws={"dtypes": ("float32",), "regimes": ("tiny", "small"), "gains": MODERATE}
)
def adjoint(subject: Subject, call: Call) -> None:
    """In float32, ⟨v, J u⟩ = ⟨Jᵀ v, u⟩ for random u, v: J u by differences of the reference, Jᵀ v by backward."""
    want = expected(call)
    _, pullback = subject.vjp(call)
    cotangents = call.cotangents()
    grads = pullback(cotangents)
    bounds = expected_gradients(call, want, cotangents)
    rng = call.rng(2)
    direction = {name: rng.standard_normal(array.shape) for name, array in call.arrays.items()}

    def run(arrays: Mapping[str, Any]) -> Any:
        return {name: out.value for name, out in expected(call.changed(dtype="float64"), arrays).outputs.items()}

    forth, error = differences(call, run, direction, cotangents)
    back = 0.0
    for name, u in direction.items():
        grad = grads[name]
        if grad is None:
            raise AssertionError(f"gradient of {name}: expected an array, got None")
        back += float((grad.astype(np.float64) * u).sum())
        error += float((allowed(bounds[name], call.dtype) * np.abs(u)).sum())
    if not abs(forth - back) <= error:
        raise AssertionError(f"⟨v, J u⟩ = {forth:.9g} but ⟨Jᵀ v, u⟩ = {back:.9g}, which is not within {error:.2g}")


# --- arrays of any kind ------------------------------------------------------------------------------------


@prop("layouts", backward=True, share=0.5, draws={"regimes": ("tiny", "small", "wide", "tall"), "layouts": LAYOUTS})
def layouts(subject: Subject, call: Call) -> None:
    """Strided, transposed, reversed, repeated, unaligned, read-only arrays and cotangents give what plain ones give."""
    want = expected(call)
    arrays = subject.arrays(call)
    all_within(subject.forward(call, arrays), want.outputs, call.dtype)
    outputs, pullback = subject.vjp(call, arrays)
    all_within(outputs, want.outputs, call.dtype)
    cotangents = call.cotangents()
    rng = call.rng(3)
    lying = {
        name: subject.on_device(v, str(rng.choice([layout for layout in subject.layouts if layout != "repeated"])))
        for name, v in cotangents.items()
    }
    all_within(pullback(lying), expected_gradients(call, want, cotangents), call.dtype, "gradient of ")


MAY_BE_0 = "B", "T", "I", "H", "F", "O", "D", "N", "M", "Dv", "Hq", "Dq", "Dk", "A", "Cin", "Cout", "... size"
NOTHING = dict.fromkeys(MAY_BE_0, (0, 2))


@prop("empty", backward=True, share=0.5, draws={"regimes": ("tiny",), "sizes": NOTHING})
def empty(subject: Subject, call: Call) -> None:
    """Sizes of 0 and 1 work, forward and backward: no rows, no steps, no features."""
    value(subject, call)
    gradient(subject, call)


@prop("nan", share=0.5, draws={"regimes": ("tiny", "small"), "config": {"axis": (-1,)}})
def nan(subject: Subject, call: Call) -> None:
    """A NaN in one row of an input or a state reaches what the reference says, no other row, and is never swallowed."""
    rows = call.symbols(next(iter(call.arrays))).split()[0]
    name = str(call.rng(8).choice([n for n in call.arrays if call.symbols(n).split()[0] == rows]))
    spoilt = {key: array.copy() for key, array in call.arrays.items()}
    if not spoilt[name].size or not spoilt[name].ndim:
        return
    row = int(call.rng(4).integers(len(spoilt[name])))
    spoilt[name][row] = np.nan
    as_reference(subject, call, expected(call), spoilt, f"with NaN in row {row} of {name}, ")


def as_reference(
    subject: Subject, call: Call, clean: Expected, spoilt: Mapping[str, np.ndarray], what: str
) -> dict[str, np.ndarray]:
    """Hold a forward with NaN in its arrays against the reference's: NaN in the same places, the rest as when clean.

    Return the reference's outputs.
    """
    checked, options = arguments(call, {key: array.astype(np.float64) for key, array in spoilt.items()})
    with np.errstate(invalid="ignore"):
        outputs, _ = getattr(ReferenceBackend(), f"{call.op}_forward")(checked, options)
        got = subject.forward(call, {key: subject.on_device(array) for key, array in spoilt.items()})
    named = dict(zip(call.declared.outputs, outputs, strict=True))
    for key, reference in named.items():
        lost = np.isnan(reference)
        same_kind(f"{what}{key}", got[key], call.dtype, reference.shape)
        if not np.array_equal(np.isnan(got[key]), lost):
            at = [int(i) for i in np.argwhere(np.isnan(got[key]) != lost)[0]]
            which = "is NaN but should not be" if lost.size and not lost[tuple(at)] else "should be NaN but is not"
            raise AssertionError(f"{what}{key}{at} {which}")
        within(f"{what}{key}", got[key], clean.outputs[key], call.dtype, where=~lost)
    return named


# --- calls don't disturb each other, nor their arguments -------------------------------------------------------


@prop("inputs", backward=True, share=0.5, draws={"regimes": ("tiny", "small")})
def inputs(subject: Subject, call: Call) -> None:
    """Nothing handed over is written to: arrays, options, cotangents. No result is one of them, or part of one."""
    arrays = {name: subject.on_device(array.copy()) for name, array in call.arrays.items()}
    config = call.options
    cotangents = call.cotangents()
    given = {name: subject.on_device(v.copy()) for name, v in cotangents.items()}
    results = subject.forward(call, arrays, **config)
    outputs, pullback = subject.vjp(call, arrays, **config)
    grads = pullback(given)
    for kept, now in ((call.arrays, arrays), (cotangents, given)):
        for name, before in kept.items():
            after = now[name].get() if hasattr(now[name], "get") else now[name]
            same_bits(name, np.asarray(after), before, "was written to")
    for name, option in call.options.items():
        if not np.array_equal(config[name], option):
            raise AssertionError(f"{name}: was written to")
    handed = [a for a in (*arrays.values(), *given.values()) if isinstance(a, np.ndarray)]
    found = {**{f"{name}": a for name, a in results.items()}, **{f"gradient of {n}": g for n, g in grads.items()}}
    for own in (results, outputs, grads):
        for (name, array), (other, second) in combinations(own.items(), 2):
            if array is not None and second is not None and np.may_share_memory(array, second):
                raise AssertionError(f"{name} and {other} share memory; results are the caller's own")
    for name, array in (*found.items(), *outputs.items()):
        if array is not None and any(np.may_share_memory(array, other) for other in handed):
            raise AssertionError(f"{name}: shares memory with an argument; results are the caller's own")
        if array is not None and not array.flags.writeable and isinstance(subject, BackendSubject):
            raise AssertionError(f"{name}: can't be written to; results are the caller's own")


LATER = 6  # calls, so that results kept in a ring of buffers are found too


@prop("independence", backward=True, share=0.3, draws={"regimes": ("tiny", "small")})
def independence(subject: Subject, call: Call) -> None:
    """Results outlive later calls; two forwards may come before their backwards; weights changed in place count."""
    other = call.changed(seed=call.seed + 1)
    want, want_other = expected(call), expected(other)
    cotangents, cotangents_other = call.cotangents(), other.cotangents()
    arrays = {name: subject.on_device(array.copy()) for name, array in call.arrays.items()}
    first = subject.forward(call, arrays)
    trained, pullback = subject.vjp(call, arrays)
    kept = {name: array.copy() for name, array in (*first.items(), *((f"{n}'", a) for n, a in trained.items()))}
    for _ in range(LATER):
        subject.forward(other)
    _, pullback_other = subject.vjp(other)
    grads = pullback(cotangents)
    kept_grads = {name: None if g is None else g.copy() for name, g in grads.items()}
    for _ in range(LATER):
        grads_other = pullback_other(cotangents_other)
    bounds = expected_gradients(call, want, cotangents)
    all_within(grads, bounds, call.dtype, "after another forward, gradient of ")
    all_within(
        grads_other,
        expected_gradients(other, want_other, cotangents_other),
        call.dtype,
        "of two forwards, gradient of ",
    )
    same("", {**first, **{f"{n}'": a for n, a in trained.items()}}, kept, "a later call wrote to an earlier result")
    same("gradient of ", grads, kept_grads, "a later call wrote to an earlier result")
    for name, array in arrays.items():
        array[...] = subject.on_device(other.arrays[name])
    all_within(subject.forward(other, arrays), want_other.outputs, call.dtype, "after a change in place, ")
    changed, pullback = subject.vjp(other, arrays)
    all_within(changed, want_other.outputs, call.dtype, "after a change in place, for training, ")
    all_within(
        pullback(cotangents_other),
        expected_gradients(other, want_other, cotangents_other),
        call.dtype,
        "after a change in place, gradient of ",
    )


@prop("backward", backward=True, share=0.5, draws={"regimes": ("tiny", "small")})
def backward(subject: Subject, call: Call) -> None:
    """Backward may run twice, gives just what is needed, and takes None for a zero cotangent."""
    want = expected(call)
    _, pullback = subject.vjp(call)
    cotangents = call.cotangents()
    first = {name: None if g is None else g.copy() for name, g in pullback(cotangents).items()}
    rng = call.rng(5)
    names = list(call.declared.arrays)
    needs = [bool(rng.integers(2)) for _ in names]
    absent = [name for name in cotangents if rng.integers(2)] or list(cotangents)[-1:]
    missing = {name: None if name in absent else v for name, v in cotangents.items()}
    zeros = {name: np.zeros_like(v) if name in absent else v for name, v in cotangents.items()}
    some = pullback(cotangents, needs)
    without = pullback(missing)
    with_zeros = pullback(zeros)
    again = pullback(cotangents)
    bounds = expected_gradients(call, want, cotangents)
    all_within(first, bounds, call.dtype, "gradient of ")
    all_within(again, bounds, call.dtype, "the second time, gradient of ")
    bounds_without = expected_gradients(call, want, zeros)
    for grads, given in ((without, "None"), (with_zeros, "zeros")):
        what = f"with {given} for the cotangent of {' and '.join(absent)}, gradient of "
        all_within(grads, bounds_without, call.dtype, what)
    for name, need in zip(names, needs, strict=True):
        if not need and some[name] is not None:
            raise AssertionError(f"gradient of {name}: expected None where it is not needed, got an array")
        if need and name in call.arrays:
            within(f"where only some are needed, gradient of {name}", some[name], bounds[name], call.dtype)


@prop("inference", of_backends=True, share=0.2, draws={"regimes": ("tiny", "small")})
def inference(subject: Subject, call: Call) -> None:
    """With ``needs=None`` a forward keeps nothing for a backward."""
    assert isinstance(subject, BackendSubject)
    checked, options = arguments(call, subject.arrays(call), subject.backend)
    _, saved = getattr(subject.backend, f"{call.op}_forward")(checked, options, needs=None)
    if saved is not None:
        raise AssertionError(f"saved: expected None in inference, got a {type(saved).__name__}")


@prop(
    "packed",
    applies=lambda op: op.state is not None,
    of_backends=True,
    share=0.3,
    draws={"regimes": ("tiny", "small", "wide", "tall")},
)
def packed(subject: Subject, call: Call) -> None:
    """Weights packed once give each bit that the forward gives, whatever becomes of them; in arrays given as well."""
    assert isinstance(subject, BackendSubject)
    declared, backend = call.declared, subject.backend
    checked, options = arguments(call, subject.arrays(call), backend)
    names = list(declared.outputs)
    want = subject.forward(call)
    states = declared.state or ()
    first, *_ = declared.arrays
    weights = {
        name: None if array is None or name in (first, *states) else array.copy()
        for name, array in zip(declared.arrays, checked, strict=True)
    }
    lengths = {"lengths": None} if "lengths" in declared.options else {}
    made = getattr(backend, f"{call.op}_pack")(declared.Arrays(**weights), options._replace(**lengths))
    for array in weights.values():
        if array is not None:
            array[...] = np.nan
    run = getattr(backend, f"{call.op}_run")
    x = checked[0]
    state: Any = tuple(getattr(checked, name) for name in states)
    if state and all(array is None for array in state):
        state = None
    elif state:
        shape = next(array.shape for array in state if array is not None)
        state = tuple(subject.xp.zeros(shape, x.dtype) if array is None else array for array in state)
    given = getattr(options, "lengths", None)
    out = tuple(subject.xp.full(want[name].shape, np.nan, x.dtype) for name in names)
    for label, into in (("packed, ", None), ("packed and into arrays given, ", (out[0], out[1:]))):
        y, new = run(made, x, state, lengths=given, out=into)
        for name, got in zip(names, (y, *new), strict=True):
            same_bits(f"{label}{name}", to_host(got), want[name], "expected what the forward gives")
    for name, got in zip(names, out, strict=True):
        same_bits(f"out of {name}", to_host(got), want[name], "expected what the forward gives")


@prop("concurrency", backward=True, share=0.1, draws={"regimes": ("small", "busy")})
def concurrency(subject: Subject, call: Call) -> None:
    """Calls from several Python threads at once give what they give alone."""
    mine = [call.changed(seed=call.seed + k) for k in range(4)]
    wants = [expected(one) for one in mine]

    def run(k: int) -> None:
        one, want = mine[k % 4], wants[k % 4]
        cotangents = one.cotangents()
        all_within(subject.forward(one), want.outputs, one.dtype)
        outputs, pullback = subject.vjp(one)
        all_within(outputs, want.outputs, one.dtype)
        all_within(pullback(cotangents), expected_gradients(one, want, cotangents), one.dtype, "gradient of ")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(8)))


# --- rows and threads --------------------------------------------------------------------------------------


def rows_of(call: Call, rows: list[int]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the options of some rows of the batch (the first of all leading dimensions)."""

    def pick(name: str, value: Any) -> Any:
        has_rows = call.symbols(name).split()[:1] in (["B"], ["..."]) and np.ndim(value)
        return np.asarray(value)[rows] if has_rows else value

    arrays = {name: pick(name, array) for name, array in call.arrays.items()}
    config = {name: pick(name, value) for name, value in call.options.items()}
    return arrays, config


def some_rows(call: Call) -> list[int]:
    batch = call.sizes["B"] if "B" in call.sizes else (call.sizes["..."] or (0,))[0]
    assume(batch > 0)
    rng = call.rng(6)
    return [int(row) for row in rng.integers(0, batch, rng.integers(1, batch + 2))]


BATCHED = {"sizes": {"...": (1, 3)}, "config": {"axis": (-1,), "dropout": (0.0,)}}  # what is dropped depends on the row


@prop("batch", share=0.3, draws=BATCHED)
def batch(subject: Subject, call: Call) -> None:
    """A row's result does not depend on the batch that it is in."""
    rows = some_rows(call)
    arrays, config = rows_of(call, rows)
    got = subject.forward(call, {name: subject.on_device(a) for name, a in arrays.items()}, **config)
    want = {name: bounded[rows] for name, bounded in expected(call).outputs.items()}
    all_within(got, want, call.dtype, "of some rows, ")


@prop("batch-bitwise", claim="batch", share=0.5, draws=BATCHED)
def batch_bitwise(subject: Subject, call: Call) -> None:
    """Nor does any bit of it."""
    rows = some_rows(call)
    arrays, config = rows_of(call, rows)
    whole = subject.forward(call)
    got = subject.forward(call, {name: subject.on_device(a) for name, a in arrays.items()}, **config)
    want = {name: output[rows] for name, output in whole.items()}
    same("", got, want, f"rows {rows} alone and in their batch are not the same to the bit")


THREADS = (1, 2, 3, 8)


@prop(
    "threads", of_backends=True, backward=True, share=0.5, draws={"regimes": ("small", "wide", "tall", "busy", "busy")}
)
def threads(subject: Subject, call: Call) -> None:
    """Outputs and gradients are right with any number of threads."""
    want = expected(call)
    cotangents = call.cotangents()
    bounds = expected_gradients(call, want, cotangents)
    for n in (*THREADS, int(call.rng(9).integers(4, 17))):
        with num_threads(n):
            all_within(subject.forward(call), want.outputs, call.dtype, f"with {n} threads, ")
            outputs, pullback = subject.vjp(call)
            all_within(outputs, want.outputs, call.dtype, f"with {n} threads, ")
            all_within(pullback(cotangents), bounds, call.dtype, f"with {n} threads, gradient of ")


@prop(
    "threads-bitwise",
    of_backends=True,
    claim="threads",
    share=0.5,
    draws={"regimes": ("small", "wide", "tall", "busy", "busy")},
)
def threads_bitwise(subject: Subject, call: Call) -> None:
    """Outputs are the same to the bit with any number of threads."""
    results = []
    for n in THREADS:
        with num_threads(n):
            results.append(subject.forward(call))
            same("", results[-1], results[0], f"1 and {n} threads do not give the same bits")


@prop(
    "gradient-threads-bitwise",
    of_backends=True,
    backward=True,
    claim="weight gradients",
    share=0.5,
    draws={"regimes": ("small", "wide", "tall", "busy", "busy")},
)
def gradient_threads_bitwise(subject: Subject, call: Call) -> None:
    """Gradients are the same to the bit with any number of threads."""
    cotangents = call.cotangents()
    results = []
    for n in THREADS:
        with num_threads(n):
            results.append(subject.vjp(call)[1](cotangents))
            same("gradient of ", results[-1], results[0], f"1 and {n} threads do not give the same bits")


# --- errors ------------------------------------------------------------------------------------------------


# A value outside of an option's domain, by its kind.
WRONG: dict[str, tuple[type[Exception], Any]] = {
    "flag": (TypeError, "yes"),
    "choice": (ValueError, "nonsense"),
    "positive": (ValueError, -1.0),
    "lengths": (TypeError, 1.5),
    "mask": (TypeError, [2]),
    "number": (ValueError, math.inf),
    "whole": (ValueError, 0),
    "probability": (ValueError, 1.0),
    "seed": (ValueError, -1),
    "window": (TypeError, 3),
    "positions": (TypeError, 1.5),
}
SMALL = {"regimes": ("tiny",), "sizes": {"B": (2, 3), "... size": (2, 3)}}


@dataclass(frozen=True)
class Mistake:
    """A call that must be refused: what is wrong, the exception that says so, the names that it may begin with."""

    what: str
    kind: type[Exception]
    names: list[str]
    arrays: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def mistakes(subject: Subject, call: Call) -> Iterator[Mistake]:
    """Go through all that can be wrong with a call's arguments, one by one."""
    arrays = subject.arrays(call)
    declared = call.declared
    shapes = {name: call.symbols(name).split() for name in arrays}
    broadcast = [name for name in arrays if is_broadcast(declared.arrays[name])]
    for name, array in arrays.items():
        yield Mistake(f"{name} of float16", TypeError, [name], {name: array.astype("float16")})
        if len(arrays) > 1:
            other = {"float32": "float64", "float64": "float32"}[call.dtype]
            yield Mistake(f"{name} alone of {other}", TypeError, list(arrays), {name: array.astype(other)})
        if shapes[name][0] != "...":
            more = 1 + len(declared.arrays[name].split()) - array.ndim  # what is broadcast may have fewer
            yield Mistake(f"{name} with one dimension more", ValueError, [name], {name: array[(None,) * more]})
        for axis, dimension in enumerate(shapes[name]):
            symbol = split_dimension(dimension)[1]
            sharing = [n for n in arrays if symbol and binds(call, n, symbol)]
            held = [key for key in call.config if symbol and binds(call, key, symbol)]
            at = axis - len(shapes[name])  # from the right: `...` is any number of dimensions
            if dimension != "..." and len(sharing) + len(held) > 1 and array.shape[at]:  # else no size is wrong
                bounded = [key for key, o in declared.options.items() if symbol in f"{o.shape} {o.bound}"]
                names = [name, *sharing, *held, *bounded]
                twice = subject.xp.concatenate([array, array], axis=at)
                yield Mistake(f"{name} with {symbol} twice as large", ValueError, names, {name: twice})
                if array.shape[at] > 1 and name not in broadcast:
                    one = subject.xp.take(array, subject.xp.arange(1), axis=at)
                    yield Mistake(f"{name} with 1 for {symbol}, to be broadcast", ValueError, names, {name: one})
    for name in declared.required:
        yield Mistake(f"{name} of None", TypeError, [name], {name: None})
    for name, option in declared.options.items():
        if subject.claim(call.op).options.get(name) != (option.default,) and option.kind in WRONG:
            kind, wrong = WRONG[option.kind]
            yield Mistake(f"{name} of {wrong!r}", kind, [name], config={name: wrong})


def binds(call: Call, name: str, symbol: str) -> bool:
    """Tell whether an array, or an option that is one, allows a single size of a symbol."""
    option = call.declared.options.get(name)
    if option and not isinstance(call.options.get(name), np.ndarray):
        return False
    dimensions = call.symbols(name).split()
    if is_broadcast(option.shape if option else call.declared.arrays[name]):
        dimensions = [d for d, size in zip(dimensions, call.shape(name), strict=True) if size != 1]
    return any(symbol in (split_dimension(d)[1], *re.findall("[A-Za-z]+", d)) for d in dimensions)


@prop("refusal", share=0.1, draws=SMALL)
def refusal(subject: Subject, call: Call) -> None:
    """A wrong dtype, shape or option, or None for an array, raises an exception: it is never taken in silence."""
    arrays = subject.arrays(call)
    for mistake in mistakes(subject, call):
        try:
            subject.forward(call, {**arrays, **mistake.arrays}, **mistake.config)
        except Exception:
            continue
        raise AssertionError(f"{mistake.what}: expected an exception, but it was taken")


@prop("errors", of_backends=True, share=0.1, draws=SMALL)
def errors(subject: Subject, call: Call) -> None:
    """A wrong dtype is a TypeError, a wrong shape a ValueError, and the message begins with the argument's name."""
    arrays = subject.arrays(call)
    for mistake in mistakes(subject, call):
        wanted = f"{mistake.what}: expected a {mistake.kind.__name__}"
        try:
            subject.forward(call, {**arrays, **mistake.arrays}, **mistake.config)
        except mistake.kind as error:
            if not str(error).startswith(tuple(mistake.names)):
                raise AssertionError(f"{wanted} that begins with {' or '.join(mistake.names)}: {error}") from error
        except Exception as error:
            raise AssertionError(f"{wanted}, got {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"{wanted}, but it was taken")
