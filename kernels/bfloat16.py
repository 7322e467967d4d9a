"""bfloat16 in vectors: rounding of float32, and products of pairs that are added in float32."""

import functools

from llvmlite import ir

from . import config
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
    """Whether the CPU multiplies pairs in bfloat16: AVX512-BF16."""
    return config.isa() == "avx512" and "+avx512bf16" in config.cpu()[1].split(",")


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


def pairs_of(first: Value, second: Value | None) -> Value:
    """Return pairs (first, second), each element in the bits of one float32; None stands for zeros."""
    b, wide = first.builder, ir.VectorType(_I32, first.lanes)
    low = b.zext(_rounded(first), wide)
    if second is not None:
        high = b.shl(b.zext(_rounded(second), wide), ir.Constant(wide, [16] * first.lanes))
        low = b.or_(low, high)
    return Value(b, "float32", first.lanes, b.bitcast(low, vector_type("float32", first.lanes)))


def neighbours(left: Value, right: Value) -> Value:
    """Return the pairs of neighbours in two vectors, one after the other."""
    b, count = left.builder, left.lanes
    order = ir.Constant(ir.VectorType(_I32, 2 * count), list(range(2 * count)))
    both = b.shuffle_vector(_rounded(left), _rounded(right), order)
    return Value(b, "float32", count, b.bitcast(both, vector_type("float32", count)))


def add_products(module: ir.Module, total: Value, left: Value, right: Value) -> Value:
    """Return total + the products of both elements of pairs."""
    b, count = total.builder, total.lanes
    factors = ir.VectorType(_BF16, 2 * count)
    kind = vector_type("float32", count)
    dot = declare(module, f"llvm.x86.avx512bf16.dpbf16ps.{32 * count}", kind, [kind, factors, factors])
    arguments = [total.ir, b.bitcast(left.ir, factors), b.bitcast(right.ir, factors)]
    return Value(b, "float32", count, b.call(dot, arguments))
