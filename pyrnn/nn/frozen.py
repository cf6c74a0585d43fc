"""What `Module.freeze` gives: weights made ready once and never changed, run whole or step by step, without a tape.

A model is a tree of parts, one class for each kind of layer. A part runs sequences, and gives a step: a function that
carries its own state from call to call. Threads may share parts; a step belongs to one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import check_count, check_lengths
from ..autograd import Tensor
from ..backend import choose
from ._checks import check_array, check_recurrent_state, check_states
from ._sequence import in_turn

if TYPE_CHECKING:
    from .module import Module

Step = Callable[[Any, Any], Any]  # x_t (B, ...), out or None -> y_t


def _chain(steps: list[Step]) -> Step:
    """Return several steps, each on the output of the one before, as one."""
    if not steps:
        return lambda x, out: x
    *first, last = steps
    if not first:
        return last

    def chain(x: Any, out: Any) -> Any:
        for step in first:
            x = step(x, None)
        return last(x, out)

    return chain


def into(out: Any, y: Any) -> Any:
    """Return y, written into ``out`` where that is given."""
    if out is None:
        return y
    out[...] = y
    return out


class Kept:
    """A step that keeps its state elsewhere than in the arrays that it began at: ``state()`` gives it."""

    def __init__(self, run: Step, state: Callable[[], tuple[Any, ...]]) -> None:
        self._run, self.state = run, state

    def __call__(self, x: Any, out: Any) -> Any:
        return self._run(x, out)


def held(step: Step, state: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the state that a step is at: what it gives itself, or else the arrays that it began at and wrote."""
    own = getattr(step, "state", None)
    return state if own is None else own()


class Part:
    """One layer, frozen. This base class is what is true of a layer without a state that acts on each step alone."""

    streamable = True
    backend: Any  # a Backend, whose ops' methods are made by their declarations
    stateful = False
    in_features: int | None = None  # None: the part itself checks what comes

    def width(self, features: int | None) -> int | None:
        """Return the number of features that come out where so many go in."""
        return features

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        """Return y and the state after it; y in ``out`` where it is given."""
        raise NotImplementedError

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        return ()

    def check_state(self, state: Any, batch: int) -> None:
        if state is not None and not (isinstance(state, tuple) and not state):  # arrays have an == of their own
            raise ValueError(f"state: expected () of a model without a state, got a {type(state).__name__}")

    def step(self, state: tuple[Any, ...]) -> Step:
        """Return a step that begins at a state, whose arrays it takes over; `held` gives the state it is at."""
        return lambda x, out: self.run(x, (), None, out)[0]

    def blocking(self) -> Iterator[str]:
        """Go through the names of the layers that need the whole sequence."""
        yield from ()


class FrozenLayer(Part):
    """A layer without packed weights: a copy of it in eval mode."""

    def __init__(self, layer: Module) -> None:
        self.backend = choose("layer_norm")  # an op that every backend has
        self.layer = copy.deepcopy(layer).to(self.backend).eval()
        self.made: int | None = getattr(layer, "embedding_dim", None)

    def width(self, features: int | None) -> int | None:
        return self.made or features

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        y = self.layer.predict(x)
        return into(out, y), ()


class FrozenLinear(Part):
    """A `Linear`."""

    def __init__(self, backend: Any, packed: Any, in_features: int, out_features: int, dtype: Any) -> None:
        self.backend, self.packed, self.dtype = backend, packed, dtype
        self.in_features, self.out_features = in_features, out_features

    def width(self, features: int | None) -> int | None:
        return self.out_features

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        check_array("x", x, "... I", {"I": self.in_features}, self.dtype)
        return self.map(x, out), ()

    def map(self, x: Any, out: Any = None) -> Any:
        """Map what was checked."""
        return self.backend.linear_run(self.packed, x, out=None if out is None else (out, ()))[0]


