"""What Transformer layers are frozen to, and what the layers share with it: the sums, the decoder's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_lengths
from ..autograd import functions, to_arrays
from ..backend import choose
from ..ops import basic
from ._checks import check_array, check_positions
from ._sequence import blank, in_turn, padding_of, without_padding
from .frozen import FrozenSequential, Kept, Part, Step, into
from .frozen_attention import FrozenAttention, frozen_linear, plain_attention
from .heads import merged

if TYPE_CHECKING:
    from .layers import LayerNorm
    from .transformer import TransformerDecoderLayer, TransformerLayer

ACTIVATIONS = {"relu": functions.relu, "gelu": functions.gelu, "gelu_tanh": functions.gelu_tanh}
Branch = Callable[[Any], Any]


def residual(x: Any, branch: Branch, norm: Branch, norm_first: bool) -> Any:
    """Return x with what a branch makes of it, the norm before the branch or after the sum; Tensors or arrays."""
    return x + branch(norm(x)) if norm_first else norm(x + branch(x))


def check_decoder_state(state: Any, batch: int, heads: int, features: int, dtype: Any) -> tuple[Any, Any]:
    """Return a decoder layer's cache, yet to be checked, and its memory."""
    if state is None:
        return None, ()
    if not isinstance(state, tuple) or len(state) != 2 or not isinstance(state[1], tuple):
        came = f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__
        raise ValueError(f"state: expected a tuple (cache, memory) of tuples, got {came}")
    cache, kept = state
    if not kept:
        return cache, ()
    if len(kept) != 3:
        raise ValueError(f"state[1]: expected a tuple (k, v, length) or (), got a tuple of {len(kept)}")
    sizes: dict[str, Any] = {"B": batch, "Hkv": heads, "D": features}
    for index, name in enumerate("kv"):
        check_array(f"state[1][{index}] ({name})", kept[index], "B Hkv M D", sizes, dtype)
    length = check_positions("state[1][2] (length)", kept[2], batch)
    if length.size and length.max() > sizes["M"]:
        raise ValueError(f"state[1][2] (length): expected values from 0 to M = {sizes['M']}, got {length.max()}")
    return cache, (kept[0], kept[1], length)


def check_memory(kept: tuple[Any, ...], batch: int, features: int) -> None:
    """Raise ValueError where there is no memory."""
    if not kept:
        raise ValueError(
            f"memory: expected an array of shape (B, M, E) = ({batch}, M, {features}), as the state has none; "
            "give one with the first call, or initial_state(batch, memory=...)"
        )


class FrozenNorm(Part):
    """A `LayerNorm` inside of a part."""

    def __init__(self, layer: LayerNorm) -> None:
        self.backend = choose("layer_norm")
        self.weight, self.bias = layer.weight.data.copy(), layer.bias.data.copy()
        self.options = basic.LAYER_NORM.Config(layer.eps)

        forward, arrays = self.backend.layer_norm_forward, basic.LAYER_NORM.Arrays
        self.map = lambda x: forward(arrays(x, self.weight, self.bias), self.options)[0][0]  # of what was checked

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        y = self.map(x)
        return into(out, y), ()


class FrozenEncoderLayer(Part):
    """A `TransformerEncoderLayer`."""

    stateful = True

    def __init__(self, layer: TransformerLayer) -> None:
        self.attention = FrozenAttention(layer.self_attn)
        self.backend, self.streamable = self.attention.backend, self.attention.streamable
        self.in_features, self.dtype = self.attention.in_features, self.attention.dtype
        self.first, self.second = (frozen_linear(part.weight, part.bias) for part in (layer.linear1, layer.linear2))
        self.norms = [FrozenNorm(getattr(layer, f"norm{index + 1}")) for index in range(len(layer.attentions) + 1)]
        self.norm_first = layer.norm_first
        if layer.activation == "relu":
            maximum = self.backend.xp.maximum
            self.activation: Branch = lambda h: maximum(h, 0, out=h)
        else:
            activation = ACTIVATIONS[layer.activation]
            self.activation = lambda h: to_arrays(activation(h))

    def feed(self, x: Any) -> Any:
        """Map each step by the two linear layers."""
        return self.second.map(self.activation(self.first.map(x)))

    def layers(self, *branches: Branch) -> Branch:
        """Return the branches and then the two linear layers, each with its norm, as one."""
        pairs = [(branch, norm.map) for branch, norm in zip((*branches, self.feed), self.norms, strict=True)]
        norm_first = self.norm_first

        def run(x: Any) -> Any:
            for branch, norm in pairs:
                x = residual(x, branch, norm, norm_first)
            return x

        return run

    def width(self, features: int | None) -> int | None:
        return self.in_features

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        return self.attention.initial_state(batch)

    def check_state(self, state: Any, batch: int) -> None:
        self.attention.check_state(state, batch)

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        x, counts, padding = without_padding(x, lengths, self.attention.heads.embed_dim, self.dtype)
        y, after = self._run(x, state, counts)
        y = y if padding is None else blank(y, padding)
        return into(out, y), after

    def _run(self, x: Any, state: Any, counts: Any) -> tuple[Any, Any]:
        def attend(x: Any) -> Any:
            nonlocal state
            y, state = self.attention.attend(x, state, counts)
            return y

        return self.layers(attend)(x), state

    def step(self, state: tuple[Any, ...]) -> Step:
        attend = self.attention.step(state)
        return Kept(self._written(self.layers(lambda x: attend(x, None))), attend.state)

    def _written(self, run: Branch) -> Step:
        """Return a step that writes where it is told to."""

        def step(x: Any, out: Any) -> Any:
            y = run(x)
            return into(out, y)

        return step

    def blocking(self) -> Iterator[str]:
        if not self.streamable:
            yield "TransformerEncoderLayer"


