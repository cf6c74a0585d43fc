"""`Module`: what every layer and model is, and `SequenceLayer`: what follows the state protocol."""

from __future__ import annotations

import copy
import inspect
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .._checks import compare_state, refuse_misfits, type_name
from ..autograd import Tensor, no_grad, to_arrays
from ..autograd.tensor import namespace
from ..backend import Backend, get_backend, model_backend
from .frozen import Frozen, Part

_predicting: ContextVar[bool] = ContextVar("pyrnn_predicting", default=False)

REGISTRY: dict[str, type[Module]] = {}
"""The library's own classes by name: those that a file's architecture may name, and no others."""

Shapes: TypeAlias = Iterator[tuple[str, tuple[int, ...]]]
M = TypeVar("M", bound="Module")
Layer = TypeVar("Layer", bound="type[Module]")


def registered(layer: Layer) -> Layer:
    """Enter one of the library's own classes in `REGISTRY`."""
    REGISTRY[layer.__name__] = layer
    return layer


def whole(config: Mapping[str, Any], name: str) -> int:
    """Return a whole number of a configuration, which may come from a file."""
    value = config[name]
    if type(value) is not int or value < 1:
        raise TypeError(f"{name} should be a whole number from 1 on")
    return value


def inside(name: str, layer: Any, **config: Any) -> Shapes:
    """Go through the parameters of a layer inside of another, under its name there."""
    return ((f"{name}.{parameter}", shape) for parameter, shape in layer.parameter_shapes(config))


class Parameter(Tensor):
    """A Tensor that a `Module` finds among its members and an optimiser updates.

    Attributes
    ----------
    backend : Backend or None
        Its module's own, given with `Module.to`: optimisers update it there.
    """

    __slots__ = ("backend",)
    backend: Backend | None

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)
        self.backend = None

    def move(self, backend: Backend) -> None:
        """Bring the array, and its gradient, to a backend's kind of array; one that is so already stays."""
        self.backend = backend
        if not isinstance(self._array, backend.array_type):
            self._array = _converted(self._array, backend.array_type, backend.xp)
            if self.grad is not None:
                self.grad = _converted(self.grad, backend.array_type, backend.xp)
            self.version.count += 1


def _converted(array: Any, kind: type, xp: Any) -> Any:
    """Return an array as one of another module's; from a device it comes through the host."""
    if isinstance(array, kind):
        return array
    return xp.asarray(array.get() if hasattr(array, "get") else array)


Member: TypeAlias = "Parameter | Module | np.random.Generator"


