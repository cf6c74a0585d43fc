"""Training: what updates parameters, bounds gradients and moves the learning rate.

- `optimizers`: `SGD`, `Adam`, `AdamW` on their base `Optimizer`.
- `clipping`: `clip_grad_norm_`, `clip_grad_value_`.
- `schedules`: `StepLR`, `CosineAnnealingLR` on their base `LRScheduler`, with warm-up.
"""

from __future__ import annotations

from .clipping import clip_grad_norm_, clip_grad_value_
from .optimizers import SGD, Adam, AdamW, Optimizer
from .schedules import CosineAnnealingLR, LRScheduler, StepLR

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LRScheduler",
    "Optimizer",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]
