"""What a layer is: a pair of functions, `init` that makes parameters and `apply` that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float32, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TensorLike, check_dtype
from treepie.autodiff.transform import compilations

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

#: Where `summary` collects (name, output, parameters of its own) of each layer that is applied.
seen: ContextVar[list[tuple[str, Any, int]] | None] = ContextVar("seen", default=None)


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

    @property
    def function(self) -> Apply:
        """The function that it applies."""
        return self._apply

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
        rows = seen.get()
        start = len(rows) if rows is not None else 0
        t, dtype = _cast(inputs(x), vars.dtype), vars.dtype
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


def inputs(x: Any) -> Any:
    """Return what a model is given as a tensor, or a tuple or dict of tensors."""
    return ptree.map(as_tensor, x) if isinstance(x, tuple | dict) else as_tensor(x)


def _cast(x: Any, dtype: np.dtype) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: _cast(leaf, dtype), x)
    return x.astype(dtype) if x.dtype.kind == "f" else x


def stateless(name: str, function: Callable[[Any], Any]) -> Layer:
    """Return the layer of a function without parameters, state or random numbers."""

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        return function(x), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, name)
