"""The layer type: a pair of functions, `init` that creates parameters and `apply` that uses them.

Most layers need only parameters and input: `parametric` and `stateless` build those from one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from treepie.autodiff import Tensor, float32, ptree
from treepie.autodiff.arguments import as_tensor, described, integer
from treepie.autodiff.ops.random import check_key
from treepie.autodiff.program.pure import PureCache, call_pure, call_tensors, is_pure
from treepie.autodiff.ptree.structure import register_state, register_static
from treepie.autodiff.tensor import TensorLike, check_dtype
from treepie.autodiff.trace import active
from treepie.kernels.compilations import compilations

from .. import init
from ..display import cut, html_tree, tree_text, value_text
from ..errors import no_attribute
from ..pickling import Constructed

Tree = Any


@dataclass(frozen=True)
class Vars:
    """A model's parameters, its non-trainable state, and the dtype that it computes in.

    >>> import treepie as tp
    >>> vars = tp.layer.linear(3, 2).init(tp.rng.key(0))
    >>> sorted(vars.params), vars.state, vars.dtype.name
    (['bias', 'weight'], {}, 'float32')
    """

    params: Tree
    state: Tree
    dtype: Any

    _tensor_hint: ClassVar[str] = "model.apply returns (y, vars); the parameters are vars.params"

    def __repr__(self) -> str:
        """Show the shapes, of many parameters their number."""
        dtype = value_text(self.dtype)
        return f"Vars(params={tree_text(self.params)}, state={tree_text(self.state)}, dtype={dtype})"

    def _repr_html_(self) -> str:
        return html_tree({"params": self.params, "state": self.state})

    def with_params(self, params: Tree) -> Vars:
        """Return Vars with other parameters."""
        return Vars(params, self.state, self.dtype)

    def with_state(self, state: Tree) -> Vars:
        """Return Vars with another state."""
        return Vars(self.params, state, self.dtype)


@dataclass(frozen=True)
class Context:
    """Tensors that accompany one call of a model, by name; containers forward them to every layer.

    >>> import treepie as tp
    >>> tp.Context().set("attention_mask", [1, 1, 0]).get("attention_mask").tolist()
    [1, 1, 0]
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Show the names, with dtypes and shapes."""
        return cut(f"Context({', '.join(f'{k}={value_text(v)}' for k, v in self.values.items())})")

    def set(self, name: str, value: TensorLike) -> Context:
        """Return a context with one more tensor."""
        return Context({**self.values, name: as_tensor(value)})

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of a name, or None."""
        return self.values.get(name)


Init = Callable[[Tensor, Any], Vars]
Apply = Callable[..., tuple[Any, Tree]]

#: What models of other libraries have as attributes, and where it is here.
_ELSEWHERE = {
    "compile": "tp.Trainer(model, tp.optim.adam(1e-3))",
    "eval": "model.apply(vars, x), which is in evaluation mode unless training=True",
    "evaluate": "tp.Trainer(model, optimizer).evaluate(st, data, metrics)",
    "fit": "tp.Trainer(model, optimizer).fit(st, data, loss=...)",
    "forward": "model.apply(vars, x)",
    "parameters": "model.init(tp.rng.key(0)).params",
    "named_parameters": "tp.ptree.flatten_with_paths(model.init(tp.rng.key(0)).params)",
    "params": "model.init(tp.rng.key(0)).params",
    "predict": "tp.Trainer(model, optimizer).predict(st, x)",
    "state_dict": "model.init(tp.rng.key(0)).params",
    "save": "tp.checkpoint.save(path, vars.params)",
    "save_weights": "tp.checkpoint.save(path, vars.params)",
    "summary": "tp.layer.summary(model, input_shape)",
    "train": "model.apply(vars, x, training=True, rngs=tp.rng.key(0))",
    "trainable_weights": "model.init(tp.rng.key(0)).params",
    "weights": "model.init(tp.rng.key(0)).params",
}

#: The list where `summary` collects (name, output, own parameters) of each layer that is applied.
summary_rows: ContextVar[list[tuple[str, Any, int]] | None] = ContextVar("summary_rows", default=None)


@dataclass
class LayerNode:
    """A layer, its parameters, and the layers whose `init` its own called; the root has no layer."""

    layer: Layer | None = None
    params: Tree = None
    children: list[LayerNode] = field(default_factory=list)


#: The node of the layer whose `init` runs, while `print(model)` collects the tree of layers.
init_node: ContextVar[LayerNode | None] = ContextVar("init_node", default=None)


