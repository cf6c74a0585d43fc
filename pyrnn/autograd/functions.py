"""The array operations on Tensors, written once against the array's own module.

Each gives its result and, for each operand, the function that pulls the result's gradient back to it. Operands
may be Tensors, arrays of the same dtype, arrays of booleans, or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._checks import refuse_other_device, type_name
from .tape import is_recording
from .tensor import Tensor, namespace, record

Pull = Callable[[Any], Any]

_ROOT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_ERFC_SERIES = (
    -0.6513268598908547, 6.4196979235649026e-1, 1.9476473204185836e-2, -9.561514786808631e-3, -9.46595344482036e-4,
    3.66839497852761e-4, 4.2523324806907e-5, -2.0278578112534e-5, -1.624290004647e-6, 1.303655835580e-6,
    1.5626441722e-8, -8.5238095915e-8, 6.529054439e-9, 5.059343495e-9, -9.91364156e-10, -2.27365122e-10,
    9.6467911e-11, 2.394038e-12, -6.886027e-12, 8.94487e-13, 3.13092e-13, -1.12708e-13, 3.81e-16, 7.106e-15,
    -1.523e-15, -9.4e-17, 1.21e-16, -2.8e-17,
)  # fmt: skip
# By the size of a number: as many terms as its precision asks for, as a polynomial.
_ERFC = {
    4: tuple(map(float, np.polynomial.chebyshev.cheb2poly(_ERFC_SERIES[:12]))),
    8: tuple(map(float, np.polynomial.chebyshev.cheb2poly(_ERFC_SERIES))),
}


def _values(*operands: Any) -> list[Any]:
    """Return the operands' arrays and numbers; mixed dtypes are a TypeError, since nothing is promoted here."""
    dtype = next((operand.dtype for operand in operands if isinstance(operand, Tensor)), None)
    values: list[Any] = []
    on_host = None
    for operand in operands:
        if isinstance(operand, (bool, int, float, np.integer, np.floating, np.bool_)):
            values.append(float(operand))
            continue
        value = operand.data if isinstance(operand, Tensor) else operand
        given = getattr(value, "dtype", None)
        if given is None:
            raise TypeError(f"expected a Tensor, an array or a number, got {type(operand).__name__}")
        if dtype is not None and given not in (dtype, np.bool_):
            raise TypeError(f"expected {dtype} like the other operand, got {given}; cast with .astype(numpy.{dtype})")
        if on_host is None:
            on_host = isinstance(value, np.ndarray)
        elif on_host is not isinstance(value, np.ndarray):
            kinds = " and ".join(sorted(type_name(array) for array in (*values, value) if hasattr(array, "dtype")))
            raise TypeError(f"expected operands on one device, got {kinds}; copy one with cupy.asarray(...) or .get()")
        values.append(value)
    return values


def _memory(a: Any) -> Any:
    """Return the array itself, of which a view may be written to as it may."""
    return a._array if isinstance(a, Tensor) else _values(a)[0]


def _apply(name: str, result: Any, *operands: tuple[Any, Pull], view_of: Tensor | None = None) -> Tensor:
    """Wrap ``result`` with a tape that leads to each operand by its own pull."""
    inputs = [operand if isinstance(operand, Tensor) else None for operand, _ in operands]
    if not (is_recording() and any(tensor is not None and tensor.requires_grad for tensor in inputs)):
        plain = Tensor(result)
        if view_of is not None:
            plain.version = view_of.version
        return plain

    def pullback(grads: Sequence[Any]) -> list[Any]:
        return [
            _unbroadcast(pull(grads[0]), tensor.shape) if tensor is not None and tensor.requires_grad else None
            for tensor, (_, pull) in zip(inputs, operands, strict=True)
        ]

    return record(name, inputs, [result], pullback, view_of)[0]


