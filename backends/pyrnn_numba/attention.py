"""attention, additive_attention, multiplicative_attention of the numba backend: one pair of kernels (`attend`,
`attend_back`), described to them here.

The additive and the multiplicative one map queries or keys by a matrix (`matrix`), and give their weights; else they
are attention with one head, the additive one with a score of its own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pyrnn.backend import KEY_SPLIT

from . import attend_back, matrix, walk
from .attend import ADDITIVE, DOT, INTEGERS, SPLIT, Call, Scratch, View, attend
from .memory import Memory, address, padded
from .panel import PANEL
from .team import run, threads_worth

PANELS = 2  # of rows in a block
AT_ONCE = 2**33  # multiply-adds of a call of the kernel, between which an interrupt is answered
FAR = 2**40  # farther than any position
NOTHING = View(0, 0, 0, 0, 0, 0, 0)
assert SPLIT == KEY_SPLIT  # a number of the plugin's own, as its kernels on disk don't know of another's change

Array = np.ndarray


class Saved(NamedTuple):
    """What a forward keeps: the call, which has its arrays and each row's largest score and sum by address."""

    call: Call
    limits: tuple[Array, Array, Array]
    q: Array
    k: Array
    v: Array
    owners: Any  # of the rest of the memory


def view(array: Array | None, dtype: Any = None) -> View:
    """Describe an array (B, H, T, F), or (B, T, F) of one head."""
    if array is None:
        return NOTHING
    strides = array.strides if array.ndim == 4 else (array.strides[0], 0, *array.strides[1:])
    return View(address(array), *strides, array.shape[-1], padded(array.shape[-1], array.itemsize))


def spread(array: Array | None, shape: tuple[int, ...]) -> View:
    """Describe an array that is broadcast."""
    return NOTHING if array is None else view(np.broadcast_to(array, shape))


def limits(config: Any, batch: int, queries: int, keys: int) -> tuple[Array, Array, Array]:
    """Return by row of the batch where its queries begin, and how many keys and queries count."""
    starts = getattr(config, "q_start", None)
    asked = getattr(config, "q_lengths", None)
    return tuple(
        np.ascontiguousarray(np.full(batch, default) if given is None else given, np.int64)
        for given, default in ((starts, 0), (config.lengths, keys), (asked, queries))
    )  # type: ignore[return-value]


def scratch_of(memory: Memory, call: Call, parts: int, *, back: bool) -> Scratch:
    """Allocate each part's memory."""
    k, v, width = call.k, call.v, call.width
    q_panel, y_panel = width * max(1, k.features), width * max(1, v.features)
    blocks = (SPLIT * width, q_panel, call.block * k.size, SPLIT * v.size, call.block * v.size, call.block * v.size)
    s, q_panels, q_rows, values, newest, sums = blocks
    sizes = {
        "s": s, "d": s * back, "q_panels": q_panels, "q_rows": q_rows, "y_panels": y_panel * back,
        "y_rows": call.block * v.size * back, "keys": SPLIT * k.size * back, "values": values,
        "newest": max(newest, k.size), "sums": sums, "dk": SPLIT * k.size * back, "dv": SPLIT * v.size * back,
        "dq": q_panel * back, "stats": 4 * width, "along": width, "integers": INTEGERS * width // call.item * 8,
        "row": max(k.size, v.size),
    }  # fmt: skip
    sizes = {name: padded(size, 1) for name, size in sizes.items()}
    step = sum(sizes.values())
    (at,) = memory.rows((parts, step))
    (zeros,) = memory.rows((1, max(width, k.size, v.size)), zero=True)
    places = {}
    for name, size in sizes.items():
        places[name] = at
        at += size
    return Scratch(step=step, **places, zeros=zeros)


def threads_for(call: Call) -> int:
    features = call.k.features + call.v.features
    heads = call.batch * call.shared
    return threads_worth(heads * call.group * call.queries * call.keys * features, heads * call.keys * features)


