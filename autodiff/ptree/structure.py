"""Trees of whatever a function takes and gives, as leaves and a structure, and back.

Leaves are tensors, and numbers where they are asked for. All else belongs to the structure, which is
hashable: containers, keys, strings, None, and objects that stand for themselves, such as layers.
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
    """An object as a key: equal to itself alone."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        """Hold an object."""
        self.of = of

    def __hash__(self) -> int:
        """Return a hash of its identity."""
        return id(self.of)

    def __eq__(self, other: object) -> bool:
        """Whether another one holds the same object."""
        return type(other) is Identity and self.of is other.of


_NUMBERS = (bool, int, float)
_PLAIN = (str, bytes, type(None), type(...), bool, int)
_states: dict[type, tuple[str, ...]] = {}
_themselves: tuple[type, ...] = (np.dtype, enum.Enum)


def _names(kind: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return _states.get(kind) or tuple(f.name for f in dataclasses.fields(kind))


def register_state(cls: type) -> None:
    """Make a dataclass a container: its fields are children."""
    _states[cls] = _names(cls)


def register_static(cls: type) -> None:
    """Let objects of a class be part of a structure, each equal to itself alone."""
    global _themselves
    _themselves = (*_themselves, cls)


class Flattened:
    """The leaves of a tree, and its structure.

    numbers: the Python numbers and `Number`s, or None where they belong to the structure.
    """

    __slots__ = ("numbers", "plain", "structure", "tensors")

    def __init__(self, name: str, tree: Any, numbers: bool = True) -> None:
        """Take a tree apart; raise TypeError, which names the function and the path, where it can not be."""
        self.tensors: list[Tensor] = []
        self.numbers: list[Any] | None = [] if numbers else None
        self.plain = True  # whether all tensors are that, and all numbers Python's
        try:
            self.structure: Hashable = self._taken(tree)
        except _Unknown as error:
            path = "".join(reversed(error.path))
            raise TypeError(
                f"{name}{path} is a {error.kind.__name__}, expected a tree of tensors (and numbers, strings "
                "or None)"
            ) from None

    @staticmethod
    def of(tensors: list[Tensor], numbers: list[Any], structure: Hashable) -> Flattened:
        """Return one of leaves and a structure that are known."""
        made = Flattened.__new__(Flattened)
        made.tensors, made.numbers, made.structure, made.plain = tensors, numbers, structure, True
        return made

    def _taken(self, x: Any) -> Hashable:
        kind = type(x)
        if kind is Tensor:
            self.tensors.append(x)
            return Tensor
        if kind is dict:
            return (dict, tuple(x), self._children(x, x.values()))
        if kind is list and self.numbers is None and any(type(child) in _NUMBERS for child in x):
            raise _Unknown(kind)  # data, of which each is another
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
            raise _Unknown(kind)  # a structure for each value: the caller goes another way
        if kind in _PLAIN:
            return ("value", kind, x)
        return self._other(x)

    def _other(self, x: Any) -> Hashable:
        kind = type(x)
        if isinstance(x, np.ndarray | np.generic):
            self.plain = False
            self.tensors.append(as_tensor(x))
            return Tensor
        if isinstance(x, dict):
            if isinstance(x, collections.defaultdict):  # becomes a dict, as in `ptree`
                self.plain, kind = False, dict
            return (kind, tuple(x), self._children(x, x.values()))
        if isinstance(x, list | tuple):
            return (kind, len(x), self._children(range(len(x)), x))
        if ptree.is_registered(x):
            names = _names(kind)
            return (kind, None, self._children(names, [getattr(x, name) for name in names]))
        if isinstance(x, _themselves):
            return ("value", Identity, Identity(x))
        raise _Unknown(kind)

    def _children(self, names: Any, children: Any) -> tuple[Hashable, ...]:
        try:
            return tuple([self._taken(child) for child in children])
        except _Unknown as error:
            # Which child it was is looked for once there is an error to raise.
            for name, child in zip(names, children, strict=True):
                try:
                    Flattened.__new__(Flattened)._probe(child, self.numbers is not None)
                except _Unknown:
                    error.path.append(f"[{name!r}]")
                    break
            raise

    def _probe(self, child: Any, numbers: bool) -> None:
        self.tensors, self.numbers, self.plain = [], [] if numbers else None, True
        self._taken(child)


class _Unknown(Exception):
    def __init__(self, kind: type) -> None:
        self.kind: type = kind
        self.path: list[str] = []


def rebuild(structure: Any, tensors: Iterator[Any], numbers: Iterator[Any]) -> Any:
    """Put a tree together again around other leaves."""
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
    """Writes Python that takes trees of one structure apart, or puts them together.

    In half of the time of a walk over the tree, which a jitted function pays twice in each call.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"Tensor": Tensor, "numbers_of": _NUMBERS}
        self.lines: list[str] = []
        self.tensors: list[str] = []
        self.numbers: list[str] = []

    def name(self, value: Any) -> str:
        """Return a name for an object."""
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def take(self, structure: Any, at: str) -> None:
        """Write what takes the tree `at` apart, and returns where it is of another structure."""
        if structure is Tensor:
            self.refuse(f"type({at}) is not Tensor")
            self.tensors.append(at)
            return
        if structure is Number:
            self.refuse(f"type({at}) not in numbers_of")
            self.numbers.append(at)
            return
        kind, keys, parts = structure
        if kind == "value":
            if keys is Identity:
                self.refuse(f"{at} is not {self.name(parts.of)}")
            else:
                other = f"type({at}) is not {self.name(keys)} or {at} != {self.name(parts)}"
                self.refuse(other)
            return
        self.refuse(f"type({at}) is not {self.name(kind)}")
        children = [f"{at}_{k}" for k in range(len(parts))]
        if issubclass(kind, dict):
            self.refuse(f"tuple({at}) != {self.name(keys)}")
            source = f"{at}.values()"
        elif keys is None:
            source = ", ".join(f"{at}.{name}" for name in _names(kind)) + ","
        else:
            self.refuse(f"len({at}) != {keys}")
            source = at
        if children:
            self.lines.append(f"    {', '.join(children)}, = {source}")
        for child, part in zip(children, parts, strict=True):
            self.take(part, child)

    def refuse(self, condition: str) -> None:
        """Write a condition under which a tree is of another structure."""
        self.lines.append(f"    if {condition}: return None")

    def put(self, structure: Any, tensors: Iterator[int], numbers: Iterator[int]) -> str:
        """Return an expression for a tree of tensors t and numbers n."""
        if structure is Tensor:
            return f"t[{next(tensors)}]"
        if structure is Number:
            return f"n[{next(numbers)}]"
        kind, keys, parts = structure
        if kind == "value":
            return self.name(parts.of if keys is Identity else parts)
        made = [self.put(part, tensors, numbers) for part in parts]
        inner = ", ".join(made)
        if keys is None:
            fields = [f"{name}={part}" for name, part in zip(_names(kind), made, strict=True)]
            return f"{self.name(kind)}({', '.join(fields)})"
        if issubclass(kind, dict):
            pairs = ", ".join(f"{self.name(k)}: {part}" for k, part in zip(keys, made, strict=True))
            return f"{{{pairs}}}" if kind is dict else f"{self.name(kind)}({{{pairs}}})"
        if kind is list:
            return f"[{inner}]"
        if issubclass(kind, tuple) and not hasattr(kind, "_fields"):
            whole = f"({inner},)" if made else "()"
            return whole if kind is tuple else f"{self.name(kind)}({whole})"
        return f"{self.name(kind)}([{inner}])" if issubclass(kind, list) else f"{self.name(kind)}({inner})"


#: Takes a tree apart: (tree) -> (tensors, numbers), or None where it is of another structure.
Matcher = Callable[[Any], tuple[list[Tensor], list[Any]] | None]


def matcher(structure: Hashable) -> Matcher:
    """Return the function that takes trees of a structure apart."""
    writer = _Writer()
    writer.take(structure, "x")
    result = f"    return [{', '.join(writer.tensors)}], [{', '.join(writer.numbers)}]"
    exec("\n".join(["def match(x):", *writer.lines, result]), writer.names)
    return writer.names["match"]  # type: ignore[no-any-return]


def builder(structure: Hashable) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """Return the function that puts a tree together: (tensors, numbers) -> tree."""
    writer = _Writer()
    text = writer.put(structure, itertools.count(), itertools.count())
    return eval(f"lambda t, n: {text}", writer.names)  # type: ignore[no-any-return]
