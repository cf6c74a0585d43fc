"""rnn, lstm, gru of the numba backend: allocate, describe the call, run the compiled walk (`walk`) block after block.

The GRU, for one: its formulas are in `cells` (`gru_after`, `gru_after_back`), its steps in
`forward.forward_steps` and `backward.backward_steps`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import backward as backward_kernels
from . import forward as forward_kernels
from . import walk
from .memory import Memory, address, padded
from .panel import PANEL, REPAID, ROWS, SCRATCH
from .team import run, threads_worth

BLOCK_BYTES = 2**21  # of gates in a block of steps: what a second-level cache holds
GATES = (1, 1, 4, 3, 3)  # by cell
# The GRU that resets after has two gradients of n: seen from the inputs, and from the state.
GRADIENT_PLANES = (1, 1, 4, 4, 3)
IN_ORDER = np.arange(4)

Array = np.ndarray


class Plan(NamedTuple):
    """The order of rows and steps of a call.

    ``order`` has the rows longest first, ``lengths`` theirs; the rows that have step s are packed at
    ``offsets[s]:offsets[s + 1]``.
    """

    order: Array
    lengths: Array
    offsets: Array

    def blocks(self, row_bytes: int) -> list[tuple[int, int]]:
        """Return ranges of steps whose rows of so many bytes stay in a cache."""
        steps = len(self.offsets) - 1
        block = max(1, BLOCK_BYTES // max(1, len(self.order) * row_bytes))
        return [(s, min(s + block, steps)) for s in range(0, steps, block)]

    def largest(self, blocks: list[tuple[int, int]]) -> int:
        """Return the most rows of a block."""
        return int(self.offsets[blocks[0][1]]) if blocks else 0


@lru_cache(maxsize=64)
def uniform(batch: int, time: int) -> Plan:
    """Return the plan of rows that are all of one length."""
    return Plan(np.arange(batch), np.full(batch, time), np.arange(time + 1) * batch)


def ragged(lengths: Array) -> Plan:
    """Return the plan of rows of these lengths."""
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    active = np.searchsorted(-falling, -np.arange(int(falling.max(initial=0))), side="left")
    return Plan(order, falling, np.concatenate([[0], np.cumsum(active)]).astype(np.int64))


class Saved(NamedTuple):
    """What a forward keeps: the call, and by packed row the gates, the states before the step, and q, by address."""

    cell: int
    arrays: Any
    config: Any
    plan: Plan
    buffers: Buffers
    gates: int
    h: int
    c: int
    q: int


class Buffers(Memory):
    """Rows of a recurrent layer: brought into the order of a plan, and back."""

    def fill(self, target: int, size: int, array: Array | None, order: Array) -> None:
        """Copy an array's rows, in an order, into padded ones that are zero so far; None leaves them so."""
        if array is not None:
            row, item = array.strides
            rows, count = array.shape
            walk.pad_rows(self.unit, address(array), row, item, order, rows, count, target, size, self.lanes)

    def unsorted(self, source: int, size: int, plan: Plan, count: int) -> Array:
        """Return padded rows as an array, in the caller's order."""
        result = np.empty((len(plan.order), count), self.unit.dtype)
        walk.unpad_rows(self.unit, source, size, plan.order, address(result), result.strides[0], count, self.lanes)
        return result

    def weights(
        self, w: Array, sets: tuple[int, ...], size: int, piece: int, *, packed: bool, back: bool = False
    ) -> walk.Weights:
        """Describe w (G·H, K) for products over k, or ``back`` over units.

        ``sets`` are the numbers of gates that are multiplied together. They are packed where that is worth a buffer,
        else by the kernels, a piece at a time in SCRATCH bytes a thread at ``piece``.
        """
        row, column = w.strides
        gates = sum(sets)
        hidden, inputs = w.shape[0] // gates, w.shape[1]
        lane, step, units, depth = (column, row, inputs, hidden) if back else (row, column, hidden, inputs)
        if not packed:
            return walk.Weights(address(w), 0, hidden * row, lane, step, units, size, depth, piece)
        (panels,) = self.rows((gates * depth, size))
        start, first = address(w), 0
        for count in sets:
            walk.pack_weights(
                self.unit, start + first * hidden * row, lane, step, units, size, count, depth, panels + first * size
                * depth, self.lanes,
            )  # fmt: skip
            first += count
        return walk.Weights(panels, 1, 0, lane, step, units, size, depth, 0)


