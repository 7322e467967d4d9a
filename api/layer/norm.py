"""Normalization layers."""

from __future__ import annotations

from typing import Any

from treepie.autodiff import Tensor, ones, stop_gradient, zeros
from treepie.autodiff.arguments import as_float
from treepie.autodiff.ops.batch_normalization import scale_shift

from .. import fn
from ..distributed.communicator import Communicator, check_communicator
from ..fn.norm import batch_statistics, check_eps, rank_statistics
from ..pickling import constructor
from .core import Layer, Tree, Vars, check_sizes, parametric


@constructor
def layer_norm(dim: int, eps: float = 1e-5) -> Layer:
    """Return the layer `fn.layer_norm` on the last axis, of `dim` elements.

    eps: 0 or more, else ValueError.

    Parameters: gamma (dim,), ones at first; beta (dim,), zeros at first.

    >>> import treepie as tp
    >>> model = tp.layer.layer_norm(8)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 8)))[0].shape
    (4, 8)
    """
    check_sizes("layer.layer_norm", dim=dim)
    check_eps("layer.layer_norm", eps)

    return parametric(
        f"layer_norm({dim})",
        lambda rngs, dtype: {"gamma": ones((dim,), dtype), "beta": zeros((dim,), dtype)},
        lambda p, x: fn.layer_norm(x, p["gamma"], p["beta"], eps),
    )


@constructor
def rms_norm(dim: int, eps: float = 1e-6) -> Layer:
    """Return the layer `fn.rms_norm` on the last axis, of `dim` elements; eps as for `layer_norm`.

    Parameters: scale (dim,), ones at first.

    >>> import treepie as tp
    >>> model = tp.layer.rms_norm(8)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 8)))[0].shape
    (4, 8)
    """
    check_sizes("layer.rms_norm", dim=dim)
    check_eps("layer.rms_norm", eps)

    return parametric(
        f"rms_norm({dim})",
        lambda rngs, dtype: {"scale": ones((dim,), dtype)},
        lambda p, x: fn.rms_norm(x, p["scale"], eps),
    )


@constructor
def group_norm(num_groups: int, num_channels: int, eps: float = 1e-5) -> Layer:
    """Return the layer `fn.group_norm` for inputs (batch, num_channels, ...).

    num_groups: a divisor of num_channels.  eps: 0 or more. ValueError for others.

    Parameters: scale (num_channels,), ones at first; bias (num_channels,), zeros at first.

    >>> import treepie as tp
    >>> model = tp.layer.group_norm(2, 6)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 6, 5)))[0].shape
    (4, 6, 5)
    """
    check_sizes("layer.group_norm", num_groups=num_groups, num_channels=num_channels)
    check_eps("layer.group_norm", eps)
    if num_channels % num_groups:
        raise ValueError(
            f"layer.group_norm: num_groups is {num_groups} and num_channels {num_channels}, expected a "
            "divisor"
        )

    shape = (num_channels,)
    return parametric(
        f"group_norm({num_groups}, {num_channels})",
        lambda rngs, dtype: {"scale": ones(shape, dtype), "bias": zeros(shape, dtype)},
        lambda p, x: fn.group_norm(x, num_groups, p["scale"], p["bias"], eps),
    )


@constructor
def instance_norm(num_channels: int, eps: float = 1e-5) -> Layer:
    """Return the layer `fn.instance_norm` for inputs (batch, num_channels, ...), such as images.

    eps: 0 or more, else ValueError.

    Parameters: scale (num_channels,), ones at first; bias (num_channels,), zeros at first.

    >>> import treepie as tp
    >>> model = tp.layer.instance_norm(3)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3, 5, 5)))[0].shape
    (4, 3, 5, 5)
    """
    check_sizes("layer.instance_norm", num_channels=num_channels)
    check_eps("layer.instance_norm", eps)

    shape = (num_channels,)
    return parametric(
        f"instance_norm({num_channels})",
        lambda rngs, dtype: {"scale": ones(shape, dtype), "bias": zeros(shape, dtype)},
        lambda p, x: fn.instance_norm(x, p["scale"], p["bias"], eps),
    )


@constructor
def batch_norm(
    num_features: int, eps: float = 1e-5, momentum: float = 0.1, comm: Communicator | None = None
) -> Layer:
    """Return the layer that normalizes each channel, axis 1 of 2, 3 or 4 axes (Ioffe & Szegedy 2015).

    In training it normalizes by the batch's mean and biased variance over all other axes, and updates the
    running statistics: momentum * new + (1 - momentum) * old. The running variance is of the unbiased one, as
    PyTorch's. No gradient flows to them. In evaluation it normalizes by them.

    eps: 0 or more.  momentum: 0 to 1. ValueError for others.
    comm: `tp.distributed.world()`, else TypeError. In training the statistics are those of the rows of all
        ranks, and gradients flow through them, so that ranks equal one process on the whole batch. Each rank
        has at least one row. None is local: each rank normalizes by the statistics of its own rows, without
        communication. Synchronize where ranks have few rows, as in detection and segmentation: below about
        32, local statistics are noisy (Wu & He 2018 measure it).

    Parameters: scale (num_features,), ones at first; bias (num_features,), zeros at first.
    State: running_mean, zeros at first; running_var, ones at first.

    >>> import treepie as tp
    >>> model = tp.layer.batch_norm(3)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3, 5)))[0].shape
    (4, 3, 5)
    """
    check_sizes("layer.batch_norm", num_features=num_features)
    eps = check_eps("layer.batch_norm", eps)
    if not 0 <= momentum <= 1:
        raise ValueError(f"layer.batch_norm: momentum is {momentum}, expected 0 to 1")
    several = comm is not None and check_communicator("layer.batch_norm", comm).size > 1

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
        x = as_float("layer.batch_norm", x, like=scale)
        mean, var = state["running_mean"], state["running_var"]
        if not training:
            return fn.batch_norm(x, scale, bias, mean, var, eps), state
        y, batch_mean, unbiased = _normalized(x, scale, bias, eps, comm if several else None)
        # (new - old) * momentum + old, in one pass each.
        return y, {
            "running_mean": scale_shift(stop_gradient(batch_mean), mean, momentum, mean),
            "running_var": scale_shift(unbiased, var, momentum, var),
        }

    return Layer(init, apply, f"batch_norm({num_features})", pure=True)


def _normalized(
    x: Tensor, scale: Tensor, bias: Tensor, eps: float, comm: Communicator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x normalized by the batch's statistics, its mean, and its unbiased variance as a constant."""
    if comm is None:
        y, mean, var = batch_statistics(x, scale, bias, eps)
        n = x.size // x.shape[1]
        return y, mean, stop_gradient(var) * (n / (n - 1))
    y, mean, var, count = rank_statistics(x, scale, bias, eps, comm)
    return y, mean.astype(x.dtype), (stop_gradient(var) * count / (count - 1)).astype(x.dtype)
