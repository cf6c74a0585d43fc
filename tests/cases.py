"""Drawn calls of the recurrent ops: arrays of any layout, with a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import pyrnn

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
LAYOUTS = ("C", "time-major", "F", "every other", "backwards", "read-only")


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Return the same values in another memory layout."""
    if layout == "time-major" and array.ndim > 1:
        return np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "every other":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "backwards":
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@dataclass
class Call:
    """One call of an op; ``rng`` is for whatever else the test draws."""

    op: str
    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    rng: np.random.Generator

    def run(self, backend: str = "cython", **changes: Any) -> Any:
        return getattr(pyrnn, self.op)(**{**self.arrays, **changes}, **self.config, backend=backend)

    def vjp(self, backend: str = "cython", **changes: Any) -> Any:
        return pyrnn.vjp(getattr(pyrnn, self.op), **{**self.arrays, **changes}, **self.config, backend=backend)

    def cotangents(self, outputs: Any) -> list[np.ndarray]:
        return [self.rng.standard_normal(output.shape).astype(output.dtype) for output in outputs]

    def __repr__(self) -> str:  # what Hypothesis prints of a failing example
        shapes = {name: (a.shape, str(a.dtype), a.strides) for name, a in self.arrays.items()}
        return f"Call({self.op!r}, {shapes}, {self.config})"


@st.composite
def calls(
    draw: Any,
    *,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    ops: tuple[str, ...] = ("rnn", "lstm", "gru"),
    batch: tuple[int, int] = (0, 9),
    time: tuple[int, int] = (0, 10),
    inputs: tuple[int, int] = (1, 40),
    hidden: tuple[int, int] = (1, 70),
    ragged: bool | None = None,
    reverse: bool | None = None,
) -> Call:
    """Draw a call. Weights are small enough that errors do not grow from step to step: |W_hh| sums to < 1 a row."""
    op = draw(st.sampled_from(ops))
    dtype = draw(st.sampled_from(dtypes))
    B, T, I, H = (draw(st.integers(*bounds)) for bounds in (batch, time, inputs, hidden))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = GATES[op] * H

    def uniform(*shape: int, bound: float = 1.0) -> np.ndarray:
        array = rng.uniform(-bound, bound, shape).astype(dtype)
        return laid_out(array, draw(st.sampled_from(LAYOUTS)))

    config: dict[str, Any] = {"reverse": draw(st.booleans()) if reverse is None else reverse}
    arrays = {
        "x": uniform(B, T, I, bound=2.0),
        "w_ih": uniform(rows, I, bound=2 / np.sqrt(I)),
        "w_hh": uniform(rows, H, bound=1 / H),
    }
    if draw(st.booleans()):
        arrays["b"] = uniform(rows)
    if draw(st.booleans()):
        arrays["h0"] = uniform(B, H)
    if op == "rnn":
        config["activation"] = draw(st.sampled_from(["tanh", "relu"]))
    if op == "lstm" and draw(st.booleans()):
        arrays["c0"] = uniform(B, H)
    if op == "gru":
        config["reset_after"] = draw(st.booleans())
        if config["reset_after"] and draw(st.booleans()):
            arrays["b_hn"] = uniform(H)
    if draw(st.booleans()) if ragged is None else ragged:
        config["lengths"] = rng.integers(0, T + 1, B)
    return Call(op, arrays, config, rng)


def with_nan_pads(call: Call) -> np.ndarray:
    """Return x with NaN in every padded step."""
    x = call.arrays["x"].copy()
    for row, length in enumerate(call.config["lengths"]):
        x[row, length:] = np.nan
    return x
