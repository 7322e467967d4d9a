"""The inner functions of matrix multiplication, in LLVM IR: a register tile of C, and packing.

A tile keeps rows x (columns / lanes) accumulators in registers. It reads A an element at a time, at any
strides: in place, transposed or not, or packed in panels of ROWS rows, (k, ROWS) each. It reads B in rows of
vectors: in place, or packed in panels of `columns` columns, (k, columns) each, padded with zeros. Every
element of C is summed in the order of k, so its bits do not depend on how C is cut.

In bfloat16, a term of the sum is a pair: 32 bits with a product's two factors, rounded to bfloat16 as A and B
are packed, for the instruction that adds two products to each float32 of a vector. So the tile and the layout
are those of float32 with half of the terms.
"""

import functools
from collections.abc import Callable

from llvmlite import ir

from . import bfloat16, config, native
from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Value, fma, vector_type
from .write_back import WriteBack

#: Rows of a register tile and vectors in its columns: 24 of the 32 registers of AVX-512 and NEON (14 rows
#: made LLVM spill), 12 of AVX2's 16, 8 of the 16 of plain x86-64. Lower tiles compute the remaining rows.
_TILE = {"avx512": (12, 2), "avx2": (6, 2), "neon": (8, 3), "generic": (4, 2)}
_LOWER = (8, 4, 2, 1)


def rows() -> int:
    """Return how many rows a register tile has."""
    return _TILE[config.isa()][0]


def height(m: int) -> int:
    """Return the rows of the lowest tile that covers m rows at once, of the highest where none does."""
    return min((h for h in (rows(), *_LOWER) if m <= h <= rows()), default=rows())


def within(m: int) -> int:
    """Return the rows of the highest tile that C, of m rows, has room for."""
    return max(h for h in (rows(), *_LOWER) if h <= min(m, rows()))


def lanes(dtype: str) -> int:
    """Return how many elements a vector has."""
    return config.vector_bytes() // bytes_of(dtype)


def panel(dtype: str, n: int) -> int:
    """Return how many columns a panel of B has when C has n: one vector where that is enough."""
    return lanes(dtype) * (1 if n <= lanes(dtype) else _TILE[config.isa()][1])


def micro_kernel(
    dtype: str,
    columns: int,
    high: int | None = None,
    masked: bool = False,
    pairs: bool = False,
    epilogue: WriteBack | None = None,
) -> int:
    """Return the address of the function of a tile, `high` x `columns`, by default ROWS high.

    tile(k, a, row_a, step_a, b, step_b, c, row_c, first, last, n, accumulate): adds a tile of A B to C, or
    stores it. row_a, step_a: bytes from a row of A to the next, and from a term of the sum to the next.
    step_b: bytes from a row of B to the next. row_c: bytes from a row of C to the next. All rows of the tile
    of A are read, and all columns of B unless it is masked; of C rows first to last - 1 are written, and
    n <= columns columns.
    pairs: whether each term is a pair in bfloat16, of C in float32.
    epilogue: is applied before C is stored; tile(..., accumulate, words, row, column) then has the address of
    the epilogue's words, and where in C the tile starts.
    """
    tall = high or rows()
    symbol = f"gemm_{dtype}_{tall}x{columns}{'_masked' if masked else ''}{'_pairs' if pairs else ''}"
    if epilogue:
        symbol += f"_{epilogue.name}"
    vectors = columns // lanes(dtype)
    return native.load(symbol, lambda: _tile(symbol, dtype, tall, vectors, masked, pairs, epilogue))


