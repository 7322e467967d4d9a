"""Branch-free elementary functions of `Value`s, one source for float32 and float64.

Every step is an IEEE operation in the order written, a fused multiply-add where it says `fma`, so a
result has the same bits on every CPU and in every lane. Nothing calls libm. NaN comes out for NaN.
"""

from dataclasses import dataclass

from llvmlite import ir

from . import polynomials as tables
from .vector import Value, copysign, fabs, fma, polynomial, rint, select

INFINITY = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Format:
    """What the formulas know of an IEEE format."""

    mantissa: int  # bits stored of it
    bias: int
    normal: float  # the least normal number
    shifter: float  # 1.5 * 2**mantissa: adding it rounds to an integer, kept in the low bits
    overflow: float  # exp(x) is infinite from here on, a little before this
    underflow: float  # exp(x) is 0 up to here


FORMAT = {
    "float32": Format(23, 127, 2.0**-126, 1.5 * 2.0**23, 89.0, -104.0),
    "float64": Format(52, 1023, 2.0**-1022, 1.5 * 2.0**52, 710.0, -746.0),
}


def _clamp(x: Value, low: float, high: float) -> Value:
    """Limit x to [low, high]; NaN stays. Each select is one min or max instruction."""
    x = select(x < low, low, x)
    return select(x > high, high, x)


def _reduce(
    x: Value, tail: Value | None = None, table: tuple[float, ...] | None = None
) -> tuple[Value, Value]:
    """Return (words, m): x + tail = n * log(2) + r, m = exp(r) - 1, |r| <= log(2)/2.

    `words` are the bits of n + 2 * bias + shifter. Cody & Waite 1980: n * log(2) is subtracted in
    two parts, the first exactly.
    """
    form, (high, low) = FORMAT[x.dtype], tables.LN2[x.dtype]
    shifter = form.shifter + 2 * form.bias
    shifted = fma(x, tables.LOG2E, shifter)
    n = shifted - shifter
    r = fma(n, -low, fma(n, -high, x))
    if tail is not None:
        r = r + tail
    return shifted.as_int(), fma(r * r, polynomial(r, table or tables.EXPM1[x.dtype]), r)


def _halves(words: Value, dtype: str) -> tuple[Value, Value]:
    """Return 2**k, and the bits of 2**(n-k), with k about n/2, so that both are normal numbers."""
    form = FORMAT[dtype]
    both = words << form.mantissa
    first = (both >> 1) & -(1 << form.mantissa)
    return first.as_float(), both - first


def _scaled(words: Value, m: Value) -> Value:
    """Return 2**n * (1 + m); of the two factors only the last can overflow or underflow."""
    a, second = _halves(words, m.dtype)
    return fma(a, m, a) * second.as_float()


def exp(x: Value) -> Value:
    """Return e**x; subnormal results are rounded twice."""
    form = FORMAT[x.dtype]
    return _scaled(*_reduce(_clamp(x, form.underflow, form.overflow)))


def _power_of_two(words: Value, dtype: str) -> Value:
    """Return 2**n for -bias < n <= bias."""
    form = FORMAT[dtype]
    return ((words - form.bias) << form.mantissa).as_float()


def _expm1_negative(x: Value) -> Value:
    """Return e**x - 1 for x <= 0, without the sign of a zero."""
    words, m = _reduce(select(x < -64.0, -64.0, x))
    scale = _power_of_two(words, x.dtype)
    return fma(scale, m, scale - 1)


def expm1(x: Value) -> Value:
    """Return e**x - 1; -0.0 gives -0.0."""
    words, m = _reduce(_clamp(x, -64.0, FORMAT[x.dtype].overflow))
    half = _power_of_two(words - 1, x.dtype)  # 2**n itself overflows for the largest results
    y = fma(half, m, half - 0.5)
    return select(fabs(x) < 2.0**-60, x, y + y)


def _split(x: Value) -> tuple[Value, Value]:
    """Return (field, m): x = 2**(field - bias) * m, m in [sqrt(1/2), sqrt(2)), for normal x > 0."""
    form = FORMAT[x.dtype]
    one, root = x.coerce(1.0).as_int(), x.coerce(tables.ROOT_HALF).as_int()
    words = x.as_int() + (one - root)
    m = (words & ((1 << form.mantissa) - 1)) + root
    return words >> form.mantissa, m.as_float()


def _whole(field: Value) -> Value:
    """Return 2**mantissa + field, a float: the bits of the field become its mantissa's last."""
    unit = {"int32": 0x4B000000, "int64": 0x4330000000000000}[field.dtype]
    return (field | unit).as_float()


