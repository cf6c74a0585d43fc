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
