"""The benchmarks run, time nothing that gives another result, and refuse what they can't do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn
from pyrnn.backend import choose
from pyrnn.testing import check_backend

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the benchmarks are not installed with the package
sys.path.insert(0, str(ROOT / "tests" / "cuda"))

import fake_cupy  # noqa: E402

from benchmarks import gpu, measure, peak  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import FAMILIES, attention, conv, models  # noqa: E402
from benchmarks.cases.attention import draw_data as draw_attention  # noqa: E402
from benchmarks.cases.recurrent import (  # noqa: E402
    FULL,
    SETS,
    TIMED,
    Case,
    draw_data,
    draw_shapes,
    lstm_flops,
    parse_shapes,
)
from benchmarks.contenders import (  # noqa: E402
    PEERS,
    Run,
    UnableError,
    differences,
    missing,
    prepare,
    prepare_pyrnn,
    quickest,
)
from benchmarks.contenders.ours import recurrent as ours  # noqa: E402
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


# --- attention and convolution -------------------------------------------------------------------------------------

ATTENTION_SHAPES = ("1x2x40x8", "2x4/2x30x16", "1x2x300x8")  # the last is longer than the window
CONV_SHAPES = ("2x30x8k3d4", "1x20x6x10k2d30")


def family_cases(name: str, dtype: str) -> list[Any]:
    family = FAMILIES[name]
    shapes = family.parse_shapes(",".join(ATTENTION_SHAPES if name == "attention" else CONV_SHAPES))
    modes = [mode for modes in family.MODES.values() for mode in modes if mode in family.TIMED]
    return [case for mode in modes for case in family.plan(list(family.OPS), mode, shapes, dtype)[0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["attention", "conv"])
@pytest.mark.parametrize("peer", ["torch", "onnxruntime", "openvino", "reference"])
def test_peers_of_other_families_give_the_same_results(peer: str, name: str, dtype: str) -> None:
    if missing(peer):
        pytest.skip(missing(peer))
    compared = 0
    for case in family_cases(name, dtype):
        data = FAMILIES[name].draw_data(case)
        expected = prepare_pyrnn(case, data, 1)["pyrnn"].results()
        try:
            runs = prepare(peer, case, data, 1)
        except UnableError:
            assert peer in ("onnxruntime", "openvino")
            continue
        for run in runs.values():
            assert not differences(expected, run.results(), dtype), case
            run.call()
            assert not differences(expected, run.results(), dtype), "a call must leave the results as they are"
            compared += 1
    assert compared or dtype == "float64"


@pytest.mark.parametrize("mode", ["forward", "train", "decode"])
@pytest.mark.parametrize("op", ["full", "causal", "window"])
@pytest.mark.parametrize("group", [1, 2])
def test_every_form_of_attention_gives_the_same_results(op: str, mode: str, group: int) -> None:
    # Peers are timed in the form that is fastest, another one each time; here each form has to be right.
    torch_attention = pytest.importorskip("benchmarks.contenders.pytorch.attention")
    case = attention.Case(op, mode, 2, 2 * group, 2, 600, 8, "float32")
    data = draw_attention(case)
    expected = prepare_pyrnn(case, data, 1)["pyrnn"].results()
    forms = every_form(torch_attention, lambda: torch_attention.prepare_torch(case, data, 1))
    assert {"fused"} | ({"repeated"} if group > 1 else set()) <= set(forms)
    assert ("blocks" in forms) == (op == "window" and mode != "decode")
    assert ("products" in forms) == (mode == "decode")
    for name, run in forms.items():
        assert not differences(expected, run.results(), "float32"), name


@pytest.mark.parametrize("mode", ["forward", "decode"])
@pytest.mark.parametrize("op", ["full", "causal", "window"])
def test_every_operator_of_onnx_runtime_gives_the_same_results(op: str, mode: str) -> None:
    if missing("onnxruntime"):
        pytest.skip(missing("onnxruntime"))
    from benchmarks.contenders.onnx_runtimes import attention as onnx_attention

    case = attention.Case(op, mode, 2, 2, 2, 600, 8, "float32")
    data = draw_attention(case)
    expected = prepare_pyrnn(case, data, 1)["pyrnn"].results()
    forms = every_form(onnx_attention, lambda: onnx_attention.prepare_onnxruntime(case, data, 1))
    assert {"attention", "products"} <= set(forms)
    assert ("grouped" in forms) == (op != "full")
    for name, run in forms.items():
        assert not differences(expected, run.results(), "float32"), name


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("op", ["dense", "depthwise"])
def test_every_form_of_convolution_gives_the_same_results(op: str, mode: str) -> None:
    torch_conv = pytest.importorskip("benchmarks.contenders.pytorch.conv")
    case = conv.Case(op, mode, 2, 30, 6, 6, 3, 4, "float32")
    data = conv.draw_data(case)
    expected = prepare_pyrnn(case, data, 1)["pyrnn"].results()
    forms = every_form(torch_conv, lambda: torch_conv.prepare_torch(case, data, 1))
    assert len(forms) == 4
    for name, run in forms.items():
        assert not differences(expected, run.results(), "float32"), name


def every_form(module: Any, prepare_it: Any) -> dict[str, Any]:
    """Return all forms among which a contender takes the quickest."""
    found: dict[str, Any] = {}

    def all_of_them(forms: Any) -> Any:
        for name, make in forms.items():
            with suppress(UnableError):
                found[name] = make()
        return next(iter(found.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "quickest", all_of_them)
        prepare_it()
    return found


def test_the_quickest_form_is_taken() -> None:
    def unable() -> Run:
        raise UnableError("not this one")

    slow, fast = (Run(lambda s=s: time.sleep(s), None) for s in (0.01, 0.001))
    forms = {"unable": unable, "slow": lambda: slow, "fast": lambda: fast}
    assert quickest(forms).form == "fast"
    assert quickest(forms).call is fast.call
    with pytest.raises(UnableError, match="not this one"):
        quickest({"unable": unable})


def test_a_wrong_mask_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.contenders.ours import attention as ours_attention

    prepare_reference = ours_attention.prepare_reference

    def unmasked(case: Any, data: Any, threads: int) -> Any:
        return prepare_reference(replace(case, op="full"), data, threads)

    monkeypatch.setattr(ours_attention, "prepare_reference", unmasked)
    words = "--family attention --ops full,causal --mode forward --shapes 1x2x9x8 --peers reference --rounds 1"
    assert main(words.split()) == 1
    told = capsys.readouterr()
    assert "WRONG RESULT: reference, causal forward 1x2x9x8: another result than pyrnn's: y differs by" in told.err
    assert "| causal | 1x2x9x8 |" in told.out
    assert "| reference | full | forward | 1 |" in told.out


def test_other_families_by_the_command_line(tmp_path: Path) -> None:
    file, picture = tmp_path / "attention.json", tmp_path / "attention.png"
    words = "--family attention --mode forward,train,decode --shapes 1x4/2x20x8 --peers none --rounds 1 --json"
    assert main([*words.split(), str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["settings"]["family"] == "attention"
    found = [(cell["op"], cell["mode"]) for cell in result["cells"]]
    both = [(op, mode) for mode in ("forward", "train") for op in ("full", "causal", "window")]
    assert found == [*both, ("causal", "decode"), ("window", "decode")]
    for cell in result["cells"]:
        assert cell["shape"] == "1x4/2x20x8"
        own_full = cell["op"] != "full" and cell["mode"] != "decode"
        assert ("full" in cell["contenders"]) == own_full == (cell["beside"] is not None)
    words = "--family conv --mode forward,op,train --shapes 2x9x6k3d2 --rounds 1 --peers"
    if missing("torch") or not find_spec("matplotlib"):
        assert main([*words.split(), "none"]) == 0
        return
    assert main([*words.split(), "torch", "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


def test_memory_of_attention(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRNN_BACKEND", choose("attention").name)  # it is measured in a process of its own
    words = "--family attention --ops causal --mode memory --shapes 1x1x512x8 --peers none"
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert "Peak memory of a forward call" in out
    assert "Peak memory of a training call" in out
    assert out.count("| causal | 1x1x512x8 |") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--family convolution", "argument --family: invalid choice: 'convolution'"),
        ("--family attention --ops lstm", "argument --ops: expected full, causal, window, comma-separated, got 'lstm'"),
        ("--family conv --mode decode", "argument --mode: expected forward, op, train, comma-separated, got 'decode'"),
        ("--family attention --shapes 1x8x64", "expected BxHxNxD, BxHq/HkvxNxD or one of readme, grid, odd, full"),
        ("--family attention --shapes 1x8/3x64x8", "expected Hq that is a multiple of Hkv, got '1x8/3x64x8'"),
        ("--family attention --shapes 1x8/0x64x8", "got '1x8/0x64x8'"),
        ("--family conv --shapes 1x8x64k0", "got '1x8x64k0'"),
        ("--family attention --ops full --mode decode", "decode: full left out: a last token's every key is causal's"),
        ("--family models --peers onnxruntime", "argument --peers: expected torch, numba, reference, none"),
    ],
)
def test_bad_arguments_of_other_families(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_shapes_of_attention() -> None:
    assert attention.parse_shapes("1x8x64x32, 2x8/2x3x4,1x8x64x32") == [(1, 8, 8, 64, 32), (2, 8, 2, 3, 4)]
    grid = [shape for shape in attention.FULL if shape[1] == shape[2]]
    assert {(B * heads, N, D) for B, heads, _, N, D in grid} == {
        (rows, N, D) for rows in (8, 64) for N in (128, 512, 2048, 8192) for D in (32, 64, 128)
    }
    drawn = attention.draw_shapes(100, 5)
    assert drawn == attention.draw_shapes(100, 5) != attention.draw_shapes(100, 6)
    for B, heads, shared, N, D in drawn:
        assert 1 <= B <= 8
        assert heads in (shared, 2 * shared, 4 * shared)
        assert 64 <= N <= 8192
        assert 16 <= D <= 128
    assert 5 < sum(heads > shared for _, heads, shared, _, _ in drawn) < 50
    for shape in drawn[:20]:  # what a table shows can be asked for again
        case = attention.Case("full", "forward", *shape, "float32")
        assert attention.parse_shapes(case.shape) == [shape]


@pytest.mark.parametrize("N", [1, 100, 256, 257, 1000])
@pytest.mark.parametrize("op", ["full", "causal", "window"])
def test_the_pairs_that_are_counted_are_those_of_the_mask(op: str, N: int) -> None:
    for mode in ("forward", "decode"):
        case = attention.Case(op, mode, 1, 1, 1, N, 4, "float32")
        mask = np.ones((case.queries, N), bool) if case.mask is None else case.mask
        assert case.pairs == mask.sum()
        assert case.keys_read == mask.any(axis=0).sum()
        assert case.flops == 4 * 4 * case.pairs
    assert attention.Case(op, "train", 2, 4, 2, N, 8, "float32").bytes == 2 * 4 * 2 * (2 * 4 + 2 * 2) * N * 8


def test_shapes_of_convolutions() -> None:
    assert conv.parse_shapes("16x400x128x64k5d8,1x2x3") == [(16, 400, 128, 64, 5, 8), (1, 2, 3, 3, 3, 1)]
    for shape in conv.draw_shapes(50, 5):
        B, T, inputs, outputs, taps, dilation = shape
        assert 1 <= B <= 32
        assert 16 <= T <= 4096
        assert 32 <= min(inputs, outputs) <= max(inputs, outputs) <= 512
        assert 2 <= taps <= 7
        assert 1 <= dilation <= 512
        assert conv.dense_flops(shape) <= 2e10
        assert conv.parse_shapes(conv.Case("dense", "forward", *shape, "float32").shape) == [shape]
    assert conv.draw_shapes(9, 1) == conv.draw_shapes(9, 1) != conv.draw_shapes(9, 2)
    depthwise, notes = conv.plan(["depthwise"], "forward", [(1, 9, 4, 4, 3, 1), (1, 9, 4, 8, 3, 1)], "float32")
    assert [case.shape for case in depthwise] == ["1x9x4k3d1"]
    assert not notes
    assert depthwise[0].flops == 2 * 9 * 4 * 3
    assert conv.Case("dense", "train", 2, 9, 4, 8, 3, 1, "float32").flops == 3 * 2 * 18 * 4 * 8 * 3


# --- models, step by step ------------------------------------------------------------------------------------------


def model_case(op: str, dtype: str = "float32") -> Any:
    return models.Case(op, "step", 8, 3, 5, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", models.OPS)
def test_models_give_the_same_results_in_every_form(op: str, dtype: str) -> None:
    torch_models = pytest.importorskip("benchmarks.contenders.pytorch.models")
    case = model_case(op, dtype)
    data = models.draw_data(case)
    own = prepare_pyrnn(case, data, 1)["pyrnn"]
    expected = own.results()
    forms = every_form(torch_models, lambda: torch_models.prepare_torch(case, data, 1))
    assert set(forms) == {"eager", "script"}
    for name, run in {"pyrnn": own, **forms, **prepare("reference", case, data, 1)}.items():
        for _ in range(models.TURN + 3):  # a Transformer has gone back to its past meanwhile
            run.call()
        assert not differences(expected, run.results(), dtype), name


@pytest.mark.parametrize("op", models.OPS)
def test_a_models_weights_are_counted(op: str) -> None:
    case = model_case(op)
    matrices = [array for array in models.draw_data(case).model.state_dict().values() if array.ndim > 1]
    lengths = [array for array in matrices if array.size == array.shape[0]]  # a weight norm's, folded before a step
    assert case.weights == sum(array.size for array in matrices) - sum(array.size for array in lengths)


@pytest.mark.parametrize("op", ["tcn", "transformer"])
def test_models_by_the_command_line(tmp_path: Path, op: str) -> None:
    file = tmp_path / "models.json"
    words = f"--family models --ops {op} --shapes 8x2x5,8x2 --peers none --rounds 1 --json"
    assert main([*words.split(), str(file)]) == 0
    cells = json.loads(file.read_text())["cells"]
    assert [cell["shape"] for cell in cells] == (["8x2x5", "8x2x512"] if op == "transformer" else ["8x2"])


def test_shapes_of_models() -> None:
    assert models.parse_shapes("8x2,16x3x100") == [(8, 2, models.TOKENS), (16, 3, 100)]
    with pytest.raises(ValueError, match="expected CxL, CxLxN or one of grid, comma-separated, got '8'"):
        models.parse_shapes("8")
    drawn = models.draw_shapes(30, 1)
    assert drawn == models.draw_shapes(30, 1) != models.draw_shapes(30, 2)
    assert all(16 <= C <= 512 and 2 <= L <= 12 and 16 <= N <= 2048 for C, L, N in drawn)


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed, and it may run")
def test_the_gpu_s_benchmark_says_why_it_can_not_run() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "backend 'cupy' can't be used" in done.stderr


def test_the_gpu_s_kit_is_the_kit(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = ["softmax", "linear"]
    monkeypatch.setattr("pyrnn.testing.subject.BackendSubject.ops", lambda self, asked=None: asked or ops)
    shared_out, whole = gpu.kit("reference", 1), check_backend("reference", max_examples=1, progress=False)
    assert shared_out.ok and shared_out.results == whole.results


def test_a_graph_of_the_gpu_s_benchmark_keeps_its_memory() -> None:
    with fake_cupy.installed() as cupy:
        x, stream = cupy.ones(3), cupy.cuda.Stream(non_blocking=True)
        with stream:
            replay = gpu._graphed(lambda: x * 2 + 1, stream, theirs=False)
            x[...] = 3
            assert (replay().get() == 7).all()


def test_the_gpu_s_tables() -> None:
    case = next(gpu.cases())
    times = {"pyrnn": {"ms": 2.0}, "torch float32": {"ms": 3.0, "ratio": 1.5}}
    record = {**case._asdict(), "shape": list(case.shape), "error": 1e-6, "wrong": False, "as called": times}
    text = gpu.table([record, {**record, "failed": "RuntimeError: no"}])
    assert "| lstm forward 16×1024×768 | float32 | as called | 2.000 | 1.95 | 1.50 (torch float32) | 1.0e-06 |" in text
    assert "| lstm | forward | float32 | as called | 1 | 1.50 | 1.50 lstm forward 16×1024×768 |" in text
    assert "failed: RuntimeError: no" in text
    assert len(set(gpu.cases())) == len(list(gpu.cases())) > 800
