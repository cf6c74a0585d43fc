"""JSON as the files of `pyrnn.io` hold it: what is doubtful is refused, not interpreted."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 100


def dump(value: Any) -> str:
    """Return `value` as compact ASCII JSON: the same text for the same value."""
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))


def parse(what: str, text: str) -> dict[str, Any]:
    """Return the object that a JSON text is.

    Raises
    ------
    ValueError
        If it is no JSON object, has a key twice in one object or a number that is not finite, or is
        nested deeper than `MAX_DEPTH`; the message begins with `what`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"{what} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON as it should be: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} should be a JSON object, and is of type {type(value).__name__}")
    if _is_deep(value):
        raise ValueError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return value


def _is_deep(value: Any) -> bool:
    # Level by level: recursion could itself be too deep.
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
