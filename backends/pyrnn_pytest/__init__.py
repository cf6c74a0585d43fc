"""The option ``--pyrnn-backend`` of pytest; outside of pyrnn, so that a run without it imports nothing."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Declare the option."""
    parser.getgroup("pyrnn").addoption(
        "--pyrnn-backend",
        metavar="NAME",
        help="the backend that `pytest --pyargs pyrnn.testing` holds to pyrnn's properties",
    )


def pytest_configure(config: Any) -> None:
    """Say in one line, before anything is collected, that the kit or the backend can't be used."""
    name = config.getoption("--pyrnn-backend", None)
    asked = config.getoption("pyargs", False) and any(arg.startswith("pyrnn.testing") for arg in config.args)
    if name is None and not asked:
        return
    import pytest

    if name is None:
        raise pytest.UsageError("pyrnn.testing needs to know which backend to test: --pyrnn-backend=NAME")
    if asked:
        try:
            import pyrnn.testing  # noqa: F401
        except ImportError as error:  # no Hypothesis
            raise pytest.UsageError(str(error)) from None
    try:
        from pyrnn import get_backend

        get_backend(name)
    except (ImportError, ValueError) as error:
        raise pytest.UsageError(f"--pyrnn-backend: {error}") from None
