"""The accuracy of elementary functions and activations of float32 tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from treepie.kernels.vector import Formula, Value

from .trace.active import Setting, state

R = TypeVar("R")

HIGH, FAST = "high", "fast"
ACCURACIES = (HIGH, FAST)

#: The magnitude of `growing`, for OPS.md.
GROWING = "max(1, abs(x)) times the result"


def growing(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the magnitude of fast functions of exp, whose relative error grows with |x|.

    Results of less than 2**-121 may become 0: the last term is 2**23 times that.
    """
    return lambda x: np.abs(function(x)) * np.maximum(1, np.abs(x)) + 2.0**-98


def accuracy(name: str) -> Setting:
    """Compute functions of float32 tensors in another accuracy, in a block or a decorated function.

    name: "high", the default, in which functions are within 4 units in the last place; or "fast", in which
        `exp`, `sigmoid`, `tanh`, `erf`, `silu`, `gelu` and `gelu_approx` are computed by shorter formulas,
        with errors of less than 1e-6, in 0.3 to 0.8 of the time. autodiff/OPS.md has a table of the bounds.

    It is that of these functions, of layers and activations that call them, and of their gradients, even
    where those are taken after the block. Softmax, attention, recurrent layers, losses, formulas of
    `tp.elementwise` and `tp.kernel`, and float64 tensors are not affected. NaN gives NaN, infinities give the
    limits within 1e-9, and results have the same bits at any number of threads.

    Raises ValueError for another name.

    >>> import treepie as tp
    >>> x = tp.linspace(-3.0, 3.0, 1000)
    >>> exact = tp.fn.gelu(x)
    >>> with tp.accuracy("fast"):
    ...     error = tp.abs(tp.fn.gelu(x) - exact).max().item()
    >>> 0 < error < 1e-6
    True
    """
    return Setting("accuracy", checked_accuracy("accuracy", name))


def current() -> tuple[str | None, str | None]:
    """Return the precision and the accuracy of the block; None without one."""
    return state.precision, state.accuracy


def checked_accuracy(function: str, name: str) -> str:
    """Return the name of an accuracy, or raise ValueError."""
    if name not in ACCURACIES:
        names = " or ".join(map(repr, ACCURACIES))
        raise ValueError(f"{function}: accuracy is {name!r}, expected {names}")
    return name


@dataclass(frozen=True)
class Arithmetic:
    """The precision of products and the accuracy of functions of a trainer; None is that of the block."""

    precision: str | None = None
    accuracy: str | None = None

    @property
    def in_force(self) -> bool:
        """Whether a call would change nothing."""
        return self.precision in (None, state.precision) and self.accuracy in (None, state.accuracy)

    def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function in this precision and accuracy."""
        before = state.precision, state.accuracy
        state.precision = before[0] if self.precision is None else self.precision
        state.accuracy = before[1] if self.accuracy is None else self.accuracy
        try:
            return function(*arguments)
        finally:
            state.precision, state.accuracy = before


@dataclass(frozen=True)
class Fast:
    """What the fast version of a row of one operand has in place of the row's own; see `tp.accuracy`.

    slope: the derivative as a formula, for rules on formula values; None for the row's rules.
    ulp, magnitude: the bound in float32, as those of `Op`.  relative_to: the magnitude, for OPS.md.
    """

    formula: Formula
    flops: float
    ulp: float
    magnitude: Callable[..., Any] | None = None
    relative_to: str = "the result"
    slope: Formula | None = None


def with_slope(slope: Formula, rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule that takes the derivative from a formula; on tensors it is the other rule, of ops."""

    def choose(g: Any, y: Any, x: Any) -> Any:
        return g * slope(x) if type(x) is Value else rule(g, y, x)

    return choose
