"""`Tensor`: an array with a tape. What it can do is in `functions`; here is what it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._checks import FLOATS, package_of, refuse_foreign
from .tape import Node, Pullback, Version, is_recording, walk


def namespace(array: Any) -> Any:
    """Return the array's module: numpy, or one with numpy's names."""
    return np if isinstance(array, np.ndarray) else sys.modules[package_of(array)]


class Tensor:
    """An array of float32 or float64 that remembers how it came to be, so that gradients can be pulled back.

    Parameters
    ----------
    data : array, or numbers for one
        Shared with the caller, not copied. Do not write to it, nor to an array that was an operand, while a
        tape holds it.
    requires_grad : bool
        Whether `backward` is to leave a gradient in `grad`.

    Attributes
    ----------
    grad : array or None
        Filled, and added to, by `backward`.
    """

    __slots__ = ("__weakref__", "_array", "grad", "node", "output", "requires_grad", "version")
    __array_ufunc__ = None  # numpy_array + tensor comes to Tensor.__radd__ and keeps the tape

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("data: expected an array, got a Tensor; use .detach() to cut it off its tape")
        refuse_foreign("data", data)
        array = data if hasattr(data, "__array_namespace__") or hasattr(data, "dtype") else np.asarray(data)
        if isinstance(array, np.generic):
            array = np.asarray(array)
        if array.dtype not in FLOATS:
            raise TypeError(f"data: expected float32 or float64, got {array.dtype}; cast with .astype(numpy.float32)")
        self._array = array
        self.requires_grad = bool(requires_grad)
        self.grad: Any = None
        self.node: Node | None = None
        self.output = 0
        self.version = Version()

    # --- the array ------------------------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """The array, read-only: a write that the tape can't see would make gradients wrong. See `write`."""
        view = self._array[...]
        if isinstance(view, np.ndarray):
            view.flags.writeable = False
        return view

    def write(self) -> Any:
        """Return the array to be written to. A tape that saved it before raises in its backward."""
        self.version.count += 1
        return self._array

    def numpy(self) -> Any:
        """Return the array, read-only; TypeError where a tape would be lost."""
        return np.asarray(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.requires_grad:
            raise TypeError(
                "this Tensor needs a gradient, and an array would drop its tape; use the functions of "
                "pyrnn.autograd.functions (concatenate, where, ...), or .detach() first"
            )
        return np.array(self.data, dtype=dtype, copy=copy)

    shape = property(lambda self: self._array.shape)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    dtype = property(lambda self: self._array.dtype)

    def item(self) -> float:
        """Return the one element as a Python float."""
        return float(self._array.item())

    def __float__(self) -> float:
        return self.item()

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self._array!r}{grad})"

    def __copy__(self) -> Tensor:
        if self.node is not None:
            raise TypeError("a Tensor with a tape can't be copied or pickled; use .detach() first")
        return type(self)(self._array.copy(), self.requires_grad)

    def __reduce__(self) -> Any:
        if self.node is not None:
            raise TypeError("a Tensor with a tape can't be copied or pickled; use .detach() first")
        return type(self), (self._array, self.requires_grad)

    # --- the tape -------------------------------------------------------------------------------------------

    def backward(self, grad: Any = None, retain_graph: bool = False) -> None:
        """Pull a gradient back to every leaf that requires one, adding to its `grad`.

        Parameters
        ----------
        grad : array like this, optional
            The gradient at this Tensor; 1 by default, which asks for a single element.
        retain_graph : bool
            Keep the tape, so that backward can run again.

        Raises
        ------
        RuntimeError
            There is no tape, it was freed, or an array that it saved has been written to.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor has no tape; nothing it was made of requires a gradient")
        if grad is None:
            if self.size != 1:
                raise ValueError(f"grad: expected an array of shape {self.shape}, got None; None is for one element")
            grad = namespace(self._array).ones_like(self._array)
        else:
            grad = grad.data if isinstance(grad, Tensor) else grad
            if getattr(grad, "shape", None) != self.shape or grad.dtype != self.dtype:
                came = f"{getattr(grad, 'dtype', type(grad).__name__)} of shape {getattr(grad, 'shape', ())}"
                raise ValueError(f"grad: expected {self.dtype} of shape {self.shape}, got {came}")
        walk(self, grad, retain_graph)

    def accumulate(self, gradient: Any) -> None:
        """Add to `grad`; what is kept there is an array of its own, since pullbacks may give one to several."""
        total = gradient if self.grad is None else self.grad + gradient
        self.grad = namespace(self._array).array(total)

    def detach(self) -> Tensor:
        """Return a Tensor on the same memory, cut off the tape."""
        result = Tensor(self._array)
        result.version = self.version
        return result

    # --- arithmetic: see `functions` ------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return functions.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return functions.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return functions.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return functions.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return functions.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return functions.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return functions.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return functions.divide(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return functions.power(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return functions.power(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return functions.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return functions.matmul(other, self)

    def __neg__(self) -> Tensor:
        return functions.negative(self)

    def __abs__(self) -> Tensor:
        return functions.abs(self)

    # Comparisons are not differentiable and give arrays of booleans.

    def __lt__(self, other: Any) -> Any:
        return self.data < _value(other)

    def __le__(self, other: Any) -> Any:
        return self.data <= _value(other)

    def __gt__(self, other: Any) -> Any:
        return self.data > _value(other)

    def __ge__(self, other: Any) -> Any:
        return self.data >= _value(other)

    def __eq__(self, other: object) -> Any:
        return self.data == _value(other)

    def __ne__(self, other: object) -> Any:
        return self.data != _value(other)

    __hash__ = object.__hash__

    # --- indexing, shapes, reductions -----------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Tensor:
        return functions.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.requires_grad and is_recording():
            raise RuntimeError(
                "this Tensor needs a gradient and can't be written to on the tape; write under pyrnn.no_grad()"
            )
        if isinstance(value, Tensor) and value.requires_grad and is_recording():
            raise RuntimeError(
                "the value needs a gradient, and writing it here would drop its tape; use .detach() first"
            )
        self._array[index] = _value(value)
        self.version.count += 1

    def reshape(self, *shape: Any) -> Tensor:
        """Return the elements in another shape."""
        return functions.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Tensor:
        """Return the axes in another order; reversed by default."""
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        return functions.transpose(self, order or None)

    def swapaxes(self, first: int, second: int) -> Tensor:
        """Return the Tensor with two axes exchanged."""
        return functions.swapaxes(self, first, second)

    T = property(lambda self: functions.transpose(self, None))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Add up over the axes, all by default."""
        return functions.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Average over the axes, all by default."""
        return functions.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Return the largest element; equals share the gradient."""
        return functions.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Return the smallest element; equals share the gradient."""
        return functions.min(self, axis, keepdims)

    def exp(self) -> Tensor:
        """Return e to the power of each element."""
        return functions.exp(self)

    def log(self) -> Tensor:
        """Return the natural logarithm of each element."""
        return functions.log(self)

    def sqrt(self) -> Tensor:
        """Return the square root of each element."""
        return functions.sqrt(self)

    def tanh(self) -> Tensor:
        """Return the hyperbolic tangent of each element."""
        return functions.tanh(self)

    def sigmoid(self) -> Tensor:
        """Return the logistic function of each element."""
        return functions.sigmoid(self)

    def relu(self) -> Tensor:
        """Return each element, or 0 where it is negative."""
        return functions.relu(self)


def _value(operand: Any) -> Any:
    return operand.data if isinstance(operand, Tensor) else operand


def record(
    name: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Any],
    pullback: Pullback,
    view_of: Tensor | None = None,
) -> list[Tensor]:
    """Wrap an operation's output arrays in Tensors whose tape leads to its inputs.

    Parameters
    ----------
    name
        What messages call it.
    inputs
        Its Tensors; None for what is no Tensor.
    outputs
        Its output arrays.
    pullback
        Takes one gradient per output (None for zero), gives one per input.
    view_of
        The input whose memory the output shares, if it does.
    """
    node = Node(name, [t if t is not None and t.requires_grad else None for t in inputs], len(outputs), pullback)
    tensors = []
    for number, output in enumerate(outputs):
        tensor = Tensor(output, requires_grad=True)
        tensor.node, tensor.output = node, number
        if view_of is not None:
            tensor.version = view_of.version
        tensors.append(tensor)
    for saved in (*inputs, *tensors):
        if saved is not None:
            node.stamp(saved)
    return tensors


def _map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply a function to every Tensor of nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        return {key: _map(function, part) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        parts = [_map(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree) if isinstance(tree, Tensor) else tree


def detach(state: Any) -> Any:
    """Cut a state off its tape, as truncated back-propagation through time does between chunks.

    Parameters
    ----------
    state
        Nested tuples (lists, dicts) of Tensors and arrays.

    Returns
    -------
    state
        The same with every Tensor detached; the numbers are shared, not copied.
    """
    return _map(Tensor.detach, state)


def to_arrays(state: Any) -> Any:
    """Return the same nested tuples, lists and dicts with the array in place of every Tensor, its tape dropped."""
    return _map(lambda tensor: tensor._array, state)


from . import functions  # noqa: E402  (they are written in terms of Tensor)
