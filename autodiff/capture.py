"""Capturing: what ops launch while a function runs, recorded, to run again as one program (`captured.py`).

The function runs once, eagerly. Each op adds its launches and the memory that they read and wrote; tensors
are known by their memory, so views need no launch.

What a Python program does with the values of tensors is not seen. So reading one (`item`, `numpy`, `if x >
0`) while recording makes the recording void, and says which.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from treepie.kernels.program import Launch, Spec

if TYPE_CHECKING:
    from .tensor import Tensor


class Row(Protocol):
    """What a call needs of its op: the error to raise where a kernel reported one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def failure(self) -> Any:
        """Its failure, see `table.Op`."""


@dataclass
class Call:
    """An op that ran: its launches over buffers that it numbers, and which those are in the recording."""

    op: Row
    meta: dict[str, Any]
    launches: tuple[Launch, ...]
    places: list[Place]  # inputs, outputs, scratch
    inputs: list[tuple[Place, Spec]]
    outputs: list[Spec]
    made: tuple[int, ...]  # buffers that it writes: outputs and scratch


@dataclass(frozen=True)
class Place:
    """Bytes of a buffer, from an offset on."""

    buffer: int
    offset: int = 0


class _State(threading.local):
    recorder: Recorder | None = None


#: The recorder of this thread; None while nothing is captured.
state = _State()


class Recorder:
    """What ops did while it was active, and why it is void, if it is."""

    def __init__(self, givens: Sequence[Tensor]) -> None:
        """Begin; `givens` are the tensors whose values are others in later runs."""
        self.calls: list[Call] = []
        self.void: str | None = None
        self.sizes: list[int] = []  # bytes of each buffer
        self.held: list[Tensor | None] = []  # the memory of each, so that no other gets its address
        self._starts: list[tuple[int, int]] = []  # (address, buffer), sorted
        self.derived = {self._new(t) for t in givens}  # buffers that depend on givens: all but constants

    def _new(self, t: Tensor) -> int:
        number = len(self.sizes)
        self.sizes.append(t.array.nbytes)
        self.held.append(t)
        if t.array.nbytes:
            insort(self._starts, (t.address, number))
        return number

    def place(self, t: Tensor) -> Place:
        """Return where a tensor lies; memory that is not known is a constant's."""
        found = self._find(t)
        return found if found is not None else Place(self._new(t))

    def _find(self, t: Tensor) -> Place | None:
        if not t.array.nbytes:
            return None
        k = bisect_right(self._starts, (t.address, len(self.sizes))) - 1
        if k >= 0:
            start, number = self._starts[k]
            if t.address + t.array.nbytes <= start + self.sizes[number]:
                return Place(number, t.address - start)
        return None

    def add(
        self,
        op: Row,
        launches: tuple[Launch, ...],
        inputs: Sequence[Tensor],
        meta: dict[str, Any],
        outputs: Sequence[Tensor],
        scratch: Sequence[int],
    ) -> None:
        """Take the call of an op."""
        read = [self.place(t) for t in inputs]
        made = [self._new(t) for t in outputs]
        for size in scratch:
            made.append(len(self.sizes))
            self.sizes.append(size)
            self.held.append(None)
        if self.derived.intersection(p.buffer for p in read):
            self.derived.update(made)
        places = [*read, *map(Place, made)]
        specs = [(p, Spec(t.shape, t.dtype)) for p, t in zip(read, inputs, strict=True)]
        given = [Spec(t.shape, t.dtype) for t in outputs]
        self.calls.append(Call(op, meta, launches, places, specs, given, tuple(made)))

    def read(self, t: Tensor) -> None:
        """Note that Python reads the value of a tensor."""
        found = self._find(t)
        if found is not None and found.buffer in self.derived and self.void is None:
            self.void = f"it reads the values of a tensor of shape {t.shape} in Python"


@contextmanager
def record(givens: Sequence[Tensor]) -> Iterator[Recorder]:
    """Record the ops of a block of code. Recordings do not nest: an inner one belongs to the outer."""
    before, recorder = state.recorder, Recorder(givens)
    state.recorder = recorder
    try:
        yield recorder
    finally:
        state.recorder = before
