# cython: language_level=3
"""The convolution family on the C kernels. Of each array the channels lie next to each other: one that has them otherwise is copied."""

import numpy as np

from pyrnn._core.memory cimport huge_empty, new_empty
from pyrnn._core.runtime cimport (
    PYRNN_GATE, PYRNN_NOTHING, PYRNN_RELU, PYRNN_TANH, copy_matrix, data_of, has_rows, input_of, is_double, loop_of, pyrnn_conv,
    pyrnn_loop, pyrnn_stage, step_output, stride_of, table, threads,
)
from libc.stdint cimport int64_t
from libc.string cimport memset


cdef object with_channels_last(object array):
    """Return an array whose last axis is contiguous; numpy says nothing of the stride of an axis of one."""
    if array is None or array.size == 0 or stride_of(array, array.ndim - 1) == 1:
        return array
    return np.ascontiguousarray(array)


cdef int describe(pyrnn_conv *p, object x, object left, object lengths, list keep) except -1:
    """Fill what all calls over sequences have in common, once the weights are described."""
    p.B, p.T = x.shape[0], x.shape[1]
    p.threads = threads()
    p.lengths = <const int64_t *>data_of(lengths)
    p.x, p.left = input_of(with_channels_last(x), keep), input_of(with_channels_last(left), keep)
    keep.append(lengths)
    return 0


cdef int describe_weights(pyrnn_conv *p, object w, object b, object config, list keep) except -1:
    memset(p, 0, sizeof(pyrnn_conv))
    p.O, p.K = w.shape[0], w.shape[2]
    p.dilation, p.groups = config.dilation, config.groups
    p.I = w.shape[1] * p.groups
    p.w, p.b = input_of(w, keep), input_of(b, keep)
    return 0


cdef int outputs(pyrnn_conv *p, object y, object left_n) except -1:
    """Where the forward writes; numpy says nothing of the stride of an axis of one."""
    p.y, p.y_row, p.y_step = data_of(y), stride_of(y, 0), stride_of(y, 1)
    p.left_n, p.left_row, p.left_step = data_of(left_n), stride_of(left_n, 0), stride_of(left_n, 1)
    return 0