def _log_sum(f: Value, e: Value, table: tuple[float, ...] | None = None) -> Value:
    """Return log(1+f) + e * log(2) for 1+f in [sqrt(1/2), sqrt(2)]."""
    high, low = tables.LN2[f.dtype]
    small = fma(f * f, polynomial(f, (*(table or tables.LOG1P[f.dtype]), -0.5)), f)
    return fma(e, high, fma(e, low, small))


def _significand(x: Value) -> tuple[Value, Value]:
    """Return (m, e): x = 2**e * m, m in [sqrt(1/2), sqrt(2)), for x > 0, also subnormal."""
    form = FORMAT[x.dtype]
    small = x < form.normal
    unit = 2.0**form.mantissa
    field, m = _split(select(small, x * unit, x))
    offset = unit + form.bias
    return m, _whole(field) - select(small, x.coerce(offset + form.mantissa), offset)


def log(x: Value) -> Value:
    """Return the natural logarithm: -inf at 0, NaN below, right for subnormal x."""
    m, e = _significand(x)
    y = select(x < INFINITY, _log_sum(m - 1, e), x)
    return select(x > 0, y, select(x == 0, x.coerce(-INFINITY), NAN))


def log1p(x: Value) -> Value:
    """Return log(1 + x): -inf at -1, NaN below; -0.0 gives -0.0."""
    form = FORMAT[x.dtype]
    large = x > 2.0 ** (form.bias // 2)  # 1 + x is x; scaled so that 2**-e below stays normal
    scaled = select(large, x * 2.0**-32, x)
    u = 1 + scaled
    field, _ = _split(u)
    offset = 2.0**form.mantissa + form.bias
    e = _whole(field) - select(large, x.coerce(offset - 32), offset)
    # u is rounded and only gives the exponent: f = x / 2**e + (1 / 2**e - 1) is rounded once.
    inverse = ((-field + 2 * form.bias) << form.mantissa).as_float()
    y = _log_sum(fma(scaled, inverse, inverse - 1), e)
    y = select((u != 1) & (x < INFINITY), y, x)
    return select(x > -1, y, select(x == -1, x.coerce(-INFINITY), NAN))


def tanh(x: Value) -> Value:
    """Return the hyperbolic tangent: an odd polynomial up to 0.55, then 1 - 2 / (exp(2|x|) + 1)."""
    a = select(fabs(x) > 20.0, 20.0, fabs(x))
    words, m = _reduce(a + a)
    scale = _power_of_two(words, x.dtype)
    large = 1 - 2 / fma(scale, m, scale + 1)
    z = x * x
    small = fma(x * z, polynomial(z, tables.TANH[x.dtype]), x)
    return copysign(select(a < 0.55, small, large), x)


def sigmoid(x: Value) -> Value:
    """Return 1 / (1 + exp(-x)) = b / (b + a * exp(r)), a / b = 2**n, so that nothing overflows."""
    form = FORMAT[x.dtype]
    words, m = _reduce(_clamp(-x, form.underflow, -form.underflow))
    a, second = _halves(words, x.dtype)
    b = ((2 * form.bias << form.mantissa) - second).as_float()
    # The larger of the two comes last: a + b alone would be half an ulp off when |n| is 24 or 53.
    return b / (fma(a, m, select(a < b, a, b)) + select(a < b, b, a))


def softplus(x: Value) -> Value:
    """Return log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|))."""
    e = exp(-fabs(x))
    halve = e > tables.ROOT_HALF * 2 - 1
    scale = select(halve, x.coerce(0.5), 1.0)
    y = _log_sum(fma(e, scale, scale - 1), select(halve, x.coerce(1.0), 0.0))
    return select(x > 0, x, 0.0) + y


def erf(x: Value) -> Value:
    """Return the error function, 1 - exp(-a T(a)) with a = |x|; 1 from 4 or, in float64, 6 on."""
    last = {"float32": 4.0, "float64": 6.0}[x.dtype]
    a = fabs(x)
    a = select(a > last, last, a)
    return copysign(_expm1_negative(-a * polynomial(a, tables.ERF[x.dtype])), x)


def gelu(x: Value) -> Value:
    """Return x * Phi(x): up to 1 by a polynomial, then by Phi(-a) = exp(-a*a/2) * M(a), a = |x|.

    So the tail keeps its accuracy. M is a polynomial in (a - 4) / (a + 4), divided by a + 4.
    """
    last = {"float32": 15.0, "float64": 39.0}[x.dtype]  # Phi(-last) is 0
    near = _clamp(x, -last, last)
    a, square = fabs(near), near * near
    words, m = _reduce(square * -0.5, fma(near, near, -square) * -0.5)
    # ratio = near / (a + shift), by a Newton step that knows what `shifted` lost.
    shifted = a + tables.MILLS_SHIFT
    lost = (shifted - tables.MILLS_SHIFT) - a
    inverse = 1 / shifted
    ratio = near * inverse
    ratio = fma(fma(ratio, lost, fma(-ratio, shifted, near)), inverse, ratio)
    scale, second = _halves(words, x.dtype)
    tail = ratio * polynomial(fma(fabs(ratio), 2.0, -1.0), tables.MILLS[x.dtype]) * scale
    tail = fma(tail, m, tail) * second.as_float()
    large = select(x < 0, tail, x - tail)
    small = x * fma(x, polynomial(square, tables.PHI[x.dtype]), 0.5)
    return select(a < 1, small, large)


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

    Payne & Hanek 1983: of the bits of 2/pi, those that contribute multiples of 4 are left out.
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
    high, low = tables.EIGHTH[dtype]
    z = x * x
    cosine = fma(z, polynomial(z, tables.COS_EIGHTHS[dtype]), 1)
    sine = fma(x, high, x * fma(z, polynomial(z, tables.SIN_EIGHTHS[dtype]), low))
    return _turned(n + 1, sine, cosine)


def _log_double(x: Value) -> tuple[Value, Value]:
    """Return log(x) of float64 as a sum of two, within 2**-64: s * (2 + z * (2/3 + ...)), z = s*s.

    s = f / (2 + f) and the first two terms are double-double (Dekker 1971), the rest is not.
    """
    m, e = _significand(x)
    f, d = m - 1, m + 1
    inverse = 1 / d
    sh = f * inverse
    sl = fma(-sh, m - (d - 1), fma(-sh, d, f)) * inverse
    zh = sh * sh
    zl = fma(sh, sh, -zh) + 2 * (sh * sl)
    rest = zh * polynomial(zh, tables.ATANH)
    wh = rest + tables.TWO_THIRDS[0]
    wl = (tables.TWO_THIRDS[0] - wh) + rest + tables.TWO_THIRDS[1]
    vh = zh * wh
    vl = fma(zh, wh, -vh) + fma(zh, wl, zl * wh)
    gh = 2 + vh
    gl = (2 - gh) + vh + vl
    h = sh * gh
    low = fma(sh, gh, -h) + fma(sh, gl, sl * gh)
    whole = e * tables.LN2_SHORT[0]
    total = whole + h
    return total, ((whole - total) + h) + fma(e, tables.LN2_SHORT[1], low)


def _power_magnitude(a: Value, y: Value) -> Value:
    """Return a**y for a >= 0 of float64, by a double-double logarithm."""
    high, low = _log_double(a)
    high = select(a < INFINITY, select(a > 0, high, -INFINITY), a)
    p = y * high
    tail = fma(y, low, fma(y, high, -p))
    form = FORMAT["float64"]
    tail = select(fabs(p) < -form.underflow, tail, 0.0)  # NaN after an overflow
    return _scaled(*_reduce(_clamp(p, form.underflow, form.overflow), tail))


def _power_magnitude_single(a: Value, y: Value) -> Value:
    """Return a**y for a >= 0 of float32, by float64 arithmetic good to 2**-28."""
    a, y = a.astype("float64"), y.astype("float64")
    field, m = _split(a)  # no float32 is subnormal here
    e = _whole(field) - (2.0**52 + 1023)
    log_a = _log_sum(m - 1, e, tables.LOG1P_NARROW)
    log_a = select(a < INFINITY, select(a > 0, log_a, -INFINITY), a)
    words, r = _reduce(_clamp(y * log_a, -200.0, 200.0), None, tables.EXPM1_NARROW)
    scale = _power_of_two(words, "float64")
    return fma(scale, r, scale).astype("float32")


def power(x: Value, y: Value) -> Value:
    """Return x**y with the special cases of C's pow (ISO C, annex F)."""
    a = fabs(x)
    size = _power_magnitude_single(a, y) if x.dtype == "float32" else _power_magnitude(a, y)
    size = select((a == 1) & (y == y), 1.0, size)  # y may be infinite
    half = y * 0.5
    whole, odd = rint(y) == y, rint(half) != half
    out = select(whole & odd, copysign(size, x), size)
    out = select(((x < 0) & (a < INFINITY)) & ~whole, NAN, out)
    return select((x == 1) | (y == 0), 1.0, out)