class FrozenDecoderLayer(FrozenEncoderLayer):
    """A `TransformerDecoderLayer`."""

    def __init__(self, layer: TransformerDecoderLayer) -> None:
        super().__init__(layer)
        other = layer.multihead_attn
        self.query, self.key, self.value = (frozen_linear(*other._projection(index)) for index in range(3))
        self.emit = frozen_linear(other.out_proj.weight, other.out_proj.bias)
        self.attend_op = plain_attention(self.backend)

    def initial_state(self, batch: int, memory: Any = None, memory_lengths: Any = None) -> tuple[Any, ...]:
        cache = self.attention.initial_state(batch)
        if memory is None:
            if memory_lengths is not None:
                raise ValueError("memory_lengths: expected None without a memory")
            return cache, ()
        heads = self.attention.heads
        check_array("memory", memory, "B M E", {"B": batch, "E": heads.embed_dim}, self.dtype)
        counts = np.full(batch, memory.shape[1], np.int64)
        if memory_lengths is not None:
            counts = check_lengths("memory_lengths", memory_lengths, batch, memory.shape[1], "M")
            memory = blank(memory, padding_of(memory, counts))
        k, v = (heads.cut(part.map(memory)).swapaxes(1, 2) for part in (self.key, self.value))
        return cache, (k, v, counts)

    def check_state(self, state: Any, batch: int) -> None:
        heads = self.attention.heads
        cache, _ = check_decoder_state(state, batch, heads.num_kv_heads, heads.features, self.dtype)
        self.attention.check_state(cache, batch)

    def attend_to(self, x: Any, kept: Any, counts: Any) -> Any:
        """Attend to a memory that was checked."""
        keys, values, valid = kept
        q = self.attention.heads.cut(self.query.map(x)).swapaxes(1, 2)
        return self.emit.map(merged(self.attend_op(q, keys, values, None, lengths=valid, q_lengths=counts)))

    def _run(self, x: Any, state: Any, counts: Any) -> tuple[Any, Any]:
        heads = self.attention.heads
        cache, kept = check_decoder_state(state, len(x), heads.num_kv_heads, heads.features, self.dtype)
        check_memory(kept, len(x), heads.embed_dim)

        def attend(x: Any) -> Any:
            nonlocal cache
            y, cache = self.attention.attend(x, cache, counts)
            return y

        return self.layers(attend, lambda x: self.attend_to(x, kept, counts))(x), (cache, kept)

    def step(self, state: tuple[Any, ...]) -> Step:
        cache, kept = state
        attend, features = self.attention.step(cache), self.attention.heads.embed_dim
        run = self.layers(lambda x: attend(x, None), lambda x: self.attend_to(x[:, None], kept, None)[:, 0])

        def checked(x: Any) -> Any:
            check_memory(kept, len(x), features)
            return run(x)

        return Kept(self._written(checked), lambda: (attend.state(), kept))


class FrozenTransformer(FrozenSequential):
    """A `Transformer`: its layers and its norm, which has no entry in the state."""

    def __init__(self, layers: list[Part], norm: LayerNorm | None) -> None:
        super().__init__(layers)
        self.norm = None if norm is None else FrozenNorm(norm)

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        parts = self.parts if self.norm is None else [*self.parts, self.norm]
        states = (None,) * len(self.parts) if state is None else state
        y, after = in_turn([(part.stateful, part.run) for part in parts], x, (*states, ())[: len(parts)], lengths)
        return y, after[: len(self.parts)]

    def step(self, state: tuple[Any, ...]) -> Step:
        inner: Any = super().step(state)
        if self.norm is None:
            return inner
        norm = self.norm.run
        return Kept(lambda x, out: norm(inner(x, None), (), None, out)[0], inner.state)
