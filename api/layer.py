"""Layers: pairs of functions, `init` that makes parameters and `apply` that uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float32, ptree, rng, zeros
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TensorLike, check_dtype
from treepie.autodiff.transform import compilations

from . import fn
from . import init as initializers
from .init import Initializer

Tree = Any


@dataclass(frozen=True)
class Vars:
    """What a model has learned (params) and noted (state), and the dtype that it computes in."""

    params: Tree
    state: Tree
    dtype: Any

    def with_params(self, params: Tree) -> Vars:
        """Return the same with other parameters."""
        return replace(self, params=params)

    def with_state(self, state: Tree) -> Vars:
        """Return the same with another state."""
        return replace(self, state=state)


@dataclass(frozen=True)
class Context:
    """Tensors that accompany one call of a model, by name; containers hand them to every layer.

    >>> Context().set("attention_mask", [1, 1, 0]).get("attention_mask").tolist()
    [1, 1, 0]
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)

    def set(self, name: str, value: TensorLike) -> Context:
        """Return a context with one more tensor."""
        return Context({**self.values, name: as_tensor(value)})

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of a name, or None."""
        return self.values.get(name)


Init = Callable[[Tensor, Any], Vars]
Apply = Callable[..., tuple[Any, Tree]]

_rows: ContextVar[list[tuple[str, Any, int]] | None] = ContextVar("_rows", default=None)


class Layer:
    """A model or a part of one.

    init: (rngs, dtype) -> Vars.
    apply: (params, state, x, *, dtype, training, rngs, ctx) -> (y, state).
    name: what `summary` shows.

    The two functions are called through the methods of the same names.
    """

    __slots__ = ("_apply", "_init", "name")

    def __init__(self, init: Init, apply: Apply, name: str = "layer") -> None:
        """Make a layer of its two functions."""
        self._init, self._apply, self.name = init, apply, name

    def __repr__(self) -> str:
        """Show the name."""
        return f"Layer({self.name})"

    def init(self, rngs: Tensor, dtype: Any = float32) -> Vars:
        """Return new parameters and state.

        rngs: a key.  dtype: float32 or float64.
        """
        wanted = check_dtype("Layer.init", dtype)
        if wanted.kind != "f":
            raise TypeError(f"Layer.init: dtype is {wanted.name}, expected float32 or float64")
        with compilations.watch():
            made = self._init(rngs, wanted)
        if not isinstance(made, Vars):
            raise TypeError(
                f"Layer.init: {self.name} returned {type(made).__name__}, expected a tp.layer.Vars"
            )
        return made

    def apply(
        self,
        vars: Vars,
        x: Any,
        training: bool = False,
        rngs: Tensor | None = None,
        ctx: Context | None = None,
    ) -> tuple[Any, Vars]:
        """Return the output for an input, and the variables with their new state.

        x: a tensor, or a tuple or dict of tensors; floats are converted to the dtype of `vars`.
        training: whether dropout and the like are active.  rngs: the key that they draw from.
        """
        rows = _rows.get()
        start = len(rows) if rows is not None else 0
        t, dtype = _input(x, vars.dtype), vars.dtype
        made = self._apply(vars.params, vars.state, t, dtype=dtype, training=training, rngs=rngs, ctx=ctx)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(f"Layer.apply: {self.name} returned {type(made).__name__}, expected (y, state)")
        y, state = made
        if rows is not None:
            # A container shows only what its layers do not: parameters of its own.
            own = ptree.count_parameters(vars.params) - sum(n for _, _, n in rows[start:])
            if len(rows) == start or own > 0:
                rows.append((self.name, y, own))
        return y, vars.with_state(state)


def _input(x: Any, dtype: np.dtype) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: _input(leaf, dtype), x)
    t = as_tensor(x)
    return t.astype(dtype) if t.dtype.kind == "f" else t


def summary(model: Layer, input_shape: Sequence[int], input_dtype: Any = float32) -> str:
    """Return a table of a model's layers, their output shapes and their numbers of parameters.

    input_shape: of a whole batch, such as (1, 784).  input_dtype: int32 for token ids.
    """
    vars = model.init(rng.key(0))
    rows: list[tuple[str, Any, int]] = []
    token = _rows.set(rows)
    try:
        model.apply(vars, zeros(tuple(input_shape), input_dtype))
    finally:
        _rows.reset(token)
    table = [("layer", "output shape", "parameters")]
    table += [(name, _shape(y), f"{n:,}") for name, y, n in rows]
    table += [("total", "", f"{ptree.count_parameters(vars.params):,}")]
    a, b, c = (max(len(row[k]) for row in table) for k in range(3))
    lines = [f"{x:<{a}}  {y:<{b}}  {z:>{c}}" for x, y, z in table]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _shape(y: Any) -> str:
    return " ".join(str(t.shape) for t in ptree.leaves(y))


def _stateless(name: str, function: Callable[[Any], Any]) -> Layer:
    """Return the layer of a function without parameters, state or random numbers."""

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        return function(x), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, name)


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

    return Layer(init, apply, f"linear({in_features}, {out_features})")


def dropout(rate: float) -> Layer:
    """Return the layer `fn.dropout`: in training, it sets elements to 0 with probability `rate`."""
    fn.check_rate(rate)

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        if not training or rate == 0:
            return x, state
        if rngs is None:
            raise ValueError("layer.dropout: rngs is None, expected a key in training (rngs=tp.rng.key(0))")
        return fn.dropout(x, rate, rngs), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, f"dropout({rate})")


def relu() -> Layer:
    """Return the layer max(x, 0)."""
    return _stateless("relu", fn.relu)


def gelu() -> Layer:
    """Return the layer x Phi(x), Phi the normal distribution."""
    return _stateless("gelu", fn.gelu)


def silu() -> Layer:
    """Return the layer x * sigmoid(x)."""
    return _stateless("silu", fn.silu)


def tanh() -> Layer:
    """Return the layer tanh(x)."""
    return _stateless("tanh", fn.tanh)


def sigmoid() -> Layer:
    """Return the layer 1 / (1 + exp(-x))."""
    return _stateless("sigmoid", fn.sigmoid)


def flatten() -> Layer:
    """Return the layer (batch, ...) -> (batch, features)."""

    def flat(x: Tensor) -> Tensor:
        if x.ndim == 0:
            raise ValueError("layer.flatten: x has shape (), expected (batch, ...)")
        return x.reshape((x.shape[0], math.prod(x.shape[1:])))

    return _stateless("flatten", flat)


def lambda_(function: Callable[[Any], Any]) -> Layer:
    """Return the layer of a function without parameters."""
    if not callable(function):
        raise TypeError(f"layer.lambda_: fn is {function!r}, expected a function")
    return _stateless(getattr(function, "__name__", "lambda_"), function)


def residual(layer: Layer) -> Layer:
    """Return the layer x + layer(x); its parameters are the inner layer's."""

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        y, vars = layer.apply(Vars(params, state, dtype), x, training, rngs, ctx)
        if y.shape != x.shape:
            raise ValueError(
                f"layer.residual: {layer.name} made shape {y.shape} of {x.shape}, expected the same"
            )
        return x + y, vars.state

    return Layer(layer.init, apply, f"residual({layer.name})")


def sequential(layers: Sequence[Layer]) -> Layer:
    """Return the layers one after another; params and state are lists with an entry for each."""
    parts = list(layers)
    for k, layer in enumerate(parts):
        if not isinstance(layer, Layer):
            raise TypeError(f"layer.sequential: layers[{k}] is a {type(layer).__name__}, expected a Layer")

    def init(rngs: Tensor, dtype: Any) -> Vars:
        made = [layer.init(rng.fold_in(rngs, k), dtype) for k, layer in enumerate(parts)]
        return Vars([v.params for v in made], [v.state for v in made], dtype)

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

    return Layer(init, apply, "sequential")


def compose(left: Layer, right: Layer) -> Layer:
    """Return right after left; params and state are {"left": ..., "right": ...}."""
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

    return Layer(init, apply, "compose")


def _named(pair: list[Tree]) -> dict[str, Tree]:
    return {"left": pair[0], "right": pair[1]}


def _pair(named: Mapping[str, Tree]) -> list[Tree]:
    return [named["left"], named["right"]]
