"""The registry and the choice of a backend: order, errors, plugins found by entry point."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyrnn
from pyrnn import backend as registry

X = np.ones((1, 2, 3), np.float32)
W = (np.ones((4, 3), np.float32), np.ones((4, 4), np.float32))


class Recorder(pyrnn.Backend):
    """Has nothing but rnn, and counts its calls."""

    name = "recorder"
    claims = {"rnn": registry.Claim()}

    def __init__(self) -> None:
        self.calls = 0

    def rnn_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        self.calls += 1
        return pyrnn.get_backend("reference").rnn_forward(arrays, config, needs=needs)

    def rnn_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        self.calls += 100
        return pyrnn.get_backend("reference").rnn_backward(saved, grad_outputs, needs=needs)


def test_order_of_choice() -> None:
    outer, inner, own, model = Recorder(), Recorder(), Recorder(), Recorder()
    with registry.model_backend(model):
        pyrnn.rnn(X, *W)
        assert model.calls == 1
        with pyrnn.use_backend(outer):
            pyrnn.rnn(X, *W)
            with pyrnn.use_backend(inner) as chosen:
                assert chosen is inner
                pyrnn.rnn(X, *W)
                pyrnn.rnn(X, *W, backend=own)
            pyrnn.rnn(X, *W)
        assert (outer.calls, inner.calls, own.calls, model.calls) == (2, 1, 1, 1)


def test_backward_runs_on_the_backend_of_its_forward() -> None:
    recorder = Recorder()
    weight = pyrnn.Tensor(W[0].copy(), requires_grad=True)
    with pyrnn.use_backend(recorder):
        y, _ = pyrnn.rnn(X, weight, W[1])
    y.sum().backward()
    assert recorder.calls == 101


def test_an_op_that_is_not_there() -> None:
    message = (
        r"backend 'recorder' has no op 'lstm'; available here with it: cython, reference. "
        r'A fallback is asked for: use_backend\("recorder", otherwise="cython"\)'
    )
    lstm_weights = (np.ones((16, 3), np.float32), np.ones((16, 4), np.float32))
    with pyrnn.use_backend(Recorder()), pytest.raises(NotImplementedError, match=message):
        pyrnn.lstm(X, *lstm_weights)
    with pyrnn.use_backend(Recorder(), otherwise="cython"):
        assert pyrnn.lstm(X, *lstm_weights).y.shape == (1, 2, 4)
    assert pyrnn.linear(X, W[0], backend=Recorder()).shape == (1, 2, 4), "the basic family has defaults"


def test_what_a_backend_has_are_its_methods() -> None:
    class Unclaimed(Recorder):
        claims = {}

    backend = Unclaimed()
    assert backend.has("rnn") and backend.has("linear") and not backend.has("lstm") and not backend.has("nonsense")
    with pyrnn.use_backend(backend, otherwise="cython"):
        pyrnn.rnn(X, *W)
    assert backend.calls == 1, "its own method comes before the fallback"


def test_a_plugin_learns_the_compute_mode() -> None:
    class Fast(Recorder):
        compute_modes = ("tf32",)

    assert registry.current_compute() is None
    with pyrnn.use_backend(Fast(), compute="tf32"):
        assert registry.current_compute() == "tf32"
    with (
        pytest.raises(ValueError, match=r"compute: backend 'recorder' takes None or 'tf32', got 'fp8'"),
        pyrnn.use_backend(Fast(), compute="fp8"),
    ):
        pass


def test_errors_of_the_choice() -> None:
    with pytest.raises(ValueError, match=r"backend: expected one of cython, reference.*, got 'nope'"):
        pyrnn.get_backend("nope")
    with (
        pytest.raises(ValueError, match=r"compute: backend 'cython' takes None, got 'tf32'"),
        pyrnn.use_backend("cython", compute="tf32"),
    ):
        pass

    class Elsewhere(Recorder):
        array_type = list

    with (
        pytest.raises(ValueError, match=r"otherwise: expected a backend on list arrays"),
        pyrnn.use_backend(Elsewhere(), otherwise="cython"),
    ):
        pass


def test_a_foreign_array_is_told_the_way() -> None:
    class Foreign:
        pass

    Foreign.__module__ = "cupy"
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray .* got cupy.Foreign; copy it with .get\(\)"):
        pyrnn.rnn(Foreign(), *W)
    with pytest.raises(TypeError, match=r"array: expected an object with __dlpack__, got Foreign"):
        pyrnn.from_dlpack(Foreign())
    assert np.shares_memory(pyrnn.from_dlpack(X), X)


def test_a_new_thread_starts_from_the_default() -> None:
    names = []
    with pyrnn.use_backend("reference"):
        names.append(registry.choose("rnn").name)
        thread = threading.Thread(target=lambda: names.append(registry.choose("rnn").name))
        thread.start()
        thread.join()
    assert names == ["reference", registry.DEFAULT]


def test_claims_are_what_we_mean_them_to_be() -> None:
    ops = {"rnn", "lstm", "gru", "linear", "layer_norm", "softmax", "embedding", "cross_entropy"}
    for name in ("cython", "reference"):
        claims = pyrnn.get_backend(name).claims
        assert set(claims) == ops == set(pyrnn.ops.OPS)
        assert all(claim.dtypes == ("float32", "float64") and not claim.options for claim in claims.values())
        promised = {op for op, claim in claims.items() if claim.invariances}
        assert promised == ({"rnn", "lstm", "gru", "linear"} if name == "cython" else set())
        assert all(claims[op].invariances == {"threads", "batch", "chunk", "weight gradients"} for op in promised)


def test_a_declared_op_and_its_function_have_one_signature() -> None:
    import inspect

    for name, op in pyrnn.ops.OPS.items():
        parameters = inspect.signature(getattr(pyrnn, name)).parameters
        arrays = [p for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        options = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert [p.name for p in arrays] == list(op.arrays)
        assert [p.name for p in arrays if p.default is p.empty] == list(op.required)
        assert set(options) == {*op.options, "backend"}
        for option, declared in op.options.items():
            assert options[option] in (declared.default, inspect.Parameter.empty)


def _python(code: str, folder: Path | None = None, **env: str) -> str:
    path = os.pathsep.join(filter(None, [str(folder or ""), os.environ.get("PYTHONPATH", "")]))
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_environment_names_the_default() -> None:
    code = "import pyrnn; print(pyrnn.backend.choose('rnn').name)"
    assert _python(code, PYRNN_BACKEND="reference").strip() == "reference"
    assert _python(code, PYRNN_BACKEND="").strip() == "cython"


def _plugin(folder: Path, package: str, entries: dict[str, str], code: str) -> None:
    """Install a distribution of one module with entry points, as pip would lay it out."""
    (folder / f"{package}.py").write_text(textwrap.dedent(code))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[pyrnn.backends]\n" + "\n".join(lines) + "\n")


def test_plugins_are_found_and_told_apart(tmp_path: Path) -> None:
    good = """
        import pyrnn
        class Good(pyrnn.Backend):
            name = "good"
    """
    _plugin(tmp_path, "plug_good", {"good": "plug_good:Good", "cython": "plug_good:Good"}, good)
    _plugin(tmp_path, "plug_twin", {"twin": "plug_twin:A"}, "A = 1")
    _plugin(tmp_path, "plug_twin2", {"twin": "plug_twin2:A"}, "A = 1")
    _plugin(tmp_path, "plug_lib", {"lib": "plug_lib:A"}, "import a_library_not_there.inside")
    _plugin(
        tmp_path, "plug_bad", {"bad": "plug_bad:A", "odd": "plug_bad:B"}, "B = 1\nclass A:\n  def __init__(self): 1/0"
    )
    out = _python(
        """
        import sys, pyrnn
        pyrnn.get_backend("cython")
        assert not any(name.startswith("plug_") for name in sys.modules), "nothing is imported unasked"
        assert pyrnn.get_backend("good").name == "good"
        assert pyrnn.get_backend("cython").name == "cython"
        for info in pyrnn.backends():
            print(info)
        try:
            pyrnn.get_backend("lib")
        except ImportError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "good: available (plug_good:Good)" in out
    assert "cython: not available (plug_good:Good): this name is built in and can't be taken by a plugin" in out
    assert "twin: not available" in out and "2 plugins have this name: " in out
    assert (
        "lib: not available (plug_lib:A): No module named 'a_library_not_there'; try: pip install a_library_not_there"
        in out
    )
    assert "backend 'lib' can't be used: No module named 'a_library_not_there'" in out
    assert "bad: not available (plug_bad:A): ZeroDivisionError: division by zero" in out
    assert "odd: not available (plug_bad:B): its entry point gives a int, no Backend" in out


def test_a_missing_core_is_an_import_error() -> None:
    out = _python(
        """
        import sys
        sys.modules["pyrnn._core.recurrent"] = None
        import numpy as np, pyrnn
        try:
            pyrnn.softmax(np.ones(2))
        except ImportError as error:
            print(error)
        print(pyrnn.softmax(np.zeros(2), backend="reference"))
        """
    )
    assert "backend 'cython' can't be used" in out and "the compiled core of pyrnn is missing" in out
    assert "[0.5 0.5]" in out


def test_import_stays_light() -> None:
    out = _python(
        """
        import sys, numpy
        before = set(sys.modules)
        import pyrnn
        heavy = {"numba", "cupy", "sklearn", "torch", "matplotlib", "safetensors", "importlib.metadata", "pyrnn._core"}
        print(sorted(heavy & (set(sys.modules) - before)))
        """
    )
    assert out.strip() == "[]"


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    pyrnn.show_config()
    out = capsys.readouterr().out
    for words in (
        f"pyrnn {pyrnn.__version__}",
        "ISA level",
        "OpenMP",
        "threads:",
        "cython: available",
        "reference: available",
    ):
        assert words in out
