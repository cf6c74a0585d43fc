"""pyrnn: sequence models on arrays, without a deep-learning framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .autograd import Tensor, detach, no_grad
from .backend import Backend, BackendUnavailableError, backends, get_backend, use_backend
from .config import empty_cache, show_config
from .dlpack import from_dlpack
from .ops import vjp
from .ops.attention import additive_attention, attention, multiplicative_attention
from .ops.basic import cross_entropy, embedding, layer_norm, linear, softmax
from .ops.conv import causal_conv1d
from .ops.recurrent import gru, lstm, rnn
from .threads import get_num_threads, num_threads, set_num_threads

if TYPE_CHECKING:
    from . import autograd, data, io, nn, ops, optim, reference, testing

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "Tensor",
    "__version__",
    "additive_attention",
    "attention",
    "autograd",
    "backends",
    "causal_conv1d",
    "cross_entropy",
    "data",
    "detach",
    "embedding",
    "empty_cache",
    "from_dlpack",
    "get_backend",
    "get_num_threads",
    "gru",
    "io",
    "layer_norm",
    "linear",
    "lstm",
    "multiplicative_attention",
    "nn",
    "no_grad",
    "num_threads",
    "ops",
    "optim",
    "reference",
    "rnn",
    "set_num_threads",
    "show_config",
    "softmax",
    "testing",
    "use_backend",
    "vjp",
]


def __getattr__(name: str) -> Any:
    # The upper floors are imported when they are first used: `import pyrnn` stays as quick as numpy's.
    if name in ("data", "io", "nn", "optim", "testing"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'pyrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
