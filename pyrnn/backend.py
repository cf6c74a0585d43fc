"""Backends: the base class, the registry, and the choice of the one that a call runs on.

A backend is a class derived from `Backend` with a pair of methods for each op that it has. It is found under
its name: two are built in, all others come from packages that register in the entry-point group
``pyrnn.backends``. Those are listed by name and imported only when they are asked for.

A call runs on the first of these that is set: its own ``backend=``; the innermost ``with use_backend(...)``;
the model's own (``model.to(...)``); the environment's ``PYRNN_BACKEND``; ``cython``.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from .reference.basic import BasicOps
from .reference.conv import ChainOps
from .reference.update import UpdateOps

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "pyrnn.backends"
BUILT_IN = {
    "cython": "pyrnn._core.backend:CythonBackend",
    "reference": "pyrnn.reference.backend:ReferenceBackend",
}
DEFAULT = os.environ.get("PYRNN_BACKEND") or "cython"
# Attention's sums over keys are taken over splits of so many keys, counted from key 0, which are then merged in order.
# Whole splits that no query sees can be left out, and the results keep every bit, where a backend claims "chunk".
KEY_SPLIT = 256


class BackendUnavailableError(ImportError):
    """A backend that is known by name can't be used here; the message says why and what installs it."""

    def __init__(self, name: str, reason: str, install: str = "") -> None:
        super().__init__(f"backend {name!r} can't be used: {reason}" + (f"; try: {install}" if install else ""))
        self.reason, self.install = reason, install


@dataclass(frozen=True)
class Claim:
    """What a backend promises of one op. The tests hold it to exactly this.

    Attributes
    ----------
    dtypes
        The array types that it takes.
    options
        For each option that it takes in part only, the values that it takes.
    invariances
        Of ``"threads"``, ``"batch"`` and ``"chunk"``: what leaves every output bit of the forward as it is.
        ``"weight gradients"``: those are the same for any number of threads.
    """

    dtypes: tuple[str, ...] = ("float32", "float64")
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    invariances: frozenset[str] = frozenset()


class Stage(NamedTuple):
    """One stage of a chain of `Backend.causal_conv1d_chain`: to = then(value + plus), on buffers (batch, channels).

    Attributes
    ----------
    source, to
        Where it reads and writes.
    packed
        The convolution, packed, of whose step on the source the output is the value; None: the source is.
    left
        The context (batch, (K-1)·dilation, channels) that it begins at; None where its kernel size is 1.
    plus
        What is added, if anything; it may be ``to``.
    then
        ``"nothing"``, ``"relu"``, ``"tanh"`` or ``"gate"``: tanh of all, of whose halves u, v it then is u·(v + 1).
    """

    source: Any
    to: Any
    packed: Any = None
    left: Any = None
    plus: Any = None
    then: Literal["nothing", "relu", "tanh", "gate"] = "nothing"


