"""A trace as one program: all launches in one native call, over planned memory.

A program stores the constants that its results depend on, places intermediate results in one arena, where
buffers that are not live at once share memory, reads its inputs at the addresses that each run passes, and
allocates only fresh results.

The addresses and numbers that a run changes belong to an instance of the program, and intermediate results
to an arena. A run takes one of each from a pool and returns them when it is done: threads never share them,
and those of an interrupted run are never used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import Launch, LaunchTable, Operand, Spec

from ..tensor import address_of
from ..trace.compare import Transcript
from ..trace.entry import Symbol
from ..trace.trace import Trace
from .fusion import fuse, live_calls
from .graph import Graph, OpCall, Slice, TraceItem
from .instance import Arena, Arenas, Instance, NumberRows
from .memory import allocate, donations, elide_copies, resolver
from .request import Request
from .run import Run

_BYTE = np.dtype(np.uint8)

#: Fresh results of at most this many bytes share one allocation, which lives as long as one of them.
_SMALL = 4096


class ProgramFamily:
    """The programs of one trace: one for each set of results that a run may be asked for.

    items: the trace's entries and aliases.  request: the inputs and outputs that all of them have.
    values: the number of values that were traced while a user's Python ran, which are those it may keep.
    """

    def __init__(
        self, trace: Trace, items: Sequence[TraceItem], request: Request, arenas: Arenas, values: int = 0
    ) -> None:
        self.request, self.values, self._arenas = request, values, arenas
        self.result: Any = None  # for the caller: how to build the function's result
        self.transcript: Transcript | None = None  # of the trace, where later ones are compared with it
        self._items = items
        self._trace = _Specs(trace, set(request.inputs))
        self.programs: dict[Hashable, Program] = {}

    def program(self, live: tuple[int, ...] = ()) -> Program:
        """Return the program that also stores these values as fresh results."""
        return self.programs.get(live) or self.variant(
            live, lambda: replace(self.request, fresh=(*self.request.fresh, *live))
        )

    def variant(self, key: Hashable, request: Callable[[], Request]) -> Program:
        """Return the program of a key; plan it for `request()` if there is none yet."""
        program = self.programs.get(key)
        if program is None:
            program = self.programs[key] = Program(self._trace, self._items, request(), self._arenas)
        return program

    @property
    def nbytes(self) -> int:
        """Bytes that the programs hold."""
        return sum(p.nbytes for p in tuple(self.programs.values()))


class _Specs:
    """The part of a trace that planning needs: shapes and dtypes of its values, and constants.

    It holds none of the tensors that the function was traced on.
    """

    def __init__(self, trace: Trace, inputs: set[int]) -> None:
        self.values = [
            v if not isinstance(v, Symbol) and n not in inputs else Spec(v.shape, v.dtype)
            for n, v in enumerate(trace.values)
        ]
        self.computed = tuple(trace.computed)


class Program:
    """A planned trace, to be run on any inputs of the same shapes.

    launches: in order.  calls: of each launch its call, and where the call's inputs are stored.
    sizes, constants: of each buffer.  externals: how many of the buffers are external.
    work_ns: an estimate of the time of all launches, each by one thread.
    donated_memory: buffer of a fresh result's memory -> the donated external that it may reuse.
    bytes: the arena's.  unshared: the sum of the bytes of the buffers in the arena.
    """

    def __init__(self, trace: _Specs, items: Sequence[TraceItem], request: Request, arenas: Arenas) -> None:
        """Plan the program."""
        graph = Graph(trace, request.externals)
        for number, location in request.inputs.items():
            graph.bind(number, location)
        self.request, self._arenas, self.externals = request, arenas, graph.externals
        self._scalars = graph.buffer(0)
        self._place_numbers(trace, graph)
        barrier = len(items) if request.barrier is None else request.barrier
        graph.add(items[:barrier])
        graph.barrier = len(graph.calls)
        graph.add(items[barrier:])
        self._plan(graph)

    def _place_numbers(self, trace: _Specs, graph: Graph) -> None:
        """Place the numbers that Python writes before a run in the buffer of scalars, aligned to 8 bytes."""
        slots: list[
            tuple[np.dtype, int, int]
        ] = []  # dtype, index in an array of it, length or 0 for a scalar
        offset = 0
        for n in (*self.request.user_numbers, *[n for n, _, _ in trace.computed]):
            spec = graph.spec_of(n)
            graph.bind(n, Slice(self._scalars, offset))
            slots.append((spec.dtype, offset // spec.dtype.itemsize, spec.size if spec.shape else 0))
            offset += -(-spec.nbytes // 8) * 8
        count = len(self.request.user_numbers)
        self._user = [(dtype, k) for dtype, k, _ in slots[:count]]
        self._computed = [
            (function, source, *slot)
            for (_, function, source), slot in zip(trace.computed, slots[count:], strict=True)
        ]
        self._scalar_bytes = offset

    def _plan(self, graph: Graph) -> None:
        """Decide where each buffer is stored, and which calls run."""
        request, sizes = self.request, graph.sizes
        fresh, memories = self._place_fresh(graph)
        stored = {b: Slice(m) for b, m in memories.items()}  # buffers of results -> where they are stored
        self._place_scalars(graph, stored)
        for n, external in request.filled:
            stored[self._whole_buffer(graph, n, stored)] = Slice(external)
        live_out = set(stored)
        peeked = [graph.slice_of(n) for n in request.peeked]
        calls = self._optimized(graph, live_out, {p.buffer for p in peeked})
        calls, nested = elide_copies(calls, live_out, sizes)
        self.donated_memory = donations(calls, request.donated, sizes, memories)
        resolve = resolver(nested)
        offsets, self.bytes = allocate(calls, resolve, {resolve(p).buffer for p in peeked}, live_out, sizes)
        self.unshared = sum(sizes[b] for b in offsets)
        self._arena = graph.buffer(self.bytes)
        resolve = resolver(nested | stored | {b: Slice(self._arena, o) for b, o in offsets.items()})
        self._assemble(graph, calls, resolve)
        self._allocations = _allocations([(m, sizes[m]) for m in memories.values()])
        self._fresh_results = []
        for p, n in zip(map(resolve, fresh), request.fresh, strict=True):
            spec = graph.spec_of(n)
            self._fresh_results.append((p.buffer, p.offset, spec.shape, spec.dtype))
        self._peeked = [
            (resolve(p), graph.spec_of(n), graph.constants[p.buffer])
            for p, n in zip(peeked, request.peeked, strict=True)
        ]

    def _place_fresh(self, graph: Graph) -> tuple[list[Slice], dict[int, int]]:
        """Return where fresh results are stored, and for each of these buffers a new one for its memory."""
        slices = [graph.slice_of(n) for n in self.request.fresh]
        slices = [self._computed_slice(graph, p, n) for p, n in zip(slices, self.request.fresh, strict=True)]
        memories: dict[int, int] = {}
        for p in slices:
            if p.buffer not in memories:
                memories[p.buffer] = graph.buffer(graph.sizes[p.buffer])
        return slices, memories

    def _place_scalars(self, graph: Graph, stored: dict[int, Slice]) -> None:
        """Place the results that Python reads after the numbers that it writes."""
        self._results: list[tuple[np.dtype, int]] = []  # dtype, and index in an array of it
        for n in self.request.scalars:
            stored[self._whole_buffer(graph, n, stored)] = Slice(self._scalars, self._scalar_bytes)
            dtype = graph.spec_of(n).dtype
            self._results.append((dtype, self._scalar_bytes // dtype.itemsize))
            self._scalar_bytes += 8

    def _computed_slice(self, graph: Graph, p: Slice, number: int) -> Slice:
        """Return a slice that a call writes: of an input or a constant, a copy."""
        written = any(p.buffer in call.written[: len(call.outputs)] for call in reversed(graph.calls))
        return p if written else graph.copy(p, graph.spec_of(number))

    def _whole_buffer(self, graph: Graph, number: int, stored: dict[int, Slice]) -> int:
        """Return the buffer of a result that no other value shares; of a copy if need be."""
        spec = graph.spec_of(number)
        p = graph.slice_of(number)
        if not spec.nbytes:
            return graph.buffer(0)
        p = self._computed_slice(graph, p, number)
        alone = not p.offset and graph.sizes[p.buffer] == spec.nbytes and p.buffer not in stored
        return p.buffer if alone else graph.copy(p, spec).buffer

    def _optimized(self, graph: Graph, live_out: set[int], peeked: set[int]) -> list[OpCall]:
        """Return the fused calls, with none moved over the barrier."""
        calls = live_calls(graph.calls, live_out | peeked)
        first = {id(call) for call in graph.calls[: graph.barrier]}
        early, late = ([c for c in calls if (id(c) in first) == side] for side in (True, False))
        read_late = {p.buffer for c in late for p, _ in c.inputs}
        return [*fuse(graph, early, live_out | read_late | peeked), *fuse(graph, late, live_out)]

    def _assemble(self, graph: Graph, calls: Sequence[OpCall], resolve: Callable[[Slice], Slice]) -> None:
        """Build the launch table."""
        self.launches: list[Launch] = []
        self.calls: list[tuple[OpCall, list[tuple[Slice, Spec]]]] = []
        for call in calls:
            inputs = [(resolve(p), spec) for p, spec in call.inputs]
            for launch in call.launches:
                slots = []
                for word, o in launch.slots:
                    p = resolve(call.slices[o.buffer])
                    slots.append((word, Operand(p.buffer, o.spec, p.offset + o.offset)))
                self.launches.append(replace(launch, slots=tuple(slots)))
                self.calls.append((call, inputs))
        used = {o.buffer for launch in self.launches for _, o in launch.slots}
        self.sizes = list(graph.sizes)
        self.sizes[self._scalars] = self._scalar_bytes
        self.constants = [t if b in used else None for b, t in enumerate(graph.constants)]
        self._addresses = [0 if t is None else t.address for t in self.constants]
        self._table = LaunchTable(self.launches, spinning=True)
        self.work_ns = sum(launch.work_ns for launch in self.launches)
        self._pool: deque[Instance] = deque()

    def repeatable(self, failed: int) -> bool:
        """Whether a run can start again after a launch has reported an error: no host call ran before it.

        Other ranks would not take part in a second one.
        """
        return all(launch.host is None for launch in self.launches[:failed])

    @property
    def native(self) -> bool:
        """Whether all launches are native: no host call is among them."""
        return self._table.native

    @property
    def nbytes(self) -> int:
        """Bytes that the program holds: constants, the launch table and its description (estimated)."""
        constants = sum(t.array.nbytes for t in self.constants if t is not None)
        return constants + 2000 * len(self.launches) + 4000

    def prepare(
        self,
        addresses: Sequence[int],
        numbers: Sequence[Any] = (),
        user_numbers: Sequence[Any] = (),
        owners: Sequence[Any] = (),
        arena: Arena | None = None,
    ) -> Run:
        """Return a run, ready to go; see `Request`.

        addresses: of the externals.  numbers: arguments of `Request.numbers`.
        user_numbers: numbers that are operands.
        owners: external -> the array that owns its memory, for donated ones; empty where none is reused.
        arena: memory that the caller shares among runs, one after another; None for some of the pool.
        """
        try:
            instance = self._pool.pop()
        except IndexError:
            instance = Instance(self._table, self._addresses, self._scalars, self._scalar_bytes)
        own = arena is None
        if arena is None:
            arena = self._arenas.acquire(self.bytes)
        if user_numbers:
            self.write_user_numbers(instance.numbers, user_numbers)
        if self._computed:
            self.write_numbers(instance.numbers, 0, numbers)
        current, rebind = instance.addresses, instance.bound.rebind
        for k, address in enumerate(addresses):
            if current[k] != address:
                rebind(k, address)
        if current[self._arena] != arena.address:
            rebind(self._arena, arena.address)
        memories: dict[int, Any] = {}
        for size, members in self._allocations:
            block = None
            for b, offset in members:
                external = self.donated_memory.get(b)
                if external is not None and owners:
                    base = address_of(owners[external])
                    memories[b] = (owners[external], addresses[external] - base, base)
                    rebind(b, addresses[external])
                    continue
                if block is None:
                    small = size < config.KEPT_LEAST
                    try:
                        block = np.empty(size, _BYTE) if small else memory.recycled((size,), _BYTE)
                    except (MemoryError, ValueError, OverflowError):
                        raise memory.too_large("program, results", size) from None
                    start = address_of(block)
                memories[b] = (block, offset, start)
                if current[b] != start + offset:
                    rebind(b, start + offset)
        return Run(self, instance, arena, memories, own)

    def write_user_numbers(self, rows: NumberRows, numbers: Sequence[Any]) -> None:
        """Write the numbers of a run that are operands."""
        for (dtype, k), value in zip(self._user, numbers, strict=True):
            rows.arrays[dtype][k] = value

    def write_numbers(self, rows: NumberRows, row: int, numbers: Sequence[Any]) -> None:
        """Compute the numbers of a run from those that are passed to it, and write them to a row."""
        arrays, first = rows.arrays, row * rows.size
        values = self.request.numbers.evaluate(numbers) if self.request.numbers is not None else numbers
        for compute, source, dtype, k, size in self._computed:
            k += first // dtype.itemsize
            if size:
                arrays[dtype][k : k + size] = compute(values[source])
            else:
                arrays[dtype][k] = compute(values[source])

    def done(self, run: Run) -> None:
        """Return the instance and the arena of a run to their pools."""
        if run.owns_arena:
            self._arenas.release(run.arena)
        self._pool.append(run.instance)

    def reuse(self, run: Run) -> None:
        """Return the instance of a run, whose arena has been released, to its pool."""
        self._pool.append(run.instance)


def _allocations(buffers: Sequence[tuple[int, int]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return the allocations of a run's fresh results, as (bytes, [(buffer, offset)])."""
    allocations: list[tuple[int, list[tuple[int, int]]]] = []
    total, members = 0, []
    for b, size in buffers:
        if size <= _SMALL:
            members.append((b, total))
            total += -(-size // config.LINE) * config.LINE
    if members:
        allocations.append((total, members))
    return allocations + [(size, [(b, 0)]) for b, size in buffers if size > _SMALL]
