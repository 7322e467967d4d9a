"""Layers that change the shape of their input: no parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import integer

from .. import fn
from ..fn.geometry import Padding1d, Sizes, sizes
from ..fn.resize import Mode, check_mode
from ..pickling import constructor
from .core import Layer, stateless


@constructor
def flatten() -> Layer:
    """Return the layer (batch, ...) -> (batch, features).

    >>> import treepie as tp
    >>> model = tp.layer.flatten()
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 2, 3)))[0].shape
    (4, 6)
    """

    def flatten_features(x: Tensor) -> Tensor:
        if x.ndim == 0:
            raise ValueError("layer.flatten: x has shape (), expected (batch, ...)")
        return x.reshape((x.shape[0], math.prod(x.shape[1:])))

    return stateless("flatten", flatten_features)


@constructor
def reshape(shape: Sequence[int]) -> Layer:
    """Return the layer (batch, ...) -> (batch, *shape).

    shape: the shape of an example, an int or several; one size may be -1, which the others determine.

    Raises ValueError for another number of elements.

    >>> import treepie as tp
    >>> model = tp.layer.reshape((2, -1))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 6)))[0].shape
    (4, 2, 3)
    """
    name = "layer.reshape"
    entries = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    size = tuple([integer(name, "shape", n, least=-1) for n in entries])
    rest = math.prod(n for n in size if n != -1)
    if size.count(-1) > 1:
        raise ValueError(f"{name}: shape is {size}, expected -1 at most once")

    def reshape_examples(x: Tensor) -> Tensor:
        features = math.prod(x.shape[1:])
        # -1 is resolved by the features of an example, so that a batch may be empty.
        free = features // rest if rest else 0
        result = tuple(free if n == -1 else n for n in size)
        if x.ndim == 0 or math.prod(result) != features:
            raise ValueError(
                f"{name}: x has shape {x.shape}, expected (batch, ...) that fits (batch, *{size})"
            )
        return x.reshape((x.shape[0], *result))

    return stateless(f"reshape({size})", reshape_examples)


@constructor
def permute(axes: Sequence[int]) -> Layer:
    """Return the layer that reorders axes: axis k of the output is axis axes[k] of the input.

    axes: of all axes, the batch's too: (0, 2, 1) turns (batch, seq, features) to (batch, features, seq).
        ValueError if they are no permutation of x's axes.

    >>> import treepie as tp
    >>> model = tp.layer.permute((0, 2, 1))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 5, 6)))[0].shape
    (4, 6, 5)
    """
    if not isinstance(axes, tuple | list):
        raise TypeError(
            f"layer.permute: axes is a {type(axes).__name__}, expected the axes in their new order"
        )
    order = tuple([integer("layer.permute", "axes", k) for k in axes])
    return stateless(f"permute({order})", lambda x: ops.transpose(x, order))


@constructor
def pad(padding: Padding1d, value: float = 0.0) -> Layer:
    """Return the layer that surrounds the spatial axes of x (batch, channels, ...) with a constant.

    padding: an int for both ends of each axis, or for each spatial axis an int or a pair (before, after).
    value: the constant.

    Raises ValueError for another number of spatial axes.

    >>> import treepie as tp
    >>> model = tp.layer.pad((1, (0, 2)))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((1, 3, 8, 8)))[0].shape
    (1, 3, 10, 10)
    """
    name = "layer.pad"
    each = [sizes(name, "padding", p, 2, 0) for p in padding] if isinstance(padding, tuple | list) else None
    both = None if each else sizes(name, "padding", padding, 2, 0)  # type: ignore[arg-type]

    def pad_spatial(x: Tensor) -> Tensor:
        pairs = each if each else [both] * (x.ndim - 2)
        if x.ndim != 2 + len(pairs) or not pairs:
            axes = "..." if each is None else f"{len(each)} spatial axes"
            raise ValueError(f"{name}: x has shape {x.shape}, expected (batch, channels, {axes})")
        return ops.pad(x, [(0, 0), (0, 0), *pairs], value)

    return stateless(f"pad({padding})", pad_spatial)


@constructor
def upsample(scale: Sizes, mode: Mode = "nearest") -> Layer:
    """Return a layer that applies `fn.upsample` to x (batch, channels, length) or (batch, channels, h, w).

    scale: an int, or one for each spatial axis, of 1 or more.  mode: as for `fn.upsample`.

    >>> import treepie as tp
    >>> model = tp.layer.upsample(2, mode="bilinear")
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((1, 3, 4, 5)))[0].shape
    (1, 3, 8, 10)
    """
    name = "layer.upsample"
    check_mode(name, mode)
    sizes(name, "scale", scale, len(scale) if isinstance(scale, tuple | list) else 1)
    return stateless(f"upsample({scale}, {mode})", lambda x: fn.upsample(x, scale, mode))
