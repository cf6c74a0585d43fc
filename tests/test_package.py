"""The house: no floor imports from one above it, and the words on its door are true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pyrnn

ROOT = Path(pyrnn.__file__).parent
FLOOR = {
    "io": 4, "nn": 3, "optim": 3, "data": 3, "ops": 2, "autograd": 2,
    "backend": 1, "threads": 1, "reference": 1, "_core": 1, "_version": 0,
}  # fmt: skip


def _imports(path: Path) -> list[str]:
    """Return the modules of pyrnn that a file imports, as dotted names below the package."""
    package = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")[1:]
            if node.level or (node.module or "").startswith("pyrnn"):
                module = [part for part in module if part]
                found += [".".join([*module, alias.name]) for alias in node.names]
    return found


def test_no_floor_imports_from_above() -> None:
    checked = 0
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in _imports(path) if own in FLOOR else []:
            other = name.split(".")[0]
            if other in FLOOR:
                checked += 1
                assert FLOOR[other] <= FLOOR[own], f"{path.relative_to(ROOT)} imports {name}"
    assert checked > 50


def test_every_public_name_is_there_and_explained() -> None:
    for name in pyrnn.__all__:
        value = getattr(pyrnn, name)
        assert name == "__version__" or value.__doc__, name


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pyrnn.__version__)
    assert (ROOT / "py.typed").exists()
