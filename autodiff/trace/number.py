"""Symbolic Python numbers: arguments of a jitted function, and step counts, that a program takes by value.

A traced function gets a `Number` for each. Python's arithmetic on it is recorded, and repeated by Python
before each run, so that results have the bits of an eager call; as an operand of an op it is an input of the
program. Use of its value (`if n > 3`, `float(n)`) is a read, as of a tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .active import classes, tracing

if TYPE_CHECKING:
    from ..tensor import Tensor


_NUMBER_AND_CONSTANT = (True, False)


class Numbers:
    """The symbolic numbers of a trace: those passed to the program, then those computed from them."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        """Begin with the numbers that are passed in the traced call."""
        self.values: list[Any] = list(arguments)
        # (function, operands, which of these are indices of numbers rather than constants)
        self._operations: list[tuple[Callable[..., Any], tuple[Any, ...], tuple[bool, ...]]] = []

    def number(self, index: int) -> Number:
        """Return the symbolic number at an index."""
        return Number(self, index)

    def compute(self, function: Callable[..., Any], *operands: Any) -> Number:
        """Record a Python function of numbers; return its result, which each run computes again."""
        symbolic = tuple(isinstance(a, Number) for a in operands)
        indices = tuple(a.index if isinstance(a, Number) else a for a in operands)
        self._operations.append((function, indices, symbolic))
        self.values.append(self._value(self.values, *self._operations[-1]))
        return Number(self, len(self.values) - 1)

    @staticmethod
    def _value(
        values: Sequence[Any],
        function: Callable[..., Any],
        operands: tuple[Any, ...],
        symbolic: tuple[bool, ...],
    ) -> Any:
        return function(*[values[a] if s else a for a, s in zip(operands, symbolic, strict=True)])

    def evaluate(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Return the values of all numbers for the arguments of a run."""
        if not self._operations:
            return arguments
        values = list(arguments)
        for function, operands, symbolic in self._operations:
            if symbolic == _NUMBER_AND_CONSTANT:  # as in count + 1, in a third of the time
                number, other = operands
                values.append(function(values[number], other))
            else:
                values.append(self._value(values, function, operands, symbolic))
        return values


class Number:
    """A symbolic number of Python or NumPy: its value changes from run to run, its type does not."""

    __slots__ = ("index", "numbers")
    __array_priority__ = 2000

    def __init__(self, numbers: Numbers, index: int) -> None:
        self.numbers, self.index = numbers, index

    @property
    def sample(self) -> Any:
        """The value in the traced call."""
        return self.numbers.values[self.index]

    def __repr__(self) -> str:
        """Read the value, which a trace may refuse."""
        return repr(self._read())

    def __format__(self, spec: str) -> str:
        """Read the value, which a trace may refuse."""
        return format(self._read(), spec)

    def _read(self) -> Any:
        trace = tracing()
        if trace is not None:
            trace.read()
        return self.sample

    def operand(self, dtype: np.dtype, name: str = "tensor") -> Tensor:
        """Return the number as a tensor of shape (). name: of the function, for errors."""
        return computed(lambda n: fitting(n, dtype, name), self, (), dtype)


def fitting(number: Any, dtype: np.dtype, name: str = "tensor") -> Any:
    """Return a number as the Python type of a dtype; raise ValueError where it is out of range."""
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
    raise does_not_fit(name, number, dtype)


def does_not_fit(name: str, number: Any, dtype: np.dtype) -> ValueError:
    """Return the error for an operand, a number, that a dtype can not hold."""
    digits = str(number) if not isinstance(number, int) or number.bit_length() <= 128 else "an integer"
    return ValueError(f"{name}: {digits} does not fit {dtype.name}")


def computed(function: Callable[[Any], Any], number: Any, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """Return function(number) as a tensor; of a `Number`, each run computes it before the program starts."""
    if not isinstance(number, Number):
        return classes.tensor(np.array(function(number), dtype), None)
    trace = tracing()
    if trace is None:
        raise RuntimeError("a number of a traced function is used after the function has returned")
    symbol = trace.symbol(shape, dtype)
    trace.computed.append((symbol.number, function, number.index))
    return classes.tensor(symbol, None)


def _recorded(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    """Return a method of `Number` that records a function. reflected: whether the operands are swapped."""

    def method(self: Number, *operands: Any) -> Any:
        if not all(isinstance(o, Number | int | float | np.generic) for o in operands):
            return NotImplemented
        arguments = (self, *operands)
        return self.numbers.compute(function, *(reversed(arguments) if reflected else arguments))

    return method


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift"]
for _name in _BINARY:
    _function = getattr(operator, _name)
    setattr(Number, f"__{_name.strip('_')}__", _recorded(_function))
    setattr(Number, f"__r{_name.strip('_')}__", _recorded(_function, reflected=True))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(Number, f"__{_name}__", _recorded(getattr(operator, _name)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _recorded(getattr(operator, _name)))
for _name, _function in (
    ("bool", bool), ("int", int), ("float", float), ("index", operator.index), ("complex", complex),
    ("round", round), ("str", str), ("hash", hash),
):  # fmt: skip
    setattr(Number, f"__{_name}__", lambda self, *arguments, _f=_function: _f(self._read(), *arguments))
