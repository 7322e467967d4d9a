"""What is asked of a program: which values it is given, and which it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..trace.number import Numbers
from .graph import Slice


@dataclass(frozen=True)
class Numeric:
    """A number or numbers that Python writes before a run, or reads after it.

    number: the value in the trace.  compute: what makes them of a number (`source`), or None.
    """

    number: int
    compute: Callable[[Any], Any] | None = None
    source: int = 0


@dataclass
class Request:
    """What a program takes and gives: values by their numbers in the trace.

    externals: bytes of each memory that a run is given, and in `inputs` which values are where.
    fresh: results in memory of their own, each run.  scalars: results of one element that Python reads.
    filled: (value, external): results that fill memory that a run is given.
    barrier: the number of the first item that waits for all before it, since it may write memory that they
        read, and must not run where one of them reports an error.
    peeked: values that can be looked at where a launch reported an error.
    donated: externals whose memory fresh results may take.
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
