"""Properties of the basic family."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from ..ops.declaration import Op
from .call import Call
from .properties import all_within, expected, expected_gradients, prop
from .subject import Subject


def masked(op: Op) -> bool:
    """Tell whether an op has a mask over rows, which may be left out one by one."""
    return any(option.kind == "mask" and option.shape == "..." for option in op.options.values())


@prop("mask", applies=masked, backward=True, draws={"regimes": ("tiny", "small"), "sizes": {"...": (1, 3)}})
def mask(subject: Subject, call: Call) -> None:
    """What is masked reaches nothing, NaN included: its result and its gradient are 0."""
    assume(call.config.get("mask") is not None)
    counts = call.options["mask"]
    want = expected(call)
    cotangents = call.cotangents()
    bounds = expected_gradients(call, want, cotangents)
    poisoned = {
        name: np.where(counts[..., None], array, np.nan).astype(call.dtype) for name, array in call.arrays.items()
    }
    spoilt = {name: np.where(counts, v, np.nan).astype(call.dtype) for name, v in cotangents.items()}
    outputs, pullback = subject.vjp(call, {name: subject.on_device(a) for name, a in poisoned.items()})
    grads = pullback(spoilt)
    all_within(outputs, want.outputs, call.dtype, "with NaN where it is masked, ")
    all_within(grads, bounds, call.dtype, "with NaN where it is masked, gradient of ")
    for name, result in (*outputs.items(), *((f"gradient of {n}", g) for n, g in grads.items())):
        if result is not None and result[~counts].any():
            raise AssertionError(f"{name}: expected zeros where it is masked")
