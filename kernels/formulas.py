"""Branch-free elementary functions of `Value`s, one source for float32 and float64.

Every step is an IEEE operation in the order written, a fused multiply-add where `fma` is written, so a result
has the same bits on every CPU and in every lane. Nothing calls libm. NaN gives NaN.
"""

from dataclasses import dataclass

import numpy as np

from . import polynomials as tables
from .vector import Value, copysign, fabs, fma, polynomial, rint, select

INFINITY = float("inf")
NAN = float("nan")


@dataclass(frozen=True)
class Format:
    """Constants of an IEEE format."""

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


def as_sum(parts: tuple[float, float], dtype: str) -> tuple[float, float]:
    """Return a constant that is a sum of two float64 numbers as one of two numbers of a dtype."""
    high = float(np.dtype(dtype).type(parts[0]))
    return high, (parts[0] - high) + parts[1]


def _clamp(x: Value, low: float, high: float) -> Value:
    """Limit x to [low, high]; NaN stays. Each select is one min or max instruction."""
    x = select(x < low, low, x)
    return select(x > high, high, x)


def _remainder(x: Value) -> tuple[Value, Value]:
    """Return (words, r): x = n * log(2) + r, |r| <= log(2)/2.

    `words` are the bits of n + 2 * bias + shifter. Cody & Waite 1980: n * log(2) is subtracted in
    two parts, the first exactly.
    """
    form, (high, low) = FORMAT[x.dtype], tables.LN2[x.dtype]
    shifter = form.shifter + 2 * form.bias
    shifted = fma(x, tables.LOG2E, shifter)
    n = shifted - shifter
    return shifted.as_int(), fma(n, -low, fma(n, -high, x))


def _reduce(
    x: Value, tail: Value | None = None, table: tuple[float, ...] | None = None
) -> tuple[Value, Value]:
    """Return (words, m): as `_remainder` of x + tail, and m = exp(r) - 1."""
    words, r = _remainder(x)
    if tail is not None:
        r = r + tail
    return words, fma(r * r, polynomial(r, table or tables.EXPM1[x.dtype]), r)


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


def exp_normal(x: Value) -> Value:
    """Return e**x for x below 88: 0 where it would be subnormal, in 13 instructions to the 17 of `exp`."""
    form = FORMAT[x.dtype]
    low = float(np.log(form.normal))
    words, m = _reduce(select(x < low, low, x))
    scale = _power_of_two(words, x.dtype)
    return select(x < low, 0.0, fma(scale, m, scale))


def _power_of_two(words: Value, dtype: str) -> Value:
    """Return 2**n for -bias < n <= bias."""
    form = FORMAT[dtype]
    return ((words - form.bias) << form.mantissa).as_float()


def _expm1_negative(x: Value, tail: Value) -> Value:
    """Return e**(x + tail) - 1 for x <= 0, without the sign of a zero."""
    words, r = _remainder(select(x < -64.0, -64.0, x))
    # Added to r, the tail would be rounded at the size of r, up to twice that of the result.
    rest = fma(r * r, polynomial(r, tables.EXPM1[x.dtype]), fma(tail, r, tail))
    scale = _power_of_two(words, x.dtype)
    return fma(scale, r + rest, scale - 1)


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
    one = {"int32": 0x4B000000, "int64": 0x4330000000000000}[field.dtype]  # 2**mantissa
    return (field | one).as_float()


def _log_sum(f: Value, e: Value, table: tuple[float, ...] | None = None) -> Value:
    """Return log(1+f) + e * log(2) for 1+f in [sqrt(1/2), sqrt(2)]."""
    high, low = tables.LN2[f.dtype]
    small = fma(f * f, polynomial(f, (*(table or tables.LOG1P[f.dtype]), -0.5)), f)
    return fma(e, high, fma(e, low, small))


def _significand(x: Value) -> tuple[Value, Value]:
    """Return (m, e): x = 2**e * m, m in [sqrt(1/2), sqrt(2)), for x > 0, also subnormal."""
    form = FORMAT[x.dtype]
    small = x < form.normal
    scale = 2.0**form.mantissa
    field, m = _split(select(small, x * scale, x))
    offset = scale + form.bias
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


