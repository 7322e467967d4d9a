"""The micro-kernel of matrix multiplication, in LLVM IR: a register tile of C from strips of A and B.

B is packed in panels of `columns` columns, (k, columns) each, padded with zeros. A is read an element at a
time, wherever its rows are: as the user has it, transposed or not, or packed in panels of ROWS rows,
(k, ROWS) each. The tile keeps ROWS x (columns / lanes) accumulators in registers; every element
of C is summed in the order of k, so its bits do not depend on how C is cut.
"""

from llvmlite import ir

from . import config, native
from .loops import I64, Loop, bytes_of, n64
from .vector import Value, fma, vector_type

#: Rows of a register tile and vectors in its columns, by vector width in bytes: 24 of AVX-512's 32
#: registers (14 rows made LLVM spill), 12 of AVX2's 16, 8 of the 16 of plain x86-64.
_TILE = {64: (12, 2), 32: (6, 2), 16: (4, 2)}


def rows() -> int:
    """Return how many rows a register tile has."""
    return _TILE[config.vector_bytes()][0]


def lanes(dtype: str) -> int:
    """Return how many elements a vector has."""
    return config.vector_bytes() // bytes_of(dtype)


def panel(dtype: str, n: int) -> int:
    """Return how many columns a panel of B has when C has n: one vector where that is enough."""
    return lanes(dtype) * (1 if n <= lanes(dtype) else _TILE[config.vector_bytes()][1])


def micro_kernel(dtype: str, columns: int) -> int:
    """Return the address of the tile's function for panels of `columns`.

    tile(k, a, row_a, step_a, b, c, row_c, first, last, n, accumulate): adds a tile of A B to C, or stores it.
    row_a, step_a: bytes from a row of A to the next, and from a term of the sum to the next. row_c: bytes
    from a row of C to the next. All ROWS rows of A are read; of C rows first to last - 1 are written, and
    n <= columns columns.
    """
    symbol = f"gemm_{dtype}_{rows()}x{columns}"
    return native.load(symbol, lambda: _build(symbol, dtype, columns // lanes(dtype)))


def _build(symbol: str, dtype: str, vectors: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 11), [dtype])
    b, count, size = loop.builder, loop.lanes, bytes_of(dtype)
    k, a, row_a, step_a, panel_b, c, row_c, top, bottom, n, accumulate = loop.function.args
    high, wide = rows(), vectors * count
    fours = [b.mul(row_a, n64(4 * i)) for i in range(-(-high // 4))]
    ones = [b.mul(row_a, n64(i)) for i in range(4)]
    zero = ir.Constant(vector_type(dtype, count), None)

    def step(p: ir.Value, *accumulators: ir.Value) -> list[ir.Value]:
        at_b = b.add(panel_b, b.mul(p, n64(wide * size)))
        row_b = [loop.load(dtype, b.add(at_b, n64(v * count * size))) for v in range(vectors)]
        at_a = b.add(a, b.mul(p, step_a))
        out = []
        for i in range(high):
            # A base for every 4 rows: x86 adds 0, 1, 2 rows, or a register with 3, in the load itself.
            base = b.add(at_a, fours[i // 4])
            factor = loop.load_one(dtype, b.add(base, ones[i % 4]))
            for v in range(vectors):
                total = Value(b, dtype, count, accumulators[i * vectors + v])
                out.append(fma(factor, row_b[v], total).ir)
        return out

    tile = loop.loop(n64(0), k, 1, step, [zero] * (high * vectors))
    masks = [loop.mask(b.sub(n, n64(v * count))) for v in range(vectors)]
    for i in range(high):
        row = b.add(c, b.mul(n64(i), row_c))

        def write(i: int = i, row: ir.Value = row) -> list[ir.Value]:
            places = [b.add(row, n64(v * count * size)) for v in range(vectors)]
            mine = tile[i * vectors : (i + 1) * vectors]

            def add() -> list[ir.Value]:
                return [
                    (loop.load(dtype, at, mask) + Value(b, dtype, count, t)).ir
                    for at, mask, t in zip(places, masks, mine, strict=True)
                ]

            made = loop.when(b.icmp_signed("!=", accumulate, n64(0)), add, mine)
            for at, mask, t in zip(places, masks, made, strict=True):
                loop.store(Value(b, dtype, count, t), at, mask)
            return []

        inside = b.and_(b.icmp_signed("<=", top, n64(i)), b.icmp_signed("<", n64(i), bottom))
        loop.when(inside, write, [])
    b.ret_void()
    return str(module)
