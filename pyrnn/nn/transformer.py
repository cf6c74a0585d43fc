"""Transformer layers of attention and a small network each, and a causal stack of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, Unpack

import numpy as np

from .._checks import check_choice, check_count, check_flag
from ..autograd import Tensor
from ._checks import check_probability, check_states
from ._sequence import blank, in_turn, without_padding
from .attention import MultiHeadAttention
from .frozen import Part
from .frozen_transformer import (
    ACTIVATIONS,
    FrozenDecoderLayer,
    FrozenEncoderLayer,
    FrozenTransformer,
    check_decoder_state,
    check_memory,
    residual,
)
from .init import Seed
from .layers import LayerNorm, Linear, as_tensor, dropout
from .module import SequenceLayer, Shapes, inside, registered, whole


class TransformerOptions(TypedDict, total=False):
    """The options that all layers have; `TransformerLayer` explains them."""

    dropout: float
    activation: str
    norm_first: bool
    layer_norm_eps: float
    num_kv_heads: int | None
    window: tuple[int | None, int | None] | None
    positions: str | None
    max_length: int | None
    dtype: Any
    rng: Seed


class TransformerLayer(SequenceLayer):
    """What the two layers share: attention among the steps, and a network of two linear layers on each.

    Parameters
    ----------
    d_model : int
        E, the features that come in and go out.
    nhead : int
        H, which divides E.
    dim_feedforward : int
        The features between the two linear layers.
    dropout : float
        Probability below 1 with which, in training, is dropped: a weight of attention, an element of what a branch
        gives, an element between the two linear layers.
    activation : {"relu", "gelu", "gelu_tanh"}
        Between the two linear layers; "gelu_tanh" is the near form of "gelu" by tanh.
    norm_first : bool
        Normalise what goes into a branch (Xiong et al. (2020), "On Layer Normalization in the Transformer
        Architecture"), and not the sums.
    layer_norm_eps : float
    num_kv_heads, window, positions, max_length : optional
        Of the attention among the steps; see `MultiHeadAttention`.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the weights, and then drops.

    References
    ----------
    Vaswani et al. (2017), "Attention Is All You Need".
    """

    attentions: tuple[str, ...] = ("self_attn",)
    norm1: LayerNorm
    norm2: LayerNorm

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        *,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        num_kv_heads: int | None = None,
        window: tuple[int | None, int | None] | None = None,
        positions: str | None = None,
        max_length: int | None = None,
        causal: bool = False,
        dtype: Any = "float32",
        rng: Seed = None,
    ) -> None:
        self.dropout = check_probability("dropout", dropout)
        self.norm_first = check_flag("norm_first", norm_first)
        self.activation = check_choice("activation", activation, tuple(ACTIVATIONS))
        features = check_count("dim_feedforward", dim_feedforward)
        self.generator = np.random.default_rng(rng)
        shared: dict[str, Any] = {
            "num_kv_heads": num_kv_heads,
            "dropout": dropout,
            "dtype": dtype,
            "rng": self.generator,
        }
        self.self_attn = MultiHeadAttention(
            d_model, nhead, causal=causal, window=window, positions=positions, max_length=max_length, **shared
        )
        if "multihead_attn" in self.attentions:
            self.multihead_attn = MultiHeadAttention(d_model, nhead, **shared)
        self.linear1 = Linear(d_model, features, dtype=dtype, rng=self.generator)
        self.linear2 = Linear(features, d_model, dtype=dtype, rng=self.generator)
        for index in range(len(self.attentions) + 1):
            setattr(self, f"norm{index + 1}", LayerNorm(d_model, layer_norm_eps, dtype=dtype))
        inner = self.self_attn.config
        self.config: dict[str, Any] = {
            "d_model": inner["embed_dim"],
            "nhead": inner["num_heads"],
            "dim_feedforward": features,
            "dropout": self.dropout,
            "activation": self.activation,
            "norm_first": self.norm_first,
            "layer_norm_eps": self.norm1.eps,
            **{name: inner[name] for name in ("num_kv_heads", "window", "positions", "max_length", "dtype")},
        }

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        width, features = whole(config, "d_model"), whole(config, "dim_feedforward")
        attention = {
            "embed_dim": width, "num_heads": config["nhead"], "num_kv_heads": config["num_kv_heads"],
            "kdim": width, "vdim": width, "bias": True,
        }  # fmt: skip
        for name in cls.attentions:
            yield from inside(name, MultiHeadAttention, **attention)
        yield from inside("linear1", Linear, in_features=width, out_features=features, bias=True)
        yield from inside("linear2", Linear, in_features=features, out_features=width, bias=True)
        for index in range(len(cls.attentions) + 1):
            yield from inside(f"norm{index + 1}", LayerNorm, normalized_shape=width)

    @property
    def streamable(self) -> bool:
        """True if its steps attend to none after them."""
        return self.self_attn.streamable

    def _dropped(self, x: Any) -> Any:
        return dropout(x, self.dropout, self.generator) if self.training and self.dropout else x

    def _feed(self, x: Any) -> Any:
        """Map each step by the two linear layers."""
        return self._dropped(self.linear2(self._dropped(ACTIVATIONS[self.activation](self.linear1(x)))))


@registered
class TransformerEncoderLayer(TransformerLayer):
    """Attention among the steps, then a network of two linear layers on each, both added to what came in.

    With ``causal`` its state is that of its attention, a KV cache ``(k, v, position, start)``; else it is ``()``, and
    the layer needs the whole sequence.

    Parameters
    ----------
    causal : bool
        No step attends to a later one.
    d_model, nhead, dim_feedforward : int
    dropout, activation, norm_first, layer_norm_eps, num_kv_heads, window, positions, max_length, dtype, rng : optional
        By keyword; defaults 0.1, "relu", False, 1e-5, None, None, None, None, "float32", None. `TransformerLayer`
        explains them.

    Attributes
    ----------
    self_attn : MultiHeadAttention
    linear1, linear2 : Linear
    norm1, norm2 : LayerNorm
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        *,
        causal: bool = False,
        **options: Unpack[TransformerOptions],
    ) -> None:
        super().__init__(d_model, nhead, dim_feedforward, causal=causal, **options)
        self.config["causal"] = self.self_attn.heads.causal

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for."""
        return self.self_attn.initial_state(batch)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, E)
        state : optional
            Of a causal layer ``(k, v, position, start)`` before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

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
        attention = self.self_attn
        x, counts, padding = without_padding(x, lengths, attention.heads.embed_dim, self.linear1.weight.dtype)
        after = attention.checked_state(state, x.shape[0])

        def attend(x: Any) -> Any:
            nonlocal after
            y, after = attention.attend(x, after, counts, attention.op())
            return self._dropped(y)

        y = residual(as_tensor(x), attend, self.norm1, self.norm_first)
        y = residual(y, self._feed, self.norm2, self.norm_first)
        return (y if padding is None else blank(y, padding)), after

    def _freeze(self) -> Part:
        return FrozenEncoderLayer(self)


@registered
class TransformerDecoderLayer(TransformerLayer):
    """Causal attention among the steps, attention to a memory, and a network of two linear layers, each added in turn.

    Its state is ``(cache, memory)``: the KV cache ``(k, v, position, start)`` of its own steps, and the memory's keys
    and values with how many of them each row has, ``(k, v, length)``. A memory is given once, and the state carries it
    on; with a tape, until it is detached.

    Parameters
    ----------
    d_model, nhead, dim_feedforward : int
    dropout, activation, norm_first, layer_norm_eps, num_kv_heads, window, positions, max_length, dtype, rng : optional
        By keyword; defaults 0.1, "relu", False, 1e-5, None, None, None, None, "float32", None. `TransformerLayer`
        explains them.

    Attributes
    ----------
    self_attn, multihead_attn : MultiHeadAttention
        Among the steps, and to the memory.
    linear1, linear2 : Linear
    norm1, norm2, norm3 : LayerNorm
    """

    attentions = ("self_attn", "multihead_attn")
    norm3: LayerNorm

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, **options: Unpack[TransformerOptions]
    ) -> None:
        super().__init__(d_model, nhead, dim_feedforward, causal=True, **options)

    def initial_state(self, batch: int, memory: Any = None, memory_lengths: Any = None) -> tuple[Any, ...]:
        """Return the state before the first step.

        Parameters
        ----------
        batch : int
        memory : array or Tensor, shape (B, M, E), optional
            Without it the first call is to give one.
        memory_lengths : integers (B,), optional
            The valid steps of each row of the memory.
        """
        if memory is None and memory_lengths is not None:
            raise ValueError("memory_lengths: expected None without a memory")
        kept = () if memory is None else self.multihead_attn.remember(memory, memory_lengths, batch)
        return self.self_attn.initial_state(batch), kept

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        memory: Any = None,
        memory_lengths: Any = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, E)
        state : ``(cache, memory)``, optional
            That before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.
        memory : array or Tensor, shape (B, M, E), optional
            In place of the one in the state, or where that has none.
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
            An argument of the wrong kind, dtype or shape, more steps than ``max_length``, or no memory; the message
            names it.
        """
        attention = self.self_attn
        x, counts, padding = without_padding(x, lengths, attention.heads.embed_dim, self.linear1.weight.dtype)
        batch = x.shape[0]
        cache, kept = check_decoder_state(state, batch, attention.heads.num_kv_heads, attention.heads.features, x.dtype)
        after = attention.checked_state(cache, batch)
        if memory is not None:
            kept = self.multihead_attn.remember(memory, memory_lengths, batch)
        elif memory_lengths is not None:
            raise ValueError("memory_lengths: expected None without a memory")
        check_memory(kept, batch, attention.heads.embed_dim)

        def attend(x: Any) -> Any:
            nonlocal after
            y, after = attention.attend(x, after, counts, attention.op())
            return self._dropped(y)

        def attend_to_memory(x: Any) -> Any:
            other = self.multihead_attn
            return self._dropped(other.attend_to(x, kept, counts, other.op()))

        y = residual(as_tensor(x), attend, self.norm1, self.norm_first)
        y = residual(y, attend_to_memory, self.norm2, self.norm_first)
        y = residual(y, self._feed, self.norm3, self.norm_first)
        return (y if padding is None else blank(y, padding)), (after, kept)

    def _freeze(self) -> Part:
        return FrozenDecoderLayer(self)


