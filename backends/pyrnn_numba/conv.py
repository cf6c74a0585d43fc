"""causal_conv1d of the numba backend: bring context and sequence together, run the compiled taps (`taps`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import taps, walk
from .memory import Memory, address, padded
from .panel import ROWS
from .team import run, threads_worth

BLOCK = 16 * ROWS  # rows that share the weights in a first-level cache

Array = np.ndarray


class Channels(NamedTuple):
    """How a row has its channels: ``groups`` of so many, each in whole vectors, or each ``repeats`` times in one."""

    groups: int
    count: int
    group: int
    repeats: int

    @property
    def row(self) -> int:
        return self.groups * self.group


class Saved(NamedTuple):
    """What a forward keeps: context and sequence in rows, by address."""

    arrays: Any
    config: Any
    lengths: Array
    memory: Memory
    source: int


def is_depthwise(w: Array, groups: int) -> bool:
    """Tell whether channels are to stand side by side: one input each, and fewer outputs than a vector has lanes."""
    return w.shape[1] == 1 and w.shape[0] // groups * w.itemsize < padded(1, w.itemsize)


def channels(w: Array, groups: int) -> tuple[Channels, Channels]:
    """Return how the rows of inputs and of outputs are."""
    outputs = w.shape[0] // groups
    if is_depthwise(w, groups):
        size = padded(w.shape[0], w.itemsize)
        return Channels(1, groups, size, outputs), Channels(1, w.shape[0], size, 1)
    return tuple(Channels(groups, n, padded(n, w.itemsize), 1) for n in (w.shape[1], outputs))  # type: ignore[return-value]


def take(memory: Memory, array: Array, counts: Array, to: int, sequence: int, first: int, form: Channels) -> None:
    """Copy each sequence's first rows into a buffer, from a row on."""
    threads = min(len(counts), threads_worth(0, array.size)) if array.size else 0
    if threads:
        run(
            threads, taps.take_rows, memory.unit, address(array), array.strides, counts, to, sequence, first, form.row,
            form.groups, form.count, form.group, form.repeats, memory.lanes, keep=(memory, array),
        )  # fmt: skip


def give(
    memory: Memory, source: int, sequence: int, firsts: Array, counts: Array, form: Channels, added: int, to: Array
) -> None:
    """Copy rows of each sequence from a buffer to an array; of a channel's repeats, add up so many."""
    threads = min(len(counts), threads_worth(0, to.size)) if to.size else 0
    if threads:
        run(
            threads, taps.give_rows, memory.unit, source, sequence, firsts, counts, form.row, form.groups, form.count,
            form.group, form.repeats, added, address(to), to.strides, memory.lanes, keep=(memory, to),
        )  # fmt: skip


def pack(memory: Memory, w: Array, form: Channels, *, depthwise: bool) -> int:
    """Pack weights (groups, outputs, taps, inputs) and return their address."""
    groups, outputs, count, inputs = w.shape
    (panels,) = memory.rows((count * max(1, inputs) * form.groups, form.group), zero=True)
    if depthwise:
        side_by_side = w.reshape(groups * outputs, count).T
        walk.pad_rows(
            memory.unit, address(side_by_side), *side_by_side.strides, np.arange(count), count, groups * outputs,
            panels, form.group, memory.lanes,
        )  # fmt: skip
        return panels
    item = w.itemsize
    w = np.ascontiguousarray(w)
    for group in range(groups):
        walk.pack_weights(
            memory.unit, address(w[group]), count * inputs * item, item, outputs, form.group, 1, count * inputs,
            panels + group * count * inputs * form.group, memory.lanes,
        )  # fmt: skip
    return panels


