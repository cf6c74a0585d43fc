"""Hypothesis strategies for calls of the ops, derived from their declarations; for your own tests too.

::

    from hypothesis import given
    from pyrnn.testing import strategies

    @given(strategies.calls("lstm", sizes={"B": (1, 4), "T": (0, 20)}))
    def test_mine(call):
        y = my_lstm(**call.arrays, **call.options)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ..ops.declaration import OPS, Op
from ..ops.options import Option
from ..ops.shapes import is_broadcast, split_dimension
from .call import LAYOUTS, Call, shape_of

Bounds = Mapping[str, tuple[int, int]]

# Kinds of sizes. Each is cheap, and each reaches what the others don't: blocks of time, of rows, of units, of inputs,
# of keys. The symbol "" stands for those that are not named.
REGIMES: dict[str, Bounds] = {
    "tiny": {"B": (1, 3), "T": (1, 4), "": (1, 4)},
    "small": {"B": (1, 9), "T": (1, 10), "": (1, 40)},
    "wide": {"B": (1, 3), "T": (1, 3), "N": (1, 3), "I": (1, 40), "": (60, 300)},
    "deep": {"B": (1, 3), "T": (1, 3), **dict.fromkeys(("I", "D", "Dq", "Cin"), (60, 300)), "": (1, 40)},
    "long": {"B": (1, 3), "T": (60, 130), "N": (1, 40), "M": (200, 600), "": (1, 6)},
    "tall": {"B": (30, 150), "T": (1, 3), "": (1, 20)},
    "busy": {"B": (8, 40), "T": (4, 16), "N": (1, 8), "": (20, 80)},
    "huge": {"": (1, 3)},  # but for one symbol, see HUGE
}
FEW: Bounds = {"Hq": (1, 4), "K": (1, 5)}  # heads and taps, in every kind
# One size far beyond the others. Units, steps and taps are costly.
HUGE: Bounds = {"H": (257, 520), "T": (257, 520), "Hq": (33, 70), "K": (9, 40), "": (257, 1100)}
# All near zero; weights that let errors fade; as at the start of training; gates driven into saturation; past what e^x
# can hold in either precision.
GAINS = (1.0, 1.0, 4.0, 4.0, 60.0, 2000.0, 2.0**-12)
ZEROS = (0.0, 0.0, 0.0, 0.0, 0.3, 1.0)  # shares of elements that are exactly 0
FLOATS = ("float32", "float64")


def dtypes(of: Sequence[str] = FLOATS) -> st.SearchStrategy[str]:
    """Draw a dtype by name."""
    return st.sampled_from(list(of))


def layouts(of: Sequence[str] = LAYOUTS) -> st.SearchStrategy[str]:
    """Draw a memory layout; see `pyrnn.testing.LAYOUTS`."""
    return st.sampled_from(list(of))


def lengths(batch: int, time: int) -> st.SearchStrategy[list[int]]:
    """Draw the valid steps of each row: 0 and ``time`` among them, in any order; all equal; or sorted."""
    one = st.integers(0, time) | st.sampled_from([0, time])
    equal = st.integers(0, time).map(lambda length: [length] * batch)
    free = st.lists(one, min_size=batch, max_size=batch) if batch <= MANY else _many((batch,), time)
    return st.one_of(free, equal, free.map(sorted), free.map(lambda found: sorted(found, reverse=True)))


MANY = 64  # elements that are drawn one by one, so that each can be made simpler


def _many(shape: Sequence[int], greatest: int, kind: type = int) -> st.SearchStrategy[Any]:
    """Draw an array of integers from 0 to the greatest, as a nested list, by one seed."""

    def from_seed(seed: int) -> Any:
        return np.random.default_rng(seed).integers(0, greatest, shape, endpoint=True).astype(kind).tolist()

    return st.integers(0, 2**16).map(from_seed)


@st.composite
def sizes(draw: Any, op: str, bounds: Bounds | None = None, regimes: Sequence[str] = tuple(REGIMES)) -> dict[str, Any]:
    """Draw a size for each symbol of an op's declaration.

    Parameters
    ----------
    op
        Its name.
    bounds
        Least and greatest size of a symbol, over what the regime says; for ``"..."`` the number of dimensions, for
        ``"... size"`` the size of each.
    regimes
        Of `REGIMES`, those to draw from.
    """
    name = draw(st.sampled_from(list(regimes)))
    regime, given = {**REGIMES[name], **FEW}, bounds or {}
    named = symbols(OPS[op])
    if name == "huge":
        one = draw(st.sampled_from([symbol for symbol in named if symbol not in given]))
        regime["B" if one == "..." else one] = HUGE.get(one, HUGE[""])
    found: dict[str, Any] = {}
    for symbol in named:
        if symbol == "...":
            low, high = given.get("...", (0, 3))
            least, most = given.get("... size", (1, 4))
            shape = draw(st.lists(st.integers(least, most), min_size=low, max_size=high))
            if shape and name in ("tall", "huge") and "B" in regime and "... size" not in given:
                shape = [draw(_size(*regime["B"])), *shape[1:2]]  # many rows in all
            found[symbol] = tuple(shape)
        else:
            found[symbol] = draw(_size(*given.get(symbol, regime.get(symbol, regime[""]))))
    if "Hkv" in found:
        found["Hkv"] = draw(st.sampled_from(divisors(found["Hq"]) if found["Hq"] else [0, 1]))
    if "Cin" in found and "Cout" not in given and draw(st.booleans()):
        found["Cout"] = found["Cin"]  # else they have rarely a divisor to group them by
    return found


def divisors(*numbers: int) -> list[int]:
    """Return the common divisors of some numbers; those of 0 are all, of which 1 will do."""
    greatest = math.gcd(*numbers)
    return [d for d in range(1, greatest + 1) if greatest % d == 0] or [1]


def fitting(op: str, sizes: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Return sizes that the op takes: two of attention's are not free, be they drawn or changed later."""
    found = dict(sizes)
    if "Hkv" in found:
        found["Hkv"] = math.gcd(found["Hq"], found["Hkv"])
    if op == "multiplicative_attention" and "w" not in given:
        found["Dk"] = found["Dq"]
    return found