class Backend(BasicOps, UpdateOps, ChainOps):
    """Base class of all backends: for each op ``<op>_forward`` and ``<op>_backward``.

    ::

        <op>_forward (arrays, config, *, needs=None)    -> outputs, saved
        <op>_backward(saved, grad_outputs, *, needs)    -> grads

    ``arrays`` is the op's NamedTuple of checked arrays (None for an optional one that was not given), ``config``
    that of its options with the defaults filled in. ``needs`` has the fields of ``arrays`` and says which
    gradients will be asked for; None means inference: nothing is kept and ``saved`` is None. ``saved`` is
    read-only: backward may run more than once. ``grad_outputs`` has None where an output's gradient is zero.
    ``grads`` has the fields of ``arrays``, None where a gradient is not needed.

    An op with weights and a state also has::

        <op>_pack(arrays, config)                       -> packed
        <op>_run (packed, x, state=None, *, lengths=None, out=None) -> y, state

    which `pyrnn.nn.Module.freeze` and its streams call: ``arrays`` are the weights, None for the rest. Nothing
    changes ``packed``, whatever becomes of the weights, and threads may share it. ``state`` is a tuple of arrays,
    ``out`` a pair ``(y, state)`` of arrays to be written, the state perhaps in place. The base class has both,
    which keep copies and call the forward.

    The methods of an op that a backend lacks raise `NotImplementedError`; the `basic` family alone has
    defaults, written against `xp`. So have ``sgd_update`` and ``adam_update``, which optimisers call (see
    `pyrnn.reference.update`), and ``causal_conv1d_chain``, a stream's step through several convolutions (see
    `pyrnn.reference.conv`).

    Attributes
    ----------
    name
        What it is registered and asked for under: its entry point's name.
    xp
        Its array module, numpy or one with numpy's names.
    array_type
        The class of the arrays that it takes and gives.
    compute_modes
        What ``use_backend(..., compute=)`` may ask of it beside the arrays' own precision.
    note
        What a user should know before choosing it, as the time that its first call takes; `backends` tells it.
    claims
        What it promises, op by op.
    """

    name: ClassVar[str]
    xp: Any = np
    array_type: type = np.ndarray
    compute_modes: tuple[str, ...] = ()
    note: str = ""
    claims: Mapping[str, Claim] = {}

    def has(self, op: str) -> bool:
        """Tell whether this backend has the op."""
        method = getattr(self, f"{op}_forward", None)
        return method is not None and not getattr(method, "is_missing", False)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return an uninitialised array of this backend's kind."""
        return self.xp.empty(shape, dtype)

    def stepper(self, op: str, packed: Any, state: tuple[Any, ...], width: int) -> Callable[[Any, Any], Any]:
        """Return a packed layer's step: a function of x_t (B, features) and out (B, width) or None, which gives y_t.

        It begins at a state, whose arrays it takes over and writes. Where the packed layer has a ``stepper(state)`` of
        its own, it is what that gives; it may keep its state elsewhere, and then has a method ``state()``.
        """
        own: Any = getattr(packed, "stepper", None)
        if own is not None:
            return own(state)
        run, shape, dtype = getattr(self, f"{op}_run"), (len(state[0]), width), state[0].dtype

        def step(x: Any, out: Any) -> Any:
            if out is None:
                out = self.xp.empty(shape, dtype)
            run(packed, x[:, None], state, out=(out[:, None], state))
            return out

        return step

    @classmethod
    def declare_op(cls, op: str, state: tuple[str, ...] | None) -> None:
        """Give the base class the methods of a declared op.

        Forward and backward raise until a backend overrides them. Where the op has a ``state``, pack and run keep
        copies of the weights and call the forward, until a backend has something better.
        """
        for direction in ("forward", "backward"):
            if not hasattr(cls, f"{op}_{direction}"):
                setattr(cls, f"{op}_{direction}", _missing(op))
        if state is not None:
            setattr(cls, f"{op}_pack", _pack_copies)
            setattr(cls, f"{op}_run", _run_copies(f"{op}_forward", state))

    def __repr__(self) -> str:
        return f"<pyrnn backend {self.name!r}>"


def _missing(op: str) -> Callable[..., Any]:
    def method(self: Backend, *_: Any, **__: Any) -> Any:
        having = [info.name for info in backends() if info.backend is not None and info.backend.has(op)]
        raise NotImplementedError(
            f"backend {self.name!r} has no op {op!r}; available here with it: {', '.join(having) or 'none'}. "
            f'A fallback is asked for: use_backend("{self.name}", otherwise="cython")'
        )

    method.is_missing = True  # type: ignore[attr-defined]
    return method


def _pack_copies(self: Backend, arrays: Any, config: Any) -> Any:
    return type(arrays)(*(None if array is None else array.copy() for array in arrays)), config


def _run_copies(forward: str, names: tuple[str, ...]) -> Callable[..., Any]:
    def run(self: Backend, packed: Any, x: Any, state: Any = None, *, lengths: Any = None, out: Any = None) -> Any:
        arrays, config = packed
        given = dict(zip(names, state, strict=True)) if state is not None else {}
        options = {"lengths": lengths} if "lengths" in config._fields else {}
        arrays, config = arrays._replace(**{arrays._fields[0]: x}, **given), config._replace(**options)
        y, *new = getattr(self, forward)(arrays, config)[0]
        if out is None:
            return y, tuple(new)
        for to, value in zip((out[0], *out[1]), (y, *new), strict=True):
            to[...] = value
        return out

    return run


# --- the registry ------------------------------------------------------------------------------------------


