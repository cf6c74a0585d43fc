"""What ``--shapes`` says: words, each a set's name or a shape as the family writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Shape = TypeVar("Shape")


def parse(
    text: str, sets: Mapping[str, Sequence[Shape]], form: str, read: Callable[[str], Shape | None]
) -> list[Shape]:
    """Return the shapes that comma-separated words name, each once; ``read`` gives that of a word, or None.

    Raises
    ------
    ValueError
        A word is neither a set's name nor a shape.
    """
    shapes: list[Shape] = []
    for word in map(str.strip, text.split(",")):
        shape = None if word in sets else read(word)
        if word in sets:
            shapes += sets[word]
        elif shape is not None:
            shapes.append(shape)
        else:
            raise ValueError(f"expected {form} or one of {', '.join(sets)}, comma-separated, got {word!r}")
    return list(dict.fromkeys(shapes))
