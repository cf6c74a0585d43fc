"""From scores to weights and back, in blocks [keys][rows]: a key's scores for a vector of rows stand side by side.

So a row's maximum and sums are a lane's, taken over keys in ascending order, and no lane knows of its neighbours. What
a row does not see has the score -inf, and so the weight 0. ``width`` is the bytes of a block's rows of scores.

``stats`` has by row, each ``stride`` bytes after the one before: the largest score so far, the sum of exponentials
from it, and what the sums so far and those of the newest split are multiplied with when the two are merged.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from .activations import exp_of_negative, tanh
from .panel import PANEL, WIDE
from .vector import VECTOR_BYTES, Emitter, Vector, emitted, whole

LOWEST = {32: -3.4028234663852886e38, 64: -1.7976931348623157e308}
LARGEST, SUM, OLD, NEW = range(4)  # stats


def by_panel(function: Callable[..., None]) -> Any:
    """Make a function ``(emitter, columns, *arguments)``, of so many vectors of rows, one of a panel's width in bytes.

    Kernels call it as ``function(unit, panel, *arguments)``; see `panel.panel_width`.
    """
    names = ", ".join(list(inspect.signature(function).parameters)[2:])
    scope: dict[str, Any] = {"inner": emitted("columns")(function)}
    exec(
        f"def {function.__name__}(unit, panel, {names}):\n"
        f"    if panel == {PANEL}:\n"
        f"        inner(unit, {WIDE}, {names})\n"
        f"    else:\n"
        f"        inner(unit, 1, {names})\n",
        scope,
    )
    return njit(scope[function.__name__])


def _at(e: Emitter, start: Any, stride: Any, number: Any) -> Any:
    number = whole(number) if isinstance(number, int) else number
    return e.builder.add(start, e.builder.mul(stride, number))


def _largest(e: Emitter, a: Vector, b: Any) -> Vector:
    """Return the larger one, b where a is NaN."""
    return e.where_greater(a, b, a, b)


# --- what a score is -------------------------------------------------------------------------------------------------


@by_panel
def additive(e, columns, q, q_step, depth, k, k_step, v, v_step, target):
    """Store v·tanh(q + k) of a key: a chain over ``depth`` in ascending order."""

    def add(a: Any, sums: list[Vector]) -> list[Vector]:
        key, factor = e.load_all(_at(e, k, k_step, a)), e.load_all(_at(e, v, v_step, a))
        row = _at(e, q, q_step, a)
        return [e.fma(factor, tanh(e, e.load(row, i * VECTOR_BYTES) + key), total) for i, total in enumerate(sums)]

    for i, total in enumerate(e.loop(depth, [e.all(0.0)] * columns, add)):
        e.store(total, target, i * VECTOR_BYTES)


@by_panel
def add_lanes(e, columns, s, width, count, addresses, key, step):
    """Add what stands for each key, ``key`` the first, at a row's own address, ``step`` bytes on for every key.

    Where it is -inf the score is: a key is hidden by it, whatever it is.
    """
    starts = [e.load_wholes(addresses, 8 * e.lanes * i) for i in range(columns)]

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        at, further = _at(e, s, width, k), e.spread(e.builder.mul(step, e.builder.add(key, k)))
        for i, start in enumerate(starts):
            added = e.gather_at(e.builder.add(start, further))
            total = e.load(at, i * VECTOR_BYTES) + added
            e.store(e.where_equal(added, -math.inf, added, total), at, i * VECTOR_BYTES)
        return []

    e.loop(count, [], body)


@by_panel
def hide_outside(e, columns, s, width, count, key, low, high):
    """Make -inf the scores of keys, ``key`` the first, that are not in a row's own range from ``low`` to ``high``."""
    ranges = [tuple(e.load_wholes(bound, 8 * e.lanes * i) for bound in (low, high)) for i in range(columns)]
    nothing = e.all(-math.inf)

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        at, here = _at(e, s, width, k), e.spread(e.builder.add(key, k))
        for i, (first, last) in enumerate(ranges):
            inside = e.builder.and_(e.builder.icmp_signed(">=", here, first), e.builder.icmp_signed("<", here, last))
            e.store(e.where(inside, e.load(at, i * VECTOR_BYTES), nothing), at, i * VECTOR_BYTES)
        return []

    e.loop(count, [], body)


