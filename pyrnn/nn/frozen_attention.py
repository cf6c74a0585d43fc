"""What `MultiHeadAttention` is frozen to: whole sequences as the layer runs them, steps that write a cache in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import functions
from ..backend import choose
from ..ops import basic
from ..ops.attention import ATTENTION
from ._sequence import blank, without_padding
from .cache import Cache, check_cache, initial_cache, is_uniform
from .frozen import FrozenLinear, Kept, Part, into
from .heads import Attend, merged
from .positions import BLOCK, check_bound, wave_block, waves

if TYPE_CHECKING:
    from .attention import MultiHeadAttention


def frozen_linear(weight: Any, bias: Any) -> FrozenLinear:
    """Pack weights and bias, given as Parameters or Tensors."""
    backend: Any = choose("linear")
    arrays = basic.LINEAR.Arrays(None, weight.data, None if bias is None else bias.data)
    packed = backend.linear_pack(arrays, basic.LINEAR.Config())
    return FrozenLinear(backend, packed, weight.shape[1], weight.shape[0], weight.dtype)


def plain_attention(backend: Any) -> Attend:
    """Return the op on a backend, for arguments that need no check."""
    forward, arrays, config = backend.attention_forward, ATTENTION.Arrays, ATTENTION.Config

    def attend(
        q: Any, k: Any, v: Any, bias: Any, *, causal: bool = False, window: Any = None, lengths: Any = None,
        q_lengths: Any = None, q_start: Any = None,
    ) -> Any:  # fmt: skip
        if q_start is None:
            q_start = np.full(q.shape[0], k.shape[2] - q.shape[2], np.int64)
        options = config(causal, window, None, None, lengths, q_lengths, q_start, 0.0, None)
        return forward(arrays(q, k, v, bias), options)[0][0]

    return attend


class FrozenAttention(Part):
    """A `MultiHeadAttention` among its own steps."""

    stateful = True

    def __init__(self, layer: MultiHeadAttention) -> None:
        self.heads, self.streamable = layer.heads, layer.streamable
        self.backend = choose("attention")
        self.attention = plain_attention(self.backend)
        self.project = frozen_linear(layer.in_proj_weight, layer.in_proj_bias)
        self.emit = frozen_linear(layer.out_proj.weight, layer.out_proj.bias)
        self.in_features, self.dtype = layer.heads.embed_dim, layer.out_proj.weight.dtype

    def width(self, features: int | None) -> int | None:
        return self.in_features

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        if not self.heads.causal:
            return ()
        return initial_cache(batch, self.heads.num_kv_heads, self.heads.features, self.dtype, self.backend.xp)

    def check_state(self, state: Any, batch: int) -> None:
        if not self.heads.causal:
            super().check_state(state, batch)
        elif state is not None:
            check_cache(state, batch, self.heads.num_kv_heads, self.heads.features, self.dtype)

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        x, counts, padding = without_padding(x, lengths, self.heads.embed_dim, self.dtype)
        y, after = self.attend(x, state, counts)
        y = y if padding is None else blank(y, padding)
        return into(out, y), after

    def attend(self, x: Any, state: Any, counts: Any) -> tuple[Any, Any]:
        """Attend among the steps of what was checked; what comes of padding is not blanked."""
        if self.heads.causal:
            heads, features = self.heads.num_kv_heads, self.heads.features
            given = self.initial_state(len(x)) if state is None else state
            state = check_cache(given, len(x), heads, features, self.dtype)
        projected = self.project.map(x)
        y, after = self.heads.attend(projected, state, counts, self.attention)
        return self.emit.map(merged(y)), after

    def step(self, state: tuple[Any, ...]) -> Kept:
        heads, held = self.heads, Cache(state)
        linear, project, emit = self.project.backend.linear_run, self.project.packed, self.emit.packed
        forward, arrays, config = self.backend.attention_forward, ATTENTION.Arrays, ATTENTION.Config
        batch, embed, features, queries = len(held.position), heads.embed_dim, heads.features, heads.num_heads
        turned, all_heads = queries + heads.num_kv_heads, queries + 2 * heads.num_kv_heads
        waves_of = self._waves(held) if heads.positions == "rotary" else None
        bias_of = self._bias(held) if heads.positions == "alibi" else None
        # What the op is told of rows is kept up to date in these arrays.
        q_start, lengths = held.position - held.start, held.position - held.start
        options: Any = None
        left_to_bound = left_to_drop = -1

        def look_again() -> None:
            """See how the rows stand, as after keys were dropped."""
            nonlocal options, left_to_bound, left_to_drop
            q_start[...] = held.position - held.start
            lengths[...] = q_start
            options = config(
                True, heads.window, None, None, None if held.uniform else lengths, None, q_start, 0.0, None
            )
            if heads.left is not None:
                left_to_drop = int((held.start + heads.unit + heads.left - held.position).min())
            if heads.max_length is not None:
                left_to_bound = heads.max_length - int(held.position.max())

        def step(x: Any, out: Any) -> Any:
            nonlocal left_to_bound, left_to_drop
            if left_to_bound == 0:
                check_bound(heads.max_length, held.position, held.position + 1)
            parts = linear(project, x)[0].reshape(batch, all_heads, features)
            if waves_of is not None:
                parts[:, :turned] = functions.rotated(parts[:, :turned], *waves_of())
            held.add(parts[:, queries:].reshape(batch, 2, -1, features).swapaxes(0, 1))
            lengths[...] += 1
            bias = None if bias_of is None else bias_of()
            y = forward(arrays(parts[:, :queries, None], held.keys, held.values, bias), options)[0][0]
            q_start[...] += 1
            left_to_bound -= 1
            left_to_drop -= 1
            if left_to_drop == 0:
                held.drop(heads.first_kept(held.position, held.start), in_place=True)
                look_again()
            return linear(emit, y.reshape(batch, embed), out=None if out is None else (out, ()))[0]

        look_again()
        return Kept(step, lambda: (held.keys, held.values, held.position, held.start))

    def _waves(self, held: Cache) -> Callable[[], Any]:
        """Return what gives the cosines and sines that the step at hand is rotated by."""
        heads, xp, same = self.heads, self.backend.xp, is_uniform(held.position)
        signs = heads.signs[:, None].astype(self.dtype)
        number, block = -1, np.empty(0)

        def waves_of() -> Any:
            nonlocal number, block
            if not same:
                sin, cos = xp.asarray(waves(held.position[:, None], heads.features, self.dtype) * signs[:, None])
                return cos, sin
            position = int(held.position[0])
            if position // BLOCK != number:
                number = position // BLOCK
                block = xp.asarray(wave_block(number, heads.features, self.dtype) * signs)
            return block[1, position % BLOCK], block[0, position % BLOCK]

        return waves_of

    def _bias(self, held: Cache) -> Callable[[], Any]:
        """Return what gives the bias of the step at hand, whose keys are held by now."""
        heads, xp, dtype = self.heads, self.backend.xp, self.dtype
        falling = heads.bias(np.zeros(1, np.int64), 1, 0, dtype, xp)

        def bias_of() -> Any:
            nonlocal falling
            if not held.uniform:
                return heads.bias(held.position - held.start - 1, 1, held.held, dtype, xp)
            if held.held > falling.shape[3]:
                size = held.buffer.shape[3]
                falling = heads.bias(np.array([size - 1]), 1, size, dtype, xp)
            return falling[..., falling.shape[3] - held.held :]

        return bias_of

    def blocking(self) -> Iterator[str]:
        if not self.streamable:
            yield "MultiHeadAttention"