class Module:
    """Base class of layers and models: parameters and other modules as attributes, and a ``forward``.

    Members are found by walking the attributes in the order in which they were set: `Parameter`, `Module`,
    and lists, tuples and dicts of them (named ``name.index`` or ``name.key``). A subclass needs no
    ``super().__init__()``.

    Examples
    --------
    >>> class Classifier(Module):
    ...     def __init__(self, rng):
    ...         self.lstm = LSTM(3, 16, rng=rng)
    ...         self.head = Linear(16, 2, rng=rng)
    ...
    ...     def forward(self, x, lengths=None):
    ...         y, (h, c) = self.lstm(x, lengths=lengths)
    ...         return self.head(h[:, -1])
    """

    config: dict[str, Any]  # the library's own layers: the arguments that make them, without the generator
    _training = True
    _backend: Backend | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # An array in a parameter's place would drop it from the model: not trained, not saved, and no word of it.
        if isinstance(vars(self).get(name), Parameter) and not isinstance(value, (Parameter, type(None))):
            raise TypeError(
                f"{name}: expected a Parameter, got {type_name(value)}; "
                f"to give it other numbers write to {name}.write()[...], or use load_state_dict"
            )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs; each subclass has its own."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, on the backend given with `to` unless a `use_backend` is in force."""
        if self._backend is None:
            return self.forward(*args, **kwargs)
        with model_backend(self._backend):
            return self.forward(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run as in eval mode and without a tape, and give arrays; the mode itself stays as it is.

        It may be called from several threads at once.
        """
        with as_in_eval(), no_grad():
            return to_arrays(self(*args, **kwargs))

    def freeze(self, dtype: Any = None) -> Frozen:
        """Pack the weights as they are now and return a runner that nothing changes, for threads to share.

        Parameters
        ----------
        dtype : optional
            The precision to run in; None is the parameters' own, which is the only one so far.

        Returns
        -------
        Frozen
            ``run(x, state, lengths)`` and ``stream(batch).step(x_t)``, on the backend that the model would run
            on now.

        Raises
        ------
        TypeError
            A layer inside is of a class of your own: freeze the layers that it is made of, and call them as
            its forward does.
        ValueError
            Another dtype than the parameters' own, or parameters of both.
        """
        kinds = sorted({str(parameter.dtype) for parameter in self.parameters()})
        if len(kinds) > 1:
            raise ValueError(f"freeze: expected parameters of one dtype, got {' and '.join(kinds)}")
        own = kinds[0] if kinds else "float32"
        if not (dtype is None or _names(dtype, own)):
            raise ValueError(f"dtype: expected None or one that is supported for this model: {own!r}; got {dtype!r}")
        with nullcontext() if self._backend is None else model_backend(self._backend):
            return Frozen(self._freeze(), np.dtype(own))

    def _freeze(self) -> Part:
        raise TypeError(
            f"freeze: {type(self).__name__} is a class of your own, whose forward can't be frozen; freeze the layers "
            "that it is made of, and call their run or step as its forward does"
        )

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`.

        Those of layers that it makes inside itself are among them, by their dotted names. The library's own layers make
        them so, and `pyrnn.io` holds a file against them before it builds one.
        """
        yield from ()

    def _add_parameters(self, dtype: Any) -> dict[str, Parameter]:
        """Make and return the parameters that the configuration says, their numbers yet to be filled in."""
        made = {name: Parameter(np.empty(shape, dtype)) for name, shape in self.parameter_shapes(self.config)}
        for name, parameter in made.items():
            setattr(self, name, parameter)
        return made

    # --- members --------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Go through the parameters with their dotted names; one that is shared comes once."""
        return ((name, member) for name, member in _walk(self) if isinstance(member, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """Go through the parameters; one that is shared comes once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Go through this module (named "") and all inside it with their dotted names, each once."""
        return ((name, member) for name, member in _walk(self) if isinstance(member, Module))

    def modules(self) -> Iterator[Module]:
        """Go through this module and all inside it, each once."""
        return (module for _, module in self.named_modules())

    def named_generators(self) -> Iterator[tuple[str, np.random.Generator]]:
        """Go through the random generators, dropout's, which a resumed training needs as they were."""
        return ((name, member) for name, member in _walk(self) if isinstance(member, np.random.Generator))

    def num_parameters(self) -> int:
        """Return how many numbers the parameters hold, shared ones counted once."""
        return sum(parameter.size for parameter in self.parameters())

    # --- state ----------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether this module is in training mode; False inside of `predict`."""
        return self._training and not _predicting.get()

    def train(self: M, mode: bool = True) -> M:
        """Set training mode (or, with False, eval mode) here and in all modules inside; return self."""
        for module in self.modules():
            module._training = bool(mode)
        return self

    def eval(self: M) -> M:
        """Set eval mode here and in all modules inside; return self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self: M, backend: str | Backend) -> M:
        """Bring the parameters to a backend's arrays and run on it from now on; return self.

        What is there already is not copied. An explicit `pyrnn.use_backend` comes before it.

        Parameters
        ----------
        backend
            A name that `pyrnn.backends` lists, or a `Backend`.
        """
        chosen = get_backend(backend)
        for parameter in self.parameters():
            parameter.move(chosen)
        for module in self.modules():
            module._backend = chosen
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all parameters' arrays by name."""
        return {name: parameter.data.copy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Write arrays into the parameters of their names, in place.

        Raises
        ------
        ValueError
            An entry is missing, unexpected, or of another shape or dtype. The message names every one of
            them, and nothing is loaded.
        """
        parameters = dict(self.named_parameters())
        given = {name: value.data if isinstance(value, Tensor) else value for name, value in state_dict.items()}
        refuse_misfits("state_dict", self, compare_state(given, parameters))
        for name, parameter in parameters.items():
            array = parameter.write()
            array[...] = _converted(given[name], type(array), namespace(array))

    def architecture(self) -> dict[str, Any]:
        """Return the class and its configuration as plain JSON-able values, for `pyrnn.io`.

        Raises
        ------
        TypeError
            This is not one of the library's own classes: such a model is saved by its state_dict.
        """
        name = type(self).__name__
        if REGISTRY.get(name) is not type(self):
            raise TypeError(
                f"{name} is a class of your own, so a file can't hold its architecture; save its state_dict() and "
                "load that with load_state_dict() into a model that your code has built"
            )
        return {"class": name, "config": copy.deepcopy(self.config)}

    # --- copies and words -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        # A backend belongs to the process: its name goes with the model, unless it is nowhere registered.
        if self._backend is not None and _is_registered(self._backend):
            state["_backend"] = self._backend.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self._backend, str):
            self._backend = get_backend(self._backend)
        for _, member in _members(self):
            if isinstance(member, Parameter):
                member.backend = self._backend

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        lines = [
            f"\n  ({name}): " + repr(member).replace("\n", "\n  ")
            for name, member in _members(self)
            if isinstance(member, Module)
        ]
        inside = "".join(lines) + "\n" if lines else self._arguments()
        return f"{type(self).__name__}({inside})"

    def _arguments(self) -> str:
        """Write the configuration as the call that makes it, without what is left at its default."""
        config = vars(self).get("config")
        defaults = {
            parameter.name: parameter.default
            for base in reversed(type(self).__mro__)
            if "__init__" in vars(base)
            for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
        }
        given = config.items() if isinstance(config, dict) else ()
        return ", ".join(f"{name}={value!r}" for name, value in given if defaults.get(name) != value)


def _names(dtype: Any, own: str) -> bool:
    """Tell whether a caller's dtype is the one of this name; numpy does not know all that may be asked for."""
    try:
        return bool(np.dtype(dtype) == own)
    except TypeError:
        return False


FOUND = (Parameter, Module, np.random.Generator, list, tuple, dict)


def _members(owner: Module) -> Iterator[tuple[str, Member]]:
    """Go through what a module holds itself, in the order in which it was set."""

    def find(name: str, value: Any) -> Iterator[tuple[str, Member]]:
        if isinstance(value, (Parameter, Module, np.random.Generator)):
            yield name, value
        elif isinstance(value, (list, tuple, dict)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, FOUND):  # a vocabulary's thousands of words are passed over quickly
                    yield from find(f"{name}.{key}", item)

    for name, value in vars(owner).items():
        yield from find(name, value)


def _walk(owner: Module) -> Iterator[tuple[str, Member]]:
    """Go depth first through a module, itself included, and all that is inside it, each object once."""
    seen: set[int] = set()

    def visit(path: str, member: Member) -> Iterator[tuple[str, Member]]:
        if id(member) in seen:
            return
        seen.add(id(member))
        yield path, member
        if isinstance(member, Module):
            for name, inner in _members(member):
                yield from visit(f"{path}.{name}" if path else name, inner)

    return visit("", owner)


def _is_registered(backend: Backend) -> bool:
    try:
        return get_backend(backend.name) is backend
    except (ValueError, ImportError):
        return False


@contextmanager
def as_in_eval() -> Iterator[None]:
    """Make every module of this thread act as in eval mode; no flag is touched, so others go on training."""
    token = _predicting.set(True)
    try:
        yield
    finally:
        _predicting.reset(token)


class SequenceLayer(Module):
    """Base class of what follows the state protocol: ``y, state = layer(x, state=None, *, lengths=None)``.

    A state is a nested tuple of arrays (or Tensors) with the batch as axis 0 of each, and a value: no call
    alters one that it was given. ``lengths`` (B,) are the valid steps of each row.
    """

    @property
    def streamable(self) -> bool:
        """Whether running in chunks, the state carried along, gives what running the whole gives."""
        return False

    def initial_state(self, batch: int) -> Any:
        """Return the state that ``state=None`` stands for.

        Parameters
        ----------
        batch : int
            The number of rows.
        """
        raise NotImplementedError(f"{type(self).__name__} has no initial_state")

    def predict(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Any, Any]:
        """Run as in eval mode and without a tape; the mode itself stays as it is.

        It may be called from several threads at once.

        Parameters
        ----------
        x, state, lengths
            As the layer takes them.

        Returns
        -------
        y, state
            Arrays.
        """
        y, state = super().predict(x, state, lengths=lengths)
        return y, state
