"""Capturing: what ops launch while a function runs, recorded, and run again as one program.

The function runs once, eagerly. Each op adds its launches and the memory that they read and wrote; tensors
are known by their memory, so views need no launch. Of that, `Captured` keeps what its results depend on,
gives intermediate results places in one arena, where those that are not in use at once share memory, and
walks all launches in one native call. It reads its givens where they are at each run, and allocates nothing.

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

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import Launch, Operand, Program, Spec
from treepie.kernels.threads import get_num_threads as get_num_threads  # the api layer uses it too

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
class _Call:
    """An op that ran: its launches over buffers that it numbers, and which those are in the recording."""

    op: Row
    meta: dict[str, Any]
    launches: tuple[Launch, ...]
    places: list[_Place]  # inputs, outputs, scratch
    inputs: list[tuple[_Place, Spec]]
    made: tuple[int, ...]  # buffers that it writes: outputs and scratch


@dataclass(frozen=True)
class _Place:
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
        self.calls: list[_Call] = []
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

    def place(self, t: Tensor) -> _Place:
        """Return where a tensor lies; memory that is not known is a constant's."""
        found = self._find(t)
        return found if found is not None else _Place(self._new(t))

    def _find(self, t: Tensor) -> _Place | None:
        if not t.array.nbytes:
            return None
        k = bisect_right(self._starts, (t.address, len(self.sizes))) - 1
        if k >= 0:
            start, number = self._starts[k]
            if t.address + t.array.nbytes <= start + self.sizes[number]:
                return _Place(number, t.address - start)
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
        places = [*read, *map(_Place, made)]
        specs = [(p, Spec(t.shape, t.dtype)) for p, t in zip(read, inputs, strict=True)]
        self.calls.append(_Call(op, meta, launches, places, specs, tuple(made)))

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


class Captured:
    """A recording as one program.

    `results` are tensors that were computed; after `run` their values are in `tensors`, until the next run.
    """

    def __init__(
        self, recorder: Recorder, results: Sequence[Tensor], placed: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Plan the program. placed: (result, tensor): a result that is written where the tensor lies."""
        from .tensor import Tensor

        targets = _targets(recorder, placed)
        places = [recorder.place(t) for t in results]
        calls = _needed(recorder.calls, {p.buffer for p in places} | set(targets))
        layout, size = _layout(calls, {p.buffer for p in places}, set(targets), recorder.sizes)
        self._arena = memory.aligned((max(size, config.ALIGNED_LEAST),), np.dtype("u1"))
        arena = len(recorder.sizes)
        where = {b: _Place(arena, offset) for b, offset in layout.items()} | targets

        def moved_to(p: _Place) -> _Place:
            base = where.get(p.buffer)
            return p if base is None else _Place(base.buffer, base.offset + p.offset)

        launches, self._calls = [], []
        for call in calls:
            for item in call.launches:
                slots = []
                for word, o in item.slots:
                    p = moved_to(call.places[o.buffer])
                    slots.append((word, Operand(p.buffer, o.spec, p.offset + o.offset)))
                launches.append(Launch(item.entry, item.units, item.work_ns, item.words, tuple(slots)))
                self._calls.append((call, [(moved_to(p), spec) for p, spec in call.inputs]))
        # Of the memory that was recorded, constants and givens alone are held on to.
        outside = {o.buffer for item in launches for _, o in item.slots} | {p.buffer for p in where.values()}
        self._held = [t if b in outside else None for b, t in enumerate(recorder.held)]
        self._addresses = [0 if t is None else t.address for t in recorder.held]
        self._addresses.append(self._arena.__array_interface__["data"][0])
        self._program = Program(launches).bound(self._addresses)
        self.tensors = [
            Tensor(self._array(moved_to(p), Spec(t.shape, t.dtype)))
            for p, t in zip(places, results, strict=True)
        ]
        #: Bytes of the arena; what its buffers would take without sharing; and how many launches there are.
        self.bytes, self.launches = size, len(launches)
        self.unshared = sum(recorder.sizes[b] for b in layout)

    def _array(self, p: _Place, spec: Spec) -> Any:
        """Return the elements at a place."""
        if p.buffer == len(self._held):
            owner: Any = self._arena
        else:
            held = self._held[p.buffer]
            assert held is not None
            owner = held.array.reshape(-1).view("u1")
        return owner[p.offset : p.offset + spec.nbytes].view(spec.dtype).reshape(spec.shape)

    def run(self, givens: Sequence[Tensor]) -> None:
        """Run on givens of the recorded shapes and dtypes; raises what the op would whose kernel fails."""
        for k, t in enumerate(givens):
            address = t.address
            if self._addresses[k] != address:
                self._addresses[k] = address
                self._held[k] = t
                self._program.rebind(k, address)
        failed = self._program.run()
        if failed >= 0:
            from .tensor import Tensor

            call, inputs = self._calls[failed]
            tensors = [Tensor(self._array(p, spec)) for p, spec in inputs]
            failure = call.op.failure
            raise failure(*tensors, **call.meta) if failure else RuntimeError(f"{call.op.name} failed")


def _targets(recorder: Recorder, placed: Sequence[tuple[Tensor, Tensor]]) -> dict[int, _Place]:
    """Return the places of the results' buffers; a result that has no buffer to itself gets a copy."""
    from .ops.shape import copied

    made = {b for call in recorder.calls for b in call.made}
    targets: dict[int, _Place] = {}
    for result, target in placed:
        if not target.array.nbytes:
            continue
        at, to = recorder.place(result), recorder.place(target)
        whole = not at.offset and recorder.sizes[at.buffer] == target.array.nbytes
        if not whole or at.buffer not in made or at.buffer in targets:
            before, state.recorder = state.recorder, recorder
            try:
                at = recorder.place(copied(result))
            finally:
                state.recorder = before
        targets[at.buffer] = to
    return targets


def _needed(calls: Sequence[_Call], wanted: set[int]) -> list[_Call]:
    """Return the calls that the wanted buffers depend on."""
    kept, wanted = [], set(wanted)
    for call in reversed(calls):
        if not wanted.isdisjoint(call.made):
            wanted.update(p.buffer for p in call.places)
            kept.append(call)
    return kept[::-1]


def _layout(
    calls: Sequence[_Call], last: set[int], elsewhere: set[int], sizes: Sequence[int]
) -> tuple[dict[int, int], int]:
    """Give each buffer that calls make an offset in the arena; return them, and the arena's size.

    First fit in the order of making: buffers overlap only where one is dead before the other is made.
    """
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for k, call in enumerate(calls):
        for b in call.made:
            begins[b] = k
        for p in call.places:
            ends[p.buffer] = k
    offsets: dict[int, int] = {}
    live: list[int] = []
    total = 0
    for b, begin in sorted(begins.items(), key=lambda item: item[1]):
        if b in elsewhere:
            continue
        if b in last:
            ends[b] = len(calls)
        live = [o for o in live if ends[o] >= begin]
        at = 0
        for o in sorted(live, key=offsets.__getitem__):
            if offsets[o] - at >= sizes[b]:
                break
            at = max(at, -(-(offsets[o] + sizes[o]) // config.LINE) * config.LINE)
        offsets[b] = at
        live.append(b)
        total = max(total, at + sizes[b])
    return offsets, total
