"""The default backend: one class that gathers the families of the compiled core."""

from __future__ import annotations

from typing import Any

from ..backend import Backend, Claim

try:
    from .attention import AttentionOps
    from .basic import BasicOps
    from .memory import empty
    from .recurrent import RecurrentOps
    from .update import UpdateOps
except ModuleNotFoundError as error:
    raise ImportError(
        f"the compiled core of pyrnn is missing ({error}). In a source tree it is built by `pip install -e .`; after "
        "`pip install .`, start Python elsewhere, as the folder in front of you comes before the installed package. "
        'The slow NumPy reference needs no core: backend="reference"'
    ) from error


class CythonBackend(RecurrentOps, AttentionOps, BasicOps, UpdateOps, Backend):
    """C kernels through Cython, on all the CPU's threads."""

    name = "cython"
    claims = dict.fromkeys(
        (
            "rnn",
            "lstm",
            "gru",
            "attention",
            "additive_attention",
            "multiplicative_attention",
            "linear",
            "layer_norm",
            "softmax",
            "embedding",
            "cross_entropy",
        ),
        Claim(invariances=frozenset({"threads", "batch", "chunk", "weight gradients"})),
    )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return empty(shape, dtype)
