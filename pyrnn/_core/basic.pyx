# cython: language_level=3
"""The basic family on the C kernels. A row's result does not depend on the batch that it is in."""

import math

import numpy as np

from pyrnn._core.memory cimport huge_empty, new_empty
from pyrnn._core.runtime cimport (
    contiguous, data_of, input_of, is_double, pyrnn_cross_entropy, pyrnn_embedding, pyrnn_layer_norm, pyrnn_linear, pyrnn_softmax,
    table, threads,
)
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset


cdef int run(pyrnn_linear *p, int kind, bint back) except -1:
    workspace = new_empty((table().linear_workspace[kind](p, back),), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        if back:
            table().linear_backward[kind](p)
        else:
            table().linear_forward[kind](p)
    return 0


cdef object as_rows(object array, Py_ssize_t columns):
    """Return an array (..., columns) as a contiguous, aligned matrix; copied only where it is not one."""
    return contiguous(array).reshape(math.prod(array.shape[:-1]), columns)


cdef object contiguous_or_none(object array):
    return None if array is None else contiguous(array)


cdef class PackedLinear:
    """Weights as the kernel reads them. Nothing changes them, so threads may share them."""

    cdef readonly ptrdiff_t inputs, outputs
    cdef readonly int kind
    cdef object panels

    def __cinit__(self, arrays):
        cdef pyrnn_linear p
        cdef list keep = []
        memset(&p, 0, sizeof(pyrnn_linear))
        p.O, p.I = arrays.w.shape
        p.w, p.b = input_of(arrays.w, keep), input_of(arrays.b, keep)
        self.inputs, self.outputs, self.kind = p.I, p.O, is_double(arrays.w)
        self.panels = huge_empty(table().linear_pack[self.kind](&p, NULL))
        table().linear_pack[self.kind](&p, data_of(self.panels))

    def __reduce__(self):
        raise TypeError("packed weights are made for this machine's CPU; pickle the model and freeze it where it is to run")


class BasicOps:
    """linear, layer_norm, softmax, embedding, cross_entropy of the cython backend."""

    def linear_pack(self, arrays, config):
        return PackedLinear(arrays)

    def linear_run(self, PackedLinear packed not None, x, state=(), *, lengths=None, out=None):
        cdef pyrnn_linear p
        rows = as_rows(x, packed.inputs)
        shape = (*x.shape[:-1], packed.outputs)
        y = new_empty(shape, x.dtype) if out is None else out[0]
        if is_double(rows) != packed.kind:
            raise TypeError(f"x: expected the weights' dtype, got {x.dtype}")
        memset(&p, 0, sizeof(pyrnn_linear))
        p.M, p.I, p.O, p.threads = rows.shape[0], packed.inputs, packed.outputs, threads()
        p.x, p.y, p.packed = data_of(rows), data_of(y), data_of(packed.panels)
        with nogil:
            table().linear_forward[packed.kind](&p)
        return y, ()

    def linear_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_linear p
        cdef list keep = []
        outputs, inputs = arrays.w.shape
        rows = as_rows(arrays.x, inputs)
        y = new_empty((rows.shape[0], outputs), rows.dtype)
        memset(&p, 0, sizeof(pyrnn_linear))
        p.M, p.I, p.O, p.threads = rows.shape[0], inputs, outputs, threads()
        p.x, p.y = data_of(rows), data_of(y)
        p.w, p.b = input_of(arrays.w, keep), input_of(arrays.b, keep)
        run(&p, is_double(rows), False)
        return (y.reshape((*arrays.x.shape[:-1], outputs)),), arrays if needs else None

    def linear_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_linear p
        cdef list keep = []
        outputs, inputs = saved.w.shape
        rows, dy = as_rows(saved.x, inputs), as_rows(grad_outputs.y, outputs)
        dx = new_empty((rows.shape[0], inputs), rows.dtype) if needs.x else None
        dw = new_empty((outputs, inputs), rows.dtype) if needs.w else None
        db = np.empty(outputs, rows.dtype) if needs.b else None
        memset(&p, 0, sizeof(pyrnn_linear))
        p.M, p.I, p.O, p.threads = rows.shape[0], inputs, outputs, threads()
        p.x, p.dy = data_of(rows), data_of(dy)
        p.dx, p.dw, p.db = data_of(dx), data_of(dw), data_of(db)
        p.w = input_of(saved.w, keep)
        run(&p, is_double(rows), True)
        return type(needs)(x=dx.reshape(saved.x.shape) if needs.x else None, w=dw, b=db)

    def layer_norm_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_layer_norm p
        features = arrays.x.shape[-1]
        x, weight, bias = as_rows(arrays.x, features), contiguous_or_none(arrays.weight), contiguous_or_none(arrays.bias)
        cdef int kind = is_double(x)
        y = new_empty(x.shape, x.dtype)
        stats = np.empty((x.shape[0], 2), x.dtype) if needs else None
        memset(&p, 0, sizeof(pyrnn_layer_norm))
        p.M, p.F, p.threads, p.eps = x.shape[0], features, threads(), config.eps
        p.x, p.weight, p.bias = data_of(x), data_of(weight), data_of(bias)
        p.stats, p.y = data_of(stats), data_of(y)
        with nogil:
            table().layer_norm_forward[kind](&p)
        return (y.reshape(arrays.x.shape),), (x, weight, stats) if needs else None

    def layer_norm_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_layer_norm p
        x, weight, stats = saved
        features = x.shape[1]
        dy = as_rows(grad_outputs.y, features)
        cdef int kind = is_double(x)
        dx = new_empty(x.shape, x.dtype) if needs.x else None
        dweight = np.empty(features, x.dtype) if needs.weight else None
        dbias = np.empty(features, x.dtype) if needs.bias else None
        memset(&p, 0, sizeof(pyrnn_layer_norm))
        p.M, p.F, p.threads = x.shape[0], features, threads()
        p.x, p.weight, p.stats, p.dy = data_of(x), data_of(weight), data_of(stats), data_of(dy)
        p.dx, p.dweight, p.dbias = data_of(dx), data_of(dweight), data_of(dbias)
        workspace = np.empty(table().layer_norm_workspace[kind](&p), np.uint8)
        p.workspace = data_of(workspace)
        with nogil:
            table().layer_norm_backward[kind](&p)
        return type(needs)(x=dx.reshape(grad_outputs.y.shape) if needs.x else None, weight=dweight, bias=dbias)

    def softmax_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_softmax p
        along = arrays.x.swapaxes(config.axis, -1)
        x = as_rows(along, along.shape[-1])
        cdef int kind = is_double(x)
        y = new_empty(x.shape, x.dtype)
        memset(&p, 0, sizeof(pyrnn_softmax))
        p.M, p.F, p.threads = x.shape[0], x.shape[1], threads()
        p.x, p.y = data_of(x), data_of(y)
        with nogil:
            table().softmax_forward[kind](&p)
        return (y.reshape(along.shape).swapaxes(config.axis, -1),), (y, config.axis) if needs else None

    def softmax_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_softmax p
        y, axis = saved
        along = grad_outputs.y.swapaxes(axis, -1)
        dy = as_rows(along, y.shape[1])
        cdef int kind = is_double(y)
        dx = new_empty(y.shape, y.dtype)
        memset(&p, 0, sizeof(pyrnn_softmax))
        p.M, p.F, p.threads = y.shape[0], y.shape[1], threads()
        p.y, p.dy, p.dx = data_of(y), data_of(dy), data_of(dx)
        with nogil:
            table().softmax_backward[kind](&p)
        return type(needs)(x=dx.reshape(along.shape).swapaxes(axis, -1))

    def embedding_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_embedding p
        weight, indices = contiguous(arrays.weight), contiguous(config.indices)
        cdef int kind = is_double(weight)
        y = new_empty((*indices.shape, weight.shape[1]), weight.dtype)
        memset(&p, 0, sizeof(pyrnn_embedding))
        p.N, p.V, p.D, p.threads = indices.size, weight.shape[0], weight.shape[1], threads()
        p.indices = <const int64_t *>data_of(indices)
        p.weight, p.y = data_of(weight), data_of(y)
        with nogil:
            table().embedding_forward[kind](&p)
        return (y,), (weight.shape, indices) if needs else None

    def embedding_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_embedding p
        shape, indices = saved
        dy = as_rows(grad_outputs.y, shape[1])
        cdef int kind = is_double(dy)
        dweight = new_empty(tuple(shape), dy.dtype)
        memset(&p, 0, sizeof(pyrnn_embedding))
        p.N, p.V, p.D, p.threads = indices.size, shape[0], shape[1], threads()
        p.indices = <const int64_t *>data_of(indices)
        p.dy, p.dweight = data_of(dy), data_of(dweight)
        with nogil:
            table().embedding_backward[kind](&p)
        return type(needs)(weight=dweight)

    def cross_entropy_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_cross_entropy p
        logits = as_rows(arrays.logits, arrays.logits.shape[-1])
        targets, mask = contiguous(config.targets), contiguous_or_none(config.mask)
        cdef int kind = is_double(logits)
        loss = np.empty(targets.shape, logits.dtype)
        stats = np.empty((logits.shape[0], 2), logits.dtype) if needs else None
        memset(&p, 0, sizeof(pyrnn_cross_entropy))
        p.M, p.C, p.threads = logits.shape[0], logits.shape[1], threads()
        p.logits, p.stats, p.loss = data_of(logits), data_of(stats), data_of(loss)
        p.targets, p.mask = <const int64_t *>data_of(targets), <const uint8_t *>data_of(mask)
        with nogil:
            table().cross_entropy_forward[kind](&p)
        return (loss,), (logits, targets, mask, stats) if needs else None

    def cross_entropy_backward(self, saved, grad_outputs, *, needs):
        cdef pyrnn_cross_entropy p
        logits, targets, mask, stats = saved
        dloss = contiguous(grad_outputs.loss)
        cdef int kind = is_double(logits)
        dlogits = new_empty(logits.shape, logits.dtype)
        memset(&p, 0, sizeof(pyrnn_cross_entropy))
        p.M, p.C, p.threads = logits.shape[0], logits.shape[1], threads()
        p.logits, p.stats, p.dloss, p.dlogits = data_of(logits), data_of(stats), data_of(dloss), data_of(dlogits)
        p.targets, p.mask = <const int64_t *>data_of(targets), <const uint8_t *>data_of(mask)
        with nogil:
            table().cross_entropy_backward[kind](&p)
        return type(needs)(logits=dlogits.reshape((*targets.shape, logits.shape[1])))
