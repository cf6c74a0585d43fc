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

    def _first(self, count: Any) -> Any:
        """Return the mask of the first ``count`` lanes."""
        numbers = ir.Constant(ir.VectorType(INT, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self._spread(count))

    def _spread(self, number: Any) -> Any:
        integers = ir.VectorType(INT, self.lanes)
        first = self.builder.insert_element(ir.Constant(integers, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, first, zeros)

    def gather(self, address: Any, stride: Any, count: Any) -> Vector:
        """Load elements that lie a stride apart; lanes past ``count`` read nothing and are 0."""
        integers = ir.VectorType(INT, self.lanes)
        numbers = ir.Constant(integers, list(range(self.lanes)))
        addresses = self.builder.add(self._spread(address), self.builder.mul(numbers, self._spread(stride)))
        pointers = ir.VectorType(ir.IntType(8).as_pointer(), self.lanes)
        mask = ir.VectorType(ir.IntType(1), self.lanes)
        kind = ir.FunctionType(self.type, [pointers, ir.IntType(32), mask, self.type])
        load = cgutils.get_or_insert_function(
            self.builder.module, kind, f"llvm.masked.gather.{self.suffix}.v{self.lanes}p0"
        )
        arguments = [
            self.builder.inttoptr(addresses, pointers),
            ir.Constant(ir.IntType(32), 1),
            self._first(count),
            self.all(0.0).value,
        ]
        return Vector(self, self.builder.call(load, arguments))

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


def emitted(*constants: str) -> Callable[[Callable[..., None]], Any]:
    """Make a function ``(emitter, *arguments)`` callable in kernels, as ``function(unit, *arguments)``.

    ``unit`` is a scalar that names the dtype by its type; the other arguments are integers, and those named here have
    to be constants and arrive as Python's. It returns nothing.
    """
    return lambda function: _intrinsic(function, constants)


def _intrinsic(function: Callable[..., None], constants: tuple[str, ...]) -> Any:
    names = list(inspect.signature(function).parameters)[1:]

    def typing(context: Any, unit: Any, *arguments: Any) -> Any:
        given = dict(zip(names, arguments, strict=True))
        if any(not isinstance(given[name], types.IntegerLiteral) for name in constants):
            return None

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            found = dict(zip(names, values[1:], strict=True))
            function(Emitter(builder, unit), **{**found, **{name: given[name].literal_value for name in constants}})
            return context.get_dummy_value()

        return types.void(unit, *(given[name] if name in constants else types.int64 for name in names)), codegen

    # Numba asks for a function with as many named parameters as it is called with.
    parameters = ", ".join(["context", "unit", *names])
    scope: dict[str, Any] = {"typing": typing}
    exec(f"def {function.__name__}({parameters}): return typing({parameters})", scope)
    made = scope[function.__name__]
    made.__doc__, made.__module__ = function.__doc__, function.__module__
    return intrinsic(prefer_literal=bool(constants))(made)
