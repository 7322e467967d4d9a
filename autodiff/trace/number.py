"""Python numbers that a program takes by value: arguments of a jitted function, and counts of steps.

A traced function sees a `Number` in the place of each. What Python computes of it is computed again before
each run, by Python, so it has the bits of an eager call; where it becomes an operand of an op it is an input
of the program. Asking for its value (`if n > 3`, `float(n)`) is a read, as of a tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .active import classes, tracing

if TYPE_CHECKING:
    from ..tensor import Tensor


class Numbers:
    """The numbers that a program is given, and what Python computes of them, in order."""

    def __init__(self, given: Sequence[Any]) -> None:
        """Begin with the values of the call that is traced."""
        self.values: list[Any] = list(given)
        self._given = len(self.values)
        self._steps: list[tuple[Callable[..., Any], tuple[Any, ...], tuple[bool, ...]]] = []

    def number(self, index: int) -> Number:
        """Return a number as a traced function sees it."""
        return Number(self, index)

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Number:
        """Return what a function computes of numbers, in this call and in each run."""
        mine = tuple(isinstance(a, Number) for a in arguments)
        indices = tuple(a.index if isinstance(a, Number) else a for a in arguments)
        self._steps.append((function, indices, mine))
        self.values.append(self._value(self.values, *self._steps[-1]))
        return Number(self, len(self.values) - 1)

    @staticmethod
    def _value(
        values: Sequence[Any],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        mine: tuple[bool, ...],
    ) -> Any:
        return function(*[values[a] if own else a for a, own in zip(arguments, mine, strict=True)])

    def evaluate(self, given: Sequence[Any]) -> Sequence[Any]:
        """Return all numbers of a run."""
        if not self._steps:
            return given
        values = list(given)
        for step in self._steps:
            values.append(self._value(values, *step))
        return values


class Number:
    """A Python number that is another in each run of a program."""

    __slots__ = ("index", "numbers")
    __array_priority__ = 2000

    def __init__(self, numbers: Numbers, index: int) -> None:
        self.numbers, self.index = numbers, index

    @property
    def sample(self) -> Any:
        """Return what it is in the call that is traced; its type is the same in each."""
        return self.numbers.values[self.index]

    def __repr__(self) -> str:
        """Refuse, like any other read."""
        return repr(self._read())

    def __format__(self, spec: str) -> str:
        """Refuse, like any other read."""
        return format(self._read(), spec)

    def _read(self) -> Any:
        trace = tracing()
        if trace is not None:
            trace.read()
        return self.sample

    def operand(self, dtype: np.dtype) -> Tensor:
        """Return it as a tensor of shape ()."""
        return computed(lambda n: fitting(n, dtype), self, (), dtype)


def fitting(number: Any, dtype: np.dtype) -> Any:
    """Return a number as a dtype takes it, or raise ValueError."""
    kind = dtype.kind
    if kind == "f":
        try:
            return float(number)
        except OverflowError:
            pass
    elif kind == "b":
        return bool(number)
    elif -(1 << 8 * dtype.itemsize - 1) <= number < 1 << 8 * dtype.itemsize - 1:
        return int(number)
    raise ValueError(f"{number} does not fit {dtype.name}")


def computed(function: Callable[[Any], Any], number: Any, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """Return what a function computes of a number, as a tensor; of a `Number`, before each run."""
    if not isinstance(number, Number):
        return classes.tensor(np.array(function(number), dtype))
    trace = tracing()
    if trace is None:
        raise RuntimeError("a number of a traced function was kept and is used after it")
    symbol = trace.symbol(shape, dtype)
    trace.computed.append((symbol.number, function, number.index))
    return classes.tensor(symbol)


def _reading(name: str) -> Callable[..., Any]:
    return lambda self, *others: getattr(operator, name)(self._read(), *others)


def _lazily(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def method(self: Number, *others: Any) -> Any:
        if not all(isinstance(o, Number | int | float) for o in others):
            return NotImplemented
        return self.numbers.compute(function, *(reversed((self, *others)) if reflected else (self, *others)))

    return method


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"]
for _name in _BINARY:
    _function = getattr(operator, _name)
    setattr(Number, f"__{_name.strip('_')}__", _lazily(_function))
    setattr(Number, f"__r{_name.strip('_')}__", _lazily(_function, reflected=True))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(Number, f"__{_name}__", _lazily(getattr(operator, _name)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _lazily(getattr(operator, _name)))
for _name, _function in (
    ("bool", bool), ("int", int), ("float", float), ("index", operator.index), ("complex", complex),
    ("round", round), ("str", str), ("hash", hash),
):  # fmt: skip
    setattr(Number, f"__{_name}__", lambda self, *others, _f=_function: _f(self._read(), *others))
