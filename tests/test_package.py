"""The house: no floor imports from one above it, and the words on its door are true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyrnn

ROOT = Path(pyrnn.__file__).parent
FLOOR = {
    "io": 4, "config": 4, "testing": 4, "cli": 4, "__main__": 4, "nn": 3, "optim": 3, "data": 3,
    "ops": 2, "autograd": 2, "dlpack": 2,
    "backend": 1, "threads": 1, "reference": 1, "_core": 1, "_version": 0, "_checks": 0,
}  # fmt: skip


def _imports(path: Path) -> Iterator[str]:
    """Give the modules of pyrnn that a file imports, by their names below the package."""
    package = path.relative_to(ROOT).parts[:-1]
    text = path.read_text()
    if path.suffix in (".pyx", ".pxd"):  # no Python to parse: the import lines are enough
        yield from re.findall(r"^\s*from pyrnn\.?([\w.]*) c?import", text, re.M)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("pyrnn.") for alias in node.names if alias.name.startswith("pyrnn."))
        elif isinstance(node, ast.ImportFrom):
            base = ["pyrnn", *package[: len(package) - node.level + 1]] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            if module[0] == "pyrnn":
                yield from (".".join([*filter(None, module[1:]), alias.name]) for alias in node.names)


def test_no_floor_imports_from_above() -> None:
    checked = 0
    for path in (p for pattern in ("*.py", "*.pyx", "*.pxd") for p in ROOT.rglob(pattern)):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in FLOOR, f"{own} has no floor"
        for name in _imports(path):
            other = name.split(".")[0]
            if other in FLOOR:
                checked += 1
                assert FLOOR[other] <= FLOOR[own], f"{path.relative_to(ROOT)} imports {name}"
    assert checked > 80


def test_every_public_name_is_there_and_explained() -> None:
    for name in pyrnn.__all__:
        value = getattr(pyrnn, name)
        assert name == "__version__" or value.__doc__, name


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", pyrnn.__version__)
    assert (ROOT / "py.typed").exists()