@registered
class Transformer(SequenceLayer):
    """A causal stack of encoder layers, as language models are: it runs in chunks, and step by step, from its state.

    The state has one entry ``(k, v, position, start)`` per layer.

    Parameters
    ----------
    num_layers : int
    d_model, nhead, dim_feedforward : int
    final_norm : bool, optional
        Whether what comes out of the last layer is normalised: as ``norm_first`` by default, which leaves it as it is.
    dropout, activation, norm_first, layer_norm_eps, num_kv_heads, window, positions, max_length, dtype, rng : optional
        By keyword; defaults 0.1, "relu", False, 1e-5, None, None, None, None, "float32", None. `TransformerLayer`
        explains them.

    Attributes
    ----------
    layers : list of TransformerEncoderLayer
    norm : LayerNorm or None

    Examples
    --------
    >>> model = Sequential(
    ...     Embedding(256, 64), Transformer(2, 64, 4, 128, positions="rotary", norm_first=True), Linear(64, 256)
    ... )
    >>> y, state = model.predict(np.array([[72, 101, 108]]))
    >>> y, state = model.predict(np.array([[108]]), state)
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        *,
        final_norm: bool | None = None,
        **options: Unpack[TransformerOptions],
    ) -> None:
        if "causal" in options:
            raise TypeError(
                "causal: a Transformer always is; a stack that is not is a Sequential of TransformerEncoderLayers"
            )
        options["rng"] = np.random.default_rng(options.get("rng"))
        self.layers = [
            TransformerEncoderLayer(d_model, nhead, dim_feedforward, causal=True, **options)
            for _ in range(check_count("num_layers", num_layers))
        ]
        inner = self.layers[0].config
        normed = inner["norm_first"] if final_norm is None else check_flag("final_norm", final_norm)
        self.norm = LayerNorm(d_model, inner["layer_norm_eps"], dtype=inner["dtype"]) if normed else None
        self.config: dict[str, Any] = {
            "num_layers": int(num_layers),
            **{name: value for name, value in inner.items() if name != "causal"},
            "final_norm": normed,
        }

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a stack with this `config`."""
        for index in range(whole(config, "num_layers")):
            yield from inside(f"layers.{index}", TransformerEncoderLayer, **config)
        if config["final_norm"]:
            yield from inside("norm", LayerNorm, normalized_shape=config["d_model"])

    @property
    def streamable(self) -> bool:
        """True: no step attends to a later one."""
        return True

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for."""
        return tuple(layer.initial_state(batch) for layer in self.layers)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, E)
        state : tuple with one entry ``(k, v, position, start)`` per layer, optional
            That before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : shape (B, T, E)
        state
            That after the last valid step, in the same form.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong kind, dtype or shape, or more steps than ``max_length``; the message names it.
        """
        names = ["TransformerEncoderLayer"] * len(self.layers)
        states = check_states(state, names, [True] * len(names))
        calls = [(True, _call(layer)) for layer in self.layers]
        if self.norm is None:
            return in_turn(calls, x, states, lengths)
        norm = self.norm
        y, after = in_turn([*calls, (False, lambda x, *_: (norm(x), ()))], x, (*states, ()), lengths)
        return y, after[:-1]

    def _freeze(self) -> Part:
        return FrozenTransformer([layer._freeze() for layer in self.layers], self.norm)


def _call(layer: TransformerEncoderLayer) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    return lambda x, state, lengths: layer(x, state, lengths=lengths)
