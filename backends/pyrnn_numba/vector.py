"""Vectors while a kernel is being compiled: Python's operators write LLVM instructions.

Numba's own loops have no fused multiply-add and may or may not be vectorised, so the inner loops are written here in
terms of whole vectors. An `@emitted` function looks like arithmetic on vectors and runs once, when Numba compiles a
kernel that calls it: each operation adds an instruction. No fast-math flag is ever set, so what is written is what is
rounded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

# What Numba compiles for: this CPU, or what NUMBA_CPU_FEATURES says.
FEATURES = dict(llvmlite.binding.get_host_cpu_features())
if config.CPU_FEATURES is not None:
    FEATURES = {feature[1:]: feature.startswith("+") for feature in config.CPU_FEATURES.split(",")}
X86 = llvmlite.binding.get_process_triple().split("-")[0] in ("x86_64", "i686")
HAS_FMA = FEATURES.get("fma", False) or not X86
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx2") else 16
INT = ir.IntType(64)


def whole(number: int) -> ir.Constant:
    """Return a constant of the type of addresses and counts."""
    return ir.Constant(INT, number)


class Emitter:
    """Writes vector instructions of one dtype at the builder's position.

    Addresses and counts are 64-bit integers, strides in bytes.
    """

    def __init__(self, builder: ir.IRBuilder, dtype: Any) -> None:
        self.builder = builder
        self.bits = dtype.bitwidth
        self.element: ir.Type = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.lanes = VECTOR_BYTES * 8 // self.bits
        self.type = ir.VectorType(self.element, self.lanes)
        self.suffix = f"v{self.lanes}f{self.bits}"

    def all(self, number: Any) -> Vector:
        """Return a vector of one number: a Python constant or an LLVM value of the dtype."""
        if isinstance(number, (int, float)):
            return Vector(self, ir.Constant(self.type, [ir.Constant(self.element, float(number))] * self.lanes))
        first = self.builder.insert_element(
            ir.Constant(self.type, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return Vector(self, self.builder.shuffle_vector(first, first, zeros))

    def add(self, address: Any, offset: Any) -> Any:
        return self.builder.add(address, ir.Constant(INT, offset) if isinstance(offset, int) else offset)

    def load(self, address: Any, offset: Any = 0) -> Vector:
        pointer = self.builder.inttoptr(self.add(address, offset), self.type.as_pointer())
        return Vector(self, self.builder.load(pointer, align=1))

    def load_pieces(self, addresses: list[Any]) -> Vector:
        """Return a vector put together from pieces of 16 bytes."""
        small = ir.VectorType(self.element, 16 * 8 // self.bits)
        parts = [self.builder.load(self.builder.inttoptr(a, small.as_pointer()), align=1) for a in addresses]
        while len(parts) > 1:
            lanes = list(range(2 * parts[0].type.count))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
            parts = [self.builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return Vector(self, parts[0])

    def load_all(self, address: Any, offset: Any = 0) -> Vector:
        """Return a vector of the one element at an address."""
        pointer = self.builder.inttoptr(self.add(address, offset), self.element.as_pointer())
        return self.all(self.builder.load(pointer, align=1))

    def store(self, vector: Vector, address: Any, offset: Any = 0) -> None:
        pointer = self.builder.inttoptr(self.add(address, offset), self.type.as_pointer())
        self.builder.store(vector.value, pointer, align=1)

    def store_element(self, number: Any, address: Any) -> None:
        self.builder.store(number, self.builder.inttoptr(address, self.element.as_pointer()), align=1)

    def load_element(self, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, self.element.as_pointer()), align=1)

    def load_wholes(self, address: Any, offset: Any = 0) -> Any:
        """Return as many 64-bit integers as a vector has lanes."""
        integers = ir.VectorType(INT, self.lanes)
        pointer = self.builder.inttoptr(self.add(address, offset), integers.as_pointer())
        return self.builder.load(pointer, align=8)

    def _first(self, count: Any) -> Any:
        """Return the mask of the first ``count`` lanes."""
        numbers = ir.Constant(ir.VectorType(INT, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(count))

    def spread(self, number: Any) -> Any:
        """Return as many copies of a 64-bit integer as a vector has lanes."""
        integers = ir.VectorType(INT, self.lanes)
        first = self.builder.insert_element(ir.Constant(integers, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, zeros)

    def gather(self, address: Any, stride: Any, count: Any) -> Vector:
        """Load elements that lie a stride apart; lanes past ``count`` read nothing and are 0."""
        numbers = ir.Constant(ir.VectorType(INT, self.lanes), list(range(self.lanes)))
        addresses = self.builder.add(self.spread(address), self.builder.mul(numbers, self.spread(stride)))
        return Vector(self, self._gathered(addresses, self.type, self.suffix, self._first(count)))

    def gather_at(self, addresses: Any) -> Vector:
        """Load the element at each lane's own address."""
        return Vector(self, self._gathered(addresses, self.type, self.suffix))

    def gather_flags(self, addresses: Any) -> Any:
        """Return bits: whether the byte at each lane's own address is not 0.

        What is read is the aligned word around a byte: it is in the same page.
        """
        builder = self.builder
        kind = ir.VectorType(ir.IntType(32), self.lanes)
        words = builder.and_(addresses, self.spread(whole(-4)))
        bits = builder.shl(builder.and_(addresses, self.spread(whole(3))), self.spread(whole(3)))
        found = builder.lshr(self._gathered(words, kind, f"v{self.lanes}i32"), builder.trunc(bits, kind))
        byte = builder.and_(found, ir.Constant(kind, [255] * self.lanes))
        return builder.icmp_unsigned("!=", byte, ir.Constant(kind, [0] * self.lanes))

    def _gathered(self, addresses: Any, kind: Any, suffix: str, mask: Any = None) -> Any:
        pointers = ir.VectorType(ir.IntType(8).as_pointer(), self.lanes)
        bits = ir.VectorType(ir.IntType(1), self.lanes)
        if mask is None:
            mask = ir.Constant(bits, [1] * self.lanes)
        signature = ir.FunctionType(kind, [pointers, ir.IntType(32), bits, kind])
        load = cgutils.get_or_insert_function(
            self.builder.module, signature, f"llvm.masked.gather.{suffix}.v{self.lanes}p0"
        )
        zero = ir.Constant(kind, [ir.Constant(kind.element, 0)] * self.lanes)
        arguments = [self.builder.inttoptr(addresses, pointers), ir.Constant(ir.IntType(32), 1), mask, zero]
        return self.builder.call(load, arguments)

    def store_first(self, vector: Vector, address: Any, count: Any) -> None:
        """Store the first ``count`` lanes."""
        pointer = ir.IntType(8).as_pointer()
        mask = ir.VectorType(ir.IntType(1), self.lanes)
        kind = ir.FunctionType(ir.VoidType(), [self.type, pointer, ir.IntType(32), mask])
        store = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.masked.store.{self.suffix}.p0")
        arguments = [
            vector.value,
            self.builder.inttoptr(address, pointer),
            ir.Constant(ir.IntType(32), 1),
            self._first(count),
        ]
        self.builder.call(store, arguments)

    def shuffle(self, a: Vector, b: Vector, lanes: list[int]) -> Vector:
        """Return a vector of lanes of two: those of b are numbered on from those of a."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), lanes)
        return Vector(self, self.builder.shuffle_vector(a.value, b.value, mask))

    def call(self, name: str, *vectors: Vector) -> Vector:
        """Call LLVM's function of this name on vectors."""
        kind = ir.FunctionType(self.type, [self.type] * len(vectors))
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.{self.suffix}")
        return Vector(self, self.builder.call(function, [vector.value for vector in vectors]))

    def fma(self, a: Vector, b: Vector, c: Vector) -> Vector:
        """Return a·b + c, rounded once."""
        return self.call("fma", a, b, c)

    def where_greater(self, a: Any, b: Any, yes: Any, no: Any) -> Vector:
        """Return ``yes`` in the lanes where a > b, else ``no``; so where one of them is NaN."""
        a, b, yes, no = (v if isinstance(v, Vector) else self.all(v) for v in (a, b, yes, no))
        return Vector(self, self.builder.select(self.builder.fcmp_ordered(">", a.value, b.value), yes.value, no.value))

    def where_equal(self, a: Vector, number: float, yes: Vector, no: Vector) -> Vector:
        """Return ``yes`` in the lanes where a is the number, else ``no``; so where it is NaN."""
        return self.where(self.builder.fcmp_ordered("==", a.value, self.all(number).value), yes, no)

    def where_zero(self, a: Vector, yes: Any, no: Vector) -> Vector:
        """Return ``yes`` in the lanes where a is 0, else ``no``; so where it is NaN."""
        return self.where(self.builder.fcmp_ordered("==", a.value, self.all(0.0).value), self.all(yes), no)

    def where_finite(self, a: Vector, yes: Vector, no: Vector) -> Vector:
        """Return ``yes`` in the lanes where a is neither NaN nor infinite, else ``no``."""
        return self.where(self.builder.fcmp_ordered("==", (a * 0.0).value, self.all(0.0).value), yes, no)

    def where(self, bits: Any, yes: Vector, no: Vector) -> Vector:
        return Vector(self, self.builder.select(bits, yes.value, no.value))

    def sum(self, vector: Vector) -> Any:
        """Return the sum of the lanes: halves, added up."""
        half = self.lanes // 2
        while half:
            vector = vector + self.shuffle(vector, vector, [(lane + half) % self.lanes for lane in range(self.lanes)])
            half //= 2
        return self.builder.extract_element(vector.value, ir.Constant(ir.IntType(32), 0))

    def loop(self, count: Any, starts: list[Vector], body: Callable[[Any, list[Vector]], list[Vector]]) -> list[Vector]:
        """Write a loop over k = 0 .. count - 1 that hands vectors on, from ``starts``; return those after the last."""
        builder, before = self.builder, self.builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed(">", count, whole(0)), loop, after)
        builder.position_at_end(loop)
        k = builder.phi(INT)
        held = [builder.phi(self.type) for _ in starts]
        found = body(k, [Vector(self, value) for value in held])
        last = builder.block
        following = builder.add(k, whole(1))
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        k.add_incoming(whole(0), before)
        k.add_incoming(following, last)
        builder.position_at_end(after)
        results = []
        for phi, start, vector in zip(held, starts, found, strict=True):
            phi.add_incoming(start.value, before)
            phi.add_incoming(vector.value, last)
            result = builder.phi(self.type)
            result.add_incoming(start.value, before)
            result.add_incoming(vector.value, last)
            results.append(Vector(self, result))
        return results

    def power_of_two(self, shifted: Vector) -> Vector:
        """Return 2^n of a vector that holds n as its lowest bits: the exponent alone."""
        integer = ir.IntType(self.bits)
        integers = ir.VectorType(integer, self.lanes)

        def constant(number: int) -> Any:
            return ir.Constant(integers, [ir.Constant(integer, number)] * self.lanes)

        shift, one = (23, 0x3F800000) if self.bits == 32 else (52, 0x3FF0000000000000)
        bits = self.builder.shl(self.builder.bitcast(shifted.value, integers), constant(shift))
        return Vector(self, self.builder.bitcast(self.builder.add(bits, constant(one)), self.type))


