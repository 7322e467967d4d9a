"""Initializers of parameters: functions (key, shape, dtype) -> tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, float32, full, ones as _ones, rng, zeros as _zeros

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

Shape = tuple[int, ...]
#: (key, shape, dtype) -> tensor
Initializer = Callable[[Tensor, Shape, Any], Tensor]


def zeros(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
    """Return zeros; the key is not used."""
    return _zeros(shape, dtype)


def ones(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
    """Return ones; the key is not used."""
    return _ones(shape, dtype)


@constructor
def constant(value: float) -> Initializer:
    """Return the initializer of one number everywhere."""

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        return full(shape, value, dtype)

    return initializer


@constructor
def uniform(scale: float = 0.01) -> Initializer:
    """Return the initializer of numbers uniform in [0, scale)."""
    _positive("init.uniform", "scale", scale)

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        return rng.uniform(key, shape, 0.0, scale, dtype)

    return initializer


@constructor
def normal(stddev: float = 0.01) -> Initializer:
    """Return the initializer of normal numbers with mean 0 and a standard deviation."""
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
    """Return how many inputs and outputs each unit has; axes other than the two are a kernel's."""
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
    scale: float, mode: str, distribution: str, in_axis: int = -2, out_axis: int = -1
) -> Initializer:
    """Return the initializer of numbers with mean 0 and variance scale / fan.

    mode: the fan, "fan_in", "fan_out" or "fan_avg".
    distribution: "uniform", "normal", or "truncated_normal" (cut off at two standard deviations).
    in_axis, out_axis: axes of the shape that count inputs and outputs.
    """
    _positive("init.variance_scaling", "scale", scale)
    modes, distributions = (
        ("fan_in", "fan_out", "fan_avg"),
        ("uniform", "normal", "truncated_normal"),
    )
    if mode not in modes:
        raise ValueError(f"init.variance_scaling: mode is {mode!r}, expected one of {modes}")
    if distribution not in distributions:
        raise ValueError(
            f"init.variance_scaling: distribution is {distribution!r}, expected one of {distributions}"
        )

    def initializer(key: Tensor, shape: Shape, dtype: Any = float32) -> Tensor:
        fan_in, fan_out = _fans(shape, in_axis, out_axis)
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
