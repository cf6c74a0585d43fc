"""Checkpointing: a backward that keeps the states at the starts of √T segments, and runs each anew for the rest.

It is made of a backend's own forward and backward on chunks of the sequence, so every backend has it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Segments(NamedTuple):
    """What is kept: the call, and for each segment, in the order in which they ran, its bounds and its first state."""

    arrays: Any
    config: Any
    pieces: list[tuple[int, int, tuple[Any, ...]]]


class Checkpointed:
    """The forward and backward of a recurrent op on a backend, in segments.

    Parameters
    ----------
    forward, backward
        The backend's own.
    state : tuple of str
        The arrays that are the state, in the order of the outputs after the first.
    Outputs
        The op's NamedTuple of outputs.
    empty
        The backend's.

    References
    ----------
    Chen, Xu, Zhang, Guestrin (2016), "Training Deep Nets with Sublinear Memory Cost".
    """

    def __init__(self, forward: Any, backward: Any, state: tuple[str, ...], Outputs: Any, empty: Any) -> None:
        self.run, self.pull, self.state, self.Outputs, self.empty = forward, backward, state, Outputs, empty

    def forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        config = config._replace(checkpoint=False)
        if needs is None:
            return self.run(arrays, config)
        batch, time, _ = arrays.x.shape
        size = max(1, math.isqrt(max(time - 1, 0)) + 1)
        starts = range(0, max(time, 1), size)
        state = tuple(getattr(arrays, name) for name in self.state)
        y = self.empty((batch, time, arrays.w_hh.shape[1]), arrays.x.dtype)
        pieces = []
        for begin in reversed(starts) if config.reverse else starts:
            end = min(begin + size, time)
            pieces.append((begin, end, state))
            (y[:, begin:end], *final), _ = self.run(*self._cut(arrays, config, begin, end, state))
            state = tuple(final)
        return (y, *state), Segments(arrays, config, pieces)

    def backward(self, saved: Segments, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, config, pieces = saved
        first = pieces[0]
        dy, *carried = grad_outputs
        total: dict[str, Any] = {}
        if needs.x:
            total["x"] = self.empty(arrays.x.shape, arrays.x.dtype)
        for piece in reversed(pieces):
            begin, end, state = piece
            inside = self._cut(arrays, config, begin, end, state)
            wanted = needs if piece is first else needs._replace(**dict.fromkeys(self.state, True))
            _, kept = self.run(*inside, needs=wanted)
            part = None if dy is None else dy[:, begin:end]
            grads = self.pull(kept, self.Outputs(part, *carried), needs=wanted)
            carried = [getattr(grads, name) for name in self.state]
            for name, grad in zip(grads._fields, grads, strict=True):
                if grad is None or name in self.state:
                    continue
                if name == "x":
                    total["x"][:, begin:end] = grad
                elif name in total:
                    total[name] += grad
                else:
                    total[name] = grad
        return type(needs)(**{**dict.fromkeys(needs._fields), **total, **dict(zip(self.state, carried, strict=True))})

    def _cut(self, arrays: Any, config: Any, begin: int, end: int, state: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the arrays and the configuration of one segment."""
        lengths = None if config.lengths is None else np.clip(config.lengths - begin, 0, end - begin)
        cut = arrays._replace(x=arrays.x[:, begin:end], **dict(zip(self.state, state, strict=True)))
        return cut, config._replace(lengths=lengths)
