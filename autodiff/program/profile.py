"""Profile of a program: its calls, and how long each takes, on inputs of random numbers."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.kernels import memory, threads
from treepie.kernels.program import LaunchTable, Spec

from ..tensor import address_of
from .program import Program

_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class CallProfile:
    """One call of a program, with its launches.

    name: the op's, or those of a fusion group joined by " + ".  inputs, outputs: shapes and dtypes.
    launches: the number of launches.  threads: the number of threads for the largest one.
    seconds: the time of all launches, or None where the program was not timed.
    """

    name: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    launches: int
    threads: int
    seconds: float | None

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs and the outputs."""
        return sum(spec.nbytes for spec in [*self.inputs, *self.outputs])


def profile_calls(program: Program, runs: int = 0) -> list[CallProfile]:
    """Return the profiles of a program's calls, in order; timed if `runs` is the number of runs to time."""
    times: Sequence[float | None] = launch_seconds(program, runs) if runs else [None] * len(program.launches)
    launches = zip(program.calls, program.launches, times, strict=True)
    profiles = []
    for _, group in itertools.groupby(launches, key=lambda row: id(row[0][0])):
        rows = list(group)
        call = rows[0][0][0]
        seconds = [t for _, _, t in rows if t is not None]
        team = max(threads.team_size(launch.chunks, launch.work_ns, spinning=True) for _, launch, _ in rows)
        inputs = [spec for _, spec in call.inputs]
        total = sum(seconds) if seconds else None
        profiles.append(CallProfile(call.title, inputs, call.outputs, len(rows), team, total))
    return profiles


def launch_seconds(program: Program, runs: int) -> list[float | None]:
    """Return the median time of each launch, in seconds, after one run to warm up.

    None for a host call, which does not run: other ranks would not take part.

    Inputs of floats are small random numbers; integers and bools are 0.
    """
    addresses, arrays = _memory(program)
    tables = [
        LaunchTable([launch] if launch.host is None else [], spinning=True).bound(addresses)
        for launch in program.launches
    ]
    times: list[list[float]] = [[] for _ in tables]
    for _ in range(runs + 1):
        for table, seconds in zip(tables, times, strict=True):
            start = time.perf_counter()
            table.run()
            seconds.append(time.perf_counter() - start)
    arrays.clear()  # their memory is in use up to here
    return [
        statistics.median(seconds[1:]) if launch.host is None else None
        for launch, seconds in zip(program.launches, times, strict=True)
    ]


def _memory(program: Program) -> tuple[list[int], list[Any]]:
    """Return addresses for all buffers, and the arrays there: constants, and new ones for other buffers."""
    rng = np.random.default_rng(0)
    arrays: list[Any] = [None if t is None else t.array for t in program.constants]
    for buffer in {o.buffer for launch in program.launches for _, o in launch.slots}:
        if arrays[buffer] is None:
            arrays[buffer] = memory.aligned((program.sizes[buffer],), _BYTE)
            arrays[buffer][...] = 0
    for _, inputs in program.calls:
        for p, spec in inputs:
            if p.buffer < program.externals and spec.dtype.kind == "f":
                values = np.ndarray(spec.shape, spec.dtype, arrays[p.buffer], p.offset)
                values[...] = rng.uniform(-0.1, 0.1, spec.shape)
    return [0 if a is None else address_of(a) for a in arrays], arrays
