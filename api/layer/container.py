"""Containers: layers composed of layers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from treepie.autodiff import Tensor, ops, ptree, rng
from treepie.autodiff.arguments import integer
from treepie.autodiff.ops.embedding_linear import by_table

from ..errors import name_layer
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
    check_layer("layer.residual", "layer", layer)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        try:
            y, vars = layer.apply(Vars(params, state, dtype), x, training, rngs, ctx)
        except Exception as error:
            name_layer(error, "layer", layer.name)
            raise
        if y.shape != x.shape:
            raise ValueError(
                f"layer.residual: {layer.name} returned shape {y.shape} for x of shape {x.shape}, expected "
                "the same shape"
            )
        # Integers are cast as the inner layer does it; a sum with floats would be float64.
        return (x.astype(y.dtype) if x.dtype.kind != "f" else x) + y, vars.state

    def init(rngs: Tensor, dtype: Any) -> Vars:
        return initial(layer, "layer", rngs, dtype)

    return Layer(init, apply, f"residual({layer.name})", pure=layer.pure)


@constructor
def sequential(layers: Sequence[Layer]) -> Layer:
    """Return the layers one after another; params and state are lists with an entry for each.

    Each layer gets another key, and the same context. Raises TypeError for other than layers. An error that
    a layer raises names its path: "layers.2: linear(31, 10): ...".

    >>> import treepie as tp
    >>> model = tp.layer.sequential([tp.layer.linear(3, 8), tp.layer.relu(), tp.layer.linear(8, 2)])
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 2)
    """
    parts = check_layers("layer.sequential", layers)
    return _chain("layer.sequential", parts, [f"layers.{k}" for k in range(len(parts))])


def check_layers(function: str, layers: Any) -> list[Layer]:
    """Return the argument `layers` as a list, or raise TypeError."""
    if isinstance(layers, Layer) or not isinstance(layers, Iterable):
        raise TypeError(f"{function}: layers is {_described(layers)}, expected a list of layers")
    parts = list(layers)
    for k, layer in enumerate(parts):
        check_layer(function, f"layers[{k}]", layer)
    return parts


def check_layer(function: str, argument: str, layer: Any) -> Layer:
    """Return a layer, or raise TypeError."""
    if not isinstance(layer, Layer):
        name = getattr(layer, "__name__", "")
        if callable(layer) and not isinstance(layer, type) and str(layer.__module__).startswith("treepie."):
            hint = f" (call it: tp.layer.{name}(...))"
        else:
            hint = " (tp.layer.lambda_ makes one of a function)" if callable(layer) else ""
        raise TypeError(f"{function}: {argument} is {_described(layer)}, expected a Layer{hint}")
    return layer


def _described(x: Any) -> str:
    if isinstance(x, Layer):
        return f"the layer {x.name}"
    name = getattr(x, "__name__", "")
    return f"the function {name}" if callable(x) and name else f"a {type(x).__name__}"


def _chain(function: str, parts: list[Layer], paths: Sequence[str]) -> Layer:
    """Return layers one after another. paths: their names in errors."""

    def init(rngs: Tensor, dtype: Any) -> Vars:
        every = [initial(layer, paths[k], rng.fold_in(rngs, k), dtype) for k, layer in enumerate(parts)]
        return Vars([v.params for v in every], [v.state for v in every], dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        if len(params) != len(parts) or len(state) != len(parts):
            raise ValueError(
                f"{function}: params has {len(params)} entries and state {len(state)}, "
                f"expected {len(parts)} as there are layers"
            )
        states: list[Tree] = []
        changed = False
        while (k := len(states)) < len(parts):
            layer, key = parts[k], None if rngs is None else rng.fold_in(rngs, k)
            try:
                y = None
                if training and layer.table is not None:
                    y = _of_rows(parts[k : k + 2], params[k : k + 2], x, dtype)
                if y is None:
                    y, vars = layer.apply(Vars(params[k], state[k], dtype), x, training, key, ctx)
                    states.append(vars.state)
                    changed = changed or vars.state is not state[k]
                else:
                    states += state[k : k + 2]
            except Exception as error:
                name_layer(error, paths[k], layer.name)
                raise
            x = y
        return x, states if changed else state

    return Layer(init, apply, "sequential", pure=all(layer.pure for layer in parts))


def _of_rows(parts: Sequence[Layer], params: Sequence[Tree], x: Any, dtype: Any) -> Tensor | None:
    """Return the result of an embedding and of the layer behind it, which multiplies rows of the table.

    Tokens with the same index share their products, in the backward pass too. None for other layers, and for
    operands that a layer refuses.
    """
    first, second = parts[0], parts[-1]
    if first.table is None or second.of_rows is None or not isinstance(x, Tensor):
        return None
    shapes = [t.shape for t in ptree.leaves(params[0])]
    if not all(len(shape) == 2 and by_table(shape[0], shape[1], x.size) for shape in shapes):
        return None  # before the whole of a large table is scaled
    table = first.table(params[0])
    floats = all(t.dtype == dtype for t in (table, *ptree.leaves(params[-1])))
    if not floats or x.dtype.kind != "i":
        return None
    try:
        return second.of_rows(params[-1], table, x)
    except ValueError:
        return None  # the layer itself raises it, under its name


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
    branches = check_layers(name, layers)
    if not branches:
        raise ValueError(f"{name}: layers is empty, expected one or more")
    if combine not in get_args(Combine):
        raise ValueError(f"{name}: combine is {combine!r}, expected 'concatenate' or 'add'")
    integer(name, "axis", axis)

    def init(rngs: Tensor, dtype: Any) -> Vars:
        every = [
            initial(layer, f"layers.{k}", rng.fold_in(rngs, k), dtype) for k, layer in enumerate(branches)
        ]
        return Vars([v.params for v in every], [v.state for v in every], dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        outputs, states = [], []
        for k, layer in enumerate(branches):
            key = None if rngs is None else rng.fold_in(rngs, k)
            try:
                y, vars = layer.apply(Vars(params[k], state[k], dtype), x, training, key, ctx)
            except Exception as error:
                name_layer(error, f"layers.{k}", layer.name)
                raise
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
    parts = [check_layer("layer.compose", n, x) for n, x in (("left", left), ("right", right))]
    both = _chain("layer.compose", parts, ("left", "right"))

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


def initial(layer: Layer, path: str, rngs: Tensor, dtype: Any) -> Vars:
    """Return a layer's initial parameters and state. path: its name in errors."""
    try:
        return layer.init(rngs, dtype)
    except Exception as error:
        name_layer(error, path, layer.name)
        raise


def _named(pair: list[Tree]) -> dict[str, Tree]:
    return {"left": pair[0], "right": pair[1]}


def _pair(named: Mapping[str, Tree]) -> list[Tree]:
    return [named["left"], named["right"]]
