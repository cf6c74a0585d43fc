"""The benchmarks run, time nothing that gives another result, and refuse what they can't do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed with the package

from benchmarks import measure, peak  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import FULL, SETS, TIMED, Case, draw_data, draw_shapes, lstm_flops, parse_shapes  # noqa: E402
from benchmarks.contenders import PEERS, UnableError, differences, missing, ours, prepare  # noqa: E402
from benchmarks.end_to_end import Size, trainers  # noqa: E402


def case_of(op: str, mode: str, dtype: str) -> Case:
    B, T = (1, 1) if mode == "step" else (3, 12)
    return Case(op, mode, B, T, 6, 5, dtype)


def test_a_run_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    words = "--ops gru --mode op,train,step,stacked,memory --shapes 2x3x4x8 --peers none --rounds 1 --json"
    command = [sys.executable, "-m", "benchmarks", *words.split(), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["version"] == 1
    assert not result["interrupted"]
    assert result["environment"]["threads"] == pyrnn.get_num_threads()
    assert result["bandwidth_gbs"] > 0
    modes = [cell["mode"] for cell in result["cells"]]
    assert modes == ["op", "train", "step", "stacked-forward", "stacked-train"]
    for cell in result["cells"]:
        times = cell["contenders"]["pyrnn"]
        assert list(cell["contenders"]) == ["pyrnn"]
        assert len(times["samples_ms"]) == 1
        assert times["median_ms"] > 0
        assert cell["best"] is None
        assert 0 < cell["share_of_peak"] < 1
        assert f"| gru | {'1x1x4x8' if cell['mode'] == 'step' else '2x3x4x8'} |" in done.stdout
    assert result["memory"][0]["shape"] == "2x3x4x8"
    assert result["memory"][0]["bytes"].keys() == {"pyrnn"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", TIMED)
@pytest.mark.parametrize("peer", PEERS)
def test_peers_give_the_same_results(peer: str, mode: str, dtype: str) -> None:
    if missing(peer):
        pytest.skip(missing(peer))
    threads = pyrnn.get_num_threads()  # torch and NumPy's BLAS keep what they are told
    for op in ("rnn", "lstm", "gru"):
        case = case_of(op, mode, dtype)
        data = draw_data(case)
        expected = ours.prepare_pyrnn(case, data, threads)["pyrnn"].results()
        try:
            runs = prepare(peer, case, data, threads)
        except UnableError:
            assert peer in ("onnxruntime", "openvino")
            continue
        for run in runs.values():
            assert not differences(expected, run.results(), dtype)
            run.call()
            assert not differences(expected, run.results(), dtype), "a call must leave the results as they are"


def test_a_wrong_peer_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_reference = ours.prepare_reference

    def swapped(case: Any, data: Any, threads: int) -> Any:
        blocks = np.split(data.model.weight_hh_l0.write(), 4)
        blocks[0][...], blocks[1][...] = blocks[1].copy(), blocks[0].copy()  # gates i and f
        return prepare_reference(case, data, threads)

    monkeypatch.setattr(ours, "prepare_reference", swapped)
    words = "--ops lstm --mode op --shapes 2x9x8 --peers reference --rounds 1"
    assert main(words.split()) == 1
    told = capsys.readouterr()
    assert "WRONG RESULT: reference, lstm op 2x9x8: another result than pyrnn's: y differs by" in told.err
    assert "| wrong |" in told.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ops lstm,rnnn", "argument --ops: expected rnn, lstm, gru, comma-separated, got 'rnnn'"),
        ("--mode fast", "got 'fast'"),
        ("--shapes 1x2", "expected BxTxH, BxTxIxH or one of readme, grid, odd, full, comma-separated, got '1x2'"),
        ("--shapes 1x0x3", "got '1x0x3'"),
        ("--shapes 1x2x3 --random 4", "not allowed with argument"),
        ("--random 0", "expected a whole number from 1 on, got '0'"),
        ("--rounds -1", "argument --rounds: expected a whole number from 1 on, got '-1'"),
        ("--threads two", "argument --threads: expected a whole number from 1 on, got 'two'"),
        ("--budget nan", "argument --budget: expected seconds above 0, got 'nan'"),
        ("--peers none,torch", "argument --peers: none stands alone, got none,torch"),
        ("--json /nowhere/at/all.json", "argument --json: there is no folder /nowhere/at"),
        ("--mode ragged --shapes 8x100x64", "ragged-forward: 1 of 1 shapes left out: it takes B ≥ 32 and T ≥ 10"),
        ("--mode end-to-end --dtype float64", "argument --dtype: end-to-end is float32, got float64"),
    ],
)
def test_bad_arguments(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_shapes() -> None:
    assert parse_shapes("1x2x3, 4x5x6x7,1x2x3") == [(1, 2, 3, 3), (4, 5, 6, 7)]
    assert parse_shapes("readme,odd") == SETS["readme"] + SETS["odd"]
    assert len(FULL) == 100
    drawn = draw_shapes(200, 5)
    assert drawn == draw_shapes(200, 5) != draw_shapes(200, 6)
    for B, T, I, H in drawn:
        assert 1 <= B <= 128
        assert 1 <= T <= 400
        assert 8 <= min(I, H) <= max(I, H) <= 1024
        assert lstm_flops((B, T, I, H)) <= 2e10


def test_operations_and_bytes() -> None:
    assert Case("lstm", "forward", 2, 3, 5, 7, "float32").flops == 2 * 6 * 28 * 12
    assert Case("gru", "train", 2, 3, 5, 7, "float32").flops == 3 * 2 * 6 * 21 * 12
    assert Case("rnn", "stacked-forward", 1, 1, 5, 7, "float32").flops == 2 * 2 * 7 * 12 + 2 * 2 * 7 * 21
    assert Case("rnn", "op", 2, 3, 5, 7, "float64").bytes == 8 * (6 * 12 + 7 * 12)
    ragged = Case("lstm", "ragged-forward", 40, 50, 5, 7, "float32")
    assert ragged.lengths.min() >= 5
    assert ragged.steps == ragged.lengths.sum() < 40 * 50


def test_every_contender_is_timed_in_each_round() -> None:
    order: list[str] = []

    def called(name: str) -> Any:
        return lambda: order.append(name) or measure.time.sleep(0.03)

    times, readings = measure.interleave({"a": called("a"), "b": called("b")}, 2, each_round=lambda: 7.0)
    assert order[:2] == ["a", "b"]  # each once to be known; then, in any order, a call to wake up and a sample
    for turns in (order[2:6], order[6:]):
        assert turns in ([*"aabb"], [*"bbaa"])
    assert readings == [7.0, 7.0]
    assert all(time.calls == len(time.samples) == 2 and time.median > 29 for time in times.values())
    assert len(measure.interleave({"a": called("a")}, 9, budget=1e-9)[0]["a"].samples) == measure.FEWEST


@pytest.mark.parametrize("n", [1, 5, 6, 15, 40])
def test_the_interval_covers_the_median(n: int) -> None:
    own = [1.0] * n
    found = measure.ratio([float(i) for i in range(1, n + 1)], own)
    assert found.median == (n + 1) / 2
    if n < 6:
        assert found.low is found.high is None
        return
    k = int(found.low)  # the k-th smallest and the k-th largest
    assert found.high == n + 1 - k
    outside = 2 * sum(math.comb(n, i) for i in range(k)) / 2**n
    assert outside <= 0.05 < outside + 2 * math.comb(n, k) / 2**n


def test_the_peak_is_that_of_the_threads_asked_for() -> None:
    machine = peak.Machine(1)
    single, double = (max(machine.peak(dtype) for _ in range(5)) for dtype in ("float32", "float64"))
    assert 0 < double < single


def test_end_to_end_stages_train_as_the_whole_step_does() -> None:
    size = Size(2, 3, 4, 5, 11)
    whole, staged = (trainers(size, 1, [])["pyrnn"] for _ in range(2))
    for _ in range(3):
        whole.step()
        assert list(dict(staged.stages())) == list(size.costs())
    assert whole.step() == staged.step()