@by_panel
def hide_masked(e, columns, s, width, count, addresses, key, step):
    """Make -inf the scores whose byte of the mask is 0; as `add_lanes` finds it."""
    starts = [e.load_wholes(addresses, 8 * e.lanes * i) for i in range(columns)]
    nothing = e.all(-math.inf)

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        at, further = _at(e, s, width, k), e.spread(e.builder.mul(step, e.builder.add(key, k)))
        for i, start in enumerate(starts):
            seen = e.gather_flags(e.builder.add(start, further))
            e.store(e.where(seen, e.load(at, i * VECTOR_BYTES), nothing), at, i * VECTOR_BYTES)
        return []

    e.loop(count, [], body)


# --- the softmax -----------------------------------------------------------------------------------------------------


@by_panel
def soften(e, columns, s, width, count, stats, stride):
    """Turn a split's scores into exponentials from the split's largest, and bring ``stats`` up to date."""
    lowest = LOWEST[e.bits]

    def larger(k: Any, found: list[Vector]) -> list[Vector]:
        at = _at(e, s, width, k)
        return [_largest(e, e.load(at, i * VECTOR_BYTES), most) for i, most in enumerate(found)]

    here = e.loop(count, [e.all(-math.inf)] * columns, larger)
    shifts = [_largest(e, most, lowest) for most in here]  # finite where nothing is seen: -inf - -inf is NaN

    def exponentials(k: Any, sums: list[Vector]) -> list[Vector]:
        at, added = _at(e, s, width, k), []
        for i, total in enumerate(sums):
            term = exp_of_negative(e, e.load(at, i * VECTOR_BYTES) - shifts[i])
            e.store(term, at, i * VECTOR_BYTES)
            added.append(total + term)
        return added

    for i, total in enumerate(e.loop(count, [e.all(0.0)] * columns, exponentials)):
        places = [e.add(_at(e, stats, stride, number), i * VECTOR_BYTES) for number in range(4)]
        before = e.load(places[LARGEST])
        most = _largest(e, here[i], before)
        shift = _largest(e, most, lowest)
        old, new = exp_of_negative(e, before - shift), exp_of_negative(e, here[i] - shift)
        e.store(most, places[LARGEST])
        e.store(e.fma(e.load(places[SUM]), old, total * new), places[SUM])
        e.store(old, places[OLD])
        e.store(new, places[NEW])


@emitted()
def start_stats(e, stats, stride):
    """Nothing has been seen."""
    e.store(e.all(-math.inf), stats)
    e.store(e.all(0.0), _at(e, stats, stride, SUM))


@emitted()
def merge(e, sums, newest, count, old, new):
    """Merge a row's sums over the newest split, so many vectors, into those so far."""
    old, new = e.load_all(old), e.load_all(new)

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        place = _at(e, sums, whole(VECTOR_BYTES), k)
        e.store(e.fma(e.load(place), old, e.load(_at(e, newest, whole(VECTOR_BYTES), k)) * new), place)
        return []

    e.loop(count, [], body)


@emitted()
def finish_stats(e, stats, stride):
    """Put 1 / the sum in the sum's place; where nothing was seen both are 0, and so is every weight made from them."""
    at = _at(e, stats, stride, SUM)
    largest, total = e.load(stats), e.load(at)
    seen = e.builder.fcmp_ordered(">", largest.value, e.all(-math.inf).value)
    e.store(e.where(seen, largest, e.all(0.0)), stats)
    e.store(e.where(seen, e.all(1.0) / total, e.all(0.0)), at)


