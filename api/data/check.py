"""Checks of the pipelines that functions take, and passes that leave their position as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .element import U
from .pipeline import Data


def whole_pass(data: Data[U]) -> Iterator[U]:
    """Iterate over all elements of the current pass, wherever its position is, which does not change."""
    e = data.pass_number
    return (data._element(e, k) for k in range(len(data)))


def check_data(function: str, data: Any) -> Data:
    """Return a pipeline, or raise TypeError."""
    if not isinstance(data, Data):
        raise TypeError(
            f"{function}: data is a {type(data).__name__}, expected a tp.Data (Data.of_array "
            "makes one of a list)"
        )
    return data


def check_has_elements(function: str, data: Any) -> Data:
    """Return a pipeline whose passes have elements, or raise TypeError or ValueError."""
    pipeline = check_data(function, data)
    if not len(pipeline):
        raise ValueError(
            f"{function}: data is empty, expected at least one element (drop_last leaves out a "
            "batch that is not full)"
        )
    return pipeline


def check_not_empty(function: str, data: Any) -> Data:
    """Return a pipeline before its end, or raise TypeError or ValueError."""
    pipeline = check_has_elements(function, data)
    if pipeline.position >= len(pipeline):
        raise ValueError(
            f"{function}: data is exhausted after {len(pipeline)} elements, expected some left (call reset())"
        )
    return pipeline
