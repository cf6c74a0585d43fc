"""The compiled causal convolution: a sequence with its context before it, and a kernel's taps as offsets into it.

(a) A row of the sequence is a step's channels, in whole vectors group by group. An output is one chain: the bias, then
    tap after tap, each over the channels in ascending order, in registers as long as a first-level cache has the
    weights.
(b) What `convolve` does to a sequence is also what the backward does to the outputs' gradient, with zeros around it
    and the taps in reverse.
(c) Where each group has one input, `convolve_depthwise` has the channels side by side; no product is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import njit

from .activations import denormals_off, denormals_restore
from .compiled import SOURCES, kernel, share
from .panel import PANEL, ROWS, VECTOR, WIDE, add_to, gather_row, panel_width, product_of_rows, scatter_row
from .vector import VECTOR_BYTES, Emitter, Vector, emitted, whole

PIECE = 128  # inputs, or rows, whose products are added up at a time, for a first-level cache


class Taps(NamedTuple):
    """A convolution: sizes, and the addresses of its buffers."""

    lanes: int
    item: int  # bytes of an element
    batch: int
    rows: int  # of a sequence's outputs
    taps: int
    spacing: int  # rows from one tap to the next
    groups: int
    inputs: int  # of a group
    outputs: int
    source: int  # [batch][rows of a sequence][groups][inputs in whole vectors]
    sequence: int  # bytes of a sequence
    row: int  # bytes of one of its rows
    group: int  # bytes of a group in it
    panels: int  # [groups][panels of outputs][taps][inputs]; depthwise [taps][outputs]
    bias: int  # [groups][outputs], or zeros
    out: int  # [batch][rows][groups][outputs in whole vectors]
    out_sequence: int
    out_row: int
    out_group: int


@emitted("rows", "columns")
def tile(e, rows, columns, a, a_row, tap, a_step, taps, depth, b, b_step, c, c_row, out, out_row):
    """out = c + Σ over taps and inputs of a·b, for ``rows`` rows and ``columns`` vectors; see `panel.tile`."""
    builder = e.builder

    def place(start: Any, stride: Any, number: Any) -> Any:
        return builder.add(start, builder.mul(stride, whole(number) if isinstance(number, int) else number))

    def of_tap(t: Any, sums: list[Vector]) -> list[Vector]:
        at, weights = place(a, tap, t), place(b, builder.mul(b_step, depth), t)

        def add(k: Any, sums: list[Vector]) -> list[Vector]:
            vectors = [e.load(place(weights, b_step, k), v * VECTOR_BYTES) for v in range(columns)]
            step, added = place(at, a_step, k), []
            for r in range(rows):
                number = e.load_all(place(step, a_row, r))
                added += [e.fma(number, vectors[v], sums[r * columns + v]) for v in range(columns)]
            return added

        return e.loop(depth, sums, add)

    starts = [e.load(place(c, c_row, r), v * VECTOR_BYTES) for r in range(rows) for v in range(columns)]
    sums = e.loop(taps, starts, of_tap)
    for r in range(rows):
        for v in range(columns):
            e.store(sums[r * columns + v], place(out, out_row, r), v * VECTOR_BYTES)


def _strips() -> str:
    """Write the two functions that choose the tile for the rows that are left, as `panel` does."""
    names = "a, a_row, tap, a_step, taps, depth, b, b_step, c, c_row, out, out_row"
    source = ""
    for name, columns in (("strip", WIDE), ("thin_strip", 1)):
        source += f"def {name}(unit, left, {names}):\n"
        for rows in range(ROWS, 0, -1):
            source += f"    {'if' if rows == ROWS else 'elif'} left >= {rows}:\n"
            source += f"        tile(unit, {rows}, {columns}, {names})\n"
    return source


_scope: dict[str, Callable[..., Any]] = {"tile": tile}
exec(_strips(), _scope)
strip, thin_strip = (njit(_scope[name]) for name in ("strip", "thin_strip"))


@njit
def times_taps(unit, call, a, a_row, rows, panels, bias, out, out_row):
    """out = bias + taps · a for some rows of a group."""
    size = call.out_group
    depth = call.inputs
    # A piece of the weights that stays in a first-level cache: several taps of few inputs, or some inputs of a tap.
    taps = max(1, PIECE // max(1, depth)) if depth <= PIECE else 1
    column = 0
    while column < size:
        width = panel_width(column, size)
        c, c_row = bias + column, 0
        for tap in range(0, call.taps, taps):
            for k in range(0, max(1, depth), PIECE):
                piece = min(PIECE, depth - k)
                start = a + tap * call.spacing * call.row + k * call.item
                b = panels + column * call.taps * depth + (tap * depth + k) * width
                for r in range(0, rows, ROWS):
                    from_row, to, begin = start + r * a_row, out + column + r * out_row, c + r * c_row
                    count = min(taps, call.taps - tap)
                    if width == PANEL:
                        strip(
                            unit, rows - r, from_row, a_row, call.spacing * call.row, call.item, count, piece, b,
                            width, begin, c_row, to, out_row,
                        )  # fmt: skip
                    else:
                        thin_strip(
                            unit, rows - r, from_row, a_row, call.spacing * call.row, call.item, count, piece, b,
                            width, begin, c_row, to, out_row,
                        )  # fmt: skip
                c, c_row = out + column, out_row
        column += width


@kernel
def convolve(unit, call, lengths, block, part, parts, sources=SOURCES):
    """Do a share of the blocks of rows, up to each sequence's own length, or of the batch where sequences are short."""
    before = denormals_off()
    if call.rows < ROWS < call.batch:  # the rows of a tile are those of several sequences
        first, last = share(0, call.batch, ROWS, part, parts)
        for t in range(call.rows):
            for g in range(call.groups):
                a = call.source + first * call.sequence + t * call.row + g * call.group
                out = call.out + first * call.out_sequence + t * call.out_row + g * call.out_group
                times_taps(
                    unit, call, a, call.sequence, last - first, call.panels + g * call.out_group * call.taps *
                    call.inputs, call.bias + g * call.out_group, out, call.out_sequence,
                )  # fmt: skip
    else:
        blocks = (call.rows + block - 1) // block
        for number in range(part, call.batch * blocks, parts):
            b, t = number // blocks, number % blocks * block
            rows = min(block, lengths[b] - t)
            for g in range(call.groups if rows > 0 else 0):
                a = call.source + b * call.sequence + t * call.row + g * call.group
                out = call.out + b * call.out_sequence + t * call.out_row + g * call.out_group
                times_taps(
                    unit, call, a, call.row, rows, call.panels + g * call.out_group * call.taps * call.inputs,
                    call.bias + g * call.out_group, out, call.out_row,
                )  # fmt: skip
    denormals_restore(before)


