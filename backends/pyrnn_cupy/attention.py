"""attention, additive_attention, multiplicative_attention of the cupy backend, by the kernels of ``attention*.cu``.

The additive and the multiplicative one are attention with one head, that gives its weights as well; their matrices are
cuBLAS's.

``compute`` is about products: of queries and keys, of weights and values, and of their gradients, on the matrix units.
The softmax and all sums are in float32. The score of the additive one is no product, and its forward multiplies weights
and values exactly as well; and so are few queries, as in decoding, and very many features, backward as forward.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from pyrnn.backend import current_compute

from .devices import Device, current_device
from .matrix import product
from .modules import kernel, to_device

THREADS = 128
COLUMNS = 64  # of a tile
FAR = 2**40  # farther than any position
DOT, ADDITIVE, GIVEN = "DOT", "ADDITIVE", "GIVEN"
COMPUTE = {None: "EXACT", "tf32": "TF32", "bfloat16": "BF16"}
# Registers of a thread for sums, of 255: with more some kernel spills. A mask or a bias takes some as well, and so
# does what is compiled for other capabilities than 90.
MOST_SUMS, MOST_PLAIN_SUMS = 112, 128
# How long a row takes, by how many a thread has: estimates, from reads of shared memory; none was measured.
COSTS = {"EXACT": {8: 1.0, 4: 1.3, 1: 4.0}, "TF32": {4: 1.0, 2: 1.3}, "BF16": {4: 1.0, 2: 1.3}}
LANES = {"EXACT": 16, "TF32": 4, "BF16": 4}  # threads of a row
FEW_ROWS = 8  # for which the matrix units do not pay
ALONE = 1.5  # the cost of having a multiprocessor for one block
SPLIT_TILES = 4  # that a block has at least, where keys are split
BLOCKS_OF_PROCESSOR = 3
ADDITIVE_ROWS = 4  # that a thread of additive.cu has at a time
STATIC = 4096  # bytes of shared memory that kernels have besides

# As `Call` in attention_call.cuh.
CALL = np.dtype(
    [
        *((name, np.int32) for name in ("B", "heads", "group", "N", "M", "D", "Dv", "splits", "aligned", "first")),
        ("bias_shape", np.int32, 4),
        *((name, np.int64) for name in ("q_start", "left", "right")),
        *((name, np.int64, 3) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
        ("bias", np.int64, 4),
        ("mask", np.int64, 4),
        ("seed", np.uint64),
        ("drop_below", np.uint64),
        ("scale", np.float64),
        ("keep", np.float64),
    ],
    align=True,
)


class Plan(NamedTuple):
    """How a kernel is compiled and launched: see attention.cuh."""

    compute: str
    rows: int  # of a thread
    chunk: int  # features at a time
    out: int  # chunks that a thread has sums of
    shared: int  # bytes

    def tiles(self, rows: int) -> int:
        """Return the blocks for so many rows."""
        return -(-rows * LANES[self.compute] // (self.rows * THREADS))

    def slices(self, features: int) -> range:
        """Return the first chunk of each launch, where the output is so wide."""
        return range(0, -(-features // self.chunk), self.out)

    def constants(self) -> dict[str, Any]:
        return {"COMPUTE": self.compute, "TM": self.rows, "CHUNK": self.chunk, "OUT": self.out}


@lru_cache(maxsize=512)
def plan(
    device: Device, size: int, compute: str, plain: int, rows: int, own: tuple[int, ...], out: tuple[int, ...],
    products: int = 1,
) -> Plan | None:  # fmt: skip
    """Return the plan for a kernel that is estimated to be fastest, or None if its rows find no room.

    Parameters
    ----------
    device
        The device.
    size
        Bytes of an element.
    compute
        EXACT, TF32 or BF16: the precision of products.
    plain
        1 if there is no bias, no mask, no dropout.
    rows
        That there are in all, of a head.
    own
        Features of the arrays whose rows a block keeps in shared memory.
    out
        Features of the arrays that it computes; if there are two, in one launch.
    products
        Tiles of products that it has before.
    """
    lanes, widest, vector = LANES[compute], max((*own, *out, 1)), 16 // size
    chunk = next((chunk for chunk in (16, 32) if widest <= chunk), 64)
    chunks = -(-max((*out, 1)) // chunk)
    element = 2 if compute == "BF16" else size  # of tiles
    gap = 16 // element
    kept = sum(-(-features // chunk) * chunk + gap for features in own)
    most = MOST_PLAIN_SUMS if plain and device.capability // 10 == 9 else MOST_SUMS
    plans = []
    for each, cost_of_row in COSTS[compute].items():
        block = each * THREADS // lanes
        shared = (block * kept + COLUMNS * (chunk + gap)) * element + block * (COLUMNS + vector) * size
        too_many = each > min(COSTS[compute]) and 2 * rows <= block
        too_few = each == 1 and len(out) > 1 and rows > FEW_ROWS  # two launches are faster
        if too_many or too_few or each * size > 32 or shared > device.shared - STATIC:
            continue
        for count in (1, 2, 4):
            sums = each * (products * COLUMNS + len(out) * count * chunk) // lanes * size // 4
            if sums > most or count >= 2 * chunks or (len(out) > 1 and count < chunks):
                continue
            cost = cost_of_row * -(-chunks // count) * (ALONE if shared > device.shared // 2 - STATIC else 1)
            plans.append((cost, Plan(compute, each, chunk, count, shared)))
    return min(plans, default=(0.0, None), key=lambda pair: pair[0])[1]


class Seen(NamedTuple):
    """What steers who sees what: the rows' q_start, lengths, q_lengths on the device, or None where all are alike."""

    rows: Any
    q_start: int
    left: int
    right: int
    mask: Any


