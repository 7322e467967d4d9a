"""Fast float32 versions of the formulas: fewer digits, and no division where a polynomial takes less time.

float64 values take the accurate formulas. The rules of `formulas.py` hold here too: no step is reordered, so
results have the same bits on every CPU. The rows of the op table have the bounds.
"""

import functools
from typing import Any

from . import formulas, polynomials_fast as tables
from .vector import Formula, Value, fabs, fma, polynomial, select

#: Adding it rounds to an integer, whose exponent field of 2**(n - 1) is in the low bits.
_SHIFTER = 1.5 * 2.0**23 + 126


def _single(accurate: Formula) -> Formula:
    """Return a decorator: the formula of float32 values, and an accurate one for float64."""

    def decorate(formula: Formula) -> Formula:
        @functools.wraps(formula)
        def choose(x: Value) -> Any:
            return formula(x) if x.dtype == "float32" else accurate(x)

        return choose

    return decorate


def _exp2(u: Value) -> Value:
    """Return 2**u for -126 <= u <= 128: 0 for -126, infinity for 128; results below 2**-125 become 0."""
    shifted = u + _SHIFTER
    p = polynomial(u - (shifted - _SHIFTER), tables.EXP2)  # 2 * 2**f, as 2**n may be 2**128
    return p * (shifted.as_int() << 23).as_float()


def _above(x: Value, low: float) -> Value:
    return select(x < low, low, x)


def _below(x: Value, high: float) -> Value:
    return select(x > high, high, x)


@_single(formulas.exp)
def exp(x: Value) -> Value:
    """Return e**x; the product with log2(e) is rounded, so the relative error grows with |x|."""
    return _exp2(_below(_above(x * tables.LOG2E, -126.0), 128.0))


@_single(formulas.sigmoid)
def sigmoid(x: Value) -> Value:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + _exp2(_below(_above(x * -tables.LOG2E, -126.0), 128.0)))


@_single(formulas.silu)
def silu(x: Value) -> Value:
    """Return x / (1 + exp(-x)); -0.0 from about -89 down."""
    x = _above(x, -89.0)  # so that the exponent is less than 128.5 and rounds to 128
    return x / (1 + _exp2(_above(x * -tables.LOG2E, -126.0)))


def silu_slope(x: Value) -> Value:
    """Return the derivative of silu, s (1 + x (1 - s)); float32."""
    x = _below(_above(x, -89.0), 89.0)
    s = sigmoid(x)
    return fma(x * (1 - s), s, s)


def _quotient(x: Value, table: tuple[tuple[float, ...], tuple[float, ...]]) -> Value:
    """Return x P(x*x) / Q(x*x), limited to [-1, 1]; it is beyond where x is limited, so infinities give 1."""
    z = x * x
    y = x * polynomial(z, table[0]) / polynomial(z, table[1])
    return _below(_above(y, -1.0), 1.0)


@_single(formulas.tanh)
def tanh(x: Value) -> Value:
    """Return the hyperbolic tangent."""
    return _quotient(_below(_above(x, -9.2), 9.2), tables.TANH)


@_single(formulas.erf)
def erf(x: Value) -> Value:
    """Return the error function."""
    return _quotient(_below(_above(x, -4.0), 4.0), tables.ERF)


def _rectified(x: Value, last: float, root: tuple[float, ...]) -> Value:
    """Return max(x, 0) - a r(a)**4, a = min(|x|, last)."""
    a = _below(fabs(x), last)
    r = polynomial(a, root)
    r = r * r
    return fma(-a, r * r, _above(x, 0.0))


def _slope(x: Value, last: float, root: tuple[float, ...], table: tuple[float, ...]) -> Value:
    """Return the derivative of `_rectified`: that of a r(a)**4 is r(a)**3 times the polynomial of a table."""
    a = _below(fabs(x), last)
    r = polynomial(a, root)
    d = r * r * (r * polynomial(a, table))
    return select(x > 0, 1 - d, d)


@_single(formulas.gelu)
def gelu(x: Value) -> Value:
    """Return x Phi(x) = max(x, 0) - |x| Phi(-|x|), of which Phi's fourth root is a polynomial."""
    return _rectified(x, tables.GELU_LAST, tables.GELU_ROOT)


def gelu_slope(x: Value) -> Value:
    """Return the derivative of gelu; float32."""
    return _slope(x, tables.GELU_LAST, tables.GELU_ROOT, tables.GELU_SLOPE)


@_single(formulas.gelu_approx)
def gelu_approx(x: Value) -> Value:
    """Return gelu with tanh in place of erf, in the form of `gelu`."""
    return _rectified(x, tables.GELU_APPROX_LAST, tables.GELU_APPROX_ROOT)


def gelu_approx_slope(x: Value) -> Value:
    """Return the derivative of gelu_approx; float32."""
    return _slope(x, tables.GELU_APPROX_LAST, tables.GELU_APPROX_ROOT, tables.GELU_APPROX_SLOPE)