class FrozenRecurrent(Part):
    """A stack of recurrent layers, ``layers[l][d]`` packed for layer l and direction d."""

    stateful = True

    def __init__(
        self, name: str, backend: Any, op: str, layers: Sequence[Sequence[Any]], start: Sequence[Any],
        leaves: tuple[str, ...], in_features: int, hidden_size: int,
    ) -> None:  # fmt: skip
        self.name, self.backend, self.op = name, backend, op
        self.layers, self.start, self.leaves = layers, start, leaves
        self._run_op: Any = getattr(backend, f"{op}_run")
        self.in_features, self.hidden_size = in_features, hidden_size
        self.shape, self.dtype = start[0].shape, start[0].dtype
        self.learned = any(leaf.any() for leaf in start)
        self.directions = len(layers[0])
        self.single = layers[0][0] if self.directions == len(layers) == 1 else None
        self.streamable = self.directions == 1

    def width(self, features: int | None) -> int | None:
        return self.directions * self.hidden_size

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        state = tuple(self.backend.xp.empty((batch, *start.shape), self.dtype) for start in self.start)
        for leaf, start in zip(state, self.start, strict=True):
            leaf[...] = start
        return state

    def check_state(self, state: Any, batch: int) -> None:
        if state is not None:
            stacked, hidden = self.start[0].shape
            check_recurrent_state(state, self.leaves, batch, stacked, hidden, self.dtype)

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        if x.ndim != 3 or x.shape[2] != self.in_features or x.dtype != self.dtype:
            check_array("x", x, "B T I", {"I": self.in_features}, self.dtype)
        batch, time, _ = x.shape
        if state is None and self.learned:
            state = self.initial_state(batch)
        if self.single is not None and out is None:
            before = None if state is None else tuple([leaf[:, 0] for leaf in state])
            y, after = self._run_op(self.single, x, before, lengths=lengths)
            return y, tuple([leaf[:, None] for leaf in after])
        hidden, empty = self.hidden_size, self.backend.empty
        new = tuple([empty((batch, *self.shape), self.dtype) for _ in self.leaves])
        index = 0
        before = None  # zeros
        for number, directions in enumerate(self.layers):
            last = number == len(self.layers) - 1
            y = empty((batch, time, self.directions * hidden), self.dtype) if out is None or not last else out
            for direction, packed in enumerate(directions):
                columns = y if self.directions == 1 else y[..., direction * hidden : (direction + 1) * hidden]
                if state is not None:
                    before = tuple([leaf[:, index] for leaf in state])
                self._run_op(packed, x, before, lengths=lengths, out=(columns, tuple([leaf[:, index] for leaf in new])))
                index += 1
            x = y
        return x, new

    def step(self, state: tuple[Any, ...]) -> Step:
        views = [tuple(leaf[:, index] for leaf in state) for index in range(len(self.layers))]
        stepper, op, width = self.backend.stepper, self.op, self.hidden_size
        return _chain([stepper(op, packed, view, width) for (packed,), view in zip(self.layers, views, strict=True)])

    def blocking(self) -> Iterator[str]:
        if not self.streamable:
            yield self.name


class FrozenSequential(Part):
    """A `Sequential`."""

    stateful = True

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.backend = parts[0].backend if parts else choose("linear")
        self.streamable = all(part.streamable for part in parts)
        self.in_features = parts[0].in_features if parts else None

    def width(self, features: int | None) -> int | None:
        for part in self.parts:
            features = part.width(features)
        return features

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        return tuple(part.initial_state(batch) for part in self.parts)

    def check_state(self, state: Any, batch: int) -> None:
        names = [type(part).__name__.removeprefix("Frozen") for part in self.parts]
        for part, entry in zip(
            self.parts, check_states(state, names, [part.stateful for part in self.parts]), strict=True
        ):
            part.check_state(entry, batch)

    def run(self, x: Any, state: Any, lengths: Any, out: Any = None) -> tuple[Any, Any]:
        states = (None,) * len(self.parts) if state is None else state
        return in_turn([(part.stateful, part.run) for part in self.parts], x, states, lengths)

    def step(self, state: tuple[Any, ...]) -> Step:
        steps = [part.step(entry) for part, entry in zip(self.parts, state, strict=True)]
        chain = _chain(steps)
        if not any(hasattr(step, "state") for step in steps):
            return chain
        return Kept(chain, lambda: tuple(map(held, steps, state)))

    def blocking(self) -> Iterator[str]:
        for index, part in enumerate(self.parts):
            for name in part.blocking():
                yield f"{index}.{name}"


class Frozen:
    """A model to run and not to change: `Module.freeze` makes it.

    Its results are those of `Module.predict` at the time of freezing, to the bit. Nothing in it changes, so any
    number of threads may run it at once without a lock.

    Attributes
    ----------
    backend : str
        Where it runs, whatever `use_backend` says later.
    streamable : bool
        Whether `stream` can run it step by step.
    """

    def __init__(self, part: Part, dtype: Any) -> None:
        self._part, self._dtype = part, dtype
        self._array_type: Any = part.backend.array_type

    @property
    def backend(self) -> str:
        return self._part.backend.name

    @property
    def streamable(self) -> bool:
        return self._part.streamable

    def initial_state(self, batch: int, **given: Any) -> Any:
        """Return the state that ``state=None`` stands for.

        Parameters
        ----------
        batch : int
            The number of rows.
        **given
            What the model's own takes beside, as the ``memory`` of a `TransformerDecoderLayer`.
        """
        return self._part.initial_state(check_count("batch", batch, minimum=0), **given)

    def run(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[Any, Any]:
        """Run over sequences.

        Parameters
        ----------
        x : array, shape (B, T, ...)
        state : optional
            As the model's own: that before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : array, shape (B, T, ...)
        state
            That after the last valid step.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong kind, dtype or shape; the message names it.
        """
        if type(x) is not self._array_type or x.ndim < 2:
            _check_sequences(x)
        if lengths is not None:
            lengths = check_lengths("lengths", lengths, *x.shape[:2])
        if state is not None:
            _refuse_tensors(state)
            self._part.check_state(state, len(x))
        return self._part.run(x, state, lengths)

    def stream(self, batch: int = 1) -> Stream:
        """Return a `Stream` of ``batch`` rows, at the initial state.

        Raises
        ------
        ValueError
            A layer needs the whole sequence, as a bidirectional one does; the message names it.
        """
        check_count("batch", batch)
        if not self.streamable:
            raise ValueError(
                f"stream: {', '.join(self._part.blocking())} needs the whole sequence for its first output; "
                "use run(x) on whole sequences, or a model that is streamable"
            )
        return Stream(self._part, batch, self._dtype)

    def __repr__(self) -> str:
        return f"<frozen model on {self.backend!r}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a frozen model belongs to the machine that froze it; pickle the model, and freeze it where it is to run"
        )


