"""Roots, exponentials, logarithms, trigonometric and related functions, element by element."""

import math
from typing import Any

import numpy as np

from treepie.kernels import fast, formulas, trigonometry, vector

from ..accuracy import GROWING, Fast, growing
from ..elementwise import elementwise


@elementwise(
    oracle=np.sqrt, vjp=lambda g, y, x: g * 0.5 / y, accepts="float", domain=(0.1, 4.0), flops=5, ulp=0.5
)
def sqrt(x: Any) -> Any:
    """Return the square root of each element; NaN below 0.

    x: float; integers become float64. The derivative at 0 is inf.

    >>> import treepie as tp
    >>> tp.sqrt(tp.tensor([4.0, 9.0])).tolist()
    [2.0, 3.0]
    """
    return vector.sqrt(x)


@elementwise(
    oracle=lambda x: 1 / np.sqrt(x),
    vjp=lambda g, y, x: g * y * -0.5 / x,
    accepts="float",
    domain=(0.1, 4.0),
    flops=8,
    ulp=1.5,
)
def rsqrt(x: Any) -> Any:
    """Return 1 / sqrt(x), element by element; inf at 0, NaN below.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.rsqrt(tp.tensor([4.0, 16.0])).tolist()
    [0.5, 0.25]
    """
    return 1.0 / vector.sqrt(x)


@elementwise(
    oracle=np.exp,
    vjp=lambda g, y, x: g * y,
    accepts="float",
    flops=20,
    ulp=1.1,
    fast=Fast(fast.exp, 15, 2.8, growing(np.exp), GROWING),
)
def exp(x: Any) -> Any:
    """Return the exponential of each element.

    x: float; integers become float64. The result is inf above 88.7 in float32, above 709.8 in float64.

    >>> import treepie as tp
    >>> tp.exp(tp.tensor([0.0, 1.0])).tolist()
    [1.0, 2.7182817459106445]
    """
    return formulas.exp(x)


@elementwise(oracle=np.expm1, vjp=lambda g, y, x: g * (y + 1), accepts="float", flops=25, ulp=1.7)
def expm1(x: Any) -> Any:
    """Return exp(x) - 1, element by element, accurate near 0.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.expm1(tp.tensor([0.0, 1e-6])).tolist()
    [0.0, 1.0000004522225936e-06]
    """
    return formulas.expm1(x)


@elementwise(oracle=np.log, vjp=lambda g, y, x: g / x, accepts="float", domain=(0.1, 4.0), flops=20, ulp=1)
def log(x: Any) -> Any:
    """Return the natural logarithm of each element; -inf at 0, NaN below.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.log(tp.tensor([1.0, 0.0])).tolist()
    [0.0, -inf]
    """
    return formulas.log(x)


@elementwise(
    oracle=np.log1p, vjp=lambda g, y, x: g / (x + 1), accepts="float", domain=(-0.8, 4.0), flops=25, ulp=1.5
)
def log1p(x: Any) -> Any:
    """Return log(1 + x), element by element, accurate near 0.

    x: float; integers become float64. The result is -inf at -1 and NaN below.

    >>> import treepie as tp
    >>> tp.log1p(tp.tensor([0.0, 1e-6])).tolist()
    [0.0, 9.999995427278918e-07]
    """
    return formulas.log1p(x)


@elementwise(oracle=np.sin, vjp=lambda g, y, x: g * cos(x), accepts="float", flops=60, ulp=1.7)
def sin(x: Any) -> Any:
    """Return the sine of each element, in radians.

    x: float; integers become float64. Accurate for any finite x; NaN for an infinite one.

    >>> import treepie as tp
    >>> tp.sin(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.8414710164070129]
    """
    return trigonometry.sin(x)


@elementwise(oracle=np.cos, vjp=lambda g, y, x: -(g * sin(x)), accepts="float", flops=60, ulp=1.7)
def cos(x: Any) -> Any:
    """Return the cosine of each element, in radians.

    x: float; integers become float64. Accurate for any finite x; NaN for an infinite one.

    >>> import treepie as tp
    >>> tp.cos(tp.tensor([0.0, 1.0])).tolist()
    [1.0, 0.5403022766113281]
    """
    return trigonometry.cos(x)


@elementwise(
    oracle=np.tanh,
    vjp=lambda g, y, x: g * (1 - y * y),
    accepts="float",
    flops=30,
    ulp=1.5,
    fast=Fast(fast.tanh, 20, 6),
)
def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of each element.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.tanh(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.7615941762924194]
    """
    return formulas.tanh(x)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@elementwise(
    oracle=_sigmoid,
    vjp=lambda g, y, x: g * y * (1 - y),
    accepts="float",
    flops=30,
    ulp=2.1,
    fast=Fast(fast.sigmoid, 20, 2.9, growing(_sigmoid), GROWING),
)
def sigmoid(x: Any) -> Any:
    """Return the logistic function 1 / (1 + exp(-x)) of each element.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.sigmoid(tp.tensor([0.0, 100.0])).tolist()
    [0.5, 1.0]
    """
    return formulas.sigmoid(x)


_erf = np.frompyfunc(math.erf, 1, 1)


@elementwise(
    oracle=lambda x: np.asarray(_erf(x), np.float64),
    vjp=lambda g, y, x: g * exp(-(x * x)) * (2 / math.sqrt(math.pi)),
    accepts="float",
    flops=40,
    ulp=1.5,
    fast=Fast(fast.erf, 22, 5.7, slope=lambda x: fast.exp(-(x * x)) * (2 / math.sqrt(math.pi))),
)
def erf(x: Any) -> Any:
    """Return the error function of each element.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.erf(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.8427007794380188]
    """
    return formulas.erf(x)
