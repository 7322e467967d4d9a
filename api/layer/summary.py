"""A table of a model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treepie.autodiff import float32, ptree, rng, zeros
from treepie.autodiff.arguments import shape_of

from .core import Layer, summary_rows


def summary(model: Layer, input_shape: Sequence[int], input_dtype: Any = float32) -> str:
    """Return a table of a model's layers, their output shapes and their numbers of parameters.

    input_shape: shape of a batch, such as (1, 784).  input_dtype: int32 for token ids.

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
        model.apply(vars, zeros(shape_of("layer.summary", input_shape), input_dtype))
    finally:
        summary_rows.reset(token)
    table = [("layer", "output shape", "parameters")]
    table += [(name, _shape(y), f"{n:,}") for name, y, n in rows]
    table += [("total", "", f"{ptree.count_parameters(vars.params):,}")]
    a, b, c = (max(len(row[k]) for row in table) for k in range(3))
    lines = [f"{x:<{a}}  {y:<{b}}  {z:>{c}}" for x, y, z in table]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _shape(y: Any) -> str:
    return " ".join(str(t.shape) for t in ptree.leaves(y))
