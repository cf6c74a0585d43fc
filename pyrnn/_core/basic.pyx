# cython: language_level=3
"""The basic family on the C kernels: linear. A row's result does not depend on the batch that it is in."""

import math

import numpy as np

from pyrnn._core.runtime cimport data_of, input_of, is_double, pyrnn_linear, table, threads
from libc.string cimport memset


cdef int run(pyrnn_linear *p, int kind, bint back) except -1:
    workspace = np.empty(table().linear_workspace[kind](p, back), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        if back:
            table().linear_backward[kind](p)
        else:
            table().linear_forward[kind](p)
    return 0


cdef object as_rows(object array, Py_ssize_t columns):
    """Return an array (..., columns) as a contiguous, aligned matrix; copied only where it is not one."""
    rows = np.require(array, requirements="CA")
    return rows.reshape(math.prod(array.shape[:-1]), columns)


class LinearOps:
    """linear of the cython backend."""

    def linear_forward(self, arrays, config, *, needs=None):
        cdef pyrnn_linear p
        cdef list keep = []
        outputs, inputs = arrays.w.shape
        rows = as_rows(arrays.x, inputs)
        y = np.empty((rows.shape[0], outputs), rows.dtype)
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
        dx = np.empty_like(rows) if needs.x else None
        dw = np.empty((outputs, inputs), rows.dtype) if needs.w else None
        db = np.empty(outputs, rows.dtype) if needs.b else None
        memset(&p, 0, sizeof(pyrnn_linear))
        p.M, p.I, p.O, p.threads = rows.shape[0], inputs, outputs, threads()
        p.x, p.dy = data_of(rows), data_of(dy)
        p.dx, p.dw, p.db = data_of(dx), data_of(dw), data_of(db)
        p.w = input_of(saved.w, keep)
        run(&p, is_double(rows), True)
        return type(needs)(x=dx.reshape(saved.x.shape) if needs.x else None, w=dw, b=db)