def repays(rows: int, times: int = 1) -> bool:
    """Tell whether so many rows, so many times, repay a buffer for all of the packed weights."""
    return times * -(-rows // ROWS) >= REPAID


def threads_for(plan: Plan, arrays: Any) -> int:
    """Return how many threads a call is worth."""
    weights = arrays.w_ih.size + arrays.w_hh.size
    return threads_worth(weights * int(plan.offsets[-1]), weights)


def forward(cell: int, arrays: Any, config: Any, needs: Any) -> tuple[Any, Any]:
    """Run a cell over the sequence; keep what backward needs where ``needs`` is given."""
    x, w_ih, w_hh = arrays.x, arrays.w_ih, arrays.w_hh
    lstm, gru, keeps = cell == walk.LSTM, cell >= walk.GRU_AFTER, needs is not None
    batch, time, inputs = x.shape
    hidden, gates, dtype = w_hh.shape[1], GATES[cell], x.dtype
    size, x_size = padded(hidden, dtype.itemsize), padded(inputs, dtype.itemsize)
    plan = uniform(batch, time) if config.lengths is None else ragged(config.lengths)
    blocks = plan.blocks(gates * size)
    largest, everything = plan.largest(blocks), int(plan.offsets[-1])
    buffers = Buffers(dtype)
    kept_gates, h_kept, c_kept, q = buffers.rows(
        (everything if keeps else largest, gates * size),
        (everything, size) if keeps else None,
        (everything, size) if keeps and lstm else None,
        (everything if keeps else batch, size) if gru else None,
    )
    saved = Saved(cell, arrays, config, plan, buffers, kept_gates, h_kept, c_kept, q) if keeps else None
    scratch = Buffers(dtype)
    threads = threads_for(plan, arrays)
    parts = min(threads, batch)
    steps = len(plan.offsets) - 1
    single = steps == 1 and cell != walk.GRU_BEFORE and not repays(batch)
    if single:
        threads = min(threads, max(1, -(-size // PANEL)))  # it is units that are shared
    h, c, bias, b_hn = scratch.rows((batch, size), (batch, size) if lstm else None, (gates, size), (1, size), zero=True)
    scratch.fill(h, size, arrays.h0, plan.order)
    if lstm:
        scratch.fill(c, size, arrays.c0, plan.order)
    scratch.fill(bias, size, None if arrays.b is None else arrays.b.reshape(gates, hidden), IN_ORDER)
    if cell == walk.GRU_AFTER:
        scratch.fill(b_hn, size, None if arrays.b_hn is None else arrays.b_hn[None], IN_ORDER)
    new_h, packed_x, panels = scratch.rows(
        (batch, size) if single else None, (largest * (threads if single else 1), x_size), (threads, SCRATCH)
    )
    y = (np.empty if config.lengths is None else np.zeros)((batch, time, hidden), dtype)
    layer = walk.Layer(
        cell, int(config.reverse), scratch.lanes, gates, inputs, hidden, x_size, size, *(address(x), *x.strides),
        *(address(y), *y.strides), packed_x=packed_x, gates=kept_gates, gates_from=0, q=q, h=h, c=c, h_kept=h_kept,
        c_kept=c_kept, bias=bias, b_hn=b_hn,
    )  # fmt: skip
    keep = (scratch, buffers, arrays, y)
    if single:
        ih, hh = (scratch.weights(w, (gates,), size, panels, packed=False) for w in (w_ih, w_hh))
        run(threads, forward_kernels.single_step, scratch.unit, layer, ih, hh, new_h, *plan, keep=keep)
        h = new_h
    else:
        ih = scratch.weights(w_ih, (gates,), size, panels, packed=repays(everything))
        hh = scratch.weights(w_hh, (2, 1) if gru else (gates,), size, panels, packed=repays(batch, steps))
        for s0, s1 in blocks if hidden else ():
            block = layer if keeps else layer._replace(gates_from=int(plan.offsets[s0]))
            rest = (*plan, s0, s1)
            run(threads, forward_kernels.project, scratch.unit, block, ih, *rest, keep=keep)
            run(parts, forward_kernels.forward_steps, scratch.unit, block, hh, *rest, keep=keep)
    h_n = scratch.unsorted(h, size, plan, hidden)
    return (y, h_n, scratch.unsorted(c, size, plan, hidden)) if lstm else (y, h_n), saved


def backward(saved: Saved, grad_outputs: Any, needs: Any) -> Any:
    """Pull gradients back through the sequence, last block of steps first."""
    cell, arrays, config, plan, _, kept_gates, h_kept, c_kept, q = saved
    x, w_ih, w_hh, dy = arrays.x, arrays.w_ih, arrays.w_hh, grad_outputs.y
    lstm, gru_before = cell == walk.LSTM, cell == walk.GRU_BEFORE
    batch, _, inputs = x.shape
    hidden, gates, planes, dtype = w_hh.shape[1], GATES[cell], GRADIENT_PLANES[cell], x.dtype
    size, x_size = padded(hidden, dtype.itemsize), padded(inputs, dtype.itemsize)
    blocks = plan.blocks(gates * size)
    largest = plan.largest(blocks)
    needs_b_hn = cell == walk.GRU_AFTER and needs.b_hn
    scratch = Buffers(dtype)
    threads = threads_for(plan, arrays)
    parts = min(threads, batch)
    dh, dc, zeros = scratch.rows((batch, size), (batch, size) if lstm else None, (1, max(size, x_size)), zero=True)
    scratch.fill(dh, size, grad_outputs.h_n, plan.order)
    if lstm:
        scratch.fill(dc, size, grad_outputs.c_n, plan.order)
    d, reset, d_reset, packed_x, packed_dx, panels = scratch.rows(
        (largest, planes * size),
        (largest, size) if gru_before else None,
        (batch, size) if gru_before else None,
        (largest, x_size),
        (largest, x_size) if needs.x else None,
        (threads, SCRATCH),
    )
    layer = walk.Layer(
        cell, int(config.reverse), scratch.lanes, gates, inputs, hidden, x_size, size, *(address(x), *x.strides),
        *((0, 0, 0, 0) if dy is None else (address(dy), *dy.strides)), packed_x=packed_x, gates=kept_gates,
        gates_from=0, q=q, h=dh, c=dc, h_kept=h_kept, c_kept=c_kept, bias=zeros, b_hn=0,
    )  # fmt: skip
    each = (1,) * gates
    hh = scratch.weights(w_hh, each, size, panels, packed=repays(batch, len(plan.offsets) - 1), back=True)
    ih = scratch.weights(w_ih, each, x_size, panels, packed=repays(int(plan.offsets[-1])), back=True) if needs.x else hh
    dx = (np.empty if config.lengths is None and hidden else np.zeros)(x.shape, dtype) if needs.x else None
    dw_ih = np.zeros((gates * hidden, x_size // dtype.itemsize), dtype) if needs.w_ih else None
    dw_hh = np.zeros((gates * hidden, size // dtype.itemsize), dtype) if needs.w_hh else None
    db = np.zeros((planes, size // dtype.itemsize), dtype) if needs.b or needs_b_hn else None
    sums = (address(dw_ih), address(dw_hh), address(db))
    keep = (scratch, saved, dy, dx, dw_ih, dw_hh, db)
    for s0, s1 in reversed(blocks) if hidden else ():
        rest = (*plan, s0, s1)
        if needs.w_ih:
            run(threads, backward_kernels.gather_block, scratch.unit, layer, *rest, keep=keep)
        run(
            parts, backward_kernels.backward_steps, scratch.unit, layer, hh, d, planes * size, reset, d_reset, *rest,
            keep=keep,
        )  # fmt: skip
        if any(sums):
            run(
                threads, backward_kernels.weight_gradients, scratch.unit, layer, d, planes * size, reset, *sums,
                *rest, keep=keep,
            )  # fmt: skip
        if dx is not None:
            inward = layer._replace(packed_x=packed_dx)
            run(
                threads, backward_kernels.input_gradients, scratch.unit, inward, ih, d, planes * size, address(dx),
                dx.strides[0], *rest, keep=keep,
            )  # fmt: skip
    grads = {
        "x": dx,
        "w_ih": None if dw_ih is None else np.ascontiguousarray(dw_ih[:, :inputs]),
        "w_hh": None if dw_hh is None else np.ascontiguousarray(dw_hh[:, :hidden]),
        "b": db[:gates, :hidden].reshape(-1).copy() if db is not None and needs.b else None,
        "b_hn": db[3, :hidden].copy() if db is not None and needs_b_hn else None,
        "h0": scratch.unsorted(dh, size, plan, hidden) if needs.h0 else None,
        "c0": scratch.unsorted(dc, size, plan, hidden) if lstm and needs.c0 else None,
    }
    return type(needs)(*(grads[name] for name in needs._fields))


def rnn_cell(config: Any) -> int:
    return walk.RNN_TANH if config.activation == "tanh" else walk.RNN_RELU


def gru_cell(config: Any) -> int:
    return walk.GRU_AFTER if config.reset_after else walk.GRU_BEFORE


class RecurrentOps:
    """rnn, lstm, gru of the numba backend."""

    def rnn_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return forward(rnn_cell(config), arrays, config, needs)

    def lstm_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return forward(walk.LSTM, arrays, config, needs)

    def gru_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return forward(gru_cell(config), arrays, config, needs)

    def rnn_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return backward(saved, grad_outputs, needs)

    def lstm_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return backward(saved, grad_outputs, needs)

    def gru_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return backward(saved, grad_outputs, needs)
