"""The property kit's own machinery: bounds, reports, counterexamples, the ways in."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrnn
from pyrnn.backend import Claim
from pyrnn.reference.attention import softmax
from pyrnn.reference.backend import ReferenceBackend
from pyrnn.testing import (
    PROPERTIES,
    Call,
    attention,
    check_backend,
    check_gradients,
    check_op,
    make_backend_tests,
    replay,
    strategies,
)
from pyrnn.testing.bounds import UNIT, Bounded, allowed
from pyrnn.testing.check import run_property
from pyrnn.testing.subject import BackendSubject

# --- bounds ------------------------------------------------------------------------------------------------

EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "sum": lambda a, b: a.sum(axis=0) + b,
    "product": lambda a, b: a * b * a,
    "matmul": lambda a, b: a @ b.T - b,
    "exp": lambda a, b: np.exp(a - b) * a,
    "tanh": lambda a, b: np.tanh(a @ b) - np.tanh(b),
    "division": lambda a, b: a / (1 + np.exp(-b)),
    "softmax": lambda a, b: softmax(a @ b.swapaxes(0, 1) * 0.3, np.tri(*a.shape, dtype=bool)),
    "norm": lambda a, b: (a - a.mean(axis=-1, keepdims=True)) / np.sqrt((b * b).mean(axis=-1, keepdims=True) + 0.5),
}


@given(st.sampled_from(list(EXPRESSIONS)), st.integers(1, 20), st.integers(0, 2**16), st.sampled_from([1e-3, 1.0, 8.0]))
@settings(max_examples=200)
def test_float32_lies_within_the_bound(name: str, size: int, seed: int, scale: float) -> None:
    a, b = np.random.default_rng(seed).uniform(-scale, scale, (2, size, size)).astype(np.float32)
    unit = UNIT["float32"] + 2.0**-53
    want = EXPRESSIONS[name](Bounded(a, unit), Bounded(b, unit))
    got = EXPRESSIONS[name](a, b)
    assert got.dtype == np.float32
    assert (np.abs(got.astype(np.float64) - want.value) <= allowed(want, "float32")).all()


ONE = dict.fromkeys(["B", "T", "I", "H", "O", "Hq", "Hkv", "N", "D", "Dv", "Dq", "Dk", "A", "Cin", "Cout", "K"], 1)
OPS = ["rnn", "lstm", "gru", "linear", "softmax", "layer_norm", "attention", "additive_attention", "causal_conv1d"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bound_refuses_a_hundred_epsilons(op: str, dtype: str) -> None:
    class Off(ReferenceBackend):
        pass

    def forward(self: Any, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        outputs, saved = getattr(ReferenceBackend, f"{op}_forward")(self, arrays, config, needs=needs)
        return tuple(o * o.dtype.type(1 + 100 * np.finfo(o.dtype).eps) for o in outputs), saved

    setattr(Off, f"{op}_forward", forward)
    call = Call(op, {**ONE, "F": 2, "M": 2, "...": (1,)}, dtype=dtype)
    replay("reference", "value", call)
    with pytest.raises(AssertionError, match="expected"):
        replay(Off(), "value", call)


# --- reports of backends -----------------------------------------------------------------------------------


class DroppedBias(ReferenceBackend):
    """linear, and the bias is not added."""

    name = "dropped"
    claims = {"linear": Claim()}

    def linear_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        return super().linear_forward(arrays._replace(b=None), config, needs=needs)


class Alone(pyrnn.Backend):
    """A plugin with one op, without a claim."""

    name = "alone"

    def softmax_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        return super().softmax_forward(arrays, config, needs=needs)


QUICK = {"max_examples": 20, "progress": False}


def test_a_good_report() -> None:
    report = check_backend("reference", ["linear", "softmax"], properties=["value", "batch-bitwise", "mask"], **QUICK)
    assert report.ok and not report.failures
    assert [r.id for r in report.results] == [
        "linear/value",
        "linear/batch-bitwise",
        "softmax/value",
        "softmax/batch-bitwise",
    ]
    assert report["linear/value"].status == "passed" and report["linear/value"].examples == 20
    assert report["linear/batch-bitwise"].status == "not claimed"
    assert report.table().splitlines()[0].split() == ["property", "linear", "softmax"]
    assert str(report).endswith("reference: 2 passed, 2 not claimed") and repr(report) in f"<{report}>" + repr(report)
    with pytest.raises(KeyError):
        report["linear/mask"]


def test_json_has_it_all() -> None:
    report = check_backend(DroppedBias(), ["linear"], properties=["value"], **QUICK)
    data = json.loads(report.to_json())
    assert data["ok"] is False and data["subject"] == "dropped" and data["seed"] == 0 and data["max_examples"] == 20
    assert data["results"] == [{**vars(report.results[0])}]


def test_what_is_not_claimed_is_not_passed() -> None:
    report = check_backend("reference", ["linear"], properties=["batch-bitwise"], **QUICK)
    assert report.results[0].status == "not claimed" and not report.ok


def raised_by(code: str, names: dict[str, Any]) -> str:
    with pytest.raises(AssertionError) as caught:
        exec(code, dict(names))
    return str(caught.value)


def test_a_counterexample_runs_and_is_small_and_the_same_twice() -> None:
    first, second = (check_backend(DroppedBias(), properties=["value"], **QUICK) for _ in range(2))
    assert first.to_json() == second.to_json()
    failure = first["linear/value"]
    assert (
        not first.ok
        and failure.status == "failed"
        and failure.code in "\n".join(line.removeprefix("    ") for line in str(first).splitlines())
    )
    assert raised_by(failure.code, {"DroppedBias": DroppedBias}) == failure.reason
    assert "'I': 1, 'O': 1" in failure.code and "optional=('b',)" in failure.code


def test_expected_failures() -> None:
    reason = {"linear/value": "no bias"}
    report = check_backend(DroppedBias(), properties=["value"], xfail=reason, **QUICK)
    assert report["linear/value"].status == "expected failure" and not report.failures
    assert "fails, as expected: no bias" in str(report)
    report = check_backend("reference", ["linear"], properties=["value"], xfail=reason, **QUICK)
    assert report["linear/value"].status == "unexpected pass" and not report.ok
    with pytest.raises(ValueError, match="xfail: expected one of linear/value, got 'linear/values'"):
        check_backend("reference", ["linear"], properties=["value"], xfail={"linear/values": ""}, **QUICK)


def test_ops_by_default_are_the_backend_s_own() -> None:
    report = check_backend(Alone(), properties=["value"], **QUICK)
    assert [r.id for r in report.results] == ["softmax/value"] and report.ok
    assert {name.split("_")[1] for name in vars(make_backend_tests(Alone())) if name.startswith("test_")} == {"softmax"}
    assert check_backend(Alone(), ["linear"], properties=["value"], **QUICK).ok  # inherited, and asked for


@pytest.mark.parametrize("make", [check_backend, make_backend_tests])
def test_an_op_that_is_lacking(make: Any) -> None:
    with pytest.raises(ValueError, match=r"ops: expected ops that 'alone' has \(linear, .*\), got 'gru'"):
        make(Alone(), ops=["gru"])
    with pytest.raises(ValueError, match=r"ops: expected one of .*, got 'transformer'"):
        make(Alone(), ops=["transformer"])


def test_words_that_are_not_known() -> None:
    with pytest.raises(ValueError, match="properties: expected one of"):
        check_backend("reference", properties=["values"])
    with pytest.raises(ValueError, match="max_examples"):
        check_backend("reference", max_examples=0)


def test_a_fault_now_and_then_is_found() -> None:
    class Sometimes(DroppedBias):
        calls = 0

        def linear_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> Any:
            self.calls += 1
            return (super() if self.calls % 20 == 0 else ReferenceBackend()).linear_forward(arrays, config, needs=needs)

    result = run_property(BackendSubject(Sometimes()), "linear", PROPERTIES["value"], 100, seed=0, shrink=False)
    assert result.status == "failed" and "now and then" in result.reason


# --- functions ---------------------------------------------------------------------------------------------


def plain_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    if x.dtype not in (np.float32, np.float64):
        raise TypeError("float32 or float64")
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


def unchecked_linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    y = x @ w.T
    return y if b is None else y + b


def test_a_plain_function() -> None:
    report = check_op("softmax", plain_softmax, **QUICK)
    assert report.ok, str(report)
    assert report["softmax/gradient"].reason == "no backward was given"
    assert report["softmax/errors"].status == report["softmax/threads"].status == "not claimed"
    assert report["softmax/refusal"].status == "passed"


def test_a_function_that_broadcasts_in_silence() -> None:
    failure = check_op("linear", unchecked_linear, properties=["refusal"], **QUICK)["linear/refusal"]
    assert failure.status == "failed" and "but it was taken" in failure.reason
    assert raised_by(failure.code, {"unchecked_linear": unchecked_linear}) == failure.reason


def test_a_function_with_gradients() -> None:
    def vjp(*arrays: Any, **config: Any) -> Any:
        return pyrnn.vjp(pyrnn.lstm, *arrays, **config)

    report = check_op("lstm", pyrnn.lstm, vjp=vjp, properties=["value", "gradient", "padding", "refusal"], **QUICK)
    assert report.ok and all(r.status == "passed" for r in report.results), str(report)


def test_options_that_are_arrays_are_handed_over_as_arrays() -> None:
    seen = []

    def embedding(weight: np.ndarray, *, indices: Any) -> np.ndarray:
        seen.append(indices)
        return weight[indices]

    assert check_op("embedding", embedding, properties=["value"], **QUICK).ok
    assert all(isinstance(i, np.ndarray) and i.dtype == np.int64 for i in seen)


def test_what_a_signature_lacks_is_not_asked() -> None:
    def lstm(x: Any, w_ih: Any, w_hh: Any, b: Any) -> Any:
        return pyrnn.lstm(x, w_ih, w_hh, b)

    report = check_op("lstm", lstm, properties=["value", "reversal"], **QUICK)
    assert report["lstm/value"].status == "passed" and report["lstm/reversal"].status == "not claimed"
    with pytest.raises(TypeError, match="function: expected parameters named w_hh"):
        check_op("lstm", lambda x, w_ih: x)
    with pytest.raises(TypeError, match="callable"):
        check_op("lstm", "lstm")  # type: ignore[arg-type]


def test_a_function_that_tells_no_signature() -> None:
    class Binding:
        @property
        def __signature__(self) -> Any:  # as of some compiled functions
            raise ValueError("no signature found")

        def __call__(self, **given: Any) -> Any:
            return pyrnn.softmax(**given)

    assert check_op("softmax", Binding(), properties=["value"], **QUICK).ok


# --- gradients of any function -------------------------------------------------------------------------------


def test_check_gradients() -> None:
    x, w = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(0, 1, 9).reshape(3, 3)
    check_gradients(lambda x, w: (pyrnn.linear(x, w).tanh(), (x * x).sum()), x, w)
    with pytest.raises(AssertionError, match=r"gradient of argument 1\[0, 0\]: expected"):
        check_gradients(lambda x, w: pyrnn.linear(x, w.detach()) + 0 * w.sum(), x, w)
    with pytest.raises(TypeError, match="arrays"):
        check_gradients(lambda: None)
    with pytest.raises(TypeError, match="Tensors"):
        check_gradients(lambda x: 1.0, x)


# --- strategies and calls ------------------------------------------------------------------------------------


@given(strategies.calls("lstm", sizes={"B": (1, 4), "T": (0, 20)}, regimes=("tiny",)))
def test_strategies_are_for_anybody(call: Call) -> None:
    assert 1 <= call.sizes["B"] <= 4 and call.sizes["T"] <= 20
    y, *_ = pyrnn.lstm(**call.arrays, **call.options)
    assert y.shape == (call.sizes["B"], call.sizes["T"], call.sizes["H"])
    again = eval(repr(call))
    assert again == call
    for name, array in call.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize("op", ["lstm", "linear", "cross_entropy"])
def test_every_kind_of_size_takes_its_turn(op: str) -> None:
    seen = []

    class Watching(ReferenceBackend):
        def has(self, name: str) -> bool:
            return True

    def forward(self: Any, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        seen.append(arrays[0].shape)
        return getattr(ReferenceBackend, f"{op}_forward")(self, arrays, config, needs=needs)

    setattr(Watching, f"{op}_forward", forward)
    assert check_backend(Watching(), [op], properties=["value"], max_examples=100, progress=False).ok
    assert max(shape[-1] for shape in seen) > 256 and max(shape[0] for shape in seen if shape) > 128


# --- ways in -------------------------------------------------------------------------------------------------

SUITE = """
from pyrnn.reference.backend import ReferenceBackend
from pyrnn.testing import make_backend_tests

