"""The default backend: one class that gathers the families of the compiled core."""

from __future__ import annotations

from ..backend import Backend, Claim

try:
    from .basic import LinearOps
    from .recurrent import RecurrentOps
except ModuleNotFoundError as error:
    raise ImportError(
        f"the compiled core of pyrnn is missing ({error}); build it with `pip install .` in the source tree, "
        'or ask for the slow NumPy reference: backend="reference"'
    ) from error

INVARIANT = Claim(invariances=frozenset({"threads", "batch", "chunk", "weight gradients"}))


class CythonBackend(RecurrentOps, LinearOps, Backend):
    """C kernels through Cython, on all the CPU's threads; the basic ops beside `linear` are NumPy's."""

    name = "cython"
    claims = {
        **dict.fromkeys(("rnn", "lstm", "gru", "linear"), INVARIANT),
        **dict.fromkeys(("layer_norm", "softmax", "embedding", "cross_entropy"), Claim()),
    }
