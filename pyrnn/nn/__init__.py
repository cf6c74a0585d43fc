"""Layers, models, initialisers and losses.

- `module`: `Module`, `Parameter`, and `SequenceLayer`, the state protocol.
- `recurrent`: `RNN`, `LSTM`, `GRU`.
- `conv`, `tcn`, `wavenet`: `CausalConv1d` and the stacks made of it, `TCN` and `WaveNet`.
- `attention`, `transformer`: `MultiHeadAttention`, `TransformerEncoderLayer`, `TransformerDecoderLayer`, `Transformer`.
- `positions`: `SinusoidalPositions`, `LearnedPositions`.
- `layers`: `Linear`, `Embedding`, `LayerNorm`, `Dropout`, activations, `Sequential`.
- `init`: what parameters are filled with.
- `losses`: means over the valid elements.
"""

from __future__ import annotations

from . import init, losses
from .attention import MultiHeadAttention
from .conv import CausalConv1d
from .layers import Dropout, Embedding, LayerNorm, Linear, ReLU, Sequential, Sigmoid, Tanh
from .losses import binary_cross_entropy_with_logits, cross_entropy, huber_loss, l1_loss, mse_loss
from .module import REGISTRY, Module, Parameter, SequenceLayer
from .positions import LearnedPositions, SinusoidalPositions
from .recurrent import GRU, LSTM, RNN
from .tcn import TCN
from .transformer import Transformer, TransformerDecoderLayer, TransformerEncoderLayer
from .wavenet import WaveNet

__all__ = [
    "GRU",
    "LSTM",
    "REGISTRY",
    "RNN",
    "TCN",
    "CausalConv1d",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "LearnedPositions",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "Parameter",
    "ReLU",
    "SequenceLayer",
    "Sequential",
    "Sigmoid",
    "SinusoidalPositions",
    "Tanh",
    "Transformer",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "WaveNet",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "init",
    "l1_loss",
    "losses",
    "mse_loss",
]
