"""A small reverse-mode tape over arrays: `Tensor`, the functions on it, `no_grad`."""

from . import functions
from .tape import is_recording, no_grad
from .tensor import Tensor, detach, record, to_arrays

__all__ = ["Tensor", "detach", "functions", "is_recording", "no_grad", "record", "to_arrays"]
