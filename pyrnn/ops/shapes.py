"""Symbolic shapes: ``"B T 4H"`` held against the shape that came.

A symbol is bound by the first array that has it, ``4H`` is four times it, and a leading ``...`` stands for any
number of dimensions, the same in every array of the call. A shape of ``N?`` alone is one that is broadcast: each
dimension is the symbol's size or 1, and those on the left may be missing. ``I/g`` is a symbol like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

Sizes = dict[str, Any]  # symbol -> size; "..." -> a tuple of sizes


def split_dimension(dimension: str) -> tuple[int, str]:
    """Split ``"4H"`` into 4 and ``"H"``."""
    symbol = dimension.lstrip("0123456789")
    return int(dimension[: len(dimension) - len(symbol)] or 1), symbol


def is_broadcast(shape: str) -> bool:
    """Tell whether a symbolic shape is one that is broadcast."""
    return shape.endswith("?")


@cache
def _parsed(shape: str) -> tuple[bool, bool, tuple[tuple[int, str], ...]]:
    """Return whether a symbolic shape is broadcast, whether it begins with ``...``, and its other dimensions, split."""
    dimensions = shape.replace("?", "").split()
    leading = dimensions[:1] == ["..."]
    return is_broadcast(shape), leading, tuple(split_dimension(dimension) for dimension in dimensions[leading:])


def match_shape(name: str, shape: str, given: Sequence[int], sizes: Sizes) -> None:
    """Hold an array's shape against its declaration, binding the symbols that are still free.

    Raises
    ------
    ValueError
        With the array's name, the shape expected in symbols and numbers, and the shape given.
    """
    broadcast, leading, dimensions = _parsed(shape)
    if broadcast:
        whole = (1,) * (len(dimensions) - len(given)) + tuple(given)
        if len(whole) != len(dimensions) or any(
            size not in (1, times * sizes[symbol]) for (times, symbol), size in zip(dimensions, whole, strict=True)
        ):
            raise ValueError(f"{name}: expected shape {describe(shape, sizes)}, got {tuple(given)}")
        return
    if leading:
        cut = len(given) - len(dimensions)
        matches = cut >= 0 and sizes.setdefault("...", tuple(given[:cut])) == tuple(given[:cut])
        given_last = given[max(cut, 0) :]
    else:
        matches = len(given) == len(dimensions)
        given_last = given
    if matches:
        for (times, symbol), size in zip(dimensions, given_last, strict=True):
            known = sizes.get(symbol)
            if known is None and size % times == 0:
                known = sizes[symbol] = size // times
            matches = matches and known is not None and known * times == size
    if not matches:
        raise ValueError(f"{name}: expected shape {describe(shape, sizes)}, got {tuple(given)}")


def describe(shape: str, sizes: Sizes) -> str:
    """Write a shape in symbols and, as far as they are bound, in numbers: ``(4H, I) = (32, 5)``."""
    symbols, numbers = [], []
    for dimension in shape.split():
        symbols.append(dimension.replace("?", " or 1"))
        if dimension == "...":
            numbers += [str(size) for size in sizes.get("...", ("...",))]
        else:
            times, symbol = split_dimension(dimension.removesuffix("?"))
            number = str(sizes[symbol] * times) if symbol in sizes else dimension
            numbers.append(f"{number} or 1" if dimension.endswith("?") and number != "1" else number)
    left, right = (
        f"({', '.join(part)}{',' if len(part) == 1 and part != ['...'] else ''})" for part in (symbols, numbers)
    )
    return left if left == right else f"{left} = {right}"
