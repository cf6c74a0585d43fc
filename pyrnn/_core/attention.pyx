# cython: language_level=3
"""The attention family on the C kernels."""

import math
from collections import namedtuple

import numpy as np

from pyrnn._core.memory cimport new_empty
from pyrnn._core.runtime cimport (
    PYRNN_FAR, PYRNN_KEY_SPLIT, contiguous, data_of, interrupted, is_double, pyrnn_alignment, pyrnn_attention, pyrnn_in4,
    raise_pending, stride_of, table, threads,
)
from pyrnn._core.basic import BasicOps
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
    p.left, p.right = PYRNN_FAR if left is None else left, PYRNN_FAR if right is None else right
    p.q_start = <const int64_t *>data_of(config.q_start)
    p.lengths, p.q_lengths = <const int64_t *>data_of(config.lengths), <const int64_t *>data_of(config.q_lengths)
    p.dropout = config.dropout
    if config.dropout:
        p.seed, p.drop_below = config.seed, <uint32_t>min(2**32 - 1, math.ceil(config.dropout * 2**32))
    p.q, p.k, p.v = input4_of(arrays.q, keep), input4_of(arrays.k, keep), input4_of(arrays.v, keep)
    p.bias, p.mask = input4_of(arrays.bias, keep), input4_of(config.mask, keep)
    p.interrupted = interrupted
    keep.append(config)
    return p


