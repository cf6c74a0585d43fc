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
        r"backend 'recorder' has no op 'lstm'; available here with it: cython, reference(, \w+)*. "
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
    ops = {
        "rnn", "lstm", "gru", "attention", "additive_attention", "multiplicative_attention", "causal_conv1d",
        "linear", "layer_norm", "softmax", "embedding", "cross_entropy",
    }  # fmt: skip
    for name in ("cython", "reference"):
        claims = pyrnn.get_backend(name).claims
        assert set(claims) == ops == set(pyrnn.ops.OPS)
        assert all(claim.dtypes == ("float32", "float64") and not claim.options for claim in claims.values())
        promised = {"threads", "batch", "chunk", "weight gradients"} if name == "cython" else set()
        assert all(claim.invariances == promised for claim in claims.values())


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


def _plugin(folder: Path, package: str, entries: dict[str, str], code: str | None, requires: str = "") -> None:
    """Install a distribution of one module with entry points, as pip would lay it out."""
    if code is not None:
        (folder / f"{package}.py").write_text(textwrap.dedent(code))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n{requires}")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[pyrnn.backends]\n" + "\n".join(lines) + "\n")


GOOD = """
    import pyrnn
    class Good(pyrnn.Backend):
        name = "good"
        note = "its first call takes a minute"
"""


def test_a_plugin_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    _plugin(tmp_path, "plug_good", {"good": "plug_good:Good"}, GOOD)
    out = _python(
        """
        import sys, pyrnn
        pyrnn.get_backend("cython")
        assert not any(name.startswith("plug_") for name in sys.modules), "nothing is imported unasked"
        assert pyrnn.get_backend("good").name == "good"
        assert pyrnn.get_backend("good") is pyrnn.get_backend("good")
        print(*pyrnn.backends(), sep="\\n")
        """,
        tmp_path,
    )
    assert "good: available (plug_good:Good); its first call takes a minute" in out


# A plugin's module, and what is told of the backend that it registers. Its class is to be called Mine, its name "bad".
FAULTY = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "raises nothing to say": ("raise RuntimeError", "RuntimeError"),
    "syntax": ("this is no Python", "SyntaxError: invalid syntax (plug_bad.py, line 1)"),
    "exits": ("import sys\nsys.exit('no licence found')", "SystemExit: no licence found"),
    "panics": ("class Panic(BaseException): ...\nraise Panic('thread panicked')", "Panic: thread panicked"),
    "fails to start": (
        "import pyrnn\nclass Mine(pyrnn.Backend):\n  name = 'bad'\n  def __init__(self): raise OSError('no driver')",
        "OSError: no driver",
    ),
    "says so itself": (
        "import pyrnn\nclass Mine(pyrnn.Backend):\n  name = 'bad'\n"
        "  def __init__(self): raise pyrnn.BackendUnavailableError('bad', 'no GPU here', 'buy one')",
        "no GPU here; try: buy one",
    ),
    "no such class": ("", "its entry point 'plug_bad:Mine' is wrong: plug_bad has no Mine"),
    "no class": (
        "Mine = 1",
        "its entry point 'plug_bad:Mine' is wrong: it gives no Backend, but an object of type int",
    ),
    "another class": (
        "class Mine: ...",
        "its entry point 'plug_bad:Mine' is wrong: it gives Mine, which is not derived from pyrnn.Backend",
    ),
    "no name": ("import pyrnn\nclass Mine(pyrnn.Backend): ...", "its class Mine has no name; write: name = 'bad'"),
    "another name": (
        "import pyrnn\nclass Mine(pyrnn.Backend): name = 'other'",
        "its class Mine has the name 'other'; name it as the entry point does, 'bad'",
    ),
    "its own module": (
        "import plug_bad.inside",
        "No module named 'plug_bad.inside'; 'plug_bad' is not a package; try: pip install --force-reinstall plug_bad",
    ),
    "a module it requires": (
        "import Some_Library.inside",
        "No module named 'Some_Library'; try: pip install some-library",
    ),
    "a module of an extra": ("import gpulib", "No module named 'gpulib'; try: pip install \"plug_bad[gpu]\""),
    "an unknown module": ("import not_there", "No module named 'not_there'; try: pip install not_there"),
    "a module of a later version": (
        "import pyrnn.not_yet",
        "No module named 'pyrnn.not_yet'; try: pip install --upgrade pyrnn",
    ),
    "a module without a name": ("raise ModuleNotFoundError('the driver is missing')", "the driver is missing"),
    "a name from a module": (
        "from os import nonsense",
        "ImportError: cannot import name 'nonsense' from 'os'",
    ),
}
REQUIRES = "Requires-Dist: some-library>=1\nRequires-Dist: gpulib>=2; extra == 'gpu'\nProvides-Extra: gpu\n"


