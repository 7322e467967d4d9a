"""Products in bfloat16 by NEON's matrix instruction, in LLVM IR: 2 x 4 elements by 4 x 2, added to 2 x 2.

It reads the rows and panels that `matmul_bfloat16.py` packs: two pairs of each of two rows of A; of a panel
of B, two pairs of each of two columns, which are interleaved. It does twice the work of `bfdot`, which takes
pairs as AVX512-BF16 does (see `gemm.py`).
"""

import functools

from llvmlite import ir

from . import bfloat16, config, native
from .loops import I32, I64, Loop, n64
from .vector import Value, constant

#: Terms, pairs of elements, of one instruction; the least rows.
TERMS, LEAST_ROWS = 2, 2

_LANES = 4


def usable() -> bool:
    """Whether the CPU has the instruction."""
    return config.isa() == "neon" and bfloat16.native()


def micro_kernel(columns: int, high: int) -> int:
    """Return the address of the function of `high` x `columns` elements of C, an even number of rows.

    It takes the arguments of `gemm.micro_kernel`'s functions; an odd last term is padded with zeros.
    """
    symbol = f"bfmmla_{high}x{columns}"
    return native.load(symbol, lambda: text(symbol, high, columns))


def text(symbol: str, high: int, columns: int) -> str:
    """Return the LLVM IR of a function of `micro_kernel`."""
    loop = Loop(ir.Module(symbol), symbol, ir.FunctionType(ir.VoidType(), [I64] * 12), ["float32"])
    b = loop.builder
    k, a, row_a, _, panel, step_b, c, row_c, top, bottom, n, accumulate = loop.function.args
    vectors = columns // _LANES
    rows = [b.mul(row_a, n64(i)) for i in range(high)]
    zero = Value(b, "float32", _LANES, constant("float32", _LANES, 0.0))

    def step(p: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        """Add the products of two terms."""
        at_b, at_a = b.add(panel, b.mul(p, step_b)), b.add(a, b.mul(p, n64(4)))
        right = []
        for v in range(vectors):
            start = b.add(at_b, n64(16 * v))
            x, y = (loop.load("float32", at).ir for at in (start, b.add(start, step_b)))
            right += [_shuffled(b, x, y, order) for order in ((0, 4, 1, 5), (2, 6, 3, 7))]
        sums = []
        for i in range(0, high, 2):
            left = _two_rows(b, b.add(at_a, rows[i]), b.add(at_a, rows[i + 1]))
            mine = totals[i * vectors : (i + 2) * vectors]
            for total, columns_of_b in zip(mine, right, strict=True):
                sums.append(bfloat16.add_squares(zero.like(total), left, columns_of_b).ir)
        return sums

    sums = loop.loop(n64(0), k, TERMS, step, [zero.ir] * (high * vectors))
    masks = [loop.mask(b.sub(n, n64(v * _LANES))) for v in range(vectors)]
    for i in range(high):
        mine = sums[i // 2 * 2 * vectors : (i // 2 + 1) * 2 * vectors]
        order = (0, 1, 4, 5) if i % 2 == 0 else (2, 3, 6, 7)
        line = [_shuffled(b, mine[2 * v], mine[2 * v + 1], order) for v in range(vectors)]
        write = functools.partial(_write, loop, b.add(c, b.mul(row_c, n64(i))), line, masks, accumulate)
        loop.when(b.and_(b.icmp_signed("<=", top, n64(i)), b.icmp_signed("<", n64(i), bottom)), write, [])
    b.ret_void()
    return str(loop.module)


def _write(
    loop: Loop, row: ir.Value, line: list[ir.Value], masks: list[ir.Value], accumulate: ir.Value
) -> list[ir.Value]:
    """Write a row of the tile, or add it to C."""
    b = loop.builder
    for v, (value, mask) in enumerate(zip(line, masks, strict=True)):
        at = b.add(row, n64(16 * v))

        def add(at: ir.Value = at, value: ir.Value = value, mask: ir.Value = mask) -> list[ir.Value]:
            return [(loop.load("float32", at, mask) + Value(b, "float32", _LANES, value)).ir]

        total = loop.when(b.icmp_signed("!=", accumulate, n64(0)), add, [value])[0]
        loop.store(Value(b, "float32", _LANES, total), at, mask)
    return []


def _shuffled(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: tuple[int, ...]) -> ir.Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, _LANES), list(order)))


def _two_rows(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Return two pairs of each of two rows, at addresses."""
    both = ir.Constant(ir.VectorType(I64, 2), ir.Undefined)
    for i, at in enumerate((first, second)):
        pairs = b.load(b.inttoptr(at, I64.as_pointer()), align=4)
        both = b.insert_element(both, pairs, ir.Constant(I32, i))
    return both
