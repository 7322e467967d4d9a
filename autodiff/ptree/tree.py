"""Parameter trees: nested dicts, lists, tuples and registered dataclasses of tensors.

A path names a leaf: "layers.0.weight". Dict keys are non-empty strings without `.`, `[` or `]`, and are
visited in insertion order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from ..tensor import Tensor

Tree = Any
T = TypeVar("T")

_dataclasses: set[type] = set()
_checked: set[str] = set()  # valid keys


def register_dataclass(cls: type[T]) -> type[T]:
    """Make a dataclass a node of trees, whose fields are the children; usable as a decorator.

    cls: the dataclass, which is returned.

    Raises TypeError for another class.

    >>> import treepie as tp
    >>> from dataclasses import dataclass
    >>> @tp.ptree.register_dataclass
    ... @dataclass
    ... class Pair:
    ...     a: float
    ...     b: float
    >>> tp.ptree.map(lambda x: 2 * x, Pair(1.0, 2.0)).b
    4.0
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"ptree.register_dataclass: {cls.__name__} is not a dataclass")
    _dataclasses.add(cls)
    return cls


def is_registered(node: object) -> bool:
    """Whether an object is of a registered dataclass."""
    return type(node) in _dataclasses


def _children(tree: Tree, path: str) -> list[tuple[str, Tree]] | None:
    """Return the named children of a node, None for a leaf."""
    if isinstance(tree, dict):
        for key in tree:
            if key in _checked:
                continue
            if not isinstance(key, str) or not key or any(c in key for c in ".[]"):
                raise ValueError(
                    f"ptree: a key at {path or 'the root'} is {key!r}, expected a non-empty string "
                    "without '.', '[' or ']'"
                )
            if len(_checked) < 10_000:
                _checked.add(key)
        return list(tree.items())
    if isinstance(tree, list | tuple):
        return [(str(k), child) for k, child in enumerate(tree)]
    if is_registered(tree):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree)]
    return None


def _rebuilt(tree: Tree, children: list[Tree]) -> Tree:
    if isinstance(tree, dict):
        return dict(zip(tree, children, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*children)
    if isinstance(tree, list | tuple):
        return type(tree)(children)
    names = [f.name for f in dataclasses.fields(tree)]
    return type(tree)(**dict(zip(names, children, strict=True)))


def _leaf(tree: Tree, path: str) -> Tree:
    if not isinstance(tree, Tensor | np.ndarray | np.generic | float | int | bool):
        hint = getattr(type(tree), "_tensor_hint", "register dataclasses with ptree.register_dataclass")
        raise TypeError(
            f"ptree: the leaf at {path or 'the root'} is a {type(tree).__name__}, expected a tensor ({hint})"
        )
    return tree


def _walk(tree: Tree, path: str) -> Iterator[tuple[str, Tree]]:
    children = _children(tree, path)
    if children is None:
        yield path, _leaf(tree, path)
        return
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else name)


def flatten_with_paths(tree: Tree) -> list[tuple[str, Tensor]]:
    """Return the leaves in order, each with its path.

    Raises TypeError for a leaf that is no tensor or number, ValueError for a key that can not be in a path.

    >>> import treepie as tp
    >>> tp.ptree.flatten_with_paths({"layers": [{"weight": 1.0}]})
    [('layers.0.weight', 1.0)]
    """
    return list(_walk(tree, ""))


def leaves(tree: Tree) -> list[Tensor]:
    """Return the leaves in order.

    Raises TypeError for a leaf that is no tensor or number.

    >>> import treepie as tp
    >>> tp.ptree.leaves({"a": 1.0, "b": [2.0, 3.0]})
    [1.0, 2.0, 3.0]
    """
    result: list[Tensor] = []
    map(result.append, tree)
    return result


def flatten(tree: Tree) -> tuple[list[Tensor], Callable[[list[Any]], Tree]]:
    """Return the leaves, and a function that builds a tree of the same structure from other leaves.

    Raises TypeError for a leaf that is no tensor or number; the function raises ValueError for another number
    of leaves.

    >>> import treepie as tp
    >>> leaves, rebuild = tp.ptree.flatten({"a": 1.0, "b": [2.0, 3.0]})
    >>> rebuild([x * 10 for x in leaves])
    {'a': 10.0, 'b': [20.0, 30.0]}
    """
    originals = leaves(tree)

    def rebuild(values: list[Any]) -> Tree:
        if len(values) != len(originals):
            raise ValueError(f"ptree.flatten: {len(values)} leaves given, expected {len(originals)}")
        remaining = iter(values)
        return map(lambda _: next(remaining), tree)

    return originals, rebuild