cdef int call(pyrnn_conv *p, int kind, bint back) except -1:
    """Run a kernel without the GIL."""
    workspace = new_empty((table().conv_workspace[kind](p, back),), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        if back:
            table().conv_backward[kind](p)
        else:
            table().conv_forward[kind](p)
    return 0


cdef class PackedConv:
    """Weights as the kernel reads them. Nothing changes them, so threads may share them."""

    cdef readonly int kind
    cdef readonly ptrdiff_t inputs, outputs, span
    cdef object panels
    cdef pyrnn_conv sizes

    def __cinit__(self, object arrays, object config):
        cdef pyrnn_conv p
        cdef list keep = []
        self.kind = is_double(arrays.w)
        describe_weights(&p, arrays.w, arrays.b, config, keep)
        self.inputs, self.outputs, self.span = p.I, p.O, (p.K - 1) * p.dilation
        self.panels = huge_empty(table().conv_pack[self.kind](&p, NULL))
        table().conv_pack[self.kind](&p, data_of(self.panels))
        self.sizes = p
        self.sizes.w.data = self.sizes.b.data = NULL
        self.sizes.packed = data_of(self.panels)

    def stepper(self, tuple state):
        """Return a function of (x_t, out) that takes a step and goes on from the state given; see `Stepper`."""
        return Stepper(self, state)

    def __reduce__(self):
        raise TypeError("packed weights are made for this machine's CPU; pickle the model and freeze it where it is to run")


cdef class Stepper:
    """A convolution that runs step by step: a step writes its input over the oldest in a ring, and allocates its output at most.

    The arrays of the state that it began with are its own; they tell its state again after a call of ``state()``.
    """

    cdef PackedConv packed
    cdef object left, dtype, workspace, ring
    cdef list keep
    cdef pyrnn_conv p

    def __init__(self, PackedConv packed not None, tuple state):
        cdef pyrnn_conv *p = &self.p
        (self.left,) = state
        self.packed, self.keep, self.dtype = packed, [], self.left.dtype
        self.p = packed.sizes
        if is_double(self.left) != packed.kind or self.left.shape[1:] != (packed.span, p.I):
            raise ValueError(
                f"state: expected left of shape (B, {packed.span}, {p.I}) of the weights' dtype, "
                f"got {self.left.shape} of {self.dtype}"
            )
        p.B, p.T = len(self.left), 1
        self.ring = np.empty((packed.span + 1, p.B, p.I), self.dtype)
        self.ring[: packed.span] = self.left.swapaxes(0, 1)
        p.ring, p.now = data_of(self.ring), packed.span
        p.threads = threads()
        self.workspace = np.empty(table().conv_plan_step[packed.kind](p, NULL), np.uint8)
        p.workspace = data_of(self.workspace)
        table().conv_plan_step[packed.kind](p, p.workspace)

    def __call__(self, x, out):
        cdef pyrnn_conv *p = &self.p
        cdef int kind = self.packed.kind
        out = step_output(x, out, kind, p.B, p.I, p.O)
        p.x = input_of(with_channels_last(x), self.keep)
        p.y, p.y_row = data_of(out), stride_of(out, 0)
        with nogil:
            table().conv_step[kind](p)
        self.keep.pop()
        return out

    def state(self):
        """Write the context into the arrays of the state that the stepper began with, and return them."""
        span = self.packed.span
        order = np.arange(self.p.now + 1, self.p.now + 1 + span) % (span + 1)
        self.left[...] = self.ring[order].swapaxes(0, 1)
        return (self.left,)


cdef dict THEN = {"nothing": PYRNN_NOTHING, "relu": PYRNN_RELU, "tanh": PYRNN_TANH, "gate": PYRNN_GATE}
cdef pyrnn_loop[2] tanh_loops
tanh_loops[0], tanh_loops[1] = loop_of(np.tanh, 0), loop_of(np.tanh, 1)


cdef void *rows_of(str name, object array, int kind, ptrdiff_t batch, ptrdiff_t width, ptrdiff_t *row) except NULL:
    """Return where a stage's array lies, and how far its rows are apart."""
    if not has_rows(array, kind, batch, width):
        raise ValueError(f"stages: expected {name} of shape ({batch}, {width}), channels side by side")
    row[0] = stride_of(array, 0)
    return data_of(array)


cdef class Chain:
    """Stages that run in one call, of which all is described before; see `pyrnn.backend.Stage`."""

    cdef list steppers, held
    cdef tuple given
    cdef object x, y, scratch, memory
    cdef pyrnn_stage *stages
    cdef ptrdiff_t count, batch, inputs, outputs
    cdef int kind

    def __init__(self, stages, x, y):
        cdef pyrnn_stage *s
        cdef Stepper stepper
        cdef ptrdiff_t number, width
        self.kind, self.x, self.y = is_double(x), x, y
        self.batch, self.inputs = x.shape
        self.outputs = y.shape[1]
        self.steppers, self.held, self.given = [], [], tuple(stages)
        widths = [stage.to.shape[1] * (2 if stage.then == "gate" else 1) for stage in stages]
        self.scratch = new_empty((len(x), max(widths)), x.dtype)
        self.count = len(stages)
        self.memory = np.zeros(self.count * sizeof(pyrnn_stage), np.uint8)
        self.stages = <pyrnn_stage *>data_of(self.memory)
        for number, stage in enumerate(stages):
            s = &self.stages[number]
            width = widths[number]
            s.B, s.N, s.then = len(x), stage.to.shape[1], THEN[stage.then]
            s.to = rows_of("to", stage.to, self.kind, s.B, s.N, &s.to_row)
            if stage.plus is not None:
                s.plus = rows_of("plus", stage.plus, self.kind, s.B, width, &s.plus_row)
            s.sum, s.sum_row = s.to, s.to_row
            if s.then == PYRNN_GATE:
                s.sum, s.sum_row = data_of(self.scratch), width
            if stage.packed is None:
                s.value = rows_of("source", stage.source, self.kind, s.B, width, &s.value_row)
                continue
            left = np.empty((s.B, 0, stage.source.shape[1]), x.dtype) if stage.left is None else stage.left
            stepper = Stepper(stage.packed, (left,))
            if stepper.packed.kind != self.kind or stepper.p.O != width or stepper.p.B != s.B:
                raise ValueError(f"stages: expected to of {stepper.p.O} channels, got {width}")
            s.conv = &stepper.p
            s.conv.x.data = rows_of("source", stage.source, self.kind, s.B, stepper.p.I, &s.conv.x.stride[0])
            s.conv.y, s.conv.y_row = data_of(self.scratch), width
            s.value, s.value_row = s.conv.y, width
            self.steppers.append(stepper)
            if stage.left is not None:
                self.held.append(stepper)

    def __call__(self, x, out):
        out = step_output(x, out, self.kind, self.batch, self.inputs, self.outputs)
        copy_matrix(self.x, x)
        with nogil:
            table().conv_chain[self.kind](self.stages, self.count, &tanh_loops[self.kind])
        copy_matrix(out, self.y)
        return out

    def state(self):
        """Write the contexts into the arrays that the stages began with, and return these."""
        return tuple([stepper.state()[0] for stepper in self.held])


class ConvOps:
    """causal_conv1d of the cython backend."""

    def causal_conv1d_pack(self, arrays, config):
        return PackedConv(arrays, config)

    def causal_conv1d_run(self, PackedConv packed not None, x, state=None, *, lengths=None, out=None):
        cdef pyrnn_conv p = packed.sizes
        cdef list keep = []
        if is_double(x) != packed.kind or x.shape[2] != packed.inputs:
            raise ValueError(f"x: expected {packed.inputs} channels of the weights' dtype, got {x.shape[2]} of {x.dtype}")
        describe(&p, x, None if state is None else state[0], lengths, keep)
        if out is None:
            y, left_n = new_empty((p.B, p.T, p.O), x.dtype), new_empty((p.B, packed.span, p.I), x.dtype)
            new = (left_n,)
        else:
            y, new = out
            (left_n,) = new
        outputs(&p, y, left_n)
        call(&p, packed.kind, False)
        return y, new

    def causal_conv1d_chain(self, stages, x, y):
        return Chain(stages, x, y)

    def causal_conv1d_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_conv p
        cdef list keep = []
        cdef int kind = is_double(arrays.x)
        describe_weights(&p, arrays.w, arrays.b, config, keep)
        describe(&p, arrays.x, arrays.left, config.lengths, keep)
        y = new_empty((p.B, p.T, p.O), arrays.x.dtype)
        left_n = new_empty((p.B, (p.K - 1) * p.dilation, p.I), arrays.x.dtype)
        outputs(&p, y, left_n)
        call(&p, kind, False)
        return (y, left_n), (arrays, config) if needs else None

    def causal_conv1d_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_conv p
        cdef list keep = []
        arrays, config = saved
        cdef int kind = is_double(arrays.x)
        describe_weights(&p, arrays.w, None, config, keep)
        describe(&p, arrays.x, arrays.left, config.lengths, keep)
        p.dy, p.dleft_n = (
            input_of(with_channels_last(grad_outputs.y), keep), input_of(with_channels_last(grad_outputs.left_n), keep)
        )
        grads = {name: new_empty(getattr(arrays, name).shape, arrays.x.dtype) for name in needs._fields if getattr(needs, name)}
        p.dx, p.dw, p.db, p.dleft = (
            data_of(grads.get("x")), data_of(grads.get("w")), data_of(grads.get("b")), data_of(grads.get("left"))
        )
        call(&p, kind, True)
        return type(needs)(*(grads.get(name) for name in needs._fields))