def ranges(call: Call, items: int, parts: int) -> list[tuple[int, int]]:
    """Return ranges of items that are done between two looks at interrupts."""
    features = call.k.features + call.v.features
    each = call.batch * call.shared * call.group * call.queries * call.keys * features // max(1, items)
    count = max(parts, AT_ONCE // max(1, each) // parts * parts)
    return [(first, min(first + count, items)) for first in range(0, items, count)]


def forward(
    kind: int, q: Array, k: Array, v: Array, config: Any, scale: float, *, added: Array | None = None,
    hidden: Array | None = None, gives_weights: bool = False,
) -> tuple[Array, Array | None, Saved]:  # fmt: skip
    """Attend; return the sums of values, the weights if they are asked for, and what backward needs."""
    heads = q.shape[1] if q.ndim == 4 else 1
    shared = k.shape[1] if k.ndim == 4 else 1
    batch, queries, keys, dtype = q.shape[0], q.shape[-2], k.shape[-2], q.dtype
    lanes = padded(1, dtype.itemsize) // dtype.itemsize
    group = heads // max(1, shared)
    y = np.empty((*q.shape[:-1], v.shape[-1]), dtype)
    weights = (
        (np.empty if config.lengths is None else np.zeros)((batch, queries, keys), dtype) if gives_weights else None
    )
    shape = (batch, heads, queries, keys) if q.ndim == 4 else (batch, queries, keys)
    left, right = getattr(config, "window", None) or (None, None)
    right = 0 if getattr(config, "causal", False) else right
    dropout = getattr(config, "dropout", 0.0)
    constants = np.array([scale, 1 / (1 - dropout), 1], dtype)
    kept = Memory(dtype)
    size = padded(batch * heads * queries, dtype.itemsize)
    largest, inverse = kept.rows((1, size), (1, size))
    seed = getattr(config, "seed", None) or 0
    block = min(PANELS * PANEL, padded(group * queries, dtype.itemsize))
    call = Call(
        kind, lanes, dtype.itemsize, batch, shared, group, queries, keys, block // dtype.itemsize, block,
        FAR if left is None else min(left, FAR), FAR if right is None else min(right, FAR), address(constants),
        math.ceil(dropout * 2**32), seed - 2**64 if seed >= 2**63 else seed, view(q), view(k), view(v),
        spread(added, shape), spread(config.mask, shape), address(hidden), view(y), address(weights), largest, inverse,
    )  # fmt: skip
    rows = limits(config, batch, queries, keys)
    if batch and shared and group * queries:
        items = batch * shared * -(-group * queries // call.block)
        parts = min(threads_for(call), items)
        memory = Memory(dtype)
        scratch = scratch_of(memory, call, parts, back=False)
        keep = (memory, kept, q, k, v, added, hidden, config, constants, y, weights, rows)
        for first, last in ranges(call, items, parts):
            run(parts, attend, memory.unit, call, scratch, *rows, first, last, keep=keep)
    owners = (kept, added, hidden, config, constants, y, weights)
    return y, weights, Saved(call, rows, q, k, v, owners)


def backward(
    saved: Saved, dy: Array | None, dweights: Array | None, *, q: bool, k: bool, v: bool, bias: Array | None = None
) -> dict[str, Array | None]:
    """Return the gradients of q, k, v, of the hidden weights of the additive score, and of a bias if one is given."""
    call, rows = saved.call, saved.limits
    dtype = saved.q.dtype
    memory = Memory(dtype)
    if call.weights:
        call = call._replace(added=view(dweights))
    count = call.batch * call.shared * call.group * call.queries
    along, sums = memory.rows((1, padded(count, dtype.itemsize)), (count, call.q.size) if q else None, zero=True)
    splits = -(-call.keys // SPLIT)
    grads: dict[str, Array | None] = {
        name: (np.zeros if splits * count == 0 else np.empty)(array.shape, dtype) if need else None
        for name, array, need in (("q", saved.q, q), ("k", saved.k, k), ("v", saved.v, v))
    }
    hidden = np.zeros((call.batch, splits, call.k.features), dtype) if call.kind == ADDITIVE else None
    dbias = None if bias is None else np.zeros(bias.shape)
    shape = (call.batch, call.shared * call.group, call.queries, call.keys)
    of_y = view(dy)._replace(features=call.v.features, size=call.v.size)
    out = attend_back.Gradients(
        of_y, along, view(grads["q"]), sums, view(grads["k"]), view(grads["v"]), address(hidden), spread(dbias, shape)
    )
    if count and splits:
        threads = threads_for(call)
        items = call.batch * call.shared
        blocks = -(-call.group * call.queries // call.block)
        scratch = scratch_of(memory, call, threads, back=True)
        keep = (memory, saved, dy, dweights, grads, hidden, dbias)
        run(threads, attend_back.sum_along, memory.unit, call, out, keep=keep)
        if q and (k or v) and (items >= threads or threads == 1):
            aims = [(attend_back.ALL, items)]
        else:
            aims = [(attend_back.OF_KEYS, items * splits)] if k or v or hidden is not None else []
            aims += [(attend_back.OF_QUERIES, items * blocks)] if q else []
        for aim, number in aims:
            parts = min(threads, number)
            for first, last in ranges(call, number, parts):
                run(parts, attend_back.pull_back, memory.unit, call, scratch, out, aim, *rows, first, last, keep=keep)
        if dbias is not None:
            for b in range(call.batch):
                run(threads, attend_back.pull_bias, memory.unit, call, scratch, out, b, *rows, keep=keep)
    grads["hidden"] = None if hidden is None else hidden.reshape(-1, call.k.features).sum(axis=0)
    grads["bias"] = None if dbias is None else dbias.astype(dtype)
    return grads


# --- rows times a matrix ---------------------------------------------------------------------------------------------


def padded_rows(memory: Memory, array: Array, counts: Array | None = None) -> int:
    """Copy an array (B, T, F) into rows of whole vectors, 0 where ``counts`` (B, T) is False; return their address."""
    batch, time, features = array.shape
    size = padded(features, array.itemsize)
    (rows,) = memory.rows((batch * time, size), zero=True)
    order = np.arange(time)
    for b in range(batch):
        row, item = array[b].strides
        which = order if counts is None else np.nonzero(counts[b])[0]
        start = rows + b * time * size
        walk.copy_rows(memory.unit, address(array[b]), row, item, which, features, start, size, memory.lanes)
    return rows


def times(array: Array, w: Array) -> Array:
    """Return array (B, T, K) times w (N, K) transposed, each element a chain over k: (B, T, N)."""
    batch, time, depth = array.shape
    count, dtype = w.shape[0], array.dtype
    memory = Memory(dtype)
    size, item = padded(count, dtype.itemsize), dtype.itemsize
    rows = padded_rows(memory, array)
    panels, zeros = memory.rows((depth, size), (1, size), zero=True)
    out = np.empty((batch, time, size // item), dtype)
    walk.pack_weights(memory.unit, address(w), *w.strides, count, size, 1, depth, panels, memory.lanes)
    threads = threads_worth(batch * time * w.size, w.size)
    run(
        threads, matrix.multiply, memory.unit, rows, padded(depth, item), item, batch * time, panels, depth, size,
        zeros, address(out), keep=(memory, array, w, out),
    )  # fmt: skip
    return out[..., :count]


def times_transposed(a: Array, b: Array, counts_a: Array | None = None, counts_b: Array | None = None) -> Array:
    """Return the sum over rows of a (B, T, N) times b (B, T, K): (N, K). Rows that don't count have no part in it."""
    dtype, rows = a.dtype, a.shape[0] * a.shape[1]
    memory = Memory(dtype)
    item, size = dtype.itemsize, padded(b.shape[-1], dtype.itemsize)
    of_a, of_b = padded_rows(memory, a, counts_a), padded_rows(memory, b, counts_b)
    out = np.zeros((a.shape[-1], size // item), dtype)
    threads = threads_worth(rows * out.size, out.size)
    run(
        threads, matrix.multiply_transposed, memory.unit, of_a, padded(a.shape[-1], item), a.shape[-1], item, of_b,
        size, rows, address(out), keep=(memory, out),
    )  # fmt: skip
    return np.ascontiguousarray(out[:, : b.shape[-1]])


def seen_by(config: Any, shape: tuple[int, int, int]) -> Array | None:
    """Return booleans (B, N, M), True where a query may attend to a key; None where it may to all."""
    if config.mask is None and config.lengths is None:
        return None
    seen = np.ones(shape, bool) if config.mask is None else np.broadcast_to(config.mask, shape)
    if config.lengths is not None:
        seen = seen & (np.arange(shape[2]) < config.lengths[:, None])[:, None]
    return seen


def any_seen(config: Any, shape: tuple[int, int, int]) -> tuple[Array | None, Array | None]:
    """Return which queries see something (B, N), and which keys are seen (B, M)."""
    seen = seen_by(config, shape)
    return (None, None) if seen is None else (seen.any(axis=2), seen.any(axis=1))


class AttentionOps:
    """attention, additive_attention, multiplicative_attention of the numba backend."""

    def attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        q, k, v, bias = arrays
        scale = 1 / math.sqrt(max(1, q.shape[-1])) if config.scale is None else config.scale
        y, _, saved = forward(DOT, q, k, v, config, scale, added=bias)
        return (y,), (arrays, saved) if needs else None

    def attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, kept = saved
        bias = arrays.bias if needs.bias else None
        grads = backward(kept, grad_outputs.y, None, q=needs.q, k=needs.k, v=needs.v, bias=bias)
        return type(needs)(*(grads[name] for name in needs._fields))

    def additive_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        query, keys = times(arrays.query, arrays.w_query), times(arrays.keys, arrays.w_key)
        hidden = np.ascontiguousarray(arrays.v)
        ctx, alpha, saved = forward(
            ADDITIVE, query, keys, arrays.values, config, 1.0, hidden=hidden, gives_weights=True
        )
        return (ctx, alpha), (arrays, config, saved) if needs else None

    def additive_attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, config, kept = saved
        of_query, of_keys = needs.query or needs.w_query, needs.keys or needs.w_key
        grads = backward(kept, *grad_outputs, q=of_query, k=of_keys, v=needs.values)
        asking, asked = any_seen(config, shape_of_scores(arrays))
        results = {
            "query": lambda: times(grads["q"], arrays.w_query.T),
            "keys": lambda: times(grads["k"], arrays.w_key.T),
            "values": lambda: grads["v"],
            "w_query": lambda: times_transposed(grads["q"], arrays.query, counts_b=asking),
            "w_key": lambda: times_transposed(grads["k"], arrays.keys, counts_b=asked),
            "v": lambda: grads["hidden"],
        }
        return type(needs)(**{name: results[name]() if need else None for name, need in needs._asdict().items()})

    def multiplicative_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        query = arrays.query if arrays.w is None else times(arrays.query, arrays.w.T)
        ctx, alpha, saved = forward(DOT, query, arrays.keys, arrays.values, config, config.scale, gives_weights=True)
        return (ctx, alpha), (arrays, config, saved) if needs else None

    def multiplicative_attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, config, kept = saved
        grads = backward(kept, *grad_outputs, q=needs.query or needs.w, k=needs.keys, v=needs.values)
        results = {
            "query": lambda: grads["q"] if arrays.w is None else times(grads["q"], arrays.w),
            "keys": lambda: grads["k"],
            "values": lambda: grads["v"],
            "w": lambda: times_transposed(
                arrays.query, grads["q"], counts_a=any_seen(config, shape_of_scores(arrays))[0]
            ),
        }
        return type(needs)(**{name: results[name]() if need else None for name, need in needs._asdict().items()})


def shape_of_scores(arrays: Any) -> tuple[int, int, int]:
    """Return (B, N, M)."""
    return (*arrays.query.shape[:2], arrays.keys.shape[1])
