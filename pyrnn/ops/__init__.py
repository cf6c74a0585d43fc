"""Floor 2: one public function per op, and the declaration behind it. This package exports its modules."""

from . import basic, recurrent
from .declaration import OPS, Op, vjp

__all__ = ["OPS", "Op", "basic", "recurrent", "vjp"]
