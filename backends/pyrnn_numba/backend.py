"""The backend's class."""

from __future__ import annotations

from numba.core import config

from pyrnn import Backend, BackendUnavailableError
from pyrnn.backend import Claim

from .attention import AttentionOps
from .conv import ConvOps
from .recurrent import RecurrentOps
from .vector import HAS_FMA

INVARIANT = Claim(invariances=frozenset({"threads", "batch", "chunk", "weight gradients"}))


class NumbaBackend(RecurrentOps, AttentionOps, ConvOps, Backend):
    """Kernels compiled by Numba, forward and backward, on several threads, in float32 and float64."""

    name = "numba"
    note = (
        "compiles at first use, up to half a minute a family and dtype, and keeps that on disk: "
        "later processes start in under a second"
    )
    claims = dict.fromkeys(
        ("rnn", "lstm", "gru", "attention", "additive_attention", "multiplicative_attention", "causal_conv1d"),
        INVARIANT,
    )

    def __init__(self) -> None:
        if config.DISABLE_JIT:
            raise BackendUnavailableError(self.name, "NUMBA_DISABLE_JIT is set, and nothing here runs uncompiled")
        if not HAS_FMA:
            raise BackendUnavailableError(
                self.name, "this CPU has no fused multiply-add, which its kernels are made of"
            )
