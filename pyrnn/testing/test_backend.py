"""``pytest --pyargs pyrnn.testing --pyrnn-backend=NAME`` runs the properties of any installed backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .suite import make_backend_tests


def pytest_generate_tests(metafunc: Any) -> None:
    """Make one test for each op and property of the backend that the option names."""
    name = metafunc.config.getoption("--pyrnn-backend", None)
    if name is None:
        raise pytest.UsageError("pyrnn.testing needs to know which backend to test: --pyrnn-backend=NAME")
    tests = {key: test for key, test in vars(make_backend_tests(name)).items() if key.startswith("test_")}
    cases = [
        pytest.param(test, id=key.removeprefix("test_"), marks=getattr(test, "pytestmark", []))
        for key, test in tests.items()
    ]
    metafunc.parametrize("holds", cases)


def test_backend(holds: Callable[[Any], None]) -> None:
    """The property holds for all calls drawn."""
    holds(None)