def _size(low: int, high: int) -> st.SearchStrategy[int]:
    cut = [size for size in (8, 16, 32, 48, 64, 128, 256, 512, 1024) if low <= size <= high]  # what kernels are cut for
    return st.integers(low, high) | st.sampled_from(cut) if cut else st.integers(low, high)


def symbols(op: Op) -> list[str]:
    """Return the symbols of an op's shapes, in the order in which they occur."""
    shapes = [*op.arrays.values(), *op.outputs.values(), *(option.shape for option in op.options.values())]
    dimensions = [dimension for shape in shapes for dimension in shape.replace("?", "").split()]
    found = {split_dimension(d)[1] if d != "..." else d: None for d in dimensions}
    return [symbol for symbol in found if symbol not in op.derived]


@st.composite
def broadcasts(draw: Any, op: str) -> dict[str, str]:
    """Draw the symbolic shapes of what an op broadcasts, where they are not full: some 1, those on the left missing."""
    declared, found = OPS[op], {}
    for name, shape in {**declared.arrays, **{n: option.shape for n, option in declared.options.items()}}.items():
        if is_broadcast(shape):
            full = shape.replace("?", "").split()
            kept = full[draw(st.sampled_from([0, 0, *range(len(full))])) :]
            drawn = " ".join(dimension if draw(st.booleans()) else "1" for dimension in kept)
            found[name] = draw(st.sampled_from([drawn, " ".join(full)]))
    return found


@st.composite
def configurations(
    draw: Any,
    op: str,
    sizes: Mapping[str, Any],
    fixed: Mapping[str, Sequence[Any]] | None = None,
    shapes: Mapping[str, str] | None = None,
) -> Any:
    """Draw an op's options for arrays of these sizes, by name; those left out are at their default.

    Parameters
    ----------
    op, sizes
        The op's name, and the size of each of its symbols.
    fixed
        Options that are to take one of some values only.
    shapes
        The symbolic shapes of options that are broadcast, where they are not full.
    """
    found: dict[str, Any] = {}
    many = len(OPS[op].options) > 5  # all at a time would leave nothing of each other: a third of them is drawn
    for name, option in OPS[op].options.items():
        if fixed and name in fixed:
            value = draw(st.sampled_from(list(fixed[name])))
        elif (
            not option.of_backend
            or (option.kind == "seed" and not found.get("dropout"))
            or (many and option.kind not in ("flag", "seed") and draw(st.integers(0, 2)))
        ):
            continue
        else:
            value = draw(option_values(option, sizes, (shapes or {}).get(name, option.shape.replace("?", ""))))
        if value is not None and value != option.default:
            found[name] = value
    return found


