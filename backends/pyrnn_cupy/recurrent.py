"""rnn, lstm, gru of the cupy backend: products over the whole sequence by cuBLAS, its steps in one launch.

Those are the kernels of ``recurrent.cuh``. Where ``plans`` estimates it to be faster, and for a GRU that resets before
its product, the steps are products by cuBLAS and the cells of ``steps.cu``.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, NamedTuple

import cupy
import numpy as np

from pyrnn.backend import current_compute

from . import plans
from .devices import current_device
from .matrix import column_sums, product, repeated_product
from .modules import kernel, to_device

RNN_TANH, RNN_RELU, LSTM, GRU, GRU_BEFORE = range(5)  # as in cells.cuh
GATES = (1, 1, 4, 3, 3)
GRADIENTS = (1, 1, 4, 4, 3)
COMPUTE = {None: "EXACT", "tf32": "TF32", "bfloat16": "BF16"}
STEP_THREADS = 256


class Rows(NamedTuple):
    """The rows of a call on the device, longest first: see ``Sequence`` in cells.cuh; None where all have all steps.

    ``valid`` has the places of the valid steps in (B·T), None where that is all; ``active`` how many rows have each
    step.
    """

    rows: Any
    lengths: Any
    firsts: Any
    valid: Any
    active: np.ndarray
    total: int

    def sorted(self, states: Any, shape: tuple[int, int], dtype: Any) -> Any:
        """Return a copy of states in the order of the rows: zeros if none are given."""
        if states is None:
            return cupy.zeros(shape, dtype)
        return states.copy() if self.rows is None else states[self.rows]

    def unsorted(self, states: Any) -> Any:
        """Return states in the order of the arrays."""
        if self.rows is None:
            return states
        given = cupy.empty_like(states)
        given[self.rows] = states
        return given


def _rows(lengths: np.ndarray | None, batch: int, time: int) -> Rows:
    if lengths is None:
        return Rows(None, None, None, None, np.full(time, batch), batch * time)
    order = np.argsort(-lengths, kind="stable")
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    total = int(firsts[-1])
    full = total == batch * time
    steps = np.arange(int(lengths.max(initial=0)))
    # One copy to the device for all of it.
    host = [order.astype(np.int32), lengths[order].astype(np.int32), firsts[:-1][order]]
    if not full:
        host.append(np.flatnonzero(np.arange(time) < lengths[:, None]))
    buffer = to_device(np.concatenate([part.view(np.uint8) for part in host]))
    parts, at = [], 0
    for part in host:
        parts.append(buffer[at : at + part.nbytes].view(part.dtype))
        at += part.nbytes
    return Rows(*parts[:3], None if full else parts[3], (lengths > steps[:, None]).sum(1), total)


class Saved(NamedTuple):
    """What a forward keeps: the call, and of the valid steps the gates and an LSTM's c, a GRU's q or r·h."""

    cell: int
    arrays: Any
    config: Any
    compute: str | None
    rows: Rows
    gates: Any
    extra: Any
    y: Any


class Call:
    """What the kernels of a call have in common."""

    def __init__(self, cell: int, arrays: Any, config: Any, compute: str | None, rows: Rows) -> None:
        self.cell, self.rows = cell, rows
        batch, time, _ = arrays.x.shape
        self.batch, self.hidden, self.dtype = batch, arrays.w_hh.shape[1], arrays.x.dtype
        self.compute = None if self.dtype == np.float64 else compute
        sizes = (np.int32(value) for value in (batch, time, self.hidden, config.reverse))
        self.sequence = (rows.rows, rows.lengths, rows.firsts, *sizes)

    def plan(self, sums: int, depth: int, states: int) -> plans.Plan | None:
        """Return how the steps run in one launch, or None if they don't, or there are none."""
        if self.cell == GRU_BEFORE or not self.hidden or not self.batch:
            return None
        work = plans.Work(self.hidden, self.batch, sums, depth, self.dtype.itemsize, self.compute, states)
        return plans.plan(current_device(), work)

    def launch_sequence(self, direction: str, plan: plans.Plan, sums: int, *arguments: Any) -> None:
        """Run the kernel that goes forward or backward through the whole sequence."""
        run = kernel(
            f"recurrent_{direction}.cu", f"{direction}_sequence", self.dtype, cooperative=True, CELL=self.cell,
            COMPUTE=COMPUTE[self.compute], SUMS=sums, **plan.constants(),
        )  # fmt: skip
        # Not the plan's: calls of other sizes have the same kernel, and another thread's may come before the launch.
        run.max_dynamic_shared_size_bytes = current_device().shared
        operand = 2 if self.compute == "bfloat16" else self.dtype.itemsize
        size = 2 * self.batch * plan.padded * operand
        zeros = cupy.zeros(size + 4 * plan.groups * plan.blocks, np.uint8)
        exchange, flags, weights = zeros[:size], zeros[size:], cupy.empty(plan.scratch, np.uint8)
        sizes = (np.int32(plan.tile), np.int32(plan.in_shared))
        arguments = (*self.sequence, *sizes, *arguments, weights, exchange, flags)
        run((plan.blocks, plan.groups), (plans.THREADS,), arguments, shared_mem=plan.memory)

    def launch_step(self, name: str, active: int, step: int, phase: int, *arguments: Any) -> None:
        """Run a kernel of ``steps.cu`` over the rows that have a step."""
        run = kernel("steps.cu", name, self.dtype, CELL=self.cell)
        blocks = -(-active * self.hidden // STEP_THREADS)
        numbers = (np.int32(value) for value in (active, step, phase))
        run((blocks,), (STEP_THREADS,), (*self.sequence, *numbers, *arguments))


def _packed(x: Any, rows: Rows) -> Any:
    """Return the valid steps of (B, T, F), one below the other."""
    steps = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
    return steps if rows.valid is None else steps[rows.valid]


def _forward(cell: int, arrays: Any, config: Any, needs: Any) -> tuple[Any, Any]:
    x, w_hh = arrays.x, arrays.w_hh
    batch, time, _ = x.shape
    hidden, gates, dtype = w_hh.shape[1], GATES[cell], x.dtype
    keep = needs is not None
    rows = _rows(config.lengths, batch, time)
    call = Call(cell, arrays, config, current_compute(), rows)
    w_hh, b, b_hn, h0, c0 = (
        None if array is None else cupy.ascontiguousarray(array)
        for array in (w_hh, arrays.b, getattr(arrays, "b_hn", None), arrays.h0, getattr(arrays, "c0", None))
    )
    kept = product(_packed(x, rows), arrays.w_ih.T, compute=call.compute)
    y = (cupy.empty if rows.valid is None else cupy.zeros)((batch, time, hidden), dtype)
    h_n, c_n = (_final(start, rows, (batch, hidden), dtype) for start in (h0, c0))
    extra = cupy.empty((rows.total, hidden), dtype) if cell >= LSTM and keep else None
    plan = call.plan(gates, hidden, 1)
    if not rows.total or not hidden:
        pass  # there is no step
    elif plan is not None:
        arguments = (w_hh, b, b_hn, h0, c0, kept, extra, np.int32(keep), y, h_n, c_n)
        call.launch_sequence("forward", plan, gates, *arguments)
    else:
        _step_forward(call, w_hh, b, b_hn, h0, c0, kept, extra, y, h_n, c_n)
    outputs = (y, h_n, c_n) if cell == LSTM else (y, h_n)
    arrays = arrays._replace(w_hh=w_hh, h0=h0, **({"c0": c0} if cell == LSTM else {}))
    return outputs, Saved(cell, arrays, config, call.compute, rows, kept, extra, y) if keep else None


def _final(start: Any, rows: Rows, shape: tuple[int, int], dtype: Any) -> Any:
    """Return an array for final states: kernels write those of rows with steps, others keep the initial ones."""
    if len(rows.active) and rows.active[0] == shape[0]:
        return cupy.empty(shape, dtype)
    return cupy.zeros(shape, dtype) if start is None else start.copy()


def _step_forward(
    call: Call, w_hh: Any, b: Any, b_hn: Any, h0: Any, c0: Any, kept: Any, extra: Any, y: Any, h_n: Any, c_n: Any
) -> None:
    hidden, rows, before = call.hidden, call.rows, call.cell == GRU_BEFORE
    h, c = (rows.sorted(states, (call.batch, hidden), call.dtype) for states in (h0, c0))
    recurrent = cupy.zeros((call.batch, w_hh.shape[0]), call.dtype)
    operand = cupy.empty_like(h) if before else h
    columns = slice(0, 2 * hidden if before else None)
    arguments = (recurrent, b, b_hn, h, c, operand, kept, extra, y, h_n, c_n)
    for active, steps in groupby(range(len(rows.active)), lambda step: int(rows.active[step])):
        multiply = repeated_product(h[:active], w_hh[columns].T, recurrent[:active, columns], compute=call.compute)
        if before:
            candidate = repeated_product(
                operand[:active], w_hh[2 * hidden :].T, recurrent[:active, 2 * hidden :], compute=call.compute
            )
        for step in steps:
            multiply()
            if before:
                call.launch_step("forward_step", active, step, 0, *arguments)
                candidate()
            call.launch_step("forward_step", active, step, 1, *arguments)


def _backward(saved: Saved, grad_outputs: Any, needs: Any) -> Any:
    cell, arrays, rows, compute = saved.cell, saved.arrays, saved.rows, saved.compute
    call = Call(cell, arrays, saved.config, compute, rows)
    batch, time, inputs = arrays.x.shape
    hidden, dtype, planes = call.hidden, call.dtype, GRADIENTS[cell]
    dy, dh_n, dc_n = (
        None if grad is None else cupy.ascontiguousarray(grad)
        for grad in (grad_outputs.y, grad_outputs.h_n, getattr(grad_outputs, "c_n", None))
    )
    d = cupy.empty((rows.total, planes * hidden), dtype)
    if rows.total and hidden:
        dh, dc = _back_through_time(call, saved, d, dy, dh_n, dc_n)
    else:
        dh, dc = (cupy.zeros((batch, hidden), dtype) if grad is None else grad.copy() for grad in (dh_n, dc_n))
    # The gradients that the inputs see: all but a GRU's dq, the third of its four.
    parts = [(slice(0, 2 * hidden), slice(0, 2 * hidden)), (slice(3 * hidden, None), slice(2 * hidden, None))]
    inward = parts if cell == GRU else [(slice(None), slice(None))]
    x = _packed(arrays.x, rows)
    grads: dict[str, Any] = {"h0": dh if needs.h0 else None, "c0": dc if getattr(needs, "c0", False) else None}
    if needs.x:
        dx = cupy.empty((rows.total, inputs), dtype)
        for number, (columns, weights) in enumerate(inward):
            product(d[:, columns], arrays.w_ih[weights], dx, add=number > 0, compute=compute)
        grads["x"] = dx.reshape(arrays.x.shape) if rows.valid is None else cupy.zeros((batch * time, inputs), dtype)
        if rows.valid is not None:
            grads["x"][rows.valid] = dx
            grads["x"] = grads["x"].reshape(arrays.x.shape)
    if needs.w_ih:
        grads["w_ih"] = cupy.empty(arrays.w_ih.shape, dtype)
        for columns, weights in inward:
            product(d[:, columns].T, x, grads["w_ih"][weights], compute=compute)
    if needs.w_hh:
        grads["w_hh"] = _recurrent_weight_gradient(call, saved, d)
    if needs.b:
        grads["b"] = cupy.concatenate([column_sums(d[:, columns]) for columns, _ in inward])
    if getattr(needs, "b_hn", False):
        grads["b_hn"] = column_sums(d[:, 2 * hidden : 3 * hidden]) if cell == GRU else None
    return type(needs)(*(grads.get(name) for name in needs._fields))


def _back_through_time(call: Call, saved: Saved, d: Any, dy: Any, dh_n: Any, dc_n: Any) -> tuple[Any, Any]:
    """Fill ``d`` with the gradients of the gates, and return those of the initial states."""
    cell, arrays, _, _, rows, gates, extra, y = saved
    w_hh, h0, c0 = arrays.w_hh, arrays.h0, getattr(arrays, "c0", None)
    hidden, count = call.hidden, GATES[cell]
    kept = (h0, c0, gates, extra, y, dy)
    plan = call.plan(1, count * hidden, 2)
    if plan is not None:
        dh0, dc0 = (cupy.empty((call.batch, hidden), call.dtype) for _ in range(2))
        call.launch_sequence("backward", plan, 1, w_hh, *kept, dh_n, dc_n, d, dh0, dc0)
        return dh0, dc0
    dh, dc = (rows.sorted(grad, (call.batch, hidden), call.dtype) for grad in (dh_n, dc_n))
    d_recurrent, d_operand = cupy.empty((call.batch, count * hidden), call.dtype), cupy.empty_like(dh)
    before = cell == GRU_BEFORE
    split = 2 * hidden if before else count * hidden
    arguments = (*kept, d_operand, dh, dc, d_recurrent, d)
    for active, steps in groupby(reversed(range(len(rows.active))), lambda step: int(rows.active[step])):
        multiply = repeated_product(
            d_recurrent[:active, :split], w_hh[:split], dh[:active], add=True, compute=call.compute
        )
        if before:
            candidate = repeated_product(
                d_recurrent[:active, split:], w_hh[split:], d_operand[:active], compute=call.compute
            )
        for step in steps:
            call.launch_step("backward_step", active, step, 0, *arguments)
            if before:
                candidate()
                call.launch_step("backward_step", active, step, 1, *arguments)
            multiply()
    return rows.unsorted(dh), rows.unsorted(dc)


def _recurrent_weight_gradient(call: Call, saved: Saved, d: Any) -> Any:
    cell, arrays, rows, hidden = call.cell, saved.arrays, call.rows, call.hidden
    before = cupy.zeros((rows.total, hidden), call.dtype)
    if before.size:
        blocks = min(-(-call.batch * arrays.x.shape[1] * hidden // STEP_THREADS), 4096)
        run = kernel("steps.cu", "states_before", call.dtype, CELL=cell)
        run((blocks,), (STEP_THREADS,), (*call.sequence, saved.y, arrays.h0, before))
    if cell != GRU_BEFORE:
        return product(d[:, : GATES[cell] * hidden].T, before, compute=call.compute)
    grad = cupy.empty(arrays.w_hh.shape, call.dtype)
    product(d[:, : 2 * hidden].T, before, grad[: 2 * hidden], compute=call.compute)
    product(d[:, 2 * hidden :].T, saved.extra, grad[2 * hidden :], compute=call.compute)
    return grad


class RecurrentOps:
    """rnn, lstm, gru of the cupy backend."""

    def rnn_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return _forward(RNN_TANH if config.activation == "tanh" else RNN_RELU, arrays, config, needs)

    def lstm_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return _forward(LSTM, arrays, config, needs)

    def gru_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return _forward(GRU if config.reset_after else GRU_BEFORE, arrays, config, needs)

    def rnn_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return _backward(saved, grad_outputs, needs)

    def lstm_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return _backward(saved, grad_outputs, needs)

    def gru_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        return _backward(saved, grad_outputs, needs)