class Stream:
    """A frozen model running step by step; it carries the state. One thread at a time may use it.

    Attributes
    ----------
    batch : int
        Rows that run side by side.
    """

    def __init__(self, part: Part, batch: int, dtype: Any) -> None:
        self.batch = batch
        self._part = part
        self._array_type: Any = part.backend.array_type
        # What x_t has to be; of a layer that takes no features, such as an Embedding, it is the layer's own to say.
        self._shape = None if part.in_features is None else (batch, part.in_features)
        self._out_shape = (batch, part.width(part.in_features))
        self._dtype = dtype
        self.reset()

    def step(self, x_t: Any, out: Any = None) -> Any:
        """Take one step of every row.

        Parameters
        ----------
        x_t : array, shape (batch, features)
            The model's dtype; integers (batch,) where its first layer is an `Embedding`.
        out : array, shape (batch, features), optional
            Where to write the output; without it the result is a fresh array.

        Returns
        -------
        y_t : array, shape (batch, features)

        Raises
        ------
        TypeError, ValueError
            ``x_t`` or ``out`` of the wrong kind, dtype or shape. The state is as before then.
        """
        if type(x_t) is not self._array_type or x_t.shape != self._shape or x_t.dtype != self._dtype:
            self._check_input(x_t)
        if out is not None:
            self._check_output(out, x_t)
        return self._step(x_t, out)

    @property
    def state(self) -> Any:
        """The state after the last step, as copies."""
        return copy.deepcopy(held(self._step, self._state))

    def reset(self, state: Any = None) -> None:
        """Go back to the initial state, or on from a state given, which is copied."""
        _refuse_tensors(state)
        self._part.check_state(state, self.batch)
        fresh = self._part.initial_state(self.batch)
        self._state = fresh if state is None else _copied(state, fresh)
        self._step = self._part.step(self._state)

    def _check_input(self, x_t: Any) -> None:
        _refuse_tensor("x_t", x_t)
        if self._shape is not None:
            batch, features = self._shape
            check_array("x_t", x_t, "batch features", {"batch": batch, "features": features}, self._dtype)
        elif getattr(x_t, "shape", ())[:1] != (self.batch,):
            raise ValueError(
                f"x_t: expected an array of shape (batch, ...) = ({self.batch}, ...), "
                f"got {getattr(x_t, 'shape', type(x_t).__name__)}"
            )

    def _check_output(self, out: Any, x_t: Any) -> None:
        shape = x_t.shape if self._out_shape[1] is None else self._out_shape
        if not isinstance(out, self._array_type):
            raise TypeError(f"out: expected an array of shape {shape}, got {type(out).__name__}")
        if out.shape != shape or out.dtype != self._dtype:
            raise ValueError(f"out: expected {self._dtype} of shape {shape}, got {out.dtype} of shape {out.shape}")
        if not out.flags.c_contiguous or not getattr(out.flags, "writeable", True):
            raise ValueError("out: expected a contiguous array that may be written to")


def _copied(state: Any, like: Any) -> Any:
    """Return a state with its arrays copied; where it has None, what another has there."""
    if isinstance(like, tuple) and like:
        entries = (None,) * len(like) if state is None else state
        return tuple(_copied(entry, other) for entry, other in zip(entries, like, strict=True))
    return like if state is None else _own(state)


def _own(state: Any) -> Any:
    """Return a state's entry with its arrays copied: positions, which a caller may have as any integers, as int64."""
    if isinstance(state, tuple) and not (state and isinstance(state[0], (int, np.integer))):
        return tuple(map(_own, state))
    if isinstance(state, (tuple, list)) or state.dtype.kind in "iu":
        return np.array(state, np.int64)
    return copy.deepcopy(state)


def _check_sequences(x: Any) -> None:
    _refuse_tensor("x", x)
    if getattr(x, "ndim", 0) < 2:
        raise ValueError(f"x: expected an array of shape (B, T, ...), got {getattr(x, 'shape', type(x).__name__)}")


def _refuse_tensors(state: Any) -> None:
    """Raise TypeError for a state with a Tensor in it."""
    if isinstance(state, tuple):
        for entry in state:
            _refuse_tensors(entry)
    elif isinstance(state, Tensor):
        raise TypeError(
            "state: expected arrays, since a frozen model has no tape, got a Tensor; take the state of predict, "
            "or pass the .data of each Tensor"
        )


def _refuse_tensor(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        raise TypeError(f"{name}: expected an array, since a frozen model has no tape, got a Tensor; pass its .data")
