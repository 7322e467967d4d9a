"""Operands of an op, for the tests and benchmarks of its row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]
Attributes = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Operands for the tests and benchmarks of a row: shapes, attributes, and bounds of integer operands.

    integers: argument -> upper bound of its integers (from 0); arguments of a case are drawn from the
    row's domain otherwise.  added: argument -> integers that are added to these.
    """

    shapes: tuple[Shape, ...]
    attributes: Attributes = field(default_factory=dict)
    integers: dict[int, int] = field(default_factory=dict)
    added: dict[int, tuple[int, ...]] = field(default_factory=dict)
