"""The properties as tests for a plugin's own pytest file."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import given, settings

from ..backend import Backend
from .call import Call
from .check import QUIET, drawn_for, examples_for, plan
from .properties import Property
from .subject import BackendSubject, known


def make_backend_tests(
    backend: str | Backend,
    *,
    ops: Iterable[str] | None = None,
    xfail: Mapping[str, str] | None = None,
    max_examples: int | None = None,
) -> type:
    """Make a class of tests, one for each op and property, for pytest to collect.

    ::

        # tests/test_mine.py
        from pyrnn.testing import make_backend_tests

        TestMine = make_backend_tests("mine", xfail={"lstm/chunk": "keeps its state in float16"})

    Each is a fresh ``@given`` function that runs under the Hypothesis profile in force. What the backend doesn't claim
    is skipped, with the reason.

    Parameters
    ----------
    backend
        A name that `pyrnn.backends` lists, or a `Backend`.
    ops
        The ops to test; by default those that it claims or has written itself, as for `check_backend`.
    xfail
        What is known to fail: reasons by id, ``"op/property"``. If one passes, its test fails.
    max_examples
        Calls drawn for a property; by default those of the Hypothesis profile.

    Raises
    ------
    ValueError
        An op or id that is not known; an op that the backend lacks.
    BackendUnavailableError
        The backend can't be used here.
    """
    import pytest

    subject = BackendSubject(backend)
    todo = plan(subject, subject.ops(ops))
    reasons = dict(xfail or {})
    known("xfail", reasons, [f"{op}/{prop.name}" for op, prop in todo])
    tests: dict[str, Any] = {"__doc__": f"The properties of backend {subject.name!r}."}
    for op, prop in todo:
        test = _test(subject, op, prop, max_examples)
        reason = prop.needs_claim(subject, op)
        if reason:
            test = pytest.mark.skip(reason=f"not claimed: {reason}")(test)
        elif f"{op}/{prop.name}" in reasons:
            test = pytest.mark.xfail(reason=reasons[f"{op}/{prop.name}"], strict=True)(test)
        tests[test.__name__] = test
    return type("BackendTests", (), tests)


def _test(subject: BackendSubject, op: str, prop: Property, max_examples: int | None) -> Any:
    name = f"test_{op}_{prop.name.replace('-', '_')}"
    if prop.needs_claim(subject, op):

        def not_claimed(self: Any) -> None: ...

        not_claimed.__name__ = name
        return not_claimed

    def test(self: Any, call: Call) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prop.check(subject, call)

    test.__name__, test.__doc__ = name, prop.says
    test.__qualname__ = f"{subject.name}.{name}"  # a seed of derandomized examples of its own
    count = max_examples if max_examples is not None else settings().max_examples
    limited = settings(max_examples=examples_for(prop, count), deadline=None, suppress_health_check=QUIET)
    return limited(given(call=drawn_for(subject, op, prop))(test))
