"""The recurrent family: rnn, lstm, gru. One layer, one direction, the whole sequence."""

from __future__ import annotations

from typing import Any

from ..backend import Backend
from .declaration import Op
from .options import choice, flag, lengths


def _needs_reset_after(arrays: Any, config: Any) -> None:
    if arrays.b_hn is not None and not config.reset_after:
        raise ValueError(
            "b_hn: expected None with reset_after=False, got an array; the candidate has one bias there, so add it to b"
        )


RNN = Op(
    "rnn",
    arrays={"x": "B T I", "w_ih": "H I", "w_hh": "H H"},
    optional={"b": "H", "h0": "B H"},
    outputs={"y": "B T H", "h_n": "B H"},
    state=("h0",),
    options={
        "activation": choice("tanh", "relu"),
        "lengths": lengths(),
        "reverse": flag(False),
        "checkpoint": flag(False),
    },
)
LSTM = Op(
    "lstm",
    arrays={"x": "B T I", "w_ih": "4H I", "w_hh": "4H H"},
    optional={"b": "4H", "h0": "B H", "c0": "B H"},
    outputs={"y": "B T H", "h_n": "B H", "c_n": "B H"},
    state=("h0", "c0"),
    options={"lengths": lengths(), "reverse": flag(False), "checkpoint": flag(False, of_backend=False)},
)
GRU = Op(
    "gru",
    arrays={"x": "B T I", "w_ih": "3H I", "w_hh": "3H H"},
    optional={"b": "3H", "b_hn": "H", "h0": "B H"},
    outputs={"y": "B T H", "h_n": "B H"},
    state=("h0",),
    options={
        "reset_after": flag(True),
        "lengths": lengths(),
        "reverse": flag(False),
        "checkpoint": flag(False, of_backend=False),
    },
    rule=_needs_reset_after,
)


@RNN.public
def rnn(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b: Any = None,
    h0: Any = None,
    *,
    activation: str = "tanh",
    lengths: Any = None,
    reverse: bool = False,
    checkpoint: bool = False,
    backend: str | Backend | None = None,
) -> Any:
    """Run a simple (Elman) recurrent layer over a sequence: h_t = φ(b + W_ih x_t + W_hh h_(t-1)).

    Parameters
    ----------
    x : array or Tensor, shape (B, T, I)
        The sequences, float32 or float64 like all arrays of the call.
    w_ih : shape (H, I)
        Input weights.
    w_hh : shape (H, H)
        Recurrent weights.
    b : shape (H,), optional
        The one bias.
    h0 : shape (B, H), optional
        State before the first step; zero by default.
    activation : {"tanh", "relu"}
        φ.
    lengths : integers (B,), optional
        The valid steps of each row. A step past them is padding: its output and gradients are 0, and its
        content, NaN included, reaches nothing. Length 0 gives the initial state.
    reverse : bool
        Run from the last valid step to the first. ``y`` stays in the order of ``x``.
    checkpoint : bool
        Keep the states of about √T steps for the backward, which runs the rest again: a third more work for memory that
        grows with √T beyond ``x`` and ``y``. Outputs and the gradients of ``x`` and of states are the same to the bit;
        sums over the steps, as the weights' gradients are, are taken in another order.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (B, T, H)
        The state after each step.
    h_n : shape (B, H)
        The state after the last valid step.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; the message names it.

    References
    ----------
    Elman (1990), "Finding Structure in Time".
    """
    return RNN(
        x,
        w_ih,
        w_hh,
        b,
        h0,
        activation=activation,
        lengths=lengths,
        reverse=reverse,
        checkpoint=checkpoint,
        backend=backend,
    )


