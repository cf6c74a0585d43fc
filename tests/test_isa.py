"""Each ISA level that this CPU has: right on its own, and refused where it is not to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from pyrnn._core.runtime import activation, isa_level

sys.path.insert(0, str(Path(__file__).parent.parent))  # the benchmarks are not installed with the package

from benchmarks.accuracy import largest_error

LADDER = ["v2", "v3", "v4"]
HERE = isa_level()
LOWER = LADDER[: LADDER.index(HERE)] if HERE in LADDER else []


@pytest.mark.parametrize("level", LOWER)
def test_a_lower_level_passes_the_same_tests(level: str) -> None:
    names = ("kit", "recurrent", "basic", "conv_native", "isa", "optim")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    basic = "layer_norm or softmax or embedding or cross_entropy"
    kit = f"Cython and (rnn or lstm or gru or {basic}) and (value or gradient or bitwise)"
    chosen = f"agree or blocks or activation or alone or formula or (test_basic and ({basic} or linear)) or ({kit})"
    chosen = f"test_conv_native or {chosen}"
    chosen = f"not numba and not Numba and not Reference and ({chosen})"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-p", "no:cacheprovider", "-k", chosen],
        env={**os.environ, "PYRNN_ISA": level}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]


def test_a_level_not_to_be_had_is_refused() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import pyrnn; pyrnn.get_backend('cython')"],
        env={**os.environ, "PYRNN_ISA": "v9"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0 and "PYRNN_ISA='v9': this CPU or build has no such level" in result.stderr


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activation_accuracy_float32(name: str) -> None:
    # All exponents, both signs, denormals: every 1021st float32, in the thorough profile every one.
    step = 1 if settings.default.max_examples > 500 else 1021
    assert largest_error(name, step)[0] <= 4
    ends = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    expected = [1, -1, np.nan, 0, -0.0] if name == "tanh" else [1, 0, np.nan, 0.5, 0.5]
    np.testing.assert_array_equal(activation(name, ends), np.array(expected, np.float32))


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_activation_accuracy_float64(name: str) -> None:
    import math

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-30, 30, 4000), rng.uniform(-700, 700, 1000), rng.uniform(-1, 1, 2000) * 1e-8])
    exact = [math.tanh(v) if name == "tanh" else (1 if v >= 0 else math.exp(v)) / (1 + math.exp(-abs(v))) for v in x]
    assert np.max(np.abs(activation(name, x) - exact) / np.spacing(np.abs(exact))) <= 4
