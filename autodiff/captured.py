"""A recording as one program.

Of what was recorded, a program keeps what its results depend on, gives intermediate results places in one
arena, where those that are not in use at once share memory, and walks all launches in one native call. It
reads its givens where they are at each run, and allocates nothing but results that are asked for afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import Launch, Operand, Program, Spec
from treepie.kernels.threads import get_num_threads as get_num_threads  # the api layer uses it too

from .capture import Call, Place, Recorder, state
from .fusion import fused
from .ops.shape import copied
from .tensor import Tensor

_BYTE = np.dtype(np.uint8)


class Arena:
    """Memory that programs share which never run at once; it grows to what the largest needs."""

    def __init__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back; the next run takes new."""
        self.memory = memory.aligned((config.ALIGNED_LEAST,), _BYTE)
        self.address = address(self.memory)

    def hold(self, size: int) -> None:
        """Have at least so many bytes."""
        if self.memory.nbytes < size:
            self.memory = memory.aligned((size,), _BYTE)
            self.address = address(self.memory)


@dataclass(frozen=True)
class Outline:
    """Where the results of a recording are: what is left of them once their values are gone.

    fresh: whether each run gives them memory of their own.
    targets: buffers that are written where other tensors lie.
    """

    places: list[Place]
    specs: list[Spec]
    fresh: bool
    targets: dict[int, Place]

    @staticmethod
    def of(
        recorder: Recorder,
        results: Sequence[Tensor],
        placed: Sequence[tuple[Tensor, Tensor]] = (),
        fresh: bool = False,
    ) -> Outline:
        """Note results while they live.

        placed: (result, tensor): further results, which are written where the tensors lie.
        """
        if fresh:
            results = [_made(recorder, t) for t in results]
        targets = _targets(recorder, placed)
        specs = [Spec(t.shape, t.dtype) for t in results]
        return Outline([recorder.place(t) for t in results], specs, fresh, targets)


class Captured:
    """A recording as one program; `run` gives the results anew."""

    def __init__(
        self,
        recorder: Recorder,
        outline: Outline,
        arena: Arena | None = None,
        donated: Sequence[int] = (),
    ) -> None:
        """Plan the program.

        arena: for intermediate results, and for results that are not fresh: these are there until the next
            run of a program of the arena.
        donated: numbers of givens whose memory a fresh result may take.
        """
        places, targets = outline.places, outline.targets
        wanted = {p.buffer for p in places} | set(targets)
        own: dict[int, Place] = {}  # a buffer for the memory of each fresh result
        for buffer in {p.buffer for p in places} if outline.fresh else ():
            own[buffer] = Place(len(recorder.sizes))
            recorder.sizes.append(recorder.sizes[buffer])
            recorder.held.append(None)
        calls = fused(recorder, _needed(recorder.calls, wanted), wanted)
        self._in_place = _in_place(calls, donated, recorder.sizes, own)
        elsewhere = targets | own
        layout, self.bytes = _layout(calls, {p.buffer for p in places}, set(elsewhere), recorder.sizes)
        self._arena, self._arena_buffer = arena or Arena(), len(recorder.sizes)
        where = {b: Place(self._arena_buffer, offset) for b, offset in layout.items()} | elsewhere

        def moved_to(p: Place) -> Place:
            base = where.get(p.buffer)
            return p if base is None else Place(base.buffer, base.offset + p.offset)

        #: The launches in order; of each the call that it is of, and where its inputs are.
        self.launches: list[Launch] = []
        self.calls: list[tuple[Call, list[tuple[Place, Spec]]]] = []
        for call in calls:
            for item in call.launches:
                slots = []
                for word, o in item.slots:
                    p = moved_to(call.places[o.buffer])
                    slots.append((word, Operand(p.buffer, o.spec, p.offset + o.offset)))
                self.launches.append(Launch(item.entry, item.units, item.work_ns, item.words, tuple(slots)))
                self.calls.append((call, [(moved_to(p), spec) for p, spec in call.inputs]))
        # Of the memory that was recorded, constants alone are held on to, and targets.
        outside = {o.buffer for item in self.launches for _, o in item.slots}
        outside |= {moved_to(p).buffer for p in places}
        #: How many of the buffers are givens; the bytes of each, the arena last; what those outside are.
        self.givens, self.sizes = recorder.givens, [*recorder.sizes, self.bytes]
        self.constants = [t if b in outside else None for b, t in enumerate([*recorder.held, None])]
        self.constants[: self.givens] = [None] * self.givens
        self._addresses = [0 if t is None else t.address for t in self.constants]
        self._bound = Program(self.launches, spinning=True).bound(self._addresses)
        self._fresh = [(p.buffer, recorder.sizes[p.buffer]) for p in own.values()]
        self._results = [(moved_to(p), spec) for p, spec in zip(places, outline.specs, strict=True)]
        #: Bytes that the arena's buffers would take without sharing.
        self.unshared = sum(recorder.sizes[b] for b in layout)
        self.computed = recorder.computed
        self._tensors: list[Tensor] | None = None

    def run(self, givens: Sequence[Tensor], counts: Sequence[int] = (), spare: bool = False) -> list[Tensor]:
        """Run on givens of the recorded shapes and dtypes; raises what the op would whose kernel fails.

        counts: what counters are in this run.  spare: leave the memory of donated givens as it is.
        """
        for numbers in self.computed:
            numbers.refresh(counts)
        memories: dict[int, Any] = {}
        for buffer, size in self._fresh:
            given = None if spare else self._in_place.get(buffer)
            taken = memory.recycled((size,), _BYTE) if given is None else _bytes(givens[given])
            memories[buffer] = taken
            self._move(buffer, address(taken))
        self._arena.hold(self.bytes)
        if self._move(self._arena_buffer, self._arena.address) or memories:
            self._tensors = None
        addresses = self._addresses
        for k, t in enumerate(givens):
            if addresses[k] != t.address:
                self._move(k, t.address)
        failed = self._bound.run()
        if failed >= 0:
            self._raise(failed, givens)
        made = self._tensors
        if made is None:
            made = [Tensor(self._array(p, spec, givens, memories)) for p, spec in self._results]
            if all(p.buffer >= self.givens for p, _ in self._results):
                self._tensors = made  # until the arena moves
        return made

    def forget(self) -> None:
        """Let go of results that lie in the arena."""
        self._tensors = None

    def _move(self, buffer: int, address: int) -> bool:
        moved = self._addresses[buffer] != address
        if moved:
            self._addresses[buffer] = address
            self._bound.rebind(buffer, address)
        return moved

    def _array(self, p: Place, spec: Spec, givens: Sequence[Tensor], memories: dict[int, Any]) -> Any:
        """Return the elements at a place."""
        if p.buffer in memories:
            owner = memories[p.buffer]
        elif p.buffer == self._arena_buffer:
            owner = self._arena.memory
        else:
            held = givens[p.buffer] if p.buffer < self.givens else self.constants[p.buffer]
            assert held is not None
            owner = _bytes(held)
        return np.ndarray(spec.shape, spec.dtype, owner, p.offset)

    def _raise(self, failed: int, givens: Sequence[Tensor]) -> None:
        call, inputs = self.calls[failed]
        tensors = [Tensor(self._array(p, spec, givens, {})) for p, spec in inputs]
        failure = call.op.failure
        raise failure(*tensors, **call.meta) if failure else RuntimeError(f"{call.op.name} failed")


