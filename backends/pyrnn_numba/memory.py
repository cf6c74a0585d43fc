"""The memory of a call, as kernels know it: by address, in rows of whole vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from .vector import VECTOR_BYTES

Array = np.ndarray


def address(array: Array | None) -> int:
    return 0 if array is None else array.__array_interface__["data"][0]


def padded(count: int, itemsize: int) -> int:
    """Return the bytes of a row of so many elements, in whole vectors."""
    return -(-count * itemsize // VECTOR_BYTES) * VECTOR_BYTES


class Memory:
    """The memory that a call's kernels know by address, alive as long as this is."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.unit = dtype.type(0)
        self.lanes = VECTOR_BYTES // dtype.itemsize
        self.kept: list[Array] = []

    def rows(self, *shapes: tuple[int, int] | None, zero: bool = False) -> list[int]:
        """Allocate blocks of rows of a size in bytes, whole vectors; return their addresses, 0 for None."""
        sizes = [0 if shape is None else shape[0] * shape[1] for shape in shapes]
        memory = (np.zeros if zero else np.empty)(sum(sizes) + VECTOR_BYTES, np.uint8)
        self.kept.append(memory)
        at = padded(address(memory), 1)
        found = []
        for shape, size in zip(shapes, sizes, strict=True):
            found.append(0 if shape is None else at)
            at += size
        return found
