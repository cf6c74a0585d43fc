# cython: language_level=3
"""The optimisers' updates on the C kernels: each one pass over its arrays, in place."""

import numpy as np

from pyrnn._core.runtime cimport contiguous, data_of, is_double, pyrnn_adam, pyrnn_sgd, table, threads
from libc.string cimport memset


cdef tuple views_of(list arrays, object grad):
    """Return the arrays and their gradient with the axes in the order in which the first of them lies in memory."""
    array = arrays[0]
    if not all(a.flags.writeable for a in arrays):
        raise ValueError("array: expected one that can be written to, got a read-only one")
    if grad.shape != array.shape or grad.dtype != array.dtype:
        grad = np.broadcast_to(np.asarray(grad, array.dtype), array.shape)
    return ([a.T for a in arrays], grad.T) if array.flags.f_contiguous else (arrays, grad)


cdef int put_back(list views, list updated) except -1:
    """Write what became of the copies of those that were not contiguous."""
    for view, new in zip(views, updated):
        if new is not view:
            view[...] = new
    return 0


class UpdateOps:
    """The optimisers' updates of the cython backend."""

    def sgd_update(self, array, grad, momentum_buffer=None, *, lr, momentum, weight_decay, nesterov):
        cdef pyrnn_sgd p
        views, grad = views_of([array] if momentum_buffer is None else [array, momentum_buffer], grad)
        updated, grad = [contiguous(view) for view in views], contiguous(grad)
        cdef int kind = is_double(array)
        memset(&p, 0, sizeof(pyrnn_sgd))
        p.n, p.threads, p.nesterov = array.size, threads(), nesterov
        p.lr, p.momentum, p.weight_decay = lr, momentum, weight_decay
        p.array, p.grad = data_of(updated[0]), data_of(grad)
        p.momentum_buffer = NULL if momentum_buffer is None else data_of(updated[1])
        with nogil:
            table().sgd[kind](&p)
        put_back(views, updated)

    def adam_update(
        self, array, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, weight_decay, decoupled, step
    ):
        cdef pyrnn_adam p
        views, grad = views_of([array, exp_avg, exp_avg_sq], grad)
        updated, grad = [contiguous(view) for view in views], contiguous(grad)
        cdef int kind = is_double(array)
        memset(&p, 0, sizeof(pyrnn_adam))
        p.n, p.threads, p.decoupled = array.size, threads(), decoupled
        p.lr, p.beta1, p.beta2, p.eps, p.weight_decay = lr, beta1, beta2, eps, weight_decay
        p.correction1, p.correction2 = 1 - beta1**step, 1 - beta2**step
        p.array, p.exp_avg, p.exp_avg_sq = data_of(updated[0]), data_of(updated[1]), data_of(updated[2])
        p.grad = data_of(grad)
        with nogil:
            table().adam[kind](&p)
        put_back(views, updated)