def _bytes(t: Tensor) -> Any:
    return t.array.reshape(-1).view(_BYTE)


def address(array: Any) -> int:
    """Return where an array's first element is."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _made(recorder: Recorder, result: Tensor) -> Tensor:
    """Return a result that a call made: a copy of one that is a given or a constant."""
    at = recorder.place(result).buffer
    if any(at in call.made for call in reversed(recorder.calls)):
        return result
    return _copied(recorder, result)


def _copied(recorder: Recorder, result: Tensor) -> Tensor:
    """Return a copy of a result, made by a call of the recording."""
    before, state.recorder = state.recorder, recorder
    try:
        return copied(result)
    finally:
        state.recorder = before


def _targets(recorder: Recorder, placed: Sequence[tuple[Tensor, Tensor]]) -> dict[int, Place]:
    """Return the places of the results' buffers; a result that has no buffer to itself gets a copy."""
    made = {b for call in recorder.calls for b in call.made}
    targets: dict[int, Place] = {}
    for result, target in placed:
        if not target.array.nbytes:
            continue
        at, to = recorder.place(result), recorder.place(target)
        whole = not at.offset and recorder.sizes[at.buffer] == target.array.nbytes
        if not whole or at.buffer not in made or at.buffer in targets:
            at = recorder.place(_copied(recorder, result))
        targets[at.buffer] = to
    return targets


def _in_place(
    calls: Sequence[Call], donated: Sequence[int], sizes: Sequence[int], own: dict[int, Place]
) -> dict[int, int]:
    """Return givens whose memory fresh results take: those whose last reader makes a result, in place.

    The result's buffer in the program -> the given.
    """
    taken: dict[int, int] = {}
    for given in donated:
        readers = [call for call in calls if any(p.buffer == given for p in call.places)]
        if not readers or not readers[-1].op.in_place:
            continue
        last = readers[-1]
        if all(spec.nbytes == sizes[given] for p, spec in last.inputs if p.buffer == given):
            outputs = last.made[: len(last.outputs)]
            fit = [own[b].buffer for b in outputs if b in own and sizes[b] == sizes[given]]
            free = [b for b in fit if b not in taken]
            taken.update(dict.fromkeys(free[:1], given))
    return taken


def _needed(calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return the calls that the wanted buffers depend on, and those that may raise an error."""
    kept, wanted = [], set(wanted)
    for call in reversed(calls):
        if call.op.failure is not None or not wanted.isdisjoint(call.made):
            wanted.update(p.buffer for p in call.places)
            kept.append(call)
    return kept[::-1]


def _layout(
    calls: Sequence[Call], last: set[int], elsewhere: set[int], sizes: Sequence[int]
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
