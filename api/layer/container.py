"""Containers: layers composed of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treepie.autodiff import Tensor, rng

from ..pickling import constructor
from .core import Layer, Tree, Vars


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
