"""Properties of the recurrent family, and of any op over steps with lengths and a carried state."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import assume

from ..ops.declaration import Op
from .call import Call
from .properties import all_within, expected, expected_gradients, prop, same, within
from .subject import Subject


def ragged(op: Op) -> bool:
    return any(option.kind == "lengths" and option.bound == "T" for option in op.options.values())


def reversible(op: Op) -> bool:
    return "reverse" in op.options


def states(op: Op) -> dict[str, str]:
    """Return the states that an op carries: the array that brings each in, by the output that hands it on."""
    return dict(zip(list(op.outputs)[1:], op.state or (), strict=True)) if op.state else {}


def lengths_of(call: Call) -> np.ndarray:
    given = call.options.get("lengths")
    return np.full(call.sizes["B"], call.sizes["T"]) if given is None else given


def in_pads(array: np.ndarray, call: Call, fill: float) -> np.ndarray:
    """Return an array (B, T, ...) with its padded steps overwritten."""
    array = array.copy()
    for row, length in enumerate(lengths_of(call)):
        array[row, length:] = fill
    return array


@prop("padding", applies=ragged, backward=True, draws={"regimes": ("tiny", "small", "tall")})
def padding(subject: Subject, call: Call) -> None:
    """What the pads hold, NaN included, reaches nothing; results there are 0; a row of length 0 keeps its state."""
    assume(call.config.get("lengths") is not None)
    want = expected(call)
    cotangents = call.cotangents()
    bounds = expected_gradients(call, want, cotangents)
    sequences = [name for name, shape in call.declared.arrays.items() if shape.startswith("B T")]
    poisoned = {name: in_pads(a, call, np.nan) if name in sequences else a for name, a in call.arrays.items()}
    spoilt = {
        name: in_pads(v, call, np.nan) if call.declared.outputs[name].startswith("B T") else v
        for name, v in cotangents.items()
    }
    arrays = {name: subject.on_device(a) for name, a in poisoned.items()}
    inferred = subject.forward(call, arrays)
    outputs, pullback = subject.vjp(call, arrays)
    grads = pullback(spoilt)
    for label, got in (("with NaN in the pads, ", inferred), ("with NaN in the pads, for training, ", outputs)):
        all_within(got, want.outputs, call.dtype, label)
    all_within(grads, bounds, call.dtype, "with NaN in the pads, gradient of ")
    for row, length in enumerate(lengths_of(call)):
        for name in (n for n, shape in call.declared.outputs.items() if shape.startswith("B T")):
            if inferred[name][row, length:].any() or outputs[name][row, length:].any():
                raise AssertionError(f"{name}[{row}, {length}:]: expected zeros in the pads")
        for name in sequences:
            grad = grads[name]
            if grad is not None and grad[row, length:].any():
                raise AssertionError(f"gradient of {name}[{row}, {length}:]: expected zeros in the pads")
        for output, array in states(call.declared).items():
            initial = call.arrays[array][row] if array in call.arrays else np.zeros_like(inferred[output][row])
            if length == 0 and not np.array_equal(inferred[output][row], initial):
                raise AssertionError(f"{output}[{row}]: expected the initial state, as the row has no steps")


def reversed_steps(array: np.ndarray, call: Call) -> np.ndarray:
    """Return an array (B, T, ...) with each row's valid steps in the opposite order."""
    array = array.copy()
    for row, length in enumerate(lengths_of(call)):
        array[row, :length] = array[row, :length][::-1].copy()
    return array


@prop(
    "reversal", applies=reversible, backward=True, draws={"regimes": ("tiny", "small"), "config": {"reverse": (True,)}}
)
def reversal(subject: Subject, call: Call) -> None:
    """Running in reverse is running forward over the valid steps in the opposite order, from the last valid one on."""
    forward = call.changed(config={name: value for name, value in call.config.items() if name != "reverse"})
    turned = {**call.arrays, "x": reversed_steps(call.arrays["x"], call)}
    want = expected(forward, turned)
    cotangents = call.cotangents()
    bounds = expected_gradients(forward, want, {**cotangents, "y": reversed_steps(cotangents["y"], call)})
    outputs, pullback = subject.vjp(call)
    grads = pullback(cotangents)
    for got in (outputs, subject.forward(call)):
        all_within({**got, "y": reversed_steps(got["y"], call)}, want.outputs, call.dtype, "in reverse, ")
    if grads["x"] is not None:
        grads["x"] = reversed_steps(grads["x"], call)
    all_within(grads, bounds, call.dtype, "in reverse, gradient of ")


def in_chunks(subject: Subject, call: Call) -> dict[str, Any]:
    """Run a call in chunks of time, handing the state on."""
    rng = call.rng(7)
    T = call.sizes["T"]
    cuts = sorted({0, T, *(int(cut) for cut in rng.integers(0, T + 1, rng.integers(1, 4)))})
    if rng.integers(2):  # as many steps at a time, fewer than a convolution's context has
        cuts = [*range(0, T, int(rng.integers(1, 6))), T]
    arrays = subject.arrays(call)
    x, pieces, outputs = arrays["x"], [], {}
    for start, stop in pairwise(cuts):
        lengths = {}
        if call.config.get("lengths") is not None:
            lengths = {"lengths": np.clip(lengths_of(call) - start, 0, stop - start)}
        outputs = subject.forward(call, {**arrays, "x": x[:, start:stop]}, **lengths)
        pieces.append(outputs["y"])
        arrays.update({array: subject.on_device(outputs[output]) for output, array in states(call.declared).items()})
    return {**outputs, "y": np.concatenate(pieces, axis=1)}


FORWARD_IN_TIME = {"config": {"reverse": (False,)}, "regimes": ("tiny", "small", "long", "tall")}


def carries(op: Op) -> bool:
    return bool(states(op))


@prop("chunk", applies=carries, share=0.5, draws=FORWARD_IN_TIME)
def chunk(subject: Subject, call: Call) -> None:
    """Running in chunks of time, each from the state of the one before, gives what running whole gives."""
    # A state handed over is rounded once more than one that is kept, which the next steps pass on.
    got = in_chunks(subject, call)
    for name, want in expected(call).outputs.items():
        within(f"in chunks, {name}", got[name], want, call.dtype)


@prop("chunk-bitwise", applies=carries, claim="chunk", draws=FORWARD_IN_TIME)
def chunk_bitwise(subject: Subject, call: Call) -> None:
    """Nor does a bit of it change."""
    same("", in_chunks(subject, call), subject.forward(call), "in chunks and whole are not the same to the bit")
