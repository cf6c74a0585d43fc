"""Properties of the convolution family: what reaches which step, groups, dilation."""

from __future__ import annotations

import numpy as np
from hypothesis import assume

from ..ops.declaration import Op
from .bounds import Bounded
from .call import Call
from .general import as_reference
from .properties import all_within, expected, expected_gradients, prop
from .subject import Subject


def convolves(op: Op) -> bool:
    return "dilation" in op.options and "groups" in op.options


@prop("causality", applies=convolves, draws={"regimes": ("tiny", "small", "long", "deep")})
def causality(subject: Subject, call: Call) -> None:
    """A NaN in one channel at step t reaches its group at t + k·dilation, and what is handed on; nothing else."""
    rng = call.rng(11)
    row, step, channel = (int(rng.integers(call.sizes[symbol])) for symbol in ("B", "T", "Cin"))
    spoilt = {**call.arrays, "x": call.arrays["x"].copy()}
    spoilt["x"][row, step, channel] = np.nan
    what = f"with NaN in x[{row}, {step}, {channel}], "
    lost = np.isnan(as_reference(subject, call, expected(call), spoilt, what)["y"])
    K, dilation = call.sizes["K"], call.options.get("dilation", 1)
    reached = [step + tap * dilation for tap in range(K)]
    elsewhere = [t for t in range(call.sizes["T"]) if t not in reached]
    if lost[:, elsewhere].any():
        raise AssertionError(f"{what}y: expected NaN at the steps {reached} at most")


@prop("groups", applies=convolves, backward=True, share=0.5)
def groups(subject: Subject, call: Call) -> None:
    """Groups are separate convolutions, side by side."""
    count = call.options.get("groups", 1)
    assume(count > 1)
    sizes = {**call.sizes, "Cin": call.sizes["Cin"] // count, "Cout": call.sizes["Cout"] // count}
    alone = call.changed(sizes=sizes, config={k: v for k, v in call.config.items() if k != "groups"})
    axes = {"x": 2, "w": 0, "b": 0, "left": 2, "y": 2, "left_n": 2}  # where the channels are
    cotangents = call.cotangents()
    parts = {
        name: np.split(array, count, axis=axes[name]) for name, array in (*call.arrays.items(), *cotangents.items())
    }
    wants, bounds = [], []
    for group in range(count):
        want = expected(alone, {name: parts[name][group] for name in call.arrays})
        wants.append(want.outputs)
        bounds.append(expected_gradients(alone, want, {name: parts[name][group] for name in cotangents}))

    def side_by_side(found: list[dict[str, Bounded]]) -> dict[str, Bounded]:
        return {name: np.concatenate([one[name] for one in found], axis=axes[name]) for name in found[0]}  # type: ignore[misc]

    outputs, pullback = subject.vjp(call)
    all_within(outputs, side_by_side(wants), call.dtype, "beside separate convolutions, ")
    all_within(pullback(cotangents), side_by_side(bounds), call.dtype, "beside separate convolutions, gradient of ")


@prop("dilation", applies=convolves, backward=True, share=0.5, draws={"regimes": ("tiny", "small", "long", "tall")})
def dilation(subject: Subject, call: Call) -> None:
    """A dilated kernel is one with zeros between its taps."""
    step = call.options.get("dilation", 1)
    assume(step > 1 and call.sizes["K"] > 1)
    dense = call.changed(
        sizes={**call.sizes, "K": (call.sizes["K"] - 1) * step + 1},
        config={name: value for name, value in call.config.items() if name != "dilation"},
    )
    w = np.zeros(dense.shape("w"), call.dtype)
    w[..., ::step] = call.arrays["w"]
    want = expected(dense, {**call.arrays, "w": w})
    cotangents = call.cotangents()
    bounds = expected_gradients(dense, want, cotangents)
    bounds["w"] = bounds["w"][..., ::step]
    outputs, pullback = subject.vjp(call)
    all_within(outputs, want.outputs, call.dtype, "beside a kernel with zeros, ")
    all_within(pullback(cotangents), bounds, call.dtype, "beside a kernel with zeros, gradient of ")