# --- depthwise -------------------------------------------------------------------------------------------------------


def _row(e: Emitter, start: Any, stride: Any, number: Any) -> Vector:
    return e.load(e.builder.add(start, e.builder.mul(stride, number)))


@emitted()
def depthwise(e, a, tap, taps, w, w_tap, bias, out):
    """out = bias + Σ over taps of a·w, for a vector of channels."""

    def add(t: Any, sums: list[Vector]) -> list[Vector]:
        return [e.fma(_row(e, a, tap, t), _row(e, w, w_tap, t), sums[0])]

    e.store(e.loop(taps, [e.load(bias)], add)[0], out)


@emitted()
def depthwise_weights(e, d, d_row, a, a_row, rows, dw):
    """dw += Σ over rows of d·a, for a vector of channels."""

    def add(r: Any, sums: list[Vector]) -> list[Vector]:
        return [e.fma(_row(e, d, d_row, r), _row(e, a, a_row, r), sums[0])]

    e.store(e.loop(rows, [e.load(dw)], add)[0], dw)


@kernel
def convolve_depthwise(unit, call, lengths, block, part, parts, sources=SOURCES):
    """As `convolve`, where source and outputs have the same channels side by side."""
    before = denormals_off()
    blocks = (call.rows + block - 1) // block
    for number in range(part, call.batch * blocks, parts):
        b, start = number // blocks, number % blocks * block
        for t in range(start, min(start + block, lengths[b])):
            a, out = call.source + b * call.sequence + t * call.row, call.out + b * call.out_sequence + t * call.out_row
            for at in range(0, call.out_row, VECTOR):
                depthwise(
                    unit, a + at, call.spacing * call.row, call.taps, call.panels + at, call.out_row, call.bias + at,
                    out + at,
                )  # fmt: skip
    denormals_restore(before)


# --- gradients of the weights ----------------------------------------------------------------------------------------


