"""What is put to the test: a backend or a single function, asked in the same words, with arrays on the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import Backend, Claim, get_backend
from ..ops.declaration import OPS
from .call import LAYOUTS, Call, laid_out

Arrays = Mapping[str, Any]
Pullback = Callable[..., dict[str, np.ndarray | None]]


class Subject:
    """Runs calls. ``forward`` and ``vjp`` take the call's own arrays where they are given no others.

    Attributes
    ----------
    name
        How reports call it.
    source
        How a counterexample's code names it.
    xp
        Its array module.
    """

    name: str
    source: str
    xp: Any = np

    def has(self, op: str) -> bool:
        raise NotImplementedError

    def own(self, op: str) -> bool:
        """Tell whether the op is one that it claims, or has written itself: what is checked by default."""
        return self.has(op)

    def ops(self, asked: Iterable[str] | None = None) -> list[str]:
        """Return the ops to check: those asked for, which it must have, or all of its own."""
        if asked is None:
            return [op for op in OPS if self.own(op)]
        chosen = known("ops", asked, OPS)
        for op in chosen:
            if not self.has(op):
                having = ", ".join(filter(self.has, OPS)) or "none"
                raise ValueError(f"ops: expected ops that {self.name!r} has ({having}), got {op!r}")
        return chosen

    def claim(self, op: str) -> Claim:
        raise NotImplementedError

    def has_backward(self, op: str) -> bool:
        return True

    def optional(self, op: str) -> dict[str, tuple[bool, ...]]:
        """For the optional arrays that it takes always or never: which."""
        return {}

    @property
    def layouts(self) -> tuple[str, ...]:
        """The memory layouts that its array library knows."""
        return LAYOUTS if self.xp is np else LAYOUTS[:5]

    def on_device(self, array: np.ndarray, layout: str = "C") -> Any:
        return laid_out(self.xp.asarray(array), layout, self.xp)

    def arrays(self, call: Call) -> dict[str, Any]:
        """Return the call's arrays as it takes them, in their layouts."""
        return {name: self.on_device(array, call.layouts.get(name, "C")) for name, array in call.arrays.items()}

    def forward(self, call: Call, arrays: Arrays | None = None, **config: Any) -> dict[str, np.ndarray]:
        """Run the call and return its outputs by name; ``config`` changes its options."""
        outputs = self._run(call.op, self.arrays(call) if arrays is None else arrays, {**call.options, **config})
        return self._named(call, outputs)

    def vjp(self, call: Call, arrays: Arrays | None = None, **config: Any) -> tuple[dict[str, np.ndarray], Pullback]:
        """Run the call for training; the pullback takes and gives gradients by name, None for none."""
        given = self.arrays(call) if arrays is None else arrays
        outputs, pull = self._vjp(call.op, given, {**call.options, **config})

        def pullback(cotangents: Arrays, needs: Sequence[bool] | None = None) -> dict[str, np.ndarray | None]:
            grads = [
                cotangents[name] if cotangents[name] is None else self.xp.asarray(cotangents[name])
                for name in call.declared.outputs
            ]
            found = pull(grads) if needs is None else pull(grads, needs)
            names = list(call.declared.arrays)
            if not isinstance(found, (tuple, list)) or len(found) != len(names):
                raise AssertionError(f"expected one gradient for each of {', '.join(names)}, got {describe(found)}")
            return {name: None if grad is None else to_host(grad) for name, grad in zip(names, found, strict=True)}

        return self._named(call, outputs), pullback

    def _named(self, call: Call, outputs: Any) -> dict[str, np.ndarray]:
        names = list(call.declared.outputs)
        if len(names) == 1 and not isinstance(outputs, (tuple, list)):
            outputs = (outputs,)
        if not isinstance(outputs, (tuple, list)) or len(outputs) != len(names):
            raise AssertionError(f"expected the outputs {', '.join(names)}, got {describe(outputs)}")
        return {name: to_host(output) for name, output in zip(names, outputs, strict=True)}

    def _run(self, op: str, arrays: Arrays, config: Arrays) -> Any:
        raise NotImplementedError

    def _vjp(self, op: str, arrays: Arrays, config: Arrays) -> tuple[Any, Any]:
        raise NotImplementedError


