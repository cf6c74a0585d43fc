"""The building block: a tile of rows times a panel of columns, every sum one chain of fused multiply-adds.

(a) `tile` holds up to ROWS x WIDE vectors of sums in registers. Each begins at what stands in C and adds a[row, k]·b[k,
    column] in ascending k. So an element's bits do not depend on the tile it falls into, nor on the rows beside it.
(b) B is packed: panels of WIDE vectors of columns, then single vectors, each [k][columns]; or lies as it is, rows of k.
(c) Where too few rows would use packed weights, `product_of_weights` packs a panel at a time into a scratch that stays
    in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit

from .vector import INT, VECTOR_BYTES, Emitter, Vector, emitted

ROWS = 6 if VECTOR_BYTES == 64 else 4  # with WIDE vectors of columns: what the registers hold
WIDE = 4 if VECTOR_BYTES == 64 else 3
PANEL = WIDE * VECTOR_BYTES
VECTOR = VECTOR_BYTES
PIECE = 64  # elements of k that are packed at a time, for a first-level cache
SCRATCH = PIECE * PANEL
REPAID = 2  # row tiles that must use packed weights to repay a buffer for all of them


def _accumulate(
    e: Emitter,
    rows: int,
    columns: int,
    load_b: Callable[[Any, int], Vector],
    a: tuple[Any, Any, Any],
    depth: Any,
    c: tuple[Any, Any],
    out: tuple[Any, Any],
) -> None:
    """Write a loop over k that adds a[row, k]·b[k] to C's tile and stores the sums in `out`."""
    builder = e.builder
    address, a_row, a_step = a

    def row(start: Any, stride: Any, number: int) -> Any:
        return builder.add(start, builder.mul(stride, ir.Constant(INT, number)))

    def add(k: Any, sums: list[Vector]) -> list[Vector]:
        b = [load_b(k, v) for v in range(columns)]
        step = builder.add(address, builder.mul(k, a_step))
        added = []
        for r in range(rows):
            number = e.load_all(row(step, a_row, r))
            added += [e.fma(number, b[v], sums[r * columns + v]) for v in range(columns)]
        return added

    sums = e.loop(depth, [e.load(row(*c, r), v * VECTOR_BYTES) for r in range(rows) for v in range(columns)], add)
    for r in range(rows):
        for v in range(columns):
            e.store(sums[r * columns + v], row(*out, r), v * VECTOR_BYTES)


@emitted("rows", "columns")
def tile(e, rows, columns, a, a_row, a_step, b, b_step, depth, c, c_row, out, out_row):
    """out = c + a·b for ``rows`` rows and ``columns`` vectors (constants); b has its columns side by side."""

    def load_b(k: Any, v: int) -> Vector:
        return e.load(e.builder.add(b, e.builder.mul(k, b_step)), v * VECTOR_BYTES)

    _accumulate(e, rows, columns, load_b, (a, a_row, a_step), depth, (c, c_row), (out, out_row))


@emitted()
def gather(e, source, stride, count, target):
    """Store a vector of elements that lie ``stride`` bytes apart; past ``count`` zeros."""
    e.store(e.gather(source, stride, count), target)


