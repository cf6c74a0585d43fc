"""Causal convolution in PyTorch, in its own layout (B, C, T), or with channels last where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import conv1d, conv2d, pad

from .. import Arrays, Run, Runs, quickest


def prepare_torch(case: Any, data: Any, threads: int) -> Runs:
    """Return the fastest of its ways: zeros put before x, or on both sides by the convolution and cut off after it."""
    torch.set_num_threads(threads)
    options = {"dilation": case.dilation, "groups": case.groups}

    def before(x: Any, w: Any, b: Any) -> Any:
        return conv1d(pad(x, (case.context, 0)), w, b, **options)

    def both(x: Any, w: Any, b: Any) -> Any:
        return conv1d(x, w, b, padding=case.context, **options)[:, :, : case.T]

    # Below, x is (B, C, 1, T) and w (Cout, Cin, 1, K), their channels last in memory.
    wide = {"dilation": (1, case.dilation), "groups": case.groups}

    def last_before(x: Any, w: Any, b: Any) -> Any:
        return conv2d(pad(x, (case.context, 0)), w, b, **wide)

    def last_both(x: Any, w: Any, b: Any) -> Any:
        return conv2d(x, w, b, padding=(0, case.context), **wide)[..., : case.T]

    x, w, b, dy = map(torch.from_numpy, (data.x, data.w, data.b, data.dy))
    x, dy = (a.transpose(1, 2).contiguous() for a in (x, dy))
    x_last, w_last, dy_last = (a[:, :, None].contiguous(memory_format=torch.channels_last) for a in (x, w, dy))
    make = _train if case.trains else _forward
    return {
        "torch": quickest({
            "padded before": lambda: make(before, x, w, b, dy),
            "padded on both sides": lambda: make(both, x, w, b, dy),
            "channels last, padded before": lambda: make(last_before, x_last, w_last, b, dy_last),
            "channels last, padded on both sides": lambda: make(last_both, x_last, w_last, b, dy_last),
        })
    }  # fmt: skip


def _rows(y: Any) -> Any:
    """Return (B, T, C) of what has channels second, and perhaps one row."""
    return (y[:, :, 0] if y.ndim == 4 else y).transpose(1, 2).numpy()


def _forward(function: Callable[[Any, Any, Any], Any], x: Any, w: Any, b: Any, dy: Any) -> Run:
    @torch.inference_mode()
    def call() -> Any:
        return function(x, w, b)

    return Run(call, lambda: {"y": _rows(call())})


def _train(function: Callable[[Any, Any, Any], Any], x: Any, w: Any, b: Any, dy: Any) -> Run:
    leaves = [a.clone().requires_grad_() for a in (x, w, b)]

    def call() -> Any:
        y = function(*leaves)
        return y, torch.autograd.grad(y, leaves, dy)

    def results() -> Arrays:
        y, (dx, dw, db) = call()
        return {"y": _rows(y.detach()), "dx": _rows(dx), "dw": (dw[:, :, 0] if dw.ndim == 4 else dw).numpy(),
                "db": db.numpy()}  # fmt: skip

    return Run(call, results)
