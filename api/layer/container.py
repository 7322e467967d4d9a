"""Containers: layers composed of layers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from treepie.autodiff import Tensor, ops, rng
from treepie.autodiff.arguments import integer

from ..pickling import constructor
from .core import Layer, Tree, Vars

Combine = Literal["concatenate", "add"]


@constructor
def residual(layer: Layer) -> Layer:
    """Return the layer x + layer(x), with the parameters of the inner layer (He et al. 2016).

    Raises ValueError if the inner layer changes the shape.

    >>> import treepie as tp
    >>> model = tp.layer.residual(tp.layer.linear(3, 3))
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 3)
    """

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        y, vars = layer.apply(Vars(params, state, dtype), x, training, rngs, ctx)
        if y.shape != x.shape:
            raise ValueError(
                f"layer.residual: {layer.name} made shape {y.shape} of {x.shape}, expected the same"
            )
        # Integers are cast as the inner layer does it; a sum with floats would be float64.
        return (x.astype(y.dtype) if x.dtype.kind != "f" else x) + y, vars.state

    return Layer(layer.init, apply, f"residual({layer.name})", pure=layer.pure)


@constructor
def sequential(layers: Sequence[Layer]) -> Layer:
    """Return the layers one after another; params and state are lists with an entry for each.

    Each layer gets another key, and the same context. Raises TypeError for other than layers.

    >>> import treepie as tp
    >>> model = tp.layer.sequential([tp.layer.linear(3, 8), tp.layer.relu(), tp.layer.linear(8, 2)])
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 2)
    """
    parts = list(layers)
    for k, layer in enumerate(parts):
        if not isinstance(layer, Layer):
            raise TypeError(f"layer.sequential: layers[{k}] is a {type(layer).__name__}, expected a Layer")

    def init(rngs: Tensor, dtype: Any) -> Vars:
        every = [layer.init(rng.fold_in(rngs, k), dtype) for k, layer in enumerate(parts)]
        return Vars([v.params for v in every], [v.state for v in every], dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        if len(params) != len(parts) or len(state) != len(parts):
            raise ValueError(
                f"layer.sequential: params has {len(params)} entries and state {len(state)}, "
                f"expected {len(parts)} as there are layers"
            )
        states = []
        for k, layer in enumerate(parts):
            key = None if rngs is None else rng.fold_in(rngs, k)
            x, vars = layer.apply(Vars(params[k], state[k], dtype), x, training, key, ctx)
            states.append(vars.state)
        return x, states

    return Layer(init, apply, "sequential", pure=all(layer.pure for layer in parts))


@constructor
def parallel(layers: Sequence[Layer], combine: Combine = "concatenate", axis: int = 1) -> Layer:
    """Return layers that all take the same input; their outputs are combined.

    combine: "concatenate" along `axis`, by default the channels', or "add".

    Params and state are lists with an entry for each layer; each gets another key, and the same context.
    Raises TypeError for other than layers, ValueError for an empty list and for another `combine`.

    >>> import treepie as tp
    >>> branches = [tp.layer.conv2d(3, 4, 1), tp.layer.conv2d(3, 8, 5)]
    >>> model = tp.layer.parallel(branches)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((2, 3, 6, 6)))[0].shape
    (2, 12, 6, 6)
    """
    name = "layer.parallel"
    if not isinstance(layers, Iterable):
        raise TypeError(f"{name}: layers is a {type(layers).__name__}, expected a list of layers")
    branches = list(layers)
    for k, layer in enumerate(branches):
        if not isinstance(layer, Layer):
            raise TypeError(f"{name}: layers[{k}] is a {type(layer).__name__}, expected a Layer")
    if not branches:
        raise ValueError(f"{name}: layers is empty, expected one or more")
    if combine not in get_args(Combine):
        raise ValueError(f"{name}: combine is {combine!r}, expected 'concatenate' or 'add'")
    integer(name, "axis", axis)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        every = [layer.init(rng.fold_in(rngs, k), dtype) for k, layer in enumerate(branches)]
        return Vars([v.params for v in every], [v.state for v in every], dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        outputs, states = [], []
        for k, layer in enumerate(branches):
            key = None if rngs is None else rng.fold_in(rngs, k)
            y, vars = layer.apply(Vars(params[k], state[k], dtype), x, training, key, ctx)
            outputs.append(y)
            states.append(vars.state)
        return _combined(name, outputs, combine, axis), states

    return Layer(init, apply, f"parallel({combine})", pure=all(layer.pure for layer in branches))


def _combined(name: str, outputs: list[Tensor], combine: Combine, axis: int) -> Tensor:
    if combine == "concatenate":
        return ops.concatenate(outputs, axis=axis)
    if len({y.shape for y in outputs}) > 1:
        raise ValueError(f"{name}: outputs have the shapes {[y.shape for y in outputs]}, expected the same")
    return functools.reduce(ops.add, outputs)


@constructor
def compose(left: Layer, right: Layer) -> Layer:
    """Return the layer right(left(x)); params and state are {"left": ..., "right": ...}.

    >>> import treepie as tp
    >>> model = tp.layer.compose(tp.layer.linear(3, 8), tp.layer.relu())
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 8)
    """
    both = sequential([left, right])

    def init(rngs: Tensor, dtype: Any) -> Vars:
        vars = both.init(rngs, dtype)
        return Vars(_named(vars.params), _named(vars.state), dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        pair = Vars(_pair(params), _pair(state), dtype)
        y, vars = both.apply(pair, x, training, rngs, ctx)
        return y, _named(vars.state)

    return Layer(init, apply, "compose", pure=both.pure)


def _named(pair: list[Tree]) -> dict[str, Tree]:
    return {"left": pair[0], "right": pair[1]}


def _pair(named: Mapping[str, Tree]) -> list[Tree]:
    return [named["left"], named["right"]]