def map(fn: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Return a tree of fn applied to the leaves of one tree, or of several of the same structure.

    fn: takes a leaf of each tree, returns a leaf of the result.

    Raises ValueError where the structures differ, naming the path.

    >>> import treepie as tp
    >>> tp.ptree.map(lambda x, y: x + y, {"a": 1.0}, {"a": 2.0})
    {'a': 3.0}
    """
    return _map(fn, None, tree, others)


#: Types of leaves that need no further check.
_LEAVES = {Tensor, int, float}

#: Nested pairs (parent, name) from the root on, joined to a string only for an error.
_Path = Any


def _map(fn: Callable[..., Any], path: _Path, tree: Tree, others: tuple[Tree, ...]) -> Tree:
    kind = type(tree)
    if kind in _LEAVES:
        if not others:
            return fn(tree)
        for other in others:
            if type(other) not in _LEAVES and _children(other, "") is not None:
                raise ValueError(f"ptree.map: at {_at(path)} one tree has a leaf, another a node")
        return fn(tree, *[o if type(o) in _LEAVES else _leaf(o, _at(path)) for o in others])
    if kind is dict and tree.keys() <= _checked:
        for other in others:
            if type(other) is not dict or other.keys() != tree.keys():
                raise _differing(path, tree, other)
        if not others:
            return {k: _map(fn, (path, k), v, ()) for k, v in tree.items()}
        return {k: _map(fn, (path, k), v, tuple([o[k] for o in others])) for k, v in tree.items()}
    if kind is list and not others:
        return [_map(fn, (path, str(k)), v, ()) for k, v in enumerate(tree)]
    children = _children(tree, _at(path, root=""))
    if children is None:
        for other in others:
            if _children(other, "") is not None:
                raise ValueError(f"ptree.map: at {_at(path)} one tree has a leaf, another a node")
        return fn(_leaf(tree, _at(path)), *(_leaf(o, _at(path)) for o in others))
    rows = []
    for other in others:
        theirs = _children(other, _at(path, root=""))
        names = None if theirs is None else {k for k, _ in theirs}
        if type(other) is not kind or names != {k for k, _ in children}:
            raise _differing(path, tree, other)
        rows.append(dict(theirs or ()))
    results = [_map(fn, (path, name), child, tuple([r[name] for r in rows])) for name, child in children]
    return _rebuilt(tree, results)


def _at(path: _Path, root: str = "the root") -> str:
    names: list[str] = []
    while path is not None:
        path, name = path
        names.append(name)
    return ".".join(reversed(names)) or root


def _differing(path: _Path, tree: Tree, other: Tree) -> ValueError:
    def shown(node: Tree) -> str:
        children = _children(node, _at(path, root=""))
        return type(node).__name__ + ("" if children is None else f" of {[k for k, _ in children]}")

    return ValueError(f"ptree.map: at {_at(path)} the trees differ: {shown(tree)}, and {shown(other)}")


def fold(fn: Callable[[T, Tensor], T], init: T, tree: Tree) -> T:
    """Combine the leaves in order: fn(fn(init, first), second) and so on.

    fn: takes the result so far and a leaf.  init: the first result so far.

    >>> import treepie as tp
    >>> tp.ptree.fold(lambda total, x: total + x, 0.0, {"a": 1.0, "b": [2.0, 3.0]})
    6.0
    """
    out = init
    for x in leaves(tree):
        out = fn(out, x)
    return out


def zeros_like(tree: Tree) -> Tree:
    """Return a tree of zeros with the shapes and dtypes of another.

    >>> import treepie as tp
    >>> tp.ptree.zeros_like({"a": tp.tensor([1.0, 2.0])})["a"].tolist()
    [0.0, 0.0]
    """
    return map(lambda x: Tensor(np.zeros(np.shape(x), _dtype(x)), None), tree)


def _dtype(leaf: Any) -> np.dtype:
    return leaf.dtype if isinstance(leaf, Tensor) else np.asarray(leaf).dtype


def count_parameters(tree: Tree) -> int:
    """Return the number of elements of all leaves together.

    >>> import treepie as tp
    >>> tp.ptree.count_parameters({"w": tp.zeros((3, 4)), "b": tp.zeros(4)})
    16
    """
    return sum(int(x.size if isinstance(x, Tensor) else np.size(x)) for x in leaves(tree))