@by_panel
def weigh(e, columns, s, width, count, largest, inverse):
    """Turn scores into weights; what isn't seen has none, be a row's sum NaN."""
    most = [e.load(largest, i * VECTOR_BYTES) for i in range(columns)]
    factors = [e.load(inverse, i * VECTOR_BYTES) for i in range(columns)]

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        at = _at(e, s, width, k)
        for i in range(columns):
            term = exp_of_negative(e, e.load(at, i * VECTOR_BYTES) - most[i])
            e.store(e.where_zero(term, 0.0, term * factors[i]), at, i * VECTOR_BYTES)
        return []

    e.loop(count, [], body)


@emitted()
def store_scores(e, s, width, target, count):
    """Store a row's scores of up to a vector of keys side by side."""
    e.store_first(e.gather(s, width, count), target, count)


@emitted()
def weigh_stored(e, scores, item, count, largest, inverse):
    """Turn up to a vector of scores that stand side by side into weights."""
    term = exp_of_negative(e, e.gather(scores, item, count) - e.load_all(largest))
    e.store_first(e.where_zero(term, 0.0, term * e.load_all(inverse)), scores, count)


# --- backward --------------------------------------------------------------------------------------------------------


@by_panel
def pull_scores(e, columns, weights, d, width, count, along):
    """Turn the weights' gradients into those of the scores, weight · (gradient - along); 0 where the weight is."""
    alongs = [e.load(along, i * VECTOR_BYTES) for i in range(columns)]

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        at, from_weights = _at(e, d, width, k), _at(e, weights, width, k)
        for i in range(columns):
            weight = e.load(from_weights, i * VECTOR_BYTES)
            pulled = weight * (e.load(at, i * VECTOR_BYTES) - alongs[i])
            e.store(e.where_zero(weight, 0.0, pulled), at, i * VECTOR_BYTES)
        return []

    e.loop(count, [], body)


@by_panel
def pull_additive(e, columns, q, k, k_row, v, d, width, count, dq, dk, dk_row, dv):
    """Pull scores' gradients back through v·tanh(q + k), for one of the hidden units.

    Stores the gradient of q, adds to that of k, an element for each key, and of v, an element.
    """
    factor = e.load_all(v)
    queries = [e.load(q, i * VECTOR_BYTES) for i in range(columns)]

    def body(number: Any, sums: list[Vector]) -> list[Vector]:
        at, key = _at(e, d, width, number), e.load_all(_at(e, k, k_row, number))
        of_key, added, of_v = e.all(0.0), [], sums[-1]
        for i in range(columns):
            hidden, pulled = tanh(e, queries[i] + key), e.load(at, i * VECTOR_BYTES)
            grad = e.where_zero(pulled, 0.0, pulled * factor * (1.0 - hidden * hidden))
            of_v = of_v + e.where_zero(pulled, 0.0, pulled * hidden)
            of_key = of_key + grad
            added.append(sums[i] + grad)
        place = _at(e, dk, dk_row, number)
        e.store_element(e.builder.fadd(e.load_element(place), e.sum(of_key)), place)
        return [*added, of_v]

    *sums, of_v = e.loop(count, [e.all(0.0)] * (columns + 1), body)
    for i, total in enumerate(sums):
        e.store(total, dq, i * VECTOR_BYTES)
    e.store_element(e.builder.fadd(e.load_element(dv), e.sum(of_v)), dv)


@emitted()
def add_dot(e, a, a_step, b, b_step, count, target):
    """Add the product of two rows of any strides to an element."""

    def body(k: Any, sums: list[Vector]) -> list[Vector]:
        first = e.builder.mul(k, whole(e.lanes))
        left = e.builder.sub(count, first)
        found = (e.gather(_at(e, at, step, first), step, left) for at, step in ((a, a_step), (b, b_step)))
        return [e.fma(*found, sums[0])]

    vectors = e.builder.sdiv(e.builder.add(count, whole(e.lanes - 1)), whole(e.lanes))
    (total,) = e.loop(vectors, [e.all(0.0)], body)
    e.store_element(e.builder.fadd(e.load_element(target), e.sum(total)), target)


