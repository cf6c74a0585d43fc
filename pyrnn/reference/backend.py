"""The reference backend: one class that gathers the families."""

from __future__ import annotations

from ..backend import Backend, Claim
from .attention import AttentionOps
from .conv import ConvOps
from .recurrent import RecurrentOps


class ReferenceBackend(RecurrentOps, AttentionOps, ConvOps, Backend):
    """Plain NumPy. BLAS adds in an order of its own, so no bitwise invariance is claimed."""

    name = "reference"
    claims = dict.fromkeys(
        (
            "rnn", "lstm", "gru", "attention", "additive_attention", "multiplicative_attention", "causal_conv1d",
            "linear", "layer_norm", "softmax", "embedding", "cross_entropy",
        ),
        Claim(),
    )  # fmt: skip
