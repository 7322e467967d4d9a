"""Rows of images for convolutions, in LLVM IR: with zeros around them, sorted by phase, or interleaved."""

from llvmlite import ir

from . import bfloat16, native
from .loops import I32, I64, Loop, bytes_of, n64
from .strided import below, ints, kind, strided
from .vector import Value, select

#: How a frame stores elements: as they are; pairs of neighbouring channels, rounded to bfloat16, each in the
#: bits of a float32; or alone, rounded to bfloat16, in 16 bits.
PLAIN, PAIRS, HALVES = "", "pairs", "halves"


def frame(dtype: str, step: int, form: str = PLAIN) -> int:
    """Return the address of the function that copies rows of an image into a frame, columns sorted by phase.

    frame(rows, x, line, target, wide, step, count, left, width, other): a row of x, `line` bytes after the
    last, becomes `count` rows of `wide` elements of target. Element q of row p is column q * step + p - left,
    or 0 outside of the `width` columns. Up to a vector less one element after the last row is overwritten,
    but in pairs nothing.
    other: in pairs, bytes from a row of x to that of the second elements; 0 for zeros.
    """
    symbol = f"conv_frame_{dtype}_{kind(step)}{form and '_' + form}"
    return native.load(symbol, lambda: _build_frame(symbol, dtype, kind(step), form))


def _build_frame(symbol: str, dtype: str, apart: int, form: str) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 10), [dtype])
    b, lanes = loop.builder, loop.lanes
    rows, x, line, target, wide, step, count, left, width, other = loop.function.args
    size = 2 if form == HALVES else bytes_of(dtype)
    columns_all = ints(loop, width)
    steps = Value(b, "int32", lanes, loop.iota(I32)) * ints(loop, step)
    # Zeros for the second elements: a row without columns.
    columns_other = ints(loop, b.select(b.icmp_signed("!=", other, n64(0)), width, n64(0)))

    def row(r: ir.Value) -> list[ir.Value]:
        source = b.add(x, b.mul(r, line))

        def phase(p: ir.Value) -> list[ir.Value]:
            to = b.add(target, b.mul(b.mul(b.add(b.mul(r, count), p), wide), n64(size)))

            def piece(q: ir.Value) -> list[ir.Value]:
                first = b.sub(b.add(b.mul(q, step), p), left)
                columns = ints(loop, first) + steps
                start = b.add(source, b.mul(first, n64(bytes_of(dtype))))

                def read(address: ir.Value, count: Value) -> Value:
                    inside = below(columns, count)
                    value = strided(loop, dtype, address, columns, count, inside, apart)
                    return select(Value(b, "bool", lanes, inside), value, 0)

                at, value = b.add(to, b.mul(q, n64(size))), read(start, columns_all)
                if form == PAIRS:
                    value = bfloat16.pairs_of(value, read(b.add(start, other), columns_other))
                    loop.store(value, at, loop.mask(b.sub(wide, q)))
                elif form == HALVES:
                    bfloat16.store(value, at)
                else:
                    loop.store(value, at)
                return []

            loop.loop(n64(0), wide, lanes, piece)
            return []

        loop.loop(n64(0), count, 1, phase)
        return []

    loop.loop(n64(0), rows, 1, row)
    b.ret_void()
    return str(module)


def interleave(dtype: str) -> int:
    """Return the address of the function that writes rows of which two sources have every other element.

    interleave(rows, x, apart, line, target, line_target, width): the other source is `apart` bytes after x;
    `line`, line_target: bytes from a row to the next. Of a source up to a vector beyond the row is read.
    """
    symbol = f"conv_interleave_{dtype}"
    return native.load(symbol, lambda: _build_interleave(symbol, dtype))


def _build_interleave(symbol: str, dtype: str) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 7), [dtype])
    b, size, lanes = loop.builder, bytes_of(dtype), loop.lanes
    rows, x, apart, line, target, line_target, width = loop.function.args

    def row(r: ir.Value) -> list[ir.Value]:
        source, to = b.add(x, b.mul(r, line)), b.add(target, b.mul(r, line_target))

        def vector(q: ir.Value) -> list[ir.Value]:
            # q is an element of the result.
            at = b.add(source, b.mul(b.lshr(q, n64(1)), n64(size)))
            even, odd = (loop.load(dtype, a).ir for a in (at, b.add(at, apart)))
            for half in (0, 1):
                order = [k for i in range(lanes // 2) for k in (i, i + lanes)]
                order = [k + half * lanes // 2 for k in order]
                both = b.shuffle_vector(even, odd, ir.Constant(ir.VectorType(I32, lanes), order))
                start = b.add(q, n64(half * lanes))
                mask = loop.mask(b.sub(width, start))
                loop.store(Value(b, dtype, lanes, both), b.add(to, b.mul(start, n64(size))), mask)
            return []

        loop.loop(n64(0), width, 2 * lanes, vector)
        return []

    loop.loop(n64(0), rows, 1, row)
    b.ret_void()
    return str(module)
