"""Layers for tables: embeddings of numbers, a scale of each feature, activations with a learned strength."""

from __future__ import annotations

import math
from typing import Any

from treepie.autodiff import Tensor, ones, ops, rng
from treepie.autodiff.arguments import as_float

from ..pickling import constructor
from .container import check_layer, initial
from .core import Layer, Tree, Vars, check_sizes, parametric


@constructor
def scale(num_features: int) -> Layer:
    """Return the layer x * scale, with a learned factor for each feature on the last axis.

    Before the first linear layer, with a larger learning rate, it selects features (Holzmüller et al. 2024).

    Parameters: scale (num_features,), at first ones.

    >>> import treepie as tp
    >>> model = tp.layer.scale(2)
    >>> model.apply(model.init(tp.rng.key(0)), [[3.0, 4.0]])[0].tolist()
    [[3.0, 4.0]]
    """
    check_sizes("layer.scale", num_features=num_features)

    def apply(p: Tree, x: Tensor) -> Tensor:
        factor: Tensor = p["scale"]
        return _features("layer.scale", x, factor) * factor

    return parametric(
        f"scale({num_features})", lambda rngs, dtype: {"scale": ones(num_features, dtype)}, apply
    )


@constructor
def parametric_activation(activation: Layer, num_features: int) -> Layer:
    """Return the layer x + alpha * (activation(x) - x), with a learned alpha for each feature (last axis).

    activation: a layer without parameters that keeps the shape, such as `tp.layer.selu()`, else ValueError.

    Parameters: alpha (num_features,), at first ones: the activation itself. 0 is the identity (Holzmüller et
    al. 2024).

    >>> import treepie as tp
    >>> model = tp.layer.parametric_activation(tp.layer.relu(), 2)
    >>> vars = model.init(tp.rng.key(0))
    >>> model.apply(vars, [[-2.0, 3.0]])[0].tolist()
    [[0.0, 3.0]]
    >>> model.apply(vars.with_params({"alpha": tp.tensor([0.5, 0.5])}), [[-2.0, 3.0]])[0].tolist()
    [[-1.0, 3.0]]
    """
    check_layer("layer.parametric_activation", "activation", activation)
    check_sizes("layer.parametric_activation", num_features=num_features)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        if initial(activation, "activation", rngs, dtype).params:
            raise ValueError(
                f"layer.parametric_activation: activation is {activation.name}, which has parameters, "
                "expected a layer without them"
            )
        return Vars({"alpha": ones(num_features, dtype)}, {}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        x = _features("layer.parametric_activation", x, params["alpha"])
        y, _ = activation.apply(Vars({}, {}, dtype), x, training, rngs, ctx)
        if y.shape != x.shape:
            raise ValueError(
                f"layer.parametric_activation: {activation.name} returned shape {y.shape} for x of shape "
                f"{x.shape}, expected the same shape"
            )
        return x + (y - x) * params["alpha"], state

    name = f"parametric_activation({activation.name}, {num_features})"
    return Layer(init, apply, name, pure=activation.pure)


@constructor
def periodic_embedding(
    num_features: int, embed_dim: int = 4, frequencies: int = 16, sigma: float = 0.1
) -> Layer:
    """Return the layer of PBLD embeddings of numbers: (batch, features) -> (batch, features * embed_dim).

    Each number x becomes cos(2 pi frequency * x + phase) @ weight + bias with its feature's own parameters,
    embed_dim - 1 numbers, and itself: first the embeddings of all features, then the numbers ("periodic bias
    linear DenseNet": Holzmüller et al. 2024, after Gorishniy et al. 2022). Inputs should be of order 1.

    embed_dim: of each number, at least 2.  frequencies: cosines of each number.
    sigma: standard deviation of the frequencies at first, positive.

    Parameters: frequency and phase (num_features, frequencies), weight (num_features, frequencies,
    embed_dim - 1), bias (num_features, embed_dim - 1).

    Raises ValueError for arguments out of range, and for x of another shape.

    >>> import treepie as tp
    >>> model = tp.layer.periodic_embedding(5)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((3, 5)))[0].shape
    (3, 20)
    """
    check_sizes(
        "layer.periodic_embedding", num_features=num_features, embed_dim=embed_dim, frequencies=frequencies
    )
    if embed_dim < 2 or not 0 < sigma < math.inf:
        raise ValueError(
            f"layer.periodic_embedding: embed_dim is {embed_dim} and sigma {sigma}, expected at least 2 (one "
            "is the number itself) and a positive number"
        )
    shape, size = (num_features, frequencies), embed_dim - 1

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        keys = [rng.fold_in(rngs, k) for k in range(4)]
        bound = frequencies**-0.5
        return {
            "frequency": sigma * rng.normal(keys[0], shape, dtype=dtype),
            "phase": rng.uniform(keys[1], shape, -math.pi, math.pi, dtype=dtype),
            "weight": rng.uniform(keys[2], (*shape, size), -bound, bound, dtype=dtype),
            "bias": rng.uniform(keys[3], (num_features, size), -bound, bound, dtype=dtype),
        }

    def apply(p: Tree, x: Tensor) -> Tensor:
        x = _features("layer.periodic_embedding", x, p["frequency"])
        if x.ndim != 2:
            raise ValueError(
                f"layer.periodic_embedding: x has shape {x.shape}, expected (batch, {num_features})"
            )
        # The features are the first axis, that of a batch of products.
        angle = x.T[:, :, None] * (2.0 * math.pi * p["frequency"])[:, None] + p["phase"][:, None]
        embedded = ops.cos(angle) @ p["weight"] + p["bias"][:, None]
        flat = ops.swapaxes(embedded, 0, 1).reshape((x.shape[0], num_features * size))
        return ops.concatenate([flat, x], axis=1)

    name = f"periodic_embedding({num_features}, {embed_dim})"
    return parametric(name, params, apply)


def _features(function: str, x: Tensor, like: Tensor) -> Tensor:
    """Return x in the dtype of parameters of its features; ValueError for another number of features."""
    if x.ndim < 1 or x.shape[-1] != like.shape[0]:
        raise ValueError(f"{function}: x has shape {x.shape}, expected (..., {like.shape[0]})")
    return as_float(function, x, like=like)
