"""tanh and the logistic function on vectors, within 4 ULP, from one polynomial; and the CPU's handling of denormals.

With y = n·ln2 + r, |r| <= ln2 / 2: e^y = 2^n (1 + p), where p = e^r - 1 is a Taylor polynomial. 1 - e^y = (1 - 2^n) -
2^n p keeps its relative accuracy near 0, so tanh does; the logistic function's tail is as exact as the exponential's.
A NaN stays NaN.
"""

from __future__ import annotations

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector import X86, Emitter, Vector

# By bits: the number whose addition rounds to a whole one, which then stands in the lowest bits; ln2 in two parts, the
# first of few enough bits that n times it is exact; the polynomial's degree; where tanh is 1 and e^-x is 0.
CONSTANTS = {
    32: (1.5 * 2.0**23, 0.693145751953125, 1.42860682030941723e-6, 7, 10.0, 104.0),
    64: (1.5 * 2.0**52, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 13, 20.0, 746.0),
}

LEAST = {32: -87.0, 64: -708.0}  # e^x below it is 0: its exponent would not be that of a normal number


def _parts(e: Emitter, y: Vector) -> tuple[Vector, Vector]:
    """Return p and n of e^y = 2^n (1 + p), n with the magic number still in it."""
    magic, high, low, degree, _, _ = CONSTANTS[e.bits]
    shifted = e.fma(y, e.all(1 / math.log(2)), e.all(magic))
    whole = shifted - magic
    r = e.fma(whole, e.all(-low), e.fma(whole, e.all(-high), y))
    q = e.all(1 / math.factorial(degree))
    for k in range(degree - 1, 1, -1):
        q = e.fma(q, r, e.all(1 / math.factorial(k)))
    return e.fma(r * r, q, r), shifted


def tanh(e: Emitter, x: Vector) -> Vector:
    """Return tanh(x)."""
    limit = CONSTANTS[e.bits][4]
    size = e.call("fabs", x)
    p, n = _parts(e, e.where_greater(size, limit, limit, size) * -2.0)
    scale = e.power_of_two(n)
    m = e.fma(scale * -1.0, p, 1.0 - scale)  # 1 - e^(-2|x|)
    return e.call("copysign", m / (2.0 - m), x)


def exp_of_negative(e: Emitter, x: Vector) -> Vector:
    """Return e^x of x <= 0; 0 where it would leave the exponent's range, NaN where x is."""
    p, n = _parts(e, x)
    return e.where_greater(LEAST[e.bits], x, 0.0, (p + 1.0) * e.power_of_two(n))


def sigmoid(e: Emitter, x: Vector) -> Vector:
    """Return 1 / (1 + e^-x)."""
    magic, *_, limit = CONSTANTS[e.bits]
    size = e.call("fabs", x)
    p, n = _parts(e, e.where_greater(size, limit, limit, size) * -1.0)
    # In two factors: 2^n alone would leave the exponent's range at the far end of the tail.
    whole = n - magic
    half = whole * 0.5 + magic
    rest = (whole - (half - magic)) + magic
    power = (p + 1.0) * e.power_of_two(half) * e.power_of_two(rest)
    return e.where_greater(0.0, x, power, 1.0) / (power + 1.0)


# --- denormals: arithmetic on them can be a hundred times slower, so kernels flush them to zero -------------------


@intrinsic
def denormals_off(context):
    """Flush denormals to zero in this thread (x86); return the setting before, for `denormals_restore`."""

    def codegen(context, builder, signature, values):
        if not X86:
            return ir.Constant(ir.IntType(32), 0)
        slot = _slot(builder, "stmxcsr")
        before = builder.load(slot)
        builder.store(builder.or_(before, ir.Constant(ir.IntType(32), 0x8040)), slot)
        _control(builder, "ldmxcsr", slot)
        return before

    return types.int32(), codegen


@intrinsic
def denormals_restore(context, before):
    """Set again what `denormals_off` returned."""

    def codegen(context, builder, signature, values):
        if X86:
            slot = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(values[0], slot)
            _control(builder, "ldmxcsr", slot)
        return context.get_dummy_value()

    return types.void(types.int32), codegen


def _slot(builder: ir.IRBuilder, instruction: str) -> ir.Value:
    slot = cgutils.alloca_once(builder, ir.IntType(32))
    _control(builder, instruction, slot)
    return slot


def _control(builder: ir.IRBuilder, instruction: str, slot: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{instruction}")
    builder.call(function, [builder.bitcast(slot, ir.IntType(8).as_pointer())])