cdef int run(pyrnn_attention *p, int kind, bint back) except -1:
    cdef int stopped
    workspace = new_empty((table().attention_workspace[kind](p, back),), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        if back:
            stopped = table().attention_backward[kind](p)
        else:
            stopped = table().attention_forward[kind](p)
    if stopped:
        raise_pending()
    return 0


class AttentionOps:
    """attention, additive_attention, multiplicative_attention of the cython backend."""

    def attention_forward(self, arrays, config, *, needs=None):
        cdef list keep = []
        cdef pyrnn_attention p = described(arrays, config, keep)
        cdef int kind = is_double(arrays.q)
        y = empty_like(arrays.q, (p.B, p.Hq, p.N, p.Dv))
        stats = np.empty((p.B, p.Hq, p.N, 2), y.dtype) if needs else None
        p.y, p.stats = data_of(y), data_of(stats)
        set_rows(p.y_stride, y)
        run(&p, kind, False)
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
        run(&p, kind, True)
        return type(needs)(q=dq, k=dk, v=dv, bias=dbias)

    def additive_attention_forward(self, arrays, config, *, needs=None):
        query, of_query = linear(arrays.query, arrays.w_query, needs)
        keys, of_keys = linear(arrays.keys, arrays.w_key, needs)
        v = contiguous(arrays.v)
        outputs, saved = align(query, keys, arrays.values, v, 1.0, config, needs)
        return outputs, (arrays, config, of_query, of_keys, saved) if needs else None

    def additive_attention_backward(self, saved, grad_outputs, *, needs):
        arrays, config, of_query, of_keys, aligned = saved
        dquery, dkeys, dvalues, dv = align_back(aligned, grad_outputs)
        query, w_query = linear_back(of_query, dquery, needs.query, needs.w_query, seen_along(config, aligned, 2))
        keys, w_key = linear_back(of_keys, dkeys, needs.keys, needs.w_key, seen_along(config, aligned, 1))
        return type(needs)(
            query=query, keys=keys, values=dvalues if needs.values else None, w_query=w_query, w_key=w_key, v=dv if needs.v else None
        )

    def multiplicative_attention_forward(self, arrays, config, *, needs=None):
        query, of_query = (arrays.query, None) if arrays.w is None else linear(arrays.query, arrays.w.T, needs)
        outputs, saved = align(query, arrays.keys, arrays.values, None, config.scale, config, needs)
        return outputs, (config, of_query, saved) if needs else None

    def multiplicative_attention_backward(self, saved, grad_outputs, *, needs):
        config, of_query, aligned = saved
        dquery, dkeys, dvalues, _ = align_back(aligned, grad_outputs)
        w = None
        if of_query is not None:
            dquery, w = linear_back(of_query, dquery, needs.query, needs.w, seen_along(config, aligned, 2))
        return type(needs)(
            query=dquery if needs.query else None, keys=dkeys if needs.keys else None,
            values=dvalues if needs.values else None, w=None if w is None else np.ascontiguousarray(w.T),
        )


# --- additive and multiplicative: mapped by the linear op, then one kernel ---------------------------------------------

LinearArrays = namedtuple("LinearArrays", ("x", "w", "b"))
LinearOutputs = namedtuple("LinearOutputs", ("y",))
_basic = BasicOps()


def linear(x, w, needs):
    """Return x wᵀ, and what its backward needs."""
    (y,), saved = _basic.linear_forward(LinearArrays(x, w, None), None, needs=needs)
    return y, saved


def linear_back(saved, dy, of_x, of_w, seen):
    """Return the gradients of x and w. Rows that are not seen add nothing, be they NaN."""
    if seen is not None:
        saved = saved._replace(x=np.where(seen[..., None], saved.x, 0).astype(saved.x.dtype))
    grads = _basic.linear_backward(saved, LinearOutputs(dy), needs=LinearArrays(of_x, of_w, False))
    return grads.x, grads.w


def seen_along(config, aligned, axis):
    """Return which queries (axis 2) or keys (axis 1) are seen at all, or None where all are."""
    if config.mask is None and config.lengths is None:
        return None
    alpha = aligned[4][1]
    seen = np.ones((1, 1, 1), bool) if config.mask is None else config.mask
    if config.lengths is not None:
        seen = seen & (np.arange(alpha.shape[2]) < config.lengths[:, None])[:, None]
    return np.broadcast_to(seen, alpha.shape).any(axis=axis)


cdef object in_whole_vectors(object array):
    """Return an array (B, M, D) as a contiguous one, zeros after D up to whole vectors."""
    cdef ptrdiff_t lanes = table().unit_block[is_double(array)]
    wide = (array.shape[2] + lanes - 1) // lanes * lanes
    if wide == array.shape[2]:
        return contiguous(array)
    padded = np.zeros((*array.shape[:2], wide), array.dtype)
    padded[..., : array.shape[2]] = array
    return padded


cdef pyrnn_alignment aligned_of(object query, object keys, object values, object v, object config, ptrdiff_t columns) except *:
    cdef pyrnn_alignment p
    memset(&p, 0, sizeof(pyrnn_alignment))
    p.B, p.N, p.A = query.shape
    p.M, p.Dv, p.threads = keys.shape[1], columns, threads()
    p.query, p.keys, p.values, p.v = data_of(query), data_of(keys), data_of(values), data_of(v)
    p.lengths = <const int64_t *>data_of(config.lengths)
    p.mask = input4_of(config.mask, [])  # the configuration keeps it
    return p


def align(query, keys, values, v, scale, config, needs):
    """Return the context and the weights, and what the backward needs."""
    query, keys, wide = contiguous(query), contiguous(keys), in_whole_vectors(values)
    cdef pyrnn_alignment p = aligned_of(query, keys, wide, v, config, values.shape[2])
    cdef int kind = is_double(query)
    p.scale = scale
    ctx, alpha = new_empty((p.B, p.N, p.Dv), query.dtype), new_empty((p.B, p.N, p.M), query.dtype)
    p.ctx, p.alpha = data_of(ctx), data_of(alpha)
    workspace = new_empty((table().alignment_workspace[kind](&p, 0),), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        table().alignment_forward[kind](&p)
    return (ctx, alpha), (query, keys, wide, v, (ctx.copy(), alpha.copy()), scale, config) if needs else None


def align_back(saved, grad_outputs):
    """Return the gradients of the mapped queries and keys, of the values and of v."""
    query, keys, wide, v, (ctx, alpha), scale, config = saved
    cdef pyrnn_alignment p = aligned_of(query, keys, wide, v, config, ctx.shape[2])
    cdef int kind = is_double(query)
    p.scale = scale
    dctx, dalpha = (None if grad is None else contiguous(grad) for grad in grad_outputs)
    dquery, dkeys = new_empty(query.shape, query.dtype), new_empty(keys.shape, query.dtype)
    dvalues = new_empty((p.B, p.M, p.Dv), query.dtype)
    dv = None if v is None else np.empty(p.A, query.dtype)
    p.ctx, p.alpha, p.dctx, p.dalpha = data_of(ctx), data_of(alpha), data_of(dctx), data_of(dalpha)
    p.dquery, p.dkeys, p.dvalues, p.dv = data_of(dquery), data_of(dkeys), data_of(dvalues), data_of(dv)
    workspace = new_empty((table().alignment_workspace[kind](&p, 1),), np.uint8)
    p.workspace = data_of(workspace)
    with nogil:
        table().alignment_backward[kind](&p)
    return dquery, dkeys, dvalues, dv