def known(name: str, given: Iterable[str], options: Iterable[str]) -> list[str]:
    """Return the words given, or raise ValueError where one is not known."""
    values, choices = [given] if isinstance(given, str) else list(given), list(options)
    for value in values:
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return values


def describe(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


def placed_options(op: str, options: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """Return an op's options with masks and indices as a module's arrays; others steer loops and stay on the host."""
    declared = OPS[op].options
    return {
        name: xp.asarray(value)
        if isinstance(value, np.ndarray) and declared[name].kind in ("mask", "indices")
        else value
        for name, value in options.items()
    }


def to_host(array: Any) -> np.ndarray:
    """Return an array as numpy's, without a copy where it is one."""
    if isinstance(array, np.ndarray):
        return array
    return array.get() if hasattr(array, "get") else np.asarray(array)


class BackendSubject(Subject):
    """A backend, asked through pyrnn's own dispatch."""

    def __init__(self, backend: str | Backend) -> None:
        self.backend = get_backend(backend)
        self.name = self.backend.name
        self.source = repr(backend) if isinstance(backend, str) else f"{type(backend).__name__}()"
        self.xp = self.backend.xp

    def has(self, op: str) -> bool:
        return self.backend.has(op)

    def own(self, op: str) -> bool:
        pair = (f"{op}_forward", f"{op}_backward")
        written = any(getattr(type(self.backend), name) is not getattr(Backend, name) for name in pair)
        return op in self.backend.claims or written

    def claim(self, op: str) -> Claim:
        return self.backend.claims.get(op, Claim())

    def _run(self, op: str, arrays: Arrays, config: Arrays) -> Any:
        return OPS[op].function(**arrays, **placed_options(op, config, self.xp), backend=self.backend)  # type: ignore[misc]

    def _vjp(self, op: str, arrays: Arrays, config: Arrays) -> tuple[Any, Any]:
        return OPS[op].vjp(**arrays, **placed_options(op, config, self.xp), backend=self.backend)


class FunctionSubject(Subject):
    """Any callable with an op's signature; what its signature lacks is not asked of it.

    Parameters
    ----------
    op
        The op that it is to be.
    function
        Takes the op's arrays and options by name and gives its outputs in order.
    vjp
        Takes the same and gives the outputs and a pullback, as `pyrnn.vjp` does; without one there are no gradients.
    claim
        What it promises.
    """

    def __init__(
        self, op: str, function: Callable[..., Any], vjp: Callable[..., Any] | None = None, claim: Claim | None = None
    ) -> None:
        self.op, self.function, self.pair = op, function, vjp
        self.name = self.source = getattr(function, "__name__", type(function).__name__)
        self._optional: dict[str, tuple[bool, ...]] = {}
        self._claim = self._narrowed(claim or Claim())

    def _narrowed(self, claim: Claim) -> Claim:
        """Add to the claim what the signature says: a parameter that is missing stays at its default."""
        declared = OPS[self.op]
        try:
            parameters = inspect.signature(self.function).parameters
        except ValueError:  # a binding's function may not tell it
            return claim
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return claim
        missing = [name for name in declared.required if name not in parameters]
        if missing:
            raise TypeError(f"function: expected parameters named {', '.join(missing)}, as {self.op} has them")
        for name in declared.arrays:
            if name not in parameters:
                self._optional[name] = (False,)
            elif name not in declared.required and parameters[name].default is inspect.Parameter.empty:
                self._optional[name] = (True,)
        left = {name: (o.default,) for name, o in declared.options.items() if name not in parameters}
        return replace(claim, options={**left, **claim.options})

    def has(self, op: str) -> bool:
        return op == self.op

    def claim(self, op: str) -> Claim:
        return self._claim

    def has_backward(self, op: str) -> bool:
        return self.pair is not None

    def optional(self, op: str) -> dict[str, tuple[bool, ...]]:
        return self._optional

    def _run(self, op: str, arrays: Arrays, config: Arrays) -> Any:
        return self.function(**arrays, **config)

    def _vjp(self, op: str, arrays: Arrays, config: Arrays) -> tuple[Any, Any]:
        if self.pair is None:
            raise NotImplementedError(f"{self.name} has no backward")
        return self.pair(**arrays, **config)
