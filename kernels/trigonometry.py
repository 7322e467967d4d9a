"""Sine and cosine as branch-free formulas, accurate for every finite argument.

An argument is reduced to a quarter of a turn by Cody & Waite's subtraction where that is exact, by Payne &
Hanek's multiplication with the digits of 2/pi beyond. The rules of `formulas.py` hold here too.
"""

from llvmlite import ir

from . import polynomials as tables
from .formulas import FORMAT, as_sum
from .vector import Value, fabs, fma, polynomial, rint, select


def _quadrant(x: Value) -> tuple[Value, Value]:
    """Return (n, r): the low bits of the integer n, and r, with x = n * pi/2 + r, |r| <= pi/4.

    float64. Below 2**45 n is right and the first step exact (Cody & Waite 1980).
    """
    shifter = FORMAT[x.dtype].shifter
    shifted = fma(x, tables.TWO_OVER_PI, shifter)
    n = shifted - shifter
    r = x
    for part in tables.HALF_PI:
        r = fma(n, -part, r)
    far_n, far_r = _quadrant_far(x)
    near = fabs(x) < 2.0**45
    return select(near, shifted.as_int(), far_n), select(near, r, far_r)


def _quadrant_far(x: Value) -> tuple[Value, Value]:
    """Return (n, r) as `_quadrant` does, for 2**45 <= |x|, with an absolute error of 2**-88.

    Payne & Hanek 1983: of the bits of 2/pi, those that contribute multiples of 4 are skipped.
    """
    field = (x.as_int() >> 52) & 0x7FF
    row = (select(field > 1077, field, 1077) - 1077) >> 4  # 1077: the last bit of x is worth 4
    a, b, c = _lookup("two_over_pi", tables.QUADRANTS_DOUBLE, row)
    x = x * 2.0**-200  # and the table is 2**200 times larger, so that it has no subnormal numbers
    first, second = x * a, x * b
    terms = [fma(rint(first * 0.25), -4.0, first), fma(x, a, -first), second]
    low = fma(x, c, fma(x, b, -second))
    n, total = x.coerce(0.0), x.coerce(0.0)
    for term in terms:
        whole = rint(term)
        n = n + whole
        total, error = _two_sum(total, term - whole)
        low = low + error
    whole = rint(total)
    r = (total - whole + low) * tables.HALF_PI[0]
    return (n + whole + FORMAT[x.dtype].shifter).as_int(), r


def _two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """Return a + b rounded, and the error (Knuth 1969)."""
    total = a + b
    c = total - a
    return total, (a - (total - c)) + (b - c)


def _lookup(name: str, rows: tuple[tuple[float, ...], ...], index: Value) -> list[Value]:
    """Return the columns of `rows[index]`, float64, from a constant table in the module."""
    b, width = index.builder, len(rows[0])
    kind = ir.ArrayType(ir.DoubleType(), len(rows) * width)
    if name not in b.module.globals:
        table = ir.GlobalVariable(b.module, kind, name)
        table.linkage, table.global_constant = "private", True
        table.initializer = ir.Constant(kind, [number for row in rows for number in row])
    columns = [index.astype("float64").ir] * width  # every lane is replaced
    for lane in range(index.lanes):
        row = index.ir if index.lanes == 1 else b.extract_element(index.ir, ir.IntType(32)(lane))
        for k in range(width):
            at = b.add(b.mul(row, ir.IntType(64)(width)), ir.IntType(64)(k))
            number = b.load(b.gep(b.module.globals[name], [ir.IntType(64)(0), at]))
            if index.lanes > 1:
                number = b.insert_element(columns[k], number, ir.IntType(32)(lane))
            columns[k] = number
    return [index.like(column, "float64") for column in columns]


def _quadrant_single(x: Value) -> tuple[Value, Value]:
    """Return (n, r) as `_quadrant` does, for any finite float32, by float64 arithmetic.

    As `_quadrant_far`, but x is 24 bits, so that its products with pieces of 29 bits are exact.
    """
    a = fabs(x)
    pieces = [x.astype("float64").coerce(p) for p in tables.QUADRANTS[0]]
    for least, following in zip((2.0**54, 2.0**83, 2.0**112), tables.QUADRANTS[1:], strict=True):
        pieces = [select(a >= least, p, q) for p, q in zip(following, pieces, strict=True)]
    wide = x.astype("float64")
    first, second = wide * pieces[0], wide * pieces[1]
    first = fma(rint(first * 0.25), -4.0, first)
    shifter = FORMAT["float64"].shifter
    shifted = first + second + shifter
    r = fma(wide, pieces[2], (first - (shifted - shifter)) + second)
    return shifted.as_int().astype("int32"), (r * tables.HALF_PI[0]).astype("float32")


def _sine(x: Value, quarters: int) -> Value:
    """Return sin(x + quarters * pi/2)."""
    n, r = _quadrant_single(x) if x.dtype == "float32" else _quadrant(x)
    n = n + quarters
    z = r * r
    sine = fma(r * z, polynomial(z, tables.SIN[x.dtype]), r)
    cosine = fma(z * z, polynomial(z, tables.COS[x.dtype]), fma(z, -0.5, 1))
    return _turned(n, sine, cosine)


def _turned(n: Value, sine: Value, cosine: Value) -> Value:
    """Return the sine of n quarters of a turn more."""
    y = select((n & 1) == 0, sine, cosine)
    top = {"float32": 30, "float64": 62}[y.dtype]
    return (y.as_int() ^ ((n & 2) << top)).as_float()


def sin(x: Value) -> Value:
    """Return the sine; -0.0 gives -0.0, an infinity NaN."""
    return select(x == 0, x, _sine(x, 0))


def cos(x: Value) -> Value:
    """Return the cosine; an infinity gives NaN."""
    return _sine(x, 1)


def cos_turns(word: Value) -> Value:
    """Return cos(2 pi w / 2**bits) for an unsigned word w: float32 of int32, float64 of int64."""
    bits = {"int32": 32, "int64": 64}[word.dtype]
    dtype = {"int32": "float32", "int64": "float64"}[word.dtype]
    n = (word + (1 << (bits - 3))) >> (bits - 2)
    x = (word - (n << (bits - 2))).astype(dtype) * 2.0 ** (3 - bits)  # eighths of a turn
    high, low = as_sum(tables.EIGHTH, dtype)
    z = x * x
    cosine = fma(z, polynomial(z, tables.COS_EIGHTHS[dtype]), 1)
    sine = fma(x, high, x * fma(z, polynomial(z, tables.SIN_EIGHTHS[dtype]), low))
    return _turned(n + 1, sine, cosine)