def convolve(call: taps.Taps, unit: Any, counts: Array, work: int, *, depthwise: bool, keep: Any) -> None:
    """Run the kernel over blocks of rows of each sequence."""
    threads = threads_worth(work, 0)
    short = call.rows < ROWS < call.batch
    blocks = call.batch * (1 if short else -(-call.rows // BLOCK))
    kernel = taps.convolve_depthwise if depthwise else taps.convolve
    run(min(threads, blocks), kernel, unit, call, counts, BLOCK, keep=keep)


class ConvOps:
    """causal_conv1d of the numba backend."""

    def causal_conv1d_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        x, w, b, left = arrays
        batch, time, inputs = x.shape
        outputs, each, count = w.shape
        span, groups, dtype = (count - 1) * config.dilation, config.groups, x.dtype
        lengths = np.full(batch, time) if config.lengths is None else config.lengths.astype(np.int64)
        of_x, of_y = channels(w, groups)
        depthwise = is_depthwise(w, groups)
        memory, scratch = Memory(dtype), Memory(dtype)
        sequence = (span + time) * of_x.row
        (source,) = memory.rows((batch, sequence), zero=left is None or config.lengths is not None)
        if left is not None:
            take(memory, left, np.full(batch, span), source, sequence, 0, of_x)
        take(memory, x, lengths, source, sequence, span, of_x)
        y = (np.empty if config.lengths is None else np.zeros)((batch, time, outputs), dtype)
        left_n = np.empty((batch, span, inputs), dtype)
        give(memory, source, sequence, lengths, np.full(batch, span), of_x, 1, left_n)
        if y.size:
            weights = w.reshape(groups, outputs // groups, each, count).transpose(0, 1, 3, 2)
            panels = pack(scratch, weights, of_y, depthwise=depthwise)
            bias = np.zeros((of_y.groups, of_y.group // dtype.itemsize), dtype)
            if b is not None:
                bias[:, : of_y.count] = b.reshape(of_y.groups, of_y.count)
            ready = of_y.count * dtype.itemsize == of_y.group  # y's own rows are whole vectors
            out = address(y) if ready else scratch.rows((batch * time, of_y.row))[0]
            call = taps.Taps(
                memory.lanes, dtype.itemsize, batch, time, count, config.dilation, groups, each, outputs // groups,
                source, sequence, of_x.row, of_x.group, panels, address(bias), out, time * of_y.row, of_y.row,
                of_y.group,
            )  # fmt: skip
            keep = (memory, scratch, arrays, bias, y)
            convolve(call, memory.unit, lengths, int(lengths.sum()) * w.size, depthwise=depthwise, keep=keep)
            if not ready:
                give(scratch, out, time * of_y.row, np.zeros(batch, np.int64), lengths, of_y, 1, y)
            elif config.lengths is not None and time < ROWS < batch:
                y[np.arange(time) >= lengths[:, None]] = 0
        return (y, left_n), Saved(arrays, config, lengths, memory, source) if needs else None

    def causal_conv1d_backward(self, saved: Saved, grad_outputs: Any, *, needs: Any) -> Any:
        arrays, config, lengths, _, source = saved
        x, w, dy = arrays.x, arrays.w, grad_outputs.y
        batch, time, inputs = x.shape
        outputs, each, count = w.shape
        span, groups, dtype, item = (count - 1) * config.dilation, config.groups, x.dtype, x.dtype.itemsize
        of_x, of_y = channels(w, groups)
        depthwise = is_depthwise(w, groups)
        scratch = Memory(dtype)
        dx = np.zeros(x.shape, dtype) if needs.x else None
        dleft = np.zeros((batch, span, inputs), dtype) if needs.left else None
        dw = np.zeros(w.shape, dtype) if needs.w else None
        db = np.zeros(outputs, dtype) if needs.b else None
        if dy is not None and dy.size:
            # Zeros before and after it, which the first and the last taps meet.
            d_sequence = (span + time + span) * of_y.row
            (d,) = scratch.rows((batch, d_sequence), zero=True)
            take(scratch, dy, lengths, d, d_sequence, span, of_y._replace(repeats=1))
            work = int(lengths.sum()) * w.size
            if inputs and (needs.x or needs.left):
                first = 0 if needs.left else span
                backwards = w.reshape(groups, outputs // groups, each, count)[..., ::-1].transpose(0, 2, 3, 1)
                if depthwise:
                    backwards = backwards.transpose(0, 3, 2, 1)
                panels = pack(scratch, backwards, of_x, depthwise=depthwise)
                rows = span + time - first
                zeros, out = scratch.rows((1, of_x.row), (batch * rows, of_x.row), zero=True)
                call = taps.Taps(
                    scratch.lanes, item, batch, rows, count, config.dilation, groups, outputs // groups, each, d +
                    first * of_y.row, d_sequence, of_y.row, of_y.group, panels, zeros, out, rows * of_x.row, of_x.row,
                    of_x.group,
                )  # fmt: skip
                keep = (scratch, saved)
                convolve(call, scratch.unit, lengths + (span - first), work, depthwise=depthwise, keep=keep)
                nothing = np.zeros(batch, np.int64)
                if dx is not None:
                    give(scratch, out, rows * of_x.row, nothing + (span - first), lengths, of_x, of_x.repeats, dx)
                if dleft is not None:
                    give(scratch, out, rows * of_x.row, nothing, nothing + span, of_x, of_x.repeats, dleft)
            if needs.w or needs.b:
                shape = (count, 1, 1, of_y.row) if depthwise else (count, groups, outputs // groups, of_x.group)
                weights = np.zeros((*shape[:3], shape[3] // item), dtype)
                bias = np.zeros((of_y.groups, of_y.group // item), dtype)
                call = taps.Taps(
                    scratch.lanes, item, batch, time, count, config.dilation, groups, each, outputs // groups, source,
                    (span + time) * of_x.row, of_x.row, of_x.group, 0, 0, 0, 0, 0, 0,
                )  # fmt: skip
                run(
                    threads_worth(work, 0), taps.depthwise_gradients if depthwise else taps.tap_gradients,
                    scratch.unit, call, d + span * of_y.row, d_sequence, of_y.row, of_y.group,
                    address(weights) if needs.w else 0, address(bias) if needs.b else 0, lengths,
                    keep=(scratch, saved, weights, bias),
                )  # fmt: skip
                if dw is not None and depthwise:
                    dw[:, 0] = weights[:, 0, 0, :outputs].T
                elif dw is not None:
                    dw[...] = weights[..., :each].reshape(count, outputs, each).transpose(1, 2, 0)
                if db is not None:
                    db[...] = bias[:, : of_y.count].reshape(outputs)
        if grad_outputs.left_n is not None:
            add_carried(grad_outputs.left_n, lengths, dx, dleft)
        grads = {"x": dx, "w": dw, "b": db, "left": dleft}
        return type(needs)(*(grads[name] for name in needs._fields))


def add_carried(grad: Array, lengths: Array, dx: Array | None, dleft: Array | None) -> None:
    """Add the gradient of the carried context to what it was taken from: the last rows of context and sequence."""
    span = grad.shape[1]
    for b, length in enumerate(lengths):
        from_left = max(0, span - length)
        if dleft is not None:
            dleft[b, span - from_left :] += grad[b, :from_left]
        if dx is not None:
            dx[b, length - (span - from_left) : length] += grad[b, from_left:]
