"""Attention in PyTorch: ``scaled_dot_product_attention``, for a window and for one token also what may be faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from ...cases.attention import WINDOW
from .. import Arrays, Run, Runs, quickest


def prepare_torch(case: Any, data: Any, threads: int) -> Runs:
    """Return the fastest of its ways."""
    torch.set_num_threads(threads)
    q, k, v, dy = map(torch.from_numpy, (data.q, data.k, data.v, data.dy))
    if case.mode == "decode":  # a token attends to all that is left
        k, v = (a[:, :, case.N - case.keys_read :] for a in (k, v))
    forms = _forms(case)
    make = _train if case.trains else _forward
    return {"torch": quickest({name: lambda f=f: make(f, q, k, v, dy) for name, f in forms.items()})}


def _forms(case: Any) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Return functions of q, k and v that give y."""
    group = case.Hq // case.Hkv
    options: dict[str, Any] = {"is_causal": True} if case.op == "causal" and case.mode != "decode" else {}
    if case.op == "window" and case.mode != "decode":
        options = {"attn_mask": torch.from_numpy(case.mask)}

    def fused(q: Any, k: Any, v: Any) -> Any:
        return scaled_dot_product_attention(q, k, v, enable_gqa=group > 1, **options)

    def repeated(q: Any, k: Any, v: Any) -> Any:
        k, v = (a.repeat_interleave(group, 1) for a in (k, v))
        return scaled_dot_product_attention(q, k, v, **options)

    def products(q: Any, k: Any, v: Any) -> Any:
        shared = q.reshape(case.B, case.Hkv, group * case.queries, case.D)  # the queries of a head of keys
        weights = torch.softmax(torch.matmul(shared, k.transpose(2, 3)) * case.D**-0.5, -1)
        return torch.matmul(weights, v).view(q.shape)

    def blocks(q: Any, k: Any, v: Any) -> Any:
        k, v = (a.repeat_interleave(group, 1) if group > 1 else a for a in (k, v))
        return _blocks(q, k, v)

    forms = {"fused": fused}
    if group > 1:
        forms["repeated"] = repeated
    if case.mode == "decode":
        forms["products"] = products
    elif case.op == "window" and case.N > WINDOW:
        forms["blocks"] = blocks
    return forms


def _blocks(q: Any, k: Any, v: Any) -> Any:
    """Attend in blocks of queries, each to its own block of keys and the one before: work linear in N."""
    B, heads, N, D = q.shape
    count = -(-N // WINDOW)
    after = count * WINDOW - N
    shape = (B * heads, count, WINDOW, D)
    queries = pad(q, (0, 0, 0, after)).reshape(shape)
    earlier, own = {}, {}
    for name, a in (("k", k), ("v", v)):
        all_blocks = pad(a, (0, 0, WINDOW, after)).reshape(B * heads, count + 1, WINDOW, D)
        earlier[name], own[name] = all_blocks[:, :-1], all_blocks[:, 1:]
    keys, values = (torch.cat([earlier[name], own[name]], 2) for name in "kv")
    before = WINDOW + torch.arange(WINDOW)[:, None] - torch.arange(2 * WINDOW)
    seen = ((before >= 0) & (before < WINDOW)).repeat(1, count, 1, 1)
    seen[:, 0, :, :WINDOW] = False  # there is nothing before the first
    y = scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
    return y.reshape(B, heads, count * WINDOW, D)[:, :, :N]


def _forward(function: Callable[[Any, Any, Any], Any], q: Any, k: Any, v: Any, dy: Any) -> Run:
    @torch.inference_mode()
    def call() -> Any:
        return function(q, k, v)

    return Run(call, lambda: {"y": call().numpy()})


def _train(function: Callable[[Any, Any, Any], Any], q: Any, k: Any, v: Any, dy: Any) -> Run:
    leaves = [a.clone().requires_grad_() for a in (q, k, v)]

    def call() -> Any:
        y = function(*leaves)
        return y, torch.autograd.grad(y, leaves, dy)

    def results() -> Arrays:
        y, grads = call()
        return {"y": y.detach().numpy(), **{n: g.numpy() for n, g in zip(("dq", "dk", "dv"), grads, strict=True)}}

    return Run(call, results)
