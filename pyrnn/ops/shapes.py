"""Symbolic shapes: ``"B T 4H"`` held against the shape that came.

A symbol is bound by the first array that has it, ``4H`` is four times it, and a leading ``...`` stands for any
number of dimensions, the same in every array of the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Sizes = dict[str, Any]  # symbol -> size; "..." -> a tuple of sizes


def split_dimension(dimension: str) -> tuple[int, str]:
    """Split ``"4H"`` into 4 and ``"H"``."""
    symbol = dimension.lstrip("0123456789")
    return int(dimension[: len(dimension) - len(symbol)] or 1), symbol


def match_shape(name: str, shape: str, given: Sequence[int], sizes: Sizes) -> None:
    """Hold an array's shape against its declaration, binding the symbols that are still free.

    Raises
    ------
    ValueError
        With the array's name, the shape expected in symbols and numbers, and the shape given.
    """
    dimensions = shape.split()
    leading = dimensions[:1] == ["..."]
    if leading:
        dimensions = dimensions[1:]
        cut = len(given) - len(dimensions)
        matches = cut >= 0 and sizes.setdefault("...", tuple(given[:cut])) == tuple(given[:cut])
        sized = list(zip(dimensions, given[max(cut, 0) :], strict=False))
    else:
        matches = len(given) == len(dimensions)
        sized = list(zip(dimensions, given, strict=False))
    for dimension, size in sized if matches else []:
        times, symbol = split_dimension(dimension)
        if symbol not in sizes and size % times == 0:
            sizes[symbol] = size // times
        matches = matches and symbol in sizes and sizes[symbol] * times == size
    if not matches:
        raise ValueError(f"{name}: expected shape {describe(shape, sizes)}, got {tuple(given)}")


def describe(shape: str, sizes: Sizes) -> str:
    """Write a shape in symbols and, as far as they are bound, in numbers: ``(4H, I) = (32, 5)``."""
    symbols, numbers = [], []
    for dimension in shape.split():
        symbols.append(dimension)
        if dimension == "...":
            numbers += [str(size) for size in sizes.get("...", ("...",))]
        else:
            times, symbol = split_dimension(dimension)
            numbers.append(str(sizes[symbol] * times) if symbol in sizes else dimension)
    left, right = (
        f"({', '.join(part)}{',' if len(part) == 1 and part != ['...'] else ''})" for part in (symbols, numbers)
    )
    return left if left == right else f"{left} = {right}"
