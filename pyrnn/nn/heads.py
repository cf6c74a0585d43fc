"""Features as heads, and what a head attends to: what a layer of attention and its frozen part both compute with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backend as backends
from .._checks import check_count, check_flag
from ..autograd import Tensor, functions
from ..autograd.tensor import namespace
from ..ops.options import check_window
from ._sequence import placed
from .cache import Cache, dropped, is_uniform, joined
from .positions import alibi_slopes, check_bound, waves

POSITIONS = (None, "rotary", "alibi")
QUERIES = 256  # of which ALiBi's bias is made at once where no tape keeps it
Attend = Callable[..., Any]  # q, k, v, bias and options of the op -> y (B, H, N, D)


@dataclass(frozen=True)
class Heads:
    """How features are heads, and what a head attends to: of a layer and of what is frozen of it."""

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    causal: bool
    window: tuple[int | None, int | None] | None
    positions: str | None
    max_length: int | None

    @property
    def features(self) -> int:
        """D, the features of a head."""
        return self.embed_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """The features of all heads of keys."""
        return self.num_kv_heads * self.features

    @property
    def left(self) -> int | None:
        """How far before itself a step attends; None is no limit."""
        return None if self.window is None else self.window[0]

    @property
    def unit(self) -> int:
        """How many keys a window lets go of at once: whole splits, and as many as it holds itself."""
        return max(1, -(-(self.left or 0) // backends.KEY_SPLIT)) * backends.KEY_SPLIT

    @property
    def signs(self) -> Any:
        """What the waves (2, ..., D) are multiplied with to rotate: the sine of a pair's first is negative."""
        signs = np.ones((2, self.features))
        signs[0, ::2] = -1
        return signs

    def cut(self, array: Any) -> Any:
        """Return features (B, T, h·D) as heads (B, T, h, D)."""
        return array.reshape((*array.shape[:2], array.shape[2] // self.features, self.features))

    def projections(self, x: Any) -> list[Any]:
        """Return queries, keys and values, each (B, T, h, D), of their concatenation (B, T, ·)."""
        if isinstance(x, Tensor):
            q, both = functions.split(x, self.embed_dim)
            return [self.cut(part) for part in (q, *functions.split(both, self.kv_dim))]
        first, second = self.embed_dim, self.embed_dim + self.kv_dim
        return [self.cut(part) for part in (x[..., :first], x[..., first:second], x[..., second:])]

    def attend(self, x: Any, state: Any, counts: Any, attend: Attend) -> tuple[Any, Any]:
        """Attend among the steps of projections (B, T, ·), a Tensor on a tape or an array: y and the state after."""
        q, k, v = self.projections(x)
        if self.causal:
            return self._causally(q, k, v, state, counts, attend)
        at = np.zeros(q.shape[0], np.int64)
        q, k = self.turned(at, q, k)
        options = {"window": self.window, "lengths": counts, "q_lengths": counts, "q_start": at}
        return self._biased(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), options, attend), ()

    def _causally(self, q: Any, k: Any, v: Any, state: Any, counts: Any, attend: Attend) -> tuple[Any, Any]:
        time = q.shape[1]
        held_k, held_v, position, start = state
        after = position + (time if counts is None else counts)
        check_bound(self.max_length, position, after)
        q, k = self.turned(position, q, k)
        offset = position - start
        on_tape = isinstance(q, Tensor)
        if on_tape:
            keys, values = (joined(held, new, offset, counts) for held, new in ((held_k, k), (held_v, v)))
        else:
            cache = Cache((held_k, held_v, position, start))
            cache.append(k, v, counts)
            keys, values = cache.keys, cache.values
        options = {
            "causal": True,
            "window": self.window,
            "lengths": None if counts is None and is_uniform(offset) else after - start,
            "q_lengths": counts,
            "q_start": offset,
        }
        y = self._biased(q.swapaxes(1, 2), keys, values, options, attend)
        first = self.first_kept(after, start)
        if not on_tape:
            cache.drop(first, in_place=False)
            return y, cache.state()
        keys, values = (dropped(held, first - start, after - first) for held in (keys, values))
        return y, (keys, values, after, first)

    def turned(self, position: Any, q: Any, k: Any) -> tuple[Any, Any]:
        """Return queries and keys (B, T, h, D), rotated by where they stand if they are to be."""
        if self.positions != "rotary" or not q.shape[0] or not q.shape[1]:
            return q, k
        at = (position[:1] if is_uniform(position) else position)[:, None, None] + np.arange(q.shape[1])[:, None]
        xp = namespace(q.data if isinstance(q, Tensor) else q)
        sin, cos = placed(xp, _turns, at, self.features, np.dtype(q.dtype), self.signs)
        rotate = functions.rotate if isinstance(q, Tensor) else functions.rotated
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def first_kept(self, after: Any, start: Any) -> Any:
        """Return the first position (B,) whose keys the steps from ``after`` on may need, or a little before it.

        Keys go in whole splits, so that sums over the others keep their bits, and as many at once as a window holds:
        then moving those that stay costs a step no more than it costs to add it.
        """
        if self.left is None:
            return start
        return np.maximum(start, (after - self.left) // self.unit * self.unit)

    def bias(self, q_start: Any, queries: int, keys: int, dtype: Any, xp: Any) -> Any:
        """Return ALiBi's bias (B or 1, H, N, M): minus the slope of the head times the distance."""
        start = placed(xp, np.array, q_start[:1] if is_uniform(q_start) else q_start)
        at = start[:, None] + xp.arange(queries)
        distance = xp.abs(at[:, None, :, None] - xp.arange(keys)).astype(dtype)
        return -placed(xp, alibi_slopes, self.num_heads).astype(dtype)[:, None, None] * distance

    def _biased(self, q: Any, keys: Any, values: Any, options: dict[str, Any], attend: Attend) -> Any:
        if self.positions != "alibi":
            return attend(q, keys, values, None, **options)
        on_tape, queries = isinstance(q, Tensor), q.shape[2]
        xp = namespace(q.data if on_tape else q)
        start, counts = options["q_start"], options["q_lengths"]
        if on_tape or queries <= QUERIES:
            return attend(q, keys, values, self.bias(start, queries, keys.shape[2], q.dtype, xp), **options)
        parts = []
        for first in range(0, queries, QUERIES):  # the whole bias would be larger than anything else
            part = q[:, :, first : first + QUERIES]
            size = part.shape[2]
            bias = self.bias(start + first, size, keys.shape[2], q.dtype, xp)
            left = None if counts is None else np.clip(counts - first, 0, size)
            parts.append(attend(part, keys, values, bias, **{**options, "q_start": start + first, "q_lengths": left}))
        return xp.concatenate(parts, axis=2)


def _turns(at: Any, features: int, dtype: Any, signs: Any) -> Any:
    return waves(at, features, dtype) * signs[:, None, None, None].astype(dtype)


def merged(y: Any) -> Any:
    """Return heads (B, H, T, D) as features (B, T, H·D)."""
    y = y.swapaxes(1, 2)
    return y.reshape((*y.shape[:2], y.shape[2] * y.shape[3]))


def check_heads(
    embed_dim: Any, num_heads: Any, num_kv_heads: Any, causal: Any, window: Any, positions: Any, max_length: Any
) -> Heads:
    """Return what these arguments of a layer say."""
    embed, heads = check_count("embed_dim", embed_dim), check_count("num_heads", num_heads)
    if embed % heads:
        raise ValueError(f"num_heads: expected a divisor of embed_dim = {embed}, got {heads}")
    shared = heads if num_kv_heads is None else check_count("num_kv_heads", num_kv_heads)
    if heads % shared:
        raise ValueError(f"num_kv_heads: expected a divisor of num_heads = {heads}, got {shared}")
    if positions not in POSITIONS:
        raise ValueError(f"positions: expected None, 'rotary' or 'alibi', got {positions!r}")
    if positions == "rotary" and embed // heads % 2:
        raise ValueError(f"positions: rotary ones need an even number of features in a head, got {embed // heads}")
    window = check_window("window", window)
    if check_flag("causal", causal) is False and max_length is not None:
        raise ValueError(f"max_length: expected None of a layer that is not causal, got {max_length!r}")
    if max_length is not None and window is not None and window[0] is not None:
        raise ValueError(f"max_length: expected None with a window, which bounds the cache, got {max_length!r}")
    bound = None if max_length is None else check_count("max_length", max_length)
    return Heads(embed, heads, shared, bool(causal), window, positions, bound)