class Layer(Constructed):
    """A model or a part of one: two functions, called through the methods of the same names.

    init: (rngs, dtype) -> Vars.
    apply: (params, state, x, *, dtype, training, rngs, ctx) -> (y, state).
    name: the name in `summary` and in errors.
    pure: whether `apply` is a pure function, whose Python a training step need not run again; true for a
        function marked by `tp.pure`.
    table: of an embedding, (params) -> the table whose rows it returns; else None.
    of_rows: of a recurrent layer, (params, table, indices) -> y for rows of a table that are not gathered:
        in training, a chain calls it instead of an embedding and the layer behind it; else None.

    >>> import treepie as tp
    >>> def apply(params, state, x, *, dtype, training, rngs, ctx):
    ...     return x * params["scale"], state
    >>> def init(rngs, dtype):
    ...     return tp.layer.Vars({"scale": tp.ones((), dtype)}, {}, dtype)
    >>> scale = tp.layer.Layer(init, apply)
    >>> y, vars = scale.apply(scale.init(tp.rng.key(0)), [1.0, 2.0])
    >>> y.tolist()
    [1.0, 2.0]
    """

    __slots__ = ("_apply", "_call", "_init", "_known", "name", "of_rows", "pure", "table")

    _tensor_hint: ClassVar[str] = "the parameters of a model are model.init(tp.rng.key(0)).params"

    def __init__(self, init: Init, apply: Apply, name: str = "layer", *, pure: bool = False) -> None:
        self._init, self._apply, self.name = init, apply, name
        self.pure = pure or is_pure(apply)
        self._known = PureCache()
        self.table: Callable[[Tree], Tensor] | None = None
        self.of_rows: Callable[[Tree, Tensor, Tensor], Tensor] | None = None

    def __getstate__(self) -> Any:
        """Return the attributes to pickle, for a layer that no constructor of the library returned."""
        slots = [name for cls in type(self).__mro__ for name in getattr(cls, "__slots__", ())]
        excluded = {"_known", "_call"}
        attributes = {n: getattr(self, n) for n in slots if n not in excluded and hasattr(self, n)}
        return getattr(self, "__dict__", None), attributes

    def __setstate__(self, state: Any) -> None:
        """Restore pickled attributes."""
        self.table = self.of_rows = None
        for attributes in state:
            for name, value in (attributes or {}).items():
                setattr(self, name, value)
        self._known = PureCache()

    def __str__(self) -> str:
        """Return the tree of layers with their numbers of parameters, which are not allocated."""
        from .summary import tree  # which imports this module

        return str(tree(self))

    def _repr_html_(self) -> str:
        from .summary import tree

        return tree(self)._repr_html_()

    def init(self, rngs: Tensor, dtype: Any = float32) -> Vars:
        """Return new parameters and state.

        rngs: a key.  dtype: float32 or float64, else TypeError.
        """
        compute = check_dtype("Layer.init", dtype)
        if compute.kind != "f":
            raise TypeError(f"Layer.init: dtype is {compute.name}, expected float32 or float64")
        if rngs is not None:  # a layer without parameters may do without a key
            check_key("Layer.init", rngs, "rngs")
        container = init_node.get()
        with compilations.watch():
            if container is None:
                vars = self._init(rngs, compute)
            else:
                vars = self._init_below(container, rngs, compute)
        if not isinstance(vars, Vars):
            raise TypeError(
                f"Layer.init: {self.name} returned {type(vars).__name__}, expected a tp.layer.Vars"
            )
        return vars

    def _init_below(self, container: LayerNode, rngs: Tensor, dtype: Any) -> Vars:
        """Return the variables, and add the layer to its container's node."""
        node = LayerNode(self)
        container.children.append(node)
        token = init_node.set(node)
        try:
            vars = self._init(rngs, dtype)
        finally:
            init_node.reset(token)
        node.params = getattr(vars, "params", None)
        return vars

    def apply(
        self,
        vars: Vars,
        x: Any,
        training: bool = False,
        rngs: Tensor | None = None,
        ctx: Context | None = None,
    ) -> tuple[Any, Vars]:
        """Return the output for an input, and the variables with their new state.

        x: a tensor, or a tuple or dict of tensors; floats are converted to the dtype of `vars`, and so are
            integers and bools by layers that compute with them, other than indices. They are not scaled.
        training: whether dropout and the like are active.  rngs: the key for their random numbers.
        ctx: tensors for every layer, such as a mask.
        """
        trace = active.state.trace
        try:
            if self.pure and trace is not None and trace.user and not trace.closed:
                y, state = self._entered(trace, vars, x, training, rngs, ctx)
            else:
                y, state = self._applied(vars.params, vars.state, x, training, rngs, ctx, vars.dtype)
            return y, vars if state is vars.state else Vars(vars.params, state, vars.dtype)
        except AttributeError:
            if isinstance(vars, Vars):
                raise
            raise self._no_vars(vars, x) from None

    def _no_vars(self, vars: Any, x: Any) -> TypeError:
        """Return the error for other than variables."""
        hint = "vars = model.init(tp.rng.key(0))"
        if isinstance(x, Vars):
            hint = "model.apply(vars, x), in this order"
        elif hasattr(vars, "vars"):
            hint = "pass st.vars of a training state"
        elif isinstance(vars, dict | list | tuple):
            hint = "for its parameters alone, pass vars.with_params(params)"
        return TypeError(
            f"Layer.apply: vars is {described(vars)}, expected the Vars that init returns ({hint})"
        )

    if not TYPE_CHECKING:  # type checkers know without these that a layer has no such attribute

        def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
            """Raise TypeError: a layer is no function of the input alone."""
            raise TypeError(
                f"Layer: {self.name} is not callable, expected y, vars = model.apply(vars, x), with "
                "vars = model.init(tp.rng.key(0))"
            )

        def __getattr__(self, name: str) -> NoReturn:
            """Raise AttributeError, with the method to use for one of another library's."""
            hint = _ELSEWHERE.get(name)
            message = f"'Layer' object has no attribute {name!r}"
            raise no_attribute(f"{message}, expected {hint}") if hint else AttributeError(message)

    def _entered(
        self, trace: Any, vars: Vars, x: Any, training: bool, rngs: Tensor | None, ctx: Context | None
    ) -> tuple[Any, Tree]:
        """Return the result of `_applied`, as one entry of the trace."""
        params, state, dtype = vars.params, vars.state, vars.dtype
        if type(x) is Tensor and not state and rngs is None and ctx is None and type(params) is dict:
            tensors = (*params.values(), x)
            if {*map(type, tensors)} == {Tensor}:
                names = tuple(params)

                def plain(*operands: Tensor) -> Any:
                    own = dict(zip(names, operands[:-1], strict=True))
                    return self._applied(own, state, operands[-1], training, None, None, dtype)

                entry = call_tensors(trace, self._known, (names, training, dtype), plain, tensors)
                if entry is not None:
                    pure, outputs = entry
                    return (outputs[0], state) if pure.alone else pure.result(tensors, outputs)
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
        rows = summary_rows.get()
        start = len(rows) if rows is not None else 0
        t = x if type(x) is Tensor and x._data.dtype is dtype else _cast(inputs(x), dtype)
        result = self._apply(params, state, t, dtype=dtype, training=training, rngs=rngs, ctx=ctx)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"Layer.apply: {self.name} returned {type(result).__name__}, expected (y, state)")
        y, after = result
        if rows is not None:
            # A container has a row only if it has parameters that its layers do not have.
            own = ptree.count_parameters(params) - sum(n for _, _, n in rows[start:])
            if len(rows) == start or own > 0:
                rows.append((self.name, y, own))
        return y, after


