"""The micro-kernel of matrix multiplication, in LLVM IR: a register tile of C from packed panels.

A is packed in panels of ROWS rows, (k, ROWS) each; B in panels of `columns` columns, (k, columns) each,
both padded with zeros. The tile keeps ROWS x (columns / lanes) accumulators in registers; every element
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
    """Return the address of `tile(k, a, b, c, row_bytes, m, n, accumulate)` for panels of `columns`.

    It adds a tile of A B to C, or stores it: m <= ROWS rows and n <= columns columns of C are written.
    """
    symbol = f"gemm_{dtype}_{rows()}x{columns}"
    return native.load(symbol, lambda: _build(symbol, dtype, columns // lanes(dtype)))


def _build(symbol: str, dtype: str, vectors: int) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * 8), [dtype])
    b, count, size = loop.builder, loop.lanes, bytes_of(dtype)
    k, a, panel_b, c, row_bytes, m, n, accumulate = loop.function.args
    high, wide = rows(), vectors * count
    zero = ir.Constant(vector_type(dtype, count), None)

    def step(p: ir.Value, *accumulators: ir.Value) -> list[ir.Value]:
        at_b = b.add(panel_b, b.mul(p, n64(wide * size)))
        row_b = [loop.load(dtype, b.add(at_b, n64(v * count * size))) for v in range(vectors)]
        at_a = b.add(a, b.mul(p, n64(high * size)))
        out = []
        for i in range(high):
            factor = loop.load_one(dtype, b.add(at_a, n64(i * size)))
            for v in range(vectors):
                total = Value(b, dtype, count, accumulators[i * vectors + v])
                out.append(fma(factor, row_b[v], total).ir)
        return out

    tile = loop.loop(n64(0), k, 1, step, [zero] * (high * vectors))
    masks = [loop.mask(b.sub(n, n64(v * count))) for v in range(vectors)]
    for i in range(high):
        row = b.add(c, b.mul(n64(i), row_bytes))

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

        loop.when(b.icmp_signed("<", n64(i), m), write, [])
    b.ret_void()
    return str(module)
