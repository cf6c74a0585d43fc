"""The reference with a running error bound beside it: what rounding may do to each element, whoever computes it.

The reference backend runs unchanged on `Bounded` arrays, which carry beside each float64 value how far a computation
in the call's own precision may be from it. The rules, with u the unit roundoff (2⁻²⁴ for float32, 2⁻⁵³ for float64):

(a) A sum is one chain. However its n roundings are ordered, split or fused, it is off by at most γₙ·Σ|terms|, with
    γₙ = n·u/(1 - n·u) (Higham 2002, "Accuracy and Stability of Numerical Algorithms", §4.2). So sums of sums stay one
    chain, with their magnitudes and roundings added up, until something else than a sum takes them.
(b) A product, quotient or root is rounded once, and passes on the errors of what goes in.
(c) exp, log and tanh may be off by 4 ULP (8u), relative to their value, tails included; the error of what goes in is
    passed on with the steepest slope within it. What goes into exp may be off by another 2u of itself: e^x is taken as
    2^(x·log₂e), with the constant folded into a scale.
(d) Where a comparison could go either way within the error (relu at its kink), the bound covers both ways.
(e) Results below the smallest normal number may be flushed to zero.
(f) A number that is no float32, as a scale, is rounded as the arrays are.

The reference's own rounding, in float64, is covered by taking u + 2⁻⁵³ for u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..reference.backend import ReferenceBackend

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
FLUSHED = {
    "float32": 2.0**-106,
    "float64": 2.0**-1002,
}  # a million times the smallest normal number, as it is passed on
FUNCTION_ROUNDINGS = 8  # 4 ULP of up to 2u each
FAR = 1e30  # the error of what can be anything; finite, as infinity times 0 would be no bound


class Unsure(np.ndarray):
    """Booleans of a comparison; ``both`` is True where the error leaves it open."""

    both: np.ndarray


class Bounded:
    """An array of float64 values with a running error bound.

    Attributes
    ----------
    value
        The float64 values.
    passed
        The error that came in with the operands.
    magnitude, roundings
        Of the chain of additions that the array is: the sum of its terms' magnitudes, and how many roundings.
    unit
        The unit roundoff of the arithmetic that is bounded.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, unit: float, passed: Any = 0.0, magnitude: Any = None, roundings: int = 0) -> None:
        self.value = np.asarray(value, np.float64)
        self.unit = unit
        self.passed = np.broadcast_to(np.asarray(passed, np.float64), self.value.shape)
        self.magnitude = np.abs(self.value) if magnitude is None else magnitude
        self.roundings = roundings

    @property
    def error(self) -> np.ndarray:
        """What the values may be off by."""
        if not self.roundings:
            return np.asarray(self.passed)
        share = self.roundings * self.unit
        return np.asarray(self.passed + share / (1 - share) * self.magnitude)

    # --- what an array is asked by the reference ---

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)

    def __len__(self) -> int:
        return len(self.value)

    def _map(self, function: Callable[[np.ndarray], Any]) -> Bounded:
        """Move elements, the same way in every part."""
        return Bounded(
            function(self.value), self.unit, function(np.asarray(self.passed)), function(self.magnitude), self.roundings
        )

    T = property(lambda self: self._map(np.transpose))

    def __getitem__(self, index: Any) -> Bounded:
        return self._map(lambda part: part[index])

    def __setitem__(self, index: Any, new: Any) -> None:
        self._assign(new, lambda part, given: part.__setitem__(index, given))

    def _assign(self, new: Any, put: Callable[[np.ndarray, np.ndarray], None]) -> None:
        """Write elements in place; the chains end here, so that old and new ones can stand side by side."""
        new = self._of(new)
        value, error = np.array(self.value), np.array(self.error)
        put(value, new.value)
        put(error, new.error)
        self.value, self.passed, self.magnitude, self.roundings = value, error, np.abs(value), 0

    def reshape(self, *shape: Any) -> Bounded:
        return self._map(lambda part: part.reshape(*shape))

    def copy(self) -> Bounded:
        return self._map(np.copy)

    def astype(self, dtype: Any) -> Bounded:
        return self

    def swapaxes(self, one: int, other: int) -> Bounded:
        return self._map(lambda part: part.swapaxes(one, other))

    def _of(self, other: Any) -> Bounded:
        if isinstance(other, Bounded):
            return other
        rounded = isinstance(other, float) and float(np.float32(other)) != other
        return Bounded(other, self.unit, self.unit * abs(other) if rounded else 0.0)

    def _fresh(self, value: Any, passed: Any, roundings: int = 1) -> Bounded:
        return Bounded(value, self.unit, passed, np.abs(value) + passed, roundings)

    # --- sums: one chain ---

    def _add(self, other: Any, sign: float) -> Bounded:
        other = self._of(other)
        return Bounded(
            self.value + sign * other.value,
            self.unit,
            self.passed + other.passed,
            self.magnitude + other.magnitude,
            self.roundings + other.roundings + 1,
        )

    def __add__(self, other: Any) -> Bounded:
        return self._add(other, 1.0)

    def __sub__(self, other: Any) -> Bounded:
        return self._add(other, -1.0)

    __radd__ = __add__

    def __rsub__(self, other: Any) -> Bounded:
        return self._of(other) - self

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.unit, self.passed, self.magnitude, self.roundings)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        def add(part: np.ndarray) -> Any:
            return part.sum(axis=axis, keepdims=keepdims)

        total = add(self.value)
        count = self.value.size // max(1, np.size(total))
        return Bounded(total, self.unit, add(np.asarray(self.passed)), add(self.magnitude), self.roundings + count)

    def mean(self, axis: int, keepdims: bool = False) -> Bounded:
        return self.sum(axis, keepdims) / self.value.shape[axis]

    def __matmul__(self, other: Any) -> Bounded:
        other = self._of(other)
        a, b, ea, eb = np.abs(self.value), np.abs(other.value), self.error, other.error
        return Bounded(
            self.value @ other.value, self.unit, a @ eb + ea @ (b + eb), (a + ea) @ (b + eb), self.value.shape[-1]
        )

    # --- what is rounded once ---

    def __mul__(self, other: Any) -> Bounded:
        other = self._of(other)
        a, b, ea, eb = np.abs(self.value), np.abs(other.value), self.error, other.error
        return self._fresh(self.value * other.value, a * eb + ea * (b + eb))

    __rmul__ = __mul__

    def __rtruediv__(self, other: Any) -> Bounded:
        return self._of(other) / self

    def __truediv__(self, other: Any) -> Bounded:
        other = self._of(other)
        quotient = self.value / other.value
        room = np.abs(other.value) - other.error
        passed = np.where(room > 0, (self.error + np.abs(quotient) * other.error) / np.where(room > 0, room, 1), FAR)
        return self._fresh(quotient, np.minimum(passed, FAR))

    # --- functions ---

    def _sqrt(self) -> Bounded:
        root = np.sqrt(self.value)
        return self._fresh(root, root - np.sqrt(np.maximum(self.value - self.error, 0)))

    def _exp(self) -> Bounded:
        value = np.exp(self.value)
        error = self.error + 2 * self.unit * np.abs(self.value)
        steep = np.where(error < 1, value * np.expm1(np.minimum(error, 1)), np.exp(self.value + error) - value)
        return self._fresh(value, np.minimum(steep, FAR), FUNCTION_ROUNDINGS)

    def _log(self) -> Bounded:
        room = 1 - self.error / self.value
        return self._fresh(
            np.log(self.value),
            np.where(room > 0, -np.log(np.where(room > 0, room, 1)), np.inf),
            FUNCTION_ROUNDINGS,
        )

    def _tanh(self) -> Bounded:
        steepest = np.maximum(np.abs(self.value) - self.error, 0)  # the slope falls away from zero
        passed = np.minimum(self.error * (1 - np.tanh(steepest) ** 2), 2.0)
        return self._fresh(np.tanh(self.value), passed, FUNCTION_ROUNDINGS)

    def _absolute(self) -> Bounded:
        return Bounded(np.abs(self.value), self.unit, self.error)

    def _maximum(self, other: float) -> Bounded:
        def cut(value: Any) -> Any:
            return np.maximum(value, other)

        value, error = self.value, self.error
        passed = np.maximum(cut(value + error) - cut(value), cut(value) - cut(value - error))
        return Bounded(cut(value), self.unit, passed)

    def max(self, axis: int, keepdims: bool = False) -> Bounded:
        return Bounded(
            self.value.max(axis=axis, keepdims=keepdims), self.unit, self.error.max(axis=axis, keepdims=keepdims)
        )

    def _compare(self, other: Any, holds: Any) -> Unsure:
        other = self._of(other)
        result = holds(self.value, other.value).view(Unsure)
        error = self.error + other.error
        result.both = (error > 0) & (np.abs(self.value - other.value) <= error)
        return result

    def __gt__(self, other: Any) -> Unsure:
        return self._compare(other, np.greater)

    def __ge__(self, other: Any) -> Unsure:
        return self._compare(other, np.greater_equal)

    # --- numpy's functions, called with one of these ---

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "at" and ufunc is np.add:  # add.at(total, indices, terms)
            total, indices, terms = inputs
            terms = total._of(terms)
            counts = np.zeros(total.shape, np.int64)
            np.add.at(counts, indices, 1)
            for part in ("value", "passed", "magnitude"):
                mine = np.array(getattr(total, part))
                np.add.at(mine, indices, getattr(terms, part))
                setattr(total, part, mine)
            total.roundings += terms.roundings + int(counts.max(initial=0))
            return None
        if method != "__call__" or kwargs:
            return NotImplemented
        first = self._of(inputs[0])
        if ufunc is np.isfinite:
            return np.isfinite(first.value)
        if ufunc in _UNARY:
            return _UNARY[ufunc](first)
        return _BINARY[ufunc](first, inputs[1]) if ufunc in _BINARY else NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.zeros:  # like=self
            return Bounded(np.zeros(args[0]), self.unit)
        return _FUNCTIONS[function](*args, **kwargs) if function in _FUNCTIONS else NotImplemented


