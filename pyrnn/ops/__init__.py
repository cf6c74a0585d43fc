"""Floor 2: one public function per op, and the declaration behind it. This package exports its modules."""

from . import attention, basic, conv, recurrent
from .declaration import OPS, Op, vjp

__all__ = ["OPS", "Op", "attention", "basic", "conv", "recurrent", "vjp"]
