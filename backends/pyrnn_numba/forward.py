"""The compiled forward: projections of the inputs, and the steps."""

from __future__ import annotations

from numba import njit

from . import cells
from .activations import denormals_off, denormals_restore
from .compiled import SOURCES, kernel, share
from .panel import PANEL, ROWS, SCRATCH, VECTOR, copy_row, product_of_weights, scatter_row
from .walk import (
    GRU_AFTER,
    GRU_BEFORE,
    LSTM,
    RNN_RELU,
    RNN_TANH,
    element,
    gather_inputs,
    own,
    times,
)  # fmt: skip


@kernel
def project(unit, layer, w, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES):
    """gates = bias + x·W_ihᵀ for a share of a block's packed rows."""
    before = denormals_off()
    first, last = share(offsets[s0], offsets[s1], ROWS, part, parts)
    gather_inputs(unit, layer, layer.packed_x, order, lengths, offsets, s0, s1, first, last)
    width = layer.gate_count * layer.hidden
    times(
        unit, layer, layer.packed_x + (first - offsets[s0]) * layer.inputs, layer.inputs, last - first, w, 0,
        layer.gate_count, layer.bias, 0, layer.gates + (first - layer.gates_from) * width, width, part,
    )  # fmt: skip
    denormals_restore(before)


@njit
def activate(unit, layer, gates, q, c, h, new_h, low, high):
    """Apply the cell to a row, from byte ``low`` of its units to ``high``."""
    for at in range(low, high, VECTOR):
        if layer.cell == LSTM:
            cells.lstm(unit, gates + at, layer.hidden, c + at, new_h + at)
        elif layer.cell == RNN_TANH:
            cells.rnn_tanh(unit, gates + at, new_h + at)
        elif layer.cell == RNN_RELU:
            cells.rnn_relu(unit, gates + at, new_h + at)
        elif layer.cell == GRU_AFTER:
            cells.gru_after(unit, gates + at, layer.hidden, q + at, h + at, new_h + at)
        else:
            cells.gru_before(unit, gates + at, layer.hidden, h + at, new_h + at)


@kernel
def forward_steps(unit, layer, w, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES):
    """Take a block's steps for every row part, part + parts, ..."""
    before = denormals_off()
    hidden, width = layer.hidden, layer.gate_count * layer.hidden
    h, stride, gate_stride = layer.h + part * hidden, parts * hidden, parts * width
    for s in range(s0, s1):
        rows = own(offsets[s + 1] - offsets[s], part, parts)
        n = offsets[s] + part
        gates = layer.gates + (n - layer.gates_from) * width
        kept = n * hidden
        q, q_stride = (layer.q + kept, stride) if layer.h_kept else (layer.q + part * hidden, stride)
        if layer.h_kept:
            for r in range(rows):
                copy_row(unit, h + r * stride, layer.h_kept + kept + r * stride, hidden)
                if layer.cell == LSTM:
                    copy_row(unit, layer.c + part * hidden + r * stride, layer.c_kept + kept + r * stride, hidden)
        if layer.cell == GRU_AFTER:
            times(unit, layer, h, stride, rows, w, 0, 2, gates, gate_stride, gates, gate_stride, part)
            times(unit, layer, h, stride, rows, w, 2, 1, layer.b_hn, 0, q, q_stride, part)
        elif layer.cell == GRU_BEFORE:
            times(unit, layer, h, stride, rows, w, 0, 2, gates, gate_stride, gates, gate_stride, part)
            for r in range(rows):
                for at in range(0, hidden, VECTOR):
                    cells.gru_before_reset(
                        unit, gates + r * gate_stride + at, hidden, h + r * stride + at, q + r * q_stride + at
                    )
            at_n = gates + 2 * hidden
            times(unit, layer, q, q_stride, rows, w, 2, 1, at_n, gate_stride, at_n, gate_stride, part)
        else:
            times(unit, layer, h, stride, rows, w, 0, layer.gate_count, gates, gate_stride, gates, gate_stride, part)
        for r in range(rows):
            state = h + r * stride
            c = layer.c + part * hidden + r * stride
            activate(unit, layer, gates + r * gate_stride, q + r * q_stride, c, state, state, 0, hidden)
            i = part + r * parts
            target = layer.y + order[i] * layer.y_row + element(layer, lengths, i, s) * layer.y_time
            scatter_row(unit, state, target, layer.H, layer.lanes)
    denormals_restore(before)


@njit
def times_units(unit, layer, a, a_row, rows, w, gate, first, count, c, c_row, out, out_row, part):
    """out = c + a·Wᵀ for some units of one gate, of weights that are not packed."""
    item = VECTOR // layer.lanes
    width = (count * item + VECTOR - 1) // VECTOR * VECTOR
    product_of_weights(
        unit, a, a_row, item, rows, w.at + gate * w.gate + first * w.lane, w.lane, w.step, count, width, 1, w.depth,
        w.scratch + part * SCRATCH, c, c_row, out, out_row, layer.lanes,
    )  # fmt: skip


@kernel
def single_step(unit, layer, ih, hh, new_h, order, lengths, offsets, part, parts, sources=SOURCES):
    """The whole forward of rows that have one step or none, for some of the units; not of a GRU that resets before.

    The weights are not packed. ``new_h`` [B] takes the new state, as other parts still read the old one.
    """
    before = denormals_off()
    item, hidden, rows = VECTOR // layer.lanes, layer.hidden, offsets[1]
    first, last = share(0, layer.H, PANEL // item, part, parts)
    at = first * item
    width = layer.gate_count * hidden
    packed_x = layer.packed_x + part * rows * layer.inputs
    gather_inputs(unit, layer, packed_x, order, lengths, offsets, 0, 1, 0, rows)
    for gate in range(layer.gate_count):
        gates = layer.gates + gate * hidden + at
        times_units(
            unit, layer, packed_x, layer.inputs, rows, ih, gate, first, last - first, layer.bias + gate * hidden + at,
            0, gates, width, part,
        )  # fmt: skip
        if gate == 2 and layer.cell == GRU_AFTER:
            times_units(
                unit, layer, layer.h, hidden, rows, hh, gate, first, last - first, layer.b_hn + at, 0, layer.q + at,
                hidden, part,
            )  # fmt: skip
        else:
            times_units(
                unit, layer, layer.h, hidden, rows, hh, gate, first, last - first, gates, width, gates, width, part
            )
    for i in range(rows):
        row = i * hidden
        if layer.h_kept:
            copy_row(unit, layer.h + row + at, layer.h_kept + row + at, (last - first) * item)
            if layer.cell == LSTM:
                copy_row(unit, layer.c + row + at, layer.c_kept + row + at, (last - first) * item)
        activate(
            unit, layer, layer.gates + i * width, layer.q + row, layer.c + row, layer.h + row, new_h + row, at, last *
            item,
        )  # fmt: skip
        target = layer.y + order[i] * layer.y_row + element(layer, lengths, i, 0) * layer.y_time
        scatter_row(unit, new_h + row + at, target + at, last - first, layer.lanes)
    for i in range(rows, len(order)):
        copy_row(unit, layer.h + i * hidden + at, new_h + i * hidden + at, (last - first) * item)
    denormals_restore(before)
