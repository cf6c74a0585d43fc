"""Text that every Python has.

It is the standard library's own: the sources of its modules, and the documentation strings of those that are
compiled into the interpreter. Files are put in the order of a hash of their names, and a hash decides which are held
out, so that neither changes where another version of Python has a file more or less. Every file ends with a NUL byte,
which no source may contain.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HELD_OUT = 8 / 256  # the share of all files
# What was installed beside it; tests and tables, which a machine wrote; and what differs from machine to machine.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}


class Text(NamedTuple):
    """All files, one after the other, and the names of those that are held out."""

    train: Bytes
    held_out: Bytes
    train_names: list[str]
    held_out_names: list[str]


def sources() -> Iterator[tuple[str, bytes]]:
    """Go through the standard library's sources: names and what is in them."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not LEFT_OUT.intersection(name.parts) and not name.name.startswith("_sysconfigdata"):
            yield name.as_posix(), path.read_bytes()


def documentation() -> Iterator[tuple[str, bytes]]:
    """Go through the modules that are compiled into the interpreter: names, and the words on what is in them."""
    seen: set[str] = set()
    for module in sorted(sys.builtin_module_names):
        found = []
        for name, value in sorted(vars(importlib.import_module(module)).items()):
            members = sorted(vars(value).items()) if inspect.isclass(value) else []
            for path, item in [(name, value), *((f"{name}.{inner}", member) for inner, member in members)]:
                words = inspect.getdoc(item) if inspect.isroutine(item) or inspect.isclass(item) else None
                if words and words not in seen:  # the methods of all types have the same few
                    seen.add(words)
                    found.append(f"{module}.{path}: {words}\n")
        if found:
            yield f"{module} (documentation)", "\n".join(found).encode()


def read(limit: int | None = None) -> Text:
    """Return the text, or the first bytes of it: so many to train on, and a tenth of that held out."""
    parts: dict[bool, list[tuple[str, bytes]]] = {True: [], False: []}
    files = {
        hashlib.sha256(name.encode()).digest(): (name, content) for name, content in (*sources(), *documentation())
    }
    for digest, (name, content) in sorted(files.items()):
        # Another byte than those that decide the order, or the first files would be held out.
        parts[digest[-1] < 256 * HELD_OUT].append((name, content.replace(b"\0", b"") + b"\0"))
    train, held_out = (
        np.frombuffer(b"".join(content for _, content in files), np.uint8)[:size]
        for files, size in ((parts[False], limit), (parts[True], limit and max(1, limit // 10)))
    )
    return Text(train, held_out, *([name for name, _ in parts[key]] for key in (False, True)))
