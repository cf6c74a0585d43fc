"""A pyrnn backend of one op: ``rnn`` in NumPy, with one matrix product where a walk over the steps has one a step.

What does not depend on the state needs no walk: the inputs' share of all steps is one product, and so is the gradient
of each weight. Padding and ``reverse`` are dealt with before the walk and after it. Inside, arrays are (T, B, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyrnn import Backend
from pyrnn.backend import Claim


def walking_order(batch: int, time: int, config: Any) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return which steps (T, B, 1) are valid, and what puts steps in the walk's order, with zeros in the pads.

    It puts them back too: an order turned round twice is the first one.
    """
    lengths = np.full(batch, time) if config.lengths is None else config.lengths
    step = np.arange(time)[:, None]
    valid = (step < lengths)[:, :, None]
    mirror = np.where(step < lengths, lengths - 1 - step, 0), np.arange(batch)
    return valid, lambda a: np.where(valid, a[mirror] if config.reverse else a, 0)


class OneProductBackend(Backend):
    """Takes ``rnn`` with tanh, in float32 and float64."""

    name = "oneproduct"
    note = "an example; rnn with activation='tanh' only"
    claims = {"rnn": Claim(options={"activation": ("tanh",)})}

    def rnn_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        if config.activation != "tanh":
            raise NotImplementedError(f"activation: backend {self.name!r} has 'tanh' only, got {config.activation!r}")
        (B, T, I), H = arrays.x.shape, len(arrays.w_hh)
        valid, turned = walking_order(B, T, config)
        x = turned(arrays.x.swapaxes(0, 1)).reshape(T * B, I)
        h = np.empty((T + 1, B, H), x.dtype)  # the state before each step, and the last one
        h[0] = 0 if arrays.h0 is None else arrays.h0
        np.matmul(x, arrays.w_ih.T, out=h[1:].reshape(T * B, H))
        if arrays.b is not None:
            h[1:] += arrays.b
        for t in range(T):
            h[t + 1] = np.where(valid[t], np.tanh(h[t + 1] + h[t] @ arrays.w_hh.T), h[t])
        outputs = turned(h[1:]).swapaxes(0, 1), h[T].copy()
        return outputs, (arrays, x, h, valid, turned) if needs else None

    def rnn_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, x, h, valid, turned = saved
        (B, T, I), H = arrays.x.shape, len(arrays.w_hh)
        dy, dh_n = grad_outputs
        d = np.zeros((T, B, H), h.dtype) if dy is None else np.ascontiguousarray(turned(dy.swapaxes(0, 1)))
        dh = np.zeros((B, H), h.dtype) if dh_n is None else dh_n.copy()
        for t in reversed(range(T)):  # d becomes the gradient of what the tanh of each step was taken of
            d[t] = np.where(valid[t], (dh + d[t]) * (1 - h[t + 1] * h[t + 1]), 0)
            dh = np.where(valid[t], d[t] @ arrays.w_hh, dh)
        d = d.reshape(T * B, H)
        return type(needs)(
            x=turned((d @ arrays.w_ih).reshape(T, B, I)).swapaxes(0, 1) if needs.x else None,
            w_ih=d.T @ x if needs.w_ih else None,
            w_hh=d.T @ h[:-1].reshape(T * B, H) if needs.w_hh else None,
            b=d.sum(axis=0) if needs.b else None,
            h0=dh if needs.h0 else None,
        )
