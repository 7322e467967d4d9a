"""Activations of neural networks, element by element. Definitions follow `jax.nn`.

At a kink, the derivative is that of the outer piece, constant or linear: 0 for relu6 at 0 and 6, for
hard_tanh at -1 and 1, for hard_sigmoid at -3 and 3, for sparse_sigmoid at -1 and 1; hard_silu has 0 at -3 and
1 at 3; leaky_relu and prelu have the slope at 0, elu, celu and selu the derivative of the exponential piece.
"""

import math
from typing import Any

import numpy as np

from treepie.kernels import fast, formulas, vector
from treepie.kernels.formulas import INFINITY

from ..accuracy import GROWING, Fast, growing
from ..elementwise import elementwise
from .arithmetic import abs, maximum, minimum, where
from .elementary import erf, exp, expm1, sigmoid, sqrt

_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
#: From here on squareplus(x) is x, long before x * x overflows.
_FAR = 2.0**60
_ROOT = math.sqrt(2 / math.pi)


@elementwise(
    oracle=lambda x: np.minimum(np.maximum(x, 0), 6),
    vjp=lambda g, y, x: where((y <= 0) | (y >= 6), 0.0, g),  # NaN passes g, as in PyTorch
    accepts="float",
    ulp=0,
    domain=(-8.0, 8.0),
)
def relu6(x: Any) -> Any:
    """Return x limited to [0, 6].

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.fn.relu6(tp.tensor([-1.0, 3.0, 8.0])).tolist()
    [0.0, 3.0, 6.0]
    """
    return vector.minimum(vector.maximum(x, 0.0), 6.0)


@elementwise(
    oracle=lambda x: np.clip(x, -1, 1),
    vjp=lambda g, y, x: where((y <= -1) | (y >= 1), 0.0, g),
    accepts="float",
    ulp=0,
)
def hard_tanh(x: Any) -> Any:
    """Return x limited to [-1, 1].

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.fn.hard_tanh(tp.tensor([-2.0, 0.5])).tolist()
    [-1.0, 0.5]
    """
    return vector.minimum(vector.maximum(x, -1.0), 1.0)


