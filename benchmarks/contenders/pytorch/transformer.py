"""A decoder-only Transformer in PyTorch, token by token, its keys and values in a cache that is written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from ...cases.models import TURN


class DecoderLayer(nn.Module):
    """One layer: attention to the cache and the token itself, then the feed-forward part, each behind its norm."""

    def __init__(self, weights: dict[str, Tensor], heads: int, room: int) -> None:
        super().__init__()
        self.w_in, self.b_in = weights["self_attn.in_proj_weight"], weights["self_attn.in_proj_bias"]
        self.w_out, self.b_out = weights["self_attn.out_proj.weight"], weights["self_attn.out_proj.bias"]
        self.w1, self.b1 = weights["linear1.weight"], weights["linear1.bias"]
        self.w2, self.b2 = weights["linear2.weight"], weights["linear2.bias"]
        self.scale1, self.shift1 = weights["norm1.weight"], weights["norm1.bias"]
        self.scale2, self.shift2 = weights["norm2.weight"], weights["norm2.bias"]
        self.heads, self.C = heads, len(self.b2)
        self.keys = torch.zeros(1, heads, room, self.C // heads, dtype=self.b2.dtype)
        self.values = torch.zeros_like(self.keys)

    def forward(self, x: Tensor, at: int) -> Tensor:
        inside = layer_norm(x, [self.C], self.scale1, self.shift1)
        q, k, v = linear(inside, self.w_in, self.b_in).view(3, self.heads, 1, -1).unbind(0)
        self.keys[0, :, at : at + 1] = k
        self.values[0, :, at : at + 1] = v
        y = scaled_dot_product_attention(q[None], self.keys[:, :, : at + 1], self.values[:, :, : at + 1])
        x = x + linear(y.view(1, self.C), self.w_out, self.b_out)
        inside = torch.relu_(linear(layer_norm(x, [self.C], self.scale2, self.shift2), self.w1, self.b1))
        return x + linear(inside, self.w2, self.b2)


class Decoder(nn.Module):
    """The layers and the norm of a pyrnn `Transformer` that has read ``past``, (1, N, C).

    After `TURN` tokens it goes back to the end of those.
    """

    def __init__(self, model: Any, heads: int, past: Any) -> None:
        super().__init__()
        weights = {name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()}
        self.start, self.C = past.shape[1], past.shape[2]
        self.end = self.start + TURN
        inner: list[dict[str, Tensor]] = [{} for _ in model.layers]
        for name, array in weights.items():
            if name.startswith("layers."):
                _, layer, parameter = name.split(".", 2)
                inner[int(layer)][parameter] = array
        self.layers = nn.ModuleList([DecoderLayer(part, heads, self.end) for part in inner])
        self.scale, self.shift = weights["norm.weight"], weights["norm.bias"]
        self.at = 0
        with torch.inference_mode():
            for token in torch.from_numpy(past[0]):
                self.forward(token[None])

    def forward(self, x: Tensor) -> Tensor:
        if self.at == self.end:
            self.at = self.start
        for layer in self.layers:
            x = layer(x, self.at)
        self.at += 1
        return layer_norm(x, [self.C], self.scale, self.shift)

    @torch.jit.export
    def reset(self) -> None:
        self.at = self.start
