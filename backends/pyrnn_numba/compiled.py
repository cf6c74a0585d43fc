"""What every compiled kernel has: how it is compiled and kept on disk, and its share of the work."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from numba import njit

# Numba keeps compiled kernels as long as the file that they stand in is the same. The other files count too: their
# digest is a default argument of each kernel, and so part of what a compiled one is found by.
SOURCES = int.from_bytes(
    sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))).digest()[:7]
)
kernel = njit(nogil=True, cache=True, error_model="numpy")


@njit
def share(first, last, grain, part, parts):
    """Return a part of a range, cut at multiples of a grain."""
    grains = (last - first + grain - 1) // grain
    return min(first + grains * part // parts * grain, last), min(first + grains * (part + 1) // parts * grain, last)
