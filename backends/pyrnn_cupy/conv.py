"""causal_conv1d of the cupy backend, in one of three ways.

Depthwise, and with few channels, in groups or of few steps, the kernels of ``conv.cu`` and ``tiles.cu`` do all of it,
in the arrays' own precision. With many channels each tap is a product by cuBLAS: of the carried context and the steps
as one sequence, which is written once and then taken as shifted views, and the products are added up in place.

Which is faster where is an estimate from an H200's published figures, not measured yet: for each output and tap of C
channels a product's arithmetic takes 2·C / 50 TFLOP/s and its memory 12 bytes at 4 TB/s, and a kernel of ours
2·C / 30 TFLOP/s and next to no memory. So products win from about 48 channels on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from pyrnn.backend import current_compute

from .matrix import column_sums, product
from .modules import kernel, to_device

PRODUCT_CHANNELS, PRODUCT_STEPS = 48, 64  # from so many on, taps are products
PRODUCT_SPAN = 2  # contexts of up to so many times the steps
MOST_FAN = 4  # outputs of an input, in the depthwise kernels
TILE_THREADS, TILE_DEPTH = 128, 16  # tiles.cu
ROWS, FEW_ROWS, COLUMNS = 128, 32, (8, 16, 32, 64)
BLOCKS = 264  # twice the multiprocessors of an H200; the same everywhere, as the order of sums depends on it
STRIP, TAPS, LANES, CHAINS = 8, 8, 32, 8  # as conv.cu has them
ELEMENT_THREADS, ELEMENT_BLOCKS = 256, 2112

DEPTHWISE, TILES, PRODUCTS = "depthwise", "tiles", "products"


class Sequences(NamedTuple):
    """What the kernels' ``Whole`` is made of, on the device: steps (B, T, C), the context before them, and lengths."""

    x: Any
    left: Any
    lengths: Any
    before: int

    def arguments(self) -> tuple[Any, ...]:
        batch_step, time_step = (np.int64(stride // self.x.itemsize) for stride in self.x.strides[:2])
        _, time, channels = self.x.shape
        return (
            self.x, self.left, self.lengths, batch_step, time_step, np.int64(self.before), np.int32(time),
            np.int32(channels),
        )  # fmt: skip


class Saved(NamedTuple):
    """What a forward keeps: the sequences, laid out as one if that is how it ran, and the weights."""

    call: Call
    sequences: Sequences
    whole: Any
    w: Any


class Call:
    """The sizes of a call, how it runs, and its launches."""

    def __init__(self, arrays: Any, config: Any) -> None:
        self.batch, self.time, self.inputs = arrays.x.shape
        self.outputs, self.each, self.taps = arrays.w.shape  # each: inputs of a group
        self.groups, self.dilation, self.dtype = config.groups, config.dilation, arrays.x.dtype
        self.span = (self.taps - 1) * self.dilation
        self.compute = None if self.dtype == np.float64 else current_compute()
        many = min(self.each, self.outputs // self.groups) >= PRODUCT_CHANNELS
        long = self.time >= max(PRODUCT_STEPS, self.span / PRODUCT_SPAN)
        if self.each == 1 and 1 <= self.outputs // self.groups <= MOST_FAN:
            self.way = DEPTHWISE
        else:
            self.way = PRODUCTS if many and long else TILES

    def elementwise(self, name: str, count: int, *arguments: Any) -> None:
        """Run a kernel of ``conv.cu`` that loops over ``count`` elements."""
        if count:
            blocks = min(-(-count // ELEMENT_THREADS), ELEMENT_BLOCKS)
            kernel("conv.cu", name, self.dtype)((blocks,), (ELEMENT_THREADS,), arguments)

    def last_rows(self, sequences: Sequences) -> Any:
        """Return the context after each row's last valid step."""
        out = cupy.empty((self.batch, self.span, self.inputs), self.dtype)
        self.elementwise("last_rows", out.size, *sequences.arguments(), np.int32(self.batch), out)
        return out

    def laid_out(self, sequences: Sequences, rows: int) -> Any:
        """Return context and steps as one, padding and what is after them 0."""
        out = cupy.empty((self.batch, rows, sequences.x.shape[2]), self.dtype)
        self.elementwise("lay_out", out.size, *sequences.arguments(), np.int32(self.batch), np.int64(rows), out)
        return out

    def convolve(self, sequences: Sequences, w: Any, bias: Any = None, *, masked: bool, rows: int, outputs: int) -> Any:
        """Return (B, rows, outputs) by the kernels of ``tiles.cu`` and ``conv.cu``, of weights as they take them."""
        batch, channels = self.batch, sequences.x.shape[2]
        out = cupy.empty((batch, rows, outputs), self.dtype)
        if not out.size:
            return out
        ends = (bias, np.int32(masked), np.int64(rows))
        numbers = (np.int32(self.taps), np.int64(self.dilation), w, *ends)
        if self.way == DEPTHWISE:
            fans = (np.int32(max(1, channels // outputs)), np.int32(max(1, outputs // channels)))
            chains = -(-rows // STRIP)
            arguments = (*sequences.arguments(), np.int32(batch), *fans, *numbers, np.int32(outputs), out)
            self.elementwise("depthwise", batch * chains * outputs, *arguments)
            return out
        each = outputs // self.groups
        columns = self._columns(each)
        across = -(-each // columns) * self.groups
        tall = ROWS if -(-batch * rows // ROWS) * across >= BLOCKS else FEW_ROWS
        depth = self._depth(channels // self.groups)
        run = kernel("tiles.cu", "convolve", self.dtype, ROWS=tall, COLUMNS=columns, DEPTH=depth)
        arguments = (*sequences.arguments(), np.int32(batch), np.int32(self.groups), *numbers, np.int32(each), out)
        run((-(-batch * rows // tall) * across,), (TILE_THREADS,), arguments)
        return out

    def weight_gradient(self, sequences: Sequences, dy: Any) -> Any:
        """Return the gradient of the weights by the kernels of ``tiles.cu`` and ``conv.cu``."""
        steps = tuple(np.int64(stride // dy.itemsize) for stride in dy.strides[:2])
        each = self.outputs // self.groups
        if self.way == DEPTHWISE:
            across, over = -(-self.outputs // LANES), -(-self.taps // TAPS)
            links = -(-self.time // self.dilation)
            chains = self.batch * min(self.dilation, self.time) * -(-links // STRIP)
            parts = max(1, min(-(-4 * BLOCKS // (across * over)), -(-chains // CHAINS)))
            sums = cupy.empty((parts, self.taps, self.outputs), self.dtype)
            run = kernel("conv.cu", "depthwise_weights", self.dtype)
            sizes = (np.int32(self.batch), np.int32(each), np.int32(self.taps), np.int64(self.dilation))
            share = np.int64(-(-chains // parts))
            arguments = (*sequences.arguments(), *sizes, dy, *steps, share, np.int32(self.outputs), sums)
            run((across, parts, over), (LANES * CHAINS,), arguments)
            return column_sums(sums.reshape(parts, -1)).reshape(self.taps, 1, self.outputs).transpose(2, 1, 0)
        terms, columns, depth = self.taps * self.each, self._columns(each), TILE_DEPTH
        tall = ROWS if terms > FEW_ROWS else FEW_ROWS
        tiles = -(-terms // tall) * -(-each // columns) * self.groups
        parts = max(1, min(-(-BLOCKS // tiles), -(-self.batch * self.time // (4 * depth)), 65535))
        sums = cupy.empty((parts, self.groups, self.taps, self.each, each), self.dtype)
        run = kernel("tiles.cu", "convolve_weights", self.dtype, ROWS=tall, COLUMNS=columns, DEPTH=depth)
        sizes = (np.int32(self.batch), np.int32(self.groups), np.int32(self.taps), np.int64(self.dilation))
        share = np.int64(-(-self.batch * self.time // parts))
        run((tiles, parts), (TILE_THREADS,), (*sequences.arguments(), *sizes, dy, *steps, share, np.int32(each), sums))
        total = column_sums(sums.reshape(parts, -1)).reshape(sums.shape[1:])
        return total.transpose(0, 3, 2, 1).reshape(self.outputs, self.each, self.taps)

    def _columns(self, outputs: int) -> int:
        most = COLUMNS[-1] if self.dtype == np.float32 else COLUMNS[-2]  # a thread has registers for so many
        return next((columns for columns in COLUMNS if outputs <= columns < most), most)

    def _depth(self, inputs: int) -> int:
        return next((depth for depth in (4, 8) if inputs <= depth), TILE_DEPTH)

    def kernel_weights(self, w: Any, *, turned: bool = False) -> Any:
        """Return the weights as the kernels take them; ``turned`` as the gradient of the inputs does."""
        if self.way == DEPTHWISE:
            return cupy.ascontiguousarray((w[:, 0, ::-1] if turned else w[:, 0]).T)
        w = w.reshape(self.groups, self.outputs // self.groups, self.each, self.taps)
        return cupy.ascontiguousarray(w[..., ::-1].transpose(0, 3, 1, 2) if turned else w.transpose(0, 3, 2, 1))

    def products(self) -> list[tuple[slice, slice, slice, int]]:
        """Return for each tap and group the whole's rows, its channels, the channels of the outputs, and the tap."""
        outputs = self.outputs // self.groups
        return [
            (
                slice(tap * self.dilation, tap * self.dilation + self.time),
                slice(group * self.each, (group + 1) * self.each),
                slice(group * outputs, (group + 1) * outputs),
                tap,
            )
            for tap in range(self.taps)
            for group in range(self.groups)
        ]

    def over_batch(self, matrix: Any) -> Any:
        """Return one matrix as if each sequence had one."""
        return cupy.broadcast_to(matrix, (self.batch, *matrix.shape))


def _with_unit_stride(x: Any) -> Any:
    """Return (B, T, C) with channels beside each other: as it is, or copied."""
    return x if x.strides[2] == x.itemsize or x.shape[2] < 2 else cupy.ascontiguousarray(x)


def _by_tap(w: Any) -> Any:
    return cupy.ascontiguousarray(w.transpose(2, 0, 1))


def _forward(arrays: Any, config: Any, keep: bool) -> tuple[Any, Any]:
    call = Call(arrays, config)
    x, left = _with_unit_stride(arrays.x), None if arrays.left is None else cupy.ascontiguousarray(arrays.left)
    bias = None if arrays.b is None else cupy.ascontiguousarray(arrays.b)
    lengths = None if config.lengths is None else to_device(config.lengths.astype(np.int32))
    sequences = Sequences(x, left, lengths, call.span)
    whole = None
    if call.way != PRODUCTS:
        weights = call.kernel_weights(arrays.w)
        y = call.convolve(sequences, weights, bias, masked=lengths is not None, rows=call.time, outputs=call.outputs)
    else:
        whole = call.laid_out(sequences, call.span + call.time)
        y, taps = cupy.empty((call.batch, call.time, call.outputs), call.dtype), _by_tap(arrays.w)
        for rows, inputs, outputs, tap in call.products():
            weights = call.over_batch(taps[tap, outputs].T)
            product(whole[:, rows, inputs], weights, y[:, :, outputs], add=tap > 0, compute=call.compute)
        if bias is not None or lengths is not None:
            sizes = (np.int32(call.time), np.int32(call.outputs), np.int32(call.batch))
            call.elementwise("finish", y.size, lengths, bias, *sizes, y)
    return (y, call.last_rows(sequences)), Saved(call, sequences, whole, arrays.w) if keep else None


def _back_by_kernels(saved: Saved, dy: Any, weights_too: bool, inputs_too: bool) -> tuple[Any, Any]:
    """Return the gradients of the weights and of the whole, None where not wanted."""
    call, sequences, _, w = saved
    dw = d_whole = None
    if weights_too and w.size:
        dw = cupy.ascontiguousarray(call.weight_gradient(sequences, dy))
    if inputs_too:
        steps, turned = Sequences(dy, None, sequences.lengths, call.span), call.kernel_weights(w, turned=True)
        d_whole = call.convolve(steps, turned, masked=False, rows=call.span + call.time, outputs=call.inputs)
    return dw, d_whole


def _back_by_products(saved: Saved, dy: Any, weights_too: bool, inputs_too: bool) -> tuple[Any, Any]:
    """Do the same."""
    call, sequences, whole, w = saved
    rows, taps = call.span + call.time, _by_tap(w)
    d_taps = cupy.empty(taps.shape, call.dtype) if weights_too else None
    d_whole = cupy.zeros((call.batch, rows, call.inputs), call.dtype) if inputs_too else None
    # With zeros after its steps, dy has the rows of the whole: so dw is one product for each tap.
    dy = call.laid_out(Sequences(dy, None, sequences.lengths, 0), rows)
    flat, flat_dy = (array.reshape(call.batch * rows, array.shape[2]) for array in (whole, dy))
    count = max(0, len(flat) - call.span)
    for steps, inputs, outputs, tap in call.products():
        if weights_too:
            seen = flat[steps.start : steps.start + count, inputs]
            product(flat_dy[:count, outputs].T, seen, d_taps[tap, outputs], compute=call.compute)
        if inputs_too:
            weights, into = call.over_batch(taps[tap, outputs]), d_whole[:, steps, inputs]
            product(dy[:, : call.time, outputs], weights, into, add=True, compute=call.compute)
    return cupy.ascontiguousarray(d_taps.transpose(1, 2, 0)) if weights_too else None, d_whole


def _backward(saved: Saved, grad_outputs: Any, needs: Any) -> Any:
    call, lengths = saved.call, saved.sequences.lengths
    dy, last = grad_outputs
    inputs_too = needs.x or needs.left
    dw = db = d_whole = None
    if dy is not None:
        dy = _with_unit_stride(dy)
        db = column_sums(dy, lengths) if needs.b else None
        back = _back_by_products if call.way == PRODUCTS else _back_by_kernels
        dw, d_whole = back(saved, dy, needs.w, inputs_too)
    if inputs_too and d_whole is None:
        d_whole = cupy.zeros((call.batch, call.span + call.time, call.inputs), call.dtype)
    if inputs_too and last is not None:
        sizes = (np.int64(call.span), np.int32(call.time), np.int32(call.inputs), np.int32(call.batch))
        call.elementwise("add_last_rows", last.size, lengths, cupy.ascontiguousarray(last), *sizes, d_whole)
    if needs.w and dw is None:
        dw = cupy.zeros(saved.w.shape, call.dtype)
    if needs.b and db is None:
        db = cupy.zeros(call.outputs, call.dtype)
    return type(needs)(
        x=d_whole[:, call.span :] if needs.x else None,
        w=dw,
        b=db,
        left=d_whole[:, : call.span].copy() if needs.left else None,  # no memory in common with dx
    )


class ConvOps:
    """causal_conv1d of the cupy backend."""

    def causal_conv1d_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return _forward(arrays, config, needs is not None)

    def causal_conv1d_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return _backward(saved, grad_outputs, needs)
