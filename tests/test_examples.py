"""The examples run as a newcomer would run them, shortened."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the examples need the extra 'examples'")
pytest.importorskip("tqdm", reason="the examples need the extra 'examples'")

FORECAST = Path(__file__).parents[1] / "examples" / "forecast.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FORECAST), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_forecast(cell: str, tmp_path: Path) -> None:
    result = run("--cell", cell, "--epochs", "25", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    for words in ("loss=", "grad=", "epoch/s"):
        assert words in result.stderr, "the progress bar shows loss, gradient norm and pace"
    assert "the model is better: seasonal naive 5 of 5, drift 5 of 5, extrapolation " in result.stdout
    assert "forecasts to the bit" in result.stdout
    spread = re.search(r"on cython, reference, numba the forecasts differ by at most (\S+) ppm", result.stdout)
    assert spread and float(spread[1]) < 1e-4  # ppm; a float32 forecast of some ppm has steps of 1e-7
    assert (tmp_path / "forecast.safetensors").stat().st_size < 100_000
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_forecast_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    outputs = [run("--epochs", "2", "--seed", "3", "--out", str(tmp_path / name)).stdout for name in "ab"]
    assert outputs[0].split("saved")[0] == outputs[1].split("saved")[0] != ""
    files = [(tmp_path / name / "forecast.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "nope"), "argument --backend: backend: expected one of cython, reference"),
        (("--epochs", "0"), "argument --epochs: expected at least 1, got 0"),
        (("--cell", "transformer"), "invalid choice: 'transformer'"),
    ],
)
def test_forecast_refuses(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2 and message in result.stderr
