"""Arithmetic and piecewise linear functions, element by element, with NumPy's broadcasting and promotion."""

from typing import Any

import numpy as np

from treepie.kernels import formulas, vector

from ..elementwise import elementwise
from ..tensor import Tensor, TensorLike
from .compare import greater, less
from .elementary import log, sigmoid


def _bools(a: Any, b: Any) -> bool:
    """Whether two values of a formula are bools."""
    return getattr(a, "dtype", None) == "bool" == getattr(b, "dtype", None)


@elementwise(oracle=np.add, vjp=(lambda g, y, a, b: g, lambda g, y, a, b: g), ulp=0.5)
def add(a: Any, b: Any) -> Any:
    """Return a + b, element by element.

    a, b: numbers or tensors of any dtype; they broadcast and promote as NumPy's do, and bools add as int64.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.add(tp.tensor([1.0, 2.0]), 10).tolist()
    [11.0, 12.0]
    """
    return a | b if _bools(a, b) else a + b


@elementwise(oracle=np.subtract, vjp=(lambda g, y, a, b: g, lambda g, y, a, b: -g), accepts="signed", ulp=0.5)
def sub(a: Any, b: Any) -> Any:
    """Return a - b, element by element.

    a, b: numbers or tensors of any dtype; they broadcast and promote as NumPy's do.

    Raises ValueError for shapes that do not broadcast, TypeError for bools.

    >>> import treepie as tp
    >>> tp.sub(tp.tensor([1.0, 2.0]), 10).tolist()
    [-9.0, -8.0]
    """
    return a - b


@elementwise(oracle=np.multiply, vjp=(lambda g, y, a, b: g * b, lambda g, y, a, b: g * a), ulp=0.5)
def mul(a: Any, b: Any) -> Any:
    """Return a * b, element by element.

    a, b: numbers or tensors of any dtype; they broadcast and promote as NumPy's do.
        For bools it is the logical and.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.mul(tp.tensor([1.0, 2.0]), tp.tensor([[3.0], [4.0]])).tolist()
    [[3.0, 6.0], [4.0, 8.0]]
    """
    return a & b if _bools(a, b) else a * b


@elementwise(
    oracle=np.divide,
    vjp=(lambda g, y, a, b: g / b, lambda g, y, a, b: -(g * y) / b),
    accepts="float",
    domain={0: (-2.0, 2.0), 1: (0.5, 3.0)},
    flops=4,
    ulp=0.5,
)
def div(a: Any, b: Any) -> Any:
    """Return a / b, element by element; integers give float64.

    a, b: numbers or tensors that broadcast. A division by 0 gives inf, -inf or NaN.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.div(tp.tensor([1.0, 2.0]), 4).tolist()
    [0.25, 0.5]
    """
    return a / b


def _pow_of_base(g: Any, y: Any, a: Any, b: Any) -> Any:
    # b * a ** (b - 1), 0 for an exponent of 0, where a ** -1 may be inf or NaN.
    return g * b * pow(where((abs(a) > 1e-30) | (b != 0), a, 1.0), b - 1)


def _pow_of_exponent(g: Any, y: Any, a: Any, b: Any) -> Any:
    # y * log(a), with the limit 0 at a = 0 and NaN where a < 0, which makes b an integer.
    zero = (a == 0) & (b >= 0)
    return where(zero, 0.0, g * y * log(where(zero, 1.0, a)))


@elementwise(
    oracle=np.power,
    vjp=(_pow_of_base, _pow_of_exponent),
    accepts="float",
    domain={0: (0.3, 3.0), 1: (-2.0, 3.0)},
    flops=60,
    ulp=0.8,
)
def pow(a: Any, b: Any) -> Any:
    """Return a ** b of floats, element by element; integers give float64.

    a, b: numbers or tensors that broadcast. A negative a needs an integer b, and gives NaN otherwise.
    The derivative by a is 0 where b is 0; that by b is 0 where a is 0 and b is not negative, NaN where a < 0.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.pow(tp.tensor([2.0, 3.0]), 2).tolist()
    [4.0, 9.0]
    """
    return formulas.power(a, b)


def _to_larger(g: Any, a: Any, b: Any) -> Any:
    """Return 0 where a < b, half of g at a tie, else g: for NaN, which is the result, too."""
    return where(a < b, 0.0, where(a == b, g * 0.5, g))


_LARGER_VJP = (lambda g, y, a, b: _to_larger(g, a, b), lambda g, y, a, b: _to_larger(g, b, a))


@elementwise(oracle=np.maximum, vjp=_LARGER_VJP, ulp=0)
def maximum(a: Any, b: Any) -> Any:
    """Return the larger of a and b, element by element; NaN if either is.

    a, b: numbers or tensors that broadcast. At a tie each gets half of the gradient, at NaN all of it.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.maximum(tp.tensor([-1.0, 2.0]), 0.5).tolist()
    [0.5, 2.0]
    """
    return vector.maximum(a, b)


