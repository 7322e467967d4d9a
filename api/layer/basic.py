"""The linear layer, dropout, activations, and layers of a function without parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng
from treepie.autodiff.arguments import integer
from treepie.autodiff.program.pure import is_pure

from .. import fn, init as initializers
from ..fn.linear import check_rate
from ..init import Initializer
from ..pickling import constructor
from .core import Layer, Tree, Vars, stateless


@constructor
def linear(
    in_features: int,
    out_features: int,
    bias: bool = True,
    weight_init: Initializer = initializers.glorot_uniform,
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Return the layer x @ weight + bias on the last axis.

    Parameters: weight (in_features, out_features), bias (out_features,).
    """
    sizes = {"in_features": in_features, "out_features": out_features}
    for argument, size in sizes.items():
        if integer("layer.linear", argument, size) < 1:
            raise ValueError(f"layer.linear: {argument} is {size}, expected at least 1")

    def init(rngs: Tensor, dtype: Any) -> Vars:
        keys = rng.split(rngs)
        params = {"weight": weight_init(keys[0], (in_features, out_features), dtype)}
        if bias:
            params["bias"] = bias_init(keys[1], (out_features,), dtype)
        return Vars(params, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return fn.linear(x, params["weight"], params["bias"] if bias else None), state

    return Layer(init, apply, f"linear({in_features}, {out_features})", pure=True)


@constructor
def dropout(rate: float) -> Layer:
    """Return the layer `fn.dropout`: in training, it sets elements to 0 with probability `rate`."""
    check_rate(rate)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if not training or rate == 0:
            return x, state
        if rngs is None:
            raise ValueError("layer.dropout: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        return fn.dropout(x, rate, rngs), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, f"dropout({rate})", pure=True)


@constructor
def relu() -> Layer:
    """Return the layer max(x, 0)."""
    return stateless("relu", fn.relu)


@constructor
def gelu() -> Layer:
    """Return the layer x Phi(x), Phi the normal distribution."""
    return stateless("gelu", fn.gelu)


@constructor
def silu() -> Layer:
    """Return the layer x * sigmoid(x)."""
    return stateless("silu", fn.silu)


@constructor
def tanh() -> Layer:
    """Return the layer tanh(x)."""
    return stateless("tanh", fn.tanh)


@constructor
def sigmoid() -> Layer:
    """Return the layer 1 / (1 + exp(-x))."""
    return stateless("sigmoid", fn.sigmoid)


@constructor
def flatten() -> Layer:
    """Return the layer (batch, ...) -> (batch, features)."""

    def flat(x: Tensor) -> Tensor:
        if x.ndim == 0:
            raise ValueError("layer.flatten: x has shape (), expected (batch, ...)")
        return x.reshape((x.shape[0], math.prod(x.shape[1:])))

    return stateless("flatten", flat)


@constructor
def lambda_(function: Callable[[Any], Any]) -> Layer:
    """Return the layer of a function without parameters.

    The function runs in every step, unless it is the library's own, or marked by `tp.pure`.
    """
    if not callable(function):
        raise TypeError(f"layer.lambda_: fn is {function!r}, expected a function")
    return stateless(getattr(function, "__name__", "lambda_"), function, pure=is_pure(function))
