"""Schedules: each is a formula for the learning rate after so many steps, and sets it on an optimiser.

With ``warmup_steps=w`` the first w steps rise linearly, 1/(w+1), 2/(w+1), ... of the optimiser's own rate; step w
has all of it, and the formula counts from there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from .._checks import check_count, check_number, compare_state, refuse_misfits
from .optimizers import Optimizer


class LRScheduler:
    """Base class: sets the learning rate of an optimiser at once and after each `step`.

    Parameters
    ----------
    optimizer : Optimizer
        Its ``lr`` as it is now is the highest rate.
    warmup_steps : int
        How many steps the rate takes to rise to it.
    **numbers
        A subclass's own numbers, which become attributes.

    Attributes
    ----------
    last_step : int
        How often `step` was called.
    base_lr : float
        The highest rate.
    """

    hyper: ClassVar[tuple[str, ...]] = ("base_lr", "warmup_steps")  # the numbers of the formula
    base_lr: float
    warmup_steps: int

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int = 0, **numbers: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        vars(self).update(self._checked({"base_lr": optimizer.lr, "warmup_steps": warmup_steps, **numbers}))
        self.last_step = 0
        optimizer.lr = self.rate(0)

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers as they are kept, or raise naming one; a subclass checks its own."""
        return {
            **numbers,
            "base_lr": check_number("base_lr", numbers["base_lr"]),
            "warmup_steps": check_count("warmup_steps", numbers["warmup_steps"], 0),
        }

    def rate(self, step: int) -> float:
        """Return the learning rate of the step with this number, the first being 0."""
        if step < self.warmup_steps:
            return self.base_lr * (step + 1) / (self.warmup_steps + 1)
        return self._rate(step - self.warmup_steps)

    def _rate(self, step: int) -> float:
        """Return the rate so many steps after the warm-up."""
        raise NotImplementedError

    def step(self) -> None:
        """Set the optimiser's learning rate for its next step; call it after ``optimizer.step()``."""
        self.last_step += 1
        self.optimizer.lr = self.rate(self.last_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers that a run is resumed with."""
        return {name: getattr(self, name) for name in ("last_step", *self.hyper)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where the schedule that gave this state_dict stood, its numbers included; set the optimiser's rate.

        Raises
        ------
        TypeError, ValueError
            An entry is missing, unexpected or out of its domain; the message names it, and nothing is loaded.
        OverflowError
            The rate would be more than a float holds; nothing is loaded.
        """
        refuse_misfits("state_dict", self, compare_state(state_dict, dict.fromkeys(self.state_dict())))
        numbers = self._checked({name: state_dict[name] for name in self.hyper})
        numbers["last_step"] = check_count("last_step", state_dict["last_step"], 0)
        trial = copy.copy(self)
        vars(trial).update(numbers)
        rate = trial.rate(trial.last_step)  # which may be more than a float holds
        vars(self).update(numbers)
        self.optimizer.lr = rate


class StepLR(LRScheduler):
    """Multiply the learning rate by ``gamma`` every ``step_size`` steps.

    Parameters
    ----------
    optimizer, warmup_steps
        As in `LRScheduler`.
    step_size : int
    gamma : float
    """

    hyper = ("base_lr", "warmup_steps", "step_size", "gamma")
    step_size: int
    gamma: float

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, *, warmup_steps: int = 0) -> None:
        super().__init__(optimizer, warmup_steps=warmup_steps, step_size=step_size, gamma=gamma)

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            **super()._checked(numbers),
            "step_size": check_count("step_size", numbers["step_size"]),
            "gamma": check_number("gamma", numbers["gamma"]),
        }

    def _rate(self, step: int) -> float:
        return self.base_lr * self.gamma ** (step // self.step_size)


class CosineAnnealingLR(LRScheduler):
    """Let the learning rate fall along half a cosine to ``eta_min``, where it stays.

    Parameters
    ----------
    optimizer, warmup_steps
        As in `LRScheduler`.
    total_steps : int
        The step, warm-up included, that has reached ``eta_min``.
    eta_min : float

    References
    ----------
    Loshchilov, Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts".
    """

    hyper = ("base_lr", "warmup_steps", "total_steps", "eta_min")
    total_steps: int
    eta_min: float

    def __init__(self, optimizer: Optimizer, total_steps: int, eta_min: float = 0.0, *, warmup_steps: int = 0) -> None:
        super().__init__(optimizer, warmup_steps=warmup_steps, total_steps=total_steps, eta_min=eta_min)

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        checked = super()._checked(numbers)
        checked["total_steps"] = total = check_count("total_steps", numbers["total_steps"])
        checked["eta_min"] = check_number("eta_min", numbers["eta_min"])
        if checked["warmup_steps"] >= total:
            raise ValueError(f"warmup_steps: expected fewer than total_steps = {total}, got {checked['warmup_steps']}")
        return checked

    def _rate(self, step: int) -> float:
        done = min(step / (self.total_steps - self.warmup_steps), 1.0)
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + math.cos(math.pi * done)) / 2
