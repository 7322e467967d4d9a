"""A table of a model's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treepie.autodiff import float32, ptree, rng, zeros
from treepie.autodiff.arguments import shape_of

from .core import Layer, summary_rows

#: The shape of an input, or of several.
InputShape = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def summary(model: Layer, input_shape: InputShape, input_dtype: Any = float32) -> str:
    """Return a table of a model's layers, their output shapes and their numbers of parameters.

    input_shape: shape of a batch, such as (1, 784); for several inputs a tuple or dict of shapes.
    input_dtype: int32 for token ids; for several inputs, one for all or likewise a tuple or dict.

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
    vars = model.init(rng.key(0))
    rows: list[tuple[str, Any, int]] = []
    token = summary_rows.set(rows)
    try:
        model.apply(vars, _zeros(input_shape, input_dtype))
    finally:
        summary_rows.reset(token)
    table = [("layer", "output shape", "parameters")]
    table += [(name, _shape(y), f"{n:,}") for name, y, n in rows]
    table += [("total", "", f"{ptree.count_parameters(vars.params):,}")]
    a, b, c = (max(len(row[k]) for row in table) for k in range(3))
    lines = [f"{x:<{a}}  {y:<{b}}  {z:>{c}}" for x, y, z in table]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _zeros(shape: Any, dtype: Any) -> Any:
    """Return zeros of a shape, or a tuple or dict of them."""
    if isinstance(shape, dict):
        return {k: _zeros(s, dtype[k] if isinstance(dtype, dict) else dtype) for k, s in shape.items()}
    if isinstance(shape, tuple | list) and any(isinstance(s, tuple | list | dict) for s in shape):
        each = dtype if isinstance(dtype, tuple | list) else (dtype,) * len(shape)
        return tuple(_zeros(s, d) for s, d in zip(shape, each, strict=True))
    return zeros(shape_of("layer.summary", shape), dtype)


def _shape(y: Any) -> str:
    return " ".join(str(t.shape) for t in ptree.leaves(y))