@LSTM.public
def lstm(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b: Any = None,
    h0: Any = None,
    c0: Any = None,
    *,
    lengths: Any = None,
    reverse: bool = False,
    checkpoint: bool = False,
    backend: str | Backend | None = None,
) -> Any:
    """Run a long short-term memory layer over a sequence.

    With the gates in the order i, f, g, o::

        i, f, o = σ(b + W_ih x_t + W_hh h_(t-1))      g = tanh(b + W_ih x_t + W_hh h_(t-1))
        c_t = f·c_(t-1) + i·g                          h_t = o·tanh(c_t)

    Parameters
    ----------
    x : array or Tensor, shape (B, T, I)
        The sequences, float32 or float64 like all arrays of the call.
    w_ih : shape (4H, I)
        Input weights, the gates one below the other.
    w_hh : shape (4H, H)
        Recurrent weights.
    b : shape (4H,), optional
        The one bias.
    h0, c0 : shape (B, H), optional
        State before the first step; zero by default.
    lengths : integers (B,), optional
        The valid steps of each row. A step past them is padding: its output and gradients are 0, and its
        content, NaN included, reaches nothing. Length 0 gives the initial state.
    reverse : bool
        Run from the last valid step to the first. ``y`` stays in the order of ``x``.
    checkpoint : bool
        Keep the states of about √T steps for the backward, which runs the rest again: a third more work for memory that
        grows with √T beyond ``x`` and ``y``. Outputs and the gradients of ``x`` and of states are the same to the bit;
        sums over the steps, as the weights' gradients are, are taken in another order.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (B, T, H)
        h after each step.
    h_n, c_n : shape (B, H)
        The state after the last valid step.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape; the message names it.

    References
    ----------
    Hochreiter, Schmidhuber (1997), "Long Short-Term Memory"; Gers, Schmidhuber, Cummins (2000),
    "Learning to Forget".
    """
    return LSTM(x, w_ih, w_hh, b, h0, c0, lengths=lengths, reverse=reverse, checkpoint=checkpoint, backend=backend)


@GRU.public
def gru(
    x: Any,
    w_ih: Any,
    w_hh: Any,
    b: Any = None,
    b_hn: Any = None,
    h0: Any = None,
    *,
    reset_after: bool = True,
    lengths: Any = None,
    reverse: bool = False,
    checkpoint: bool = False,
    backend: str | Backend | None = None,
) -> Any:
    """Run a gated recurrent unit layer over a sequence.

    With the gates in the order r, z, n::

        r, z = σ(b + W_ih x_t + W_hh h_(t-1))
        n = tanh(b + W_ih x_t + r·(W_hh h_(t-1) + b_hn))      reset_after=True, as PyTorch has it
        n = tanh(b + W_ih x_t + W_hh (r·h_(t-1)))             reset_after=False
        h_t = (1 - z)·n + z·h_(t-1)

    Parameters
    ----------
    x : array or Tensor, shape (B, T, I)
        The sequences, float32 or float64 like all arrays of the call.
    w_ih : shape (3H, I)
        Input weights, the gates one below the other.
    w_hh : shape (3H, H)
        Recurrent weights.
    b : shape (3H,), optional
        The bias outside the reset.
    b_hn : shape (H,), optional
        The candidate's second bias, inside the reset; with ``reset_after=True`` only.
    h0 : shape (B, H), optional
        State before the first step; zero by default.
    reset_after : bool
        Whether the reset gate acts after the recurrent product or before it.
    lengths : integers (B,), optional
        The valid steps of each row. A step past them is padding: its output and gradients are 0, and its
        content, NaN included, reaches nothing. Length 0 gives the initial state.
    reverse : bool
        Run from the last valid step to the first. ``y`` stays in the order of ``x``.
    checkpoint : bool
        Keep the states of about √T steps for the backward, which runs the rest again: a third more work for memory that
        grows with √T beyond ``x`` and ``y``. Outputs and the gradients of ``x`` and of states are the same to the bit;
        sums over the steps, as the weights' gradients are, are taken in another order.
    backend : str, optional
        The backend of this call alone.

    Returns
    -------
    y : shape (B, T, H)
        The state after each step.
    h_n : shape (B, H)
        The state after the last valid step.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong dtype or shape, or ``b_hn`` with ``reset_after=False``.

    References
    ----------
    Cho et al. (2014), "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation". Their text has z the other way round; this is the form of their code, PyTorch and ONNX.
    """
    return GRU(
        x, w_ih, w_hh, b, b_hn, h0,
        reset_after=reset_after, lengths=lengths, reverse=reverse, checkpoint=checkpoint, backend=backend,
    )  # fmt: skip
