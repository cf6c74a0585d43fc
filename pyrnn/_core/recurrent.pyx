# cython: language_level=3
"""The recurrent family on the C kernels: allocate, describe, call without the GIL.

The kernels want rows longest first and keep states as [T + 1, B, Hp] in that order, slot 0 the initial state. In
inference nothing is kept.
"""

import numpy as np

from pyrnn._core.memory cimport huge_empty, new_empty
from pyrnn._core.runtime cimport (
    PYRNN_GRU_AFTER, PYRNN_GRU_BEFORE, PYRNN_LSTM, PYRNN_RNN_RELU, PYRNN_RNN_TANH, PYRNN_SHARED_FROM,
    data_of, input_of, interrupted, is_double, pyrnn_recurrent, raise_pending, step_output, stride_of,
    table, threads,
)
from libc.stdint cimport int64_t
from libc.string cimport memset

cdef dict PLANES = {PYRNN_RNN_TANH: 0, PYRNN_RNN_RELU: 0, PYRNN_LSTM: 4, PYRNN_GRU_AFTER: 4, PYRNN_GRU_BEFORE: 3}


cdef class Saved:
    """What a forward keeps for its backward: the arrays, the order of rows, states and gates."""

    cdef readonly object arrays, config, order, lengths, hs, cs, gates


cdef int rows_by_length(Saved saved, object lengths) except -1:
    """Sort rows longest first, where their lengths differ."""
    if lengths is not None:
        saved.order = np.argsort(-lengths, kind="stable")
        saved.lengths = lengths[saved.order]
    return 0


cdef int describe(pyrnn_recurrent *p, int cell, object x, object reverse, Saved saved, list keep) except -1:
    """Fill what all calls have in common; the weights' part of it is `describe_weights`."""
    memset(p, 0, sizeof(pyrnn_recurrent))
    p.B, p.T, p.I = x.shape
    p.cell, p.reverse, p.threads = cell, reverse, threads()
    if saved is not None:
        p.order, p.lengths = <const int64_t *>data_of(saved.order), <const int64_t *>data_of(saved.lengths)
        p.hs, p.cs, p.gates = data_of(saved.hs), data_of(saved.cs), data_of(saved.gates)
    p.x = input_of(x, keep)
    p.interrupted = interrupted
    return 0


cdef int describe_weights(pyrnn_recurrent *p, int cell, object arrays, list keep) except -1:
    p.cell, p.I = cell, arrays.w_ih.shape[1]
    p.H = p.y_step = p.state_row = arrays.w_hh.shape[1]
    p.w_ih, p.w_hh, p.b = input_of(arrays.w_ih, keep), input_of(arrays.w_hh, keep), input_of(arrays.b, keep)
    if cell == PYRNN_GRU_AFTER:
        p.b_hn = input_of(arrays.b_hn, keep)
    return 0


cdef int call(pyrnn_recurrent *p, int kind, bint back, object workspace) except -1:
    """Run a kernel without the GIL."""
    cdef int status
    p.workspace = data_of(workspace)
    with nogil:
        status = table().recurrent_backward[kind](p) if back else table().recurrent_forward[kind](p)
    if status:
        raise_pending()
    return 0


