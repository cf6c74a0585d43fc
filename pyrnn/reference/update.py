"""The optimisers' updates in plain array code: what is done to a parameter at each step; and the factors of dropout.

They are no ops, as they write in place or have no gradient, but a backend may have faster ones: like the basic family
they are defaults that every backend starts from. Element by element, with g the gradient and w the parameter:

(a) SGD: g ← g + weight_decay·w; with momentum μ: v ← μ·v + g, and g ← g + μ·v (Nesterov) or v; w ← w - lr·g.
(b) Adam at step t: g ← g + weight_decay·w, or, decoupled, w ← w·(1 - lr·weight_decay);
    m ← β₁·m + (1 - β₁)·g; v ← β₂·v + (1 - β₂)·g²; w ← w - lr/(1 - β₁ᵗ)·m / (√v / √(1 - β₂ᵗ) + eps).

The factors of a whole array, such as lr/(1 - β₁ᵗ), are computed in float64 and rounded to the array's precision once.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class UpdateOps:
    """Defaults for arrays of any module with numpy's arithmetic; each writes to ``array`` and to its state."""

    def sgd_update(
        self,
        array: Any,
        grad: Any,
        momentum_buffer: Any = None,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """Take a step of SGD; ``momentum_buffer`` is None where there is no momentum."""
        if weight_decay:
            grad = grad + weight_decay * array
        if momentum_buffer is not None:
            momentum_buffer *= momentum
            momentum_buffer += grad
            grad = grad + momentum * momentum_buffer if nesterov else momentum_buffer
        array -= lr * grad

    def adam_update(
        self,
        array: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
        step: int,
    ) -> None:
        """Take a step of Adam, of AdamW where the weight decay is ``decoupled``; ``step`` is 1 the first time."""
        if weight_decay and decoupled:
            array *= 1 - lr * weight_decay
        elif weight_decay:
            grad = grad + weight_decay * array
        exp_avg *= beta1
        exp_avg += (1 - beta1) * grad
        exp_avg_sq *= beta2
        exp_avg_sq += (1 - beta2) * grad * grad
        scale = exp_avg_sq**0.5
        scale /= (1 - beta2**step) ** 0.5
        scale += eps
        array -= lr / (1 - beta1**step) * exp_avg / scale

    def dropout_factors(
        self, shape: tuple[int, ...], dtype: Any, p: float, generator: np.random.Generator, xp: Any = np
    ) -> Any:
        """Return an array of ``xp``: 0 with probability p, and else 1 / (1 - p).

        It is drawn on the host, so that a seed drops the same elements on all backends that leave this to the default.
        """
        keep = generator.random(shape, dtype) >= p
        return xp.asarray(keep * dtype.type(0 if p == 1 else 1 / (1 - p)))