class BackendInfo(NamedTuple):
    """One line of `backends`: ``backend`` is None where it can't be used, and ``reason`` then says why."""

    name: str
    origin: str
    backend: Backend | None
    reason: str = ""
    install: str = ""

    def __str__(self) -> str:
        if self.backend is not None:
            return f"{self.name}: available ({self.origin})" + (f"; {self.backend.note}" if self.backend.note else "")
        return f"{self.name}: not available ({self.origin}): {self.reason}" + (
            f"; try: {self.install}" if self.install else ""
        )


_loaded: dict[str, Backend] = {}
_lock = threading.RLock()


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    """Return the plugins' entry points by name, imported by none; the scan happens once a process."""
    from importlib.metadata import entry_points  # costs more than all of pyrnn, so only when asked for

    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.value):
        if all(point.value != other.value for other in found.setdefault(point.name, [])):
            found[point.name].append(point)
    return found


class _EntryPointError(Exception):
    """An entry point names nothing, or nothing that is a backend."""


def _import(path: str) -> Any:
    """Return what an entry point names: ``module:attribute``, perhaps with extras in brackets after it."""
    module, _, attributes = path.partition("[")[0].replace(" ", "").partition(":")
    if not module or not attributes:
        raise _EntryPointError("it names no class, as 'package:Class' does")
    found = importlib.import_module(module)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise _EntryPointError(f"{module} has no {attributes}")
        found = getattr(found, attribute)
    return found


def _load(name: str) -> Backend:
    point = None
    if name not in BUILT_IN:
        points = _entry_points()[name]
        if len(points) > 1:
            origins = " and ".join(f"{point.value} (of {_distribution(point)})" for point in points)
            raise BackendUnavailableError(name, f"{len(points)} plugins have this name: {origins}; uninstall one")
        point = points[0]
    path = BUILT_IN[name] if point is None else point.value
    try:
        plugin = _import(path)
        if isinstance(plugin, type) and not issubclass(plugin, Backend):
            raise _EntryPointError(f"it gives {plugin.__qualname__}, which is not derived from pyrnn.Backend")
        backend = plugin() if isinstance(plugin, type) else plugin
        if not isinstance(backend, Backend):
            raise _EntryPointError(f"it gives no Backend, but an object of type {type(backend).__qualname__}")
    except (BackendUnavailableError, KeyboardInterrupt):
        raise
    except _EntryPointError as error:
        raise BackendUnavailableError(name, f"its entry point {path!r} is wrong: {error}") from None
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(name, str(error), _what_installs(error.name, path, point)) from error
    except BaseException as error:  # sys.exit() and the panic of a Rust extension are no Exceptions
        raise BackendUnavailableError(name, f"{type(error).__name__}: {error}".removesuffix(": ")) from error
    kind, called = type(backend).__qualname__, getattr(backend, "name", None)
    if called is None:
        raise BackendUnavailableError(name, f"its class {kind} has no name; write: name = {name!r}")
    if called != name:  # models and messages keep the name, to find the backend by it again
        raise BackendUnavailableError(
            name, f"its class {kind} has the name {called!r}; name it as the entry point does, {name!r}"
        )
    return backend