def _unbroadcast(grad: Any, shape: tuple[int, ...]) -> Any:
    """Add a gradient up over the axes along which its operand was broadcast."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(extra)))
    stretched = tuple(i for i, size in enumerate(shape) if size == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True) if stretched else grad


# --- arithmetic ---------------------------------------------------------------------------------------------


def add(a: Any, b: Any) -> Tensor:
    """Return a + b."""
    x, y = _values(a, b)
    return _apply("add", x + y, (a, lambda g: g), (b, lambda g: g))


def subtract(a: Any, b: Any) -> Tensor:
    """Return a - b."""
    x, y = _values(a, b)
    return _apply("subtract", x - y, (a, lambda g: g), (b, lambda g: -g))


def multiply(a: Any, b: Any) -> Tensor:
    """Return a · b, element by element."""
    x, y = _values(a, b)
    return _apply("multiply", x * y, (a, lambda g: g * y), (b, lambda g: g * x))


def divide(a: Any, b: Any) -> Tensor:
    """Return a / b."""
    x, y = _values(a, b)
    return _apply("divide", x / y, (a, lambda g: g / y), (b, lambda g: -g * x / (y * y)))


def power(a: Any, b: Any) -> Tensor:
    """Return a to the power of b."""
    x, y = _values(a, b)
    result = x**y

    def pull_base(g: Any) -> Any:
        # x^0 is flat, at x = 0 too, where y · x^(y - 1) is 0 · inf.
        if isinstance(y, float):
            return g * y * x ** (y - 1) if y else g * y
        return g * y * namespace(result).where(y == 0, 1.0, x).astype(result.dtype) ** (y - 1)

    def pull_exponent(g: Any) -> Any:
        xp = namespace(result)
        # d(x^y)/dy at x = 0 is 0 for y > 0, where log gives -inf.
        base = xp.full((), x or 1.0) if isinstance(x, float) else xp.where(x == 0, 1.0, x)
        return g * result * xp.log(base.astype(result.dtype))

    return _apply("power", result, (a, pull_base), (b, pull_exponent))


def negative(a: Tensor) -> Tensor:
    """Return -a."""
    return _apply("negative", -_values(a)[0], (a, lambda g: -g))


def matmul(a: Any, b: Any) -> Tensor:
    """Return the matrix product a @ b, by numpy's rules for vectors and stacks."""
    x, y = _values(a, b)

    def pull_left(g: Any) -> Any:
        if y.ndim == 1:
            return g[..., None] * y
        g = g[..., None, :] if x.ndim == 1 else g
        left = g @ y.swapaxes(-1, -2)
        return left[..., 0, :] if x.ndim == 1 else left

    def pull_right(g: Any) -> Any:
        if x.ndim == 1:
            return x * g if y.ndim == 1 else x[:, None] * g[..., None, :]
        if y.ndim == 1:
            return (x * g[..., None]).reshape(-1, x.shape[-1]).sum(axis=0)
        return x.swapaxes(-1, -2) @ g

    return _apply("matmul", x @ y, (a, pull_left), (b, pull_right))


# --- element by element -------------------------------------------------------------------------------------


def abs(a: Tensor) -> Tensor:
    """Return |a|; the gradient at 0 is 0."""
    (x,) = _values(a)
    xp = namespace(x)
    return _apply("abs", xp.abs(x), (a, lambda g: g * xp.sign(x)))


def exp(a: Tensor) -> Tensor:
    """Return e to the power of a."""
    (x,) = _values(a)
    y = namespace(x).exp(x)
    return _apply("exp", y, (a, lambda g: g * y))


def log(a: Tensor) -> Tensor:
    """Return the natural logarithm."""
    (x,) = _values(a)
    return _apply("log", namespace(x).log(x), (a, lambda g: g / x))


def sqrt(a: Tensor) -> Tensor:
    """Return the square root."""
    (x,) = _values(a)
    y = namespace(x).sqrt(x)
    return _apply("sqrt", y, (a, lambda g: g / (2 * y)))