_UNARY: dict[Any, Callable[[Bounded], Bounded]] = {
    np.negative: Bounded.__neg__,
    np.exp: Bounded._exp,
    np.log: Bounded._log,
    np.tanh: Bounded._tanh,
    np.sqrt: Bounded._sqrt,
    np.absolute: Bounded._absolute,
}
_BINARY: dict[Any, Callable[[Bounded, Any], Any]] = {
    np.add: Bounded.__add__,
    np.subtract: Bounded.__sub__,
    np.multiply: Bounded.__mul__,
    np.true_divide: Bounded.__truediv__,
    np.matmul: Bounded.__matmul__,
    np.maximum: Bounded._maximum,
    np.greater: Bounded.__gt__,
    np.greater_equal: Bounded.__ge__,
}


def _unit_of(*values: Any) -> float:
    return next((float(value.unit) for value in values if isinstance(value, Bounded)), 0.0)


def _where(condition: Any, yes: Any, no: Any) -> Bounded:
    unit = _unit_of(yes, no)
    yes, no = (value if isinstance(value, Bounded) else Bounded(value, unit) for value in (yes, no))
    value = np.where(condition, yes.value, no.value)
    error = np.where(condition, yes.error, no.error)
    if isinstance(condition, Unsure):
        other = np.where(condition, no.value, yes.value)
        other_error = np.where(condition, no.error, yes.error)
        error = np.where(condition.both, np.maximum(error, np.abs(other - value) + other_error), error)
    return Bounded(value, unit, error)