def forward(int cell, object arrays, object config, object needs):
    """Run a cell over the sequence; keep what backward needs where ``needs`` is given."""
    cdef pyrnn_recurrent p
    cdef Saved saved = Saved()
    cdef list keep = []
    cdef int kind = is_double(arrays.x)
    x = arrays.x
    batch, time, _ = x.shape
    hidden = arrays.w_hh.shape[1]
    dtype = x.dtype
    rows_by_length(saved, config.lengths)
    if needs is not None:
        block = table().unit_block[kind]
        padded = -(-hidden // block) * block
        saved.arrays, saved.config = arrays, config
        saved.hs = new_empty((time + 1, batch, padded), dtype)
        if cell == PYRNN_LSTM:
            saved.cs = new_empty((time + 1, batch, padded), dtype)
        if PLANES[cell]:
            saved.gates = new_empty((time, batch, PLANES[cell], padded), dtype)
    describe(&p, cell, x, config.reverse, saved, keep)
    describe_weights(&p, cell, arrays, keep)
    p.h0 = input_of(arrays.h0, keep)
    if cell == PYRNN_LSTM:
        p.c0 = input_of(arrays.c0, keep)
    y = new_empty((batch, time, hidden), dtype)
    h_n = np.empty((batch, hidden), dtype)
    c_n = np.empty((batch, hidden), dtype) if cell == PYRNN_LSTM else None
    p.y, p.h_n, p.c_n = data_of(y), data_of(h_n), data_of(c_n)
    call(&p, kind, False, new_empty((table().recurrent_workspace[kind](&p, 0),), np.uint8))
    return (y, h_n) if c_n is None else (y, h_n, c_n), None if needs is None else saved


def backward(int cell, Saved saved, object grad_outputs, object needs):
    """Pull gradients back through the sequence."""
    cdef pyrnn_recurrent p
    cdef list keep = []
    arrays = saved.arrays
    cdef int kind = is_double(arrays.x)
    describe(&p, cell, arrays.x, saved.config.reverse, saved, keep)
    describe_weights(&p, cell, arrays, keep)
    dy = grad_outputs.y
    if dy is not None and dy.strides[2] != dy.itemsize:
        dy = np.ascontiguousarray(dy)
    p.dy, p.dh_n = input_of(dy, keep), input_of(grad_outputs.h_n, keep)
    if cell == PYRNN_LSTM:
        p.dc_n = input_of(grad_outputs.c_n, keep)
    grads = {name: new_empty(getattr(arrays, name).shape, arrays.x.dtype) for name in needs._fields if getattr(needs, name)}
    p.dx, p.dw_ih, p.dw_hh = data_of(grads.get("x")), data_of(grads.get("w_ih")), data_of(grads.get("w_hh"))
    p.db, p.db_hn = data_of(grads.get("b")), data_of(grads.get("b_hn"))
    p.dh0, p.dc0 = data_of(grads.get("h0")), data_of(grads.get("c0"))
    call(&p, kind, True, new_empty((table().recurrent_workspace[kind](&p, 1),), np.uint8))
    return type(needs)(*(grads.get(name) for name in needs._fields))


cdef class Packed:
    """A layer's weights as the kernels read them, for one direction. Nothing changes them, so threads may share them."""

    cdef readonly int cell, kind
    cdef readonly ptrdiff_t inputs, hidden
    cdef readonly bint reverse
    cdef object panels

    def __cinit__(self, int cell, object arrays, object config):
        cdef pyrnn_recurrent p
        cdef list keep = []
        memset(&p, 0, sizeof(pyrnn_recurrent))
        describe_weights(&p, cell, arrays, keep)
        self.cell, self.kind, self.reverse = cell, is_double(arrays.w_hh), config.reverse
        self.inputs, self.hidden = p.I, p.H
        self.panels = huge_empty(table().recurrent_pack[self.kind](&p, NULL))
        table().recurrent_pack[self.kind](&p, data_of(self.panels))

    def stepper(self, tuple state):
        """Return a function of (x_t, out) that takes a step and carries the state in the arrays given."""
        return Stepper(self, state)

    def __reduce__(self):
        raise TypeError("packed weights are made for this machine's CPU; pickle the model and freeze it where it is to run")


def run(Packed packed not None, x, tuple state, lengths, tuple out):
    """Run packed weights over x from a state, into ``out`` where it is given: y, state."""
    cdef pyrnn_recurrent p
    cdef Saved saved = None
    cdef list keep = []
    cdef int leaves = 2 if packed.cell == PYRNN_LSTM else 1
    if lengths is not None:
        saved = Saved()
        rows_by_length(saved, lengths)
    describe(&p, packed.cell, x, packed.reverse, saved, keep)
    p.H, p.packed = packed.hidden, data_of(packed.panels)
    if is_double(x) != packed.kind or p.I != packed.inputs:
        raise ValueError(f"x: expected {packed.inputs} features of the weights' dtype, got {x.shape[2]} of {x.dtype}")
    if out is None:
        y = new_empty((p.B, p.T, p.H), x.dtype)
        new = tuple([np.empty((p.B, p.H), x.dtype) for _ in range(leaves)])
    else:
        y, new = out
    if state is not None:
        p.h0 = input_of(state[0], keep)
        if leaves == 2:
            p.c0 = input_of(state[1], keep)
    p.y, p.y_step = data_of(y), stride_of(y, 1 if p.T > 1 else 0)  # numpy says nothing of an axis of one step
    p.h_n, p.state_row = data_of(new[0]), stride_of(new[0], 0)
    if leaves == 2:
        p.c_n = data_of(new[1])
    call(&p, packed.kind, False, new_empty((table().recurrent_workspace[packed.kind](&p, 0),), np.uint8))
    return y, new


cdef class Stepper:
    """A layer that runs step by step, all made ready for it: a step allocates its output at most."""

    cdef Packed packed
    cdef tuple state
    cdef object dtype, workspace
    cdef list keep
    cdef pyrnn_recurrent p
    cdef bint small

    def __init__(self, Packed packed not None, tuple state):
        cdef pyrnn_recurrent *p = &self.p
        self.packed, self.state, self.keep, self.dtype = packed, state, [], state[0].dtype
        memset(p, 0, sizeof(pyrnn_recurrent))
        p.T, p.B, p.I, p.H = 1, len(state[0]), packed.inputs, packed.hidden
        p.cell, p.reverse, p.packed = packed.cell, packed.reverse, data_of(packed.panels)
        p.h0, p.h_n, p.state_row = input_of(state[0], self.keep), data_of(state[0]), stride_of(state[0], 0)
        if packed.cell == PYRNN_LSTM:
            p.c0, p.c_n = input_of(state[1], self.keep), data_of(state[1])
        self.small = 8 * p.B * p.H * (p.I + p.H) < PYRNN_SHARED_FROM
        p.threads = 1
        self.workspace = np.empty(table().recurrent_workspace[packed.kind](p, 0), np.uint8)

    def __call__(self, x, out):
        cdef pyrnn_recurrent *p = &self.p
        cdef int kind = self.packed.kind
        out = step_output(x, out, kind, p.B, p.I, p.H)
        if not self.small:
            p.threads = threads()
        p.x = input_of(x, self.keep)
        p.x.stride[1], p.x.stride[2] = 0, p.x.stride[1]
        p.y, p.y_step = data_of(out), stride_of(out, 0)
        call(p, kind, False, self.workspace)
        self.keep.pop()
        p.calls ^= 1
        return out


cdef int rnn_cell(object config):
    return PYRNN_RNN_TANH if config.activation == "tanh" else PYRNN_RNN_RELU


cdef int gru_cell(object config):
    return PYRNN_GRU_AFTER if config.reset_after else PYRNN_GRU_BEFORE


class RecurrentOps:
    """rnn, lstm, gru of the cython backend."""

    def rnn_pack(self, arrays, config):
        return Packed(rnn_cell(config), arrays, config)

    def rnn_run(self, packed, x, state=None, *, lengths=None, out=None):
        return run(packed, x, state, lengths, out)

    def rnn_forward(self, arrays, config, *, needs=None):
        return forward(rnn_cell(config), arrays, config, needs)

    def rnn_backward(self, saved, grad_outputs, *, needs):
        return backward(rnn_cell(saved.config), saved, grad_outputs, needs)

    def lstm_pack(self, arrays, config):
        return Packed(PYRNN_LSTM, arrays, config)

    def lstm_run(self, packed, x, state=None, *, lengths=None, out=None):
        return run(packed, x, state, lengths, out)

    def lstm_forward(self, arrays, config, *, needs=None):
        return forward(PYRNN_LSTM, arrays, config, needs)

    def lstm_backward(self, saved, grad_outputs, *, needs):
        return backward(PYRNN_LSTM, saved, grad_outputs, needs)

    def gru_pack(self, arrays, config):
        return Packed(gru_cell(config), arrays, config)

    def gru_run(self, packed, x, state=None, *, lengths=None, out=None):
        return run(packed, x, state, lengths, out)

    def gru_forward(self, arrays, config, *, needs=None):
        return forward(gru_cell(config), arrays, config, needs)

    def gru_backward(self, saved, grad_outputs, *, needs):
        return backward(gru_cell(saved.config), saved, grad_outputs, needs)
