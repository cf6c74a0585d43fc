"""Drawn calls of the recurrent ops, from their declarations: arrays of any layout, with a configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import pyrnn
from pyrnn.ops.shapes import split_dimension


def backends_with(op: str) -> list[str]:
    """Return the backends that have an op, of those that pyrnn comes with."""
    return [name for name in ("reference", "cython", "numba") if pyrnn.get_backend(name).has(op)]


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


def shape_of(declared: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return a declared shape in numbers: ``"B 4H"`` with H = 3 is (B, 12)."""
    return tuple(times * sizes[symbol] for times, symbol in map(split_dimension, declared.split()))


def plain(op: str, B: int, T: int, I: int, H: int, dtype: str = "float32", **config: Any) -> Call:
    """Return a call with every array that the op may have."""
    rng = np.random.default_rng(0)
    sizes = {"B": B, "T": T, "I": I, "H": H}
    scale = {"w_hh": 1 / math.sqrt(max(H, 1)), "w_ih": 1 / math.sqrt(max(I, 1))}
    arrays = {
        name: (rng.uniform(-1, 1, shape_of(shape, sizes)) * scale.get(name, 1.0)).astype(dtype)
        for name, shape in pyrnn.ops.OPS[op].arrays.items()
    }
    if not config.get("reset_after", True):
        arrays.pop("b_hn", None)
    return Call(op, arrays, config, rng)


@st.composite
def calls(
    draw: Any,
    *,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    batch: tuple[int, int] = (0, 9),
    time: tuple[int, int] = (0, 10),
    inputs: tuple[int, int] = (1, 40),
    hidden: tuple[int, int] = (1, 70),
    ragged: bool | None = None,
    reverse: bool | None = None,
) -> Call:
    """Draw a call. Weights are small enough that errors do not grow from step to step: |W_hh| sums to < 1 a row."""
    op = pyrnn.ops.OPS[draw(st.sampled_from(["rnn", "lstm", "gru"]))]
    dtype = draw(st.sampled_from(dtypes))
    sizes = {
        name: draw(st.integers(*bounds)) for name, bounds in zip("BTIH", (batch, time, inputs, hidden), strict=True)
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    config = {name: draw(st.sampled_from(option.domain)) for name, option in op.options.items() if option.domain}
    if reverse is not None:
        config["reverse"] = reverse
    if draw(st.booleans()) if ragged is None else ragged:
        config["lengths"] = rng.integers(0, sizes["T"] + 1, sizes["B"])
    bounds = {"x": 2.0, "w_ih": 2 / math.sqrt(sizes["I"]), "w_hh": 1 / sizes["H"]}
    arrays = {}
    for name, shape in op.arrays.items():
        if name in op.required or draw(st.booleans()):
            bound = bounds.get(name, 1.0)
            array = rng.uniform(-bound, bound, shape_of(shape, sizes)).astype(dtype)
            arrays[name] = laid_out(array, draw(st.sampled_from(LAYOUTS)))
    if not config.get("reset_after", True):
        arrays.pop("b_hn", None)
    return Call(op.name, arrays, config, rng)


def with_nan_pads(call: Call) -> np.ndarray:
    """Return x with NaN in every padded step."""
    x = call.arrays["x"].copy()
    for row, length in enumerate(call.config["lengths"]):
        x[row, length:] = np.nan
    return x
