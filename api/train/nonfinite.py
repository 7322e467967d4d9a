"""Where the values of a batch are NaN or infinite: looked for after a step whose loss is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.autodiff import ptree
from treepie.autodiff.arguments import as_tensor

from ..data.pipeline import Data


def describe_nonfinite(examples: Sequence[tuple[Any, Any, tuple[Any, ...]]], data: Data | None) -> str | None:
    """Return where the first value that is not finite is among a step's examples, or None.

    examples: (input, loss, (target, sample weight)) of each element.
    data: the pipeline, whose last elements they are.
    """
    columns = data.columns if data is not None else ()
    for k, (x, _, target) in enumerate(examples):
        parts = zip(("x", "target", "sample_weight"), (x, *target), strict=False)
        for number, (name, part) in enumerate(parts):
            names = columns[number] if number < len(columns) else None
            where = _first(name, part, names)
            if where is None:
                continue
            if data is None:
                return where
            batch = data.position - len(examples) + k + 1
            return f"{where} (batch {batch}{'' if data.shards is None else ', of the rows of this rank'})"
    return None


def _first(name: str, part: Any, columns: Sequence[str] | None) -> str | None:
    """Return where the first value of a part of an element that is not finite is, or None."""
    try:
        leaves = ptree.flatten_with_paths(part)
        arrays = [(path, as_tensor(leaf).numpy()) for path, leaf in leaves]
    except (TypeError, ValueError):  # no tree of numbers, which only the user's model or loss understands
        return None
    for path, array in arrays:
        if array.dtype.kind != "f":
            continue
        wrong = np.argwhere(~np.isfinite(array))
        if not len(wrong):
            continue
        value = array[tuple(wrong[0])]
        kind = "NaN" if np.isnan(value) else str(value)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        named = f"{name}.{path}" if path else name
        return f"{named} has {kind}{_position(wrong[0].tolist(), columns)}{more}"
    return None


def _position(index: list[int], columns: Sequence[str] | None) -> str:
    """Return an index in words."""
    if not index:
        return ""
    if len(index) == 1:
        return f" at row {index[0]}"
    if len(index) == 2:
        row, column = index
        return f" at row {row}, column {repr(columns[column]) if columns else column}"
    return f" at row {index[0]}, index {tuple(index[1:])}"
