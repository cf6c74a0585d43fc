"""The file that everything in `pyrnn.io` is in: safetensors, written atomically, checked before it is read.

A file is the arrays, which the safetensors library writes and reads, and one JSON document under the key
``"pyrnn"`` of the header's ``__metadata__``. (One key, because the library writes several in a random order,
and the same model should give the same file.) The document has ``format`` (the version of all this, 1),
``kind`` (what is stored), ``crc32`` (of the rest of the document, as `strict_json.dump` writes it) and what
belongs to the kind. So a bit that flips anywhere but in the arrays' numbers is noticed.

Nothing in a file is believed: the header is checked against the size of the file before anything is
allocated.
"""

from __future__ import annotations

import math
import os
import secrets
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .._checks import describe_array
from . import strict_json

FORMAT = 1
KEY = "pyrnn"
READERS = {"model": "load", "checkpoint": "load_checkpoint"}  # the function for each kind
# Vocabularies and scalers fit easily; what a hostile header can make the parser allocate stays bounded.
MAX_HEADER = 16 * 2**20
DTYPES = {
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}


class FileError(ValueError):
    """A file is broken, or is not what it was taken for; nothing was changed by reading it.

    Attributes
    ----------
    path : str
        The file.
    problem : str
        What is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(os.fspath(path), problem)
        self.path, self.problem = os.fspath(path), problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class TensorInfo(NamedTuple):
    """What the header says of an array; `dtype` is NumPy's name."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return describe_array(self)


class Header(NamedTuple):
    """A header that has been checked."""

    tensors: dict[str, TensorInfo]
    content: dict[str, Any]


# --- writing -----------------------------------------------------------------------------------------------


def write(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, NDArray[Any]], content: Mapping[str, Any]
) -> None:
    """Write a file whole or not at all.

    A temporary in the same directory is written, checked as a reader would, flushed to the disk and renamed.
    The permissions are those that ``open(path, "w")`` would leave.

    Parameters
    ----------
    path
        A file there is replaced; if it is a symbolic link, what it leads to is.
    kind
        What is stored, for `read_header` to compare.
    tensors
        Arrays by name, of the dtypes in `DTYPES`.
    content
        What JSON can hold, by key.

    Raises
    ------
    ValueError
        If a reader would refuse the file.
    OSError
        If it can't be written. A file that was there before is left as it was.
    """
    document = {"format": FORMAT, "kind": kind, **content}
    metadata = {KEY: strict_json.dump(document | {"crc32": _crc32(document)})}
    # The library writes an array's memory as it lies.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}

    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"path: expected a file, or none yet, got {os.fspath(path)!r}, which is something else")
    temporary = target.with_name(f".pyrnn-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        if target.exists():
            mode = target.stat().st_mode
        save_file(arrays, temporary, metadata)
        read_header(temporary, kind)
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))  # the library makes a file for its owner alone
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, FileError):
            message = f"{os.fspath(path)}: not written, as it could not be read again: {error.problem}"
            raise ValueError(message) from None
        raise
    _sync(target.parent)


def _sync(directory: Path) -> None:
    """Have the renaming itself on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32(document: dict[str, Any]) -> int:
    return zlib.crc32(strict_json.dump(document).encode())


# --- reading -----------------------------------------------------------------------------------------------


def read_header(path: str | os.PathLike[str], kind: str) -> Header:
    """Check everything in a file but the arrays' numbers, and return it.

    Raises
    ------
    FileError
        If the file is not in order, or not of this kind.
    OSError
        If it can't be opened.
    """
    try:
        text, data_size = _header_text(path)
        entries = strict_json.parse("its header", text)
        metadata = _object("__metadata__", entries.pop("__metadata__", {}))
        tensors = _tensors(entries, data_size)
        return Header(tensors, _content(metadata, kind))
    except ValueError as error:
        # A hostile name may be as long as the file.
        raise FileError(path, str(error)[:1000]) from error


def _header_text(path: str | os.PathLike[str]) -> tuple[str, int]:
    """Return the header and how many bytes follow it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"a header of {length} bytes should follow the first 8, and {max(size - 8, 0)} do; "
                "the file is cut off, or is no safetensors file"
            )
        if length > MAX_HEADER:
            raise ValueError(f"its header of {length} bytes is over the limit of {MAX_HEADER}")
        raw = file.read(length)
    try:
        return raw.decode(), size - 8 - length
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8: {error}") from None


def _tensors(entries: dict[str, Any], data_size: int) -> dict[str, TensorInfo]:
    """Check that the entries describe the bytes after the header, each of them once."""
    tensors = {}
    spans = []
    for name, entry in entries.items():
        fields = _object(f"the entry {name!r}", entry)
        if set(fields) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry {name!r} should have dtype, shape and data_offsets, and has {list(fields)}")
        dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"the dtype of {name!r} should be one of {', '.join(DTYPES)}, and is {dtype!r}")
        if not _are_sizes(shape):
            raise ValueError(f"the shape of {name!r} should be a list of sizes, and is {shape!r}")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"data_offsets of {name!r} should be where it begins and ends, and is {offsets!r}")
        begin, end = offsets
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if end - begin != size:
            raise ValueError(f"{name!r} of shape {shape} and dtype {dtype} takes {size} bytes, and has {end - begin}")
        tensors[name] = TensorInfo(DTYPES[dtype], tuple(shape))
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(f"{name!r} should begin at byte {position} of the data, and begins at {begin}")
        position = end
    if position != data_size:
        raise ValueError(f"its arrays take {position} bytes, and {data_size} are there; it is cut off or too long")
    return tensors


def _are_sizes(value: Any) -> bool:
    """Tell whether it is a list of integers that NumPy could take as a shape (of at most 64 axes)."""
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def _content(metadata: dict[str, Any], kind: str) -> dict[str, Any]:
    text = metadata.get(KEY)
    if not isinstance(text, str):
        raise ValueError(
            f"it was not written by pyrnn (its metadata has no {KEY!r}); arrays from elsewhere: give what "
            "safetensors.numpy.load_file reads to model.load_state_dict or pyrnn.io.load_torch_state_dict"
        )
    document = strict_json.parse("its document", text)
    version = document.get("format")
    if type(version) is not int or version < 1:
        raise ValueError(f"its format should be a number from 1 on, and is {version!r}")
    if version > FORMAT:
        raise ValueError(f"it has format {version}, and this pyrnn reads up to {FORMAT}; use a newer pyrnn")
    crc32 = document.pop("crc32", None)
    if crc32 != _crc32(document):
        raise ValueError("its document does not have the checksum it was written with; the file is damaged")
    came = document.get("kind")
    if came != kind:
        hint = f"; read it with pyrnn.io.{READERS[came]}" if isinstance(came, str) and came in READERS else ""
        raise ValueError(f"it should hold a {kind}, and holds a {came}{hint}")
    del document["format"], document["kind"]
    return document


def _object(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} should be a JSON object, and is of type {type(value).__name__}")
    return value


def read_tensors(path: str | os.PathLike[str], tensors: Mapping[str, TensorInfo]) -> dict[str, NDArray[Any]]:
    """Return arrays of a file, all or some of those that its checked header has.

    Raises
    ------
    FileError
        If they are not what the header said, as the file has changed since.
    """
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in tensors}
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise FileError(path, f"its arrays can't be read: {error}") from error
    for name, array in arrays.items():
        came = TensorInfo(array.dtype.name, array.shape)
        if came != tensors[name]:
            raise FileError(path, f"{name!r} should be {tensors[name]}, and is {came}; did the file change meanwhile?")
    return arrays
