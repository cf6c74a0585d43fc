"""`save` and `load`: a model in a file of its own, with what belongs to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from numpy.typing import NDArray

from .._checks import compare_state, refuse_misfits
from ..nn import Module
from . import architecture as architectures
from . import tree
from .container import FileError, Header, TensorInfo, read_header, read_tensors, write

KIND = "model"
METADATA = "$metadata"  # begins the names of the metadata's arrays, and of no parameter
M = TypeVar("M", bound=Module)


def save(model: Module, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a model to a file, whole or not at all.

    The file is a safetensors file: the arrays of ``model.state_dict()`` under their names, and in the
    header's metadata the architecture as JSON. Nothing in it is code.

    A model of a class of your own is saved by its state_dict, without an architecture; so is one of the
    library's whose layers share parameters or were given further ones. To load it, build it and give it to
    `load`.

    Parameters
    ----------
    model : Module
    path
        A file that is there is replaced at the very end, and stays as it is if anything fails.
    metadata : mapping, optional
        What else belongs to the model, a scaler's mean or a vocabulary, for `read_metadata`: values of None,
        bool, int, float, str, list, tuple, dict with string keys, and NumPy arrays and scalars of numbers.

    Raises
    ------
    TypeError, ValueError
        If `metadata` has something else in it; the message says where.
    OSError
        If the file can't be written.

    Examples
    --------
    >>> save(model, "co2.safetensors", metadata={"mean": mean, "std": std})  # doctest: +SKIP
    >>> model, scaler = load("co2.safetensors"), read_metadata("co2.safetensors")  # doctest: +SKIP
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a pyrnn.nn.Module, got a {type(model).__name__}")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a mapping, got a {type(metadata).__name__}")
    extra: dict[str, NDArray[Any]] = {}
    encoded = tree.encode(dict(metadata or {}), METADATA, extra)
    weights = {name: tree.to_host(array) for name, array in model.state_dict().items()}
    content = {
        "architecture": _architecture(model, weights),
        "class": type(model).__name__,
        "metadata": encoded,
    }
    write(path, KIND, weights | extra, content)


def _architecture(model: Module, weights: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    """Return what `load` can build the model from, or None where there is no such thing."""
    try:
        architecture = model.architecture()
    except TypeError:
        return None
    try:
        architectures.check(architecture, _infos(weights))
    except ValueError:
        return None
    return architecture


@overload
def load(path: str | os.PathLike[str]) -> Module: ...
@overload
def load(path: str | os.PathLike[str], model: M) -> M: ...
def load(path: str | os.PathLike[str], model: Module | None = None) -> Module:
    """Load a model that `save` has written.

    Parameters
    ----------
    path
    model : Module, optional
        Loads into this model, in place, instead of building one: needed for a class of your own. Its
        parameters' names, shapes and dtypes must be those in the file; its architecture is not compared.

    Returns
    -------
    Module
        In training mode as any new one, or `model`. Generators of its layers are new; a training is resumed
        from a checkpoint.

    Raises
    ------
    FileError
        (A ValueError.) If the file is broken, or not written by `save`, or does not fit `model`, or holds a
        class of your own and there is no `model`. The message says what is wrong; `model` is as it was.
    OSError
        If the file can't be opened.
    """
    if model is not None and not isinstance(model, Module):
        raise TypeError(f"model: expected a pyrnn.nn.Module, got a {type(model).__name__}")
    header = _read(path)
    architecture = header.content["architecture"]
    weights = {name: info for name, info in header.tensors.items() if not _is_metadata(name)}
    if model is None:
        if architecture is None:
            raise FileError(
                path,
                f"it holds the state_dict of a {header.content['class']!r} and no architecture, "
                "as only your code can build it; do so and call load(path, model)",
            )
        try:
            architectures.check(architecture, weights)
            model = architectures.build(architecture)
        except ValueError as error:
            raise FileError(path, str(error)) from error
    else:
        _compare(path, model, weights)
    arrays = read_tensors(path, weights)
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise FileError(path, str(error)) from error
    return model


def _compare(path: str | os.PathLike[str], model: Module, weights: dict[str, TensorInfo]) -> None:
    """Raise FileError if the arrays are not those of the model; so none is read in vain."""
    try:
        refuse_misfits("state_dict", model, compare_state(weights, _infos(dict(model.named_parameters()))))
    except ValueError as error:
        raise FileError(path, str(error)) from None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `metadata` that `save` was given; ``{}`` if none.

    Only the metadata is read, however large the model.

    Parameters
    ----------
    path
        A file that `save` has written.

    Returns
    -------
    dict
        The values as they were given; arrays are new.

    Raises
    ------
    FileError
        (A ValueError.) If the file is broken, or not written by `save`.
    OSError
        If it can't be opened.
    """
    header = _read(path)
    arrays = read_tensors(path, {name: info for name, info in header.tensors.items() if _is_metadata(name)})
    try:
        metadata = tree.decode(header.content["metadata"], arrays)
    except ValueError as error:
        raise FileError(path, f"its metadata can't be read: {error}") from error
    if not isinstance(metadata, dict):
        raise FileError(path, f"its metadata should be a dict, and is of type {type(metadata).__name__}")
    return metadata


def _read(path: str | os.PathLike[str]) -> Header:
    header = read_header(path, KIND)
    content = header.content
    if (
        set(content) != {"architecture", "class", "metadata"}
        or not isinstance(content["class"], str)
        or not isinstance(content["metadata"], dict)
    ):
        raise FileError(path, f"a model should have architecture, class and metadata, and has {list(content)}")
    for name, info in header.tensors.items():
        if not _is_metadata(name) and info.dtype not in ("float32", "float64"):
            raise FileError(path, f"{name!r} should be float32 or float64, and is {info.dtype}")
    return header


def _is_metadata(name: str) -> bool:
    return name.startswith(METADATA)


def _infos(arrays: Mapping[str, Any]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(array.dtype.name, tuple(array.shape)) for name, array in arrays.items()}
