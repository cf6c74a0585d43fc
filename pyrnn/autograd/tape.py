"""The tape: nodes that remember how to pull gradients back, and the walk over them.

Every recorded operation is a `Node` with a serial number. An operation comes after those that made its inputs,
so the walk takes the nodes reached from the root in falling order of these numbers: a loop, no recursion. A node
is freed as soon as it has been used, unless the caller retains the graph.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tensor import Tensor

_recording: ContextVar[bool] = ContextVar("pyrnn_recording", default=True)
_serials = itertools.count()
_leaves_lock = threading.Lock()

Pullback = Callable[[Sequence[Any]], Sequence[Any]]


def is_recording() -> bool:
    """Tell whether operations on Tensors are being recorded here."""
    return _recording.get()


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside the ``with`` block; also a decorator of plain functions.

    It holds in this thread (a ContextVar). A generator that is left inside of the block leaves it on.
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Version:
    """Counts the writes to an array; shared by all Tensors on the same memory."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Node:
    """One recorded operation.

    ``pullback`` takes one gradient per output (None for zero) and gives one per input (None where there is
    none). ``stamps`` are the versions of inputs and outputs as they were when it was recorded.
    """

    __slots__ = ("inputs", "name", "outputs", "pullback", "serial", "stamps")

    def __init__(self, name: str, inputs: Sequence[Tensor | None], outputs: int, pullback: Pullback) -> None:
        self.serial = next(_serials)
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.pullback: Pullback | None = pullback
        self.stamps: list[tuple[Version, int]] = []

    def stamp(self, tensor: Tensor) -> None:
        """Remember the version of a tensor whose content the pullback may read."""
        self.stamps.append((tensor.version, tensor.version.count))

    def check(self) -> None:
        """Raise RuntimeError where this node was freed, or would compute with overwritten arrays."""
        if self.pullback is None:
            raise RuntimeError(
                f"backward: the tape of {self.name!r} was used and freed; "
                "a state that is carried on is to be cut off it with pyrnn.detach(state); to run backward twice, call "
                "backward(retain_graph=True) the first time"
            )
        if any(version.count != count for version, count in self.stamps):
            raise RuntimeError(
                f"backward: an array that {self.name!r} saved was written after the forward; "
                "write after backward, or run the forward again"
            )

    def free(self) -> None:
        """Let go of the pullback and all that it holds."""
        self.pullback, self.inputs, self.stamps = None, (), []


def walk(root: Tensor, grad: Any, retain_graph: bool) -> None:
    """Pull ``grad`` back from ``root`` to the leaves, adding to their ``grad``."""
    leaves: dict[int, tuple[Tensor, Any]] = {}
    pending: dict[Node, dict[int, Any]] = {}  # node -> gradient by output number

    def deliver(tensor: Tensor, gradient: Any) -> None:
        if tensor.node is not None:
            slots = pending.setdefault(tensor.node, {})
            known = slots.get(tensor.output)
            slots[tensor.output] = gradient if known is None else known + gradient
        elif tensor.requires_grad:
            known = leaves.get(id(tensor))
            leaves[id(tensor)] = (tensor, gradient if known is None else known[1] + gradient)

    nodes = _reachable(root)
    for node in nodes:
        node.check()
    deliver(root, grad)
    for node in nodes:
        slots = pending.pop(node, None)
        if slots is not None and node.pullback is not None:
            gradients = node.pullback([slots.get(i) for i in range(node.outputs)])
            for tensor, gradient in zip(node.inputs, gradients, strict=True):
                if tensor is not None and gradient is not None:
                    deliver(tensor, gradient)
        if not retain_graph:
            node.free()
    with _leaves_lock:  # several threads may run backward on the same parameters
        for tensor, gradient in leaves.values():
            tensor.accumulate(gradient)


def _reachable(root: Tensor) -> list[Node]:
    """Return the nodes that made ``root``, latest first."""
    found: set[Node] = set()
    stack = [root.node]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(tensor.node for tensor in node.inputs if tensor is not None)
    return sorted(found, key=lambda node: node.serial, reverse=True)
