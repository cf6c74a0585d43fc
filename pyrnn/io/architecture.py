"""Models from the architectures in files, held against the arrays there before anything is built.

An architecture is ``{"class": name, "config": {...}}`` as `Module.architecture` gives it. Its class must be
one of the library's, and its sizes those of arrays that are truly in the file: so what a file can have
allocated is bounded by its own size. `SHAPES` says which arrays a class has; a new layer with parameters gets
its function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from .. import nn
from .container import TensorInfo

Shapes: TypeAlias = Iterator[tuple[str, tuple[int, ...]]]
Config: TypeAlias = dict[str, Any]


def _recurrent(gates: int, leaves: tuple[str, ...]) -> Callable[[Config], Shapes]:
    def shapes(config: Config) -> Shapes:
        inputs, hidden, layers = (_size(config, name) for name in ("input_size", "hidden_size", "num_layers"))
        bias, learned = _flag(config, "bias"), _flag(config, "learn_initial_state")
        directions = ("", "_reverse") if _flag(config, "bidirectional") else ("",)
        # GRU alone: the second bias of its candidate.
        bias_hn = bias and "reset_after" in config and _flag(config, "reset_after")
        if learned:
            for leaf in leaves:
                yield f"{leaf}_0", (layers * len(directions), hidden)
        for layer in range(layers):
            columns = inputs if layer == 0 else len(directions) * hidden
            for direction in directions:
                suffix = f"l{layer}{direction}"
                yield f"weight_ih_{suffix}", (gates * hidden, columns)
                yield f"weight_hh_{suffix}", (gates * hidden, hidden)
                if bias:
                    yield f"bias_{suffix}", (gates * hidden,)
                if bias_hn:
                    yield f"bias_hn_{suffix}", (hidden,)

    return shapes


def _linear(config: Config) -> Shapes:
    rows = _size(config, "out_features")
    yield "weight", (rows, _size(config, "in_features"))
    if _flag(config, "bias"):
        yield "bias", (rows,)


def _embedding(config: Config) -> Shapes:
    yield "weight", (_size(config, "num_embeddings"), _size(config, "embedding_dim"))


def _layer_norm(config: Config) -> Shapes:
    features = _size(config, "normalized_shape")
    yield "weight", (features,)
    yield "bias", (features,)


def _nothing(config: Config) -> Shapes:
    yield from ()


SHAPES: dict[str, Callable[[Config], Shapes]] = {
    "RNN": _recurrent(1, ("h",)),
    "LSTM": _recurrent(4, ("h", "c")),
    "GRU": _recurrent(3, ("h",)),
    "Linear": _linear,
    "Embedding": _embedding,
    "LayerNorm": _layer_norm,
    "Dropout": _nothing,
    "Tanh": _nothing,
    "ReLU": _nothing,
    "Sigmoid": _nothing,
}


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
        for parameter, shape in SHAPES[name](config):
            yield prefix + parameter, TensorInfo(str(_entry(config, "dtype")), shape)


def _parts(architecture: Any) -> tuple[str, Config]:
    if not isinstance(architecture, dict) or set(architecture) != {"class", "config"}:
        raise ValueError(f"an architecture should have class and config, and is {_short(architecture)}")
    name, config = architecture["class"], architecture["config"]
    known = {"Sequential", *SHAPES} & set(nn.REGISTRY)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"its class should be one of {', '.join(sorted(known))}, and is {_short(name)}")
    if not isinstance(config, dict):
        raise ValueError(f"the configuration of {name} should be an object, and is {_short(config)}")
    return name, config


def _layers(config: Config) -> list[Any]:
    layers = config.get("layers")
    if set(config) != {"layers"} or not isinstance(layers, list):
        raise ValueError(f"the configuration of Sequential should be a list of layers, and is {_short(config)}")
    return layers


def _entry(config: Config, name: str) -> Any:
    if name not in config:
        raise ValueError(f"{name} is missing in the configuration {_short(config)}")
    return config[name]


def _size(config: Config, name: str) -> int:
    value = _entry(config, name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} should be a whole number from 1 on, and is {_short(value)}")
    return value


def _flag(config: Config, name: str) -> bool:
    value = _entry(config, name)
    if type(value) is not bool:
        raise ValueError(f"{name} should be true or false, and is {_short(value)}")
    return value


def _short(value: Any) -> str:
    """Write what a file claims, which may be long, for a message."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
