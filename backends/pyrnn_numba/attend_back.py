"""The compiled backward of attention: weights once more, in blocks, from what the forward kept of each row.

Gradients are added up over blocks of rows in ascending order for keys and values, over splits for queries; whoever
does a split or a block, and whether one visit of it serves all gradients or one alone, the bits are the same.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from . import scores
from .activations import denormals_off, denormals_restore
from .attend import (
    ADDED,
    ADDITIVE,
    DOT,
    PIECE,
    SPLIT,
    View,
    describe_block,
    drop_some,
    keys_of_split,
    mend_rows,
    of_part,
    own,
    panels_of,
    score,
    sees,
    start_of,
    start_of_key,
    sum_over_keys,
    take_keys,
    take_rows,
)
from .compiled import SOURCES, kernel, share
from .panel import (
    VECTOR,
    gather_row,
    pack_column,
    panel_width,
    product,
    product_of_rows,
    scatter_row,
)

ALL, OF_KEYS, OF_QUERIES, OF_BIAS = range(4)  # what a visit of blocks is for


class Gradients(NamedTuple):
    """What comes in and goes out, by address: arrays as they are, buffers in rows of whole vectors."""

    y: View  # the output's gradient
    along: int  # [rows of the call]: Σ weight · gradient of the weight
    q: View
    q_sums: int  # [rows of the call] of q's size, zero at first
    k: View
    v: View
    hidden: int  # [batch][splits][features of k]
    bias: View  # in float64


@kernel
def sum_along(unit, call, grads, part, parts, sources=SOURCES):
    """along += y · its gradient, and the weights' own gradient times the weights, for a share of the rows."""
    before = denormals_off()
    rows = call.queries * call.group
    first, last = share(0, call.batch * call.shared * rows, 1, part, parts)
    for n in range(first, last):
        b, shared, r = n // rows // call.shared, n // rows % call.shared, n % rows
        if scores.element_at(unit, call.inverse + n * call.item) != 0:
            target = grads.along + n * call.item
            if grads.y.at:
                scores.add_dot(
                    unit, start_of(grads.y, call, b, shared, r), grads.y.item, start_of(call.y, call, b, shared, r),
                    call.item, call.v.features, target,
                )  # fmt: skip
            if call.weights and call.added.at:
                scores.add_dot(
                    unit, start_of(call.added, call, b, shared, r), call.added.item, call.weights + n * call.keys *
                    call.item, call.item, call.keys, target,
                )  # fmt: skip
    denormals_restore(before)


@njit
def take_lanes(unit, call, source, count, target):
    """Copy a block's rows' numbers, 0 for lanes without a row."""
    for at in range(0, call.width, VECTOR):
        first = at // call.item
        if first < count:
            gather_row(unit, source + at, call.item, min(count - first, call.lanes), target + at, call.lanes)
        else:
            scores.clear(unit, target + at, 1)


