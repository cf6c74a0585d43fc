"""Products of rows with a matrix, and the matrix's gradient."""

from __future__ import annotations

from numba import njit

from .activations import denormals_off, denormals_restore
from .compiled import SOURCES, kernel, share
from .panel import ROWS, product, product_of_rows

PIECE = 128  # rows whose products are added up at a time, for a first-level cache


@kernel
def multiply(unit, a, a_row, a_step, rows, panels, depth, columns, zeros, out, part, parts, sources=SOURCES):
    """out = a·b for a share of the rows, b packed in panels; its rows and out's have ``columns`` bytes."""
    before = denormals_off()
    first, last = share(0, rows, ROWS, part, parts)
    product(
        unit, a + first * a_row, a_row, a_step, last - first, depth, panels, columns, zeros, 0, out + first * columns,
        columns,
    )  # fmt: skip
    denormals_restore(before)


@njit
def add_products(unit, a, a_row, rows, first, last, item, b, b_row, columns, out, out_row):
    """out += aᵀ·b for a's columns from first to last: a chain over the rows."""
    for row in range(0, rows, PIECE):
        product_of_rows(
            unit, a + row * a_row + first * item, item, a_row, last - first, min(PIECE, rows - row), b + row * b_row,
            b_row, columns, out + first * out_row, out_row,
        )  # fmt: skip


@kernel
def multiply_transposed(unit, a, a_row, count, item, b, columns, rows, out, part, parts, sources=SOURCES):
    """out += aᵀ·b for a share of a's ``count`` columns; b and out have rows of ``columns`` bytes."""
    before = denormals_off()
    first, last = share(0, count, ROWS, part, parts)
    add_products(unit, a, a_row, rows, first, last, item, b, columns, columns, out, columns)
    denormals_restore(before)
