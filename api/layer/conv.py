"""Layers of convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng

from .. import fn, init as initializers
from ..fn.conv import check_output_padding
from ..fn.geometry import Padding1d, Padding2d, Sizes, pad_pairs, sizes
from ..pickling import constructor
from .core import Layer, Tree, Vars, check_sizes, parametric

#: Of weights (out, in / groups, window...): Glorot & Bengio 2010, fans multiplied by the window's size.
_weights = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=1, out_axis=0)
#: Likewise, of weights (in, out / groups, window...) of transposed convolutions.
_transposed_weights = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=1)


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
    _check_channels(name, in_channels, out_channels, groups)
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


def _conv_transpose(
    function: Callable[..., Tensor],
    axes: int,
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    bias: bool,
    dilation: Sizes,
) -> Layer:
    """Return the layer of `fn.conv_transpose1d` or `fn.conv_transpose2d`, over `axes` spatial axes."""
    name = f"layer.{function.__name__}"
    _check_channels(name, in_channels, out_channels, groups)
    kernel = sizes(name, "kernel_size", kernel_size, axes)
    steps, dilations = sizes(name, "stride", stride, axes), sizes(name, "dilation", dilation, axes)
    pad = sizes(name, "padding", padding, axes, 0)
    extra = sizes(name, "output_padding", output_padding, axes, 0)
    check_output_padding(name, output_padding, extra, steps, dilations)
    shape = (in_channels, out_channels // groups, *kernel)

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        weight = {"weight": _transposed_weights(rng.split(rngs)[0], shape, dtype)}
        return {**weight, "bias": initializers.zeros(rngs, (out_channels,), dtype)} if bias else weight

    def transposed(p: Tree, x: Tensor) -> Tensor:
        b = p["bias"] if bias else None
        return function(x, p["weight"], b, steps, pad, extra, groups, dilations)

    window = kernel[0] if axes == 1 else kernel
    return parametric(f"{function.__name__}({in_channels}, {out_channels}, {window})", params, transposed)


def _check_channels(name: str, in_channels: int, out_channels: int, groups: int) -> None:
    check_sizes(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{name}: groups is {groups}, expected a divisor of {in_channels} in_channels and {out_channels} "
            "out_channels"
        )


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
def conv_transpose1d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: int = 1,
) -> Layer:
    """Return a layer that applies `fn.conv_transpose1d` to x (batch, in_channels, length).

    stride, padding, output_padding, groups, dilation: as for `fn.conv_transpose1d`, and as PyTorch's.
    bias: whether there is one.

    Parameters: weight (in_channels, out_channels / groups, kernel_size), Glorot-uniform; bias
    (out_channels,), zeros.

    Raises ValueError for sizes below 1, groups that do not divide both numbers of channels, and an
    output_padding that is not less than the stride or the dilation.

    >>> import treepie as tp
    >>> layer = tp.layer.conv_transpose1d(4, 2, kernel_size=4, stride=2, padding=1)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 4, 10)))[0].shape
    (1, 2, 20)
    """
    sizes_1d = (kernel_size, stride, padding, output_padding)
    return _conv_transpose(
        fn.conv_transpose1d, 1, in_channels, out_channels, *sizes_1d, groups, bias, dilation
    )


@constructor
def conv_transpose2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Sizes,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Sizes = 1,
) -> Layer:
    """Return a layer that applies `fn.conv_transpose2d` to x (batch, in_channels, h, w).

    kernel_size, stride, padding, output_padding, dilation: an int, or a pair (rows, columns), as for
        `fn.conv_transpose2d`, and as PyTorch's.  groups: likewise.  bias: whether there is one.

    Parameters: weight (in_channels, out_channels / groups, *kernel_size), Glorot-uniform; bias
    (out_channels,), zeros.

    Raises ValueError as `conv_transpose1d`.

    >>> import treepie as tp
    >>> layer = tp.layer.conv_transpose2d(8, 3, kernel_size=2, stride=2)
    >>> layer.apply(layer.init(rngs=tp.rng.key(0)), tp.ones((1, 8, 5, 5)))[0].shape
    (1, 3, 10, 10)
    """
    sizes_2d = (kernel_size, stride, padding, output_padding)
    return _conv_transpose(
        fn.conv_transpose2d, 2, in_channels, out_channels, *sizes_2d, groups, bias, dilation
    )
