"""bfloat16 in vectors: rounding of float32, and products of pairs that are added in float32."""

import functools

from llvmlite import ir

from . import config
from .loops import Loop
from .vector import Value, declare, vector_type

_I16, _I32 = ir.IntType(16), ir.IntType(32)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's type bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16 = _BFloat()


@functools.cache
def native() -> bool:
    """Whether the CPU multiplies pairs in bfloat16: AVX512-BF16, or NEON with the extension BF16."""
    extension = {"avx512": "+avx512bf16", "neon": "+bf16"}.get(config.isa())
    return extension in config.cpu()[1].split(",")


def _rounded(x: Value) -> ir.Value:
    """Return float32 rounded to bfloat16, to nearest even, as 16-bit integers: one instruction."""
    b, count = x.builder, x.lanes
    return b.bitcast(b.fptrunc(x.ir, ir.VectorType(_BF16, count)), ir.VectorType(_I16, count))


def rounded(x: Value) -> Value:
    """Return float32 rounded to bfloat16, to nearest even, by integers: `fptrunc` takes 90 instructions."""
    b, count = x.builder, x.lanes
    wide = vector_type("int32", count)
    bits = b.bitcast(x.ir, wide)

    def constant(number: int) -> ir.Constant:
        return ir.Constant(wide, number if count == 1 else [number] * count)

    odd = b.and_(b.lshr(bits, constant(16)), constant(1))
    number = b.add(bits, b.add(odd, constant(0x7FFF)))
    is_nan = b.fcmp_unordered("uno", x.ir, x.ir)
    quiet = b.or_(bits, constant(0x400000))  # rounding would make an infinity of some
    high = b.and_(b.select(is_nan, quiet, number), constant(-0x10000))
    return Value(b, "float32", count, b.bitcast(high, x.ir.type))


def _both(first: Value, second: Value) -> ir.Value:
    """Return the elements of two vectors, one after the other, rounded to bfloat16, as 16-bit integers."""
    b, count = first.builder, first.lanes
    if 2 * count == 32:  # one instruction, where two and a move would be chosen
        kinds = ir.VectorType(_BF16, 32), vector_type("float32", 16)
        function = declare(b.module, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", kinds[0], [kinds[1]] * 2)
        return b.bitcast(b.call(function, [second.ir, first.ir]), ir.VectorType(_I16, 32))
    order = ir.Constant(ir.VectorType(_I32, 2 * count), list(range(2 * count)))
    return b.shuffle_vector(_rounded(first), _rounded(second), order)


def pairs_of(first: Value, second: Value | None) -> Value:
    """Return pairs (first, second), each element in the bits of one float32; None stands for zeros."""
    b, count = first.builder, first.lanes
    kind = vector_type("float32", count)
    if second is None:
        return Value(
            b, "float32", count, b.bitcast(b.zext(_rounded(first), ir.VectorType(_I32, count)), kind)
        )
    both = _both(first, second)
    order = [i // 2 + i % 2 * count for i in range(2 * count)]
    both = b.shuffle_vector(both, both, ir.Constant(ir.VectorType(_I32, 2 * count), order))
    return Value(b, "float32", count, b.bitcast(both, kind))


def neighbours(left: Value, right: Value) -> Value:
    """Return the pairs of neighbours in two vectors, one after the other."""
    b, count = left.builder, left.lanes
    return Value(b, "float32", count, b.bitcast(_both(left, right), vector_type("float32", count)))


def store(x: Value, address: ir.Value) -> None:
    """Store float32 rounded to bfloat16, 16 bits each."""
    halves = _rounded(x)
    x.builder.store(halves, x.builder.inttoptr(address, halves.type.as_pointer()), align=2)


def load_pair(loop: Loop, address: ir.Value, alone: bool = False) -> Value:
    """Load two neighbours of 16 bits into every lane, as a pair; or, if alone, one and 0."""
    b = loop.builder
    kind = _I16 if alone else _I32
    bits = b.load(b.inttoptr(address, kind.as_pointer()), align=2)
    every = loop.splat(b.zext(bits, _I32) if alone else bits)
    return Value(b, "float32", loop.lanes, b.bitcast(every, vector_type("float32", loop.lanes)))


def add_products(module: ir.Module, total: Value, left: Value, right: Value) -> Value:
    """Return total + the products of both elements of pairs."""
    b, count = total.builder, total.lanes
    factors = ir.VectorType(_BF16, 2 * count)
    kind = vector_type("float32", count)
    name = f"x86.avx512bf16.dpbf16ps.{32 * count}"
    if config.isa() == "neon":
        name = f"aarch64.neon.bfdot.v{count}f32.v{2 * count}bf16"
    dot = declare(module, f"llvm.{name}", kind, [kind, factors, factors])
    arguments = [total.ir, b.bitcast(left.ir, factors), b.bitcast(right.ir, factors)]
    return Value(b, "float32", count, b.call(dot, arguments))


def add_squares(total: Value, left: ir.Value, right: ir.Value) -> Value:
    """Return total + left right', 2 x 2 + (2 x 4) (2 x 4)', of vectors of 128 bits: NEON's `bfmmla`."""
    b, factors = total.builder, ir.VectorType(_BF16, 8)
    kind = total.ir.type
    multiply = declare(b.module, "llvm.aarch64.neon.bfmmla", kind, [kind, factors, factors])
    return total.like(b.call(multiply, [total.ir, b.bitcast(left, factors), b.bitcast(right, factors)]))
