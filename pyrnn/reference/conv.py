"""The convolution family in plain NumPy: the specification.

The carried context and the sequence make one sequence; a tap is that sequence, shifted. A chain of convolutions that
take one step each is a default that every backend starts from, as those of the basic family are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import valid_steps

if TYPE_CHECKING:
    from ..backend import Backend, Stage

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


class ChainOps:
    """The default of a chain, for arrays of any module with numpy's arithmetic."""

    def causal_conv1d_chain(self: Any, stages: Sequence[Stage], x: Array, y: Array) -> Any:
        """Return the step that stages are, one after the other: a function of x_t and out or None, which gives y_t.

        A step copies x_t to the buffer ``x``, and what is in the end in the buffer ``y`` to its output. Its method
        ``state()`` gives the contexts of all stages that have one. The step takes over all these arrays; buffers that
        no stage writes keep what they have.
        """
        return Chain(self, stages, x, y)


class Chain:
    """A step made of stages; see `pyrnn.backend.Stage`."""

    def __init__(self, backend: Backend, stages: Sequence[Stage], x: Array, y: Array) -> None:
        self.xp, self.stages, self.x, self.y = backend.xp, stages, x, y
        self.zero = self.xp.zeros((), x.dtype)  # numpy takes longer over a number than over an array
        self.steps: list[Any] = []
        self.sums = []
        for stage in stages:
            batch, width = stage.to.shape
            width *= 2 if stage.then == "gate" else 1
            self.sums.append(self.xp.empty((batch, width), x.dtype))
            left = self.xp.empty((batch, 0, stage.source.shape[1]), x.dtype) if stage.left is None else stage.left
            step = None if stage.packed is None else backend.stepper("causal_conv1d", stage.packed, (left,), width)
            self.steps.append(step)

    def __call__(self, x_t: Array, out: Array | None) -> Array:
        xp = self.xp
        self.x[...] = x_t
        for stage, step, total in zip(self.stages, self.steps, self.sums, strict=True):
            value = stage.source if step is None else step(stage.source, total)
            if stage.plus is not None:
                value = xp.add(value, stage.plus, out=total)
            if stage.then == "relu":
                xp.maximum(value, self.zero, out=stage.to)
            elif stage.then == "tanh":
                xp.tanh(value, out=stage.to)
            elif stage.then == "gate":
                half = stage.to.shape[1]
                xp.tanh(value, out=total)
                total[:, half:] += 1
                xp.multiply(total[:, :half], total[:, half:], out=stage.to)
            else:
                stage.to[...] = value
        if out is None:
            return self.y.copy()
        out[...] = self.y
        return out

    def state(self) -> tuple[Array, ...]:
        """Return the contexts, each as its step has it itself, or else in the array that it began at and wrote."""
        contexts = []
        for stage, step in zip(self.stages, self.steps, strict=True):
            if stage.left is not None:
                own = getattr(step, "state", None)
                contexts.append(stage.left if own is None else own()[0])
        return tuple(contexts)
