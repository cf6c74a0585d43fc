"""The convolution family in plain NumPy: the specification.

The carried context and the sequence make one sequence; a tap is that sequence, shifted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import valid_steps

Array = np.ndarray


def by_group(array: Array, groups: int) -> Array:
    """Split the channels: (B, T, channels) becomes (B, groups, T, channels of a group)."""
    batch, time, channels = array.shape
    return array.reshape(batch, time, groups, channels // groups).swapaxes(1, 2)


def together(array: Array) -> Array:
    """Put the channels of all groups side by side again."""
    batch, groups, time, channels = array.shape
    return array.swapaxes(1, 2).reshape(batch, time, groups * channels)


class ConvOps:
    """causal_conv1d of the reference backend."""

    def causal_conv1d_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, w, b, left = arrays
        batch, time, inputs = x.shape
        outputs, per_group, taps = w.shape
        span = (taps - 1) * config.dilation
        lengths = np.full(batch, time) if config.lengths is None else config.lengths
        valid = valid_steps(lengths, time)[..., None]
        x = np.where(valid, x, 0).astype(x.dtype)
        if left is None:
            left = np.zeros((batch, span, inputs), x.dtype, like=x)
        whole = np.concatenate([left, x], axis=1)
        kernels = w.reshape(config.groups, outputs // config.groups, per_group, taps)
        y = np.zeros((batch, time, outputs), x.dtype, like=x)
        for tap in range(taps):
            shifted = whole[:, tap * config.dilation : tap * config.dilation + time]
            y = y + together(by_group(shifted, config.groups) @ kernels[..., tap].swapaxes(1, 2))
        if b is not None:
            y = y + b
        y = np.where(valid, y, 0).astype(x.dtype)
        rows = np.arange(batch)[:, None]
        ends = valid[..., 0].sum(axis=1)[:, None] + np.arange(span)
        return (y, whole[rows, ends]), (whole, w, config, valid, ends) if needs else None

    def causal_conv1d_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        whole, w, config, valid, ends = saved
        batch, time = valid.shape[:2]
        outputs, per_group, taps = w.shape
        span = (taps - 1) * config.dilation
        kernels = w.reshape(config.groups, outputs // config.groups, per_group, taps)
        dwhole, dw = np.zeros_like(whole), np.zeros_like(w)
        db = np.zeros(outputs, whole.dtype, like=whole)
        if grad_outputs.y is not None:
            dy = np.where(valid, grad_outputs.y, 0).astype(whole.dtype)
            db = dy.sum(axis=(0, 1))
            grouped = by_group(dy, config.groups)
            for tap in range(taps):
                at = slice(tap * config.dilation, tap * config.dilation + time)
                dwhole[:, at] = dwhole[:, at] + together(grouped @ kernels[..., tap])
                dtap = (grouped.swapaxes(2, 3) @ by_group(whole[:, at], config.groups)).sum(axis=0)
                dw[..., tap] = dtap.reshape(outputs, per_group)
        if grad_outputs.left_n is not None:
            rows = np.arange(batch)[:, None]
            dwhole[rows, ends] = dwhole[rows, ends] + grad_outputs.left_n
        dx = np.where(valid, dwhole[:, span:], 0).astype(whole.dtype)
        grads = {"x": dx, "w": dw, "b": db, "left": dwhole[:, :span]}
        return type(needs)(**{name: grads[name] if need else None for name, need in needs._asdict().items()})
