"""The network of RealMLP-TD: its layers, their initialization by the data, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from treepie.autodiff import Tensor, ops, rng, zeros
from treepie.autodiff.tensor import float32, int32

from .. import fn, layer as layers
from ..layer import Layer, Vars
from ..layer.core import Tree, parametric
from ..layer.model import assemble
from ..optim import Optimizer, adamw, partition, schedule
from ..pickling import constructor

HIDDEN = (256, 256, 256)
DROPOUT = 0.15
WEIGHT_DECAY = 0.02
#: Numbers of each embedded category.
EMBEDDING = 8
#: Kind of parameter -> (factor of the learning rate, whether weight decays).
KINDS = {"weight": (1.0, True), "bias": (0.1, False), "scale": (6.0, True), "slow": (0.1, True)}


class Sizes(NamedTuple):
    """The columns of a table.

    numbers, binary: columns of numbers, and of small categories.  embedded: columns of codes.
    vocabulary: the number of codes.
    """

    numbers: int
    binary: int
    embedded: int
    vocabulary: int


def network_parts(sizes: Sizes, outputs: int, steps: int, regression: bool) -> list[Layer]:
    """Return the layers of the network, for `tp.layer.sequential`.

    steps: of the training, in which the rate of dropout falls.
    """
    width = 4 * sizes.numbers + sizes.binary + EMBEDDING * sizes.embedded
    parts: list[Layer] = [features(sizes), layers.scale(width)]
    for size in HIDDEN:
        activation = layers.mish() if regression else layers.selu()
        parts += [
            ntk_linear(width, size),
            layers.parametric_activation(activation, size),
            falling_dropout(DROPOUT, steps),
        ]
        width = size
    return [*parts, ntk_linear(width, outputs)]


@constructor
def features(sizes: Sizes) -> Layer:
    """Return the layer of a `Table`'s arrays: embedded numbers, small categories and embedded codes."""
    numbers = sizes.numbers
    parts: dict[str, Layer] = {}
    if numbers:
        parts["numbers"] = layers.periodic_embedding(numbers)
    if sizes.embedded:
        parts["codes"] = codes_embedding(sizes.vocabulary)

    def forward(call: layers.Call, x: Any) -> Tensor:
        table, codes = x if isinstance(x, tuple) else (x, None)
        columns = [call["numbers"](table[:, :numbers])] if numbers else []
        if sizes.binary:
            columns.append(table[:, numbers:])
        if sizes.embedded:
            columns.append(call["codes"](codes))
        return ops.concatenate(columns, axis=1) if len(columns) > 1 else columns[0]

    return assemble("features", parts, forward)


@constructor
def codes_embedding(vocabulary: int) -> Layer:
    """Return the layer (batch, columns) codes -> (batch, columns * EMBEDDING), embeddings of variance 1."""

    def apply(p: Tree, x: Tensor) -> Tensor:
        return fn.embedding(x, p["weight"], scale=False).reshape((x.shape[0], -1))

    return parametric(
        f"codes_embedding({vocabulary})",
        lambda rngs, dtype: {"weight": rng.normal(rngs, (vocabulary, EMBEDDING), dtype=dtype)},
        apply,
    )


@constructor
def ntk_linear(in_features: int, out_features: int) -> Layer:
    """Return the layer x / sqrt(in_features) @ weight + bias, whose weights are of order 1.

    The neural tangent parametrization (Jacot et al. 2018): one learning rate fits all widths.
    """

    def params(rngs: Tensor, dtype: Any) -> dict[str, Tensor]:
        return {
            "weight": rng.normal(rngs, (in_features, out_features), dtype=dtype),
            "bias": zeros(out_features, dtype),
        }

    factor = in_features**-0.5
    return parametric(
        f"ntk_linear({in_features}, {out_features})",
        params,
        lambda p, x: fn.linear(x * factor, p["weight"], p["bias"]),
    )


@constructor
def falling_dropout(rate: float, steps: int) -> Layer:
    """Return dropout whose rate falls: for half the steps it is `rate`, then half a cosine to 0.

    The state counts the steps, so that the rate is computed within the program of a step.
    """

    def init(rngs: Tensor, dtype: Any) -> Vars:
        return Vars({}, {"step": zeros((), int32)}, dtype)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if not training:
            return x, state
        if rngs is None:
            raise ValueError("falling_dropout: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        progress = ops.clip(state["step"].astype(x.dtype) * (2.0 / steps) - 1.0, 0.0, 1.0)
        drop = 0.5 * rate * (1.0 + ops.cos(math.pi * progress))
        uniform = rng.uniform(rngs, x.shape, dtype=x.dtype)
        return ops.where(uniform >= drop, x / (1.0 - drop), 0.0), {"step": state["step"] + 1}

    return Layer(init, apply, f"falling_dropout({rate})", pure=True)


# ---- initialization
def initialized(parts: Sequence[Layer], x: Any, key: Tensor) -> Vars:
    """Return variables of layers one after another, those of linear layers fitted to their inputs.

    x: arrays of rows of the training set.
    """
    params, states, dtype = [], [], float32
    for k, part in enumerate(parts):
        own = rng.fold_in(key, k)
        vars = part.init(own, dtype)
        if part.name.startswith("ntk_linear"):
            vars = vars.with_params(fitted(part, vars, x, rng.fold_in(own, 1)))
        x, _ = part.apply(vars, x)
        params.append(vars.params)
        states.append(vars.state)
    return Vars(params, states, dtype)


def fitted(part: Layer, vars: Vars, x: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Return the parameters of a linear layer, whose bias is 0, fitted to some inputs.

    Each output gets a standard deviation of 1. Its bias is minus a random convex combination of its values
    for 5 random rows ("he+5"), so that the kink of an activation is among the data.
    """
    y, _ = part.apply(vars, x)
    std = ops.std(y, axis=0)
    factor = 1.0 / ops.where(std > 0, std, 1.0)
    keys, shape = rng.split(key), (5, y.shape[1])
    rows = rng.randint(keys[0], shape, 0, y.shape[0])
    weights = -ops.log1p(-rng.uniform(keys[1], shape))  # of the exponential distribution
    mean = (ops.take_along_axis(y, rows, 0) * weights).sum(axis=0) / weights.sum(axis=0)
    return {"weight": vars.params["weight"] * factor, "bias": -mean * factor}


# ---- the optimizer
def optimizer_of(peak: float, steps: int) -> Optimizer:
    """Return Adam with learning rates and weight decay by the kind of parameter.

    peak: of the learning rate of weights.
    """
    half = steps // 2
    falling = schedule.join(
        [schedule.constant(WEIGHT_DECAY), schedule.cosine_decay(WEIGHT_DECAY, steps - half)], [half]
    )
    return partition(
        {
            kind: adamw(
                schedule.coslog(peak * factor, steps), b2=0.95, weight_decay=falling if decays else 0.0
            )
            for kind, (factor, decays) in KINDS.items()
        },
        kind_of,
    )


def kind_of(path: str) -> str:
    """Return the kind of the parameter at a path of the network; see `KINDS`."""
    *parents, name = path.split(".")
    return "slow" if "numbers" in parents or name == "alpha" else name
