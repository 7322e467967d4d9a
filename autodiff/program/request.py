"""The request that a program is planned for: its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..trace.number import Numbers
from .graph import Slice


@dataclass
class Request:
    """The inputs and outputs of a program; values are named by their value numbers in the trace.

    externals: bytes of each memory whose address is passed to a run.
    inputs: value number -> the slice of an external where the input is stored.
    fresh: results that each run stores in new memory.
    scalars: results of one element that Python reads after a run.
    filled: (value, external): results that overwrite an external.
    barrier: the index of the first trace item that waits for all before it, or None: its calls may overwrite
        memory that earlier ones read, and do not run where one of those reports an error.
    peeked: values that can be copied after a launch has reported an error.
    donated: externals whose memory fresh results may reuse.
    numbers: the computation of Python numbers that are inputs.
    user_numbers: values of the Python numbers that the user's code uses as operands.
    """

    externals: Sequence[int]
    inputs: dict[int, Slice]
    fresh: Sequence[int] = ()
    scalars: Sequence[int] = ()
    filled: Sequence[tuple[int, int]] = ()
    barrier: int | None = None
    peeked: Sequence[int] = ()
    donated: Sequence[int] = ()
    numbers: Numbers | None = None
    user_numbers: Sequence[int] = ()
