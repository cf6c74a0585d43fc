"""The attention family in plain NumPy: the specification.

All three ops are scores, a softmax over the keys that a query sees, and a sum of values with these weights. What is
not seen is never multiplied, so that a NaN in it reaches nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray


def seen_by(config: Any, batch: int, queries: int, keys: int, heads: int) -> Array:
    """Return booleans (B, Hq, N, M), True where a query may attend to a key."""
    at = (config.q_start[:, None] + np.arange(queries))[:, :, None]
    left, right = config.window or (None, None)
    if config.causal:
        right = 0
    key = np.arange(keys)
    seen = np.ones((batch, queries, keys), bool)
    if left is not None:
        seen &= key >= at - left
    if right is not None:
        seen &= key <= at + right
    if config.q_lengths is not None:
        seen &= (np.arange(queries) < config.q_lengths[:, None])[:, :, None]
    return valid_and_allowed(config, seen[:, None], np.s_[:, None, None], (batch, heads, queries, keys))


def valid_and_allowed(config: Any, seen: Array, over: Any, shape: tuple[int, ...]) -> Array:
    """Return what is seen of the valid keys where the mask allows it."""
    if config.lengths is not None:
        seen = seen & (np.arange(shape[-1]) < config.lengths[:, None])[over]
    if config.mask is not None:
        seen = seen & config.mask
    return np.broadcast_to(seen, shape)


def product(weights: Array, values: Array, seen: Array) -> Array:
    """Return weights @ values, in which values that are not seen have no part, be they NaN or infinite."""
    finite = np.isfinite(values)
    if finite.all():
        return weights @ values
    total = weights @ np.where(finite, values, 0).astype(values.dtype)
    for key in np.nonzero(~finite.all(axis=-1).reshape(-1, values.shape[-2]).all(axis=0))[0]:
        counts = seen[..., key, None] & ~finite[..., key, None, :]
        with np.errstate(invalid="ignore"):
            total = np.where(counts, total + weights[..., key, None] * values[..., key, None, :], total)
    return total


def softmax(scores: Array, seen: Array) -> Array:
    """Return weights that sum to 1 over what is seen, and are 0 elsewhere."""
    if not scores.shape[-1]:
        return scores
    scores = np.where(seen, scores, np.finfo(scores.dtype).min).astype(scores.dtype)
    shifted = np.where(seen, scores - scores.max(axis=-1, keepdims=True), 0).astype(scores.dtype)
    terms = np.where(seen, np.exp(shifted), 0).astype(scores.dtype)
    total = np.where(seen.any(axis=-1, keepdims=True), terms.sum(axis=-1, keepdims=True), 1).astype(scores.dtype)
    return np.where(seen, terms / total, 0).astype(scores.dtype)  # 0 where it is not seen, be the total NaN


def softmax_back(weights: Array, dweights: Array, along: Array, seen: Array) -> Array:
    """Return the gradient of the scores; ``along`` is Σ weights · dweights."""
    return np.where(seen, weights * (dweights - along), 0).astype(weights.dtype)


# --- dropout: a generator that is asked for any element on its own -------------------------------------------------


def philox(counter: tuple[Any, ...], seed: int) -> list[Array]:
    """Return four random words of 32 bits for each counter of four: Philox4x32-10 (Salmon et al. 2011)."""
    low = np.uint64(0xFFFFFFFF)
    words = [np.asarray(word).astype(np.uint64) & low for word in counter]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        half = np.uint64(32)
        words = [
            (second >> half) ^ words[1] ^ np.uint64(key[0]), second & low,
            (first >> half) ^ words[3] ^ np.uint64(key[1]), first & low,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words


def kept(config: Any, batch: int, heads: int, queries: int, keys: int) -> Array:
    """Return booleans (B, Hq, N, M), False where dropout drops a weight."""
    at = config.q_start[:, None, None, None] + np.arange(queries)[:, None]
    counter = (np.arange((keys + 3) // 4), at, np.arange(heads)[:, None, None], np.arange(batch)[:, None, None, None])
    words = np.stack(np.broadcast_arrays(*philox(counter, config.seed)), axis=-1)
    quads = (keys + 3) // 4
    words = np.broadcast_to(words, (batch, heads, queries, quads, 4)).reshape(batch, heads, queries, 4 * quads)
    return words[..., :keys] >= math.ceil(config.dropout * 2**32)


def dropped(weights: Array, config: Any) -> Array:
    """Return what dropout makes of weights (B, Hq, N, M), or of their gradient."""
    if not config.dropout:
        return weights
    return weights * kept(config, *weights.shape) * (1 / (1 - config.dropout))  # a NaN is not dropped


# --- the ops ---------------------------------------------------------------------------------------------------------


class AttentionOps:
    """attention, additive_attention, multiplicative_attention of the reference backend."""

    def attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        q, k, v, bias = arrays
        batch, heads, queries, features = q.shape
        keys = k.shape[2]
        scale = 1 / math.sqrt(max(1, features)) if config.scale is None else config.scale
        shared = np.arange(heads) // max(1, heads // max(1, k.shape[1]))  # the head of keys of each head of queries
        seen = seen_by(config, batch, queries, keys, heads)
        scores = (q * scale) @ k[:, shared].swapaxes(2, 3)
        if bias is not None:
            scores = scores + bias
            seen = seen & ~np.isneginf(bias)
        weights = softmax(scores, seen)
        y = product(dropped(weights, config), v[:, shared], seen)
        return (y,), (arrays, config, seen, scale, shared, weights, y) if needs else None

    def attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        (q, k, v, bias), config, seen, scale, shared, weights, y = saved
        dy = np.where(seen.any(axis=-1, keepdims=True), grad_outputs.y, 0).astype(q.dtype)
        dweights = dropped(dy @ v[:, shared].swapaxes(2, 3), config)
        dscores = softmax_back(weights, dweights, (dy * y).sum(axis=-1, keepdims=True), seen)
        scaled, seen_across = dscores * scale, seen.swapaxes(2, 3)

        def per_shared(grad: Array) -> Array:  # heads that share keys follow one another
            heads = k.shape[1]
            return grad.reshape(len(q), heads, q.shape[1] // max(1, heads), *grad.shape[2:]).sum(axis=2)

        grads = {
            "q": lambda: product(scaled, k[:, shared], seen),
            "k": lambda: per_shared(product(scaled.swapaxes(2, 3), q, seen_across)),
            "v": lambda: per_shared(product(dropped(weights, config).swapaxes(2, 3), dy, seen_across)),
            "bias": lambda: sum_to(dscores, bias.shape),
        }
        return type(needs)(**{name: grads[name]() if need else None for name, need in needs._asdict().items()})

    def additive_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        query, keys = arrays.query @ arrays.w_query.T, arrays.keys @ arrays.w_key.T
        hidden = np.tanh(query[:, :, None] + keys[:, None])
        outputs, seen = weigh(config, hidden @ arrays.v, arrays.values)
        return outputs, (arrays, seen, hidden, outputs) if needs else None

    def additive_attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, seen, hidden, outputs = saved
        dscores, dvalues = weigh_back(grad_outputs, outputs, arrays.values, seen)
        hidden = np.where(seen[..., None], hidden, 0).astype(hidden.dtype)
        dhidden = (dscores[..., None] * arrays.v) * (1 - hidden * hidden)
        dquery, dkeys = dhidden.sum(axis=2), dhidden.sum(axis=1)
        # A query or key that is seen by none adds nothing, be it NaN.
        query, keys = (
            np.where(seen.any(axis=axis)[..., None], array, 0).astype(array.dtype)
            for axis, array in ((2, arrays.query), (1, arrays.keys))
        )
        grads = {
            "query": lambda: dquery @ arrays.w_query,
            "keys": lambda: dkeys @ arrays.w_key,
            "values": lambda: dvalues,
            "w_query": lambda: _rows(dquery).T @ _rows(query),
            "w_key": lambda: _rows(dkeys).T @ _rows(keys),
            "v": lambda: (dscores[..., None] * hidden).sum(axis=(0, 1, 2)),
        }
        return type(needs)(**{name: grads[name]() if need else None for name, need in needs._asdict().items()})

    def multiplicative_attention_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        query, keys, values, w = arrays
        mapped = query if w is None else query @ w
        outputs, seen = weigh(config, (mapped * config.scale) @ keys.swapaxes(1, 2), values)
        return outputs, (arrays, seen, mapped, config.scale, outputs) if needs else None

    def multiplicative_attention_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        (query, keys, values, w), seen, mapped, scale, outputs = saved
        dscores, dvalues = weigh_back(grad_outputs, outputs, values, seen)
        dscores = dscores * scale
        dmapped = product(dscores, keys, seen)
        clean = np.where(seen.any(axis=2)[..., None], query, 0).astype(query.dtype)
        grads = {
            "query": lambda: dmapped if w is None else dmapped @ w.T,
            "keys": lambda: product(dscores.swapaxes(1, 2), mapped, seen.swapaxes(1, 2)),
            "values": lambda: dvalues,
            "w": lambda: _rows(clean).T @ _rows(dmapped),
        }
        return type(needs)(**{name: grads[name]() if need else None for name, need in needs._asdict().items()})


def weigh(config: Any, scores: Array, values: Array) -> tuple[tuple[Array, Array], Array]:
    """Return the context and the weights that scores (B, N, M) make, and what is seen."""
    shape = scores.shape
    seen = valid_and_allowed(config, np.ones((1, 1, 1), bool), np.s_[:, None], shape)
    alpha = softmax(scores, seen)
    return (product(alpha, values, seen), alpha), seen


def weigh_back(grad_outputs: Any, outputs: Any, values: Array, seen: Array) -> tuple[Array, Array]:
    """Return the gradients of the scores and of the values."""
    ctx, alpha = outputs
    dctx, dalpha = grad_outputs
    dctx = np.zeros_like(ctx) if dctx is None else np.where(seen.any(axis=-1, keepdims=True), dctx, 0).astype(ctx.dtype)
    along = (dctx * ctx).sum(axis=-1, keepdims=True)
    total = dctx @ values.swapaxes(1, 2)
    if dalpha is not None:
        dalpha = np.where(seen, dalpha, 0).astype(alpha.dtype)
        along = along + (dalpha * alpha).sum(axis=-1, keepdims=True)
        total = total + dalpha
    return softmax_back(alpha, total, along, seen), product(alpha.swapaxes(1, 2), dctx, seen.swapaxes(1, 2))


def _rows(array: Array) -> Array:
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])


def sum_to(array: Any, shape: tuple[int, ...]) -> Any:
    """Add up along the dimensions that were broadcast from a shape."""
    whole = (1,) * (array.ndim - len(shape)) + shape
    over = tuple(axis for axis, size in enumerate(whole) if size == 1 and array.shape[axis] != 1)
    return array.sum(axis=over, keepdims=True).reshape(shape) if over else array.reshape(shape)
