"""The cells' formulas, forward and backward, on one vector of units. Addresses are of the vector's place in a row.

``gates`` has the gates of a row, ``plane`` bytes from one to the next: before their activation when the forward comes
to them, activated afterwards, which is what the backward reads. The new h may take the old one's place. The derivation
of each backward is the forward above it.
"""

from __future__ import annotations

from .activations import sigmoid, tanh
from .vector import emitted

# --- rnn: h = φ(gate) -------------------------------------------------------------------------------------------


@emitted()
def rnn_tanh(e, gates, new_h):
    new = tanh(e, e.load(gates))
    e.store(new, gates)
    e.store(new, new_h)


@emitted()
def rnn_relu(e, gates, new_h):
    before = e.load(gates)
    new = e.where_greater(0.0, before, 0.0, before)
    e.store(new, gates)
    e.store(new, new_h)


@emitted()
def rnn_tanh_back(e, gates, dh, d):
    new = e.load(gates)
    e.store(e.load(dh) * (1.0 - new * new), d)
    e.store(e.all(0.0), dh)


@emitted()
def rnn_relu_back(e, gates, dh, d):
    e.store(e.where_greater(e.load(gates), 0.0, e.load(dh), 0.0), d)
    e.store(e.all(0.0), dh)


# --- lstm: c = f·c + i·g, h = o·tanh(c) ---------------------------------------------------------------------------


@emitted()
def lstm(e, gates, plane, c, new_h):
    at = [gates]
    for _ in range(3):
        at.append(e.add(at[-1], plane))
    i, f, g, o = sigmoid(e, e.load(at[0])), sigmoid(e, e.load(at[1])), tanh(e, e.load(at[2])), sigmoid(e, e.load(at[3]))
    new = e.fma(f, e.load(c), i * g)
    e.store(new, c)
    e.store(o * tanh(e, new), new_h)
    for gate, where in zip((i, f, g, o), at, strict=True):
        e.store(gate, where)


@emitted()
def lstm_back(e, gates, plane, c_old, dh, dc, d):
    at, to = [gates], [d]
    for _ in range(3):
        at.append(e.add(at[-1], plane))
        to.append(e.add(to[-1], plane))
    i, f, g, o = (e.load(where) for where in at)
    old, grad = e.load(c_old), e.load(dh)
    t = tanh(e, e.fma(f, old, i * g))
    c_grad = e.load(dc) + grad * o * (1.0 - t * t)
    e.store(c_grad * g * i * (1.0 - i), to[0])
    e.store(c_grad * old * f * (1.0 - f), to[1])
    e.store(c_grad * i * (1.0 - g * g), to[2])
    e.store(grad * t * o * (1.0 - o), to[3])
    e.store(c_grad * f, dc)
    e.store(e.all(0.0), dh)


# --- gru: h = (1 - z)·n + z·h, gates r, z, n --------------------------------------------------------------------------


def _mix(e, n, z, h):
    return e.fma(z, h - n, n)


@emitted()
def gru_after(e, gates, plane, q, h, new_h):
    """Reset after the product: n = tanh(gate + r·q), q = W h + b_hn."""
    at_z = e.add(gates, plane)
    at_n = e.add(at_z, plane)
    r, z = sigmoid(e, e.load(gates)), sigmoid(e, e.load(at_z))
    n = tanh(e, e.fma(r, e.load(q), e.load(at_n)))
    e.store(_mix(e, n, z, e.load(h)), new_h)
    for gate, where in ((r, gates), (z, at_z), (n, at_n)):
        e.store(gate, where)


@emitted()
def gru_after_back(e, gates, plane, q, h_old, dh, d):
    """Stores the gradients of r, z, n and q; leaves dh·z for the earlier h."""
    at_z = e.add(gates, plane)
    r, z, n = e.load(gates), e.load(at_z), e.load(e.add(at_z, plane))
    grad = e.load(dh)
    to_z = e.add(d, plane)
    to_n = e.add(to_z, plane)
    dn = grad * (1.0 - z) * (1.0 - n * n)
    e.store(dn * e.load(q) * r * (1.0 - r), d)
    e.store(grad * (e.load(h_old) - n) * z * (1.0 - z), to_z)
    e.store(dn, to_n)
    e.store(dn * r, e.add(to_n, plane))
    e.store(grad * z, dh)


@emitted()
def gru_before_reset(e, gates, plane, h, reset):
    """Reset before the product, first half: r, z, and r·h."""
    at_z = e.add(gates, plane)
    r = sigmoid(e, e.load(gates))
    e.store(r, gates)
    e.store(sigmoid(e, e.load(at_z)), at_z)
    e.store(r * e.load(h), reset)


@emitted()
def gru_before(e, gates, plane, h, new_h):
    """Second half: n = tanh(gate), whose product with r·h is in it."""
    at_z = e.add(gates, plane)
    at_n = e.add(at_z, plane)
    n = tanh(e, e.load(at_n))
    e.store(n, at_n)
    e.store(_mix(e, n, e.load(at_z), e.load(h)), new_h)


@emitted()
def gru_before_back(e, gates, plane, h_old, dh, d):
    """Stores the gradients of z and n; leaves dh·z for the earlier h."""
    at_z = e.add(gates, plane)
    z, n = e.load(at_z), e.load(e.add(at_z, plane))
    grad = e.load(dh)
    to_z = e.add(d, plane)
    e.store(grad * (e.load(h_old) - n) * z * (1.0 - z), to_z)
    e.store(grad * (1.0 - z) * (1.0 - n * n), e.add(to_z, plane))
    e.store(grad * z, dh)


@emitted()
def gru_before_reset_back(e, gates, h_old, d_reset, dh, d, reset):
    """From the gradient of r·h: that of r, and what goes on to the earlier h. r·h itself once more, for W's
    gradient."""
    r, h, grad = e.load(gates), e.load(h_old), e.load(d_reset)
    e.store(grad * h * r * (1.0 - r), d)
    e.store(e.fma(grad, r, e.load(dh)), dh)
    e.store(r * h, reset)