def _logistic(x: Value, tail: Value | None = None) -> tuple[Value, Value]:
    """Return (b, b + a * exp(r)), whose quotient is 1 / (1 + exp(-x - tail)); a / b = 2**n, no overflow."""
    form = FORMAT[x.dtype]
    words, m = _reduce(-x, None if tail is None else -tail)
    a, second = _halves(words, x.dtype)
    b = ((2 * form.bias << form.mantissa) - second).as_float()
    # The larger of the two comes last: a + b alone would be half an ulp off when |n| is 24 or 53.
    return b, fma(a, m, select(a < b, a, b)) + select(a < b, b, a)


def sigmoid(x: Value) -> Value:
    """Return 1 / (1 + exp(-x)), right down to subnormal results."""
    low = FORMAT[x.dtype].underflow
    b, total = _logistic(_clamp(x, low, -low))
    return b / total


def silu(x: Value) -> Value:
    """Return x / (1 + exp(-x)); below 0 multiplied before the division, so only the result underflows."""
    low = FORMAT[x.dtype].underflow - 8.0  # x * exp(x) is 0 a little after exp(x) is
    near = _clamp(x, low, -low)
    b, total = _logistic(near)
    y = select(x < 0, near * b, b) / total
    return select(x < 0, y, x * y)


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
    first, low = as_sum(tables.ERF_SLOPE, x.dtype)
    # a T(a) as a sum: its rounding alone would put erf off by 1.5 ulp. The second term is the smaller one
    # up to a = 1.6, and errors beyond are lost in the subtraction from 1.
    high, small = a * first, (a * a) * polynomial(a, tables.ERF[x.dtype])
    total = high + small
    tail = fma(a, low, fma(a, first, -high)) + ((high - total) + small)
    return copysign(_expm1_negative(-total, -tail), x)


def gelu(x: Value) -> Value:
    """Return x * Phi(x): up to 1 by a polynomial, then by Phi(-a) = exp(-a*a/2) * M(a), a = |x|.

    So the tail keeps its accuracy. M is a polynomial in (a - 4) / (a + 4), divided by a + 4.
    """
    last = {"float32": 15.0, "float64": 39.0}[x.dtype]  # Phi(-last) is 0
    near = _clamp(x, -last, last)
    a, square = fabs(near), near * near
    words, m = _reduce(square * -0.5, fma(near, near, -square) * -0.5)
    # ratio = near / (a + shift), by a Newton step that adds the digits that `shifted` lost.
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


def gelu_approx(x: Value) -> Value:
    """Return x / (1 + exp(-u)), u = x * (c + d * x*x), c = 2 sqrt(2/pi), d = 0.044715 c.

    u is a sum of two, since its error is the relative one of the tail, where u is down to -104 or -746.
    """
    last = {"float32": 11.0, "float64": 21.7}[x.dtype]  # the result is 0 there
    near = _clamp(x, -last, last)
    c, c_low = as_sum(tables.GELU_APPROX, x.dtype)
    d, d_low = as_sum(tables.GELU_APPROX_CUBE, x.dtype)
    square = near * near
    high = square * d
    low = fma(square, d, -high) + fma(square, d_low, fma(near, near, -square) * d)
    total = high + c
    back = total - high
    low = (high - (total - back)) + (c - back) + (low + c_low)
    u = near * total
    b, whole = _logistic(u, fma(near, low, fma(near, total, -u)))
    y = select(x < 0, near * b, b) / whole
    return select(x < 0, y, x * y)


def mish(x: Value) -> Value:
    """Return x * tanh(log(1 + exp(x))), with e = exp(x) and m = e (e + 2) + 2.

    That is x - x * 2 / m, or x e - x e * e (e + 1) / m, which does not cancel far below 0. There the last
    factor of e comes last, so that only the result underflows.
    """
    near = _clamp(x, FORMAT[x.dtype].underflow - 8.0, 40.0)
    words, r = _reduce(near)
    a, second = _halves(words, x.dtype)
    part, scale = fma(a, r, a), second.as_float()
    e = part * scale
    negative = x < -0.35
    quotient = select(negative, fma(e, e, e), 2.0) / fma(e, e + 2.0, 2.0)
    factor = select(negative, near * part, near)
    y = fma(-factor, quotient, select(negative, factor, x))
    return copysign(select(negative, y * scale, y), x)  # the sum with -0.0 is 0.0


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