def tanh(a: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    (x,) = _values(a)
    y = namespace(x).tanh(x)
    return _apply("tanh", y, (a, lambda g: g * (1 - y * y)))


def sigmoid(a: Tensor) -> Tensor:
    """Return 1 / (1 + e^-a), its relative error small for very negative a too."""
    (x,) = _values(a)
    xp = namespace(x)
    small = xp.exp(-xp.abs(x))
    y = xp.where(x >= 0, 1, small) / (1 + small)
    return _apply("sigmoid", y, (a, lambda g: g * y * (1 - y)))


def relu(a: Tensor) -> Tensor:
    """Return a, or 0 where it is negative; the gradient at 0 is 0."""
    (x,) = _values(a)
    return _apply("relu", namespace(x).maximum(x, 0), (a, lambda g: namespace(g).where(x > 0, g, x.dtype.type(0))))


def gelu(a: Tensor) -> Tensor:
    """Return a · Φ(a), Φ being the standard normal distribution function, within a few units in the last place of a.

    References
    ----------
    Hendrycks, Gimpel (2016), "Gaussian Error Linear Units"; Φ is by the Chebyshev series of erfc of Press et al.
    (2007), "Numerical Recipes", section 6.2.2.
    """
    (x,) = _values(a)
    xp = namespace(x)
    # erfc(z) = t · exp(-z² + P(2t - 1)), t = 2 / (2 + z); beyond 30 it is 0 in float64 too.
    z = xp.minimum(xp.abs(x) * x.dtype.type(_ROOT_HALF), x.dtype.type(30))
    t = 2 / (2 + z)
    s = 2 * t - 1
    series = _ERFC[x.dtype.itemsize]
    total = xp.full_like(s, series[-1])
    for coefficient in series[-2::-1]:
        total *= s
        total += coefficient
    tail = 0.5 * t * xp.exp(total - z * z)
    below = xp.where(x > 0, 1 - tail, tail)

    def pull(g: Any) -> Any:
        return g * (below + x * xp.exp(-z * z) * x.dtype.type(_DENSITY))

    return _apply("gelu", x * below, (a, pull))


def gelu_tanh(a: Tensor) -> Tensor:
    """Return a · (1 + tanh(√(2/π) · (a + 0.044715 a³))) / 2, the near form of `gelu` (Hendrycks, Gimpel 2016)."""
    (x,) = _values(a)
    scale = x.dtype.type(math.sqrt(2 / math.pi))
    squared = x * x
    y = namespace(x).tanh(scale * x * (1 + 0.044715 * squared))

    def pull(g: Any) -> Any:
        slope = scale * (1 + 3 * 0.044715 * squared)
        return g * (0.5 * (1 + y) + 0.5 * x * (1 - y * y) * slope)

    return _apply("gelu_tanh", 0.5 * x * (1 + y), (a, pull))


def gated_tanh(a: Tensor) -> Tensor:
    """Return tanh(u) · σ(v) of the two halves u, v of the last axis; σ(v) is taken as (1 + tanh(v / 2)) / 2.

    References
    ----------
    van den Oord et al. (2016), "Conditional Image Generation with PixelCNN Decoders".
    """
    (x,) = _values(a)
    xp, half = namespace(x), x.shape[-1] // 2
    signal, gate = xp.tanh(x[..., :half]), 0.5 + 0.5 * xp.tanh(0.5 * x[..., half:])

    def pull(g: Any) -> Any:
        full = xp.empty_like(x)
        full[..., :half] = g * gate * (1 - signal * signal)
        full[..., half:] = g * signal * gate * (1 - gate)
        return full

    return _apply("gated_tanh", signal * gate, (a, pull))


def rotated(x: Any, cos: Any, sin: Any) -> Any:
    """Return an array with each pair of neighbours (u, v) on the last axis as (u cos - v sin, v cos + u sin).

    ``cos`` has each cosine twice, ``sin`` each sine twice, the first time with the sign changed.
    """
    y = x * cos
    y += x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)[..., ::-1].reshape(x.shape) * sin
    return y


def rotate(a: Tensor, cos: Any, sin: Any) -> Tensor:
    """Turn each pair of neighbours on the last axis by an angle; see `rotated` for the form of cosines and sines."""
    (x,) = _values(a)
    return _apply("rotate", rotated(x, cos, sin), (a, lambda g: rotated(g, cos, -sin)))


