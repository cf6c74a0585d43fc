"""The kernels of convolution, the basic family and updates compile for all architectures, and none spills registers."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).with_name("cuda")))

import nvrtc

pytestmark = pytest.mark.skipif(bool(nvrtc.unavailable()), reason=nvrtc.unavailable())
KERNELS = Path(__file__).parents[1] / "backends" / "pyrnn_cupy" / "kernels"
TILES = [
    ("tiles.cu", {"REAL": real, "ROWS": rows, "COLUMNS": columns, "DEPTH": depth})
    for real, most in (("float", 64), ("double", 32))
    for rows in (32, 128)
    for columns, depth in ((most, 16), (8, 4))
]
OTHERS = [
    *(("basic.cu", {"REAL": real, "WIDTH": width}) for real in ("float", "double") for width in (32, 256)),
    *((name, {"REAL": real}) for name in ("conv.cu", "sums.cu", "update.cu") for real in ("float", "double")),
]


def source(name: str) -> str:
    return re.sub(r'^#include "(.+)"$', lambda match: source(match[1]), (KERNELS / name).read_text(), flags=re.M)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("name", "constants"), [*TILES, *OTHERS])
def test_compiles_without_spills(name: str, constants: dict[str, Any], arch: str) -> None:
    options = [f"-D{key}={value}" for key, value in constants.items()]
    compiled = nvrtc.compile(source(name), arch, options)
    assert compiled.kernels
    for kernel, resources in compiled.kernels.items():
        assert (resources.spill_loads, resources.spill_stores, resources.stack) == (0, 0, 0), kernel
        assert resources.registers <= 168, kernel
