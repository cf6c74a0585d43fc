# cython: language_level=3
"""The attention family on the C kernels."""

import math

import numpy as np

from pyrnn._core.memory cimport new_empty
from pyrnn._core.runtime cimport (
    PYRNN_FAR, PYRNN_KEY_SPLIT, contiguous, data_of, is_double, pyrnn_attention, pyrnn_in4, stride_of, table, threads,
)
from pyrnn.backend import KEY_SPLIT
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

if KEY_SPLIT != PYRNN_KEY_SPLIT:
    raise ImportError(f"the kernels were built for splits of {PYRNN_KEY_SPLIT} keys, not {KEY_SPLIT}; build them again")


cdef pyrnn_in4 input4_of(object array, list keep) except *:
    """Describe an array of four dimensions to be read, whose dimensions of size 1 are broadcast."""
    cdef pyrnn_in4 result
    cdef int axis, missing
    memset(&result, 0, sizeof(pyrnn_in4))
    if array is None:
        return result
    cdef ptrdiff_t item = array.itemsize
    if not array.flags.aligned or any([stride % item for stride in array.strides]):
        array = array.copy()
    keep.append(array)
    result.data = data_of(array)
    missing = 4 - array.ndim
    for axis in range(array.ndim):
        result.stride[missing + axis] = 0 if array.shape[axis] == 1 else stride_of(array, axis)
    return result


cdef object empty_like(object array, tuple shape):
    """Return an uninitialised array whose heads and steps lie in memory in the order in which those of another lie."""
    if array.ndim == 4 and 0 < array.strides[1] < array.strides[2]:
        return new_empty((shape[0], shape[2], shape[1], shape[3]), array.dtype).swapaxes(1, 2)
    return new_empty(shape, array.dtype)


cdef int set_rows(ptrdiff_t *strides, object array) except -1:
    if array is not None:
        strides[0], strides[1], strides[2] = stride_of(array, 0), stride_of(array, 1), stride_of(array, 2)
    return 0


cdef pyrnn_attention described(object arrays, object config, list keep) except *:
    cdef pyrnn_attention p
    memset(&p, 0, sizeof(pyrnn_attention))
    p.B, p.Hq, p.N, p.D = arrays.q.shape
    p.Hkv, p.M, p.Dv = arrays.v.shape[1:]
    p.threads = threads()
    p.scale = 1 / math.sqrt(max(1, p.D)) if config.scale is None else config.scale
    left, right = config.window or (None, None)
    if config.causal:
        right = 0
    p.left = PYRNN_FAR if left is None or left > PYRNN_FAR else left
    p.right = PYRNN_FAR if right is None or right > PYRNN_FAR else right
    p.q_start = <const int64_t *>data_of(config.q_start)
    p.lengths, p.q_lengths = <const int64_t *>data_of(config.lengths), <const int64_t *>data_of(config.q_lengths)
    p.dropout = config.dropout
    if config.dropout:
        p.seed, p.drop_below = config.seed, <uint32_t>min(2**32 - 1, math.ceil(config.dropout * 2**32))
    p.q, p.k, p.v = input4_of(arrays.q, keep), input4_of(arrays.k, keep), input4_of(arrays.v, keep)
    p.bias, p.mask = input4_of(arrays.bias, keep), input4_of(config.mask, keep)
    keep.append(config)
    return p


class AttentionOps:
    """attention of the cython backend."""

    def attention_forward(self, arrays, config, *, needs=None):
        cdef list keep = []
        cdef pyrnn_attention p = described(arrays, config, keep)
        cdef int kind = is_double(arrays.q)
        y = empty_like(arrays.q, (p.B, p.Hq, p.N, p.Dv))
        stats = np.empty((p.B, p.Hq, p.N, 2), y.dtype) if needs else None
        p.y, p.stats = data_of(y), data_of(stats)
        set_rows(p.y_stride, y)
        workspace = new_empty((table().attention_workspace[kind](&p),), np.uint8)
        p.workspace = data_of(workspace)
        with nogil:
            table().attention_forward[kind](&p)
        return (y,), (arrays, config, y.copy("K") if needs else None, stats) if needs else None

    def attention_backward(self, saved, grad_outputs, *, needs):
        arrays, config, y, stats = saved
        cdef list keep = []
        cdef pyrnn_attention p = described(arrays, config, keep)
        cdef int kind = is_double(arrays.q)
        dq = empty_like(arrays.q, arrays.q.shape) if needs.q else None
        dk = empty_like(arrays.k, arrays.k.shape) if needs.k else None
        dv = empty_like(arrays.v, arrays.v.shape) if needs.v else None
        dbias = np.empty(arrays.bias.shape, y.dtype) if needs.bias else None
        p.dy = input4_of(grad_outputs.y, keep)
        p.y, p.stats = data_of(y), data_of(stats)
        p.dq, p.dk, p.dv, p.dbias = data_of(dq), data_of(dk), data_of(dv), data_of(dbias)
        set_rows(p.y_stride, y)
        set_rows(p.dq_stride, dq)
        set_rows(p.dk_stride, dk)
        set_rows(p.dv_stride, dv)
        if dbias is not None:
            p.bias_shape[0], p.bias_shape[1], p.bias_shape[2], p.bias_shape[3] = (1,) * (4 - dbias.ndim) + dbias.shape
        workspace = new_empty((table().attention_back_workspace[kind](&p),), np.uint8)
        p.workspace = data_of(workspace)
        with nogil:
            table().attention_backward[kind](&p)
        return type(needs)(q=dq, k=dk, v=dv, bias=dbias)
