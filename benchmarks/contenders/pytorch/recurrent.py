"""The recurrent family in PyTorch."""

from __future__ import annotations

from typing import Any

import torch

import pyrnn.io

from .. import STEPS, Arrays, Run, Runs

CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "rnn": torch.nn.RNNCell}


def prepare_torch(case: Any, data: Any, threads: int) -> Runs:
    """Return its layer's way, and in the step mode also its cell's."""
    torch.set_num_threads(threads)
    layer = _layer(case, data)
    if case.mode == "step":
        return {"torch": _step_layer(layer, data), "torch-cell": _step_cell(case, layer, data)}
    if case.trains:
        return {"torch": _train(case, layer, data)}
    x = torch.from_numpy(data.x)

    @torch.inference_mode()
    def forward() -> Any:
        return _outputs(layer, x, None, data)

    return {"torch": Run(forward, lambda: {"y": forward().numpy()})}


def _layer(case: Any, data: Any) -> Any:
    options = {"num_layers": 2, "bidirectional": True} if case.stacked else {}
    kind = getattr(torch, case.dtype)
    layer = getattr(torch.nn, case.op.upper())(case.I, case.H, batch_first=True, dtype=kind, **options)
    weights = pyrnn.io.to_torch_state_dict(data.model)
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return layer


def _outputs(layer: Any, x: Any, state: Any, data: Any) -> Any:
    """Return y; ragged rows are packed and unpacked again, as a caller that has them padded must do."""
    if data.lengths is None:
        return layer(x, state)[0]
    pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    packed = pack(x, torch.from_numpy(data.lengths), batch_first=True, enforce_sorted=False)
    return pad(layer(packed, state)[0], batch_first=True, total_length=x.shape[1])[0]


def _train(case: Any, layer: Any, data: Any) -> Run:
    x = torch.from_numpy(data.x).clone().requires_grad_()
    dy = torch.from_numpy(data.dy)
    # (1, B, H), as it wants the state of its one layer; pyrnn's stacked layers are run from a zero state.
    leaves = [] if case.stacked else [torch.from_numpy(leaf)[None].clone().requires_grad_() for leaf in data.states]
    state = (tuple(leaves) if len(leaves) == 2 else leaves[0]) if leaves else None
    named = dict(layer.named_parameters())

    def call() -> Any:
        y = _outputs(layer, x, state, data)
        return y, torch.autograd.grad(y, [x, *named.values(), *leaves], dy)

    def results() -> Arrays:
        y, (dx, *rest) = call()
        grads = {name: grad.numpy() for name, grad in zip(named, rest, strict=False)}
        for name in [name for name in grads if name.startswith("bias_hh_")]:
            end = name.removeprefix("bias_hh_")
            hidden = grads.pop(name)
            grads[f"bias_{end}"] = grads.pop(f"bias_ih_{end}")
            if case.op == "gru":
                grads[f"bias_hn_{end}"] = hidden[2 * case.H :]
        starts = {f"d{leaf}0": g[0].numpy() for leaf, g in zip(data.model.leaves, rest[len(named) :], strict=False)}
        return {"y": y.detach().numpy(), "dx": dx.numpy(), **starts, **{f"d{n}": g for n, g in grads.items()}}

    return Run(call, results)


def _step_layer(layer: Any, data: Any) -> Run:
    x = torch.from_numpy(data.x)

    @torch.inference_mode()
    def step(x: Any, state: Any) -> Any:
        return layer(x, state)

    return _carried(step, x, None, lambda y: y[:, 0])


def _step_cell(case: Any, layer: Any, data: Any) -> Run:
    cell = CELLS[case.op](case.I, case.H, dtype=getattr(torch, case.dtype))
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x = torch.from_numpy(data.x[:, 0])

    @torch.inference_mode()
    def step(x: Any, state: Any) -> Any:
        state = cell(x, state)
        return (state[0] if case.op == "lstm" else state), state

    return _carried(step, x, None, lambda y: y)


def _carried(step: Any, x: Any, state: Any, rows: Any) -> Run:
    def call() -> Any:
        nonlocal state
        y, state = step(x, state)
        return y

    def results() -> Arrays:
        carried = None
        for k in STEPS:
            y, carried = step(float(k) * x, carried)
        return {"y": rows(y).numpy()}

    return Run(call, results)
