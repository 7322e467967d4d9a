"""Elementwise ops of a formula, with a gradient rule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from treepie.kernels.own_code import KernelError
from treepie.kernels.vector import Value

from ..elementwise import elementwise_row, probe
from ..table import Attributes, Op
from ..tensor import Tensor
from .function import OwnFunction


class Formula(OwnFunction):
    """An elementwise op of one's own; see `elementwise`."""

    def __init__(
        self, formula: Callable[..., Any], vjp: Callable[..., Any] | None, name: str | None, flops: float
    ) -> None:
        super().__init__(formula)
        self.__name__ = self.__qualname__ = name or self.__name__
        self._count, self._flops = len(inspect.signature(formula).parameters), flops
        self.rule = vjp
        _ = self.op  # an error in the formula is raised where it is defined

    def __call__(self, *arguments: Any) -> Any:
        """Run the op on tensors, arrays or numbers, or continue another formula."""
        if any(type(a) is Value for a in arguments):
            return self.function(*arguments)
        return self.op(*arguments)

    def gradients_of(self, tensors: Sequence[Tensor], statics: Attributes) -> Sequence[Any]:
        """Return what the gradient rule gives for a gradient of 1 of the result."""
        (y,) = self.op.run(tuple(tensors), {})
        assert self.rule is not None
        found = self.rule(Tensor(np.ones(y.shape, y.dtype), None), y, *tensors)
        return found if isinstance(found, tuple | list) else (found,)

    def _make(self) -> Op:
        count, rule = self._count, self.rule
        rules = None if rule is None else tuple([_of_argument(self, rule, k, count) for k in range(count)])
        try:
            self.function(*probe(["float64"] * count)[1])
            # Another function each time: compiled loops are kept by it, and it may read other values now.
            f = self.function
            formula = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
            return elementwise_row(self.__name__, formula, count, rules, self._flops)
        except Exception as error:
            at = repr(self).replace("kernel", "elementwise", 1)
            raise KernelError(
                f"{at} is no formula: {error}; use operators and the functions of tp.math"
            ) from None


def _of_argument(owner: Formula, rule: Callable[..., Any], argument: int, count: int) -> Callable[..., Any]:
    """Return the rule of one argument."""

    def gradient(g: Any, y: Any, *arguments: Any) -> Any:
        found = rule(g, y, *arguments)
        listed = found if isinstance(found, tuple | list) else (found,)
        if len(listed) != count:
            raise TypeError(
                f"the gradient rule of {owner!r} returned {len(listed)} gradients, expected {count}"
            )
        return listed[argument]

    return gradient


def elementwise(
    formula: Callable[..., Any],
    vjp: Callable[..., Any] | None = None,
    name: str | None = None,
    flops: float = 20.0,
) -> Formula:
    """Make an elementwise op of a formula, which fuses with others as the library's own do.

    formula: a pure function of values, written in operators and the functions of `tp.math`; a vector of
        elements is computed at a time, so that there are no branches (see `tp.math.where`). Operands are
        floats, broadcast together.
    vjp: (g, y, *operands) -> a gradient for each operand, written in the same way. None: no gradient.
    name: in `explain` and in messages; by default that of the function.
    flops: operations for each element; decides whether threads share the work.

    >>> import treepie as tp
    >>> silu = tp.elementwise(
    ...     lambda x: x * tp.math.sigmoid(x),
    ...     vjp=lambda g, y, x: g * (y + tp.math.sigmoid(x) * (1 - y)),
    ... )
    >>> silu(tp.tensor([0.0, 2.0])).tolist()
    [0.0, 1.761594...]
    >>> tp.grad(silu)(tp.tensor(0.0)).item()
    0.5
    """
    return Formula(formula, vjp, name, flops)
