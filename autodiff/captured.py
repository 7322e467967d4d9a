"""A recording as one program.

Of what was recorded, a program keeps what its results depend on, gives intermediate results places in one
arena, where those that are not in use at once share memory, and walks all launches in one native call. It
reads its givens where they are at each run, and allocates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import Launch, Operand, Program, Spec
from treepie.kernels.threads import get_num_threads as get_num_threads  # the api layer uses it too

from .capture import Call, Place, Recorder, state
from .ops.shape import copied
from .tensor import Tensor


class Captured:
    """A recording as one program.

    `results` are tensors that were computed; after `run` their values are in `tensors`, until the next run.
    """

    def __init__(
        self, recorder: Recorder, results: Sequence[Tensor], placed: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        """Plan the program. placed: (result, tensor): a result that is written where the tensor lies."""
        targets = _targets(recorder, placed)
        places = [recorder.place(t) for t in results]
        calls = _needed(recorder.calls, {p.buffer for p in places} | set(targets))
        layout, size = _layout(calls, {p.buffer for p in places}, set(targets), recorder.sizes)
        self._arena = memory.aligned((max(size, config.ALIGNED_LEAST),), np.dtype("u1"))
        arena = len(recorder.sizes)
        where = {b: Place(arena, offset) for b, offset in layout.items()} | targets

        def moved_to(p: Place) -> Place:
            base = where.get(p.buffer)
            return p if base is None else Place(base.buffer, base.offset + p.offset)

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

    def _array(self, p: Place, spec: Spec) -> Any:
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
            call, inputs = self._calls[failed]
            tensors = [Tensor(self._array(p, spec)) for p, spec in inputs]
            failure = call.op.failure
            raise failure(*tensors, **call.meta) if failure else RuntimeError(f"{call.op.name} failed")


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
            before, state.recorder = state.recorder, recorder
            try:
                at = recorder.place(copied(result))
            finally:
                state.recorder = before
        targets[at.buffer] = to
    return targets


def _needed(calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return the calls that the wanted buffers depend on."""
    kept, wanted = [], set(wanted)
    for call in reversed(calls):
        if not wanted.isdisjoint(call.made):
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