def _distribution(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else point.dist.name


def _what_installs(missing: str | None, path: str, point: EntryPoint | None) -> str:
    """Return the command that installs a module, by what the plugin's distribution says of it, or an empty string."""
    package = (missing or "").partition(".")[0]
    if not package:
        return ""
    install = "pip install --upgrade" if package in sys.modules else "pip install"  # there, but without this part
    if point is None or point.dist is None:
        return f"{install} {package}"
    own = point.dist.name
    if package == path.partition(":")[0].partition(".")[0]:
        return f"pip install --force-reinstall {own}"
    for requirement in point.dist.requires or []:
        required = re.match(r"[\w.-]+", requirement)
        if required and re.sub(r"[-_.]+", "-", required[0]).lower() == re.sub(r"[-_.]+", "-", package).lower():
            extra = re.search(r"\bextra\s*==\s*['\"]([^'\"]+)", requirement)
            return f'{install} "{own}[{extra[1]}]"' if extra else f"{install} {required[0]}"
    return f"{install} {package}"


def get_backend(name: str | Backend) -> Backend:
    """Return the backend of this name, imported at its first use.

    Parameters
    ----------
    name
        A name that `backends` lists, or a `Backend`, which is given back as it is.

    Raises
    ------
    ValueError
        No backend has this name.
    BackendUnavailableError
        It can't be used here (an ImportError): the message says why and what installs it.
    """
    if isinstance(name, Backend):
        return name
    backend = _loaded.get(name)
    if backend is not None:
        return backend
    if name not in BUILT_IN and name not in _entry_points():
        source = "PYRNN_BACKEND" if name == os.environ.get("PYRNN_BACKEND") else "backend"
        raise ValueError(f"{source}: expected one of {', '.join(_names())}, got {name!r}")
    with _lock:
        return _loaded.setdefault(name, _loaded.get(name) or _load(name))


def _names() -> list[str]:
    return [*BUILT_IN, *(name for name in sorted(_entry_points()) if name not in BUILT_IN)]


def backends() -> list[BackendInfo]:
    """List every backend known here; one that can't be used is listed with the reason and what installs it.

    To know whether a plugin can be used, this imports it.
    """
    infos = []
    for name in _names():
        origin = "built in" if name in BUILT_IN else ", ".join(p.value for p in _entry_points()[name])
        try:
            infos.append(BackendInfo(name, origin, get_backend(name)))
        except BackendUnavailableError as error:
            infos.append(BackendInfo(name, origin, None, error.reason, error.install))
    for name in BUILT_IN:
        for point in _entry_points().get(name, []):
            reason = f"this name is built in and can't be taken by a plugin (of {_distribution(point)})"
            infos.append(BackendInfo(name, point.value, None, reason))
    return infos


# --- the choice --------------------------------------------------------------------------------------------


class _Use(NamedTuple):
    backend: Backend
    compute: str | None
    otherwise: Backend | None


_use: ContextVar[_Use | None] = ContextVar("pyrnn_use_backend", default=None)
_model: ContextVar[Backend | None] = ContextVar("pyrnn_model_backend", default=None)


@contextmanager
def use_backend(
    name: str | Backend, *, compute: str | None = None, otherwise: str | Backend | None = None
) -> Iterator[Backend]:
    """Run the ops of a ``with`` block on a backend.

    It holds in this thread and its asyncio tasks (a ContextVar); a new thread starts from the default.

    Parameters
    ----------
    name
        A name that `backends` lists, or a `Backend` of one's own.
    compute
        None keeps the arrays' own precision. A backend that can trade precision for speed lists its modes
        in ``compute_modes``.
    otherwise
        The backend that runs those ops that the first one lacks. Without it they raise NotImplementedError.

    Yields
    ------
    Backend
        The backend in use.
    """
    backend = get_backend(name)
    if compute is not None and compute not in backend.compute_modes:
        raise ValueError(
            f"compute: backend {backend.name!r} takes None"
            + "".join(f" or {mode!r}" for mode in backend.compute_modes)
            + f", got {compute!r}"
        )
    other = None if otherwise is None else get_backend(otherwise)
    if other is not None and other.array_type is not backend.array_type:
        raise ValueError(
            f"otherwise: expected a backend on {backend.array_type.__name__} arrays as {backend.name!r} is, "
            f"got {other.name!r} on {other.array_type.__name__}: nothing is copied between devices in silence"
        )
    token = _use.set(_Use(backend, compute, other))
    try:
        yield backend
    finally:
        _use.reset(token)


@contextmanager
def model_backend(backend: Backend) -> Iterator[None]:
    """Make a model's own backend the one below any `use_backend` in force."""
    token = _model.set(backend)
    try:
        yield
    finally:
        _model.reset(token)


def current_compute() -> str | None:
    """Return the compute mode that `use_backend` asks for, or None for the arrays' own precision."""
    use = _use.get()
    return None if use is None else use.compute


def choose(op: str, backend: str | Backend | None = None) -> Backend:
    """Return the backend that a call of ``op`` made here runs on."""
    if backend is not None:
        return get_backend(backend)
    use = _use.get()
    if use is None:
        return _model.get() or get_backend(DEFAULT)
    return use.backend if use.otherwise is None or use.backend.has(op) else use.otherwise


def choose_updates(array: Any, own: Backend | None = None) -> UpdateOps:
    """Return what an optimiser's update of an array runs on, or its dropout; ``own`` is the model's backend.

    It is the backend that ops would run on. One that takes no arrays of this kind has no part in it: then it is plain
    array code, which is right for any.
    """
    use = _use.get()
    backend = (own or _model.get() or get_backend(DEFAULT)) if use is None else use.backend
    return backend if isinstance(array, backend.array_type) else _plain_updates


_plain_updates = UpdateOps()
