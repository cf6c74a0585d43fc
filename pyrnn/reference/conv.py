"""The convolution family in plain NumPy: the specification.

The carried context and the sequence make one sequence; a tap is that sequence, shifted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def valid_steps(batch: int, time: int, lengths: Array | None) -> Array:
    """Return booleans (B, T, 1), True at the valid steps."""
    return (np.arange(time) < (np.full(batch, time) if lengths is None else lengths)[:, None])[..., None]


class ConvOps:
    """causal_conv1d of the reference backend."""

    def causal_conv1d_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, w, b, left = arrays
        batch, time, inputs = x.shape
        outputs, _, taps = w.shape
        span = (taps - 1) * config.dilation
        valid = valid_steps(batch, time, config.lengths)
        x = np.where(valid, x, 0).astype(x.dtype)
        if left is None:
            left = np.zeros((batch, span, inputs), x.dtype, like=x)
        whole = np.concatenate([left, x], axis=1)
        sums = []
        for of_x, of_w in zip(_groups(inputs, config.groups), _groups(outputs, config.groups), strict=True):
            total = np.zeros((batch, time, outputs // config.groups), x.dtype, like=x)
            for tap in range(taps):
                shift = tap * config.dilation
                total = total + whole[:, shift : shift + time, of_x] @ w[of_w, :, tap].T
            sums.append(total)
        y = np.concatenate(sums, axis=2)
        if b is not None:
            y = y + b
        y = np.where(valid, y, 0).astype(x.dtype)
        rows = np.arange(batch)[:, None]
        ends = valid[..., 0].sum(axis=1)[:, None] + np.arange(span)
        return (y, whole[rows, ends]), (whole, w, config, valid, ends) if needs else None

    def causal_conv1d_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        whole, w, config, valid, ends = saved
        batch, time = valid.shape[:2]
        outputs, _, taps = w.shape
        span = (taps - 1) * config.dilation
        dwhole, dw = np.zeros_like(whole), np.zeros_like(w)
        db = np.zeros(outputs, whole.dtype, like=whole)
        if grad_outputs.y is not None:
            dy = np.where(valid, grad_outputs.y, 0).astype(whole.dtype)
            db = dy.sum(axis=(0, 1))
            for of_x, of_w in zip(_groups(whole.shape[2], config.groups), _groups(outputs, config.groups), strict=True):
                for tap in range(taps):
                    at = slice(tap * config.dilation, tap * config.dilation + time)
                    dwhole[:, at, of_x] = dwhole[:, at, of_x] + dy[:, :, of_w] @ w[of_w, :, tap]
                    rows_dy = dy[:, :, of_w].reshape(batch * time, outputs // config.groups)
                    rows_x = whole[:, at, of_x].reshape(batch * time, w.shape[1])
                    dw[of_w, :, tap] = rows_dy.T @ rows_x
        if grad_outputs.left_n is not None:
            rows = np.arange(batch)[:, None]
            dwhole[rows, ends] = dwhole[rows, ends] + grad_outputs.left_n
        dx = np.where(valid, dwhole[:, span:], 0).astype(whole.dtype)
        grads = {"x": dx, "w": dw, "b": db, "left": dwhole[:, :span]}
        return type(needs)(**{name: grads[name] if need else None for name, need in needs._asdict().items()})


def _groups(channels: int, groups: int) -> list[slice]:
    """Return the channels of each group."""
    size = channels // groups
    return [slice(group * size, (group + 1) * size) for group in range(groups)]
