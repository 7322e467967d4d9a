"""What a program does, call by call, and how long each takes, on numbers of its own."""

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
class Kernels:
    """The launches of one call.

    nbytes: bytes that it reads and writes.  threads: how many its largest launch is dealt to.
    seconds: how long it takes, where it was timed.
    """

    name: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    launches: int
    threads: int
    seconds: float | None

    @property
    def nbytes(self) -> int:
        """Bytes that the inputs and the outputs have."""
        return sum(spec.nbytes for spec in [*self.inputs, *self.outputs])


def described(program: Program, runs: int = 0) -> list[Kernels]:
    """Return the calls of a program in order; with `runs`, timed in so many walks through it."""
    times: Sequence[float | None] = seconds(program, runs) if runs else [None] * len(program.launches)
    rows = zip(program.calls, program.launches, times, strict=True)
    made = []
    for _, group in itertools.groupby(rows, key=lambda row: id(row[0][0])):
        mine = list(group)
        call = mine[0][0][0]
        spent = [t for _, _, t in mine if t is not None]
        team = max(threads.team(launch.chunks, launch.work_ns, spinning=True) for _, launch, _ in mine)
        inputs = [spec for _, spec in call.inputs]
        total = sum(spent) if spent else None
        made.append(Kernels(call.op.name, inputs, call.outputs, len(mine), team, total))
    return made


def seconds(program: Program, runs: int) -> list[float]:
    """Return the median time of each launch, in seconds.

    Floats that the program is given are small random numbers, integers and bools are 0.
    """
    addresses, held = _memory(program)
    singles = [LaunchTable([launch], spinning=True).bound(addresses) for launch in program.launches]
    times: list[list[float]] = [[] for _ in singles]
    for _ in range(runs + 1):  # the first one warms up
        for single, mine in zip(singles, times, strict=True):
            start = time.perf_counter()
            single.run()
            mine.append(time.perf_counter() - start)
    held.clear()  # alive until here
    return [statistics.median(mine[1:]) for mine in times]


def _memory(program: Program) -> tuple[list[int], list[Any]]:
    """Return addresses for all buffers, and what is there: constants, and memory of the profile's own."""
    rng = np.random.default_rng(0)
    held: list[Any] = [None if t is None else t.array for t in program.constants]
    for buffer in {o.buffer for launch in program.launches for _, o in launch.slots}:
        if held[buffer] is None:
            held[buffer] = memory.aligned((program.sizes[buffer],), _BYTE)
            held[buffer][...] = 0
    for _, inputs in program.calls:
        for place, spec in inputs:
            if place.buffer < program.externals and spec.dtype.kind == "f":
                values = np.ndarray(spec.shape, spec.dtype, held[place.buffer], place.offset)
                values[...] = rng.uniform(-0.1, 0.1, spec.shape)
    return [0 if a is None else address_of(a) for a in held], held
