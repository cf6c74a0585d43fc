"""The compiled forward of attention, and what its backward has in common with it.

(a) The heads of queries that share a head of keys are one set of rows: row r is query r // group of head r % group.
    A block of them is done at a time, over the keys in splits anchored at key 0. Of a split, the keys are done that
    some row of the block may see.
(b) A split has its own maximum and sums, which are merged into those before it, in order. So a row's bits depend
    neither on the block that it is in, nor on whole splits that it doesn't see.
(c) Scores are [keys][rows] (`scores`), K and V being read as they are. Values, and what else is a product's second
    operand, are copied as rows of whole vectors; an element of them that isn't finite is left out of the product, as
    0 · NaN is not 0, and is added where it is seen.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from . import scores
from .activations import denormals_off, denormals_restore
from .compiled import SOURCES, kernel
from .dropout import drop
from .panel import VECTOR, gather_row, pack, panel_width, product, scatter, scatter_row, times_panel

DOT, ADDITIVE = range(2)
SPLIT = 256
PIECE = 64  # keys or rows whose products are added up at a time, for a first-level cache
# The rows of integers that a block's rows have.
LOW, HIGH, ADDED, MASK, POSITION, HEAD = range(6)
INTEGERS = 6


class View(NamedTuple):
    """An array (batch, heads, time, features) by its address, 0 for none, and strides, all in bytes.

    ``size`` is the bytes of a row of ``features`` elements in whole vectors.
    """

    at: int
    batch: int
    head: int
    time: int
    item: int
    features: int
    size: int


class Call(NamedTuple):
    """A call: what it computes, its sizes, and its arrays."""

    kind: int  # of score
    lanes: int
    item: int  # bytes of an element
    batch: int
    shared: int  # heads of keys
    group: int  # heads of queries for each
    queries: int
    keys: int
    block: int  # rows
    width: int  # bytes of a block's rows of scores
    left: int
    right: int
    constants: int  # [scale, 1 / (1 - dropout)]
    threshold: int  # of dropout, 0 for none
    seed: int
    q: View
    k: View
    v: View
    added: View  # to the scores; in the backward of a call that gives its weights, to their gradients
    mask: View
    hidden: int  # v of the additive score
    y: View
    weights: int  # [batch][queries][keys] if they are asked for
    largest: int  # [rows of the call]
    inverse: int  # 1 / the sum of exponentials


class Scratch(NamedTuple):
    """A part's memory, ``step`` bytes after that of the part before it."""

    step: int
    s: int  # [SPLIT][width]
    d: int  # [SPLIT][width]
    q_panels: int
    q_rows: int
    y_panels: int
    y_rows: int
    keys: int  # [SPLIT] rows of keys
    values: int
    newest: int  # [block] rows of values
    sums: int
    dk: int  # [SPLIT] rows of keys
    dv: int
    dq: int  # [hidden units][width]
    stats: int  # [4][width]
    along: int  # [width]
    integers: int  # [INTEGERS][block]
    row: int
    zeros: int  # [width] or a row


@njit
def of_part(scratch, part):
    """Return a part's own scratch; all parts have the same zeros."""
    far = part * scratch.step
    s = scratch
    return Scratch(
        s.step, s.s + far, s.d + far, s.q_panels + far, s.q_rows + far, s.y_panels + far, s.y_rows + far, s.keys + far,
        s.values + far, s.newest + far, s.sums + far, s.dk + far, s.dv + far, s.dq + far, s.stats + far, s.along + far,
        s.integers + far, s.row + far, s.zeros,
    )  # fmt: skip


@njit
def start_of(view, call, b, shared, r):
    """Return the address of what a view has for row r."""
    head = shared * call.group + r % call.group
    return view.at + b * view.batch + head * view.head + r // call.group * view.time


@njit
def start_of_key(view, b, shared, key):
    return view.at + b * view.batch + shared * view.head + key * view.time


@njit
def own(scratch, call, number):
    """Return the address of a block's integers of one kind."""
    return scratch.integers + number * call.width // call.item * 8


