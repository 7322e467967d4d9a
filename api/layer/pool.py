"""Layers of pooling."""

from __future__ import annotations

from collections.abc import Callable

from treepie.autodiff import Tensor

from .. import fn
from ..fn.geometry import Padding1d, Padding2d, Sizes, pad_pairs, sizes
from ..pickling import constructor
from .core import Layer, stateless


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


@constructor
def global_avg_pool() -> Layer:
    """Return the layer `fn.global_avg_pool`: the mean of each channel, to (batch, channels).

    >>> import treepie as tp
    >>> model = tp.layer.global_avg_pool()
    >>> model.apply(model.init(tp.rng.key(0)), tp.ones((2, 3, 8, 8)))[0].shape
    (2, 3)
    """
    return stateless("global_avg_pool", fn.global_avg_pool)


@constructor
def global_max_pool() -> Layer:
    """Return the layer `fn.global_max_pool`: the largest element of each channel, to (batch, channels).

    >>> import treepie as tp
    >>> model = tp.layer.global_max_pool()
    >>> model.apply(model.init(tp.rng.key(0)), tp.ones((2, 3, 8)))[0].shape
    (2, 3)
    """
    return stateless("global_max_pool", fn.global_max_pool)


@constructor
def adaptive_avg_pool2d(output_size: Sizes) -> Layer:
    """Return a layer that applies `fn.adaptive_avg_pool2d` to x (batch, channels, h, w).

    output_size: an int, or a pair (rows, columns), of 1 or more.

    >>> import treepie as tp
    >>> model = tp.layer.adaptive_avg_pool2d((2, 3))
    >>> model.apply(model.init(tp.rng.key(0)), tp.ones((1, 4, 7, 7)))[0].shape
    (1, 4, 2, 3)
    """
    size = sizes("layer.adaptive_avg_pool2d", "output_size", output_size, 2)
    return stateless(f"adaptive_avg_pool2d({size})", lambda x: fn.adaptive_avg_pool2d(x, size))
