"""The basic family in plain array code: linear, layer_norm, softmax, embedding, cross_entropy.

It is the one family that every backend starts from: `Backend` derives from `BasicOps`, whose methods are written
against the backend's own array module.
"""

from __future__ import annotations

import math
from typing import Any


class BasicOps:
    """Defaults for the basic family on any array module ``xp`` with numpy's names."""

    xp: Any

    # --- linear: y = x Wᵀ + b ---

    def linear_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        y = arrays.x @ arrays.w.T
        if arrays.b is not None:
            y = y + arrays.b
        return (y,), arrays if needs else None

    def linear_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        dy, x, w = grad_outputs.y, saved.x, saved.w
        rows = math.prod(x.shape[:-1])
        rows_dy, rows_x = dy.reshape(rows, w.shape[0]), x.reshape(rows, w.shape[1])
        return type(needs)(
            x=dy @ w if needs.x else None,
            w=rows_dy.T @ rows_x if needs.w else None,
            b=rows_dy.sum(axis=0) if needs.b else None,
        )

    # --- layer_norm: y = (x - mean) / √(variance + eps) · weight + bias ---

    def layer_norm_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        # Contiguous, so that numpy adds a row up in the same order in whatever array it lies.
        x = self.xp.ascontiguousarray(arrays.x)
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = 1 / self.xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(config.eps))
        normal = centred * scale
        y = normal if arrays.weight is None else normal * arrays.weight
        if arrays.bias is not None:
            y = y + arrays.bias
        return (y,), (normal, scale, arrays.weight) if needs else None

    def layer_norm_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        normal, scale, weight = saved
        dy = grad_outputs.y
        over = tuple(range(dy.ndim - 1))
        dx = None
        if needs.x:
            d = dy if weight is None else dy * weight
            along = (d * normal).mean(axis=-1, keepdims=True)
            dx = scale * (d - d.mean(axis=-1, keepdims=True) - normal * along)
        return type(needs)(
            x=dx,
            weight=(dy * normal).sum(axis=over) if needs.weight else None,
            bias=dy.sum(axis=over) if needs.bias else None,
        )

    # --- softmax: y = e^x / Σ e^x ---

    def softmax_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        y = self._softmax(arrays.x, config.axis)
        return (y,), (y, config.axis) if needs else None

    def softmax_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        y, axis = saved
        dy = grad_outputs.y
        return type(needs)(x=y * (dy - (dy * y).sum(axis=axis, keepdims=True)))

    def _softmax(self, x: Any, axis: int) -> Any:
        xp = self.xp
        if not x.shape[axis]:
            return xp.zeros_like(x)
        weights = xp.exp(x - x.max(axis=axis, keepdims=True))
        return weights / weights.sum(axis=axis, keepdims=True)

    # --- embedding: y = weight[indices] ---

    def embedding_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        return (arrays.weight[config.indices],), (arrays.weight.shape, config.indices) if needs else None

    def embedding_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        shape, indices = saved
        grad = self.xp.zeros(shape, grad_outputs.y.dtype)
        self.xp.add.at(grad, indices, grad_outputs.y)
        return type(needs)(weight=grad)

    # --- cross_entropy: loss = log Σ e^logits - logits[target] ---

    def cross_entropy_forward(self, arrays: Any, config: Any, *, needs: Any = None) -> tuple[Any, Any]:
        xp, logits, targets, mask = self.xp, arrays.logits, config.targets, config.mask
        if mask is not None:
            logits = xp.where(mask[..., None], logits, logits.dtype.type(0))
            targets = xp.where(mask, targets, 0)
        if not logits.size:
            return (xp.zeros(logits.shape[:-1], logits.dtype),), (logits, targets, mask) if needs else None
        shifted = logits - logits.max(axis=-1, keepdims=True)
        total = xp.exp(shifted).sum(axis=-1)
        loss = xp.log(total) - xp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
        if mask is not None:
            loss = xp.where(mask, loss, loss.dtype.type(0))
        return (loss,), (logits, targets, mask) if needs else None

    def cross_entropy_backward(self, saved: Any, grad_outputs: Any, *, needs: Any) -> Any:
        xp = self.xp
        logits, targets, mask = saved
        if not logits.size:
            return type(needs)(logits=xp.zeros_like(logits))
        dloss = grad_outputs.loss
        if mask is not None:
            dloss = xp.where(mask, dloss, dloss.dtype.type(0))
        grad = self._softmax(logits, -1)
        picked = targets[..., None]
        xp.put_along_axis(grad, picked, xp.take_along_axis(grad, picked, axis=-1) - 1, axis=-1)
        return type(needs)(logits=grad * dloss[..., None])