@emitted()
def add_element(e, source, target):
    """Add an element to another."""
    e.store_element(e.builder.fadd(e.load_element(target), e.load_element(source)), target)


@emitted()
def add_to_double(e, source, target):
    """Add an element to one in float64."""
    number = e.load_element(source)
    double = ir.DoubleType()
    number = number if e.bits == 64 else e.builder.fpext(number, double)
    pointer = e.builder.inttoptr(target, double.as_pointer())
    e.builder.store(e.builder.fadd(e.builder.load(pointer, align=8), number), pointer, align=8)


# --- rows ------------------------------------------------------------------------------------------------------------


@emitted()
def scale(e, row, count, factor):
    """Multiply so many vectors with the number at an address."""
    number = e.load_all(factor)

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        place = _at(e, row, whole(VECTOR_BYTES), k)
        e.store(e.load(place) * number, place)
        return []

    e.loop(count, [], body)


@emitted()
def clear(e, row, count):
    """Make so many vectors 0."""

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        e.store(e.all(0.0), _at(e, row, whole(VECTOR_BYTES), k))
        return []

    e.loop(count, [], body)


@emitted(gives="whole")
def has_unfinite(e, row, count):
    """Tell whether one of so many vectors has an element that is NaN or infinite."""

    def body(k: Any, found: list[Vector]) -> list[Vector]:
        at = _at(e, row, whole(len(found) * VECTOR_BYTES), k)
        return [e.fma(e.load(at, i * VECTOR_BYTES), e.all(0.0), total) for i, total in enumerate(found)]

    fours = e.builder.sdiv(count, whole(4))
    sums = e.loop(fours, [e.all(0.0)] * 4, body)
    row = _at(e, row, whole(4 * VECTOR_BYTES), fours)
    (rest,) = e.loop(e.builder.srem(count, whole(4)), [e.all(0.0)], body)
    found = sums[0] + sums[1] + sums[2] + sums[3] + rest
    return e.builder.zext(e.builder.fcmp_unordered("!=", e.sum(found), ir.Constant(e.element, 0.0)), ir.IntType(64))


@emitted()
def keep_finite(e, row, count):
    """Make 0 what is NaN or infinite in so many vectors."""

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        place = _at(e, row, whole(VECTOR_BYTES), k)
        found = e.load(place)
        e.store(e.where_finite(found, found, e.all(0.0)), place)
        return []

    e.loop(count, [], body)


@emitted()
def add_unfinite(e, target, weight, row, count):
    """Add weight · row where the row's elements are NaN or infinite."""
    number = e.load_all(weight)

    def body(k: Any, _: list[Vector]) -> list[Vector]:
        place = _at(e, target, whole(VECTOR_BYTES), k)
        found, old = e.load(_at(e, row, whole(VECTOR_BYTES), k)), e.load(place)
        e.store(e.where_finite(found, old, e.fma(number, found, old)), place)
        return []

    e.loop(count, [], body)


# --- numbers in memory -----------------------------------------------------------------------------------------------


@emitted(gives="element")
def element_at(e, address):
    return e.load_element(address)


@emitted(gives="whole")
def whole_at(e, address):
    return e.builder.load(e.builder.inttoptr(address, ir.IntType(64).as_pointer()), align=8)


@emitted(gives="whole")
def byte_at(e, address):
    byte = e.builder.load(e.builder.inttoptr(address, ir.IntType(8).as_pointer()), align=1)
    return e.builder.zext(byte, ir.IntType(64))


@emitted()
def set_whole(e, number, address):
    e.builder.store(number, e.builder.inttoptr(address, ir.IntType(64).as_pointer()), align=8)
