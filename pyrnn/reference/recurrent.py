"""The recurrent family in plain NumPy: the specification.

All cells share one walk over the steps. `Steps` says which element of each row is processed when; step s of a
row that has ended is padding: the row's state stays as it is, its output is 0, and what it holds is not read.
A cell is two functions: one step forward, and the same step backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray


class Steps:
    """The order in which each row's elements are processed.

    ``at(s)`` gives the element of each row that step s processes, ``valid(s)`` which rows still have one, as
    a column to multiply and select with.
    """

    def __init__(self, batch: int, time: int, lengths: Array | None, reverse: bool) -> None:
        self.rows = np.arange(batch)
        self.lengths = np.full(batch, time) if lengths is None else lengths
        self.reverse = reverse
        self.count = int(self.lengths.max(initial=0))

    def at(self, s: int) -> tuple[Array, Array]:
        element = self.lengths - 1 - s if self.reverse else np.full_like(self.lengths, s)
        return self.rows, np.where(s < self.lengths, element, 0)

    def valid(self, s: int) -> Array:
        return (s < self.lengths)[:, None]

    def read(self, sequence: Array, s: int) -> Array:
        """Return the rows' elements of step s, zeros where they have ended."""
        return np.where(self.valid(s), sequence[self.at(s)], 0).astype(sequence.dtype)

    def write(self, sequence: Array, s: int, values: Array) -> None:
        """Store the elements of step s of the rows that still have one."""
        live = self.valid(s)[:, 0]
        rows, elements = self.at(s)
        sequence[rows[live], elements[live]] = values[live]


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x), its relative error small for very negative x too."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small).astype(x.dtype) / (1 + small)


# --- the cells: one step forward, and the same step backward --------------------------------------------------
# forward:  (inputs, weights, state) -> new state, saved      inputs = b + W_ih x
# backward: (saved, weights, gradient of the new state) -> gradients of inputs, W_hh, b_hn, the old state


def rnn_step(inputs: Array, a: Any, config: Any, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
    (h,) = state
    before = inputs + h @ a.w_hh.T
    new = np.tanh(before) if config.activation == "tanh" else np.maximum(before, 0)
    return (new,), (h, new)


def rnn_step_back(saved: Any, a: Any, config: Any, grads: tuple[Array, ...]) -> tuple[Any, ...]:
    h, new = saved
    (dh,) = grads
    d = dh * (1 - new * new) if config.activation == "tanh" else np.where(new > 0, dh, 0).astype(dh.dtype)
    return d, d.T @ h, None, (d @ a.w_hh,)


def lstm_step(inputs: Array, a: Any, config: Any, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
    h, c = state
    i, f, g, o = np.split(inputs + h @ a.w_hh.T, 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    new_c = f * c + i * g
    return (o * np.tanh(new_c), new_c), (h, c, new_c, i, f, g, o)


def lstm_step_back(saved: Any, a: Any, config: Any, grads: tuple[Array, ...]) -> tuple[Any, ...]:
    h, c, new_c, i, f, g, o = saved
    dh, dc = grads
    t = np.tanh(new_c)
    dc = dc + dh * o * (1 - t * t)
    d = np.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)], axis=1)
    return d, d.T @ h, None, (d @ a.w_hh, dc * f)


def gru_step(inputs: Array, a: Any, config: Any, state: tuple[Array, ...]) -> tuple[tuple[Array, ...], Any]:
    (h,) = state
    of_r, of_z, of_n = np.split(inputs, 3, axis=1)
    w_r, w_z, w_n = np.split(a.w_hh, 3)
    r, z = sigmoid(of_r + h @ w_r.T), sigmoid(of_z + h @ w_z.T)
    if config.reset_after:
        candidate = h @ w_n.T + (0 if a.b_hn is None else a.b_hn)
        n = np.tanh(of_n + r * candidate)
    else:
        candidate = r * h
        n = np.tanh(of_n + candidate @ w_n.T)
    return ((1 - z) * n + z * h,), (h, r, z, n, candidate)


