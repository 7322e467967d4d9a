"""Loading elements of a row a fixed step apart, in LLVM IR, where some may be outside of the row."""

from llvmlite import ir

from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Value, select, vector_type


def kind(step: int) -> int:
    """Return which code a step takes: 1, 2, or 3 for any other."""
    return min(step, 3)


def ints(loop: Loop, scalar: ir.Value) -> Value:
    """Repeat a 64-bit integer in every lane, as 32-bit integers."""
    return Value(loop.builder, "int32", loop.lanes, loop.splat(loop.builder.trunc(scalar, I32)))


def below(columns: Value, width: Value) -> ir.Value:
    """Return 0 <= columns < width: a negative one is a large unsigned number."""
    return columns.builder.icmp_unsigned("<", columns.ir, width.ir)


def strided(
    loop: Loop, dtype: str, address: ir.Value, columns: Value, width: Value, inside: ir.Value, step: int
) -> Value:
    """Load elements of a row where `inside`; other lanes are unspecified. Nothing outside of the row is read.

    columns: their numbers, `step` apart, the first at `address`.  width: the row's length, at least 1 for
        step 3.
    step: a `kind`.
    """
    b, size, lanes = loop.builder, bytes_of(dtype), loop.lanes
    if step == 1:
        return loop.load(dtype, address, inside)
    iota = Value(b, "int32", lanes, loop.iota(I32))
    first = b.extract_element(columns.ir, ir.Constant(I32, 0))
    if step == 2:
        halves = []
        for k in (0, 1):
            column = Value(b, "int32", lanes, loop.splat(first)) + iota + k * lanes
            mask = below(column, width)
            halves.append(loop.load(dtype, b.add(address, n64(k * lanes * size)), mask).ir)
        even = ir.Constant(ir.VectorType(I32, lanes), list(range(0, 2 * lanes, 2)))
        return Value(b, dtype, lanes, b.shuffle_vector(*halves, even))
    vector: ir.Value = ir.Constant(vector_type(dtype, lanes), None)
    kept = select(Value(b, "bool", lanes, inside), columns, 0)
    base = b.sub(address, b.mul(b.sext(first, I64), n64(size)))
    for k in range(lanes):
        lane = ir.Constant(I32, k)
        at = b.add(base, b.mul(b.sext(b.extract_element(kept.ir, lane), I64), n64(size)))
        element = b.load(b.inttoptr(at, vector_type(dtype, 1).as_pointer()))
        vector = b.insert_element(vector, element, lane)
    return Value(b, dtype, lanes, vector)
