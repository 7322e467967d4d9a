"""Flattening of a function's arguments and results into leaves and a hashable structure, and back.

Leaves are tensors, and on request numbers of Python and NumPy. All else belongs to the structure: types and
keys of containers, strings, None, and static objects such as layers, which are compared by identity.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from ..arguments import as_tensor
from ..tensor import Tensor
from ..trace.number import Number
from . import tree as ptree


class Identity:
    """A hashable key for an object, compared by identity."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        """Wrap an object."""
        self.of = of

    def __hash__(self) -> int:
        """Return a hash of its identity."""
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        """Whether the other wraps the same object."""
        return type(other) is Identity and self.of is other.of


_NUMBERS = (bool, int, float)
_PLAIN = (str, bytes, type(None), type(...), bool, int)
_states: dict[type, tuple[str, ...]] = {}  # dataclass -> names of its fields
_static: tuple[type, ...] = (np.dtype, enum.Enum)


def _names(kind: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return _states.get(kind) or tuple(f.name for f in dataclasses.fields(kind))


def register_state(cls: type) -> None:
    """Register a dataclass as a container whose fields are children."""
    _states[cls] = _names(cls)


def register_static(cls: type) -> None:
    """Register a class whose objects are parts of a structure, compared by identity."""
    global _static
    _static = (*_static, cls)


class Flattened:
    """The leaves of a tree, and its structure.

    tensors: the leaves that are tensors or arrays, as tensors.
    numbers: the leaves that are numbers of Python or NumPy, or `Number`s; None where numbers belong to the
        structure.
    structure: hashable.  plain: whether no leaf or container had to be converted, so that `matcher` applies.
    """

    __slots__ = ("_scalars", "numbers", "plain", "structure", "tensors")

    def __init__(self, name: str, tree: Any, numbers: bool = True, scalars: bool = True) -> None:
        """Flatten a tree.

        name: what the message of an error begins with.  numbers: whether Python numbers are leaves.
        scalars: whether, without numbers, NumPy's scalars are tensors; else they are no part of a tree.

        Raises TypeError, which names the path, for an object that is neither a leaf nor part of a structure.
        """
        self.tensors: list[Tensor] = []
        self.numbers: list[Any] | None = [] if numbers else None
        self.plain, self._scalars = True, scalars
        try:
            self.structure: Hashable = self._flatten(tree)
        except _Unsupported as error:
            path = "".join(reversed(error.path))
            raise TypeError(
                f"{name}{path} is a {error.kind.__name__}, expected a tree of tensors (and numbers, strings "
                "or None)"
            ) from None

    @staticmethod
    def of(tensors: list[Tensor], numbers: list[Any], structure: Hashable) -> Flattened:
        """Return a flattened tree from its parts."""
        flat = Flattened.__new__(Flattened)
        flat.tensors, flat.numbers, flat.structure, flat.plain = tensors, numbers, structure, True
        return flat

    def _flatten(self, x: Any) -> Hashable:
        """Append the leaves of a tree, and return its structure."""
        kind = type(x)
        if kind is Tensor:
            self.tensors.append(x)
            return Tensor
        if kind is dict:
            return (dict, tuple(x), self._children(x, x.values()))
        if kind is list and self.numbers is None and any(type(child) in _NUMBERS for child in x):
            raise _Unsupported(kind)  # data: each list would be a new structure
        if kind is tuple or kind is list:
            return (kind, len(x), self._children(range(len(x)), x))
        fields = _states.get(kind)
        if fields is not None:
            return (kind, None, self._children(fields, [getattr(x, name) for name in fields]))
        if kind is float or kind is int or kind is bool or kind is Number:
            if self.numbers is not None:
                self.numbers.append(x)
                return Number
            if kind is not float:
                return ("value", kind, x)
            raise _Unsupported(kind)  # each value would be a new structure
        if kind in _PLAIN:
            return ("value", kind, x)
        return self._flatten_rare(x)

    def _flatten_rare(self, x: Any) -> Hashable:
        """Flatten a tree of a type that `_flatten` does not test for."""
        kind = type(x)
        if isinstance(x, np.generic) and x.dtype.kind in "biuf":
            self.plain = False
            if self.numbers is not None:
                self.numbers.append(x)
                return Number
            if not self._scalars:
                raise _Unsupported(kind)
        if isinstance(x, np.ndarray | np.generic):
            self.plain = False
            self.tensors.append(as_tensor(x))
            return Tensor
        if isinstance(x, dict):
            if isinstance(x, collections.defaultdict):  # is rebuilt as a dict, as in `ptree`
                self.plain, kind = False, dict
            return (kind, tuple(x), self._children(x, x.values()))
        if isinstance(x, list | tuple):
            return (kind, len(x), self._children(range(len(x)), x))
        if ptree.is_registered(x):
            names = _names(kind)
            return (kind, None, self._children(names, [getattr(x, name) for name in names]))
        if isinstance(x, _static):
            return ("value", Identity, Identity(x))
        raise _Unsupported(kind)

    def _children(self, names: Any, children: Any) -> tuple[Hashable, ...]:
        try:
            return tuple([self._flatten(child) for child in children])
        except _Unsupported as error:
            # The failing child is searched for only here, so that the usual case does not keep a path.
            for name, child in zip(names, children, strict=True):
                try:
                    Flattened.__new__(Flattened)._probe(child, self.numbers is not None, self._scalars)
                except _Unsupported:
                    error.path.append(f"[{name!r}]")
                    break
            raise

    def _probe(self, child: Any, numbers: bool, scalars: bool) -> None:
        self.tensors, self.numbers, self.plain = [], [] if numbers else None, True
        self._scalars = scalars
        self._flatten(child)


class _Unsupported(Exception):
    """An object can not be flattened: its type, and its path from the innermost key out."""

    def __init__(self, kind: type) -> None:
        self.kind: type = kind
        self.path: list[str] = []


def rebuild(structure: Any, tensors: Iterator[Any], numbers: Iterator[Any]) -> Any:
    """Return a tree of a structure with the next leaves of two iterators."""
    if structure is Tensor:
        return next(tensors)
    if structure is Number:
        return next(numbers)
    kind, keys, parts = structure
    if kind == "value":
        return parts.of if keys is Identity else parts
    children = [rebuild(p, tensors, numbers) for p in parts]
    if keys is None:
        return kind(**dict(zip(_names(kind), children, strict=True)))
    if kind is dict:
        return dict(zip(keys, children, strict=True))
    if kind is list:
        return children
    if kind is tuple:
        return tuple(children)
    if issubclass(kind, dict):
        return kind(zip(keys, children, strict=True))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*children)
    return kind(children) if issubclass(kind, list | tuple) else kind(*children)


class _Writer:
    """Generates Python code that flattens or builds trees of one structure.

    It takes half of the time of a recursive walk, and a jitted function needs both in each call.

    names: the globals of the code.  lines: its statements.
    tensors, numbers: the expressions of the leaves.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"Tensor": Tensor, "number_types": _NUMBERS}
        self.lines: list[str] = []
        self.tensors: list[str] = []
        self.numbers: list[str] = []

    def name(self, value: Any) -> str:
        """Return a new global name for an object."""
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def flatten(self, structure: Any, x: str) -> None:
        """Write statements that check and unpack the tree in the variable `x`."""
        if structure is Tensor:
            self.mismatch(f"type({x}) is not Tensor")
            self.tensors.append(x)
            return
        if structure is Number:
            self.mismatch(f"type({x}) not in number_types")
            self.numbers.append(x)
            return
        kind, keys, parts = structure
        if kind == "value":
            if keys is Identity:
                self.mismatch(f"{x} is not {self.name(parts.of)}")
            else:
                self.mismatch(f"type({x}) is not {self.name(keys)} or {x} != {self.name(parts)}")
            return
        self.mismatch(f"type({x}) is not {self.name(kind)}")
        children = [f"{x}_{k}" for k in range(len(parts))]
        if issubclass(kind, dict):
            self.mismatch(f"tuple({x}) != {self.name(keys)}")
            source = f"{x}.values()"
        elif keys is None:
            source = ", ".join(f"{x}.{name}" for name in _names(kind)) + ","
        else:
            self.mismatch(f"len({x}) != {keys}")
            source = x
        if children:
            self.lines.append(f"    {', '.join(children)}, = {source}")
        for child, part in zip(children, parts, strict=True):
            self.flatten(part, child)

    def mismatch(self, condition: str) -> None:
        """Write a condition under which a tree has another structure."""
        self.lines.append(f"    if {condition}: return None")

    def build(self, structure: Any, tensors: Iterator[int], numbers: Iterator[int]) -> str:
        """Return an expression for the tree with the tensors `t` and the numbers `n`."""
        if structure is Tensor:
            return f"t[{next(tensors)}]"
        if structure is Number:
            return f"n[{next(numbers)}]"
        kind, keys, parts = structure
        if kind == "value":
            return self.name(parts.of if keys is Identity else parts)
        children = [self.build(part, tensors, numbers) for part in parts]
        inner = ", ".join(children)
        if keys is None:
            fields = [f"{name}={child}" for name, child in zip(_names(kind), children, strict=True)]
            return f"{self.name(kind)}({', '.join(fields)})"
        if issubclass(kind, dict):
            pairs = ", ".join(f"{self.name(k)}: {child}" for k, child in zip(keys, children, strict=True))
            return f"{{{pairs}}}" if kind is dict else f"{self.name(kind)}({{{pairs}}})"
        if kind is list:
            return f"[{inner}]"
        if issubclass(kind, tuple) and not hasattr(kind, "_fields"):
            elements = f"({inner},)" if children else "()"
            return elements if kind is tuple else f"{self.name(kind)}({elements})"
        return f"{self.name(kind)}([{inner}])" if issubclass(kind, list) else f"{self.name(kind)}({inner})"


#: Flattens trees of one structure: (tree) -> (tensors, numbers), or None for a tree of another structure.
Matcher = Callable[[Any], tuple[list[Tensor], list[Any]] | None]


def matcher(structure: Hashable) -> Matcher:
    """Return a function that flattens trees of a structure."""
    writer = _Writer()
    writer.flatten(structure, "x")
    result = f"    return [{', '.join(writer.tensors)}], [{', '.join(writer.numbers)}]"
    exec("\n".join(["def match(x):", *writer.lines, result]), writer.names)
    return writer.names["match"]  # type: ignore[no-any-return]


def builder(structure: Hashable) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """Return a function that builds trees of a structure: (tensors, numbers) -> tree."""
    writer = _Writer()
    expression = writer.build(structure, itertools.count(), itertools.count())
    return eval(f"lambda t, n: {expression}", writer.names)  # type: ignore[no-any-return]
