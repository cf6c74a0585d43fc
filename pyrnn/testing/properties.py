"""What a property is, the list of them, and what they compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Backend
from ..ops.declaration import Op
from ..reference.backend import ReferenceBackend
from .bounds import Bounded, BoundedReference, allowed
from .call import Call
from .subject import BackendSubject, Subject, placed_options

Check = Callable[[Subject, Call], None]


@dataclass(frozen=True)
class Property:
    """One thing that must hold of every call of an op.

    Attributes
    ----------
    name
        Its name in reports; the id of a test is ``op/name``.
    says
        What must hold, in a sentence.
    check
        Raises where it doesn't hold for a call.
    applies
        The ops that can have it.
    backward
        Whether it asks for gradients.
    claim
        The invariance without whose claim it is not asked for.
    draws
        What `strategies.calls` is told, so that the calls are those that matter.
    share
        Of the examples: a property that a few calls settle needs no more.
    of_backends
        Whether it can be asked of a backend only, not of a single function.
    """

    name: str
    says: str
    check: Check
    applies: Callable[[Op], bool]
    backward: bool
    claim: str
    draws: Mapping[str, Any]
    share: float = 1.0
    of_backends: bool = False

    def needs_claim(self, subject: Subject, op: str) -> str:
        """Return why a subject is not asked for this of an op, or an empty string."""
        claim = subject.claim(op)
        wanted = self.draws.get("dtypes", claim.dtypes)
        if self.of_backends and not isinstance(subject, BackendSubject):
            return "asked of backends only"
        if self.backward and not subject.has_backward(op):
            return "no backward was given"
        if not set(wanted) & set(claim.dtypes):
            return f"{' and '.join(wanted)} not claimed"
        for option, values in self.draws.get("config", {}).items():
            taken = claim.options.get(option, values)
            if values != taken and not set(map(str, values)) & set(map(str, taken)):
                return f"{option} not claimed"
        if self.claim and self.claim not in claim.invariances:
            return f"{self.claim!r} not among its claimed invariances"
        return ""


PROPERTIES: dict[str, Property] = {}


def prop(
    name: str,
    *,
    applies: Callable[[Op], bool] = lambda op: True,
    backward: bool = False,
    claim: str = "",
    share: float = 1.0,
    of_backends: bool = False,
    draws: Mapping[str, Any] | None = None,
) -> Callable[[Check], Check]:
    """Declare a property: its check's docstring says what must hold."""

    def declare(check: Check) -> Check:
        says = " ".join((check.__doc__ or "").split())
        PROPERTIES[name] = Property(name, says, check, applies, backward, claim, draws or {}, share, of_backends)
        return check

    return declare


def has_option(kind: str) -> Callable[[Op], bool]:
    """Make a filter for the ops that have an option of a kind."""
    return lambda op: any(option.kind == kind for option in op.options.values())


# --- what is expected --------------------------------------------------------------------------------------


@dataclass
class Expected:
    """A call's results by the reference, with their bounds."""

    outputs: dict[str, Bounded]
    saved: Any
    backend: BoundedReference


def arguments(call: Call, arrays: Mapping[str, Any], backend: Backend | None = None) -> tuple[Any, Any]:
    """Return a call's arrays and options as a backend takes them, the reference by default."""
    backend = backend or ReferenceBackend()
    given = placed_options(call.op, call.options, backend.xp)
    filled = {name: given.get(name, option.default) for name, option in call.declared.options.items()}
    return call.declared.check([arrays.get(name) for name in call.declared.arrays], filled, backend)


def expected(call: Call, arrays: Mapping[str, Any] | None = None) -> Expected:
    """Run a call on the reference in float64, with the bound for its dtype beside it."""
    backend = BoundedReference(call.dtype)
    checked, options = arguments(call, call.arrays if arrays is None else arrays)
    with np.errstate(over="ignore"):
        outputs, saved = getattr(backend, f"{call.op}_forward")(
            backend.lift(checked), options, needs=call.declared.Arrays(*(a is not None for a in checked))
        )
    named = {name: backend.as_bounded(o) for name, o in zip(call.declared.outputs, outputs, strict=True)}
    return Expected(named, saved, backend)


def expected_gradients(call: Call, of: Expected, cotangents: Mapping[str, Any]) -> dict[str, Bounded]:
    """Pull cotangents back on the reference."""
    declared = call.declared
    given = of.backend.lift(declared.Outputs(*(cotangents[name] for name in declared.outputs)))
    needs = declared.Arrays(*(name in call.arrays for name in declared.arrays))
    with np.errstate(over="ignore"):
        grads = getattr(of.backend, f"{call.op}_backward")(of.saved, given, needs=needs)
    return {name: of.backend.as_bounded(g) for name, g in zip(declared.arrays, grads, strict=True) if g is not None}


# --- comparisons: each says what differs, and where -----------------------------------------------------------


def same_kind(name: str, got: Any, dtype: str, shape: Sequence[int]) -> None:
    """Raise where an array is none, or of another dtype or shape."""
    if not isinstance(got, np.ndarray):
        raise AssertionError(f"{name}: expected an array, got {type(got).__name__}")
    if str(got.dtype) != dtype:
        raise AssertionError(f"{name}: expected {dtype}, got {got.dtype}")
    if got.shape != tuple(shape):
        raise AssertionError(f"{name}: expected shape {tuple(shape)}, got {got.shape}")


def within(name: str, got: Any, want: Bounded, dtype: str, *, where: Any = True) -> None:
    """Raise where an array is further from what is expected than its bound; ``where`` says which elements count."""
    same_kind(name, got, dtype, want.shape)
    limit = allowed(want, dtype)
    off = np.abs(got.astype(np.float64) - want.value)
    wrong = ~(off <= limit) & where  # a NaN is wrong
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[np.argmax(np.where(wrong, off / limit, 0)[wrong])])
        where = f"{name}{list(at)}" if at else name
        raise AssertionError(
            f"{where}: expected {want.value[at]:.9g} within {limit[at]:.2g}, got {got[at]:.9g} "
            f"({int(wrong.sum())} of {got.size} elements are off)"
        )


def all_within(got: Mapping[str, Any], want: Mapping[str, Bounded], dtype: str, what: str = "") -> None:
    """Hold each array against its bound; None is expected where nothing is."""
    for name, value in got.items():
        label = f"{what}{name}"
        if name not in want:
            if value is not None:
                raise AssertionError(f"{label}: expected None, as no such array was given, got an array")
        else:
            within(label, value, want[name], dtype)


def same_bits(name: str, got: Any, want: Any, why: str) -> None:
    """Raise where two arrays, or two Nones, are not the same to the bit (a NaN equals a NaN)."""
    if got is None or want is None:
        if got is not want:
            raise AssertionError(f"{name}: {why}; one is None and the other is not")
        return
    same_kind(name, got, str(want.dtype), want.shape)
    if not np.array_equal(got, want, equal_nan=True):
        different = ~((got == want) | (np.isnan(got) & np.isnan(want)))
        at = tuple(int(i) for i in np.argwhere(different)[0])
        raise AssertionError(
            f"{name}{list(at)}: {why}; got {got[at]!r} and {want[at]!r} "
            f"({int(different.sum())} of {got.size} elements differ)"
        )


def same(name: str, got: Mapping[str, Any], want: Mapping[str, Any], why: str) -> None:
    """Hold all arrays of two results against each other, to the bit."""
    for key, value in want.items():
        same_bits(f"{name}{key}", got[key], value, why)
