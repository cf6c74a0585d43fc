"""`save_checkpoint` and `load_checkpoint`: all that a training run needs to go on to the same bits."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..nn import Module
from . import tree
from .container import FileError, read_header, read_tensors, write

KIND = "checkpoint"
PARTS = ("schedule", "optimizer", "loader")

# The positions in a bit generator's buffer: NumPy takes any number, and would read outside of the buffer.
POSITIONS = {"pos": 624, "buffer_pos": 4}


class Stateful(Protocol):
    """What has a state that can be taken and given back: optimizers, schedules, loaders."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> None:
        """Take the state."""


Generators: TypeAlias = np.random.Generator | Mapping[str, np.random.Generator]


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Module,
    optimizer: Stateful | None = None,
    schedule: Stateful | None = None,
    loader: Stateful | None = None,
    rng: Generators | None = None,
    extra: Any = None,
) -> None:
    """Save a training run, so that `load_checkpoint` can go on with it to the same bits.

    The file is written whole or not at all, in the format of `save`. The generators of the model's own layers
    (dropout's) are saved with it. Gradients are not: save after ``optimizer.step()``.

    Parameters
    ----------
    path
        A file that is there is replaced at the very end, and stays as it is if anything fails.
    model : Module
        Of any class: its state_dict is saved.
    optimizer, schedule, loader : optional
        As in `pyrnn.optim` and `pyrnn.data`, or anything with ``state_dict`` and ``load_state_dict``.
    rng : numpy.random.Generator or mapping of str to Generator, optional
        What else the run draws from.
    extra : optional
        What else it needs, the step number or the state of a recurrent layer: None, bool, int, float, str,
        list, tuple, dict with string keys, and NumPy arrays and scalars of numbers.

    Raises
    ------
    TypeError, ValueError
        If a state or `extra` has something else in it; the message says where.
    OSError
        If the file can't be written.
    """
    parts = _given(schedule=schedule, optimizer=optimizer, loader=loader)
    state: dict[str, Any] = {
        name: {"class": type(part).__name__, "state": part.state_dict()} for name, part in parts.items()
    }
    state["model"] = model.state_dict()
    state["generators"] = _generator_states(_generators(model, rng))
    state["extra"] = extra
    arrays: dict[str, NDArray[Any]] = {}
    encoded = {name: tree.encode(value, name, arrays) for name, value in state.items()}
    write(path, KIND, arrays, {"state": encoded})


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Module,
    optimizer: Stateful | None = None,
    schedule: Stateful | None = None,
    loader: Stateful | None = None,
    rng: Generators | None = None,
    partial: bool = False,
) -> Any:
    """Put all of a training run back to where `save_checkpoint` was called.

    If anything fails, nothing is changed. Build everything as it was built for that run, then call this.
    Layers that shared a generator must share one again.

    Parameters
    ----------
    path
    model, optimizer, schedule, loader, rng
        What `save_checkpoint` was given; each is changed in place.
    partial : bool
        Take back the model's parameters and what else is given here, although the file has more, and leave
        the generators of the model's layers alone. By default that is an error, as the run would not go on as
        it was.

    Returns
    -------
    extra
        As it was given to `save_checkpoint`; arrays are new.

    Raises
    ------
    FileError
        (A ValueError.) If the file is broken, not a checkpoint, or of something else than what is given here.
    OSError
        If it can't be opened.
    """
    parts = _given(schedule=schedule, optimizer=optimizer, loader=loader)
    generators = _generators(None if partial else model, rng)
    state = _read(path)
    try:
        saved = _match(state, parts, generators, partial)
    except ValueError as error:
        raise FileError(path, str(error)) from error

    # A schedule sets the optimizer's rate, so the optimizer comes after it. The loader comes last and is
    # never undone: one whose load_state_dict was called would go on elsewhere than it would have.
    named = [(name, parts[name]) for name in ("schedule", "optimizer") if name in parts]
    steps: list[tuple[str, Callable[[Any], None], Any]] = [("model", model.load_state_dict, state["model"])]
    steps += [(name, part.load_state_dict, state[name]["state"]) for name, part in named]
    steps += [(place, _bits_setter(generator), saved[place]) for place, generator in generators.items()]
    if loader is not None:
        steps.append(("loader", loader.load_state_dict, state["loader"]["state"]))
    # Taken before the first change, for the same reason.
    undo = [_restorer(part) for part in (model, *(part for _, part in named))]
    undo += [_bits_restorer(generator) for generator in generators.values()]
    for name, take, value in steps:
        try:
            take(value)
        except BaseException as error:
            for restore in undo:
                restore()
            if isinstance(error, Exception):
                problem = f"its state of {name} can't be taken, and nothing was changed: {error}"
                raise FileError(path, problem) from error
            raise
    return state["extra"]


def _given(**parts: Stateful | None) -> dict[str, Stateful]:
    for name, part in parts.items():
        if part is not None and not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(f"{name}: expected state_dict and load_state_dict, got a {type(part).__name__}")
    return {name: part for name, part in parts.items() if part is not None}


def _restorer(part: Stateful) -> Callable[[], None]:
    """Return what brings a part back to where it is now."""
    before = copy.deepcopy(part.state_dict())
    return lambda: part.load_state_dict(before)


# --- the file ----------------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    header = read_header(path, KIND)
    arrays = read_tensors(path, header.tensors)
    try:
        if set(header.content) != {"state"}:
            raise ValueError(f"a checkpoint should have a state, and has {list(header.content)}")
        state = tree.decode(header.content["state"], arrays)
        _check_form(state)
    except ValueError as error:
        raise FileError(path, str(error)) from error
    return dict(state)


