"""Nested Python values as JSON and named arrays, and back to the same values.

None, booleans, integers, finite floats, strings, lists and dicts with string keys are what they are in JSON.
The rest is an object with one key that begins with ``$``:

===========================  ===========================================
``{"$array": name}``         the array of that name
``{"$tuple": [...]}``        a tuple
``{"$float": "inf"}``        a float that is not finite, ``repr`` of it
``{"$float32": 0.5}``, ...   a NumPy scalar of that dtype
===========================  ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .container import DTYPES
from .strict_json import MAX_DEPTH

SCALARS = {f"${dtype}": np.dtype(dtype).type for dtype in DTYPES.values()}
NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def to_host(array: Any) -> Any:
    """Return the array in the host's memory: a file is written from there, whatever device it is on."""
    return array.get() if hasattr(array, "get") and hasattr(array, "__cuda_array_interface__") else array


def encode(value: Any, path: str, arrays: dict[str, NDArray[Any]], depth: int = 0) -> Any:
    """Return `value` as JSON can hold it, its arrays put into `arrays`.

    Parameters
    ----------
    value
        What the module's table has.
    path
        What `value` is called: arrays get their names from it, and messages.
    arrays
        Is added to.

    Raises
    ------
    TypeError, ValueError
        If there is something in it that can't be stored; the message says where.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:60]}…: nested deeper than {MAX_DEPTH} levels")
    value = to_host(value)
    if isinstance(value, np.generic) and value.dtype.name in DTYPES.values():
        return {f"${value.dtype.name}": encode(value.item(), path, arrays, depth + 1)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    # Not a masked array or another kind that means more than its numbers.
    if type(value) in (np.ndarray, np.memmap) and value.dtype.name in DTYPES.values():
        name = path
        while name in arrays:
            name += "_"
        arrays[name] = value
        return {"$array": name}
    if isinstance(value, tuple):
        return {"$tuple": encode(list(value), path, arrays, depth + 1)}
    if isinstance(value, list):
        return [encode(item, f"{path}.{i}", arrays, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise ValueError(f"{path}: expected keys that are strings and do not begin with '$', got {key!r}")
        return {key: encode(item, f"{path}.{key}", arrays, depth + 1) for key, item in value.items()}
    came = f"a {type(value).__name__}" + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
    raise TypeError(
        f"{path}: expected None, a bool, number, string, list, tuple, dict or NumPy array of numbers, got {came}"
    )


def decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return what `encode` was given.

    Raises
    ------
    ValueError
        If `value` is nothing that `encode` returns, or names an array that is not there.
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item, arrays) for key, item in value.items()}
    inner = value[tag]
    if len(value) == 1:
        if tag == "$array" and isinstance(inner, str) and inner in arrays:
            return arrays[inner]
        if tag == "$tuple" and isinstance(inner, list):
            return tuple(decode(inner, arrays))
        if tag == "$float" and isinstance(inner, str) and inner in NOT_FINITE:
            return NOT_FINITE[inner]
        if tag in SCALARS:
            return _scalar(tag, decode(inner, arrays))
    raise ValueError(f"no value is stored as {str(value)[:200]}")


def _scalar(tag: str, number: Any) -> Any:
    kind = SCALARS[tag]
    wanted = bool if kind is np.bool_ else float if issubclass(kind, np.floating) else int
    if type(number) is wanted:
        try:
            return kind(number)
        except OverflowError:
            pass
    raise ValueError(f"no {tag[1:]} is stored as {str(number)[:200]}")
