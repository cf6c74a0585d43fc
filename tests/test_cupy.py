"""The GPU plugin, its kernels run thread by thread on the CPU: see tests/cuda."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import emulator
import fake_cupy

pytestmark = pytest.mark.skipif(bool(emulator.unavailable()), reason=emulator.unavailable())


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    with fake_cupy.installed(attributes={"MultiProcessorCount": 4}):
        from pyrnn_cupy import CupyBackend

        yield CupyBackend()
        for name in [name for name in sys.modules if name.partition(".")[0] == "pyrnn_cupy"]:
            del sys.modules[name]


def test_it_works(backend: Any) -> None:
    from pyrnn.testing import check_backend

    report = check_backend(backend, ops=["lstm", "gru", "rnn"], max_examples=6, progress=False)
    assert report.ok, report