@njit
def describe_block(unit, call, scratch, b, shared, first, count, starts, valid, asked):
    """Set what a block's rows have of their own; return the keys that some row sees, and those that every row does.

    Keys, from the first to the one after the last. Lanes without a row see nothing.
    """
    low, high, inner_low, inner_high = call.keys, 0, 0, call.keys
    for lane in range(call.width // call.item):
        r = first + min(lane, count - 1)
        position = starts[b] + r // call.group
        start, end = max(0, position - call.left), min(valid[b], position + call.right + 1)
        if r // call.group >= asked[b] or end <= start or lane >= count:
            start = end = 0
        if lane < count:
            inner_low, inner_high = max(inner_low, start), min(inner_high, end)
            if end > start:
                low, high = min(low, start), max(high, end)
        place = 8 * lane
        scores.set_whole(unit, start, own(scratch, call, LOW) + place)
        scores.set_whole(unit, end, own(scratch, call, HIGH) + place)
        scores.set_whole(unit, start_of(call.added, call, b, shared, r), own(scratch, call, ADDED) + place)
        scores.set_whole(unit, start_of(call.mask, call, b, shared, r), own(scratch, call, MASK) + place)
        scores.set_whole(unit, position, own(scratch, call, POSITION) + place)
        scores.set_whole(unit, shared * call.group + r % call.group, own(scratch, call, HEAD) + place)
    return low, high, inner_low, inner_high


@njit
def keys_of_split(split, low, high):
    """Return the keys of a split that may be seen, from a multiple of four on."""
    return max(split * SPLIT, low // 4 * 4), min((split + 1) * SPLIT, high)


@njit
def sees(unit, call, scratch, lane, key):
    """Tell whether a block's row sees a key."""
    low = scores.whole_at(unit, own(scratch, call, LOW) + 8 * lane)
    high = scores.whole_at(unit, own(scratch, call, HIGH) + 8 * lane)
    if not low <= key < high:
        return False
    if call.added.at:
        added = scores.whole_at(unit, own(scratch, call, ADDED) + 8 * lane)
        if scores.element_at(unit, added + key * call.added.item) == -float("inf"):
            return False
    mask = scores.whole_at(unit, own(scratch, call, MASK) + 8 * lane)
    return not call.mask.at or scores.byte_at(unit, mask + key * call.mask.item) != 0


@njit
def take_rows(unit, call, view, b, shared, first, count, target):
    """Copy a block's rows."""
    for r in range(count):
        source = start_of(view, call, b, shared, first + r)
        gather_row(unit, source, view.item, view.features, target + r * view.size, call.lanes)


@njit
def take_keys(unit, call, view, b, shared, key, count, target):
    """Return where rows of keys or values stand with what isn't finite as 0, and whether there was such.

    They are copied, unless they stand ready.
    """
    vectors = count * view.size // VECTOR
    start = start_of_key(view, b, shared, key)
    ready = view.item == call.item and view.time == view.size == view.features * view.item
    if ready and not scores.has_unfinite(unit, start, vectors):
        return start, False
    for number in range(count):
        gather_row(unit, start + number * view.time, view.item, view.features, target + number * view.size, call.lanes)
    if scores.has_unfinite(unit, target, vectors):
        scores.keep_finite(unit, target, vectors)
        return target, True
    return target, False


@njit
def panels_of(unit, call, rows, view, count, target):
    """Pack a block's rows as the second operand of a product over features."""
    width = (count * call.item + VECTOR - 1) // VECTOR * VECTOR
    pack(unit, rows, view.size, call.item, count, width, 1, view.features, target, call.lanes)
    return width


@njit
def score(unit, call, scratch, b, shared, key, count, width, inner_low, inner_high):
    """Store a split's scores, -inf where a row doesn't see a key."""
    s = scratch.s
    start = start_of_key(call.k, b, shared, key)
    if call.kind == DOT:
        product(
            unit, start, call.k.time, call.k.item, count, call.k.features, scratch.q_panels, width, scratch.zeros, 0,
            s, width,
        )  # fmt: skip
    hides = key < inner_low or key + count > inner_high
    column, depth = 0, call.k.features
    while column < width:
        panel = panel_width(column, width)
        place, lanes = s + column, column // call.item * 8
        if call.kind == ADDITIVE:
            q = scratch.q_panels + column * depth
            for number in range(count):
                k = start + number * call.k.time
                scores.additive(
                    unit, panel, q, panel, depth, k, call.k.item, call.hidden, call.item, place + number * width
                )
        elif call.added.at:
            scores.add_lanes(unit, panel, place, width, count, own(scratch, call, ADDED) + lanes, key, call.added.item)
        if hides:
            low, high = own(scratch, call, LOW) + lanes, own(scratch, call, HIGH) + lanes
            scores.hide_outside(unit, panel, place, width, count, key, low, high)
        if call.mask.at:
            scores.hide_masked(unit, panel, place, width, count, own(scratch, call, MASK) + lanes, key, call.mask.item)
        column += panel


@njit
def drop_some(unit, call, scratch, target, width, key, count, b):
    """Drop weights, or their gradients."""
    for column in range(0, width, VECTOR):
        lanes = column // call.item * 8
        drop(
            unit, target + column, width, key, count, own(scratch, call, POSITION) + lanes, own(scratch, call, HEAD) +
            lanes, b, call.seed, call.threshold, call.constants + call.item,
        )  # fmt: skip


@njit
def sum_over_keys(unit, call, weights, width, rows, count, values, size, start, start_row, out):
    """out = start + weightsᵀ · values, for a block's rows."""
    column = 0
    while column < size:
        panel = panel_width(column, size)
        c, c_row = start + column, start_row
        for key in range(0, count, PIECE):
            times_panel(
                unit, weights + key * width, call.item, width, rows, min(PIECE, count - key), values + key * size +
                column, size, panel, c, c_row, out + column, size,
            )  # fmt: skip
            c, c_row = out + column, size
        column += panel


@njit
def mend_rows(unit, call, scratch, view, b, shared, key, count, rows, width, weights, out):
    """Add what isn't finite of keys or values to the sums of the rows that see it."""
    vectors = view.size // VECTOR
    for number in range(count):
        source = start_of_key(view, b, shared, key + number)
        gather_row(unit, source, view.item, view.features, scratch.row, call.lanes)
        if scores.has_unfinite(unit, scratch.row, vectors):
            for r in range(rows):
                if sees(unit, call, scratch, r, key + number):
                    weight = weights + number * width + r * call.item
                    scores.add_unfinite(unit, out + r * view.size, weight, scratch.row, vectors)


@njit
def keep_scores(unit, call, scratch, b, first, rows, key, count, width):
    """Store scores where the weights will stand."""
    for r in range(rows):
        target = call.weights + ((b * call.queries + first + r) * call.keys + key) * call.item
        for number in range(0, count, call.lanes):
            source = scratch.s + number * width + r * call.item
            scores.store_scores(unit, source, width, target + number * call.item, count - number)


@njit
def finish_block(unit, call, scratch, b, shared, first, count, low, high):
    """Divide a block's sums, and store all that is asked for."""
    item, rows = call.item, call.queries * call.group
    for at in range(0, call.width, VECTOR):
        scores.finish_stats(unit, scratch.stats + at, call.width)
    kept = ((b * call.shared + shared) * rows + first) * item
    inverse = scratch.stats + scores.SUM * call.width
    for at in range(0, count * item, VECTOR):
        left = count - at // item
        scatter(unit, scratch.stats + at, call.largest + kept + at, left)
        scatter(unit, inverse + at, call.inverse + kept + at, left)
    for r in range(count):
        row = scratch.sums + r * call.v.size
        scores.scale(unit, row, call.v.size // VECTOR, inverse + r * item)
        scatter_row(unit, row, start_of(call.y, call, b, shared, first + r), call.v.features, call.lanes)
        if call.weights:
            start = call.weights + (b * call.queries + first + r) * call.keys * item
            for key in range(low, high, call.lanes):
                scores.weigh_stored(
                    unit, start + key * item, item, high - key, scratch.stats + r * item, inverse + r * item
                )


@njit
def attend_block(unit, call, scratch, b, shared, first, count, starts, valid, asked):
    """Attend for a block of rows."""
    low, high, inner_low, inner_high = describe_block(
        unit, call, scratch, b, shared, first, count, starts, valid, asked
    )
    take_rows(unit, call, call.q, b, shared, first, count, scratch.q_rows)
    scores.scale(unit, scratch.q_rows, count * call.q.size // VECTOR, call.constants)
    width = panels_of(unit, call, scratch.q_rows, call.q, count, scratch.q_panels)
    for at in range(0, width, VECTOR):
        scores.start_stats(unit, scratch.stats + at, call.width)
    scores.clear(unit, scratch.sums, count * call.v.size // VECTOR)
    for split in range(low // SPLIT, (high + SPLIT - 1) // SPLIT):
        key, end = keys_of_split(split, low, high)
        n = end - key
        score(unit, call, scratch, b, shared, key, n, width, inner_low, inner_high)
        if call.weights:
            keep_scores(unit, call, scratch, b, first, count, key, n, width)
        column = 0
        while column < width:
            panel = panel_width(column, width)
            scores.soften(unit, panel, scratch.s + column, width, n, scratch.stats + column, call.width)
            column += panel
        if call.threshold:
            drop_some(unit, call, scratch, scratch.s, width, key, n, b)
        values, unfinite = take_keys(unit, call, call.v, b, shared, key, n, scratch.values)
        sum_over_keys(unit, call, scratch.s, width, count, n, values, call.v.size, scratch.zeros, 0, scratch.newest)
        if unfinite:
            mend_rows(unit, call, scratch, call.v, b, shared, key, n, count, width, scratch.s, scratch.newest)
        for r in range(count):
            far, stat = r * call.v.size, scratch.stats + r * call.item
            scores.merge(
                unit, scratch.sums + far, scratch.newest + far, call.v.size // VECTOR, stat + scores.OLD * call.width,
                stat + scores.NEW * call.width,
            )  # fmt: skip
    finish_block(unit, call, scratch, b, shared, first, count, low, high)


@kernel
def attend(unit, call, scratch, starts, valid, asked, item0, item1, part, parts, sources=SOURCES):
    """Attend for blocks of rows: items are blocks of heads of keys of the batch, from item0 to item1."""
    before = denormals_off()
    own_scratch = of_part(scratch, part)
    rows = call.queries * call.group
    blocks = (rows + call.block - 1) // call.block
    for item in range(item0 + part, item1, parts):
        block, head = item % blocks, item // blocks
        first = block * call.block
        attend_block(
            unit, call, own_scratch, head // call.shared, head % call.shared, first, min(call.block, rows - first),
            starts, valid, asked,
        )  # fmt: skip
    denormals_restore(before)