def _seen(config: Any, batch: int, queries: int, keys: int) -> Seen:
    starts, q_lengths = getattr(config, "q_start", None), getattr(config, "q_lengths", None)
    left, right = getattr(config, "window", None) or (None, None)
    if getattr(config, "causal", False):
        right = 0
    start = 0 if starts is None or not batch else int(starts[0])
    rows = None
    if config.lengths is not None or q_lengths is not None or (starts is not None and (starts != start).any()):
        parts = ((starts, start), (config.lengths, keys), (q_lengths, queries))
        host = [np.full(batch, default) if given is None else given for given, default in parts]
        rows = to_device(np.stack(host).astype(np.int64))
    mask = config.mask
    if mask is not None:
        mask = mask if mask.ndim == 4 else mask[:, None]
    return Seen(rows, start, FAR if left is None else left, FAR if right is None else right, mask)


class Call:
    """A call of the family as its kernels see it, of arrays (B, heads, rows, features).

    Attributes
    ----------
    q, k, v, bias
        The arrays, their features side by side.
    compute
        The precision of products, one for all kernels of the call: the backward computes weights again from what the
        forward kept of its scores, and of scores rounded otherwise they would be wrong by any factor.
    record
        What is passed by value, to be copied and completed for each launch.
    """

    def __init__(
        self, arrays: tuple[Any, ...], seen: Seen, scale: float, config: Any, compute: str | None, hidden: Any = None,
        *, gives_weights: bool = False,
    ) -> None:  # fmt: skip
        q, k, v, bias = arrays
        self.q, self.k, self.v = _ready(q), _ready(k), _ready(v)
        self.bias, self.seen, self.hidden, self.dtype = bias, seen, hidden, q.dtype
        self.device = current_device()
        batch, all_heads, queries, features = q.shape
        heads, keys, columns = v.shape[1:]
        group = all_heads // max(1, heads)
        dropout = getattr(config, "dropout", 0.0)
        record = np.zeros(1, CALL)
        sizes = (batch, heads, group, queries, keys, features, columns)
        for name, value in zip(("B", "heads", "group", "N", "M", "D", "Dv"), sizes, strict=True):
            record[name] = value
        record["splits"], record["scale"], record["keep"] = 1, scale, 1 / (1 - dropout)
        record["q_start"], record["left"], record["right"] = seen.q_start, seen.left, seen.right
        if dropout:
            record["seed"], record["drop_below"] = config.seed, math.ceil(dropout * 2**32)
        self.record, self.plain = record, int(bias is None and seen.mask is None and not dropout)
        self.lie(q=self.q, k=self.k, v=self.v)
        for name, array in (("bias", bias), ("mask", seen.mask)):
            if array is not None:
                sizes_and_strides = zip(array.shape, array.strides, strict=True)
                steps = [0 if size == 1 else stride // array.itemsize for size, stride in sizes_and_strides]
                record[name] = [0] * (4 - len(steps)) + steps
        self.batch, self.heads, self.group, self.queries, self.keys, self.features, self.columns = sizes
        self.rows = batch * all_heads * queries
        self.compute = COMPUTE[compute]
        few = group * queries <= FEW_ROWS
        most = (max(features, columns),) if gives_weights else (features, columns)  # that a block of some kernel keeps
        if q.dtype == np.float64 or few or self.plan_if_any(keys, most, (features,), 2) is None:
            self.compute = "EXACT"

    def lie(self, **arrays: Any) -> None:
        """Tell how arrays lie, and which can be read 16 bytes at a time."""
        for name, array in arrays.items():
            self.record[name] = [stride // array.itemsize for stride in array.strides[:3]]
            if name in ALIGNED and not (array.data.ptr % 16 or any(stride % 16 for stride in array.strides[:3])):
                self.record["aligned"] |= ALIGNED[name]

    def steering(self) -> tuple[Any, Any, Any]:
        return self.bias, self.seen.mask, self.seen.rows

    def launch(
        self, name: str, blocks: int, plan: Plan, score: str, *arguments: Any, first: int = 0, **constants: Any
    ) -> None:
        """Run a kernel on tiles, which has a file of its own and gets the record and then the arguments."""
        if not blocks:
            return
        record = self.record.copy()
        record["first"] = first
        run = kernel(f"{name}.cu", name, self.dtype, SCORE=score, PLAIN=self.plain, **plan.constants(), **constants)
        # Not the plan's: calls of other sizes have the same kernel, and another thread's may come before the launch.
        run.max_dynamic_shared_size_bytes = self.device.shared - STATIC
        run((blocks,), (THREADS,), (record, *arguments), shared_mem=plan.shared)

    def launch_whole(self, name: str, rows: int, *arguments: Any) -> None:
        """Run a kernel on whole rows, so many in a block."""
        if self.rows:
            run = kernel("attention_whole.cu", name, self.dtype)
            run((-(-self.rows // rows),), (THREADS,), (self.record.copy(), *arguments))

    def plan_if_any(self, rows: int, own: tuple[int, ...], out: tuple[int, ...], products: int) -> Plan | None:
        """Return how a kernel runs, see `plan`."""
        return plan(self.device, self.dtype.itemsize, self.compute, self.plain, rows, own, out, products)

    def plan(self, rows: int, own: tuple[int, ...], out: tuple[int, ...], products: int = 1) -> Plan:
        """Return how a kernel runs, which it must."""
        found = self.plan_if_any(rows, own, out, products)
        if found is None:
            raise ValueError(f"q, v: {self.features} and {self.columns} features find no room on this GPU")
        return found


ALIGNED = {"q": 1, "k": 2, "v": 4, "dy": 8}


def _ready(array: Any) -> Any:
    """Return an array whose features lie side by side: itself, if they do."""
    size = array.itemsize
    alike = (array.shape[-1] <= 1 or array.strides[-1] == size) and not any(stride % size for stride in array.strides)
    return array if alike else cupy.ascontiguousarray(array)


def _empty_like(array: Any, columns: int) -> Any:
    """Return an uninitialised array (B, heads, rows, columns) whose heads and rows lie in the order of another's."""
    batch, heads, rows, _ = array.shape
    if 0 < array.strides[1] < array.strides[2]:
        return cupy.empty((batch, rows, heads, columns), array.dtype).swapaxes(1, 2)
    return cupy.empty((batch, heads, rows, columns), array.dtype)


def attend(call: Call, score: str, *, keep: bool, weights: bool = False) -> tuple[Any, Any, Any]:
    """Return the sums of values, the weights (B, N, M) if they are asked for, and of each row what backward needs."""
    y = _empty_like(call.q, call.columns)
    call.lie(y=y)
    stats = cupy.empty((call.rows, 2), call.dtype) if keep or weights else None
    scores = cupy.empty((call.batch, call.queries, call.keys), call.dtype) if weights else None
    rows = call.group * call.queries
    chosen = call.plan(rows, (call.features,), (call.columns,))
    blocks = call.batch * call.heads * chosen.tiles(rows)
    wanted = BLOCKS_OF_PROCESSOR * call.device.processors // max(1, blocks)
    splits = max(1, min(wanted, call.keys // (SPLIT_TILES * COLUMNS)))
    call.record["splits"] = splits
    parts = part_stats = None
    if splits > 1:
        parts = cupy.empty((splits, call.rows, call.columns), call.dtype)
        part_stats = cupy.empty((splits, call.rows, 2), call.dtype)
    for first in chosen.slices(max(1, call.columns)):
        call.launch(
            "attention_forward", blocks * splits, chosen, score, call.q, call.k, call.v, call.hidden,
            *call.steering(), y, stats if parts is None else part_stats, scores, parts,
            first=first,
        )  # fmt: skip
    if parts is not None:
        call.launch_whole("attention_merge", 1, parts, part_stats, y, stats)
    if weights:
        call.launch_whole("attention_weights", 1, call.seen.rows, stats, scores)
    return y, scores, stats


class Back:
    """The gradients of a call: of its scores from those of y and, if ``weights`` are given, from those of these."""

    def __init__(
        self, call: Call, score: str, y: Any, stats: Any, dy: Any, weights: Any = None, dweights: Any = None
    ) -> None:
        self.call, self.score = call, score
        self.dy = None if dy is None else _ready(dy)
        call.lie(y=y, **({} if dy is None else {"dy": self.dy}))
        along = cupy.empty(call.rows, call.dtype)
        rows = call.seen.rows
        arrays = (y, self.dy, call.seen.mask, rows, weights, dweights, along)
        call.launch_whole("attention_along", THREADS // 32, *arrays)
        self.arguments = (
            call.q, call.k, call.v, self.dy, *call.steering(), stats, along, weights, dweights
        )  # fmt: skip
        self.own = (*(() if score == GIVEN else (call.features,)), call.columns)

    def queries(self) -> Any:
        call, rows = self.call, self.call.group * self.call.queries
        dq = _empty_like(call.q, call.features)
        call.lie(dq=dq)
        chosen = call.plan(rows, self.own, (call.features,), 2)
        blocks = call.batch * call.heads * chosen.tiles(rows)
        for first in chosen.slices(call.features):
            call.launch("attention_queries", blocks, chosen, self.score, *self.arguments, dq, first=first)
        return dq

    def keys(self, of_keys: bool, of_values: bool) -> tuple[Any, Any]:
        """Return the gradients of keys and values, in one launch if there is room for the sums of both."""
        call = self.call
        dk = _empty_like(call.k, call.features) if of_keys else None
        dv = _empty_like(call.v, call.columns) if of_values else None
        if of_values and self.dy is None:
            dv.fill(0)
            of_values = False
        call.lie(**{name: array for name, array in (("dk", dk), ("dv", dv)) if array is not None})
        both = None
        if of_keys and of_values:
            both = call.plan_if_any(call.keys, self.own, (call.features, call.columns), 2)
        if both is not None:
            self._launch_keys(both, dk, dv)
        else:
            if of_keys:
                self._launch_keys(call.plan(call.keys, self.own, (call.features,), 2), dk, None)
            if of_values:  # of which values are no part
                self._launch_keys(call.plan(call.keys, self.own[:-1], (call.columns,), 2), None, dv)
        return dk, dv

    def _launch_keys(self, chosen: Plan, dk: Any, dv: Any) -> None:
        call = self.call
        blocks = call.batch * call.heads * chosen.tiles(call.keys)
        want = {"WANT_K": int(dk is not None), "WANT_V": int(dv is not None)}
        widest = max(call.features if dk is not None else 0, call.columns if dv is not None else 0)
        for first in chosen.slices(widest):
            arguments = (*self.arguments, dk, dv)
            call.launch("attention_keys", blocks, chosen, self.score, *arguments, first=first, **want)

    def scores(self, shape: tuple[int, ...]) -> Any:
        """Return the gradient of the scores, summed to a shape of four dimensions."""
        call = self.call
        chosen = call.plan(call.queries, self.own, (), 3)
        row_tiles, key_tiles = chosen.tiles(call.queries), -(-call.keys // COLUMNS)
        partial = (
            shape[0], shape[1], call.queries if shape[2] > 1 else row_tiles, call.keys if shape[3] > 1 else key_tiles
        )  # fmt: skip
        out = cupy.empty(partial, call.dtype)
        call.record["bias_shape"] = shape
        blocks = shape[0] * shape[1] * row_tiles * key_tiles
        call.launch("attention_scores", blocks, chosen, self.score, *self.arguments, out)
        over = tuple(axis for axis in (2, 3) if out.shape[axis] != shape[axis])
        return out.sum(axis=over, keepdims=True) if over else out


class Saved(NamedTuple):
    """What a forward keeps."""

    arrays: Any
    config: Any
    seen: Seen
    outputs: tuple[Any, ...]
    stats: Any
    mapped: tuple[Any, ...] = ()
    compute: str | None = None


def _aligned_call(arrays: Any, seen: Seen, scale: float, config: Any, compute: str | None, hidden: Any = None) -> Call:
    """Describe queries, keys and values (B, T, F) as those of one head."""
    heads = (*(array[:, None] for array in arrays), None)
    return Call(heads, seen, scale, config, compute, hidden, gives_weights=True)


def _rows(x: Any) -> Any:
    """Return the rows of x (B, T, F), one below the other."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


def _linear(x: Any, w: Any, compute: str | None) -> Any:
    """Return x (B, T, F) times wᵀ."""
    return product(_rows(x), w.T, compute=compute).reshape(*x.shape[:2], w.shape[0])


def _clean(x: Any, seen: Any) -> Any:
    """Return rows of x (B, T, F), zeros where nothing is seen, as what is there may be NaN."""
    return _rows(x if seen is None else cupy.where(seen[..., None], x, x.dtype.type(0)))


def _seen_along(saved: Saved, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """Return which queries (B, N) see something, and which keys (B, M) are seen; None where all are."""
    mask, rows = saved.seen.mask, saved.seen.rows
    if mask is None and rows is None:
        return None, None
    seen = cupy.ones((1, 1, 1), bool) if mask is None else mask[:, 0]
    if rows is not None:
        seen = seen & (cupy.arange(shape[2]) < rows[1][:, None])[:, None]
    seen = cupy.broadcast_to(seen, shape)
    return seen.any(axis=2), seen.any(axis=1)


def _given_and_kept(
    arrays: Any, config: Any, seen: Seen, ctx: Any, alpha: Any, stats: Any, mapped: Any, compute: Any, needs: Any
) -> tuple[Any, Any]:
    """Return a forward's outputs, and what it keeps: copies of them, as the caller may write to those."""
    outputs = (ctx[:, 0], alpha)
    if needs is None:
        return outputs, None
    return outputs, Saved(arrays, config, seen, tuple(o.copy() for o in outputs), stats, mapped, compute)


class AttentionOps:
    """attention, additive_attention, multiplicative_attention of the cupy backend."""

    def attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        batch, _, queries, _ = arrays.q.shape
        seen = _seen(config, batch, queries, arrays.k.shape[2])
        compute = current_compute()
        call = self._attention_call(arrays, config, seen, compute)
        y, _, stats = attend(call, DOT, keep=needs is not None)
        return (y,), None if needs is None else Saved(arrays, config, seen, (y.copy("K"),), stats, (), compute)

    @staticmethod
    def _attention_call(arrays: Any, config: Any, seen: Seen, compute: str | None) -> Call:
        scale = 1 / math.sqrt(max(1, arrays.q.shape[3])) if config.scale is None else config.scale
        return Call(arrays, seen, scale, config, compute)

    def attention_backward(self, saved: Saved, grad_outputs: Any, *, needs: Any) -> Any:
        arrays = saved.arrays
        call = self._attention_call(arrays, saved.config, saved.seen, saved.compute)
        back = Back(call, DOT, saved.outputs[0], saved.stats, grad_outputs.y)
        dk, dv = back.keys(needs.k, needs.v) if needs.k or needs.v else (None, None)
        dbias = None
        if needs.bias:
            shape = (1,) * (4 - arrays.bias.ndim) + arrays.bias.shape
            dbias = back.scores(shape).reshape(arrays.bias.shape)
        return type(needs)(q=back.queries() if needs.q else None, k=dk, v=dv, bias=dbias)

    def additive_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        compute = current_compute()
        query, keys = _linear(arrays.query, arrays.w_query, compute), _linear(arrays.keys, arrays.w_key, compute)
        hidden = cupy.ascontiguousarray(arrays.v)
        seen = _seen(config, len(query), query.shape[1], keys.shape[1])
        call = _aligned_call((query, keys, arrays.values), seen, 1.0, config, None, hidden)
        ctx, alpha, stats = attend(call, ADDITIVE, keep=needs is not None, weights=True)
        return _given_and_kept(arrays, config, seen, ctx, alpha, stats, (query, keys, hidden), compute, needs)

    def additive_attention_backward(self, saved: Saved, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, (query, keys, hidden) = saved.arrays, saved.mapped
        call = _aligned_call((query, keys, arrays.values), saved.seen, 1.0, saved.config, saved.compute)
        back = self._back(call, saved, grad_outputs)
        asking, asked = _seen_along(saved, saved.outputs[1].shape)
        dquery = dkeys = dv = None
        if needs.query or needs.w_query or needs.keys or needs.w_key or needs.v:
            batch, queries, count = saved.outputs[1].shape
            d = back.scores((batch, 1, queries, count))[:, 0]
            if needs.query or needs.w_query or needs.v:
                dquery, dv = _pull_additive(query, keys, hidden, d, of_hidden=needs.v)
            if needs.keys or needs.w_key:
                dkeys, _ = _pull_additive(keys, query, hidden, d.swapaxes(1, 2), of_hidden=False)
        compute = saved.compute

        def of_weights(d: Any, x: Any, seen: Any) -> Any:
            return product(_rows(d).T, _clean(x, seen), compute=compute)

        grads = {
            "query": lambda: _linear(dquery, arrays.w_query.T, compute),
            "keys": lambda: _linear(dkeys, arrays.w_key.T, compute),
            "values": lambda: back.keys(False, True)[1][:, 0],
            "w_query": lambda: of_weights(dquery, arrays.query, asking),
            "w_key": lambda: of_weights(dkeys, arrays.keys, asked),
            "v": lambda: dv,
        }
        return type(needs)(**{name: grads[name]() if need else None for name, need in needs._asdict().items()})

    def multiplicative_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        compute = current_compute()
        query = arrays.query if arrays.w is None else _linear(arrays.query, arrays.w.T, compute)
        seen = _seen(config, len(query), query.shape[1], arrays.keys.shape[1])
        call = _aligned_call((query, arrays.keys, arrays.values), seen, config.scale, config, compute)
        ctx, alpha, stats = attend(call, DOT, keep=needs is not None, weights=True)
        return _given_and_kept(arrays, config, seen, ctx, alpha, stats, (query,), compute, needs)

    def multiplicative_attention_backward(self, saved: Saved, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, (query,) = saved.arrays, saved.mapped
        mapped = (query, arrays.keys, arrays.values)
        call = _aligned_call(mapped, saved.seen, saved.config.scale, saved.config, saved.compute)
        back = self._back(call, saved, grad_outputs)
        dkeys, dvalues = back.keys(needs.keys, needs.values) if needs.keys or needs.values else (None, None)
        dquery = back.queries()[:, 0] if needs.query or needs.w else None
        dw = None
        if needs.w:
            asking, _ = _seen_along(saved, saved.outputs[1].shape)
            dw = product(_clean(arrays.query, asking).T, _rows(dquery), compute=saved.compute)
        if needs.query and arrays.w is not None:
            dquery = _linear(dquery, arrays.w, saved.compute)
        return type(needs)(
            query=dquery if needs.query else None,
            keys=None if dkeys is None else dkeys[:, 0],
            values=None if dvalues is None else dvalues[:, 0],
            w=dw,
        )

    @staticmethod
    def _back(call: Call, saved: Saved, grad_outputs: Any) -> Back:
        ctx, alpha = saved.outputs
        dctx = None if grad_outputs.ctx is None else grad_outputs.ctx[:, None]
        dalpha = None if grad_outputs.alpha is None else cupy.ascontiguousarray(grad_outputs.alpha)
        return Back(call, GIVEN, ctx[:, None], saved.stats, dctx, alpha, dalpha)


def _pull_additive(rows: Any, columns: Any, hidden: Any, d: Any, *, of_hidden: bool) -> tuple[Any, Any]:
    """Return the gradients of rows (B, R, A) and of hidden (A,), from those of the scores (B, R, C)."""
    batch, count, features = rows.shape
    drows = cupy.empty_like(rows)
    dhidden = cupy.empty_like(rows) if of_hidden else None
    blocks = batch * -(-count // ADDITIVE_ROWS) * -(-features // THREADS)
    if blocks:
        run = kernel("additive.cu", "additive_rows", rows.dtype)
        steps = (np.int64(stride // d.itemsize) for stride in d.strides)
        sizes = (np.int32(value) for value in (batch, count, columns.shape[1], features))
        run((blocks,), (THREADS,), (rows, columns, hidden, d, *steps, *sizes, drows, dhidden))
    return drows, dhidden.sum(axis=(0, 1)) if of_hidden else None
