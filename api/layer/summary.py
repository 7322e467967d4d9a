"""Tables of a model's layers: `summary`, and the tree that `print(model)` shows.

Both evaluate the model abstractly: parameters and outputs have shapes, but take no memory and no time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from treepie.autodiff import Tensor, float32, ptree, rng, zeros
from treepie.autodiff.arguments import described, shape_of
from treepie.autodiff.program.shapes import ReadsValues, abstractly
from treepie.autodiff.tensor import check_dtype

from ..display import count_text, counted, html_table, size_of, tree_leaves
from .core import Layer, LayerNode, Tree, Vars, init_node, summary_rows

#: The shape of an input, or those of several.
Shapes = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
Row = tuple[str, ...]

#: Equal layers one after another from which on they share one line.
_LEAST_EQUAL = 3


class Table(str):
    """A table as text, which notebooks show as HTML."""

    __slots__ = ("_html",)
    _html: str

    @staticmethod
    def of(rows: Sequence[Row], total: Row | None = None) -> Table:
        """Return the table of rows, the first of which is the header; numbers are in the last column."""
        every = [*rows, total] if total else list(rows)
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        lines = []
        for row in every:
            cells = [f"{text:<{width}}" for text, width in zip(row[:-1], widths[:-1], strict=True)]
            lines.append("  ".join([*cells, f"{row[-1]:>{widths[-1]}}"]))
        rule = "-" * len(lines[0])
        lines.insert(1, rule)
        if total:
            lines.insert(-1, rule)
        table = Table("\n".join(lines))
        table._html = html_table(every[0], every[1:], numbers=[len(widths) - 1])
        return table

    def __repr__(self) -> str:
        """Return the text itself, as an interactive session shows it."""
        return str(self)

    def _repr_html_(self) -> str:
        return self._html


def summary(model: Layer, input_shape: Shapes, input_dtype: Any = float32) -> str:
    """Return a table of a model's layers, their output shapes and their numbers of parameters: a str.

    input_shape: shape of a batch, such as (1, 784); for a model of several inputs a tuple or dict of shapes.
    input_dtype: int32 for token ids; one for all inputs, or a tuple or dict of them.

    The layers of `model` are named; one that is called again has its parameters in the first row.

    >>> import treepie as tp
    >>> print(tp.layer.summary(tp.layer.sequential([tp.layer.linear(4, 8), tp.layer.relu()]), (1, 4)))
    layer         output shape  parameters
    --------------------------------------
    linear(4, 8)  (1, 8)                40
    relu          (1, 8)                 0
    --------------------------------------
    total                               40
    """

    if not isinstance(model, Layer):
        raise TypeError(f"layer.summary: model is {described(model)}, expected a Layer")

    def collect(create: Callable[[Any, Any], Tensor]) -> tuple[Tree, list[Row]]:
        vars = model.init(rng.key(0))
        rows: list[tuple[str, Any, int]] = []
        token = summary_rows.set(rows)
        try:
            model.apply(vars, _inputs(input_shape, input_dtype, create))
        finally:
            summary_rows.reset(token)
        return vars.params, [(name, _shape(y), f"{n:,}") for name, y, n in rows]

    try:
        params, rows = abstractly(collect)
    except ReadsValues:
        params, rows = collect(zeros)
    return Table.of([("layer", "output shape", "parameters"), *rows], ("total", "", count_text(params)))


def _inputs(shape: Any, dtype: Any, create: Callable[[Any, Any], Tensor]) -> Any:
    """Return an input of a shape, or a tuple or dict of them."""
    if isinstance(shape, Mapping):
        types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(shape, dtype)
        return {name: _inputs(s, types[name], create) for name, s in shape.items()}
    if isinstance(shape, Sequence) and shape and all(isinstance(s, Sequence) for s in shape):
        each = dtype if isinstance(dtype, Sequence) and not isinstance(dtype, str) else [dtype] * len(shape)
        return tuple(_inputs(s, d, create) for s, d in zip(shape, each, strict=True))
    if isinstance(shape, Sequence) and None in shape:
        raise TypeError(f"layer.summary: input_shape is {shape}, expected sizes: 1 for an axis of any size")
    return create(shape_of("layer.summary", shape), check_dtype("layer.summary", dtype))


def _shape(y: Any) -> str:
    return " ".join(str(t.shape) for t in ptree.leaves(y))


# ---- the tree of layers
class _Line(NamedTuple):
    """A layer in a tree: the label before its name, its number of parameters, the lines of its layers.

    times: how many equal layers follow one another.
    """

    label: str
    name: str
    parameters: int
    times: int
    inner: tuple[_Line, ...]


def tree(model: Layer) -> Table:
    """Return the table of a model's layers, nested as they are, with their numbers of parameters.

    The layers of a container are those whose `init` its own calls, and are named by the path to their
    parameters. Of a model whose `init` raises, the name only.
    """
    root = LayerNode()

    def collect(_: Any) -> Vars:
        root.children.clear()
        token = init_node.set(root)
        try:
            return model.init(rng.key(0))
        finally:
            init_node.reset(token)

    try:
        try:
            abstractly(collect)
        except ReadsValues:
            collect(None)
    except Exception:  # a user's own, whatever it is: printing a model explains no error
        return _lone(repr(model))
    (top,) = _lines(root)
    if not top.inner:
        return _lone(f"{top.name}: {counted(top.parameters, 'parameter')}")
    return Table.of([("layer", "parameters"), *_rows([top], 0)])


def _lone(text: str) -> Table:
    table = Table(text)
    table._html = html_table([], [[text]])
    return table


def _rows(lines: Sequence[_Line], depth: int) -> Iterator[Row]:
    for line in lines:
        repeated = f"{line.times} x " if line.times > 1 else ""
        yield f"{'  ' * depth}{line.label}{repeated}{line.name}", f"{repeated}{line.parameters:,}"
        yield from _rows(line.inner, depth + 1)


def _lines(node: LayerNode) -> tuple[_Line, ...]:
    """Return the lines of a container's layers, equal ones after one another as one."""
    lines: list[_Line] = []
    labelled = [(path, _line(child)) for path, child in _children(node)]
    for line, group in itertools.groupby(labelled, key=lambda pair: pair[1]):
        paths = [path for path, _ in group]
        if len(paths) < _LEAST_EQUAL:
            lines += [line._replace(label=f"{path}: " if path else "") for path in paths]
        else:
            ends = f"{paths[0]} to {paths[-1]}: " if paths[0] else ""
            lines.append(line._replace(label=ends, times=len(paths)))
    return tuple(lines)


def _line(node: LayerNode) -> _Line:
    assert node.layer is not None
    count = sum(size_of(leaf) for _, leaf in tree_leaves(node.params))
    return _Line("", node.layer.name, count, 1, _lines(node))


def _children(node: LayerNode) -> Iterator[tuple[str, LayerNode]]:
    """Yield a container's layers, each with the path to its parameters in the container's.

    One whose parameters are not a part of the container's is replaced by its own layers.
    """
    for child in node.children:
        path = None if node.layer is None else _path(node.params, child.params)
        if path is None and node.layer is not None and child.children:
            inner = LayerNode(node.layer, node.params, child.children)
            yield from _children(inner)
        else:
            yield path or "", child


def _path(tree: Tree, part: Tree) -> str | None:
    """Return the path to a part of a tree, the object itself; None where it is not there."""
    if tree is part:
        return ""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, child in pairs:
        path = _path(child, part)
        if path is not None:
            return f"{name}.{path}".rstrip(".")
    return None
