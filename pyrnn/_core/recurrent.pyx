# cython: language_level=3
"""The recurrent family on the C kernels: allocate, describe, call without the GIL.

The kernels want rows longest first and keep states as [T + 1, B, Hp] in that order, slot 0 the initial state. In
inference two slots are enough, and no gates are kept.
"""

import numpy as np

from pyrnn._core.runtime cimport (
    PYRNN_GRU_AFTER, PYRNN_GRU_BEFORE, PYRNN_LSTM, PYRNN_RNN_RELU, PYRNN_RNN_TANH,
    aligned_empty, data_of, input_of, interrupted, is_double, pyrnn_recurrent, raise_pending, table, threads,
)
from libc.stdint cimport int64_t
from libc.string cimport memset

cdef dict PLANES = {PYRNN_RNN_TANH: 0, PYRNN_RNN_RELU: 0, PYRNN_LSTM: 4, PYRNN_GRU_AFTER: 4, PYRNN_GRU_BEFORE: 3}


cdef class Saved:
    """What a forward keeps for its backward: the arrays, the order of rows, states and gates."""

    cdef readonly object arrays, config, order, lengths, hs, cs, gates


cdef int describe(pyrnn_recurrent *p, int cell, object arrays, object config, Saved saved, list keep) except -1:
    """Fill what forward and backward have in common."""
    memset(p, 0, sizeof(pyrnn_recurrent))
    p.B, p.T, p.I = arrays.x.shape
    p.H = p.y_step = p.state_row = arrays.w_hh.shape[1]
    p.cell, p.reverse, p.threads = cell, config.reverse, threads()
    p.order = <const int64_t *>data_of(saved.order)
    p.lengths = <const int64_t *>data_of(saved.lengths)
    p.hs, p.cs, p.gates = data_of(saved.hs), data_of(saved.cs), data_of(saved.gates)
    p.slots = saved.hs.shape[0]
    p.gate_slots = 1 if saved.gates is None else saved.gates.shape[0]
    p.x, p.w_ih, p.w_hh = input_of(arrays.x, keep), input_of(arrays.w_ih, keep), input_of(arrays.w_hh, keep)
    p.interrupted = interrupted
    return 0


def forward(int cell, object arrays, object config, object needs):
    """Run a cell over the sequence; keep what backward needs where ``needs`` is given."""
    cdef pyrnn_recurrent p
    cdef Saved saved = Saved()
    cdef list keep = []
    cdef int kind = is_double(arrays.x), status
    cdef bint kept = needs is not None
    x = arrays.x
    batch, time, _ = x.shape
    hidden = arrays.w_hh.shape[1]
    dtype = x.dtype
    block = table().unit_block[kind]
    padded = -(-hidden // block) * block
    if config.lengths is None:
        saved.order, saved.lengths = np.arange(batch), np.full(batch, time)
    else:
        saved.order = np.argsort(-config.lengths, kind="stable")
        saved.lengths = config.lengths[saved.order]
    saved.arrays, saved.config = arrays, config
    slots = time + 1 if kept else 2
    saved.hs = aligned_empty((slots, batch, padded), dtype)
    if cell == PYRNN_LSTM:
        saved.cs = aligned_empty((slots, batch, padded), dtype)
    if PLANES[cell] and (kept or cell == PYRNN_GRU_BEFORE):  # which has its two halves share them
        saved.gates = aligned_empty((time or 1 if kept else 1, batch, PLANES[cell], padded), dtype)
    describe(&p, cell, arrays, config, saved, keep)
    p.b, p.h0 = input_of(arrays.b, keep), input_of(arrays.h0, keep)
    if cell == PYRNN_LSTM:
        p.c0 = input_of(arrays.c0, keep)
    if cell == PYRNN_GRU_AFTER:
        p.b_hn = input_of(arrays.b_hn, keep)
    y = np.empty((batch, time, hidden), dtype)
    h_n = np.empty((batch, hidden), dtype)
    c_n = np.empty((batch, hidden), dtype) if cell == PYRNN_LSTM else None
    p.y, p.h_n, p.c_n = data_of(y), data_of(h_n), data_of(c_n)
    workspace = np.empty(table().recurrent_workspace[kind](&p, 0), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        status = table().recurrent_forward[kind](&p)
    if status:
        raise_pending()
    return (y, h_n) if c_n is None else (y, h_n, c_n), saved if kept else None


def backward(int cell, Saved saved, object grad_outputs, object needs):
    """Pull gradients back through the sequence."""
    cdef pyrnn_recurrent p
    cdef list keep = []
    cdef int status
    arrays = saved.arrays
    cdef int kind = is_double(arrays.x)
    describe(&p, cell, arrays, saved.config, saved, keep)
    dy = grad_outputs.y
    if dy is not None and dy.strides[2] != dy.itemsize:
        dy = np.ascontiguousarray(dy)
    p.dy, p.dh_n = input_of(dy, keep), input_of(grad_outputs.h_n, keep)
    if cell == PYRNN_LSTM:
        p.dc_n = input_of(grad_outputs.c_n, keep)
    grads = {name: np.empty(getattr(arrays, name).shape, arrays.x.dtype) for name in needs._fields if getattr(needs, name)}
    p.dx, p.dw_ih, p.dw_hh = data_of(grads.get("x")), data_of(grads.get("w_ih")), data_of(grads.get("w_hh"))
    p.db, p.db_hn = data_of(grads.get("b")), data_of(grads.get("b_hn"))
    p.dh0, p.dc0 = data_of(grads.get("h0")), data_of(grads.get("c0"))
    workspace = np.empty(table().recurrent_workspace[kind](&p, 1), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        status = table().recurrent_backward[kind](&p)
    if status:
        raise_pending()
    return type(needs)(*(grads.get(name) for name in needs._fields))


cdef int rnn_cell(object config):
    return PYRNN_RNN_TANH if config.activation == "tanh" else PYRNN_RNN_RELU


cdef int gru_cell(object config):
    return PYRNN_GRU_AFTER if config.reset_after else PYRNN_GRU_BEFORE


class RecurrentOps:
    """rnn, lstm, gru of the cython backend."""

    def rnn_forward(self, arrays, config, *, needs=None):
        return forward(rnn_cell(config), arrays, config, needs)

    def rnn_backward(self, saved, grad_outputs, *, needs):
        return backward(rnn_cell(saved.config), saved, grad_outputs, needs)

    def lstm_forward(self, arrays, config, *, needs=None):
        return forward(PYRNN_LSTM, arrays, config, needs)

    def lstm_backward(self, saved, grad_outputs, *, needs):
        return backward(PYRNN_LSTM, saved, grad_outputs, needs)

    def gru_forward(self, arrays, config, *, needs=None):
        return forward(gru_cell(config), arrays, config, needs)

    def gru_backward(self, saved, grad_outputs, *, needs):
        return backward(gru_cell(saved.config), saved, grad_outputs, needs)
