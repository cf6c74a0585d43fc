"""The reference backend: one class that gathers the families."""

from __future__ import annotations

from ..backend import Backend, Claim
from .recurrent import RecurrentOps


class ReferenceBackend(RecurrentOps, Backend):
    """Plain NumPy. BLAS adds in an order of its own, so no bitwise invariance is claimed."""

    name = "reference"
    claims = {
        op: Claim() for op in ("rnn", "lstm", "gru", "linear", "layer_norm", "softmax", "embedding", "cross_entropy")
    }
