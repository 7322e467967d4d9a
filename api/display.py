"""How objects are shown: calls of constructors, values, trees by their shapes, and HTML tables for notebooks.

A repr reads no elements of tensors, except that of a tensor itself, and never shows an address.
"""

from __future__ import annotations

import functools
import html
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.trace.number import Number

#: Characters of a repr, of one value in it, and of a tree that is shown leaf by leaf.
_LONGEST, _LONGEST_VALUE, _LONGEST_TREE = 200, 160, 120

#: Elements of a list or dict that are shown.
_MOST_ELEMENTS = 8

#: Rows of an HTML table.
_MOST_ROWS = 50

#: Types whose equal values are the same argument.
_PLAIN = (bool, int, float, str, tuple, type(None))


def call_text(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    unnamed: float = math.inf,
    name: str | None = None,
) -> str:
    """Return a call as its source text, such as `cosine_decay(0.1, 100, alpha=0.2)`.

    Arguments that equal their defaults are left out. unnamed: up to how many required arguments have no
    names.  name: of the function, where it has another one.
    """
    parameters = inspect.signature(function).parameters
    bound = inspect.signature(function).bind(*args, **kwargs)
    shown = []
    for argument, value in bound.arguments.items():
        p = parameters[argument]
        if p.kind is p.VAR_POSITIONAL:
            shown += [value_text(v) for v in value]
        elif p.kind is p.VAR_KEYWORD:
            shown += [f"{k}={value_text(v)}" for k, v in value.items()]
        elif p.default is p.empty and len(shown) < unnamed and p.kind is not p.KEYWORD_ONLY:
            shown.append(value_text(value))
        elif not _is_default(value, p.default):
            shown.append(f"{argument}={value_text(value)}")
    return cut(f"{name or function.__name__}({', '.join(shown)})")


class ShownAsCall:
    """An object whose repr is the call that it is pickled as, that of its constructor."""

    def __repr__(self) -> str:
        """Show the call."""
        reduced: Any = self.__reduce__()
        return call_text(reduced[0], reduced[1], {})


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (
        isinstance(value, _PLAIN) and isinstance(default, _PLAIN) and bool(value == default)
    )


def cut(text: str, longest: int = _LONGEST) -> str:
    """Return a text on one line, with `...` in place of what is too long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def value_text(x: Any) -> str:
    """Return a short repr of any object."""
    return cut(_value(x), _LONGEST_VALUE)


def _value(x: Any) -> str:
    if isinstance(x, np.generic):
        return repr(x.item())
    if isinstance(x, Tensor | np.ndarray):
        return f"{x.dtype.name} {x.shape}"
    if isinstance(x, np.dtype):
        return x.name
    if hasattr(x, "iloc") or hasattr(x, "get_columns"):  # tables, whose repr shows their cells
        return f"{type(x).__name__} {x.shape}"
    if isinstance(x, Number):  # its value is not known while a function is traced
        return "traced"
    if type(x) in (list, tuple):
        parts = _some(x, value_text)
        end = "," if type(x) is tuple and len(x) == 1 else ""
        return f"[{parts}]" if type(x) is list else f"({parts}{end})"
    if type(x) is dict:
        return f"{{{_some(list(x.items()), lambda pair: f'{pair[0]!r}: {value_text(pair[1])}')}}}"
    if isinstance(x, functools.partial) and type(x).__repr__ is functools.partial.__repr__:
        return f"partial({value_text(x.func)})"
    shown = repr(x)
    if " at 0x" not in shown:
        return shown
    return str(getattr(x, "__qualname__", type(x).__name__)).rsplit("<locals>.", 1)[-1]


def _some(elements: Sequence[Any], text: Callable[[Any], str]) -> str:
    """Return the texts of elements, of many the first and the last."""
    if len(elements) <= _MOST_ELEMENTS:
        return ", ".join(map(text, elements))
    return ", ".join([*map(text, elements[: _MOST_ELEMENTS - 2]), "...", text(elements[-1])])


def tree_text(tree: Any) -> str:
    """Return a tree with the shape of each leaf, a large one as its numbers of leaves and of elements."""
    text = _structure(tree)
    if len(text) <= _LONGEST_TREE:
        return text
    leaves = tree_leaves(tree)
    return f"<{counted(len(leaves), 'tensor')} of {sum(size_of(x) for _, x in leaves):,} elements>"


def _structure(tree: Any) -> str:
    if type(tree) is dict:
        return "{" + ", ".join([f"{k!r}: {_structure(v)}" for k, v in tree.items()]) + "}"
    if type(tree) is list:
        return "[" + ", ".join([_structure(v) for v in tree]) + "]"
    shape = getattr(tree, "shape", None)
    return value_text(tree) if shape is None else str(tuple(shape))


def tree_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return (path, leaf) of a tree; of what is no tree, itself."""
    try:
        return list(ptree.flatten_with_paths(tree))
    except (TypeError, ValueError):
        return [("", tree)]


def size_of(x: Any) -> int:
    """Return the number of elements of a tensor, an array or a number."""
    return math.prod(getattr(x, "shape", ()))


def count_text(tree: Any) -> str:
    """Return the number of elements of a tree's leaves, with separators of thousands."""
    return f"{sum(size_of(leaf) for _, leaf in tree_leaves(tree)):,}"


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural (by default with an s) unless it is 1."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {plural or f'{noun}s'}"


def number_text(x: Any) -> str:
    """Return a score or a loss in four significant digits; others as `value_text`."""
    if isinstance(x, bool) or not isinstance(x, float | np.floating):
        return value_text(x)
    return f"{x:.4g}"


def html_table(header: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Return an HTML table, all texts escaped.

    header: one text for each column, or none of them.  numbers: the columns that are aligned to the right.
    """
    return "\n".join(["<table>", *_html_rows(header, rows, numbers), "</table>"])


def html_tree(tree: Any) -> str:
    """Return an HTML table of a tree's leaves: path, shape, dtype, number of elements; of many, the first."""
    leaves = tree_leaves(tree)
    rows: list[tuple[Any, ...]] = []
    for path, x in leaves[:_MOST_ROWS]:
        rows.append((path, getattr(x, "shape", ()), value_text(getattr(x, "dtype", "")), f"{size_of(x):,}"))
    if len(leaves) > _MOST_ROWS:
        rows.append((f"and {len(leaves) - _MOST_ROWS:,} more", "", "", ""))
    return html_table(["path", "shape", "dtype", "elements"], rows, numbers=[3])


def _html_rows(header: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int]) -> Iterator[str]:
    cells = [("th", header)] if header else []
    for tag, row in [*cells, *[("td", row) for row in rows]]:
        parts = []
        for k, text in enumerate(row):
            style = f"text-align: {'right' if k in numbers else 'left'}; white-space: pre"
            parts.append(f'<{tag} style="{style}">{html.escape(str(text))}</{tag}>')
        yield f"<tr>{''.join(parts)}</tr>"