def softplus(a: Tensor) -> Tensor:
    """Return log(1 + e^a) without overflow."""
    (x,) = _values(a)
    xp = namespace(x)
    small = xp.exp(-xp.abs(x))
    rise = xp.where(x >= 0, 1, small) / (1 + small)
    return _apply("softplus", xp.maximum(x, 0) + xp.log1p(small), (a, lambda g: g * rise))


def maximum(a: Any, b: Any) -> Tensor:
    """Return the larger of the two; equals share the gradient."""
    x, y = _values(a, b)
    result = namespace(x if isinstance(a, Tensor) else y).maximum(x, y)
    return _larger("maximum", result, a, b, x, y)


def minimum(a: Any, b: Any) -> Tensor:
    """Return the smaller of the two; equals share the gradient."""
    x, y = _values(a, b)
    result = namespace(x if isinstance(a, Tensor) else y).minimum(x, y)
    return _larger("minimum", result, a, b, x, y)


def _larger(name: str, result: Any, a: Any, b: Any, x: Any, y: Any) -> Tensor:
    """Give the gradient to the operand that is the result, half of it where both are."""

    def share(value: Any) -> Any:
        return ((result == value) * (1 - 0.5 * (x == y))).astype(result.dtype)

    return _apply(name, result, (a, lambda g: g * share(x)), (b, lambda g: g * share(y)))


