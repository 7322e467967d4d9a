"""Layers of convolution and pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng

from .. import fn, init as initializers
from ..fn.geometry import Padding1d, Padding2d, Sizes, pad_pairs, sizes
from ..pickling import constructor
from .core import Layer, Tree, Vars, check_sizes, stateless

#: Of weights (out, in / groups, window...): Glorot & Bengio 2010, fans multiplied by the window's size.
_weights = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)


def _conv(
    function: Callable[..., Tensor],
    axes: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes,
    dilation: Sizes,
    padding: Padding1d,
    groups: int,
    bias: bool,
) -> Layer:
    """Return the layer of `fn.conv1d` or `fn.conv2d`, over `axes` spatial axes."""
    name = f"layer.{function.__name__}"
    counts = {"in_channels": in_channels, "out_channels": out_channels, "groups": groups}
    check_sizes(name, **counts)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{name}: groups is {groups}, expected a divisor of {in_channels} in_channels and {out_channels} "
            "out_channels"
        )
    kernel = sizes(name, "kernel_size", kernel_size, axes)
    steps, dilations = sizes(name, "stride", stride, axes), sizes(name, "dilation", dilation, axes)
    pad_pairs(name, padding, kernel, kernel, steps, dilations)  # raises for invalid padding
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
        return function(x, params["weight"], b, steps, dilations, padding, groups), state

    window = kernel[0] if axes == 1 else kernel
    return Layer(init, apply, f"{function.__name__}({in_channels}, {out_channels}, {window})", pure=True)


def _pool(
    function: Callable[..., Tensor], axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Padding1d
) -> Layer:
    """Return the layer of a pooling function, over `axes` spatial axes."""
    name = f"layer.{function.__name__}"
    kernel = sizes(name, "kernel_size", kernel_size, axes)
    steps = kernel if stride is None else sizes(name, "stride", stride, axes)
    pad_pairs(name, padding, kernel, kernel, steps, (1,) * axes)  # raises for invalid padding
    window = kernel[0] if axes == 1 else kernel
    return stateless(f"{function.__name__}({window})", lambda x: function(x, kernel, steps, padding))


@constructor
def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding1d = "same",
    groups: int = 1,
    bias: bool = True,
) -> Layer:
    """Return a layer that applies `fn.conv1d` to x (batch, in_channels, length).

    stride, dilation, padding, groups: as for `fn.conv1d`.  bias: whether there is one.

    Parameters: weight (out_channels, in_channels / groups, kernel_size), Glorot-uniform; bias
    (out_channels,), zeros.

    Raises ValueError for sizes below 1, groups that do not divide both numbers of channels, and padding that
    is none of those of `fn.conv1d`.

    >>> import treepie as tp
    >>> layer = tp.layer.conv1d(2, 4, padding="causal")
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 2, 10)))[0].shape
    (1, 4, 10)
    """
    return _conv(
        fn.conv1d, 1, in_channels, out_channels, kernel_size, stride, dilation, padding, groups, bias
    )


@constructor
def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes = (3, 3),
    stride: Sizes = (1, 1),
    dilation: Sizes = (1, 1),
    padding: Padding2d = "same",
    groups: int = 1,
    bias: bool = True,
) -> Layer:
    """Return a layer that applies `fn.conv2d` to x (batch, in_channels, h, w).

    kernel_size, stride, dilation: an int, or a pair (rows, columns).  padding, groups: as for `fn.conv2d`.
    bias: whether there is one.

    Parameters: weight (out_channels, in_channels / groups, *kernel_size), Glorot-uniform; bias
    (out_channels,), zeros.

    Raises ValueError for sizes below 1, groups that do not divide both numbers of channels, and padding that
    is none of those of `fn.conv2d`.

    >>> import treepie as tp
    >>> layer = tp.layer.conv2d(3, 8, stride=2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 3, 10, 10)))[0].shape
    (1, 8, 5, 5)
    """
    return _conv(
        fn.conv2d, 2, in_channels, out_channels, kernel_size, stride, dilation, padding, groups, bias
    )


@constructor
def max_pool1d(kernel_size: int, stride: int | None = None, padding: Padding1d = "valid") -> Layer:
    """Return a layer that applies `fn.max_pool1d` to x (batch, channels, length).

    stride: the window's size by default.  padding: as for `fn.max_pool1d`.

    >>> import treepie as tp
    >>> layer = tp.layer.max_pool1d(2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 3, 8)))[0].shape
    (1, 3, 4)
    """
    return _pool(fn.max_pool1d, 1, kernel_size, stride, padding)


@constructor
def avg_pool1d(kernel_size: int, stride: int | None = None, padding: Padding1d = "valid") -> Layer:
    """Return a layer that applies `fn.avg_pool1d` to x (batch, channels, length).

    stride: the window's size by default.  padding: as for `fn.avg_pool1d`; it counts as zeros.

    >>> import treepie as tp
    >>> layer = tp.layer.avg_pool1d(2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 3, 8)))[0].shape
    (1, 3, 4)
    """
    return _pool(fn.avg_pool1d, 1, kernel_size, stride, padding)


@constructor
def max_pool2d(kernel_size: Sizes, stride: Sizes | None = None, padding: Padding2d = "valid") -> Layer:
    """Return a layer that applies `fn.max_pool2d` to x (batch, channels, h, w).

    kernel_size, stride: an int, or a pair (rows, columns); the stride is the window's size by default.
    padding: as for `fn.max_pool2d`.

    >>> import treepie as tp
    >>> layer = tp.layer.max_pool2d(2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 3, 8, 8)))[0].shape
    (1, 3, 4, 4)
    """
    return _pool(fn.max_pool2d, 2, kernel_size, stride, padding)


@constructor
def avg_pool2d(kernel_size: Sizes, stride: Sizes | None = None, padding: Padding2d = "valid") -> Layer:
    """Return a layer that applies `fn.avg_pool2d` to x (batch, channels, h, w).

    kernel_size, stride: an int, or a pair (rows, columns); the stride is the window's size by default.
    padding: as for `fn.avg_pool2d`; it counts as zeros.

    >>> import treepie as tp
    >>> layer = tp.layer.avg_pool2d(2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 3, 8, 8)))[0].shape
    (1, 3, 4, 4)
    """
    return _pool(fn.avg_pool2d, 2, kernel_size, stride, padding)
