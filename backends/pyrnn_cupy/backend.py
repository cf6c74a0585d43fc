"""The backend's class."""

from __future__ import annotations

import cupy

from pyrnn import Backend
from pyrnn.backend import Claim

from .attention import AttentionOps
from .basic import BasicOps
from .conv import ConvOps
from .recurrent import RecurrentOps
from .update import UpdateOps

OPS = (
    "rnn", "lstm", "gru", "attention", "additive_attention", "multiplicative_attention", "causal_conv1d",
    "linear", "layer_norm", "softmax", "embedding", "cross_entropy",
)  # fmt: skip


class CupyBackend(RecurrentOps, AttentionOps, ConvOps, BasicOps, UpdateOps, Backend):
    """CUDA kernels on CuPy arrays, forward and backward, in float32 and float64, on the current device and stream."""

    name = "cupy"
    xp = cupy
    array_type = cupy.ndarray
    compute_modes = ("tf32", "bfloat16")
    note = "compiles its kernels for the sizes met, seconds each, and keeps them on disk"
    claims = dict.fromkeys(OPS, Claim())