def _split(array: Bounded, sections: int, axis: int = 0) -> list[Bounded]:
    parts = (np.split(part, sections, axis) for part in (array.value, np.asarray(array.passed), array.magnitude))
    return [Bounded(v, array.unit, p, m, array.roundings) for v, p, m in zip(*parts, strict=True)]


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Bounded:
    unit = _unit_of(*arrays)
    whole = [array if isinstance(array, Bounded) else Bounded(array, unit) for array in arrays]
    return Bounded(np.concatenate([a.value for a in whole], axis), unit, np.concatenate([a.error for a in whole], axis))


def _put_along_axis(array: Bounded, indices: Any, values: Any, axis: int) -> None:
    array._assign(values, lambda part, given: np.put_along_axis(part, indices, given, axis))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.split: _split,
    np.concatenate: _concatenate,
    np.zeros_like: lambda array: Bounded(np.zeros(array.shape), array.unit),
    np.take_along_axis: lambda a, indices, axis: a._map(lambda part: np.take_along_axis(part, indices, axis)),
    np.put_along_axis: _put_along_axis,
}


class _Arrays:
    """numpy, but that new arrays carry a bound, and that memory layout is of no concern."""

    def __init__(self, unit: float) -> None:
        self.unit = unit

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def zeros(self, shape: Any, dtype: Any = None) -> Bounded:
        return Bounded(np.zeros(shape), self.unit)

    def ascontiguousarray(self, array: Bounded) -> Bounded:
        return array


class BoundedReference(ReferenceBackend):
    """The reference backend on `Bounded` arrays, for results in float32 or float64.

    Its op methods take and give `Bounded` arrays; `lift` makes a record of them from one of numpy arrays.
    """

    def __init__(self, dtype: str) -> None:
        self.unit = UNIT[dtype] + 2.0**-53
        self.xp = _Arrays(self.unit)

    def lift(self, record: Any) -> Any:
        """Take arrays as exact; None stays None."""
        return type(record)(*(None if array is None else Bounded(array, self.unit) for array in record))

    def as_bounded(self, result: Any) -> Bounded:
        """Return a result that never met a rounding, and so is a plain array, as exact."""
        return result if isinstance(result, Bounded) else Bounded(result, self.unit)


def allowed(expected: Bounded, dtype: str) -> np.ndarray:
    """Return what a result of ``dtype`` may be off by from ``expected.value``, element by element."""
    stored = UNIT[dtype] * np.abs(expected.value)  # of a result that was kept in more digits until then
    return np.asarray(expected.error + stored + FLUSHED[dtype])
