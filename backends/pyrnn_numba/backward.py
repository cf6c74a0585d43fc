"""The compiled backward: the steps in reverse, then the gradients of weights and inputs from those of the gates."""

from __future__ import annotations

from . import cells
from .activations import denormals_off, denormals_restore
from .compiled import SOURCES, kernel, share
from .panel import ROWS, VECTOR, add_gathered, add_to, product_of_rows, scatter_row
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
def backward_steps(
    unit, layer, w, d, d_width, reset, d_reset, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES
):
    """Take a block's steps backwards; the gates' gradients go to d, [rows of the block][d_width].

    h and c hold the gradients of the states.
    Of a GRU that resets before, r·h goes to ``reset``, [rows of the block], and ``d_reset`` [B] is scratch.
    """
    before = denormals_off()
    hidden, width = layer.hidden, layer.gate_count * layer.hidden
    dh, dc, stride = layer.h + part * hidden, layer.c + part * hidden, parts * hidden
    for s in range(s1 - 1, s0 - 1, -1):
        rows = own(offsets[s + 1] - offsets[s], part, parts)
        n = offsets[s] + part
        gates, kept = layer.gates + n * width, n * hidden
        here = d + (n - offsets[s0]) * d_width
        for r in range(rows):
            i = part + r * parts
            if layer.y:
                source = layer.y + order[i] * layer.y_row + element(layer, lengths, i, s) * layer.y_time
                for first in range(0, layer.H, layer.lanes):
                    add_gathered(
                        unit,
                        source + first * layer.y_item,
                        layer.y_item,
                        layer.H - first,
                        dh + r * stride + first // layer.lanes * VECTOR,
                    )
            row, old, to = gates + r * parts * width, layer.h_kept + kept + r * stride, here + r * parts * d_width
            for at in range(0, hidden, VECTOR):
                grad = dh + r * stride + at
                if layer.cell == LSTM:
                    cells.lstm_back(
                        unit, row + at, hidden, layer.c_kept + kept + r * stride + at, grad, dc + r * stride + at, to
                        + at,
                    )  # fmt: skip
                elif layer.cell == RNN_TANH:
                    cells.rnn_tanh_back(unit, row + at, grad, to + at)
                elif layer.cell == RNN_RELU:
                    cells.rnn_relu_back(unit, row + at, grad, to + at)
                elif layer.cell == GRU_AFTER:
                    cells.gru_after_back(
                        unit, row + at, hidden, layer.q + kept + r * stride + at, old + at, grad, to + at
                    )
                else:
                    cells.gru_before_back(unit, row + at, hidden, old + at, grad, to + at)
        gate_count = layer.gate_count
        if layer.cell == GRU_BEFORE:
            product_d = d_reset + part * hidden
            times(
                unit, layer, here + 2 * hidden, parts * d_width, rows, w, 2, 1, layer.bias, 0, product_d, stride, part
            )
            for r in range(rows):
                for at in range(0, hidden, VECTOR):
                    cells.gru_before_reset_back(
                        unit, gates + r * parts * width + at, layer.h_kept + kept + r * stride + at, product_d + r *
                        stride + at, dh + r * stride + at, here + r * parts * d_width + at, reset + (n - offsets[s0] +
                        r * parts) * hidden + at,
                    )  # fmt: skip
            gate_count = 2
        for gate in range(gate_count):
            plane = 3 if gate == 2 and layer.cell == GRU_AFTER else gate
            times(unit, layer, here + plane * hidden, parts * d_width, rows, w, gate, 1, dh, stride, dh, stride, part)
    denormals_restore(before)


@kernel
def gather_block(unit, layer, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES):
    """Bring a share of a block's inputs into `packed_x`."""
    first, last = share(offsets[s0], offsets[s1], ROWS, part, parts)
    gather_inputs(unit, layer, layer.packed_x, order, lengths, offsets, s0, s1, first, last)


@kernel
def weight_gradients(
    unit, layer, d, d_width, reset, dw_ih, dw_hh, db, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES
):
    """Add a block's share to the weights' gradients, for some units of each gate, in the order of the packed rows.

    dw_ih [gate_count · H][inputs], dw_hh [gate_count · H][hidden], db [d_width]; 0 for one that is not needed.
    """
    before = denormals_off()
    item = VECTOR // layer.lanes
    count = offsets[s1] - offsets[s0]
    first, last = share(0, layer.H, ROWS, part, parts)
    for gate in range(layer.gate_count):
        row = gate * layer.H + first
        if dw_ih:
            product_of_rows(
                unit, d + gate * layer.hidden + first * item, item, d_width, last - first, count, layer.packed_x,
                layer.inputs, layer.inputs, dw_ih + row * layer.inputs, layer.inputs,
            )  # fmt: skip
        if dw_hh:
            plane = 3 if gate == 2 and layer.cell == GRU_AFTER else gate
            states = reset if gate == 2 and layer.cell == GRU_BEFORE else layer.h_kept + offsets[s0] * layer.hidden
            product_of_rows(
                unit, d + plane * layer.hidden + first * item, item, d_width, last - first, count, states,
                layer.hidden, layer.hidden, dw_hh + row * layer.hidden, layer.hidden,
            )  # fmt: skip
    if db:
        low, high = share(0, d_width, VECTOR, part, parts)
        for n in range(count):
            for at in range(low, high, VECTOR):
                add_to(unit, db + at, d + n * d_width + at)
    denormals_restore(before)


@kernel
def input_gradients(
    unit, layer, w, d, d_width, dx, dx_row, order, lengths, offsets, s0, s1, part, parts, sources=SOURCES
):
    """dx = d·W_ih for a share of a block's packed rows; `packed_x` is scratch here."""
    before = denormals_off()
    first, last = share(offsets[s0], offsets[s1], ROWS, part, parts)
    out = layer.packed_x + (first - offsets[s0]) * layer.inputs
    for gate in range(layer.gate_count):
        c, c_row = (out, layer.inputs) if gate else (layer.bias, 0)
        times(
            unit, layer, d + (first - offsets[s0]) * d_width + gate * layer.hidden, d_width, last - first, w, gate, 1,
            c, c_row, out, layer.inputs, part,
        )  # fmt: skip
    item = VECTOR // layer.lanes
    for s in range(s0, s1):
        for n in range(max(first, offsets[s]), min(last, offsets[s + 1])):
            i = n - offsets[s]
            target = dx + order[i] * dx_row + element(layer, lengths, i, s) * layer.I * item
            scatter_row(unit, layer.packed_x + (n - offsets[s0]) * layer.inputs, target, layer.I, layer.lanes)
    denormals_restore(before)
