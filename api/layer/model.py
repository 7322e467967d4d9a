"""Models of several layers and a function that calls them: several inputs, shared parts, any data flow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from treepie.autodiff import Tensor, rng
from treepie.autodiff.program.pure import is_pure
from treepie.autodiff.tensor import TensorLike

from ..errors import name_layer
from ..pickling import constructor
from .container import initial
from .core import Context, Layer, Tree, Vars, summary_rows


class Call:
    """One call of a `model`: its layers, under their names, and the arguments that accompany the call.

    `call.encoder(x)` or `call["encoder"](x)` applies the layer "encoder" to x with its parameters and state,
    and returns the output. A layer that is called again has the same parameters, the state that its last call
    returned, and another key for its random numbers. Keyword arguments are tensors that are added to the
    context of that call: `call.decoder(y, memory=z)`.

    training, ctx, dtype: as for the function `apply` of a `Layer`.
    rngs: a key for random numbers of the function itself, or None.

    >>> import treepie as tp
    >>> def forward(call: tp.layer.Call, x: tp.Tensor) -> tp.Tensor:
    ...     return call.linear(call.linear(x)) if call.training else call.linear(x)
    >>> model = tp.layer.model({"linear": tp.layer.linear(3, 3)}, forward)
    >>> model.apply(model.init(tp.rng.key(0)), tp.zeros((4, 3)))[0].shape
    (4, 3)
    """

    __slots__ = ("_layers", "_numbers", "_params", "_state", "ctx", "dtype", "rngs", "training")

    def __init__(
        self,
        layers: Mapping[str, Layer],
        params: Mapping[str, Tree],
        state: Mapping[str, Tree],
        dtype: Any,
        training: bool,
        rngs: Tensor | None,
        ctx: Context | None,
    ) -> None:
        """Begin a call; `model` does."""
        self._layers, self._params, self._state = layers, params, dict(state)
        # Of each layer, the number that its next key is folded with: another for each call.
        self._numbers = {name: k for k, name in enumerate(layers)}
        self.dtype, self.training, self.rngs, self.ctx = dtype, training, rngs, ctx

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return the function that applies a layer."""
        if name not in self._layers:
            raise KeyError(self._unknown(name))
        return functools.partial(self._apply, name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function that applies a layer."""
        if name.startswith("_") or name not in self._layers:
            raise AttributeError(self._unknown(name))
        return functools.partial(self._apply, name)

    def _unknown(self, name: str) -> str:
        return f"layer.model: no part is named {name!r}, expected one of {', '.join(self._layers)}"

    def _apply(self, name: str, x: Any, **context: TensorLike) -> Any:
        layer, number, ctx = self._layers[name], self._numbers[name], self.ctx
        self._numbers[name] = number + len(self._layers)
        key = None if self.rngs is None else rng.fold_in(self.rngs, number)
        for tensor, value in context.items():
            ctx = (Context() if ctx is None else ctx).set(tensor, value)
        rows = summary_rows.get()
        start = len(rows) if rows is not None else 0
        own = Vars(self._params[name], self._state[name], self.dtype)
        try:
            y, vars = layer.apply(own, x, self.training, key, ctx)
        except Exception as error:
            name_layer(error, name, layer.name)
            raise
        self._state[name] = vars.state
        if rows is not None:
            # Parameters count where they are used first.
            first = number < len(self._layers)
            rows[start:] = [(f"{name}: {row}", out, n if first else 0) for row, out, n in rows[start:]]
        return y


@constructor
def model(parts: Mapping[str, Layer], forward: Callable[[Call, Any], Any], name: str = "model") -> Layer:
    """Return a layer composed of layers and a function that calls them.

    parts: layers by name; a name is a Python identifier.
    forward: (call, x) -> y. `call.name(x)` applies a part, see `Call`. x and y are tensors, or tuples or
        dicts of tensors. Its Python runs in every step, unless it is marked by `tp.pure`.
    name: the name in errors.

    Parameters and state are dicts with an entry for each part. Parts get different keys, and the same
    context. Raises TypeError for parts that are not layers, ValueError for other names.

    >>> import treepie as tp
    >>> parts = {"embed": tp.layer.embedding(100, 8), "score": tp.layer.linear(16, 1)}
    >>> def forward(call, x):
    ...     user, item = x
    ...     both = [call.embed(user), call.embed(item)]  # one table for both
    ...     return call.score(tp.concatenate(both, axis=1))
    >>> model = tp.layer.model(parts, forward)
    >>> model.apply(model.init(tp.rng.key(0)), ([1, 2, 3], [4, 5, 6]))[0].shape
    (3, 1)
    """
    if not isinstance(parts, Mapping) or not parts:
        raise TypeError(f"layer.model: parts is {parts!r}, expected a dict of layers by name")
    for part, layer in parts.items():
        if not isinstance(layer, Layer):
            raise TypeError(f"layer.model: parts[{part!r}] is a {type(layer).__name__}, expected a Layer")
        if (
            not isinstance(part, str)
            or not part.isidentifier()
            or part.startswith("_")
            or hasattr(Call, part)
        ):
            raise ValueError(
                f"layer.model: parts has the name {part!r}, expected a Python identifier that begins with a "
                "letter and is none of training, rngs, ctx, dtype"
            )
    if not callable(forward) or isinstance(forward, Layer):
        raise TypeError(f"layer.model: forward is {forward!r}, expected a function (call, x) -> y")
    return assemble(name, parts, forward, pure=is_pure(forward))


def assemble(
    name: str, parts: Mapping[str, Layer], forward: Callable[[Call, Any], Any], *, pure: bool = True
) -> Layer:
    """Return the layer of `model`, without its checks.

    pure: whether `forward` is a pure function of its arguments; the layer is pure if all parts are, too.
    """

    def init(rngs: Tensor, dtype: Any) -> Vars:
        keys = {p: rng.fold_in(rngs, k) for k, p in enumerate(parts)}
        every = {p: initial(layer, p, keys[p], dtype) for p, layer in parts.items()}
        return Vars({p: v.params for p, v in every.items()}, {p: v.state for p, v in every.items()}, dtype)

    def apply(
        params: Tree, state: Tree, x: Any, *, dtype: Any, training: bool, rngs: Any, ctx: Any
    ) -> tuple[Any, Tree]:
        if params.keys() != parts.keys() or state.keys() != parts.keys():
            raise ValueError(
                f"layer.{name}: params has the entries {', '.join(params)} and state {', '.join(state)}, "
                f"expected {', '.join(parts)}"
            )
        call = Call(parts, params, state, dtype, training, rngs, ctx)
        y = forward(call, x)
        return y, call._state

    return Layer(init, apply, name, pure=pure and all(layer.pure for layer in parts.values()))
