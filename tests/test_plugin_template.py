"""The example plugin is right, and its README's Python runs as it stands; `.ci/run` installs it."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import pyrnn
from pyrnn import backend as registry

FOLDER = Path(__file__).parents[1] / "examples" / "third_party_backend"
METADATA = tomllib.loads((FOLDER / "pyproject.toml").read_text())
((NAME, ENTRY),) = METADATA["project"]["entry-points"]["pyrnn.backends"].items()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> pyrnn.Backend:
    module, _, attribute = ENTRY.partition(":")
    assert METADATA["tool"]["setuptools"]["py-modules"] == [module]
    spec = importlib.util.spec_from_file_location(module, FOLDER / f"{module}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    backend = getattr(loaded, attribute)()
    assert backend.name == NAME
    monkeypatch.setitem(registry._loaded, NAME, backend)
    return backend


def test_it_keeps_what_it_claims(plugin: pyrnn.Backend) -> None:
    report = pyrnn.testing.check_backend(plugin, list(plugin.claims), max_examples=10)
    assert report.ok, report


def test_the_readme_runs(plugin: pyrnn.Backend, capsys: pytest.CaptureFixture[str]) -> None:
    text = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    failures = names["report"].failures  # type: ignore[attr-defined]
    assert [result.id for result in failures] == ["rnn/refusal"], "as the README says"
    assert f"{NAME}: available ({ENTRY}); {plugin.note}\n" in text
