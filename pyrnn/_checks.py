"""What several parts of pyrnn ask of their arguments: each check names the one that it refuses, and what came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS = (np.dtype("float32"), np.dtype("float64"))  # in the machine's own byte order

# What another library's array is made one of ours by, by the package that it comes from.
DOORS = {
    "cupy": 'copy it with .get(), or run on the GPU: with pyrnn.use_backend("cupy")',
    "torch": "pass pyrnn.from_dlpack(...) of the detached tensor",
    "jax": "pass pyrnn.from_dlpack(...) of it",
    "jaxlib": "pass pyrnn.from_dlpack(...) of it",
    "pandas": "pass its .to_numpy()",
}


def package_of(value: Any) -> str:
    """Return the package that a value's type comes from, as ``torch``."""
    return type(value).__module__.partition(".")[0]


def type_name(value: Any) -> str:
    """Return ``torch.Tensor`` or ``list``: the type with the package that it comes from."""
    package, name = package_of(value), type(value).__name__
    return name if package == "builtins" else f"{package}.{name}"


def refuse_foreign(name: str, value: Any) -> None:
    """Raise TypeError for an array of a library whose arrays no backend takes, and say what to do."""
    package = package_of(value)
    if package in DOORS and package != "cupy":
        raise TypeError(f"{name}: expected an array or a pyrnn.Tensor, got {type_name(value)}; {DOORS[package]}")


def refuse_other_device(name: str, value: Any, xp: Any) -> None:
    """Raise TypeError for an array that lies elsewhere than those of a module, and say how it is brought there."""
    if xp is np:
        if package_of(value) == "cupy":
            raise TypeError(f"{name}: expected an array on the host, got {type_name(value)}; {DOORS['cupy']}")
    elif isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected a {xp.__name__}.ndarray, got {type_name(value)}; copy it with {xp.__name__}.asarray(...)"
        )


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)


def check_number(name: str, value: Any, *, below: float = math.inf) -> float:
    """Return a number from 0 to less than ``below``."""
    number = _number(name, value)
    if not 0 <= number < below:
        highest = "finite" if below == math.inf else f"less than {below:g}"
        raise ValueError(f"{name}: expected a number, at least 0 and {highest}, got {value!r}")
    return number


def check_positive(name: str, value: Any) -> float:
    """Return a positive finite number."""
    number = _number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
    return number


def check_finite(name: str, value: Any) -> float:
    """Return a finite number."""
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return one of some words."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)


def check_lengths(
    name: str, value: Any, batch: int | None = None, time: int | None = None, symbol: str = "T"
) -> NDArray[np.int64]:
    """Return lengths as a new array (B,) of int64: ``batch`` of them and each from 0 to ``time``, where given."""
    if not isinstance(value, (np.ndarray, list, tuple)):
        raise TypeError(f"{name}: expected a sequence or numpy array of integers on the host, got {type_name(value)}")
    array = np.array(value)  # a copy: checked and kept, whatever its owner does with it
    if array.dtype.kind not in "iu" and array.size:  # numpy takes an empty list for float64
        raise TypeError(f"{name}: expected integers, got {array.dtype}; cast with .astype(int)")
    if array.ndim != 1 or (batch is not None and len(array) != batch):
        raise ValueError(f"{name}: expected shape (B,){'' if batch is None else f' = ({batch},)'}, got {array.shape}")
    if array.size and (array.min() < 0 or (time is not None and array.max() > time)):
        highest = "on" if time is None else f"to {symbol} = {time}"
        raise ValueError(f"{name}: expected values from 0 {highest}, got {array.min()} to {array.max()}")
    return array.astype(np.int64, copy=False)


def valid_steps(lengths: NDArray[np.int64], time: int) -> NDArray[np.bool_]:
    """Return booleans (B, T), True at the valid steps."""
    return np.asarray(np.arange(time) < lengths[:, None])


def describe_array(value: Any) -> str:
    """Return an array's dtype and shape in words."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}"


def compare_state(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a line for each entry of a state_dict that is missing, unexpected, or of another dtype or shape.

    What is wanted is an array, or None where the entry is no array and only has to be there.
    """
    lines = [f"missing: {_entry(name, value)}" for name, value in wanted.items() if name not in given]
    lines += [f"unexpected: {_entry(name, value)}" for name, value in given.items() if name not in wanted]
    for name, array in wanted.items():
        if array is not None and name in given and describe_array(given[name]) != describe_array(array):
            lines.append(f"{name}: expected {describe_array(array)}, got {describe_array(given[name])}")
    return lines


def _entry(name: str, value: Any) -> str:
    return f"{name}, {describe_array(value)}" if hasattr(value, "shape") else name


def refuse_misfits(name: str, owner: Any, problems: list[str]) -> None:
    """Raise ValueError with all that is wrong with a state_dict for its owner, where there is something."""
    if problems:
        raise ValueError(
            f"{name}: does not fit {type(owner).__name__}; nothing was loaded:\n  " + "\n  ".join(problems)
        )
