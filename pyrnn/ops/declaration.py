"""What an op is, said once.

An `Op` names its arrays with their symbolic shapes, its outputs and its options. From this one declaration come
the checks and their messages, the dispatch to a backend, the tape, `vjp`, and what the tests draw.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..autograd import Tensor, is_recording, record
from ..backend import Backend, choose
from .arrays import check_array
from .checkpoint import Checkpointed
from .options import Option
from .shapes import Sizes, describe, match_shape

OPS: dict[str, Op] = {}
Function = TypeVar("Function", bound=Callable[..., Any])


def _record(name: str, fields: Iterable[str]) -> Any:
    """Return a NamedTuple class that pickle finds again, in this module."""
    record = globals()[name] = namedtuple(name, fields, module=__name__)
    return record


class Op:
    """One declared op. Calling it checks the arguments, picks the backend, runs it, and records a tape.

    Parameters
    ----------
    name
        Its name, and that of the public function that calls it.
    arrays, optional
        The differentiable arrays in the order of the signature, with their symbolic shapes; then those that
        may be None.
    outputs
        The outputs' names and symbolic shapes.
    options
        The configuration, by name.
    state
        The arrays that are a state, in the order of the outputs after the first. An op that has this declared, be it
        empty, can be packed: all its arrays but the first and these are weights.
    derived
        Symbols whose size follows from other sizes and the options.
    rule
        Raises ValueError where arrays and options don't fit together.
    """

    def __init__(
        self,
        name: str,
        *,
        arrays: Mapping[str, str],
        outputs: Mapping[str, str],
        optional: Mapping[str, str] | None = None,
        options: Mapping[str, Option] | None = None,
        state: tuple[str, ...] | None = None,
        derived: Mapping[str, Callable[[Sizes, Any], int]] | None = None,
        rule: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self.name = name
        self.arrays = {**arrays, **(optional or {})}
        self.required = tuple(arrays)
        self.outputs = dict(outputs)
        self.options = dict(options or {})
        self.derived = dict(derived or {})
        self.rule = rule
        self.function: Callable[..., Any] | None = None
        self.Arrays = _record(f"{name}_arrays", self.arrays)
        self.Outputs = _record(f"{name}_outputs", self.outputs)
        self.Config = _record(f"{name}_config", self.options)
        self._forward, self._backward = f"{name}_forward", f"{name}_backward"
        self.state = state
        Backend.declare_op(name, state)
        OPS[name] = self

    def public(self, function: Function) -> Function:
        """Decorate the op's public function: `pyrnn.vjp` knows the op by it."""
        self.function = function
        return function

    def __call__(self, *values: Any, backend: str | Backend | None = None, **config: Any) -> Any:
        """Run the op on arrays, or on Tensors: then with a tape, where one of them needs a gradient."""
        chosen = choose(self.name, backend)
        tensors = [value if isinstance(value, Tensor) else None for value in values]
        if not any(tensor is not None for tensor in tensors):
            arrays, options = self.check(values, config, chosen)
            return self._public(getattr(chosen, self._forward)(arrays, options)[0])
        arrays, options = self.check(
            [value.data if isinstance(value, Tensor) else value for value in values], config, chosen
        )
        needs = self.Arrays(*(tensor is not None and tensor.requires_grad for tensor in tensors))
        if not (any(needs) and is_recording()):
            return self._public([Tensor(output) for output in getattr(chosen, self._forward)(arrays, options)[0]])
        forward, backward = self._methods(chosen, options)
        outputs, saved = forward(arrays, options, needs=needs)

        def pullback(grads: Sequence[Any]) -> Any:
            return backward(saved, self.Outputs(*grads), needs=needs)

        return self._public(record(self.name, tensors, outputs, pullback))

    def vjp(self, *values: Any, backend: str | Backend | None = None, **config: Any) -> tuple[Any, Any]:
        """Run the op on arrays and return its outputs and their pullback; see `pyrnn.vjp`."""
        given = self._bind(values, config)
        chosen = choose(self.name, backend)
        filled = {name: config.get(name, option.default) for name, option in self.options.items()}
        arrays, options = self.check([given.get(name) for name in self.arrays], filled, chosen)
        present = self.Arrays(*(value is not None for value in arrays))
        forward, backward = self._methods(chosen, options)
        outputs, saved = forward(arrays, options, needs=present)
        outputs = self.Outputs(*outputs)

        def pullback(grad_outputs: Any, needs: Sequence[bool] | None = None) -> Any:
            grads = self._check_gradients(grad_outputs, outputs, chosen)
            wanted = present
            if needs is not None:
                if len(needs) != len(present):
                    raise ValueError(f"needs: expected {len(present)} booleans, got {len(needs)}")
                wanted = self.Arrays(*(bool(n) and p for n, p in zip(needs, present, strict=True)))
            if not any(wanted) or all(grad is None for grad in grads):
                zeros_like = chosen.xp.zeros_like
                return self.Arrays(*(zeros_like(a) if want else None for a, want in zip(arrays, wanted, strict=True)))
            return backward(saved, grads, needs=wanted)

        return self._public(outputs), pullback

    def _methods(self, backend: Backend, options: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return the forward and the backward that a call with these options takes."""
        forward, backward = getattr(backend, self._forward), getattr(backend, self._backward)
        if not getattr(options, "checkpoint", False):
            return forward, backward
        segments = Checkpointed(forward, backward, self.state or (), self.Outputs, backend.empty)
        return segments.forward, segments.backward

    def check(self, values: Sequence[Any], config: Mapping[str, Any], backend: Backend) -> tuple[Any, Any]:
        """Return arrays and configuration as the backend takes them, or raise naming what is wrong."""
        sizes: Sizes = {}
        dtype = None
        for (name, shape), value in zip(self.arrays.items(), values, strict=True):
            if value is None:
                if name in self.required:
                    raise TypeError(f"{name}: expected an array of shape {describe(shape, sizes)}, got None")
                continue
            dtype = check_array(name, value, dtype, backend)
            match_shape(name, shape, value.shape, sizes)
        arrays = self.Arrays(*values)
        options = self.Config(
            *[
                option.check(name, config[name], sizes, backend)
                if config[name] is not option.default or option.computed
                else option.default
                for name, option in self.options.items()
            ]
        )
        if self.rule is not None:
            self.rule(arrays, options)
        if self.derived:
            self._check_derived(values, sizes, options)
        return arrays, options

    def _check_derived(self, values: Sequence[Any], sizes: Sizes, options: Any) -> None:
        for symbol, size in self.derived.items():
            wanted = {**sizes, symbol: size(sizes, options)}
            for (name, shape), value in zip(self.arrays.items(), values, strict=True):
                if value is not None and symbol in shape.split() and sizes[symbol] != wanted[symbol]:
                    raise ValueError(f"{name}: expected shape {describe(shape, wanted)}, got {tuple(value.shape)}")

    def _bind(self, values: Sequence[Any], config: dict[str, Any]) -> dict[str, Any]:
        """Return the arrays by name; those given by keyword are taken out of ``config``."""
        names = list(self.arrays)
        if len(values) > len(names):
            raise TypeError(f"{self.name}: expected at most {len(names)} arrays, got {len(values)}")
        given = dict(zip(names, values, strict=False))
        for name in list(config):
            if name in given:
                raise TypeError(f"{self.name}: {name} is given twice")
            if name in self.arrays:
                given[name] = config.pop(name)
            elif name not in self.options:
                known = f"an option among {', '.join(self.options)}" if self.options else "no options"
                raise TypeError(f"{self.name}: expected {known}, got {name!r}")
        return given

    def _check_gradients(self, grad_outputs: Any, outputs: Any, backend: Backend) -> Any:
        grads = (grad_outputs,) if hasattr(grad_outputs, "shape") else tuple(grad_outputs)
        if len(grads) != len(outputs):
            raise ValueError(f"grad_outputs: expected {len(outputs)} arrays, got {len(grads)}")
        for name, grad, output in zip(self.outputs, grads, outputs, strict=True):
            if grad is not None:
                check_array(f"gradient of {name}", grad, output.dtype, backend)
                if grad.shape != output.shape:
                    raise ValueError(f"gradient of {name}: expected shape {output.shape}, got {grad.shape}")
        return self.Outputs(*grads)

    def _public(self, outputs: Sequence[Any]) -> Any:
        return outputs[0] if len(self.outputs) == 1 else self.Outputs(*outputs)


def vjp(op: Callable[..., Any], *arrays: Any, **config: Any) -> tuple[Any, Callable[..., Any]]:
    """Run an op on arrays and return its outputs with the function that pulls gradients back through it.

    It is the door for those who embed an op in another library's autograd. Do not write to the arrays
    between the call and the pullback.

    Parameters
    ----------
    op
        One of pyrnn's op functions, as ``pyrnn.lstm``.
    *arrays, **config
        As the op takes them: arrays (also by name), options, ``backend=``.

    Returns
    -------
    outputs
        As the op gives them.
    pullback
        ``pullback(grad_outputs, needs=None) -> grads``: takes one array per output (None for zero) and gives
        a NamedTuple with one gradient per array, None where none was given or where ``needs`` (one bool per
        array) wants none. It may be called more than once.

    References
    ----------
    Baydin, Pearlmutter, Radul, Siskind (2018), "Automatic Differentiation in Machine Learning: a Survey".
    """
    declared = OPS.get(getattr(op, "__name__", ""))
    if declared is None or declared.function is not op:
        raise TypeError(f"op: expected one of pyrnn's ops ({', '.join(sorted(OPS))}), got {op!r}")
    return declared.vjp(*arrays, **config)
