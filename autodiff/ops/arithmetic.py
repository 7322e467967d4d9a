"""Arithmetic and elementary functions, element by element, with NumPy's broadcasting and promotion."""

import math
from typing import Any

import numpy as np

from treepie.kernels import formulas, trigonometry, vector

from ..elementwise import elementwise
from ..tensor import Tensor, TensorLike


@elementwise(oracle=np.add, vjp=(lambda g, y, a, b: g, lambda g, y, a, b: g), accepts="number")
def add(a: Any, b: Any) -> Any:
    """Sum of two operands."""
    return a + b


@elementwise(oracle=np.subtract, vjp=(lambda g, y, a, b: g, lambda g, y, a, b: -g), accepts="number")
def sub(a: Any, b: Any) -> Any:
    """Difference of two operands."""
    return a - b


@elementwise(oracle=np.multiply, vjp=(lambda g, y, a, b: g * b, lambda g, y, a, b: g * a), accepts="number")
def mul(a: Any, b: Any) -> Any:
    """Product of two operands."""
    return a * b


@elementwise(
    oracle=np.divide,
    vjp=(lambda g, y, a, b: g / b, lambda g, y, a, b: -(g * y) / b),
    accepts="float",
    domain={0: (-2.0, 2.0), 1: (0.5, 3.0)},
    flops=4,
)
def div(a: Any, b: Any) -> Any:
    """Quotient of two operands; integers give float64."""
    return a / b


def _pow_of_exponent(g: Any, y: Any, a: Any, b: Any) -> Any:
    # y * log(a), with the limit 0 at a = 0, and no derivative where a < 0 makes b an integer.
    return where(a > 0, g * y * log(where(a > 0, a, 1.0)), 0.0)


@elementwise(
    oracle=np.power,
    vjp=(lambda g, y, a, b: g * b * pow(a, b - 1), _pow_of_exponent),
    accepts="float",
    domain={0: (0.3, 3.0), 1: (-2.0, 3.0)},
    flops=60,
)
def pow(a: Any, b: Any) -> Any:
    """Power a ** b of floats. Integers give float64; a negative a needs an integer b, else NaN."""
    return formulas.power(a, b)


def _to_larger(g: Any, a: Any, b: Any) -> Any:
    """Return g where a > b, half of it at a tie, else 0."""
    return where(a > b, g, where(a == b, g * 0.5, 0.0))


_LARGER_VJP = (lambda g, y, a, b: _to_larger(g, a, b), lambda g, y, a, b: _to_larger(g, b, a))


@elementwise(oracle=np.maximum, vjp=_LARGER_VJP, ulp=0)
def maximum(a: Any, b: Any) -> Any:
    """Larger of two operands; NaN if either is. At a tie each gets half the gradient."""
    return vector.maximum(a, b)


@elementwise(oracle=np.minimum, vjp=_LARGER_VJP[::-1], ulp=0)
def minimum(a: Any, b: Any) -> Any:
    """Smaller of two operands; NaN if either is. At a tie each gets half the gradient."""
    return vector.minimum(a, b)


@elementwise(
    oracle=np.where,
    vjp=(
        None,
        lambda g, y, condition, a, b: where(condition, g, 0.0),
        lambda g, y, condition, a, b: where(condition, 0.0, g),
    ),
    conditions=(0,),
    ulp=0,
)
def where(condition: Any, a: Any, b: Any) -> Any:
    """Elements of a where a bool condition holds, else of b."""
    return vector.select(condition, a, b)


@elementwise(oracle=np.negative, vjp=lambda g, y, x: -g, accepts="number", ulp=0)
def neg(x: Any) -> Any:
    """Negative of each element."""
    return -x


@elementwise(oracle=np.abs, vjp=lambda g, y, x: g * sign(x), accepts="number", ulp=0)
def abs(x: Any) -> Any:
    """Absolute value. Its derivative at 0 is 0."""
    return vector.fabs(x)


@elementwise(oracle=np.sign, vjp=(None,), accepts="number", ulp=0)
def sign(x: Any) -> Any:
    """Sign: -1, 0 or 1, and NaN for NaN. Its derivative is 0."""
    return vector.select(x > 0, 1, vector.select(x < 0, -1, vector.select(x == 0, 0, x)))


@elementwise(oracle=np.floor, vjp=(None,), accepts="float", ulp=0)
def floor(x: Any) -> Any:
    """Largest integer not above each element, as a float. Its derivative is 0."""
    return vector.floor(x)


@elementwise(oracle=np.ceil, vjp=(None,), accepts="float", ulp=0)
def ceil(x: Any) -> Any:
    """Smallest integer not below each element, as a float. Its derivative is 0."""
    return vector.ceil(x)


@elementwise(oracle=np.round, vjp=(None,), accepts="float", ulp=0)
def round(x: Any) -> Any:
    """Nearest integer, halves to even, as a float. Its derivative is 0."""
    return vector.rint(x)


@elementwise(oracle=np.square, vjp=lambda g, y, x: g * x * 2, accepts="number")
def square(x: Any) -> Any:
    """Square of each element."""
    return x * x


@elementwise(oracle=np.sqrt, vjp=lambda g, y, x: g * 0.5 / y, accepts="float", domain=(0.1, 4.0), flops=5)
def sqrt(x: Any) -> Any:
    """Square root; NaN below 0."""
    return vector.sqrt(x)


@elementwise(
    oracle=lambda x: 1 / np.sqrt(x),
    vjp=lambda g, y, x: g * y * -0.5 / x,
    accepts="float",
    domain=(0.1, 4.0),
    flops=8,
)
def rsqrt(x: Any) -> Any:
    """Reciprocal of the square root."""
    return 1.0 / vector.sqrt(x)


