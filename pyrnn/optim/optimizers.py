"""Optimisers, by PyTorch's definitions and with its defaults. They write parameters in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .._checks import check_count, check_flag, check_number, compare_state, refuse_misfits, refuse_other_device
from ..autograd import Tensor
from ..autograd.tensor import namespace
from ..backend import choose_updates
from ..reference.update import UpdateOps
from ._checks import check_parameters


class Optimizer:
    """Base class: `step` updates each parameter that has a gradient.

    Parameters
    ----------
    params : iterable of Parameter
        As ``model.parameters()`` gives them.
    lr : float
        The learning rate. It is an attribute that may be set at any time; schedules do.
    **numbers
        A subclass's other hyper-parameters, which become attributes.

    Raises
    ------
    TypeError, ValueError
        A parameter of the wrong kind or given twice, none at all, or a number out of its domain.
    """

    hyper: ClassVar[tuple[str, ...]] = ("lr",)  # attributes with the numbers that a run is resumed with
    lr: float

    def __init__(self, params: Iterable[Tensor], lr: float, **numbers: Any) -> None:
        self.params = check_parameters("params", params)
        if not self.params:
            raise ValueError("params: expected at least one Parameter, got none; was the iterator used up before?")
        first: dict[int, int] = {}
        for index, parameter in enumerate(self.params):
            if parameter.node is not None:
                raise ValueError(f"params[{index}]: expected a Parameter, got a Tensor that was computed")
            if first.setdefault(id(parameter), index) != index:
                raise ValueError(f"params[{index}]: the same Parameter as params[{first[id(parameter)]}]")
        vars(self).update(self._checked({"lr": lr, **numbers}))
        self._steps = [0] * len(self.params)
        # One array like the parameter for each name and parameter, in the parameter's dtype.
        self._state: list[dict[str, Any]] = [{} for _ in self.params]

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return the hyper-parameters as they are kept, or raise naming one; those of a state_dict too."""
        return {name: check_number(name, value) for name, value in numbers.items()}

    def _add_state(self, *names: str) -> None:
        for state, parameter in zip(self._state, self.params, strict=True):
            state.update({name: namespace(parameter.data).zeros_like(parameter.data) for name in names})

    def step(self) -> None:
        """Update each parameter by its gradient; one without a gradient stays as it is.

        A tape that saved the parameter raises in its backward from then on.
        """
        for index, parameter in enumerate(self.params):
            if parameter.grad is not None:
                self._steps[index] += 1
                array = parameter.write()
                xp, state = namespace(array), self._state[index]
                for name, kept in state.items():
                    refuse_other_device(f"{name} of params[{index}], made before the model was moved", kept, xp)
                updates = choose_updates(array, getattr(parameter, "backend", None))
                self._update(updates, array, parameter.grad, state, self._steps[index])

    def _update(self, updates: UpdateOps, array: Any, grad: Any, state: dict[str, Any], step: int) -> None:
        """Update one array, and its state, in place; ``step`` is 1 the first time."""
        raise NotImplementedError

    def _numbers(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.hyper}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.params:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to be resumed to the same bits.

        Returns
        -------
        dict
            The hyper-parameters by name (numbers), and for the parameter at place i ``"{i}.step"`` (a whole
            number) and ``"{i}.{name}"`` (copies of arrays).
        """
        result = self._numbers()
        for index, state in enumerate(self._state):
            result[f"{index}.step"] = self._steps[index]
            result.update({f"{index}.{name}": array.copy() for name, array in state.items()})
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where the optimiser that gave this state_dict stood, hyper-parameters included.

        Raises
        ------
        TypeError, ValueError
            An entry is missing, unexpected, or of another shape or dtype (the message names every one of
            them), or a number is out of its domain. Nothing is loaded then.
        """
        arrays = {f"{index}.{name}": array for index, state in enumerate(self._state) for name, array in state.items()}
        counts = [f"{index}.step" for index in range(len(self.params))]
        wanted = {**dict.fromkeys([*self.hyper, *counts]), **arrays}
        refuse_misfits("state_dict", self, compare_state(state_dict, wanted))
        numbers = self._checked({name: state_dict[name] for name in self.hyper})
        steps = [check_count(name, state_dict[name], 0) for name in counts]
        values = [namespace(array).asarray(state_dict[name]) for name, array in arrays.items()]
        vars(self).update(numbers)
        self._steps = steps
        for array, value in zip(arrays.values(), values, strict=True):
            array[...] = value

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyper)
        return f"{type(self).__name__}({len(self.params)} parameters, {numbers})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum where it is asked for.

    Parameters
    ----------
    params, lr
        As in `Optimizer`.
    momentum : float
        What is kept of the velocity at each step.
    weight_decay : float
        Times the parameter, added to its gradient.
    nesterov : bool
        Nesterov's momentum, which needs one.

    References
    ----------
    Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization and momentum in deep
    learning".
    """

    hyper = ("lr", "momentum", "weight_decay", "nesterov")
    momentum: float
    weight_decay: float
    nesterov: bool

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        if self.momentum:
            self._add_state("momentum_buffer")

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        nesterov = check_flag("nesterov", numbers["nesterov"])
        checked = super()._checked({name: value for name, value in numbers.items() if name != "nesterov"})
        if nesterov and not checked["momentum"]:
            raise ValueError("nesterov: expected a momentum with it, got momentum=0")
        return {**checked, "nesterov": nesterov}

    def _update(self, updates: UpdateOps, array: Any, grad: Any, state: dict[str, Any], step: int) -> None:
        velocity = state["momentum_buffer"] if self.momentum else None
        updates.sgd_update(array, grad, velocity, **self._numbers())


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    Parameters
    ----------
    params, lr
        As in `Optimizer`.
    betas : (float, float)
        What is kept of the two means at each step; as attributes ``beta1`` and ``beta2``.
    eps : float
        Added to the root of the second.
    weight_decay : float
        Times the parameter, added to its gradient. `AdamW` decays otherwise, and mostly better.

    References
    ----------
    Kingma, Ba (2015), "Adam: A Method for Stochastic Optimization".
    """

    hyper = ("lr", "beta1", "beta2", "eps", "weight_decay")
    decoupled: ClassVar[bool] = False  # the weight decay, from the gradient
    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if len(betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        super().__init__(params, lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)
        self._add_state("exp_avg", "exp_avg_sq")

    def _checked(self, numbers: dict[str, Any]) -> dict[str, Any]:
        betas = {name: check_number(name, numbers[name], below=1) for name in ("beta1", "beta2")}
        return {**super()._checked(numbers), **betas}

    def _update(self, updates: UpdateOps, array: Any, grad: Any, state: dict[str, Any], step: int) -> None:
        updates.adam_update(array, grad, **state, **self._numbers(), decoupled=self.decoupled, step=step)


class AdamW(Adam):
    """Adam with the weight decay apart from the gradient: each step first shrinks the parameter by lr times it.

    Parameters
    ----------
    params, lr, betas, eps
        As in `Adam`.
    weight_decay : float
        0.01 by default.

    References
    ----------
    Loshchilov, Hutter (2019), "Decoupled Weight Decay Regularization".
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
