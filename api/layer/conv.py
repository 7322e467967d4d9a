"""Layers of convolution and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng
from treepie.autodiff.arguments import integer

from .. import fn, init as initializers
from ..fn.conv import Padding, Sizes, margins, sizes
from ..pickling import constructor
from .core import Layer, Tree, Vars, stateless

#: Of weights (out, in / groups, window...): Glorot & Bengio 2010, a unit's inputs and outputs counted by
#: window.
_weights = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)


@constructor
def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = "same",
    groups: int = 1,
    bias: bool = True,
) -> Layer:
    """Return the layer `fn.conv1d` of x (batch, in_channels, length).

    Parameters: weight (out_channels, in_channels / groups, kernel_size), bias (out_channels,).
    """
    return _conv(
        "conv1d",
        1,
        fn.conv1d,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        dilation,
        padding,
        groups,
        bias,
    )


@constructor
def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes = (3, 3),
    stride: Sizes = (1, 1),
    dilation: Sizes = (1, 1),
    padding: Padding = "same",
    groups: int = 1,
    bias: bool = True,
) -> Layer:
    """Return the layer `fn.conv2d` of x (batch, in_channels, h, w).

    Parameters: weight (out_channels, in_channels / groups, *kernel_size), bias (out_channels,).
    """
    return _conv(
        "conv2d",
        2,
        fn.conv2d,
        in_channels,
        out_channels,
        kernel_size,
        stride,
        dilation,
        padding,
        groups,
        bias,
    )


def _conv(
    name: str,
    axes: int,
    function: Callable[..., Tensor],
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes,
    dilation: Sizes,
    padding: Padding,
    groups: int,
    bias: bool,
) -> Layer:
    full = f"layer.{name}"
    given = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    for argument, size in given.items():
        if integer(full, argument, size) < 1:
            raise ValueError(f"{full}: {argument} is {size}, expected at least 1")
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{full}: groups is {groups}, expected a divisor of {in_channels} in_channels and {out_channels} "
            "out_channels"
        )
    kernel = sizes(full, "kernel_size", kernel_size, axes)
    step, spread = sizes(full, "stride", stride, axes), sizes(full, "dilation", dilation, axes)
    margins(full, padding, kernel, kernel, step, spread)  # refuses what is no padding
    shape = (out_channels, in_channels // groups, *kernel)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        params = {"weight": _weights(rng.split(rngs)[0], shape, dtype)}
        if bias:
            params["bias"] = initializers.zeros(rngs, (out_channels,), dtype)
        return Vars(params, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        b = params["bias"] if bias else None
        return function(x, params["weight"], b, step, spread, padding, groups), state

    window = kernel[0] if axes == 1 else kernel
    return Layer(init, apply, f"{name}({in_channels}, {out_channels}, {window})", pure=True)


def _pool(
    name: str,
    axes: int,
    function: Callable[..., Tensor],
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Padding,
) -> Layer:
    full = f"layer.{name}"
    kernel = sizes(full, "kernel_size", kernel_size, axes)
    step = kernel if stride is None else sizes(full, "stride", stride, axes)
    margins(full, padding, kernel, kernel, step, (1,) * axes)  # refuses what is no padding
    window = kernel[0] if axes == 1 else kernel
    return stateless(f"{name}({window})", lambda x: function(x, kernel, step, padding))


@constructor
def max_pool1d(kernel_size: int, stride: int | None = None, padding: Padding = "valid") -> Layer:
    """Return the layer `fn.max_pool1d`: the largest of each window of x (batch, channels, length)."""
    return _pool("max_pool1d", 1, fn.max_pool1d, kernel_size, stride, padding)


@constructor
def avg_pool1d(kernel_size: int, stride: int | None = None, padding: Padding = "valid") -> Layer:
    """Return the layer `fn.avg_pool1d`: the mean of each window of x (batch, channels, length)."""
    return _pool("avg_pool1d", 1, fn.avg_pool1d, kernel_size, stride, padding)


@constructor
def max_pool2d(kernel_size: Sizes, stride: Sizes | None = None, padding: Padding = "valid") -> Layer:
    """Return the layer `fn.max_pool2d`: the largest of each window of x (batch, channels, h, w)."""
    return _pool("max_pool2d", 2, fn.max_pool2d, kernel_size, stride, padding)


@constructor
def avg_pool2d(kernel_size: Sizes, stride: Sizes | None = None, padding: Padding = "valid") -> Layer:
    """Return the layer `fn.avg_pool2d`: the mean of each window of x (batch, channels, h, w)."""
    return _pool("avg_pool2d", 2, fn.avg_pool2d, kernel_size, stride, padding)