@elementwise(oracle=np.exp, vjp=lambda g, y, x: g * y, accepts="float", flops=20)
def exp(x: Any) -> Any:
    """Exponential; inf above 88.7 in float32, 709.8 in float64."""
    return formulas.exp(x)


@elementwise(oracle=np.expm1, vjp=lambda g, y, x: g * (y + 1), accepts="float", flops=25)
def expm1(x: Any) -> Any:
    """Exponential less 1, exact near 0."""
    return formulas.expm1(x)


@elementwise(oracle=np.log, vjp=lambda g, y, x: g / x, accepts="float", domain=(0.1, 4.0), flops=20)
def log(x: Any) -> Any:
    """Natural logarithm; -inf at 0, NaN below."""
    return formulas.log(x)


@elementwise(oracle=np.log1p, vjp=lambda g, y, x: g / (x + 1), accepts="float", domain=(-0.8, 4.0), flops=25)
def log1p(x: Any) -> Any:
    """Natural logarithm of 1 + x, exact near 0."""
    return formulas.log1p(x)


@elementwise(oracle=np.sin, vjp=lambda g, y, x: g * cos(x), accepts="float", flops=60)
def sin(x: Any) -> Any:
    """Sine of radians, accurate for any finite x; NaN for an infinite one."""
    return trigonometry.sin(x)


@elementwise(oracle=np.cos, vjp=lambda g, y, x: -(g * sin(x)), accepts="float", flops=60)
def cos(x: Any) -> Any:
    """Cosine of radians, accurate for any finite x; NaN for an infinite one."""
    return trigonometry.cos(x)


@elementwise(oracle=np.tanh, vjp=lambda g, y, x: g * (1 - y * y), accepts="float", flops=30)
def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return formulas.tanh(x)


@elementwise(
    oracle=lambda x: 1 / (1 + np.exp(-x)),
    vjp=lambda g, y, x: g * y * (1 - y),
    accepts="float",
    flops=30,
)
def sigmoid(x: Any) -> Any:
    """Logistic function 1 / (1 + exp(-x))."""
    return formulas.sigmoid(x)


_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


@elementwise(
    oracle=lambda x: np.asarray(_erf(x), np.float64),
    vjp=lambda g, y, x: g * exp(-(x * x)) * (2 / math.sqrt(math.pi)),
    accepts="float",
    flops=40,
)
def erf(x: Any) -> Any:
    """Error function."""
    return formulas.erf(x)


@elementwise(
    # The limit at -inf, where x times 0 would be NaN.
    oracle=lambda x: np.where(x == -np.inf, -0.0, x * np.asarray(_erfc(-x / math.sqrt(2)), np.float64) / 2),
    # Phi(x) + x phi(x), the normal distribution and its density.
    vjp=lambda g, y, x: (
        g * (erf(x * math.sqrt(0.5)) * 0.5 + 0.5 + x * exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))
    ),
    accepts="float",
    flops=80,
)
def gelu(x: Any) -> Any:
    """x Phi(x), Phi the normal distribution (Hendrycks & Gimpel 2016, the exact form), 0 at -inf."""
    return formulas.gelu(x)


@elementwise(
    oracle=lambda x: np.where(x == -np.inf, -0.0, x / (1 + np.exp(-x))),
    vjp=lambda g, y, x: g * (sigmoid(x) + y * (1 - sigmoid(x))),
    accepts="float",
    flops=35,
)
def silu(x: Any) -> Any:
    """x sigmoid(x), 0 at -inf."""
    return formulas.silu(x)


@elementwise(
    oracle=lambda x: np.logaddexp(x, 0),
    vjp=lambda g, y, x: g * sigmoid(x),
    accepts="float",
    flops=50,
)
def softplus(x: Any) -> Any:
    """Logarithm of 1 + exp(x), without overflow."""
    return formulas.softplus(x)


@elementwise(
    oracle=lambda x: np.maximum(x, 0),
    vjp=lambda g, y, x: where(y > 0, g, 0.0),  # of y, so that x need not be kept
    accepts="number",
    ulp=0,
)
def relu(x: Any) -> Any:
    """Larger of x and 0; NaN for NaN. Its derivative at 0 is 0."""
    return vector.maximum(x, 0)


@elementwise(
    name="clip",
    oracle=np.clip,
    vjp=(
        lambda g, y, x, low, high: where((x >= low) & (x <= high), g, 0.0),
        lambda g, y, x, low, high: where(x < low, g, 0.0),
        lambda g, y, x, low, high: where(x > high, g, 0.0),
    ),
    domain={0: (-2.0, 2.0), 1: (-1.5, -0.5), 2: (0.5, 1.5)},
    ulp=0,
)
def _clip(x: Any, low: Any, high: Any) -> Any:
    """Elements within [low, high], others at the bound they are beyond; bounds pass the gradient to x."""
    return vector.minimum(vector.maximum(x, low), high)


def clip(x: TensorLike, low: TensorLike | None = None, high: TensorLike | None = None) -> Tensor:
    """Limit elements to [low, high], tensors that broadcast or numbers, low <= high; None is no bound.

    NaN stays. An element at a bound passes its gradient, one beyond gives it to the bound.
    """
    if low is None:
        if high is None:
            raise ValueError("clip: low and high are None, expected at least one bound")
        return minimum(x, high)
    return maximum(x, low) if high is None else _clip(x, low, high)
