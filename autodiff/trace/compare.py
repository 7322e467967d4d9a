"""Comparison of two traces of a function that is marked as pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from .entry import Entry, Symbol
from .trace import Trace


class Transcript:
    """A record of a trace, to compare others with: its calls of ops, their lines, the values of constants.

    inputs: the value numbers of the function's arguments.
    """

    def __init__(self, trace: Trace, inputs: set[int]) -> None:
        self.calls: list[tuple[Any, ...]] = []  # (op's name, value numbers of operands, attributes)
        self.constants: list[dict[int, np.ndarray]] = []  # of each call: position of an operand -> its value
        self.lines: list[str] = []
        for entry in trace.entries:
            if not isinstance(entry, Entry):
                continue
            self.calls.append(
                (entry.op.name, entry.inputs, [(k, repr(v)) for k, v in entry.attributes.items()])
            )
            self.lines.append(entry.line or "?")
            constants = {}
            for position, n in enumerate(entry.inputs):
                value = trace.values[n]
                if n not in inputs and not isinstance(value, Symbol):
                    constants[position] = value.array
            self.constants.append(constants)

    def compare(self, first: Transcript, function: str) -> None:
        """Raise ValueError at the first difference between this trace and the first one.

        function: the name that the message begins with.
        """
        rows = zip(self.calls, first.calls, self.constants, first.constants, self.lines, strict=False)
        for call, first_call, constants, first_constants, line in rows:
            if call != first_call:
                difference = f"{_signature(call)} is called where {_signature(first_call)} was"
                raise _impure(function, line, difference)
            for position, value in constants.items():
                before = first_constants.get(position)
                if before is None or before.shape != value.shape or before.tobytes() != value.tobytes():
                    difference = f"operand {position} of {call[0]} was {_text(before)} and is {_text(value)}"
                    raise _impure(function, line, difference)
        if len(self.calls) != len(first.calls):
            longer = max((self, first), key=lambda transcript: len(transcript.calls))
            at = min(len(self.calls), len(first.calls))
            difference = (
                f"{len(self.calls)} ops are called where {len(first.calls)} were, "
                f"from {longer.calls[at][0]} on"
            )
            raise _impure(function, longer.lines[at], difference)


def _signature(call: tuple[Any, ...]) -> str:
    """Return the op's name, and the attributes if there are any."""
    name, _, attributes = call
    return f"{name}({', '.join(f'{k}={v}' for k, v in attributes)})" if attributes else str(name)


def _text(value: np.ndarray | None) -> str:
    if value is None:
        return "another"
    return str(value.item()) if value.size == 1 else np.array2string(value, threshold=6)


def _impure(function: str, line: str, difference: str) -> ValueError:
    return ValueError(
        f"{function} is not pure: in {line} {difference}. Pass what changes as an argument, or take the "
        "function out of tp.jit or tp.pure"
    )