class Wrong(ReferenceBackend):
    name = "wrong"
    def linear_forward(self, arrays, config, *, needs=None):
        (y,), saved = super().linear_forward(arrays, config, needs=needs)
        return (y + 1,), saved

TestGood = make_backend_tests("reference", ops=["linear"], max_examples=5)
TestWrong = make_backend_tests(Wrong(), ops=["linear"], xfail={"linear/value": "adds 1"}, max_examples=5)
TestPasses = make_backend_tests("reference", ops=["linear"], xfail={"linear/nan": "it does not"}, max_examples=5)
"""


def run_pytest(*arguments: str, cwd: Any) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300).stdout


def test_a_plugin_s_own_tests(tmp_path: Any) -> None:
    (tmp_path / "test_plugin.py").write_text(SUITE)
    said = run_pytest("test_plugin.py", "-k", "value or gradient or nan or batch_bitwise", cwd=tmp_path)
    assert "PASSED test_plugin.py::TestGood::test_linear_value" in said
    assert "XFAIL test_plugin.py::TestWrong::test_linear_value - adds 1" in said
    assert "FAILED test_plugin.py::TestWrong::test_linear_gradient" in said
    assert "FAILED test_plugin.py::TestPasses::test_linear_nan" in said and "XPASS(strict)" in said
    assert "not claimed: 'batch' not among its claimed invariances" in said


def test_a_suite_has_a_test_for_each_property() -> None:
    found = set()
    for op, others in (("lstm", {"mask", "unseen", "dilation"}), ("attention", {"padding", "chunk", "dilation"})):
        names = {name for name in vars(make_backend_tests("reference", ops=[op])) if name.startswith("test_")}
        asked = {name for name in PROPERTIES if f"test_{op}_{name.replace('-', '_')}" in names}
        assert len(asked) == len(names) and not asked & others
        found |= asked
    for op in ("causal_conv1d", "cross_entropy"):
        names = vars(make_backend_tests("reference", ops=[op]))
        found |= {name for name in PROPERTIES if f"test_{op}_{name.replace('-', '_')}" in names}
    assert found == set(PROPERTIES)


@given(strategies.calls("attention"), strategies.calls("causal_conv1d", config={"dilation": (3,)}))
@settings(max_examples=50)
def test_a_call_with_what_is_broadcast_and_derived_is_rebuilt(one: Call, other: Call) -> None:
    for call in (one, other):
        again = eval(repr(call))
        assert again == call
        for name, array in call.arrays.items():
            assert array.shape == call.shape(name)
            np.testing.assert_array_equal(again.arrays[name], array)
        for name, value in call.options.items():
            np.testing.assert_array_equal(np.array(again.options[name], object), np.array(value, object))
    assert other.shape("left") == (other.sizes["B"], 3 * (other.sizes["K"] - 1), other.sizes["Cin"])
    assert other.shape("w")[1] * other.options.get("groups", 1) == other.sizes["Cin"]


def test_attention_is_drawn_with_some_of_its_options_at_a_time() -> None:
    shares = {"none": 0, "some": 0, "all": 0}

    @given(strategies.calls("attention", regimes=("small",)))
    @settings(max_examples=200)
    def count(call: Call) -> None:
        pairs = attention.seen_in(call)
        shares["all" if pairs.all() else "some" if pairs.any() else "none"] += 1

    count()
    assert min(shares.values()) > 5 and shares["some"] > 50, shares


BAR = "from pyrnn.testing import check_backend; check_backend('reference', ['softmax'], properties=['value'], {})"


@pytest.mark.parametrize(
    ("arguments", "shown"), [("max_examples=30", True), ("max_examples=30, progress=False", False)]
)
def test_the_bar_shows_on_a_terminal_only(arguments: str, shown: bool) -> None:
    pytest.importorskip("tqdm")
    code = BAR.format(arguments)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, check=True)
    assert piped.stderr == b""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 1024):
            said += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=100) == 0
    assert (b"reference" in said) is shown


def test_the_documentation_says_what_each_property_means() -> None:
    page = (Path(__file__).parent.parent / "docs" / "property-kit.md").read_text(encoding="utf-8")
    for prop in PROPERTIES.values():
        assert f"| `{prop.name}` | {prop.says} |" in page
