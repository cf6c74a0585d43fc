"""The checks that need no pytest: of a backend, of a function, of a single counterexample."""

from __future__ import annotations

import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky, Unsatisfiable, UnsatisfiedAssumption

from ..backend import Backend, Claim
from ..ops.declaration import OPS
from . import strategies
from .call import Call
from .properties import PROPERTIES, Property
from .report import Report, Result
from .subject import BackendSubject, FunctionSubject, Subject, known

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example]


def check_backend(
    backend: str | Backend,
    ops: Iterable[str] | None = None,
    *,
    properties: Iterable[str] | None = None,
    max_examples: int = 100,
    seed: int = 0,
    xfail: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Report:
    """Hold a backend to all that its ops must do and that it claims.

    Parameters
    ----------
    backend
        A name that `pyrnn.backends` lists, or a `Backend`.
    ops
        The ops to check. By default those that it claims or has written itself, not the basic family's defaults that it
        merely inherits. An op without a claim is held to `pyrnn.backend.Claim`'s defaults.
    properties
        The properties to check (`pyrnn.testing.PROPERTIES`); all by default.
    max_examples
        How many calls are drawn for a property; those that a few calls settle take fewer.
    seed
        The same one draws the same calls.
    xfail
        What is known to fail: reasons by id (``"lstm/chunk"``). If it passes, the report is not ok.
    progress
        Whether to show a bar on the terminal (with tqdm installed).

    Returns
    -------
    Report
        ``report.ok``, and ``print(report)``.

    Raises
    ------
    ValueError
        An op, a property or an id that is not known; an op that the backend lacks.
    BackendUnavailableError
        The backend can't be used here.
    """
    subject = BackendSubject(backend)
    return _check(subject, subject.ops(ops), properties, max_examples, seed, xfail, progress)


def check_op(
    op: str,
    function: Callable[..., Any],
    *,
    vjp: Callable[..., Any] | None = None,
    claim: Claim | None = None,
    properties: Iterable[str] | None = None,
    max_examples: int = 100,
    seed: int = 0,
    xfail: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Report:
    """Hold any function with an op's signature to what the op must do: a binding, an exported model, hardware.

    Arrays and options are passed by name, those at their default not at all; options that are arrays (lengths, indices,
    masks) as numpy arrays. An optional array or an option that the function's signature lacks is not asked of it.

    Parameters
    ----------
    op
        The name of the op that the function is to be, as ``"lstm"``.
    function
        Takes numpy arrays and gives the outputs in order, as numpy arrays.
    vjp
        Takes the same and gives ``(outputs, pullback)``, as `pyrnn.vjp` does. Without it gradients are reported as
        not claimed.
    claim
        What it promises: dtypes, values of options that it takes in part, invariances. By default both dtypes.
    properties, max_examples, seed, xfail, progress
        As for `check_backend`.

    Returns
    -------
    Report

    Raises
    ------
    ValueError, TypeError
        An op, a property or an id that is not known; a function without the op's required parameters.
    """
    (name,) = known("op", [op], OPS)
    if not callable(function):
        raise TypeError(f"function: expected a callable, got {type(function).__name__}")
    subject = FunctionSubject(name, function, vjp, claim)
    return _check(subject, [name], properties, max_examples, seed, xfail, progress)


def replay(subject: str | Backend | Callable[..., Any], property: str, call: Call, **options: Any) -> None:
    """Try a property on one call: what the code of a counterexample does.

    Parameters
    ----------
    subject
        A backend, its name, or a function with the op's signature.
    property
        Its name.
    call
        The call.
    **options
        ``vjp`` and ``claim`` of a function, as for `check_op`.

    Raises
    ------
    AssertionError
        It does not hold; or whatever the subject raised.
    """
    (name,) = known("property", [property], PROPERTIES)
    if isinstance(subject, (str, Backend)):
        tested: Subject = BackendSubject(subject)
    else:
        tested = FunctionSubject(call.op, subject, **options)
    PROPERTIES[name].check(tested, call)


def _check(
    subject: Subject,
    ops: Sequence[str],
    properties: Iterable[str] | None,
    max_examples: int,
    seed: int,
    xfail: Mapping[str, str] | None,
    progress: bool,
) -> Report:
    count = operator.index(max_examples)
    if count < 1:
        raise ValueError(f"max_examples: expected at least 1, got {max_examples}")
    names = list(PROPERTIES) if properties is None else known("properties", properties, PROPERTIES)
    todo = plan(subject, ops, names)
    expected_to_fail = dict(xfail or {})
    known("xfail", expected_to_fail, [f"{op}/{prop.name}" for op, prop in todo])
    report = Report(subject.name, seed, count)
    with _bar(len(todo), subject.name, progress) as bar:
        for op, prop in todo:
            bar.set_postfix_str(f"{op}/{prop.name}", refresh=True)
            result = run_property(subject, op, prop, count, seed)
            reason = expected_to_fail.get(result.id)
            if reason is not None:
                status = {"failed": "expected failure", "passed": "unexpected pass"}.get(result.status, result.status)
                result = Result(op, prop.name, status, reason, result.code, result.examples)
            report.results.append(result)
            bar.update()
    return report


def plan(subject: Subject, ops: Iterable[str], names: Iterable[str] = PROPERTIES) -> list[tuple[str, Property]]:
    """Return the ops and properties to check, op after op."""
    return [(op, PROPERTIES[name]) for op in ops for name in names if PROPERTIES[name].applies(OPS[op])]


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def update(self) -> None: ...


def _bar(total: int, name: str, wanted: bool) -> Any:
    if not wanted or not sys.stderr.isatty():
        return _NoBar()
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc=name, unit="property", leave=False, dynamic_ncols=True)


def drawn_for(subject: Subject, op: str, prop: Property, regimes: Sequence[str] | None = None) -> Any:
    """Return the strategy of the calls that a property asks a subject about: what it claims, where it matters."""
    claim = subject.claim(op)
    draws: dict[str, Any] = dict(prop.draws)
    draws["dtypes"] = [dtype for dtype in draws.get("dtypes", strategies.FLOATS) if dtype in claim.dtypes]
    config: dict[str, Sequence[Any]] = dict(claim.options)
    for option, values in draws.get("config", {}).items():
        config[option] = [value for value in values if value in config.get(option, values)]
    draws["config"] = config
    draws["layouts"] = [layout for layout in draws.get("layouts", ("C",)) if layout in subject.layouts]
    draws["regimes"] = regimes or regimes_of(prop)
    return strategies.calls(op, optional=subject.optional(op), **draws)


def regimes_of(prop: Property) -> list[str]:
    """Return the kinds of sizes that a property draws from."""
    return list(prop.draws.get("regimes", strategies.REGIMES))


def examples_for(prop: Property, max_examples: int) -> int:
    return max(1, round(prop.share * max_examples))


def run_property(
    subject: Subject, op: str, prop: Property, max_examples: int, seed: int, *, shrink: bool = True
) -> Result:
    """Try a property of an op on drawn calls; of a failure, find the smallest call that shows it.

    Each kind of size has a run of its own: within a run Hypothesis varies what it has drawn before, and may leave out
    some kind altogether.
    """
    reason = prop.needs_claim(subject, op)
    if reason:
        return Result(op, prop.name, "not claimed", reason)
    regimes, count = regimes_of(prop), examples_for(prop, max_examples)
    shrink = shrink and prop.share > FEW
    search = _Search(subject, op, prop)
    for k, regime in enumerate(regimes[:count]):
        share = count // len(regimes) + (k < count % len(regimes))
        failure = search.run([regime], f"{seed}/{op}/{prop.name}/{regime}", share, shrink)
        if failure and shrink and k:  # perhaps a smaller kind shows it too
            failure = search.run(regimes, f"{seed}/{op}/{prop.name}", count, shrink) or failure
        if failure:
            said, call = failure
            return Result(op, prop.name, "failed", said, code_of(subject, prop, call), search.tried)
    if not search.tried:
        return Result(op, prop.name, "not claimed", "no call that it claims can show it")
    return Result(op, prop.name, "passed", examples=search.tried)


FEW = 0.05  # the share of examples of a property whose every call takes seconds: it is not worth a search for a smaller


class _Search:
    """Runs of Hypothesis for one property; ``tried`` counts the calls for which it held, or not."""

    def __init__(self, subject: Subject, op: str, prop: Property) -> None:
        self.subject, self.op, self.prop = subject, op, prop
        self.tried = 0

    def run(self, regimes: Sequence[str], seed: str, examples: int, shrink: bool) -> tuple[str, Call] | None:
        """Draw calls of some kinds of sizes; return what failed, and for which call."""
        seen: list[Call] = []

        @seeded(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            report_multiple_bugs=False,
            print_blob=False,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
            suppress_health_check=QUIET,
        )
        @given(call=drawn_for(self.subject, self.op, self.prop, regimes))
        def holds(call: Call) -> None:
            seen.append(call)
            self.tried += 1
            try:
                self.prop.check(self.subject, call)
            except UnsatisfiedAssumption:
                self.tried -= 1
                raise

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a subject warns of is not what is asked here
                holds()
        except Unsatisfiable:
            pass
        except Flaky as error:
            return f"fails now and then on the same call: {error}".splitlines()[0], seen[-1]
        except Exception as error:
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            return said, seen[-1]
        return None


def code_of(subject: Subject, prop: Property, call: Call) -> str:
    """Return a counterexample as code that runs: what it names beside pyrnn's own is what was checked."""
    return (
        "import numpy as np\nfrom pyrnn.testing import Call, replay\n\n"
        f"call = {call!r}\n"
        f"replay({subject.source}, {prop.name!r}, call)  # raises what was reported; call.arrays are its arrays"
    )