@kernel
def tap_gradients(unit, call, d, d_sequence, d_row, d_group, dw, db, lengths, part, parts, sources=SOURCES):
    """Add up the gradients of weights, [taps][groups][outputs][inputs in whole vectors], and of the bias, a row of d.

    ``d`` has the outputs' gradient as `out` has the outputs. Shared out are the outputs: a weight's gradient is a chain
    over the rows.
    """
    before = denormals_off()
    first, last = share(0, call.outputs, ROWS, part, parts)
    for b in range(call.batch):
        for row in range(0, lengths[b] if dw else 0, PIECE):
            rows = min(PIECE, lengths[b] - row)
            for g in range(call.groups):
                a = call.source + b * call.sequence + row * call.row + g * call.group
                from_d = d + b * d_sequence + row * d_row + g * d_group + first * call.item
                for tap in range(call.taps):
                    out = dw + ((tap * call.groups + g) * call.outputs + first) * call.group
                    product_of_rows(
                        unit, from_d, call.item, d_row, last - first, rows, a + tap * call.spacing * call.row,
                        call.row, call.group, out, call.group,
                    )  # fmt: skip
    add_rows(unit, call, d, d_sequence, d_row, db, lengths, part, parts)
    denormals_restore(before)


@kernel
def depthwise_gradients(unit, call, d, d_sequence, d_row, d_group, dw, db, lengths, part, parts, sources=SOURCES):
    """As `tap_gradients`, dw being [taps][a row of d]."""
    before = denormals_off()
    low, high = share(0, d_row, VECTOR, part, parts)
    for b in range(call.batch):
        for row in range(0, lengths[b] if dw else 0, PIECE):
            rows = min(PIECE, lengths[b] - row)
            a, from_d = call.source + b * call.sequence + row * call.row, d + b * d_sequence + row * d_row
            for tap in range(call.taps):
                for at in range(low, high, VECTOR):
                    depthwise_weights(
                        unit, from_d + at, d_row, a + tap * call.spacing * call.row + at, call.row, rows, dw + tap *
                        d_row + at,
                    )  # fmt: skip
    add_rows(unit, call, d, d_sequence, d_row, db, lengths, part, parts)
    denormals_restore(before)


@njit
def add_rows(unit, call, d, d_sequence, d_row, db, lengths, part, parts):
    """db += the rows of d, for a share of their vectors."""
    low, high = share(0, d_row, VECTOR, part, parts)
    for b in range(call.batch if db else 0):
        for row in range(lengths[b]):
            for at in range(low, high, VECTOR):
                add_to(unit, db + at, d + b * d_sequence + row * d_row + at)


# --- rows in and out -------------------------------------------------------------------------------------------------


@kernel
def take_rows(
    unit, source, strides, counts, target, sequence, first_row, row, groups, inputs, group, repeats, lanes, part,
    parts, sources=SOURCES,
):  # fmt: skip
    """Copy each sequence's first rows, as many as ``counts`` says, group by group, from row ``first_row`` on.

    With ``repeats`` an input stands so many times, for the outputs of its group.
    """
    item = VECTOR // lanes
    for b in range(part, len(counts), parts):
        for t in range(counts[b]):
            start = source + b * strides[0] + t * strides[1]
            to = target + b * sequence + (first_row + t) * row
            if repeats == 1:
                for g in range(groups):
                    gather_row(unit, start + g * inputs * strides[2], strides[2], inputs, to + g * group, lanes)
            else:
                for channel in range(inputs):
                    for number in range(repeats):
                        copy_element(unit, start + channel * strides[2], to + (channel * repeats + number) * item)


@emitted()
def copy_element(e, source, target):
    e.store_element(e.load_element(source), target)


@emitted()
def add_element(e, source, target):
    e.store_element(e.builder.fadd(e.load_element(target), e.load_element(source)), target)


@kernel
def give_rows(
    unit, source, sequence, firsts, counts, row, groups, outputs, group, repeats, added, target, strides, lanes, part,
    parts, sources=SOURCES,
):  # fmt: skip
    """Copy rows of each sequence, from ``firsts`` on, to an array whose channels stand side by side.

    With ``repeats`` the first ``added`` that belong to one channel are added up.
    """
    item = VECTOR // lanes
    for b in range(part, len(counts), parts):
        for t in range(counts[b]):
            start = source + b * sequence + (firsts[b] + t) * row
            to = target + b * strides[0] + t * strides[1]
            if repeats == 1:
                for g in range(groups):
                    scatter_row(unit, start + g * group, to + g * outputs * item, outputs, lanes)
            else:
                for channel in range(outputs):
                    copy_element(unit, start + channel * repeats * item, to + channel * item)
                    for number in range(1, added):
                        add_element(unit, start + (channel * repeats + number) * item, to + channel * item)