def inputs(x: Any) -> Any:
    """Return a model's input as a tensor, or a tuple or dict of tensors."""
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
    """Return the layer of a function x -> y: no parameters, state or random numbers."""

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        return function(x), state

    return Layer(lambda rngs, dtype: Vars({}, {}, dtype), apply, name, pure=pure)


def parametric(
    name: str, params: Callable[[Tensor, Any], Tree], function: Callable[[Tree, Tensor], Tensor]
) -> Layer:
    """Return the layer of a pure function (params, x) -> y: no state or random numbers, one mode.

    params: (rngs, dtype) -> the parameters at first.
    """

    def apply(
        params: Tree, state: Tree, x: Tensor, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Tensor, Tree]:
        return function(params, x), state

    return Layer(lambda rngs, dtype: Vars(params(rngs, dtype), {}, dtype), apply, name, pure=True)


def check_sizes(function: str, **sizes: int) -> None:
    """Raise TypeError or ValueError, with the argument's name, unless sizes are integers of at least 1."""
    for argument, size in sizes.items():
        integer(function, argument, size, least=1)


def check_initializers(function: str, **functions: Any) -> None:
    """Raise TypeError for initializers that are no functions, or that return the initializer to use."""
    for argument, value in functions.items():
        if not callable(value) or value in (init.constant, init.normal, init.uniform, init.variance_scaling):
            name = value if isinstance(value, str) else getattr(value, "__name__", "")
            likely = name if name in init.__all__ else "glorot_uniform"
            call = {"constant": "(0.1)", "normal": "()", "uniform": "()", "variance_scaling": "(1.0, ...)"}
            raise TypeError(
                f"{function}: {argument} is {described(value)}, expected a function (key, shape, dtype), "
                f"such as tp.init.{likely}{call.get(likely, '')}"
            )