def gru_step_back(saved: Any, a: Any, config: Any, grads: tuple[Array, ...]) -> tuple[Any, ...]:
    h, r, z, n, candidate = saved
    (dh,) = grads
    w_r, w_z, w_n = np.split(a.w_hh, 3)
    d_n = dh * (1 - z) * (1 - n * n)
    d_z = dh * (h - n) * z * (1 - z)
    db_hn = None
    if config.reset_after:
        d_r = d_n * candidate * r * (1 - r)
        d_candidate = d_n * r
        dw_n, db_hn = d_candidate.T @ h, d_candidate.sum(axis=0)
        dh_old = d_candidate @ w_n
    else:
        d_candidate = d_n @ w_n
        d_r = d_candidate * h * r * (1 - r)
        dw_n = d_n.T @ candidate
        dh_old = d_candidate * r
    dh_old = dh_old + dh * z + d_r @ w_r + d_z @ w_z
    return np.concatenate([d_r, d_z, d_n], axis=1), np.concatenate([d_r.T @ h, d_z.T @ h, dw_n]), db_hn, (dh_old,)


# --- the walk over the steps ----------------------------------------------------------------------------------


def run(step: Callable[..., Any], arrays: Any, config: Any, needs: Any) -> tuple[Any, Any]:
    """Run a cell over the whole sequence."""
    x, hidden = arrays.x, arrays.w_hh.shape[1]
    batch, time, _ = x.shape
    steps = Steps(batch, time, config.lengths, config.reverse)
    names = ("h0", "c0") if hasattr(arrays, "c0") else ("h0",)
    state = tuple(
        np.zeros((batch, hidden), x.dtype) if getattr(arrays, name) is None else getattr(arrays, name).copy()
        for name in names
    )
    y = np.zeros((batch, time, hidden), x.dtype, like=x)  # the property kit runs this on arrays that carry an error
    trail = []
    for s in range(steps.count):
        inputs = steps.read(x, s) @ arrays.w_ih.T
        if arrays.b is not None:
            inputs = inputs + arrays.b
        new, saved = step(inputs, arrays, config, state)
        state = tuple(np.where(steps.valid(s), now, old) for now, old in zip(new, state, strict=True))
        steps.write(y, s, state[0])
        if needs:
            trail.append(saved)
    return (y, *state), (arrays, config, steps, trail) if needs else None


def run_back(step_back: Callable[..., Any], saved: Any, grad_outputs: Any, needs: Any) -> Any:
    """Pull gradients back through the whole sequence, last step first."""
    arrays, config, steps, trail = saved
    x, w_ih, w_hh = arrays.x, arrays.w_ih, arrays.w_hh
    shape = (x.shape[0], w_hh.shape[1])
    dy, *finals = grad_outputs
    carried = tuple(np.zeros(shape, x.dtype) if grad is None else grad.copy() for grad in finals)
    grads = {name: np.zeros_like(a) for name, a in arrays._asdict().items() if a is not None}
    for s in reversed(range(steps.count)):
        live = steps.valid(s)
        now = carried if dy is None else (carried[0] + steps.read(dy, s), *carried[1:])
        now = tuple(np.where(live, grad, 0).astype(x.dtype) for grad in now)
        d_inputs, dw_hh, db_hn, old = step_back(trail[s], arrays, config, now)
        carried = tuple(np.where(live, grad, kept) for grad, kept in zip(old, carried, strict=True))
        grads["w_hh"] += dw_hh
        grads["w_ih"] += d_inputs.T @ steps.read(x, s)
        steps.write(grads["x"], s, d_inputs @ w_ih)
        if "b" in grads:
            grads["b"] += d_inputs.sum(axis=0)
        if "b_hn" in grads:
            grads["b_hn"] += db_hn
    grads.update(zip(("h0", "c0"), carried, strict=False))
    return type(needs)(**{name: grads[name] if need else None for name, need in needs._asdict().items()})


class RecurrentOps:
    """rnn, lstm, gru of the reference backend."""

    def rnn_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return run(rnn_step, arrays, config, needs)

    def rnn_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return run_back(rnn_step_back, saved, grad_outputs, needs)

    def lstm_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return run(lstm_step, arrays, config, needs)

    def lstm_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return run_back(lstm_step_back, saved, grad_outputs, needs)

    def gru_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return run(gru_step, arrays, config, needs)

    def gru_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return run_back(gru_step_back, saved, grad_outputs, needs)