@elementwise(
    oracle=lambda x: np.clip(x + 3, 0, 6) / 6,
    vjp=lambda g, y, x: where((x > -3) & (x < 3), g * (1 / 6), 0.0),
    accepts="float",
    domain=(-5.0, 5.0),
    ulp=1.2,
)
def hard_sigmoid(x: Any) -> Any:
    """Return relu6(x + 3) / 6, element by element.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.fn.hard_sigmoid(tp.tensor([-3.0, 0.0, 3.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return vector.minimum(vector.maximum(x + 3.0, 0.0), 6.0) / 6.0


@elementwise(
    oracle=lambda x: np.where(x <= -3, -0.0, np.where(x >= 3, x, x * (x + 3) / 6)),
    vjp=lambda g, y, x: where(x <= -3, 0.0, where(x >= 3, g, g * (x * (1 / 3) + 0.5))),
    accepts="float",
    domain=(-5.0, 5.0),
    ulp=2,
)
def hard_silu(x: Any) -> Any:
    """Return x * hard_sigmoid(x), element by element; -0.0 at -inf.

    x: float; integers become float64 (Howard et al. 2019).

    >>> import treepie as tp
    >>> tp.fn.hard_silu(tp.tensor([-3.0, 0.0, 3.0])).tolist()
    [-0.0, 0.0, 3.0]
    """
    return vector.select(x <= -3.0, -0.0, vector.select(x >= 3.0, x, x * (x + 3.0) / 6.0))


@elementwise(
    oracle=lambda x, slope: np.where(x > 0, x, x * slope),
    vjp=(
        lambda g, y, x, slope: where(x > 0, g, g * slope),
        lambda g, y, x, slope: where(x > 0, 0.0, g * x),
    ),
    accepts="float",
    ulp=0.5,
)
def leaky_relu(x: Any, slope: Any) -> Any:
    """Return x where it is positive, x * slope elsewhere."""
    return vector.select(x > 0, x, x * slope)


@elementwise(
    oracle=lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)),
    vjp=(
        lambda g, y, x, alpha: where(x > 0, g, g * (y + alpha)),
        lambda g, y, x, alpha: where(x > 0, 0.0, g * expm1(minimum(x, 0.0))),
    ),
    accepts="float",
    flops=30,
    ulp=2,
)
def elu(x: Any, alpha: Any) -> Any:
    """Return x where it is positive, alpha * (exp(x) - 1) elsewhere (Clevert et al. 2016)."""
    return vector.select(x > 0, x, alpha * formulas.expm1(x))


@elementwise(
    oracle=lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x / alpha)),
    vjp=(
        lambda g, y, x, alpha: where(x > 0, g, g * exp(minimum(x, 0.0) / alpha)),
        lambda g, y, x, alpha: where(
            x > 0, 0.0, g * (expm1(minimum(x, 0.0) / alpha) - x / alpha * exp(minimum(x, 0.0) / alpha))
        ),
    ),
    accepts="float",
    domain={0: (-2.0, 2.0), 1: (0.5, 3.0)},
    flops=30,
    # exp(t) is off by the rounding of t = x / alpha, which for an alpha below 0 may be large.
    magnitude=lambda x, alpha: np.where(
        x > 0, x, np.abs(alpha * np.expm1(x / alpha)) * (1 + np.abs(x / alpha))
    ),
    ulp=2.5,
)
def celu(x: Any, alpha: Any) -> Any:
    """Return x where it is positive, alpha * (exp(x / alpha) - 1) elsewhere (Barron 2017)."""
    t = x / alpha
    # Where t is subnormal, it has lost bits of x.
    tiny = (vector.fabs(t) < 2.0**-60) & (vector.fabs(alpha) < INFINITY)
    y = vector.select(tiny, x, alpha * formulas.expm1(t))
    return vector.select(x > 0, x, y)


@elementwise(
    oracle=lambda x: _SCALE * np.where(x > 0, x, _ALPHA * np.expm1(x)),
    vjp=lambda g, y, x: where(x > 0, g * _SCALE, g * (y + _SCALE * _ALPHA)),
    accepts="float",
    flops=30,
    ulp=2,
)
def selu(x: Any) -> Any:
    """Return 1.0507 * elu(x, 1.6733), element by element.

    x: float; integers become float64. It keeps mean 0 and variance 1 (Klambauer et al. 2017).

    >>> import treepie as tp
    >>> tp.fn.selu(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 1.0507010221481323]
    """
    return vector.select(x > 0, x * _SCALE, formulas.expm1(x) * (_SCALE * _ALPHA))


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _gelu_vjp(g: Any, y: Any, x: Any) -> Any:
    # Phi(x) + x phi(x), the normal distribution and its density. Beyond 40 Phi is 0 or 1, and x phi(x) would
    # be inf times 0 at infinity.
    x = maximum(minimum(x, 40.0), -40.0)
    return g * (erf(x * math.sqrt(0.5)) * 0.5 + 0.5 + x * exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))


@elementwise(
    # The limit at -inf, where x times 0 would be NaN.
    oracle=lambda x: np.where(x == -np.inf, -0.0, x * np.asarray(_erfc(-x / math.sqrt(2)), np.float64) / 2),
    vjp=_gelu_vjp,
    accepts="float",
    flops=80,
    ulp=3.5,
    fast=Fast(fast.gelu, 16, 3.5, np.abs, "x", fast.gelu_slope),
)
def gelu(x: Any) -> Any:
    """Return x Phi(x), Phi the normal distribution function; 0 at -inf.

    x: float; integers become float64. The exact form of Hendrycks & Gimpel 2016; see `gelu_approx`.

    >>> import treepie as tp
    >>> tp.fn.gelu(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.8413447141647339]
    """
    return formulas.gelu(x)


def _silu(x: Any) -> Any:
    return np.where(x == -np.inf, -0.0, x / (1 + np.exp(-x)))


@elementwise(
    oracle=_silu,
    # From 100 on the sigmoid is 1, and y times 0 would be NaN at infinity.
    vjp=lambda g, y, x: g * (sigmoid(x) + minimum(y, 100.0) * (1 - sigmoid(x))),
    accepts="float",
    flops=35,
    ulp=2.3,
    fast=Fast(fast.silu, 20, 3.2, growing(_silu), GROWING, fast.silu_slope),
)
def silu(x: Any) -> Any:
    """Return x sigmoid(x), element by element; 0 at -inf.

    x: float; integers become float64. Also known as swish (Elfwing et al. 2018).

    >>> import treepie as tp
    >>> tp.fn.silu(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.7310585975646973]
    """
    return formulas.silu(x)


def _gelu_approx_vjp(g: Any, y: Any, x: Any) -> Any:
    # s + x s (1 - s) u', s = sigmoid(u). Beyond 30 s is 0 or 1, and x^3 would overflow.
    x = maximum(minimum(x, 30.0), -30.0)
    cube = x * x * (0.044715 * 2 * _ROOT)
    s = sigmoid((cube + 2 * _ROOT) * x)
    return g * s * (x * (1.0 - s) * (cube * 3.0 + 2 * _ROOT) + 1.0)


@elementwise(
    oracle=lambda x: np.where(x == -np.inf, -0.0, x / (1 + np.exp(-2 * _ROOT * (x + 0.044715 * x**3)))),
    vjp=_gelu_approx_vjp,
    accepts="float",
    flops=50,
    ulp=2.5,
    fast=Fast(fast.gelu_approx, 17, 4.5, np.abs, "x", fast.gelu_approx_slope),
)
def gelu_approx(x: Any) -> Any:
    """Return gelu with tanh in place of erf, 0 at -inf.

    x: float; integers become float64. x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), Hendrycks & Gimpel 2016.

    >>> import treepie as tp
    >>> tp.fn.gelu_approx(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.8411920070648193]
    """
    return formulas.gelu_approx(x)


def _mish_vjp(g: Any, y: Any, x: Any) -> Any:
    # t + x t' for t = tanh(softplus(x)) = n / (n + 2), n = e (e + 2), e = exp(x). Beyond 40 t is 1, and a
    # larger x would magnify the rest of t', exp(-80); below -800 t is 0.
    x = maximum(minimum(x, 40.0), -800.0)
    e = exp(x)
    n = e * (e + 2.0)
    t = n / (n + 2.0)
    return g * (t + x * t * ((e + 1.0) / (n + 2.0) * 4.0 / (e + 2.0)))


@elementwise(
    oracle=lambda x: np.where(x == -np.inf, -0.0, x * np.tanh(np.logaddexp(x, 0))),
    vjp=_mish_vjp,
    accepts="float",
    flops=40,
    ulp=2.7,
)
def mish(x: Any) -> Any:
    """Return x * tanh(softplus(x)), element by element; 0 at -inf.

    x: float; integers become float64 (Misra 2019).

    >>> import treepie as tp
    >>> tp.fn.mish(tp.tensor([0.0, 1.0])).tolist()
    [0.0, 0.8650984168052673]
    """
    return formulas.mish(x)


@elementwise(
    oracle=lambda x: np.where(x > 0, (x + np.sqrt(x * x + 4)) / 2, 2 / (np.sqrt(x * x + 4) - x)),
    vjp=lambda g, y, x: where(abs(x) > _FAR, where(x > 0, g, 0.0), g * y / sqrt(x * x + 4.0)),
    accepts="float",
    domain=(-3.0, 3.0),
    flops=15,
    ulp=3,
)
def squareplus(x: Any) -> Any:
    """Return (x + sqrt(x^2 + 4)) / 2, without cancellation below 0 (Barron 2021)."""
    root = vector.sqrt(vector.fma(x, x, 4.0))
    y = vector.select(x > 0, (x + root) * 0.5, 2.0 / (root - x))
    # Far from 0 the square would overflow.
    return vector.select(x > _FAR, x, vector.select(x < -_FAR, -1.0 / x, y))


@elementwise(
    oracle=lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
    vjp=lambda g, y, x: g * sparse_sigmoid(x),
    accepts="float",
    ulp=2,
)
def sparse_plus(x: Any) -> Any:
    """Return 0 up to -1, (x + 1)^2 / 4 from there to 1, then x.

    x: float; integers become float64 (Liu & Blondel 2023).

    >>> import treepie as tp
    >>> tp.fn.sparse_plus(tp.tensor([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.25, 3.0]
    """
    near = x + 1.0
    return vector.select(x <= -1.0, 0.0, vector.select(x >= 1.0, x, near * near * 0.25))


@elementwise(
    oracle=lambda x: np.clip((x + 1) / 2, 0, 1),
    vjp=lambda g, y, x: where((x > -1) & (x < 1), g * 0.5, 0.0),
    accepts="float",
    ulp=0.5,
)
def sparse_sigmoid(x: Any) -> Any:
    """Return (x + 1) / 2 limited to [0, 1].

    x: float; integers become float64. It is the derivative of `sparse_plus`.

    >>> import treepie as tp
    >>> tp.fn.sparse_sigmoid(tp.tensor([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return vector.minimum(vector.maximum(x * 0.5 + 0.5, 0.0), 1.0)


@elementwise(
    oracle=lambda x: np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))),
    vjp=lambda g, y, x: g / ((abs(x) + 1.0) * (abs(x) + 1.0)),
    accepts="float",
    flops=8,
    ulp=1.5,
)
def softsign(x: Any) -> Any:
    """Return x / (1 + abs(x)), element by element.

    x: float; integers become float64. The result is -1 and 1 at the infinities.

    >>> import treepie as tp
    >>> tp.fn.softsign(tp.tensor([0.0, 3.0])).tolist()
    [0.0, 0.75]
    """
    a = vector.fabs(x)
    return vector.copysign(vector.select(a == INFINITY, 1.0, a / (a + 1.0)), x)


@elementwise(
    oracle=lambda x: -np.logaddexp(-x, 0),
    vjp=lambda g, y, x: g * sigmoid(-x),
    accepts="float",
    flops=50,
    ulp=2,
)
def log_sigmoid(x: Any) -> Any:
    """Return log(sigmoid(x)), element by element, without overflow.

    x: float; integers become float64.

    >>> import treepie as tp
    >>> tp.fn.log_sigmoid(tp.tensor([0.0, -100.0])).tolist()
    [-0.6931471824645996, -100.0]
    """
    return -formulas.softplus(-x)
