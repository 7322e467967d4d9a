"""Two traces of a function that says it is pure, held against each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from .entry import Entry, Symbol
from .trace import Trace


class Transcript:
    """What a trace wrote down: ops, what they take, lines, and the values of constants."""

    def __init__(self, trace: Trace, inputs: set[int]) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.constants: list[dict[int, np.ndarray]] = []
        self.lines: list[str] = []
        for entry in trace.entries:
            if not isinstance(entry, Entry):
                continue
            self.rows.append(
                (entry.op.name, entry.inputs, [(k, repr(v)) for k, v in entry.attributes.items()])
            )
            self.lines.append(entry.line or "?")
            held = {}
            for position, n in enumerate(entry.inputs):
                value = trace.values[n]
                if n not in inputs and not isinstance(value, Symbol):
                    held[position] = value.array
            self.constants.append(held)

    def compare(self, first: Transcript, function: str) -> None:
        """Raise ValueError where this trace differs from the first one."""
        pairs = zip(self.rows, first.rows, self.constants, first.constants, self.lines, strict=False)
        for now, before, values, old_values, line in pairs:
            if now != before:
                what = f"{now[0]}{_meta(now)} is called where {before[0]}{_meta(before)} was"
                raise _impure(function, line, what)
            for position, value in values.items():
                old = old_values.get(position)
                same = old is not None and old.shape == value.shape and old.tobytes() == value.tobytes()
                if not same:
                    what = f"operand {position} of {now[0]} was {_shown(old)} and is {_shown(value)}"
                    raise _impure(function, line, what)
        if len(self.rows) != len(first.rows):
            longer = max((self, first), key=lambda w: len(w.rows))
            at = min(len(self.rows), len(first.rows))
            what = (
                f"{len(self.rows)} ops are called where {len(first.rows)} were, from {longer.rows[at][0]} on"
            )
            raise _impure(function, longer.lines[at], what)


def _meta(row: tuple[Any, ...]) -> str:
    return f"({', '.join(f'{k}={v}' for k, v in row[2])})" if row[2] else ""


def _shown(value: np.ndarray | None) -> str:
    if value is None:
        return "another"
    return str(value.item()) if value.size == 1 else np.array2string(value, threshold=6)


def _impure(function: str, line: str, what: str) -> ValueError:
    return ValueError(
        f"{function} is not pure: in {line} {what}. Pass what changes as an argument, or take the function "
        "out of tp.jit or tp.pure"
    )
