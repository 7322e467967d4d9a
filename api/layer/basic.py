"""The linear layer, dropout, and layers of a function without parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treepie.autodiff import Tensor, rng
from treepie.autodiff.program.pure import is_pure

from .. import fn, init as initializers
from ..fn.linear import check_rate
from ..init import Initializer
from ..pickling import constructor
from .core import Layer, Tree, Vars, check_sizes, parametric, stateless


@constructor
def linear(
    in_features: int,
    out_features: int,
    bias: bool = True,
    weight_init: Initializer = initializers.glorot_uniform,
    bias_init: Initializer = initializers.zeros,
) -> Layer:
    """Return the layer x @ weight + bias on the last axis: (..., in_features) -> (..., out_features).

    bias: whether to add one.  weight_init, bias_init: initializers, (key, shape, dtype) -> tensor.

    Parameters: weight (in_features, out_features), bias (out_features,).

    >>> import treepie as tp
    >>> model = tp.layer.linear(3, 2)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 2)
    """
    check_sizes("layer.linear", in_features=in_features, out_features=out_features)

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        keys = rng.split(rngs)
        weight = {"weight": weight_init(keys[0], (in_features, out_features), dtype)}
        return {**weight, "bias": bias_init(keys[1], (out_features,), dtype)} if bias else weight

    return parametric(
        f"linear({in_features}, {out_features})",
        params,
        lambda p, x: fn.linear(x, p["weight"], p["bias"] if bias else None),
    )


@constructor
def dropout(rate: float) -> Layer:
    """Return the layer `fn.dropout`: in training, it sets elements to 0 with probability `rate`.

    rate: in [0, 1), else ValueError. Raises ValueError in training without a key.

    >>> import treepie as tp
    >>> model = tp.layer.dropout(0.5)
    >>> vars = model.init(tp.rng.key(0))
    >>> model.apply(vars, [1.0, 2.0])[0].tolist()
    [1.0, 2.0]
    >>> set(model.apply(vars, tp.ones(100), training=True, rngs=tp.rng.key(1))[0].tolist()) == {0.0, 2.0}
    True
    """
    return _dropout("dropout", fn.dropout, rate)


@constructor
def dropout2d(rate: float) -> Layer:
    """Return the layer `fn.dropout2d`: in training, it sets whole channels to 0 with probability `rate`.

    rate: in [0, 1), else ValueError. x: (batch, channels, ...). Raises ValueError in training without a key.

    >>> import treepie as tp
    >>> model = tp.layer.dropout2d(0.5)
    >>> vars = model.init(tp.rng.key(0))
    >>> y, _ = model.apply(vars, tp.ones((2, 3, 8, 8)), training=True, rngs=tp.rng.key(1))
    >>> set(y.mean(axis=(2, 3)).ravel().tolist()) == {0.0, 2.0}
    True
    """
    return _dropout("dropout2d", fn.dropout2d, rate)


def _dropout(name: str, function: Callable[[Tensor, float, Tensor], Tensor], rate: float) -> Layer:
    """Return the layer of a function (x, rate, key), which is the identity in evaluation."""
    check_rate(rate)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if not training or rate == 0:
            return x, state
        if rngs is None:
            raise ValueError(f"layer.{name}: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        return function(x, rate, rngs), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, f"{name}({rate})", pure=True)


@constructor
def lambda_(function: Callable[[Any], Any]) -> Layer:
    """Return the layer of a function x -> y without parameters; TypeError for other than a function.

    Its Python runs in every step, unless it is one of the library's functions or marked by `tp.pure`.

    >>> import treepie as tp
    >>> model = tp.layer.lambda_(tp.square)
    >>> model.apply(model.init(tp.rng.key(0)), [1.0, 2.0])[0].tolist()
    [1.0, 4.0]
    """
    if not callable(function):
        raise TypeError(f"layer.lambda_: fn is {function!r}, expected a function")
    return stateless(getattr(function, "__name__", "lambda_"), function, pure=is_pure(function))
