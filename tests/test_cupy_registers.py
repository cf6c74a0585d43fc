"""Every kernel of the GPU plugin compiles for GPUs, and none spills registers; see tests/cuda/registers.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import nvrtc
import registers

pytestmark = pytest.mark.skipif(bool(nvrtc.unavailable()), reason=nvrtc.unavailable())


@pytest.mark.parametrize("arch", registers.GPUS)
def test_every_kernel_compiles_and_none_spills(arch: str) -> None:
    rows = registers.table(arch)
    assert rows
    assert not [row for row in rows if row[2].spill_loads or row[2].spill_stores or row[2].stack]
    static = 4096  # what plans leave of shared memory: STATIC of pyrnn_cupy/attention.py
    assert not [row for row in rows if row[2].shared > (static if row[0].startswith("attention") else 48 << 10)]