def clip(a: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return a held between two numbers; outside of them the gradient is 0."""
    (x,) = _values(a)
    y = namespace(x).clip(x, low, high)
    return _apply("clip", y, (a, lambda g: namespace(g).where(x == y, g, x.dtype.type(0))))


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """Return a where the condition holds and b elsewhere; what is not taken gets no gradient, NaN or not."""
    x, y = _values(a, b)
    xp = namespace(x if isinstance(a, Tensor) else y)
    refuse_other_device("condition", condition, xp)
    condition = xp.array(condition)  # a copy: backward needs it as it is now
    zero = (a if isinstance(a, Tensor) else b).dtype.type(0)
    return _apply(
        "where",
        xp.where(condition, x, y),
        (a, lambda g: xp.where(condition, g, zero)),
        (b, lambda g: xp.where(condition, zero, g)),
    )


# --- reductions ---------------------------------------------------------------------------------------------


def _spread(g: Any, shape: tuple[int, ...], axis: Any, keepdims: bool) -> Any:
    """Stretch a reduction's gradient over the axes that were reduced."""
    xp = namespace(g)
    if axis is not None and not keepdims:
        g = xp.expand_dims(g, axis)
    return xp.broadcast_to(g, shape)


def sum(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Add up over the axes, all by default."""
    (x,) = _values(a)
    return _apply("sum", x.sum(axis=axis, keepdims=keepdims), (a, lambda g: _spread(g, x.shape, axis, keepdims)))


def mean(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Average over the axes, all by default."""
    (x,) = _values(a)
    y = x.mean(axis=axis, keepdims=keepdims)
    share = y.size / x.size if x.size else 0.0
    return _apply("mean", y, (a, lambda g: _spread(g * x.dtype.type(share), x.shape, axis, keepdims)))


def max(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Return the largest element; equals share the gradient."""
    return _extreme("max", a, axis, keepdims)


def min(a: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Return the smallest element; equals share the gradient."""
    return _extreme("min", a, axis, keepdims)


def _extreme(name: str, a: Tensor, axis: Any, keepdims: bool) -> Tensor:
    (x,) = _values(a)
    kept = getattr(x, name)(axis=axis, keepdims=True)
    chosen = x == kept

    def pull(g: Any) -> Any:
        share = chosen / chosen.sum(axis=axis, keepdims=True)
        return _spread(g, x.shape, axis, keepdims) * share.astype(x.dtype)

    return _apply(name, kept if keepdims else kept.reshape(getattr(x, name)(axis=axis).shape), (a, pull))


# --- indexing and shapes ------------------------------------------------------------------------------------


def getitem(a: Tensor, index: Any) -> Tensor:
    """Return a[index], by numpy's rules."""
    x = _memory(a)
    xp = namespace(x)
    result = x[index]
    parts = index if isinstance(index, tuple) else (index,)
    basic = all(part is None or part is ... or isinstance(part, (int, np.integer, slice)) for part in parts)

    if not basic:  # copies: backward needs the indices as they are now
        parts = tuple(xp.array(part) if isinstance(part, (list, type(x))) else part for part in parts)
        index = parts if isinstance(index, tuple) else parts[0]

    def pull(g: Any) -> Any:
        full = xp.zeros_like(x)
        if basic:
            full[index] = g
        else:
            xp.add.at(full, index, g)  # an element that was taken twice gets both gradients
        return full

    return _apply("getitem", result, (a, pull), view_of=a if basic else None)


def reshape(a: Tensor, shape: Any) -> Tensor:
    """Return the elements in another shape."""
    x = _memory(a)
    return _apply("reshape", x.reshape(shape), (a, lambda g: g.reshape(x.shape)), view_of=a)


def transpose(a: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the axes in another order; reversed by default."""
    back = None if axes is None else [int(i) for i in np.argsort([axis % a.ndim for axis in axes])]
    return _apply("transpose", _memory(a).transpose(axes), (a, lambda g: g.transpose(back)), view_of=a)


def swapaxes(a: Tensor, first: int, second: int) -> Tensor:
    """Return the Tensor with two axes exchanged."""
    return _apply("swapaxes", _memory(a).swapaxes(first, second), (a, lambda g: g.swapaxes(first, second)), view_of=a)


def expand_dims(a: Tensor, axis: int) -> Tensor:
    """Return the Tensor with a new axis of length 1."""
    x = _memory(a)
    xp = namespace(x)
    return _apply("expand_dims", xp.expand_dims(x, axis), (a, lambda g: g.squeeze(axis)), view_of=a)


def squeeze(a: Tensor, axis: int) -> Tensor:
    """Return the Tensor without an axis of length 1."""
    x = _memory(a)
    xp = namespace(x)
    return _apply("squeeze", x.squeeze(axis), (a, lambda g: xp.expand_dims(g, axis)), view_of=a)


def broadcast_to(a: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the Tensor stretched to a shape."""
    return _apply(
        "broadcast_to", namespace(_values(a)[0]).broadcast_to(_values(a)[0], shape), (a, lambda g: g), view_of=a
    )


def concatenate(parts: Sequence[Any], axis: int = 0) -> Tensor:
    """Join along an axis that is there."""
    values = _values(*parts)
    xp = namespace(values[0])
    ends = np.cumsum([value.shape[axis] for value in values])
    lead = (slice(None),) * (axis % values[0].ndim)

    def pull(start: int, stop: int) -> Pull:
        return lambda g: g[(*lead, slice(start, stop))]

    starts = [0, *ends[:-1]]
    pulls = [(part, pull(i, j)) for part, i, j in zip(parts, starts, ends, strict=True)]
    return _apply("concatenate", xp.concatenate(values, axis=axis), *pulls)


def stack(parts: Sequence[Any], axis: int = 0) -> Tensor:
    """Join along a new axis."""
    values = _values(*parts)
    xp = namespace(values[0])

    def pull(number: int) -> Pull:
        return lambda g: xp.take(g, number, axis=axis)

    pulls = [(part, pull(number)) for number, part in enumerate(parts)]
    return _apply("stack", xp.stack(values, axis=axis), *pulls)


def split(a: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first ``size`` elements of the last axis and the others, both with one gradient between them."""
    x = _memory(a)
    parts = [x[..., :size], x[..., size:]]
    if not (is_recording() and a.requires_grad):
        first, rest = map(Tensor, parts)
        first.version = rest.version = a.version
        return first, rest

    def pullback(grads: Sequence[Any]) -> list[Any]:
        full = namespace(x).zeros_like(x)
        for part, grad in zip((full[..., :size], full[..., size:]), grads, strict=True):
            if grad is not None:
                part[...] = grad
        return [full]

    first, rest = record("split", [a], parts, pullback, view_of=a)
    return first, rest
