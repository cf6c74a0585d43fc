"""Models from the architectures in files, held against the arrays there before anything is built.

An architecture is ``{"class": name, "config": {...}}`` as `Module.architecture` gives it. Its class must be
one of the library's, and its sizes those of arrays that are truly in the file: so what a file can have
allocated is bounded by its own size. The layer itself says which arrays it has (`Module.parameter_shapes`);
whether what stands in a configuration is of the right kind, its constructor says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from .. import nn
from .container import TensorInfo

Config: TypeAlias = dict[str, Any]


def check(architecture: Any, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise ValueError unless the architecture's parameters are exactly these arrays; nothing is built."""
    left = dict(tensors)
    for name, wanted in _expected(architecture, ""):
        # At the first one: an architecture may claim more layers than any list of misfits could hold.
        if name not in left:
            raise ValueError(f"its architecture needs {name!r}, {wanted}, and there is no such array")
        came = left.pop(name)
        if came != wanted:
            raise ValueError(f"its architecture needs {name!r} as {wanted}, and it is {came}")
    if left:
        raise ValueError(f"its architecture has no place for {', '.join(map(repr, sorted(left)))}")


def build(architecture: Any) -> nn.Module:
    """Return a new model. What `check` says must hold.

    Raises
    ------
    ValueError
        If a layer does not take its configuration, or makes something else of it.
    """
    name, config = _parts(architecture)
    if name == "Sequential":
        return nn.Sequential(*(build(layer) for layer in _layers(config)))
    try:
        layer = nn.REGISTRY[name](**config)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} does not take its configuration {_short(config)}: {error}") from error
    taken = layer.architecture()["config"]
    for key, value in config.items():
        # 1 and True are equal, and a flag is still no number.
        if key not in taken or taken[key] != value or isinstance(taken[key], bool) != isinstance(value, bool):
            raise ValueError(f"{name} does not take {key}={_short(value)}")
    return layer


def _expected(architecture: Any, prefix: str) -> Iterator[tuple[str, TensorInfo]]:
    """Go through the parameters that a model of this architecture has."""
    name, config = _parts(architecture)
    if name == "Sequential":
        for index, layer in enumerate(_layers(config)):
            yield from _expected(layer, f"{prefix}{index}.")
    else:
        try:
            for parameter, shape in nn.REGISTRY[name].parameter_shapes(config):
                if not all(type(size) is int and size > 0 for size in shape):
                    raise TypeError("its sizes should be whole numbers from 1 on")
                yield prefix + parameter, TensorInfo(str(config["dtype"]), shape)
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing in the configuration {_short(config)}") from None
        except TypeError as error:
            raise ValueError(f"{name} does not take its configuration {_short(config)}: {error}") from error


def _parts(architecture: Any) -> tuple[str, Config]:
    if not isinstance(architecture, dict) or set(architecture) != {"class", "config"}:
        raise ValueError(f"an architecture should have class and config, and is {_short(architecture)}")
    name, config = architecture["class"], architecture["config"]
    if not isinstance(name, str) or name not in nn.REGISTRY:
        raise ValueError(f"its class should be one of {', '.join(sorted(nn.REGISTRY))}, and is {_short(name)}")
    if not isinstance(config, dict):
        raise ValueError(f"the configuration of {name} should be an object, and is {_short(config)}")
    return name, config


def _layers(config: Config) -> list[Any]:
    layers = config.get("layers")
    if set(config) != {"layers"} or not isinstance(layers, list):
        raise ValueError(f"the configuration of Sequential should be a list of layers, and is {_short(config)}")
    return layers


def _short(value: Any) -> str:
    """Write what a file claims, which may be long, for a message."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
