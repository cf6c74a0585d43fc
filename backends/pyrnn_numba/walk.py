"""The compiled walk over the steps of a recurrent layer.

(a) Rows are sorted longest first, and steps are packed: step s has the rows that have one, `offsets[s]` is where they
    begin. So there is no padding in any buffer, and work follows the valid steps.
(b) A kernel does one part of a block of steps. `project` and `input_gradients` share the packed rows out,
    `forward_steps` and `backward_steps` the rows of the batch (part, part + parts, ...), `weight_gradients` the units.
    No part waits for another.
(c) A row in a buffer is padded to whole vectors. Sizes of rows, `hidden` and `inputs`, are in bytes.
(d) Weights are packed by `pack`, or a piece at a time where a call has too few rows to repay that.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from .compiled import SOURCES, kernel
from .panel import (
    SCRATCH,
    VECTOR,
    gather_row,
    pack,
    product,
    product_of_weights,
    scatter_row,
)

RNN_TANH, RNN_RELU, LSTM, GRU_AFTER, GRU_BEFORE = range(5)


class Weights(NamedTuple):
    """Weights as a product takes them: `at`, and where they are not packed the strides between gates, between columns
    and along k."""

    at: int
    packed: int
    gate: int
    lane: int
    step: int
    units: int
    padded: int
    depth: int
    scratch: int  # SCRATCH bytes for each part


class Layer(NamedTuple):
    """A call: sizes, and the addresses of arrays (0 for none) with their strides in bytes."""

    cell: int
    reverse: int
    lanes: int
    gate_count: int
    I: int
    H: int
    inputs: int
    hidden: int
    x: int  # (B, T, I)
    x_row: int
    x_time: int
    x_item: int
    y: int  # (B, T, H): y itself, or its gradient
    y_row: int
    y_time: int
    y_item: int
    packed_x: int  # [rows of a block][inputs]
    gates: int  # [rows][gate_count · hidden]
    gates_from: int  # the packed row that the first one is
    q: int  # [rows or B][hidden]: of the GRU, q or r·h
    h: int  # [B][hidden]: the state, or its gradient
    c: int
    h_kept: int  # [rows][hidden]: the states before each step
    c_kept: int
    bias: int
    b_hn: int


@njit
def element(layer, lengths, i, s):
    """Return the element of row i's sequence that step s processes."""
    return lengths[i] - 1 - s if layer.reverse else s


@njit
def own(rows, part, parts):
    """Return how many of the first rows are part, part + parts, ..."""
    return max(0, (rows - part + parts - 1) // parts)


@njit
def times(unit, layer, a, a_row, rows, w, gate, gates, c, c_row, out, out_row, part):
    """out = c + a·Wᵀ for some gates of the weights; or a·W for one gate, where it is the units that are summed over."""
    item = VECTOR // layer.lanes
    if w.packed:
        b = w.at + gate * w.padded * w.depth
        product(unit, a, a_row, item, rows, w.depth, b, gates * w.padded, c, c_row, out, out_row)
    else:
        product_of_weights(
            unit, a, a_row, item, rows, w.at + gate * w.gate, w.lane, w.step, w.units, w.padded, gates, w.depth,
            w.scratch + part * SCRATCH, c, c_row, out, out_row, layer.lanes,
        )  # fmt: skip


@kernel
def pack_weights(unit, source, lane, step, units, padded, gates, depth, target, lanes, sources=SOURCES):
    """Pack a set of gates; see `panel.pack`."""
    pack(unit, source, lane, step, units, padded, gates, depth, target, lanes)


@kernel
def pad_rows(unit, source, row, item, order, rows, count, target, padded, lanes, sources=SOURCES):
    """Copy rows of any strides, in an order, into padded ones."""
    for number in range(rows):
        gather_row(unit, source + order[number] * row, item, count, target + number * padded, lanes)


@kernel
def copy_rows(unit, source, row, item, which, count, target, padded, lanes, sources=SOURCES):
    """Copy some rows of any strides to the same places among padded ones."""
    for number in which:
        gather_row(unit, source + number * row, item, count, target + number * padded, lanes)


@kernel
def unpad_rows(unit, source, padded, order, target, row, count, lanes, sources=SOURCES):
    """Copy padded rows to where they belong."""
    for number in range(len(order)):
        scatter_row(unit, source + number * padded, target + order[number] * row, count, lanes)


@njit
def gather_inputs(unit, layer, packed_x, order, lengths, offsets, s0, s1, first, last):
    """Bring the packed rows first to last of a block of steps into packed_x."""
    for s in range(s0, s1):
        for n in range(max(first, offsets[s]), min(last, offsets[s + 1])):
            i = n - offsets[s]
            source = layer.x + order[i] * layer.x_row + element(layer, lengths, i, s) * layer.x_time
            gather_row(unit, source, layer.x_item, layer.I, packed_x + (n - offsets[s0]) * layer.inputs, layer.lanes)