DILATIONS = (1, 1, 2, 3, 8, 33)
SCALES = (0.5, 1.0, -0.3, 0.0)
DROPOUTS = (0.1, 0.5, 0.9)
SEEDS = (0, 1, 2**32, 2**64 - 1)


def option_values(option: Option, sizes: Mapping[str, Any], shape: str = "") -> st.SearchStrategy[Any]:
    """Draw a value of an option, of a symbolic shape if it is an array; arrays are nested lists."""
    if option.domain:
        return st.sampled_from(option.domain)
    if option.kind == "positive":
        return st.sampled_from([option.default, option.default * 1e3])
    if option.kind == "lengths":
        return st.none() | lengths(sizes["B"], sizes[option.bound])
    if option.kind == "axis":
        ndim = len(sizes["..."]) + 1
        return st.sampled_from([-1, *range(-ndim, ndim)])
    if option.kind == "mask":
        return st.none() | _nested(st.booleans(), shape_of(shape, sizes), 1, bool)
    if option.kind == "indices":
        # Where no symbol bounds them, they pick one of the last axis: the classes.
        count = sizes[option.bound or "C"]
        return _nested(st.integers(0, count - 1), sizes["..."], count - 1)
    if option.kind == "number":
        return st.sampled_from((option.default, *SCALES))
    if option.kind == "whole":
        if not option.bound:
            return st.sampled_from(DILATIONS)
        some = divisors(*(sizes[symbol] for symbol in option.bound.split()))
        return st.sampled_from(some) | st.just(some[-1])  # each channel on its own is a kernel of its own
    if option.kind == "probability":
        return st.sampled_from(DROPOUTS)
    if option.kind == "seed":
        return st.sampled_from(SEEDS) | st.integers(0, 2**64 - 1)
    if option.kind == "window":
        side = st.none() | st.integers(0, 4) | st.integers(0, sizes["M"])
        return st.tuples(side, side)
    if option.kind == "positions":
        near = st.integers(-sizes["N"] - 1, sizes["M"] + 1)
        each = st.lists(near, min_size=sizes["B"], max_size=sizes["B"])
        return near | near | each | each | st.sampled_from((-(2**31), 2**31))
    raise NotImplementedError(f"no strategy for options of kind {option.kind!r}")


def _nested(
    one: st.SearchStrategy[Any], shape: Sequence[int], greatest: int, kind: type = int
) -> st.SearchStrategy[Any]:
    if math.prod(shape) > MANY:
        return _many(shape, greatest, kind)
    for size in reversed(shape):
        one = st.lists(one, min_size=size, max_size=size)
    return one


@st.composite
def calls(
    draw: Any,
    op: str,
    *,
    sizes: Bounds | None = None,
    regimes: Sequence[str] = tuple(REGIMES),
    dtypes: Sequence[str] = FLOATS,
    gains: Sequence[float] = GAINS,
    zeros: Sequence[float] = ZEROS,
    layouts: Sequence[str] = ("C",),
    optional: Mapping[str, Sequence[bool]] | None = None,
    config: Mapping[str, Sequence[Any]] | None = None,
) -> Call:
    """Draw a call of an op.

    Parameters
    ----------
    op
        Its name.
    sizes, regimes
        See `sizes`: bounds of single symbols, and the kinds of sizes to draw from.
    dtypes, gains, zeros, layouts
        To draw from.
    optional
        For an optional array that is not free to be there or not: which it may be.
    config
        For an option that is to take some values only: those.
    """
    declared = OPS[op]
    drawn = draw(_sizes(op, sizes, regimes))
    shapes = draw(broadcasts(op))
    options = draw(configurations(op, drawn, config, shapes))
    given = [
        name
        for name in declared.arrays
        if name not in declared.required and draw(st.sampled_from(list((optional or {}).get(name, (True, False)))))
    ]
    if options.get("reset_after") is False and "b_hn" in given:
        given.remove("b_hn")  # the GRU's one rule
    drawn = fitting(op, drawn, given)
    lying = {name: draw(st.sampled_from(list(layouts))) for name in (*declared.required, *given)}
    return Call(
        op,
        drawn,
        dtype=draw(st.sampled_from(list(dtypes))),
        seed=draw(st.integers(0, 2**16)),
        gain=draw(st.sampled_from(list(gains))),
        zeros=draw(st.sampled_from(list(zeros))),
        optional=tuple(given),
        layouts={name: layout for name, layout in lying.items() if layout != "C"},
        config=options,
        shapes={name: shape for name, shape in shapes.items() if name in given or name in options},
    )


_sizes = sizes  # the parameter of `calls` has the same name
