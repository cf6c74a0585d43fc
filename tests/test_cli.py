"""The command line and the pytest plugin: exit status, what is printed where, what is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyrnn
from pyrnn import backend as registry
from pyrnn.cli import main


class Wrong(pyrnn.Backend):
    """Its GRU forgets that it has a state."""

    name = "wrong"
    claims = {"gru": registry.Claim()}

    def gru_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> Any:
        return pyrnn.get_backend("reference").gru_forward(arrays._replace(h0=None), config, needs=needs)

    def gru_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return pyrnn.get_backend("reference").gru_backward(saved, grad_outputs, needs=needs)


def run(*arguments: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, in a folder from which nothing of pyrnn's is found by chance."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_python_m_pyrnn(tmp_path: Path) -> None:
    version = run("-m", "pyrnn", "--version", folder=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"pyrnn {pyrnn.__version__}\n")
    nothing = run("-m", "pyrnn", folder=tmp_path)
    assert nothing.returncode == 2 and "COMMAND" in nothing.stderr


def test_the_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="pyrnn")
    assert script.load() is main


def test_version_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"pyrnn {pyrnn.__version__}\n"
    assert main(["config"]) == 0
    out = capsys.readouterr().out
    assert f"pyrnn {pyrnn.__version__}" in out and "reference: available" in out


def test_a_check_that_passes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "reference", "--ops", "gru, rnn", "--properties", "value", "--max-examples", "5"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["property", "gru", "rnn"]
    assert out.splitlines()[1].split() == ["value", "passed", "passed"]
    assert out.splitlines()[-1] == "reference: 2 passed"
    assert not err, "no progress bar where nobody looks"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "backend: expected one of cython, reference"),
        (["reference", "--ops", "gru,nope"], "ops: expected one of "),
        (["reference", "--ops", ""], "ops: expected one of "),
        (["reference", "--properties", "value,nope"], "properties: expected one of "),
        (["reference", "--max-examples", "0"], "max_examples: expected at least 1, got 0"),
        (["reference", "--json", "no/such/folder/report.json"], "--json: there is no folder no/such/folder"),
    ],
)
def test_a_check_that_can_not_be_run(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"pyrnn check: {message}") and err.count("\n") == 1
    assert "nope" not in arguments[-1] or "got 'nope'" in err


def test_words_that_are_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["chekc"], ["check"], ["check", "reference", "--max-examples", "many"]):
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        assert exit.value.code == 2
        assert "usage: pyrnn" in capsys.readouterr().err


def test_a_backend_that_fails_and_its_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(registry._loaded, "wrong", Wrong())
    file = tmp_path / "report.json"
    arguments = ["check", "wrong", "--ops", "gru", "--properties", "value,inference"]
    assert main([*arguments, "--max-examples", "20", "--seed", "3", "--json", str(file)]) == 1
    out = capsys.readouterr().out
    assert "gru/value: failed" in out and "wrong: 1 passed, 1 failed" in out
    assert "call = Call('gru'" in out and "'h0'" in out, "a call that shows it"
    report = pyrnn.testing.check_backend("wrong", ["gru"], properties=["value", "inference"], max_examples=20, seed=3)
    found = json.loads(file.read_text())
    assert found == json.loads(report.to_json()) and found["ok"] is False
    assert str(report) in out


# --- the plugin of pytest ----------------------------------------------------------------------------------

KIT = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "pyrnn.testing")


def test_pytest_tests_any_backend(tmp_path: Path) -> None:
    result = run(*KIT, "--pyrnn-backend=reference", "-k", "gru and value", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout


def test_pytest_says_what_it_lacks(tmp_path: Path) -> None:
    for options, message in (
        ((), "pyrnn.testing needs to know which backend to test: --pyrnn-backend=NAME"),
        (("--pyrnn-backend=nope",), "--pyrnn-backend: backend: expected one of cython, reference"),
    ):
        result = run(*KIT, *options, folder=tmp_path)
        assert result.returncode == pytest.ExitCode.USAGE_ERROR
        assert f"ERROR: {message}" in result.stderr
        assert "Traceback" not in result.stdout + result.stderr and "collected" not in result.stdout


def test_pytest_says_that_hypothesis_is_missing(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError(\"No module named 'hypothesis'\")")
    env = {"PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = run(*KIT, "-p", "pyrnn_pytest", "--pyrnn-backend=reference", folder=tmp_path, env=env)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert 'ERROR: pyrnn.testing needs Hypothesis; try: pip install "pyrnn[testing]"' in result.stderr
    check = run("-m", "pyrnn", "check", "reference", folder=tmp_path, env=env)
    assert check.returncode == 2
    assert check.stderr == 'pyrnn check: pyrnn.testing needs Hypothesis; try: pip install "pyrnn[testing]"\n'


def test_pytest_without_the_option_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text(
        "import sys\n\n\ndef test_light():\n"
        '    assert "pyrnn_pytest" in sys.modules\n'
        '    assert not {"pyrnn", "numpy", "hypothesis"} & set(sys.modules)\n'
    )
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others' plugins import what they like
    result = run("-m", "pytest", "-p", "no:cacheprovider", "-p", "pyrnn_pytest", folder=tmp_path, env=alone)
    assert result.returncode == 0, result.stdout
    code = "import sys, pyrnn_pytest; print(sorted({'pyrnn', 'numpy', 'hypothesis', 'pytest'} & set(sys.modules)))"
    assert run("-c", code, folder=tmp_path).stdout.strip() == "[]"