@njit
def take_gradients(unit, call, scratch, grads, b, shared, first, count, kept):
    """Copy a block's rows of the output's gradient, 0 where nothing is seen."""
    size = call.v.size
    for r in range(count):
        target = scratch.y_rows + r * size
        if grads.y.at and scores.element_at(unit, call.inverse + kept + r * call.item) != 0:
            source = start_of(grads.y, call, b, shared, first + r)
            gather_row(unit, source, grads.y.item, grads.y.features, target, call.lanes)
        else:
            scores.clear(unit, target, size // VECTOR)


@njit
def mend_keys(unit, call, scratch, view, constant, b, shared, first, rows, key, count, weights, width, out):
    """Add what isn't finite of a block's rows, times the number at ``constant``, to the sums of the keys they see."""
    vectors = view.size // VECTOR
    for r in range(rows):
        inverse = scratch.stats + scores.SUM * call.width + r * call.item
        if scores.element_at(unit, inverse) != 0:
            source = start_of(view, call, b, shared, first + r)
            gather_row(unit, source, view.item, view.features, scratch.row, call.lanes)
            if scores.has_unfinite(unit, scratch.row, vectors):
                scores.scale(unit, scratch.row, vectors, constant)
                for number in range(count):
                    if sees(unit, call, scratch, r, key + number):
                        weight = weights + number * width + r * call.item
                        scores.add_unfinite(unit, out + number * view.size, weight, scratch.row, vectors)


@njit
def take_weights(unit, call, scratch, b, first, key, count, rows, width):
    """Bring weights that the forward gave into a block [keys][rows]."""
    for at in range(0, width, VECTOR):
        lane = at // call.item
        source = call.weights + ((b * call.queries + first + lane) * call.keys + key) * call.item
        pack_column(
            unit, source, call.keys * call.item, call.item, rows - lane, count, scratch.s + at, width, call.lanes
        )


@njit
def pull_hidden(unit, call, scratch, grads, aim, b, split, key, count, rows, width, dq):
    """Pull the scores' gradients back through the additive score."""
    depth, splits = call.k.features, (call.keys + SPLIT - 1) // SPLIT
    # A visit that is for the queries alone has been for the keys before.
    dv = scratch.newest if aim == OF_QUERIES else grads.hidden + (b * splits + split) * depth * call.item
    from_key = key - split * SPLIT
    for a in range(depth):
        k, v = start_of_key(call.k, b, 0, key) + a * call.k.item, call.hidden + a * call.item
        dk = scratch.dk + from_key * call.k.size + a * call.item
        column = 0
        while column < width:
            panel = panel_width(column, width)
            q, out = scratch.q_panels + column * depth + a * panel, scratch.dq + a * width + column
            d = scratch.d + column
            scores.pull_additive(
                unit, panel, q, k, call.k.time, v, d, width, count, out, dk, call.k.size, dv + a * call.item
            )
            column += panel
    for r in range(rows if aim != OF_KEYS else 0):
        for a in range(depth):
            place = r * call.q.size + a * call.item
            scores.add_element(unit, scratch.dq + a * width + r * call.item, dq + place)


@njit
def add_bias_gradients(unit, call, scratch, grads, b, shared, first, key, count, rows, width):
    """Add the scores' gradients to those of the bias, in float64."""
    for r in range(rows):
        start = start_of(grads.bias, call, b, shared, first + r) + key * grads.bias.item
        for number in range(count):
            source = scratch.d + number * width + r * call.item
            scores.add_to_double(unit, source, start + number * grads.bias.item)


@njit
def visit(unit, call, scratch, grads, aim, b, shared, split, block, keys, mend_k, starts, valid, asked):
    """Do a block of rows of a split."""
    rows = call.queries * call.group
    first = block * call.block
    count = min(call.block, rows - first)
    low, high, inner_low, inner_high = describe_block(
        unit, call, scratch, b, shared, first, count, starts, valid, asked
    )
    key, end = keys_of_split(split, low, high)
    n = end - key
    if n <= 0:
        return
    kept = ((b * call.shared + shared) * rows + first) * call.item
    from_key = key - split * SPLIT
    inverse = scratch.stats + scores.SUM * call.width
    take_lanes(unit, call, call.largest + kept, count, scratch.stats)
    take_lanes(unit, call, call.inverse + kept, count, inverse)
    take_lanes(unit, call, grads.along + kept, count, scratch.along)
    take_rows(unit, call, call.q, b, shared, first, count, scratch.q_rows)
    scores.scale(unit, scratch.q_rows, count * call.q.size // VECTOR, call.constants)
    width = panels_of(unit, call, scratch.q_rows, call.q, count, scratch.q_panels)
    take_gradients(unit, call, scratch, grads, b, shared, first, count, kept)
    panels_of(unit, call, scratch.y_rows, call.v, count, scratch.y_panels)
    # The weights in s, their gradients in d.
    if call.weights:
        take_weights(unit, call, scratch, b, first, key, n, count, width)
    else:
        score(unit, call, scratch, b, shared, key, n, width, inner_low, inner_high)
    value = start_of_key(call.v, b, shared, key)
    product(
        unit, value, call.v.time, call.v.item, n, call.v.features, scratch.y_panels, width, scratch.zeros, 0,
        scratch.d, width,
    )  # fmt: skip
    if call.threshold:
        drop_some(unit, call, scratch, scratch.d, width, key, n, b)
    column = 0
    while column < width:
        panel = panel_width(column, width)
        s, d, along = scratch.s + column, scratch.d + column, scratch.along + column
        lanes = own(scratch, call, ADDED) + column // call.item * 8
        if not call.weights:
            scores.weigh(unit, panel, s, width, n, scratch.stats + column, inverse + column)
        elif call.added.at:
            scores.add_lanes(unit, panel, d, width, n, lanes, key, call.added.item)
        scores.pull_scores(unit, panel, s, d, width, n, along)
        column += panel
    if aim == OF_BIAS:
        add_bias_gradients(unit, call, scratch, grads, b, shared, first, key, n, count, width)
        return
    dq = grads.q_sums + ((b * call.shared + shared) * rows + first) * call.q.size
    if call.kind == ADDITIVE:
        pull_hidden(unit, call, scratch, grads, aim, b, split, key, n, count, width, dq)
    elif aim != OF_KEYS:
        size = call.k.size
        sum_over_keys(unit, call, scratch.d, width, count, n, keys + from_key * size, size, dq, size, dq)
        if mend_k:
            mend_rows(unit, call, scratch, call.k, b, shared, key, n, count, width, scratch.d, dq)
    if aim == OF_QUERIES:
        return
    if call.threshold:
        drop_some(unit, call, scratch, scratch.s, width, key, n, b)
    if call.kind == DOT:
        sum_over_rows(
            unit, call, scratch, call.q, scratch.q_rows, call.constants, b, shared, first, count, key, n, scratch.d,
            width, scratch.dk + from_key * call.k.size,
        )  # fmt: skip
    sum_over_rows(
        unit, call, scratch, grads.y, scratch.y_rows, call.constants + 2 * call.item, b, shared, first, count, key, n,
        scratch.s, width, scratch.dv + from_key * call.v.size,
    )  # fmt: skip


@njit
def sum_over_rows(unit, call, scratch, view, values, constant, b, shared, first, rows, key, count, weights, width, out):
    """out += weights · values for a block's rows, for keys; values that are not finite as in `mend_keys`."""
    size = view.size
    unfinite = scores.has_unfinite(unit, values, rows * size // VECTOR)
    if unfinite:
        scores.keep_finite(unit, values, rows * size // VECTOR)
    for r in range(0, rows, PIECE):
        product_of_rows(
            unit, weights + r * call.item, width, call.item, count, min(PIECE, rows - r), values + r * size, size,
            size, out, size,
        )  # fmt: skip
    if unfinite:
        mend_keys(unit, call, scratch, view, constant, b, shared, first, rows, key, count, weights, width, out)


@njit
def visit_all(unit, call, scratch, grads, aim, b, shared, split0, split1, block0, block1, starts, valid, asked):
    """Do blocks of rows of splits, and store the gradients that are complete then."""
    rows = call.queries * call.group
    for split in range(split0, split1):
        key, count = split * SPLIT, min(SPLIT, call.keys - split * SPLIT)
        keys, mend_k = scratch.keys, False
        if aim in (ALL, OF_QUERIES):
            keys, mend_k = take_keys(unit, call, call.k, b, shared, key, count, scratch.keys)
        if aim <= OF_KEYS or call.kind == ADDITIVE:
            scores.clear(unit, scratch.dk, count * call.k.size // VECTOR)
            scores.clear(unit, scratch.dv, count * call.v.size // VECTOR)
        for block in range(block0, block1):
            visit(unit, call, scratch, grads, aim, b, shared, split, block, keys, mend_k, starts, valid, asked)
        if aim <= OF_KEYS:
            for number in range(count):
                k, v = start_of_key(grads.k, b, shared, key + number), start_of_key(grads.v, b, shared, key + number)
                if grads.k.at:
                    scatter_row(unit, scratch.dk + number * call.k.size, k, call.k.features, call.lanes)
                if grads.v.at:
                    scatter_row(unit, scratch.dv + number * call.v.size, v, call.v.features, call.lanes)
    if aim in (ALL, OF_QUERIES) and grads.q.at:
        for r in range(block0 * call.block, min(block1 * call.block, rows)):
            row = grads.q_sums + ((b * call.shared + shared) * rows + r) * call.q.size
            scores.scale(unit, row, call.q.size // VECTOR, call.constants)
            scatter_row(unit, row, start_of(grads.q, call, b, shared, r), call.q.features, call.lanes)


@kernel
def pull_back(unit, call, scratch, grads, aim, starts, valid, asked, item0, item1, part, parts, sources=SOURCES):
    """Do a share of the items from item0 to item1: heads of keys of the batch, or splits or blocks of rows of them."""
    before = denormals_off()
    mine = of_part(scratch, part)
    splits = (call.keys + SPLIT - 1) // SPLIT
    blocks = (call.queries * call.group + call.block - 1) // call.block
    for item in range(item0 + part, item1, parts):
        if aim == ALL:
            visit_all(
                unit, call, mine, grads, aim, item // call.shared, item % call.shared, 0, splits, 0, blocks, starts,
                valid, asked,
            )  # fmt: skip
        elif aim == OF_KEYS:
            head, split = item // splits, item % splits
            visit_all(
                unit, call, mine, grads, aim, head // call.shared, head % call.shared, split, split + 1, 0, blocks,
                starts, valid, asked,
            )  # fmt: skip
        else:
            head, block = item // blocks, item % blocks
            visit_all(
                unit, call, mine, grads, aim, head // call.shared, head % call.shared, 0, splits, block, block + 1,
                starts, valid, asked,
            )  # fmt: skip
    denormals_restore(before)


@kernel
def pull_bias(unit, call, scratch, grads, b, starts, valid, asked, part, parts, sources=SOURCES):
    """Add a row of the batch to the gradient of the bias, whose elements are shared out: each is added up in order."""
    before = denormals_off()
    mine = of_part(scratch, part)
    bias = grads.bias
    splits = (call.keys + SPLIT - 1) // SPLIT
    blocks = (call.queries * call.group + call.block - 1) // call.block
    for shared in range(call.shared):
        for split in range(splits):
            for block in range(blocks):
                number = shared if bias.head else 0  # the same for all that is added to the same elements
                number = number * splits + split if bias.item else number
                number = number * blocks + block if bias.time else number
                if number % parts == part:
                    visit(unit, call, mine, grads, OF_BIAS, b, shared, split, block, 0, False, starts, valid, asked)
    denormals_restore(before)