def _check_form(state: Any) -> None:
    """Raise ValueError unless the state is nested as `save_checkpoint` does it."""
    always = {"model", "generators", "extra"}
    if not isinstance(state, dict) or not always <= set(state) <= always | set(PARTS):
        raise ValueError(f"its state should have {', '.join(sorted(always))} and perhaps {', '.join(PARTS)}")
    if not isinstance(state["model"], dict):
        raise ValueError("its state of the model should be a dict")
    for name in PARTS:
        part = state.get(name, {"class": "", "state": {}})
        if not isinstance(part, dict) or set(part) != {"class", "state"} or not isinstance(part["class"], str):
            raise ValueError(f"its state of the {name} should have class and state")
    places = state["generators"]
    if not isinstance(places, list) or not all(
        isinstance(entry, dict)
        and set(entry) == {"places", "state"}
        and isinstance(entry["places"], list)
        and all(isinstance(place, str) for place in entry["places"])
        for entry in places
    ):
        raise ValueError("its states of generators should be a list, each with places and state")


def _match(
    state: dict[str, Any],
    parts: dict[str, Stateful],
    generators: dict[str, np.random.Generator],
    partial: bool,
) -> dict[str, Any]:
    """Hold what is in the file against what is given; return the generators' states by their places."""
    saved_parts = {name for name in PARTS if name in state}
    saved = {place: entry["state"] for entry in state["generators"] for place in entry["places"]}
    groups = {place: sorted(entry["places"]) for entry in state["generators"] for place in entry["places"]}

    lacking = [*sorted(set(parts) - saved_parts), *sorted(set(generators) - set(saved))]
    if lacking:
        raise ValueError(f"it has no state of {', '.join(lacking)}; of what it has: {_list(saved_parts, saved)}")
    spare = [*sorted(saved_parts - set(parts)), *sorted(set(saved) - set(generators))]
    if spare and not partial:
        raise ValueError(
            f"it also has the state of {', '.join(spare)}; give that too, to go on with the same run, or "
            "partial=True, to leave it"
        )
    for name, part in parts.items():
        if state[name]["class"] != type(part).__name__:
            raise ValueError(f"its {name} is of class {state[name]['class']}, and {type(part).__name__} was given")
    for place, group in _groups(generators).items():
        if group != [name for name in groups[place] if name in generators]:
            raise ValueError(
                f"its generator of {place} was that of {', '.join(groups[place])}; "
                f"here it is that of {', '.join(group)}, and would draw other numbers"
            )
    return saved


def _list(parts: set[str], generators: dict[str, Any]) -> str:
    return ", ".join([*sorted(parts), *sorted(generators)]) or "the model alone"


# --- generators --------------------------------------------------------------------------------------------


def _generators(model: Module | None, rng: Generators | None) -> dict[str, np.random.Generator]:
    """Return the run's generators by their places; the same one may be at several."""
    found: dict[str, Any] = {}
    if model is not None:
        found = {f"model.{name}": generator for name, generator in model.named_generators()}
    if isinstance(rng, Mapping):
        found |= {f"rng.{name}": generator for name, generator in rng.items()}
    elif rng is not None:
        found["rng"] = rng
    for name, generator in found.items():
        if not isinstance(generator, np.random.Generator):
            raise TypeError(f"{name}: expected a numpy.random.Generator, got a {type(generator).__name__}")
    return found


def _groups(generators: dict[str, np.random.Generator]) -> dict[str, list[str]]:
    """Return for each place all those that have the same generator, by name."""
    return {
        place: sorted(other for other, same in generators.items() if same.bit_generator is generator.bit_generator)
        for place, generator in generators.items()
    }


def _generator_states(generators: dict[str, np.random.Generator]) -> list[dict[str, Any]]:
    return [
        {"places": group, "state": generators[place].bit_generator.state}
        for place, group in _groups(generators).items()
        if place == group[0]
    ]


def _bits_restorer(generator: np.random.Generator) -> Callable[[], None]:
    before = generator.bit_generator.state

    def restore() -> None:
        generator.bit_generator.state = before

    return restore


def _bits_setter(generator: np.random.Generator) -> Callable[[Any], None]:
    def take(state: Any) -> None:
        own = generator.bit_generator.state
        if isinstance(state, dict) and state.get("bit_generator") != own["bit_generator"]:
            raise ValueError(f"it is that of a {state.get('bit_generator')}, and here is a {own['bit_generator']}")
        _check_bits("state", own, state)
        generator.bit_generator.state = state

    return take


def _check_bits(name: str, own: Any, given: Any) -> None:
    """Raise ValueError unless a bit generator's state has the form, and is in the bounds, of its own."""
    if isinstance(own, Mapping):
        if not isinstance(given, Mapping) or set(given) != set(own):
            raise ValueError(f"{name}: expected the entries {', '.join(own)}, got {str(given)[:200]}")
        for key, value in own.items():
            _check_bits(key, value, given[key])
    elif isinstance(own, np.ndarray):
        if not isinstance(given, np.ndarray) or (given.dtype, given.shape) != (own.dtype, own.shape):
            raise ValueError(f"{name}: expected {own.dtype} of shape {own.shape}, got {str(given)[:200]}")
    elif isinstance(own, str):
        if given != own:
            raise ValueError(f"{name}: expected {own}, got {str(given)[:200]}")
    elif type(given) is not int or not 0 <= given <= POSITIONS.get(name, 2**128 - 1):
        raise ValueError(f"{name}: expected a number from 0 to {POSITIONS.get(name, 2**128 - 1)}, got {given!r:.200}")