def test_a_faulty_plugin_says_why_and_breaks_nothing_else(tmp_path: Path) -> None:
    for number, (code, _) in enumerate(FAULTY.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        _plugin(folder, "plug_bad", {"bad": "plug_bad:Mine"}, code, REQUIRES)
        _plugin(folder, "plug_good", {"good": "plug_good:Good"}, GOOD)
    out = _python(  # one process for all: each case is a folder of its own on its path
        f"""
        import sys, pyrnn
        from pyrnn import backend as registry
        for number in range({len(FAULTY)}):
            sys.path.insert(0, r"{tmp_path}/" + str(number))
            sys.modules.pop("plug_bad", None)
            registry._entry_points.cache_clear()
            registry._loaded.clear()
            infos = [info for info in pyrnn.backends() if info.name in ("cython", "reference", "bad", "good")]
            assert [info.name for info in infos] == ["cython", "reference", "bad", "good"]
            assert [info.backend is not None for info in infos] == [True, True, False, True]
            told = str(infos[2]).removeprefix("bad: not available (plug_bad:Mine): ")
            print(told)
            try:
                pyrnn.get_backend("bad")
            except pyrnn.BackendUnavailableError as error:
                assert str(error) == f"backend 'bad' can't be used: {{told}}", error
            sys.path.pop(0)
        """,
        tmp_path,
    )
    for (case, (_, reason)), told in zip(FAULTY.items(), out.splitlines(), strict=True):
        assert told.startswith(reason), f"{case}: {told}"


def test_entry_points_that_name_nothing_and_names_that_are_taken(tmp_path: Path) -> None:
    wrong = {
        "gone": "plug_gone:Good",
        "bare": "plug_good",
        "cython": "plug_good:Good",
        "good": "plug_good : Good [fast]",
    }
    _plugin(tmp_path, "plug_good", wrong, GOOD)
    _plugin(tmp_path, "plug_gone", {"left": "plug_gone.inside:Good"}, None)
    _plugin(tmp_path, "plug_one", {"twin": "plug_one:A"}, "raise SystemError('must not be imported')")
    _plugin(tmp_path, "plug_two", {"twin": "plug_two:A"}, "raise SystemError('must not be imported')")
    out = _python(
        """
        import pyrnn
        assert type(pyrnn.get_backend("cython")).__module__ == "pyrnn._core.backend"
        print(*pyrnn.backends(), sep="\\n")
        pyrnn.show_config()
        """,
        tmp_path,
    )
    taken = "this name is built in and can't be taken by a plugin (of plug_good)"
    nothing = "its entry point 'plug_good' is wrong: it names no class, as 'package:Class' does"
    missing = "No module named 'plug_gone'; try: pip install --force-reinstall"
    twins = "plug_one:A (of plug_one) and plug_two:A (of plug_two)"
    for line in (
        "good: available (plug_good : Good [fast]); its first call takes a minute",
        "cython: available (built in)",
        f"cython: not available (plug_good:Good): {taken}",
        f"bare: not available (plug_good): {nothing}",
        f"gone: not available (plug_gone:Good): {missing} plug_good",
        f"left: not available (plug_gone.inside:Good): {missing} plug_gone",
        f"twin: not available (plug_one:A, plug_two:A): 2 plugins have this name: {twins}; uninstall one",
    ):
        assert f"\n{line}\n" in f"\n{out}" and f"\n  {line}\n" in out, line  # listed, and told by show_config


def test_an_interrupt_during_an_import_is_one(tmp_path: Path) -> None:
    _plugin(tmp_path, "plug_slow", {"slow": "plug_slow:A"}, "raise KeyboardInterrupt")
    out = _python(
        """
        import pyrnn
        try:
            pyrnn.backends()
        except KeyboardInterrupt:
            print("interrupted")
        """,
        tmp_path,
    )
    assert out.strip() == "interrupted"


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