@elementwise(oracle=np.minimum, vjp=_LARGER_VJP[::-1], ulp=0)
def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of a and b, element by element; NaN if either is.

    a, b: numbers or tensors that broadcast. At a tie each gets half of the gradient, at NaN all of it.

    Raises ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> tp.minimum(tp.tensor([-1.0, 2.0]), 0.5).tolist()
    [-1.0, 0.5]
    """
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
    """Return elements of a where a condition holds, else of b.

    condition: bools.  a, b: numbers or tensors of one dtype after promotion. All three broadcast.

    Raises TypeError for a condition that is not bool, ValueError for shapes that do not broadcast.

    >>> import treepie as tp
    >>> x = tp.tensor([-1.0, 2.0])
    >>> tp.where(x > 0, x, 0.0).tolist()
    [0.0, 2.0]
    """
    return vector.select(condition, a, b)


@elementwise(oracle=np.negative, vjp=lambda g, y, x: -g, accepts="signed", ulp=0)
def neg(x: Any) -> Any:
    """Return -x, element by element.

    x: of any dtype; bools become int64.

    >>> import treepie as tp
    >>> tp.neg(tp.tensor([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """
    return -x


@elementwise(oracle=np.abs, vjp=lambda g, y, x: g * sign(x), accepts="number", ulp=0)
def abs(x: Any) -> Any:
    """Return the absolute value of each element.

    x: of any dtype; bools become int64. The derivative at 0 is 0, at NaN NaN.

    >>> import treepie as tp
    >>> tp.abs(tp.tensor([1.0, -2.0])).tolist()
    [1.0, 2.0]
    """
    return vector.fabs(x)


@elementwise(oracle=np.sign, vjp=(None,), accepts="number", ulp=0)
def sign(x: Any) -> Any:
    """Return -1, 0 or 1 for the sign of each element, NaN for NaN.

    x: of any dtype; bools become int64. The derivative is 0.

    >>> import treepie as tp
    >>> tp.sign(tp.tensor([3.0, 0.0, -2.0])).tolist()
    [1.0, 0.0, -1.0]
    """
    return vector.select(x > 0, 1, vector.select(x < 0, -1, vector.select(x == 0, 0, x)))


@elementwise(oracle=np.floor, vjp=(None,), accepts="float", ulp=0)
def floor(x: Any) -> Any:
    """Return the largest whole number not above each element.

    x: float, the dtype of the result; integers become float64. The derivative is 0.

    >>> import treepie as tp
    >>> tp.floor(tp.tensor([1.7, -1.2])).tolist()
    [1.0, -2.0]
    """
    return vector.floor(x)


@elementwise(oracle=np.ceil, vjp=(None,), accepts="float", ulp=0)
def ceil(x: Any) -> Any:
    """Return the smallest whole number not below each element.

    x: float, the dtype of the result; integers become float64. The derivative is 0.

    >>> import treepie as tp
    >>> tp.ceil(tp.tensor([1.7, -1.2])).tolist()
    [2.0, -1.0]
    """
    return vector.ceil(x)


@elementwise(oracle=np.round, vjp=(None,), accepts="float", ulp=0)
def round(x: Any) -> Any:
    """Return the nearest whole number to each element, halves to the even one.

    x: float, the dtype of the result; integers become float64. The derivative is 0.

    >>> import treepie as tp
    >>> tp.round(tp.tensor([0.5, 1.5, -1.2])).tolist()
    [0.0, 2.0, -1.0]
    """
    return vector.rint(x)


@elementwise(oracle=np.square, vjp=lambda g, y, x: g * x * 2, accepts="number", ulp=0.5)
def square(x: Any) -> Any:
    """Return x * x, element by element.

    x: of any dtype; bools become int64.

    >>> import treepie as tp
    >>> tp.square(tp.tensor([3.0, -2.0])).tolist()
    [9.0, 4.0]
    """
    return x * x


@elementwise(
    oracle=lambda x: np.logaddexp(x, 0),
    vjp=lambda g, y, x: g * sigmoid(x),
    accepts="float",
    flops=50,
    ulp=2,
)
def softplus(x: Any) -> Any:
    """Return log(1 + exp(x)), element by element, without overflow.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.fn.softplus(tp.tensor([0.0, 100.0])).tolist()
    [0.6931471824645996, 100.0]
    """
    return formulas.softplus(x)


@elementwise(
    oracle=lambda x: np.maximum(x, 0),
    vjp=lambda g, y, x: where(y <= 0, 0.0, g),  # of y, so that x need not be kept
    accepts="number",
    ulp=0,
)
def relu(x: Any) -> Any:
    """Return the larger of x and 0, element by element; NaN for NaN.

    x: of any dtype; bools become int64. The derivative at 0 is 0, at NaN 1.

    >>> import treepie as tp
    >>> tp.fn.relu(tp.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return vector.maximum(x, 0)


@elementwise(
    name="clip",
    oracle=np.clip,
    vjp=(
        lambda g, y, x, low, high: where((x < low) | (x > high), 0.0, g),
        lambda g, y, x, low, high: where(x < low, g, 0.0),
        lambda g, y, x, low, high: where(x > high, g, 0.0),
    ),
    domain={0: (-2.0, 2.0), 1: (-1.5, -0.5), 2: (0.5, 1.5)},
    ulp=0,
)
def _clip(x: Any, low: Any, high: Any) -> Any:
    """Return elements limited to [low, high]."""
    return vector.minimum(vector.maximum(x, low), high)


def clip(x: "TensorLike", low: "TensorLike | None" = None, high: "TensorLike | None" = None) -> "Tensor":
    """Return elements limited to [low, high].

    x: of any dtype.  low, high: numbers or tensors that broadcast with x, low <= high; None is no bound.
    NaN stays. An element beyond a bound gives its gradient to the bound; all others keep it.

    Raises ValueError where both bounds are None, or shapes do not broadcast.

    >>> import treepie as tp
    >>> tp.clip(tp.tensor([-3.0, 0.5, 3.0]), -1.0, 1.0).tolist()
    [-1.0, 0.5, 1.0]
    """
    if low is not None and high is not None:
        return _clip(x, low, high)
    if low is not None:
        return where(less(x, low), low, x)
    if high is not None:
        return where(greater(x, high), high, x)
    raise ValueError("clip: low and high are None, expected at least one bound")
