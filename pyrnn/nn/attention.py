"""Attention by heads as a layer: over its own steps, with a KV cache as state, or over a memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from .._checks import check_count, check_flag, check_lengths
from ..autograd import Tensor, no_grad, to_arrays
from ..autograd.tape import is_recording
from ..autograd.tensor import namespace
from ..ops import basic
from ..ops.attention import attention
from . import init
from ._checks import check_array, check_dtype, check_probability
from ._sequence import blank, padding_of, without_padding
from .cache import check_cache, initial_cache
from .frozen import Part
from .frozen_attention import FrozenAttention
from .heads import Attend, check_heads, merged
from .init import Seed
from .layers import Linear
from .module import Parameter, SequenceLayer, Shapes, as_in_eval, inside, registered, whole


@registered
class MultiHeadAttention(SequenceLayer):
    """Attention by heads, over the layer's own input or over a memory; see `pyrnn.attention` for the formula.

    With ``causal`` a step attends to itself and to what came before it, and the layer's state is a KV cache
    ``(k, v, position, start)``: k and v (B, Hkv, M, D) have a row's keys and values from its position ``start`` (B,)
    on, ``position`` (B,) is how many steps it has had. What stands past a row's last key is no part of the state. A
    cache is continued without being copied, so k and v can't be written to: reset a row by giving it position and start
    0, or in a copy. While a tape records, as in training, k and v are Tensors on it, and each call copies what they
    hold.

    Else the state is ``()``, and ``x`` the whole sequence; or, with a ``memory``, queries to it.

    Parameters
    ----------
    embed_dim : int
        E, the features that come in and go out.
    num_heads : int
        H, which divides E: a head has D = E/H features.
    num_kv_heads : int, optional
        Hkv, which divides H: so many heads of keys and values, each for H/Hkv heads of queries (Ainslie et al. (2023),
        "GQA"). H by default.
    kdim, vdim : int, optional
        The features of the memory's keys and values. E by default; with others the layer attends to a memory alone.
    bias : bool
    dropout : float
        Probability below 1 with which, in training, a weight of attention is dropped.
    causal : bool
        No step attends to a later one.
    window : (left, right), optional
        How far before and after itself a step attends; None is no limit. With ``causal`` right counts as 0, and the
        state lets go of keys that no later step will see: it grows with the window and not with the steps.
    positions : {None, "rotary", "alibi"}
        What tells attention how far keys are: queries and keys rotated, each pair of neighbouring features as one plane
        (Su et al. (2021), "RoFormer"), or a bias that falls with the distance (Press et al. (2022), "Train Short, Test
        Long"). None tells it nothing: add `SinusoidalPositions` or `LearnedPositions` to the input.
    max_length : int, optional
        The most steps that a causal layer without a window takes in a row; more are an error. None is no bound.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the weights, uniformly as Glorot and Bengio (2010) and PyTorch do, and then drops.

    Attributes
    ----------
    in_proj_weight : Parameter, shape (E + 2·Hkv·D, E)
        Of queries, keys and values. With a kdim or vdim that is not E it is three: q_proj_weight (E, E), k_proj_weight
        (Hkv·D, kdim), v_proj_weight (Hkv·D, vdim).
    in_proj_bias : Parameter, shape (E + 2·Hkv·D,), or None
    out_proj : Linear
        E to E.

    References
    ----------
    Vaswani et al. (2017), "Attention Is All You Need".
    """

    in_proj_weight: Parameter
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        window: tuple[int | None, int | None] | None = None,
        positions: str | None = None,
        max_length: int | None = None,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.heads = check_heads(embed_dim, num_heads, num_kv_heads, causal, window, positions, max_length)
        self.dropout = check_probability("dropout", dropout)
        if self.dropout == 1:
            raise ValueError(f"dropout: expected a probability below 1, got {dropout!r}")
        kind = check_dtype(dtype)
        self.config: dict[str, Any] = {
            "embed_dim": self.heads.embed_dim,
            "num_heads": self.heads.num_heads,
            "num_kv_heads": self.heads.num_kv_heads,
            "kdim": self.heads.embed_dim if kdim is None else check_count("kdim", kdim),
            "vdim": self.heads.embed_dim if vdim is None else check_count("vdim", vdim),
            "bias": check_flag("bias", bias),
            "dropout": self.dropout,
            "causal": self.heads.causal,
            "window": None if self.heads.window is None else list(self.heads.window),
            "positions": self.heads.positions,
            "max_length": self.heads.max_length,
            "dtype": str(kind),
        }
        self.self_attending = self.config["kdim"] == self.config["vdim"] == self.heads.embed_dim
        if not self.self_attending and (causal or window is not None or positions is not None):
            raise ValueError(
                f"kdim, vdim: expected E = {embed_dim} of a layer that is causal or has a window or positions, "
                f"got {kdim} and {vdim}"
            )
        self.generator = np.random.default_rng(rng)
        for name, shape in self.parameter_shapes(self.config):
            if not name.startswith("out_proj."):
                parameter = Parameter(np.empty(shape, kind))
                setattr(self, name, parameter)
                if name == "in_proj_bias":
                    init.zeros_(parameter)
                else:
                    bound = math.sqrt(6 / sum(shape))
                    init.uniform_(parameter, -bound, bound, rng=self.generator)
        if not bias:
            self.in_proj_bias = None
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=kind, rng=self.generator)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`, its out_proj's too."""
        names = ("embed_dim", "num_heads", "num_kv_heads", "kdim", "vdim")
        embed, heads, shared, kdim, vdim = (whole(config, name) for name in names)
        keys = embed // heads * shared
        if kdim == vdim == embed:
            yield "in_proj_weight", (embed + 2 * keys, embed)
        else:
            yield from (("q_proj_weight", (embed, embed)), ("k_proj_weight", (keys, kdim)))
            yield "v_proj_weight", (keys, vdim)
        if config["bias"]:
            yield "in_proj_bias", (embed + 2 * keys,)
        yield from inside("out_proj", Linear, in_features=embed, out_features=embed, bias=config["bias"])

    # --- running ---------------------------------------------------------------------------------------------

    @property
    def streamable(self) -> bool:
        """True if it is causal: else the whole sequence is needed for its first output."""
        return self.heads.causal

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for: of a causal layer a cache that holds nothing, else ()."""
        check_count("batch", batch, minimum=0)
        if not self.heads.causal:
            return ()
        weight = self.out_proj.weight
        return initial_cache(batch, self.heads.num_kv_heads, self.heads.features, weight.dtype, namespace(weight.data))

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        memory: Any = None,
        memory_lengths: Any = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Attend over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, E)
        state : optional
            Of a causal layer ``(k, v, position, start)`` before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.
        memory : array or Tensor, shape (B, M, E), optional
            What to attend to in place of ``x``: both keys and values, or a pair of them, (B, M, kdim) and (B, M, vdim).
        memory_lengths : integers (B,), optional
            The valid steps of each row of the memory.

        Returns
        -------
        y : shape (B, T, E)
        state
            That after the last valid step.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong kind, dtype or shape, or more steps than ``max_length``; the message names it.
        """
        x, counts, padding = without_padding(x, lengths, self.heads.embed_dim, self.out_proj.weight.dtype)
        op = self.op()
        state = self.checked_state(state, x.shape[0])
        if memory is None:
            if memory_lengths is not None:
                raise ValueError("memory_lengths: expected None without a memory")
            y, after = self.attend(x, state, counts, op)
        else:
            y, after = self.attend_to(x, self.remember(memory, memory_lengths, x.shape[0]), counts, op), ()
        return (y if padding is None else blank(y, padding)), after

    def attention_weights(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        memory: Any = None,
        memory_lengths: Any = None,
    ) -> Any:
        """Return the weights with which a call attends, for looking at them: as in eval mode, without a tape.

        Parameters
        ----------
        x, state, lengths, memory, memory_lengths
            As the layer itself takes them.

        Returns
        -------
        array, shape (B, H, T, M)
            Each query's weights add up to 1; those of a query that may attend to nothing, as in padding, are 0. Key 0
            stands at the position ``start`` of the row where there is a state, else it is the first one.
        """
        found = []

        def look(q: Any, k: Any, v: Any, bias: Any, **options: Any) -> Any:
            q, k, v, bias = to_arrays((q, k, v, bias))
            xp, keys = namespace(q), k.shape[2]
            one = xp.broadcast_to(xp.eye(keys, dtype=q.dtype), (*k.shape[:2], keys, keys))
            found.append(attention(q, k, one, bias, **options))  # values of which each is its key's own place
            return attention(q, k, v, bias, **options)

        with as_in_eval(), no_grad():
            x, counts, _ = without_padding(x, lengths, self.heads.embed_dim, self.out_proj.weight.dtype)
            if memory is None:
                # A copy: what is only looked at leaves the cache its place to grow.
                start = tuple(leaf.copy() for leaf in to_arrays(self.checked_state(state, x.shape[0])))
                self.attend(x, start, counts, look)
            else:
                self.attend_to(x, self.remember(memory, memory_lengths, x.shape[0]), counts, look)
            return found[0] if len(found) == 1 else namespace(found[0]).concatenate(found, axis=2)

    def attend(self, x: Any, state: Any, counts: Any, op: Attend) -> tuple[Tensor, Any]:
        """Attend among the steps of what was checked; what comes of padding is not blanked."""
        if not self.self_attending:
            raise ValueError(
                f"memory: expected one, as kdim = {self.config['kdim']} and vdim = {self.config['vdim']} "
                f"are not E = {self.heads.embed_dim}, got None"
            )
        projected = basic.linear(x, self.in_proj_weight, self.in_proj_bias)
        grown = (projected, *state[:2])
        if not (is_recording() and any(isinstance(part, Tensor) and part.requires_grad for part in grown)):
            projected, state = to_arrays((projected, state))
        y, after = self.heads.attend(projected, state, counts, op)
        if isinstance(projected, Tensor) or not self.heads.causal:
            return self.out_proj(merged(y)), after
        return self.out_proj(merged(y)), (Tensor(after[0]), Tensor(after[1]), *after[2:])

    def remember(self, memory: Any, lengths: Any, batch: int) -> tuple[Any, Any, Any]:
        """Return the keys and values of a memory, each (B, Hkv, M, D), and how many of each row are valid (B,)."""
        heads = self.heads
        if heads.causal or heads.window is not None or heads.positions is not None:
            raise ValueError("memory: expected None of a layer that is causal or has a window or positions")
        pair = isinstance(memory, tuple)
        if pair and len(memory) != 2:
            raise ValueError(f"memory: expected an array or a pair (keys, values), got a tuple of {len(memory)}")
        keys, values = memory if pair else (memory, memory)
        sizes: dict[str, Any] = {"B": batch, "kdim": self.config["kdim"], "vdim": self.config["vdim"]}
        dtype = self.out_proj.weight.dtype
        check_array("memory[0] (keys)" if pair else "memory", keys, "B M kdim", sizes, dtype)
        check_array("memory[1] (values)" if pair else "memory", values, "B M vdim", sizes, dtype)
        size = keys.shape[1]
        counts = np.full(batch, size, np.int64)
        if lengths is not None:
            counts = check_lengths("memory_lengths", lengths, batch, size, "M")
            padding = padding_of(keys, counts)
            keys, values = blank(keys, padding), blank(values, padding)
        k, v = (basic.linear(part, *self._projection(index)) for index, part in ((1, keys), (2, values)))
        return heads.cut(k).swapaxes(1, 2), heads.cut(v).swapaxes(1, 2), counts

    def attend_to(self, x: Any, memory: tuple[Any, Any, Any], counts: Any, op: Attend) -> Tensor:
        """Attend to what `remember` gave; what comes of padding is not blanked."""
        keys, values, valid = memory
        q = self.heads.cut(basic.linear(x, *self._projection(0))).swapaxes(1, 2)
        return self.out_proj(merged(op(q, keys, values, None, lengths=valid, q_lengths=counts)))

    def _projection(self, index: int) -> tuple[Any, Any]:
        """Return the weight and bias of queries (0), keys (1) or values (2)."""
        first = (0, self.heads.embed_dim, self.heads.embed_dim + self.heads.kv_dim)[index]
        rows = slice(first, first + (self.heads.kv_dim if index else self.heads.embed_dim))
        weight = self.in_proj_weight[rows] if self.self_attending else getattr(self, f"{'qkv'[index]}_proj_weight")
        return weight, None if self.in_proj_bias is None else self.in_proj_bias[rows]

    def op(self) -> Attend:
        """Return the op of a call: in training one that drops, by a seed of its own."""
        if not (self.training and self.dropout):
            return attention
        return partial(attention, dropout=self.dropout, seed=int(self.generator.integers(2**64, dtype=np.uint64)))

    def checked_state(self, state: Any, batch: int) -> tuple[Any, ...]:
        """Return the state that a call begins at."""
        if not self.heads.causal:
            if state is not None and state != ():
                raise ValueError(f"state: expected () of a layer that is not causal, got a {type(state).__name__}")
            return ()
        if state is None:
            return self.initial_state(batch)
        return check_cache(state, batch, self.heads.num_kv_heads, self.heads.features, self.out_proj.weight.dtype)

    def _freeze(self) -> Part:
        if not self.self_attending:
            raise ValueError(
                "freeze: a MultiHeadAttention with a kdim or vdim of its own attends to a memory alone, and a frozen "
                "model has none to give; freeze a TransformerDecoderLayer"
            )
        return FrozenAttention(self)
