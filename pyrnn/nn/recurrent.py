"""The recurrent layers: RNN, LSTM, GRU, stacked and in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np

from .._checks import check_choice, check_count, check_flag
from ..autograd import Tensor, functions, to_arrays
from ..autograd.tensor import namespace
from ..backend import choose
from ..ops import recurrent
from ..ops.declaration import Op
from . import init
from ._checks import check_array, check_dtype, check_probability, check_recurrent_state
from .frozen import FrozenRecurrent, Part
from .init import Seed
from .layers import dropout as drop
from .module import Parameter, SequenceLayer, Shapes, registered


class RecurrentOptions(TypedDict, total=False):
    """The options that all recurrent layers have; `RecurrentLayer` explains them."""

    num_layers: int
    bidirectional: bool
    dropout: float
    bias: bool
    dtype: Any
    rng: Seed
    learn_initial_state: bool
    recurrent_init: str
    checkpoint: bool


def _suffixes(layer: int, bidirectional: bool) -> tuple[str, ...]:
    """Return what the names of a layer's parameters end with, for each direction."""
    return (f"l{layer}", f"l{layer}_reverse") if bidirectional else (f"l{layer}",)


class RecurrentLayer(SequenceLayer):
    """What the three layers share: parameters, the stack of layers and directions, the state.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L: each layer runs on the outputs of the one before it.
    bidirectional : bool
        Whether each layer also runs from the last valid step to the first (then D = 2, else 1); the outputs
        of both are concatenated.
    dropout : float
        Probability with which, in training, an output of any layer but the last is dropped.
    bias : bool
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Draws the parameters, uniformly between ±1/√H as PyTorch does, and then drops.
    learn_initial_state : bool
        Make the state before the first step, which is zero at first, a parameter.
    recurrent_init : {"uniform", "orthogonal"}
        ``"orthogonal"`` draws each gate's recurrent weights as an orthogonal matrix.
    checkpoint : bool
        Train in less memory and with a third more work; see `pyrnn.lstm`.

    Attributes
    ----------
    weight_ih_l{k}[_reverse] : Parameter, shape (G·H, I or D·H)
    weight_hh_l{k}[_reverse] : Parameter, shape (G·H, H)
    bias_l{k}[_reverse] : Parameter, shape (G·H,)
    h_0 : Parameter, shape (L·D, H)
        With ``learn_initial_state``, for layer l and direction d at l·D + d; the LSTM also has ``c_0``.
    """

    op: ClassVar[Op]
    gates: ClassVar[int]
    leaves: ClassVar[tuple[str, ...]] = ("h",)
    weights: ClassVar[tuple[str, ...]] = ("weight_ih", "weight_hh", "bias")  # in the order of the op
    own: ClassVar[tuple[str, ...]] = ()  # what its configuration has beyond the shared options

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        dtype: Any = "float32",
        rng: Seed = None,
        learn_initial_state: bool = False,
        recurrent_init: str = "uniform",
        checkpoint: bool = False,
    ) -> None:
        self.input_size = check_count("input_size", input_size)
        self.hidden_size = check_count("hidden_size", hidden_size)
        self.num_layers = check_count("num_layers", num_layers)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.dropout = check_probability("dropout", dropout)
        self.bias = check_flag("bias", bias)
        self.checkpoint = check_flag("checkpoint", checkpoint)
        self.learn_initial_state = check_flag("learn_initial_state", learn_initial_state)
        kind = check_dtype(dtype)
        self.config: dict[str, Any] = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            "dropout": self.dropout,
            "bias": self.bias,
            "dtype": str(kind),
            "learn_initial_state": self.learn_initial_state,
            "checkpoint": self.checkpoint,
            "recurrent_init": check_choice("recurrent_init", recurrent_init, ("uniform", "orthogonal")),
            **{name: getattr(self, name) for name in self.own},
        }
        self.generator = np.random.default_rng(rng)
        made = self._add_parameters(kind)
        starts = [f"{leaf}_0" for leaf in self.leaves]
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in made.items():
            if name in starts:
                init.zeros_(parameter)
            else:
                init.uniform_(parameter, -bound, bound, rng=self.generator)
        if recurrent_init == "orthogonal":
            for name, parameter in made.items():
                if name.startswith("weight_hh"):
                    for gate in np.split(parameter.write(), self.gates):
                        init.orthogonal_(Tensor(gate), rng=self.generator)

    @classmethod
    def parameter_shapes(cls, config: Mapping[str, Any]) -> Shapes:
        """Go through the names and shapes of the parameters of a layer with this `config`."""
        hidden, directions = config["hidden_size"], 2 if config["bidirectional"] else 1
        for layer in range(config["num_layers"]):
            columns = config["input_size"] if layer == 0 else directions * hidden
            for suffix in _suffixes(layer, config["bidirectional"]):
                yield f"weight_ih_{suffix}", (cls.gates * hidden, columns)
                yield f"weight_hh_{suffix}", (cls.gates * hidden, hidden)
                if config["bias"]:
                    yield f"bias_{suffix}", (cls.gates * hidden,)
                if config["bias"] and config.get("reset_after", False):  # the GRU's alone
                    yield f"bias_hn_{suffix}", (hidden,)
        if config["learn_initial_state"]:
            for leaf in cls.leaves:
                yield f"{leaf}_0", (config["num_layers"] * directions, hidden)

    def _weights(self, suffix: str) -> list[Any]:
        return [getattr(self, f"{name}_{suffix}", None) for name in self.weights]

    def _options(self, lengths: Any, reverse: bool) -> dict[str, Any]:
        """Return the op's configuration; a layer adds its own."""
        return {"lengths": lengths, "reverse": reverse, "checkpoint": self.checkpoint}

    def _freeze(self) -> Part:
        op, backend = self.op, choose(self.op.name)
        pack = getattr(backend, f"{op.name}_pack")
        layers = []
        for layer in range(self.num_layers):
            packed = []
            for direction, suffix in enumerate(_suffixes(layer, self.bidirectional)):
                weights = [None if weight is None else weight.data for weight in self._weights(suffix)]
                arrays = op.Arrays(None, *weights, *(None for _ in self.leaves))
                packed.append(pack(arrays, op.Config(**self._options(None, direction == 1))))
            layers.append(packed)
        start = [leaf[0].copy() for leaf in to_arrays(self.initial_state(1))]
        name = type(self).__name__
        return FrozenRecurrent(name, backend, op.name, layers, start, self.leaves, self.input_size, self.hidden_size)

    @property
    def _stacked(self) -> int:
        """L·D."""
        return self.num_layers * (2 if self.bidirectional else 1)

    @property
    def streamable(self) -> bool:
        """True unless it is bidirectional: then the whole sequence is needed for its first output."""
        return not self.bidirectional

    def initial_state(self, batch: int) -> tuple[Any, ...]:
        """Return the state that ``state=None`` stands for, each leaf (batch, L·D, H).

        Zero arrays; with a learned initial state Tensors, through which it gets its gradient.
        """
        check_count("batch", batch, minimum=0)
        first: Parameter = self.weight_hh_l0  # type: ignore[attr-defined]
        shape = (batch, self._stacked, self.hidden_size)
        if self.learn_initial_state:
            return tuple(functions.broadcast_to(getattr(self, f"{leaf}_0"), shape) for leaf in self.leaves)
        xp = namespace(first.data)
        return tuple(xp.zeros(shape, first.dtype) for _ in self.leaves)

    def forward(self, x: Any, state: Any = None, *, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run over sequences.

        Parameters
        ----------
        x : array or Tensor, shape (B, T, I)
        state : tuple of arrays or Tensors, each of shape (B, L·D, H), optional
            ``(h,)``, for the LSTM ``(h, c)``: that before the first step. It is not altered.
        lengths : integers (B,), optional
            The valid steps of each row; what stands past them reaches nothing, and ``y`` is 0 there.

        Returns
        -------
        y : shape (B, T, D·H)
            The last layer's h after each step.
        state
            That after the last valid step, in the same form.

        Raises
        ------
        TypeError, ValueError
            ``x``, ``state`` or ``lengths`` of the wrong kind, dtype or shape; the message names it.
        """
        first: Parameter = self.weight_hh_l0  # type: ignore[attr-defined]
        check_array("x", x, "B T I", {"I": self.input_size}, first.dtype)
        batch = x.shape[0]
        if state is not None:
            check_recurrent_state(state, self.leaves, batch, self._stacked, self.hidden_size, first.dtype)
        elif self.learn_initial_state:
            state = self.initial_state(batch)
        finals: list[Any] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(_suffixes(layer, self.bidirectional)):
                index = len(finals)
                start = [None if state is None else state[leaf][:, index] for leaf in range(len(self.leaves))]
                options = self._options(lengths, direction == 1)
                y, *final = self.op(x, *self._weights(suffix), *start, **options)
                outputs.append(y)
                finals.append(final)
            x = outputs[0] if len(outputs) == 1 else functions.concatenate(outputs, axis=-1)
            if self.training and self.dropout and layer < self.num_layers - 1:
                x = drop(x, self.dropout, self.generator)
        return x, tuple(functions.stack(leaf, axis=1) for leaf in zip(*finals, strict=True))


@registered
class RNN(RecurrentLayer):
    """The simple (Elman) recurrent layer; see `pyrnn.rnn` for its formula. Its state is ``(h,)``.

    Parameters
    ----------
    activation : {"tanh", "relu"}
    input_size, hidden_size : int
    num_layers, bidirectional, dropout, bias, dtype, rng, learn_initial_state, recurrent_init, checkpoint : optional
        By keyword; defaults 1, False, 0.0, True, "float32", None, False, "uniform", False. `RecurrentLayer`
        explains them.
    """

    op = recurrent.RNN
    gates = 1
    own = ("activation",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str = "tanh",
        **options: Unpack[RecurrentOptions],
    ) -> None:
        self.activation = check_choice("activation", activation, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, **options)

    def _options(self, lengths: Any, reverse: bool) -> dict[str, Any]:
        return {"activation": self.activation, **super()._options(lengths, reverse)}


@registered
class LSTM(RecurrentLayer):
    """The long short-term memory layer; see `pyrnn.lstm` for its formula. Its state is ``(h, c)``.

    Parameters
    ----------
    forget_bias : float
        Added to the forget gate's bias when it is drawn: 1 makes the cell remember from the start
        (Jozefowicz, Zaremba, Sutskever (2015), "An Empirical Exploration of Recurrent Network
        Architectures").
    input_size, hidden_size : int
    num_layers, bidirectional, dropout, bias, dtype, rng, learn_initial_state, recurrent_init, checkpoint : optional
        By keyword; defaults 1, False, 0.0, True, "float32", None, False, "uniform", False. `RecurrentLayer`
        explains them.
    """

    op = recurrent.LSTM
    gates = 4
    leaves = ("h", "c")
    own = ("forget_bias",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        forget_bias: float = 0.0,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        self.forget_bias = float(forget_bias)
        if not math.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias: expected a finite number, got {forget_bias!r}")
        if self.forget_bias and not options.get("bias", True):
            raise ValueError(f"forget_bias: expected 0 with bias=False, got {forget_bias!r}")
        super().__init__(input_size, hidden_size, **options)
        h = self.hidden_size  # gate order i, f, g, o
        for name, _ in self.parameter_shapes(self.config):
            if name.startswith("bias_"):
                getattr(self, name).write()[h : 2 * h] += self.forget_bias


@registered
class GRU(RecurrentLayer):
    """The gated recurrent unit layer; see `pyrnn.gru` for its formula. Its state is ``(h,)``.

    Parameters
    ----------
    reset_after : bool
        Whether the reset gate acts after the recurrent product, as in PyTorch, or before it. After it, the
        candidate has a second bias, ``bias_hn_l{k}[_reverse]`` of shape (H,).
    input_size, hidden_size : int
    num_layers, bidirectional, dropout, bias, dtype, rng, learn_initial_state, recurrent_init, checkpoint : optional
        By keyword; defaults 1, False, 0.0, True, "float32", None, False, "uniform", False. `RecurrentLayer`
        explains them.
    """

    op = recurrent.GRU
    gates = 3
    own = ("reset_after",)
    weights = ("weight_ih", "weight_hh", "bias", "bias_hn")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        reset_after: bool = True,
        **options: Unpack[RecurrentOptions],
    ) -> None:
        self.reset_after = check_flag("reset_after", reset_after)
        super().__init__(input_size, hidden_size, **options)

    def _options(self, lengths: Any, reverse: bool) -> dict[str, Any]:
        return {"reset_after": self.reset_after, **super()._options(lengths, reverse)}
