"""Initializers of parameters: functions (key, shape, dtype) -> tensor.

>>> import treepie as tp
>>> tp.init.glorot_uniform(tp.rng.key(0), (784, 128), tp.float32).shape
(784, 128)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from treepie.autodiff import Tensor, float32, full, ones as _ones, rng, zeros as _zeros
from treepie.autodiff.arguments import shape_of

from .pickling import constructor

__all__ = [
    "constant",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "uniform",
    "variance_scaling",
    "zeros",
]


def __dir__() -> list[str]:
    return __all__


Shape = tuple[int, ...]
#: (key, shape, dtype) -> tensor
Initializer = Callable[[Tensor, Shape, Any], Tensor]
Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["uniform", "normal", "truncated_normal"]


def zeros(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
    """Return zeros; the key is not used.

    >>> import treepie as tp
    >>> tp.init.zeros(tp.rng.key(0), (2,)).tolist()
    [0.0, 0.0]
    """
    return _zeros(shape, dtype)


def ones(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
    """Return ones; the key is not used.

    >>> import treepie as tp
    >>> tp.init.ones(tp.rng.key(0), (2,)).tolist()
    [1.0, 1.0]
    """
    return _ones(shape, dtype)


@constructor
def constant(value: float) -> Initializer:
    """Return the initializer of tensors filled with one number.

    >>> import treepie as tp
    >>> tp.init.constant(0.5)(tp.rng.key(0), (2,), tp.float32).tolist()
    [0.5, 0.5]
    """

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        return full(shape, value, dtype)

    return initializer


@constructor
def uniform(scale: float = 0.01) -> Initializer:
    """Return the initializer of the uniform distribution over [0, scale); ValueError unless scale > 0.

    >>> import treepie as tp
    >>> x = tp.init.uniform(0.1)(tp.rng.key(0), (100,), tp.float32)
    >>> bool((x >= 0).all()), bool((x < 0.1).all())
    (True, True)
    """
    _positive("init.uniform", "scale", scale)

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        return rng.uniform(key, shape, 0.0, scale, dtype)

    return initializer


@constructor
def normal(stddev: float = 0.01) -> Initializer:
    """Return the initializer of the normal distribution of mean 0; ValueError unless stddev > 0.

    >>> import treepie as tp
    >>> tp.init.normal(0.02)(tp.rng.key(0), (4, 3), tp.float32).shape
    (4, 3)
    """
    _positive("init.normal", "stddev", stddev)

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        return rng.normal(key, shape, dtype) * stddev

    return initializer


def _positive(function: str, argument: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{function}: {argument} is {value}, expected a positive number")


# Standard deviation of the standard normal distribution within [-2, 2].
_TRUNCATED_STDDEV = 0.87962566103423978


def _fans(shape: Shape, in_axis: int, out_axis: int) -> tuple[float, float]:
    """Return the number of inputs and outputs of each unit; other axes are those of a convolution kernel."""
    if len(shape) < 2 or not (-len(shape) <= in_axis < len(shape) and -len(shape) <= out_axis < len(shape)):
        raise ValueError(
            f"init.variance_scaling: shape is {tuple(shape)} with in_axis {in_axis} and out_axis "
            f"{out_axis}, expected at least two axes, these among them"
        )
    inside, outside = shape[in_axis], shape[out_axis]
    kernel = math.prod(shape) / max(inside * outside, 1)
    return inside * kernel, outside * kernel


@constructor
def variance_scaling(
    scale: float, mode: Mode, distribution: Distribution, in_axis: int = -2, out_axis: int = -1
) -> Initializer:
    """Return the initializer of a distribution with mean 0 and variance scale / fan.

    scale: above 0.  mode: the fan, "fan_in" (number of inputs of a unit), "fan_out" (outputs) or "fan_avg".
    distribution: "uniform", "normal", or "truncated_normal" (at two standard deviations).
    in_axis, out_axis: axes of inputs and outputs in the shape; the others are those of a convolution kernel.

    Raises ValueError for other arguments; the initializer does for a shape without the two axes.
    Glorot & Bengio 2010; He et al. 2015.

    >>> import treepie as tp
    >>> w = tp.init.variance_scaling(2.0, "fan_in", "normal")(tp.rng.key(0), (100, 100), tp.float64)
    >>> round(w.std().item(), 2)  # sqrt(2 / 100)
    0.14
    """
    _positive("init.variance_scaling", "scale", scale)
    modes, distributions = get_args(Mode), get_args(Distribution)
    if mode not in modes:
        raise ValueError(f"init.variance_scaling: mode is {mode!r}, expected one of {modes}")
    if distribution not in distributions:
        raise ValueError(
            f"init.variance_scaling: distribution is {distribution!r}, expected one of {distributions}"
        )

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        fan_in, fan_out = _fans(shape_of("init.variance_scaling", shape), in_axis, out_axis)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        stddev = math.sqrt(scale / max(fan, 1.0))
        if distribution == "uniform":
            limit = math.sqrt(3.0) * stddev
            return rng.uniform(key, shape, -limit, limit, dtype)
        if distribution == "normal":
            return rng.normal(key, shape, dtype) * stddev
        return rng.truncated_normal(key, shape, dtype=dtype) * (stddev / _TRUNCATED_STDDEV)

    return initializer


# Glorot & Bengio 2010; He et al. 2015; LeCun et al. 1998. As in JAX, the normal ones are truncated.
glorot_uniform = variance_scaling(1.0, "fan_avg", "uniform")
glorot_normal = variance_scaling(1.0, "fan_avg", "truncated_normal")
he_uniform = variance_scaling(2.0, "fan_in", "uniform")
he_normal = variance_scaling(2.0, "fan_in", "truncated_normal")
lecun_uniform = variance_scaling(1.0, "fan_in", "uniform")
lecun_normal = variance_scaling(1.0, "fan_in", "truncated_normal")
