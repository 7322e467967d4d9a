"""Custom gradient rules, and recomputation in the backward pass."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import ptree, tape
from .arguments import as_tensor
from .ptree import Tree
from .tensor import Data, Tensor
from .trace.active import tracing


class custom_vjp:
    """Give a function a gradient rule, as `jax.custom_vjp` does.

    function: takes and returns trees of tensors.

    `f.defvjp(forward, backward)` sets the rule: forward takes what f takes and returns (result, residuals),
    backward takes (residuals, cotangents of the result) and returns a tuple with a tree for each argument of
    f, None where an argument has no gradient. Gradients nest if backward is written in ops.

    Calling f in a gradient raises TypeError without a rule or where it returns something else, ValueError
    where a gradient has another shape or dtype than its argument.

    >>> import treepie as tp
    >>> @tp.custom_vjp
    ... def square(x):
    ...     return x * x
    >>> square.defvjp(lambda x: (x * x, x), lambda x, g: (g * 0.5,))
    >>> tp.grad(square)(tp.tensor(3.0)).item()
    0.5
    """

    def __init__(self, function: Callable[..., Tree]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._forward: Callable[..., tuple[Tree, Any]] | None = None
        self._backward: Callable[[Any, Tree], tuple[Tree, ...]] | None = None

    def __repr__(self) -> str:
        """Show the function's name."""
        return f"custom_vjp({getattr(self, '__name__', type(self._function).__name__)})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return its name if its module holds it under that name, as functions do, for pickle."""
        name = getattr(self, "__name__", "")
        importable = getattr(sys.modules.get(self.__module__), name, None) is self
        return name if importable else super().__reduce_ex__(protocol)

    def defvjp(
        self,
        forward: Callable[..., tuple[Tree, Any]],
        backward: Callable[[Any, Tree], tuple[Tree, ...]],
    ) -> None:
        """Set the rule: forward returns (result, residuals), backward the gradients; see the class."""
        self._forward, self._backward = forward, backward

    def __call__(self, *args: Tree) -> Tree:
        """Run the function; record its rule during differentiation."""
        note_rule()
        if not tape.recording():
            return self._function(*args)
        if self._forward is None or self._backward is None:
            raise TypeError(f"custom_vjp: {self.__name__} has no rule, call its defvjp first")  # type: ignore[attr-defined]
        pair = self._forward(*args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(
                f"custom_vjp: forward of {self.__name__} returned {type(pair).__name__}, "
                "expected (result, residuals)"
            )
        result, residuals = pair
        inputs = tuple(as_tensor(x) for x in ptree.leaves(list(args)))
        rule = _Custom(self._backward, residuals, list(args), result)
        return _recorded(rule, inputs, result)


def note_rule() -> None:
    """Tell the active trace that Python code runs in the backward pass."""
    trace = tracing()
    if trace is not None:
        trace.python_backward = True


def _recorded(rule: tape.Differentiable, inputs: tuple[Tensor, ...], result: Tree) -> Tree:
    """Return a result detached from its history, with a rule as its only node."""
    leaves, rebuild = ptree.flatten(result)
    outputs = tuple(Tensor(as_tensor(x)._data, None) for x in leaves)
    tape.record(rule, inputs, {}, outputs)
    return rebuild(list(outputs))


def _filled(gradients: Sequence[Tensor | None], outputs: Sequence[Data]) -> list[Tensor]:
    """Return the gradients of all outputs, zeros where there is none."""
    pairs = zip(gradients, outputs, strict=True)
    return [Tensor(np.zeros(a.shape, a.dtype), None) if g is None else g for g, a in pairs]


class _Custom:
    def __init__(
        self, backward: Callable[[Any, Tree], tuple[Tree, ...]], residuals: Any, args: Tree, result: Tree
    ) -> None:
        self._backward, self._residuals, self._args = backward, residuals, args
        self._structure = ptree.map(lambda x: 0.0, result)  # without the tensors, which would form a cycle

    def pull_back(
        self, node: tape.Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return the gradients that the user's backward returns."""
        filled = iter(_filled(gradients, node.outputs))
        cotangents = ptree.map(lambda _: next(filled), self._structure)
        trees = self._backward(self._residuals, cotangents)
        if not isinstance(trees, tuple) or len(trees) != len(self._args):
            raise TypeError(
                f"custom_vjp: backward returned {trees!r}, expected a tuple of {len(self._args)} gradients"
            )
        flat: list[Tensor | None] = []
        for gradient, argument in zip(trees, self._args, strict=True):
            if gradient is None:
                flat += [None] * len(ptree.leaves(argument))
            else:
                flat += ptree.leaves(ptree.map(_fitting, argument, gradient))
        return flat


def _fitting(x: Any, g: Any) -> Tensor:
    expected, actual = as_tensor(x), as_tensor(g)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ValueError(
            f"custom_vjp: backward gave a gradient of shape {actual.shape} and dtype {actual.dtype.name}, "
            f"expected {expected.shape} and {expected.dtype.name}"
        )
    return actual


def checkpoint_activations(f: Callable[..., Tree]) -> Callable[..., Tree]:
    """Return f, recomputed in the backward pass instead of storing its intermediate results.

    f: takes and returns trees of tensors, and depends on its arguments and closure only: random numbers
        come from keys. Only its arguments and results stay in memory (Chen et al. 2016).

    >>> import treepie as tp
    >>> f = tp.checkpoint_activations(lambda x: tp.exp(tp.sin(x)))
    >>> tp.grad(f)(tp.tensor(0.0)).item()
    1.0
    """

    @functools.wraps(f)
    def wrapped(*args: Tree) -> Tree:
        note_rule()
        if not tape.recording():
            return f(*args)
        leaves, rebuild = ptree.flatten(list(args))
        inputs = [as_tensor(x) for x in leaves]
        with tape.capture() as captured:
            result = f(*rebuild([Tensor(x._data, None) for x in inputs]))
        rule = _Recomputed(f, rebuild, len(inputs))
        return _recorded(rule, (*inputs, *captured), result)

    return wrapped


class _Recomputed:
    def __init__(self, f: Callable[..., Tree], rebuild: Callable[[list[Any]], Tree], count: int) -> None:
        self._f, self._rebuild, self._count = f, rebuild, count

    def pull_back(
        self, node: tape.Node, gradients: Sequence[Tensor | None], needs: Sequence[bool]
    ) -> list[Tensor | None]:
        """Run the function again under the tape, and pull the gradients back through it."""
        number = min(t.node.trace for t, n in zip(node.inputs, needs, strict=True) if n and t.node)
        floats = [t.dtype.kind == "f" for t in node.inputs[: self._count]]
        with tape.resumed(number):
            variables = [
                tape.leaf(t, number) if is_float else t
                for t, is_float in zip(node.inputs, floats, strict=False)
            ]
            result = self._f(*self._rebuild(list(variables)))
        outputs = [as_tensor(x) for x in ptree.leaves(result)]
        cotangents = _filled(gradients, node.outputs)
        targets = [*variables, *node.inputs[self._count :]]
        return tape.backward(number, outputs, cotangents, targets)
