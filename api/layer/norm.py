"""Normalisation layers."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, ones, stop_gradient, zeros
from treepie.autodiff.arguments import integer
from treepie.autodiff.ops.batch_normalization import scale_shift

from .. import fn
from ..fn.norm import batch_statistics, check_eps
from ..pickling import constructor
from .core import Layer, Tree, Vars


def _at_least_one(function: str, **sizes: int) -> None:
    for argument, size in sizes.items():
        if integer(function, argument, size) < 1:
            raise ValueError(f"{function}: {argument} is {size}, expected at least 1")


@constructor
def layer_norm(dim: int, eps: float = 1e-5) -> Layer:
    """Return the layer `fn.layer_norm` on the last axis, of `dim` elements.

    Parameters: gamma (dim,), ones at first; beta (dim,), zeros at first.
    """
    _at_least_one("layer.layer_norm", dim=dim)
    check_eps("layer.layer_norm", eps)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        return Vars({"gamma": ones((dim,), dtype), "beta": zeros((dim,), dtype)}, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return fn.layer_norm(x, params["gamma"], params["beta"], eps), state

    return Layer(init, apply, f"layer_norm({dim})", pure=True)


@constructor
def rms_norm(dim: int, eps: float = 1e-6) -> Layer:
    """Return the layer `fn.rms_norm` on the last axis, of `dim` elements.

    Parameters: scale (dim,), ones at first.
    """
    _at_least_one("layer.rms_norm", dim=dim)
    check_eps("layer.rms_norm", eps)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return fn.rms_norm(x, params["scale"], eps), state

    return Layer(
        lambda rngs, dtype: Vars({"scale": ones((dim,), dtype)}, {}, dtype),
        apply,
        f"rms_norm({dim})",
        pure=True,
    )


@constructor
def group_norm(num_groups: int, num_channels: int, eps: float = 1e-5) -> Layer:
    """Return the layer `fn.group_norm` for inputs (batch, num_channels, ...).

    Parameters: scale (num_channels,), ones at first; bias (num_channels,), zeros at first.
    """
    _at_least_one("layer.group_norm", num_groups=num_groups, num_channels=num_channels)
    check_eps("layer.group_norm", eps)
    if num_channels % num_groups:
        raise ValueError(
            f"layer.group_norm: num_groups is {num_groups} and num_channels {num_channels}, expected a "
            "divisor"
        )

    def init(rngs: Tensor, dtype: Any) -> Vars:
        return Vars({"scale": ones((num_channels,), dtype), "bias": zeros((num_channels,), dtype)}, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return fn.group_norm(x, num_groups, params["scale"], params["bias"], eps), state

    return Layer(init, apply, f"group_norm({num_groups}, {num_channels})", pure=True)


@constructor
def batch_norm(num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> Layer:
    """Return the layer that normalises each channel, axis 1 of 2, 3 or 4 axes.

    Training normalises by the batch's mean and biased variance over all other axes, and moves the running
    statistics towards the batch's by `momentum`, the weight of the new value; the running variance is of
    the unbiased one, as PyTorch's. No gradient passes to them. Evaluation normalises by them.

    Parameters: scale (num_features,), ones at first; bias (num_features,), zeros at first.
    State: running_mean, zeros at first; running_var, ones at first.
    """
    _at_least_one("layer.batch_norm", num_features=num_features)
    check_eps("layer.batch_norm", eps)
    if not 0 <= momentum <= 1:
        raise ValueError(f"layer.batch_norm: momentum is {momentum}, expected 0 to 1")

    def init(rngs: Tensor, dtype: Any) -> Vars:
        def filled(first: str, second: str) -> dict[str, Tensor]:
            return {first: zeros((num_features,), dtype), second: ones((num_features,), dtype)}

        return Vars(filled("bias", "scale"), filled("running_mean", "running_var"), dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if not 2 <= x.ndim <= 4 or x.shape[1] != num_features:
            raise ValueError(
                f"layer.batch_norm: x has shape {x.shape}, expected {num_features} channels on axis 1 of 2, "
                "3 or 4 axes"
            )
        scale, bias = params["scale"], params["bias"]
        mean, var = state["running_mean"], state["running_var"]
        if not training:
            return fn.batch_norm(x, scale, bias, mean, var, eps), state
        y, batch_mean, batch_var = batch_statistics(x, scale, bias, eps)
        n = x.size // num_features
        unbiased = stop_gradient(batch_var) * (n / (n - 1))
        # (new - old) * momentum + old, in one pass each.
        return y, {
            "running_mean": scale_shift(stop_gradient(batch_mean), mean, momentum, mean),
            "running_var": scale_shift(unbiased, var, momentum, var),
        }

    return Layer(init, apply, f"batch_norm({num_features})", pure=True)
