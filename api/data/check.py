"""Checks of the pipelines that functions take, and passes that leave their position as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from treepie.autodiff.arguments import described

from .element import U
from .pipeline import Data


def whole_pass(data: Data[U]) -> Iterator[U]:
    """Iterate over all elements of the current pass, wherever its position is, which does not change."""
    e = data.pass_number
    return (data._element(e, k) for k in range(len(data)))


def check_data(function: str, data: Any) -> Data:
    """Return a pipeline, or raise TypeError."""
    if not isinstance(data, Data):
        hint = (
            " (of batches of your own: tp.Data.of_array(list(batches)))" if hasattr(data, "__next__") else ""
        )
        raise TypeError(
            f"{function}: data is {described(data)}, expected a tp.Data, such as "
            f"tp.Data.prepare((x, y), batch_size=32){hint}"
        )
    return data


def check_has_elements(function: str, data: Any) -> Data:
    """Return a pipeline whose passes have elements, or raise TypeError or ValueError."""
    pipeline = check_data(function, data)
    if not len(pipeline):
        raise ValueError(
            f"{function}: data is empty, expected at least one element (drop_last leaves out a "
            "batch that is not full: choose a smaller batch_size)"
        )
    return pipeline


def check_not_empty(function: str, data: Any) -> Data:
    """Return a pipeline before its end, or raise TypeError or ValueError."""
    pipeline = check_has_elements(function, data)
    if pipeline.position >= len(pipeline):
        raise ValueError(
            f"{function}: data is exhausted after {len(pipeline)} elements, expected some left: "
            "call data.reset()"
        )
    return pipeline
