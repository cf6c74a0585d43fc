"""What optimisers and schedules ask of their numbers; each check names the one that it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..autograd import Tensor


def check_number(name: str, value: Any, *, below: float = math.inf, above_zero: bool = False) -> float:
    """Return a finite number from 0 (itself excluded with ``above_zero``) to less than ``below``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not 0 <= number < below or (above_zero and number == 0):
        lowest = "more than 0" if above_zero else "at least 0"
        highest = "finite" if below == math.inf else f"less than {below:g}"
        raise ValueError(f"{name}: expected a number, {lowest} and {highest}, got {value!r}")
    return number


def check_count(name: str, value: Any, minimum: int) -> int:
    """Return a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    return int(value)


def check_parameters(name: str, parameters: Any) -> list[Tensor]:
    """Return the parameters of an iterable (or a single one) as a list."""
    found = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for index, parameter in enumerate(found):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{name}[{index}]: expected a Parameter, got {type(parameter).__name__}")
    return found


def check_entries(given: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """Return a line for each entry that is missing or unexpected in a state_dict."""
    expected = dict.fromkeys(wanted)
    lines = [f"missing: {key}" for key in expected if key not in given]
    return lines + [f"unexpected: {key}" for key in given if key not in expected]


def describe(value: Any) -> str:
    """Return an array's dtype and shape in words."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{value.dtype} of shape {tuple(value.shape)}"


def refuse(owner: Any, problems: list[str]) -> None:
    """Raise ValueError with all that is wrong with a state_dict, where there is something."""
    if problems:
        raise ValueError(
            f"state_dict: does not fit {type(owner).__name__}; nothing was loaded:\n  " + "\n  ".join(problems)
        )
