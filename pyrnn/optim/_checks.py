"""What optimisers and clipping alone ask of their arguments; the rest is in `pyrnn._checks`."""

from __future__ import annotations

from collections.abc import Iterable

from .._checks import type_name
from ..autograd import Tensor


def check_parameters(name: str, parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    """Return the parameters of an iterable (or a single one) as a list."""
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{name}: expected Parameters, as model.parameters() gives them, got {type_name(parameters)}")
    found = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for index, parameter in enumerate(found):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"{name}[{index}]: expected a Parameter, got {type(parameter).__name__}")
    return found
