"""What a layer is: a pair of functions, `init` that makes parameters and `apply` that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float32, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.pure import PureCache, call_pure, call_tensors, is_pure
from treepie.autodiff.ptree.structure import register_state, register_static
from treepie.autodiff.tensor import TensorLike, check_dtype
from treepie.autodiff.trace import active
from treepie.kernels.compilations import compilations

from ..pickling import Constructed

Tree = Any


@dataclass(frozen=True)
class Vars:
    """A model's parameters and non-trainable state, and the dtype that it computes in."""

    params: Tree
    state: Tree
    dtype: Any

    def with_params(self, params: Tree) -> Vars:
        """Return the same with other parameters."""
        return Vars(params, self.state, self.dtype)

    def with_state(self, state: Tree) -> Vars:
        """Return the same with another state."""
        return Vars(self.params, state, self.dtype)


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


class Layer(Constructed):
    """A model or a part of one.

    init: (rngs, dtype) -> Vars.
    apply: (params, state, x, *, dtype, training, rngs, ctx) -> (y, state).
    name: what `summary` shows.
    pure: whether `apply` is pure, so that a training step need not run its Python; of a function that
        `tp.pure` has marked it is.

    The two functions are called through the methods of the same names.
    """

    __slots__ = ("_apply", "_init", "_known", "_made_by", "name", "pure")

    def __init__(self, init: Init, apply: Apply, name: str = "layer", *, pure: bool = False) -> None:
        """Make a layer of its two functions."""
        self._init, self._apply, self.name = init, apply, name
        self.pure = pure or is_pure(apply)
        self._known: PureCache = {}

    def __getstate__(self) -> Any:
        """Return what is pickled of a layer that no constructor of the library's made."""
        slots = [name for cls in type(self).__mro__ for name in getattr(cls, "__slots__", ())]
        left_out = {"_known", "_made_by"}
        held = {n: getattr(self, n) for n in slots if n not in left_out and hasattr(self, n)}
        return getattr(self, "__dict__", None), held

    def __setstate__(self, state: Any) -> None:
        """Take what was pickled."""
        for attributes in state:
            for name, value in (attributes or {}).items():
                setattr(self, name, value)
        self._known = {}

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
        trace = active.state.trace
        if self.pure and trace is not None and trace.user and not trace.closed:
            y, state = self._entered(trace, vars, x, training, rngs, ctx)
        else:
            y, state = self._applied(vars.params, vars.state, x, training, rngs, ctx, vars.dtype)
        return y, Vars(vars.params, state, vars.dtype)

    def _entered(
        self, trace: Any, vars: Vars, x: Any, training: bool, rngs: Tensor | None, ctx: Context | None
    ) -> tuple[Any, Tree]:
        """Return what `_applied` does, as one entry of a trace."""
        params, state, dtype = vars.params, vars.state, vars.dtype
        if type(x) is Tensor and not state and rngs is None and ctx is None and type(params) is dict:
            given = (*params.values(), x)
            if all(type(t) is Tensor for t in given):
                names = tuple(params)

                def plain(*tensors: Tensor) -> Any:
                    own = dict(zip(names, tensors[:-1], strict=True))
                    return self._applied(own, state, tensors[-1], training, None, None, dtype)

                found = call_tensors(trace, self._known, (names, training, dtype), plain, given)
                if found is not None:
                    pure, made = found
                    return (made[0], state) if pure.alone else pure.result(given, made)
        arguments = (params, state, x, training, rngs, ctx, dtype)
        return call_pure(self._known, self._applied, arguments)  # type: ignore[no-any-return]

    def _applied(
        self,
        params: Tree,
        state: Tree,
        x: Any,
        training: bool,
        rngs: Tensor | None,
        ctx: Context | None,
        dtype: Any,
    ) -> tuple[Any, Tree]:
        rows = seen.get()
        start = len(rows) if rows is not None else 0
        t = _cast(inputs(x), dtype)
        made = self._apply(params, state, t, dtype=dtype, training=training, rngs=rngs, ctx=ctx)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(f"Layer.apply: {self.name} returned {type(made).__name__}, expected (y, state)")
        y, after = made
        if rows is not None:
            # A container shows only what its layers do not: parameters of its own.
            own = ptree.count_parameters(params) - sum(n for _, _, n in rows[start:])
            if len(rows) == start or own > 0:
                rows.append((self.name, y, own))
        return y, after


def inputs(x: Any) -> Any:
    """Return what a model is given as a tensor, or a tuple or dict of tensors."""
    return ptree.map(as_tensor, x) if isinstance(x, tuple | dict) else as_tensor(x)


def _cast(x: Any, dtype: np.dtype) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: _cast(leaf, dtype), x)
    if x._data.dtype is dtype:
        return x
    return x.astype(dtype) if x.dtype.kind == "f" else x


register_state(Vars)
register_state(Context)
register_static(Layer)


def stateless(name: str, function: Callable[[Any], Any], *, pure: bool = True) -> Layer:
    """Return the layer of a function without parameters, state or random numbers."""

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        return function(x), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, name, pure=pure)