def _tile(
    symbol: str,
    dtype: str,
    high: int,
    vectors: int,
    masked: bool,
    pairs: bool = False,
    epilogue: WriteBack | None = None,
) -> str:
    module = ir.Module(symbol)
    loop = Loop(module, symbol, ir.FunctionType(ir.VoidType(), [I64] * (15 if epilogue else 12)), [dtype])
    b, count, size = loop.builder, loop.lanes, bytes_of(dtype)
    k, a, row_a, step_a, panel_b, step_b, c, row_c, top, bottom, n, accumulate = loop.function.args[:12]
    fours = [b.mul(row_a, n64(4 * i)) for i in range(-(-high // 4))]
    ones = [b.mul(row_a, n64(i)) for i in range(4)]
    zero = ir.Constant(vector_type(dtype, count), None)
    masks = [loop.mask(b.sub(n, n64(v * count))) for v in range(vectors)]
    # The next strip of A is prefetched meanwhile, a line for each term: no CPU predicts 12 rows at once,
    # or terms that are rows apart. 5 % where A is far (2048 x 512 x 128), 13 % where it is transposed too.
    # Term p prefetches its own line, or if A is stored by rows, its line of row p % 16 where a strip has 12
    # rows, of row p % 8 where it has 6: prefetching 16 rows, more than two such strips, took 3 to 5 % longer.
    turn = b.select(b.icmp_signed(">", row_a, step_a), n64((1 << (rows() - 1).bit_length()) - 1), n64(0))
    ahead = b.add(a, b.mul(row_a, n64(high)))

    def step(p: ir.Value, *accumulators: ir.Value) -> list[ir.Value]:
        at_b = b.add(panel_b, b.mul(p, step_b))
        row_b = [
            loop.load(dtype, b.add(at_b, n64(v * count * size)), masks[v] if masked else None)
            for v in range(vectors)
        ]
        at_a = b.add(a, b.mul(p, step_a))
        if high == rows():
            row, term = b.and_(p, turn), b.and_(p, b.not_(turn))
            loop.prefetch(b.add(ahead, b.add(b.mul(row, row_a), b.mul(term, step_a))))
        out = []
        for i in range(high):
            # A base for every 4 rows: x86 adds 0, 1, 2 rows, or a register with 3, in the load itself.
            base = b.add(at_a, fours[i // 4])
            factor = loop.load_one(dtype, b.add(base, ones[i % 4]))
            for v in range(vectors):
                total = Value(b, dtype, count, accumulators[i * vectors + v])
                out.append(_added(loop, total, factor, row_b[v], pairs).ir)
        return out

    tile = loop.loop(n64(0), k, 1, step, [zero] * (high * vectors))
    finish = epilogue.rows(loop, dtype, *loop.function.args[12:]) if epilogue else None
    for i in range(high):
        values = [Value(b, dtype, count, v) for v in tile[i * vectors : (i + 1) * vectors]]
        write = functools.partial(
            _write_row, loop, b.add(c, b.mul(n64(i), row_c)), values, masks, accumulate, i, finish
        )
        inside = b.and_(b.icmp_signed("<=", top, n64(i)), b.icmp_signed("<", n64(i), bottom))
        loop.when(inside, write, [])
    b.ret_void()
    return str(module)


def _write_row(
    loop: Loop,
    row: ir.Value,
    values: list[Value],
    masks: list[ir.Value],
    accumulate: ir.Value,
    i: int,
    finish: Callable[[int, int, Value, ir.Value], Value] | None,
) -> list[ir.Value]:
    """Add row i of a tile to C at an address, or store it; `finish` returns what is stored."""
    b, count, dtype = loop.builder, loop.lanes, values[0].dtype
    targets = [b.add(row, n64(v * count * bytes_of(dtype))) for v in range(len(values))]

    def add() -> list[ir.Value]:
        return [
            (loop.load(dtype, at, mask) + value).ir
            for at, mask, value in zip(targets, masks, values, strict=True)
        ]

    totals = loop.when(b.icmp_signed("!=", accumulate, n64(0)), add, [value.ir for value in values])
    for v, (at, mask, total) in enumerate(zip(targets, masks, totals, strict=True)):
        value = Value(b, dtype, count, total)
        loop.store(finish(i, v * count, value, mask) if finish else value, at, mask)
    return []


def _added(loop: Loop, total: Value, factor: Value, row: Value, pairs: bool) -> Value:
    """Return a sum with one more term."""
    if pairs:
        return bfloat16.add_products(loop.module, total, factor, row)
    # Without the instruction, a fused multiply-add would be a call for every element.
    return fma(factor, row, total) if config.has_fma() else total + factor * row


def packer(dtype: str, width: int, transposed: bool, pairs: bool = False) -> int:
    """Return the address of the function that packs one panel, (depth, width), padded with zeros.

    pack(source, row, depth, used, target): of a matrix whose rows are `row` bytes apart, `used` <= width
    columns and `depth` rows; or transposed, `used` rows and `depth` columns.
    pairs: whether two terms of the sum become a pair in bfloat16: the panel is (ceil(depth / 2), width).
    """
    symbol = f"pack_{dtype}_{width}{'_transposed' if transposed else ''}{'_pairs' if pairs else ''}"
    build = _pack_transposed if transposed else _pack
    return native.load(symbol, lambda: build(symbol, dtype, width, pairs))


def _packing(symbol: str, dtype: str) -> Loop:
    return Loop(ir.Module(symbol), symbol, ir.FunctionType(ir.VoidType(), [I64] * 5), [dtype])


def _pack(symbol: str, dtype: str, width: int, pairs: bool) -> str:
    loop = _packing(symbol, dtype)
    b, count, size = loop.builder, loop.lanes, bytes_of(dtype)
    source, row, depth, used, target = loop.function.args
    starts = range(0, width, count)

    def copy(masked: bool) -> list[ir.Value]:
        reads = [loop.mask(b.sub(used, n64(v))) if masked else None for v in starts]
        ends = [None if v + count <= width else loop.mask(n64(width - v)) for v in starts]

        def line(p: ir.Value, to: ir.Value, second: bool) -> list[ir.Value]:
            """Pack row p; with the next one, unless there is none, in pairs."""
            at = b.add(source, b.mul(p, row))
            to = b.add(target, b.mul(to, n64(width * size)))
            for v, read, end in zip(starts, reads, ends, strict=True):
                mask, start = read if masked else end, b.add(at, n64(v * size))
                value = loop.load(dtype, start, mask)
                if pairs:
                    other = loop.load(dtype, b.add(start, row), mask) if second else None
                    value = bfloat16.pairs_of(value, other)
                loop.store_first(value, b.add(to, n64(v * size)), min(count, width - v))
            return []

        if not pairs:
            loop.loop(n64(0), depth, 1, lambda p: line(p, p, False))
            return []
        half = b.lshr(depth, n64(1))
        loop.loop(n64(0), half, 1, lambda p: line(b.shl(p, n64(1)), p, True))
        odd = b.icmp_signed("!=", b.and_(depth, n64(1)), n64(0))
        loop.when(odd, lambda: line(b.shl(half, n64(1)), half, False), [])
        return []

    whole = b.icmp_signed("==", used, n64(width))
    loop.when(whole, lambda: copy(False), [])
    loop.when(b.not_(whole), lambda: copy(True), [])
    b.ret_void()
    return str(loop.module)


def _pack_transposed(symbol: str, dtype: str, width: int, pairs: bool = False) -> str:
    loop = _packing(symbol, dtype)
    b, count, size = loop.builder, loop.lanes, bytes_of(dtype)
    source, row, columns, used, target = loop.function.args
    depth = b.lshr(b.add(columns, n64(1)), n64(1)) if pairs else columns  # terms
    term = 2 * size if pairs else size

    def read_terms(line: ir.Value, p: ir.Value, rest: ir.Value | None) -> ir.Value:
        """Return `count` terms of a row, from an address on; `rest` of them unless None."""
        if not pairs:
            return loop.load(dtype, line, None if rest is None else loop.mask(rest)).ir
        left = b.sub(columns, b.shl(p, n64(1)))
        masks = [None if rest is None else loop.mask(b.sub(left, n64(k * count))) for k in range(2)]
        halves = [loop.load(dtype, b.add(line, n64(k * count * size)), mask) for k, mask in enumerate(masks)]
        return bfloat16.neighbours(*halves).ir

    def block(first: int, rest: ir.Value | None, p: ir.Value) -> list[ir.Value]:
        """Move terms p, p + 1, ... of `count` rows from `first` on; `rest` of them unless None."""
        read = []
        for i in range(min(count, width - first)):
            line = b.add(source, b.add(b.mul(row, n64(first + i)), b.mul(p, n64(term))))

            def load(line: ir.Value = line) -> list[ir.Value]:
                return [read_terms(line, p, rest)]

            zero = ir.Constant(vector_type(dtype, count), None)
            read += loop.when(b.icmp_signed("<", n64(first + i), used), load, [zero])
        read += [ir.Constant(vector_type(dtype, count), None)] * (count - len(read))
        for i, value in enumerate(_transpose(b, read)):
            at = b.add(target, b.mul(b.add(b.mul(b.add(p, n64(i)), n64(width)), n64(first)), n64(size)))

            def store(value: ir.Value = value, at: ir.Value = at) -> list[ir.Value]:
                loop.store_first(Value(b, dtype, count, value), at, min(count, width - first))
                return []

            if rest is None:
                store()
            else:
                loop.when(b.icmp_signed("<", n64(i), rest), store, [])
        return []

    # Blocks of whole pairs: the second element of an odd row's last pair is not read.
    whole = b.and_(b.lshr(columns, n64(1)) if pairs else depth, n64(-count))
    rest = b.sub(depth, whole)
    for first in range(0, width, count):
        loop.loop(n64(0), whole, count, functools.partial(block, first, None))
        loop.when(b.icmp_signed(">", rest, n64(0)), functools.partial(block, first, rest, whole), [])
    b.ret_void()
    return str(loop.module)


def row_packer(transposed: bool) -> int:
    """Return the address of the function that packs rows of pairs in bfloat16, padded with zeros.

    pack(source, row, depth, used, target, out): of a float32 matrix whose rows are `row` bytes apart, `used`
    rows and `depth` columns; or transposed, `used` columns and `depth` rows. Rows of the result are `out`
    bytes apart, a multiple of a vector's: so many are written whole.
    """
    build = _pack_columns if transposed else _pack_rows
    symbol = f"pack_rows{'_transposed' if transposed else ''}_pairs"
    return native.load(symbol, lambda: build(symbol))


def _row_packing(symbol: str) -> Loop:
    return Loop(ir.Module(symbol), symbol, ir.FunctionType(ir.VoidType(), [I64] * 6), ["float32"])


def _pack_rows(symbol: str) -> str:
    loop = _row_packing(symbol)
    b, count = loop.builder, loop.lanes
    source, row, depth, used, target, out = loop.function.args

    def line(i: ir.Value) -> list[ir.Value]:
        start, to = b.add(source, b.mul(i, row)), b.add(target, b.mul(i, out))

        def move(masked: bool, p: ir.Value) -> list[ir.Value]:
            """Move 2 x `count` elements from the p-th on."""
            at, halves = b.add(start, b.mul(p, n64(4))), []
            for k in range(2):
                mask = loop.mask(b.sub(depth, b.add(p, n64(k * count)))) if masked else None
                halves.append(loop.load("float32", b.add(at, n64(4 * k * count)), mask))
            loop.store(bfloat16.neighbours(*halves), b.add(to, b.mul(p, n64(2))))
            return []

        loop.loop(n64(0), whole, 2 * count, functools.partial(move, False))
        rest = b.icmp_signed("<", whole, depth)
        loop.when(rest, functools.partial(move, True, whole), [])
        return []

    whole = b.and_(depth, n64(-2 * count))
    loop.loop(n64(0), used, 1, line)
    b.ret_void()
    return str(loop.module)


def _pack_columns(symbol: str) -> str:
    loop = _row_packing(symbol)
    b, count = loop.builder, loop.lanes
    source, row, depth, used, target, out = loop.function.args

    def read(at: ir.Value, left: ir.Value, first: ir.Value, masked: bool) -> ir.Value:
        """Return the pairs of two rows at an address, in `count` columns; `left` rows are left."""
        halves = []
        for k in range(2):
            mask = None
            if masked:
                inside = b.icmp_signed("<", n64(k), left)
                mask = loop.mask(b.select(inside, b.sub(used, first), n64(0)))
            halves.append(loop.load("float32", b.add(at, b.mul(row, n64(k))), mask))
        return bfloat16.pairs_of(*halves).ir

    def square(p: ir.Value, masked: bool, first: ir.Value) -> list[ir.Value]:
        """Move `count` pairs of rows, from row p on, in `count` columns."""
        at = b.add(b.add(source, b.mul(p, row)), b.mul(first, n64(4)))
        lines = []
        for i in range(count):
            down = b.add(at, b.mul(row, n64(2 * i)))
            lines.append(read(down, b.sub(depth, b.add(p, n64(2 * i))), first, masked))
        to = b.add(b.add(target, b.mul(first, out)), b.mul(p, n64(2)))
        for i, value in enumerate(_transpose(b, lines)):

            def store(i: int = i, value: ir.Value = value) -> list[ir.Value]:
                loop.store(Value(b, "float32", count, value), b.add(to, b.mul(out, n64(i))))
                return []

            if masked:
                loop.when(b.icmp_signed("<", b.add(first, n64(i)), used), store, [])
            else:
                store()
        return []

    def squares(p: ir.Value) -> list[ir.Value]:
        # Columns are the inner loop: 2 x `count` rows are read contiguously.
        whole = b.icmp_signed("<=", b.add(p, n64(2 * count)), depth)
        full = b.select(whole, b.and_(used, n64(-count)), n64(0))
        loop.loop(n64(0), full, count, functools.partial(square, p, False))
        loop.loop(full, used, count, functools.partial(square, p, True))
        return []

    loop.loop(n64(0), depth, 2 * count, squares)
    b.ret_void()
    return str(loop.module)


def _transpose(b: ir.IRBuilder, lines: list[ir.Value]) -> list[ir.Value]:
    """Return the columns of a square of vectors: exchange pairs, then pairs of pairs, and so on."""
    count, half = len(lines), 1
    while half < count:
        exchanged = list(lines)
        for i in range(count):
            if i & half:
                continue
            low, high = lines[i], lines[i + half]
            first = [j - half + count if j & half else j for j in range(count)]
            second = [j + count if j & half else j + half for j in range(count)]
            exchanged[i], exchanged[i + half] = (
                b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, count), order))
                for order in (first, second)
            )
        lines, half = exchanged, 2 * half
    return lines