class Vector:
    """A value in a register; the other operand of an operator may be a Python number."""

    def __init__(self, emitter: Emitter, value: Any) -> None:
        self.emitter, self.value = emitter, value

    def _binary(self, other: Any, instruction: str, turned: bool = False) -> Vector:
        other = other if isinstance(other, Vector) else self.emitter.all(other)
        a, b = (other, self) if turned else (self, other)
        return Vector(self.emitter, getattr(self.emitter.builder, instruction)(a.value, b.value))

    def __add__(self, other: Any) -> Vector:
        return self._binary(other, "fadd")

    def __sub__(self, other: Any) -> Vector:
        return self._binary(other, "fsub")

    def __rsub__(self, other: Any) -> Vector:
        return self._binary(other, "fsub", turned=True)

    def __mul__(self, other: Any) -> Vector:
        return self._binary(other, "fmul")

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Vector:
        return self._binary(other, "fdiv")


def emitted(*constants: str, gives: str = "nothing") -> Callable[[Callable[..., Any]], Any]:
    """Make a function ``(emitter, *arguments)`` callable in kernels, as ``function(unit, *arguments)``.

    ``unit`` is a scalar that names the dtype by its type; the other arguments are integers, and those named here have
    to be constants and arrive as Python's. It gives nothing, an "element" of the dtype or a "whole" number.
    """
    return lambda function: _intrinsic(function, constants, gives)


def _intrinsic(function: Callable[..., Any], constants: tuple[str, ...], gives: str) -> Any:
    names = list(inspect.signature(function).parameters)[1:]

    def typing(context: Any, unit: Any, *arguments: Any) -> Any:
        given = dict(zip(names, arguments, strict=True))
        if any(not isinstance(given[name], types.IntegerLiteral) for name in constants):
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            found = dict(zip(names, values[1:], strict=True))
            found.update({name: given[name].literal_value for name in constants})
            result = function(Emitter(builder, unit), **found)
            return context.get_dummy_value() if gives == "nothing" else result

        kind = {"nothing": types.void, "element": unit, "whole": types.int64}[gives]
        return kind(unit, *(given[name] if name in constants else types.int64 for name in names)), codegen

    # Numba asks for a function with as many named parameters as it is called with.
    parameters = ", ".join(["context", "unit", *names])
    scope: dict[str, Any] = {"typing": typing}
    exec(f"def {function.__name__}({parameters}): return typing({parameters})", scope)
    made = scope[function.__name__]
    made.__doc__, made.__module__ = function.__doc__, function.__module__
    return intrinsic(prefer_literal=bool(constants))(made)