@emitted()
def transpose(e, source, lane, target, step):
    """Store a square of elements transposed: rows ``lane`` bytes apart become columns of rows ``step`` bytes apart.

    A vector is put together from pieces of 16 bytes of rows that lie a piece's elements apart; then it is enough to
    exchange elements within the pieces, which costs half the shuffles.
    """
    elements = 16 * 8 // e.bits
    for group in range(e.lanes // elements):
        rows = []
        for i in range(elements):
            numbers = [ir.Constant(INT, piece * elements + i) for piece in range(e.lanes // elements)]
            rows.append(e.load_pieces([e.add(e.add(source, e.builder.mul(lane, n)), 16 * group) for n in numbers]))
        half = elements // 2
        while half:
            lanes = range(e.lanes)
            low = [j + e.lanes - half if j & half else j for j in lanes]
            high = [j + e.lanes if j & half else j + half for j in lanes]
            for i in range(elements):
                if not i & half:
                    a, b = rows[i], rows[i + half]
                    rows[i], rows[i + half] = e.shuffle(a, b, low), e.shuffle(a, b, high)
            half //= 2
        for i, row in enumerate(rows):
            e.store(row, target, e.builder.mul(step, ir.Constant(INT, group * elements + i)))


@emitted()
def add_gathered(e, source, stride, count, target):
    """Add a vector of elements that lie ``stride`` bytes apart."""
    e.store(e.load(target) + e.gather(source, stride, count), target)


@emitted()
def scatter(e, source, target, count):
    """Store the first ``count`` elements of a vector."""
    e.store_first(e.load(source), target, count)


@emitted()
def add_to(e, target, source):
    """Add a vector to another."""
    e.store(e.load(target) + e.load(source), target)


@emitted()
def copy(e, source, target):
    """Copy a vector."""
    e.store(e.load(source), target)


@njit
def copy_row(unit, source, target, size):
    """Copy ``size`` bytes, a whole number of vectors."""
    for at in range(0, size, VECTOR):
        copy(unit, source + at, target + at)


@njit
def gather_row(unit, source, stride, count, target, lanes):
    """Make a padded row of ``count`` elements that lie ``stride`` bytes apart."""
    beside = count // lanes * lanes if stride == VECTOR // lanes else 0
    copy_row(unit, source, target, beside // lanes * VECTOR)
    for first in range(beside, count, lanes):
        gather(unit, source + first * stride, stride, count - first, target + first // lanes * VECTOR)


@njit
def scatter_row(unit, source, target, count, lanes):
    """Store ``count`` elements of a padded row side by side."""
    item = VECTOR // lanes
    for first in range(0, count, lanes):
        scatter(unit, source + first * item, target + first * item, count - first)


@njit
def pack_column(unit, source, lane, step, count, depth, target, width, lanes):
    """Pack a vector of columns: ``count`` that lie ``lane`` bytes apart, each of elements ``step`` bytes apart."""
    item = VECTOR // lanes
    k = 0
    if count >= lanes and lane == item:
        while k < depth:
            copy(unit, source + k * step, target + k * width)
            k += 1
    if count >= lanes and step == item:
        while k + lanes <= depth:
            transpose(unit, source + k * item, lane, target + k * width, width)
            k += lanes
    while k < depth:
        gather(unit, source + k * step, lane, count, target + k * width)
        k += 1


@njit
def pack_panel(unit, w, lane, step, units, padded, depth, column, width, target, lanes):
    """Pack ``width`` bytes of columns from ``column`` on: PANEL, or VECTOR.

    Column ``unit`` of gate g is at ``w + (g·units + unit)·lane``, its element k ``step`` bytes on. A gate takes
    ``padded`` bytes of columns, those past ``units`` zero.
    """
    for at in range(column, column + width, VECTOR):
        gate, first = at // padded, at % padded // VECTOR * lanes
        pack_column(
            unit, w + (gate * units + first) * lane, lane, step, units - first, depth, target + at - column, width,
            lanes,
        )  # fmt: skip


@njit
def panel_width(column, columns):
    return PANEL if column < columns // PANEL * PANEL else VECTOR


@njit
def pack(unit, w, lane, step, units, padded, gates, depth, target, lanes):
    """Pack weights into panels; see `pack_panel`."""
    column, columns = 0, gates * padded
    while column < columns:
        width = panel_width(column, columns)
        pack_panel(unit, w, lane, step, units, padded, depth, column, width, target + column * depth, lanes)
        column += width


@njit
def times_panel(unit, a, a_row, a_step, rows, depth, b, b_step, width, c, c_row, out, out_row):
    """out = c + a·b for one panel."""
    for r in range(0, rows, ROWS):
        if width == PANEL:
            strip(
                unit, a + r * a_row, a_row, a_step, rows - r, depth, b, b_step, c + r * c_row, c_row, out + r *
                out_row, out_row,
            )  # fmt: skip
        else:
            thin_strip(
                unit, a + r * a_row, a_row, a_step, rows - r, depth, b, b_step, c + r * c_row, c_row, out + r *
                out_row, out_row,
            )  # fmt: skip


@njit
def product(unit, a, a_row, a_step, rows, depth, b, columns, c, c_row, out, out_row):
    """out = c + a·b with packed b, ``columns`` in bytes. c and out may be the same."""
    column = 0
    while column < columns:
        width = panel_width(column, columns)
        times_panel(
            unit, a, a_row, a_step, rows, depth, b + column * depth, width, width, c + column, c_row, out + column,
            out_row,
        )  # fmt: skip
        column += width


@njit
def product_of_rows(unit, a, a_row, a_step, rows, depth, b, b_step, columns, out, out_row):
    """out += a·b where b lies in rows of k, ``b_step`` bytes apart."""
    column = 0
    while column < columns:
        width = panel_width(column, columns)
        times_panel(
            unit, a, a_row, a_step, rows, depth, b + column, b_step, width, out + column, out_row, out + column, out_row
        )
        column += width


@njit
def product_of_weights(
    unit, a, a_row, a_step, rows, w, lane, step, units, padded, gates, depth, scratch, c, c_row, out, out_row, lanes
):
    """out = c + a·b with b as `pack` would take it, packed a piece at a time into ``scratch`` of SCRATCH bytes."""
    column, columns = 0, gates * padded
    while column < columns:
        width = panel_width(column, columns)
        start, start_row = c + column, c_row
        for k in range(0, max(depth, 1), PIECE):
            piece = min(PIECE, depth - k)
            pack_panel(unit, w + k * step, lane, step, units, padded, piece, column, width, scratch, lanes)
            times_panel(
                unit, a + k * a_step, a_row, a_step, rows, piece, scratch, width, width, start, start_row, out +
                column, out_row,
            )  # fmt: skip
            start, start_row = out + column, out_row
        column += width


def _strips() -> str:
    """Write the two functions that choose the tile for the rows that are left: a tile's height is a constant."""
    source = ""
    for name, columns in (("strip", WIDE), ("thin_strip", 1)):
        source += f"def {name}(unit, a, a_row, a_step, rows, depth, b, b_step, c, c_row, out, out_row):\n"
        for rows in range(ROWS, 0, -1):
            source += f"    {'if' if rows == ROWS else 'elif'} rows >= {rows}:\n"
            source += (
                f"        tile(unit, {rows}, {columns}, a, a_row, a_step, b, b_step, depth, c, c_row, out, out_row)\n"
            )
    return source


_scope = {"tile": tile}
exec(_strips(), _scope)
strip, thin_strip = (njit(_scope[name]) for name in ("strip", "thin_strip"))
