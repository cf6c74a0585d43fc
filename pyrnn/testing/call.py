"""One call of an op, written down: the sizes, a seed, the layout of each array, the configuration.

All that a property tries comes from a `Call`, so a counterexample is one line of code that runs anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..ops.declaration import OPS, Op
from ..ops.shapes import split_dimension

# How an array may lie in memory. Those after the first five are no business of every array library.
LAYOUTS = ("C", "F", "time-major", "every other", "backwards", "read-only", "unaligned", "repeated")
Sizes = Mapping[str, Any]


def shape_of(declared: str, sizes: Sizes) -> tuple[int, ...]:
    """Return a declared shape in numbers: ``"B 4H 1"`` with H = 3 and B = 2 is (2, 12, 1)."""
    shape: list[int] = []
    for dimension in declared.split():
        if dimension == "...":
            shape += sizes["..."]
        else:
            times, symbol = split_dimension(dimension)
            shape.append(times * sizes[symbol] if symbol else times)
    return tuple(shape)


def laid_out(array: Any, layout: str, xp: Any = np) -> Any:
    """Return the same values in another memory layout.

    Parameters
    ----------
    array
        An array of ``xp``.
    layout
        One of `LAYOUTS`. ``"repeated"`` has stride 0 along the first axis, so all its slices become equal to the first.
    xp
        The array module.
    """
    if layout == "F" and array.ndim > 1:
        return xp.asfortranarray(array)
    if layout == "time-major" and array.ndim > 1:
        return xp.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)
    if layout == "every other" and array.ndim:
        wide = xp.full((*array.shape[:-1], 2 * array.shape[-1]), math.nan, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "backwards" and array.ndim:
        return xp.ascontiguousarray(array[::-1])[::-1]
    if layout == "repeated" and array.ndim and len(array):
        return xp.broadcast_to(array[:1], array.shape)
    if layout == "read-only" and xp is np:
        array = array.copy()
        array.flags.writeable = False
    if layout == "unaligned" and xp is np:
        raw = np.zeros(array.nbytes + 1, np.uint8)
        raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
        return raw[1:].view(array.dtype).reshape(array.shape)
    return array


def magnitude(name: str, call: Call) -> float:
    """Return how large an array's elements are drawn: so that sums are of order 1, times the call's gain.

    Recurrent weights of gain 1 add up to less than 1 a row: errors then fade from step to step. A larger gain is as
    training begins, or, for the inputs, saturates the gates. Over many steps it would let any error grow without
    bound, and a relu does not saturate: there it stays 1. A gain below 1 makes all arrays but ``w_ih`` small: all
    that is computed is near zero, where a bound that is relative is small too. Scores of attention are of order 1 too,
    times the gain, so that a large one leaves the softmax a single key.
    """
    sizes = call.numbers
    gain = min(call.gain, 1.0) if call.config.get("activation") == "relu" else call.gain
    if gain < 1 and name not in ("w_ih", "w_hh"):
        return 2 * gain
    if name == "w_hh":
        return (min(gain, 4.0) if sizes["T"] <= 10 else 1.0) / max(1, sizes["H"])
    fan_in = FAN_IN.get((call.op, name)) or FAN_IN.get(("", name))
    if fan_in:
        return (2 * gain if name == "v" else 2) / math.sqrt(max(1, math.prod(shape_of(fan_in, sizes))))
    if name == "k":
        return 2.0
    scales = name in ("x", "left", "logits", "q", "query") or (call.op, name) == ("attention", "bias")
    return 2 * gain if scales else 1.0


# The terms of a sum that an array's elements weigh: it is as much smaller as there are more of them.
FAN_IN = {
    ("", "w_ih"): "I",
    ("", "w_query"): "Dq",
    ("", "w_key"): "Dk",
    ("additive_attention", "v"): "A",
    ("multiplicative_attention", "w"): "Dq",
    ("multiplicative_attention", "keys"): "Dk",
    ("causal_conv1d", "w"): "Cin/groups K",
}


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Parameters
    ----------
    op
        The op's name.
    sizes
        The size of each symbol of its declaration, but for those that follow from others; ``"..."`` is a tuple.
    dtype
        float32 or float64.
    seed
        Of the arrays' values, and of whatever else a property picks (cotangents, rows, cuts).
    gain
        How large inputs and recurrent weights are; see `magnitude`.
    zeros
        The share of elements that are exactly 0, in every array.
    optional
        Which of the optional arrays are given.
    layouts
        The memory layout of arrays that are not simply C-contiguous; see `LAYOUTS`.
    config
        The options that are not at their default.
    shapes
        Of arrays and options that are broadcast, the symbolic shape that each has here, where it is not the full one:
        ``{"bias": "Hq 1 M"}``.
    """

    op: str
    sizes: Sizes
    dtype: str = "float32"
    seed: int = 0
    gain: float = 1.0
    zeros: float = 0.0
    optional: tuple[str, ...] = ()
    layouts: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)

    @property
    def declared(self) -> Op:
        """The op's declaration."""
        return OPS[self.op]

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The sizes, with those that follow from them and the options."""
        options = SimpleNamespace(**{**{n: o.default for n, o in self.declared.options.items()}, **self.config})
        sizes = dict(self.sizes)
        return {**sizes, **{symbol: size(sizes, options) for symbol, size in self.declared.derived.items()}}

    def symbols(self, name: str) -> str:
        """Return the symbolic shape of an array, an output or an option: as declared, or as it is broadcast here."""
        declared, option = self.declared, self.declared.options.get(name)
        full = option.shape if option else {**declared.arrays, **declared.outputs}[name]
        return self.shapes.get(name, full.replace("?", ""))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the same in numbers."""
        return shape_of(self.symbols(name), self.numbers)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The call's arrays on the host, C-contiguous; a layout that repeats slices is in their values."""
        rng = np.random.default_rng(self.seed)
        arrays = {}
        for name in self.declared.arrays:
            if name in self.declared.required or name in self.optional:
                bound = magnitude(name, self)
                array = rng.uniform(-bound, bound, self.shape(name)).astype(self.dtype)
                if self.zeros:
                    array[rng.random(array.shape) < self.zeros] = 0
                if self.layouts.get(name) == "repeated":
                    array = np.ascontiguousarray(laid_out(array, "repeated"))
                arrays[name] = array
        return arrays

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``config``, those that are arrays as arrays: fresh ones each time."""
        found = {}
        for name, value in self.config.items():
            option = self.declared.options[name]
            one_for_all = option.kind == "positions" and isinstance(value, int)
            if option.shape and value is not None and not one_for_all:
                kind = np.bool_ if option.kind == "mask" else np.int64
                value = np.array(value, kind).reshape(self.shape(name))
            found[name] = value
        return found

    def rng(self, purpose: int = 0) -> np.random.Generator:
        """Return a generator of the call's own; another purpose, another stream."""
        return np.random.default_rng((self.seed, 1 + purpose))

    def cotangents(self) -> dict[str, np.ndarray]:
        """Return a random gradient for each output."""
        rng = self.rng()
        return {name: rng.standard_normal(self.shape(name)).astype(self.dtype) for name in self.declared.outputs}

    def changed(self, **changes: Any) -> Call:
        """Return a call that differs in these fields."""
        return replace(self, **changes)

    def __repr__(self) -> str:
        defaults = Call(self.op, {})
        parts = [repr(self.op), repr(dict(self.sizes))]
        for name in ("dtype", "seed", "gain", "zeros", "optional", "layouts", "config", "shapes"):
            value = getattr(self, name)
            if value != getattr(defaults, name):
                parts.append(f"{name}={value!r}")
        return f"Call({', '.join(parts)})"
