"""A trace as one program: all its launches in one native call, over planned memory.

A program keeps what its results depend on, gives intermediate results places in one arena, where those that
are not in use at once share memory, reads its inputs where they are at each run, and allocates nothing but
results that are asked for afresh.

What a run changes, addresses and numbers, belongs to an instance of the program, and its intermediate
results to an arena. A run takes both out of a pool, and gives them back when it is done: threads never share
them, and those of a run that was interrupted are never used again.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treepie.kernels import config, memory
from treepie.kernels.program import Launch, LaunchTable, Operand, Spec

from ..table import OPS, Op
from ..tensor import Tensor, address_of
from ..trace.entry import Symbol
from ..trace.trace import Trace
from . import memory as planned_memory
from .fusion import fused
from .graph import Call, Graph, Item, Slice
from .instance import Arena, Arenas, Instance
from .request import Numeric, Request

_BYTE = np.dtype(np.uint8)

#: Results of up to so many bytes share one allocation in a run: they are kept together or not at all.
_SMALL = 4096


class ProgramFamily:
    """A trace with all that follows from it, of which programs are made: one for each set of results.

    values: how many of the values a user's Python has seen.
    """

    def __init__(
        self, trace: Trace, items: Sequence[Item], request: Request, arenas: Arenas, values: int = 0
    ) -> None:
        self.request, self.values, self._arenas = request, values, arenas
        self.result: Any = None  # the tree of results, for those who want one
        self.written: Any = None  # what was traced, where traces are compared
        self._items = items
        self._trace = _Specs(trace, set(request.inputs))
        self.programs: dict[Hashable, Program] = {}

    def program(self, kept: tuple[int, ...] = ()) -> Program:
        """Return the program that gives these values too, in memory of their own."""
        return self.programs.get(kept) or self.variant(
            kept, lambda: replace(self.request, fresh=(*self.request.fresh, *kept))
        )

    def variant(self, key: Hashable, request: Callable[[], Request]) -> Program:
        """Return the program of a key, of what `request()` asks for if there is none."""
        found = self.programs.get(key)
        if found is None:
            found = self.programs[key] = Program(self._trace, self._items, request(), self._arenas)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that its programs hold."""
        return sum(p.nbytes for p in tuple(self.programs.values()))


class _Specs:
    """What is left of a trace: shapes, dtypes and constants of its values, without what it was run on."""

    def __init__(self, trace: Trace, inputs: set[int]) -> None:
        self.values = [
            v if not isinstance(v, Symbol) and n not in inputs else Spec(v.shape, v.dtype)
            for n, v in enumerate(trace.values)
        ]
        self.computed = tuple(trace.computed)


class Program:
    """A trace, planned; `run` gives the results anew."""

    def __init__(self, trace: _Specs, items: Sequence[Item], request: Request, arenas: Arenas) -> None:
        """Plan the program."""
        graph = Graph(trace, request.externals)
        for number, at in request.inputs.items():
            graph.place(number, at)
        self.request, self._arenas = request, arenas
        self._scalars = graph.buffer(0)
        self._place_numbers(trace, graph, request)
        cut = len(items) if request.barrier is None else request.barrier
        graph.add(items[:cut])
        graph.cut = len(graph.calls)
        graph.add(items[cut:])
        self._plan(graph)

    def _place_numbers(self, trace: _Specs, graph: Graph, request: Request) -> None:
        """Lay out what Python writes before a run."""
        numerics = [Numeric(n) for n in request.user_numbers]
        numerics += [Numeric(n, function, source) for n, function, source in trace.computed]
        self._written: list[tuple[Numeric, np.dtype, int, int]] = []
        at = 0
        for numeric in numerics:
            spec = graph.spec_of(numeric.number)
            graph.place(numeric.number, Slice(self._scalars, at))
            self._written.append(
                (numeric, spec.dtype, at // spec.dtype.itemsize, spec.size if spec.shape else 0)
            )
            at += -(-spec.nbytes // 8) * 8
        self._user = [(d, k) for _, d, k, _ in self._written[: len(request.user_numbers)]]
        self._computed = [
            (n.compute, n.source, d, k, size) for n, d, k, size in self._written[len(request.user_numbers) :]
        ]
        self._numbers_size = at

    def _plan(self, graph: Graph) -> None:
        request, sizes = self.request, graph.sizes
        fresh = [graph.slice_of(n) for n in request.fresh]
        fresh = [self._made(graph, at, n) for at, n in zip(fresh, request.fresh, strict=True)]
        homes: dict[int, Slice] = {}  # buffers of results -> where they are
        own: dict[int, int] = {}  # buffers of fresh results -> buffers for their memory
        for at in fresh:
            if at.buffer not in own:
                own[at.buffer] = graph.buffer(sizes[at.buffer])
                homes[at.buffer] = Slice(own[at.buffer])
        scalars = []
        size = self._numbers_size
        for n in request.scalars:
            at = self._whole(graph, graph.slice_of(n), n, homes)
            homes[at.buffer] = Slice(self._scalars, size)
            dtype = graph.spec_of(n).dtype
            scalars.append((dtype, size // dtype.itemsize))
            size += 8
        self._results = scalars
        for n, external in request.filled:
            at = self._whole(graph, graph.slice_of(n), n, homes)
            homes[at.buffer] = Slice(external)
        self._scalar_bytes = size
        wanted = set(homes)
        peeked = [graph.slice_of(n) for n in request.peeked]
        calls = _needed(graph.calls, wanted | {p.buffer for p in peeked})
        first = {id(call) for call in graph.calls[: graph.cut]}
        early, late = ([c for c in calls if (id(c) in first) == side] for side in (True, False))
        between = wanted | {p.buffer for c in late for p, _ in c.inputs} | {p.buffer for p in peeked}
        made = fused(graph, early, between)
        made += fused(graph, late, wanted)
        made, inside = planned_memory.joined(made, wanted, sizes)
        self.in_place = _in_place(made, request.donated, sizes, own)
        inner = planned_memory.resolved(inside)
        last = {inner(p).buffer for p in peeked}
        offsets, self.bytes = planned_memory.arena(made, inner, last, set(homes), sizes)
        self._arena = graph.buffer(self.bytes)
        places = planned_memory.resolved(
            inside | homes | {b: Slice(self._arena, o) for b, o in offsets.items()}
        )
        self._assemble(graph, made, places)
        self._fresh = self._grouped([(own[b], sizes[b]) for b in own])
        self._fresh_results = []
        for at, n in zip(map(places, fresh), request.fresh, strict=True):
            spec = graph.spec_of(n)
            self._fresh_results.append((at.buffer, at.offset, spec.shape, spec.dtype))
        self._peeked = [
            (places(at), graph.spec_of(n), graph.constants[at.buffer])
            for at, n in zip(peeked, request.peeked, strict=True)
        ]
        self.unshared = sum(sizes[b] for b in offsets)
        self.externals = graph.externals

    def _made(self, graph: Graph, at: Slice, number: int) -> Slice:
        """Return a result that a call writes: of an input or a constant, a copy."""
        written = any(at.buffer in call.written[: len(call.outputs)] for call in reversed(graph.calls))
        return at if written else _copied(graph, at, graph.spec_of(number))

    def _whole(self, graph: Graph, at: Slice, number: int, homes: dict[int, Slice]) -> Slice:
        """Return a result that has a buffer to itself, a copy if need be."""
        spec = graph.spec_of(number)
        if not spec.nbytes:
            return Slice(graph.buffer(0))
        made = self._made(graph, at, number)
        alone = not made.offset and graph.sizes[made.buffer] == spec.nbytes and made.buffer not in homes
        return made if alone else _copied(graph, made, spec)

    def _assemble(self, graph: Graph, calls: Sequence[Call], places: Callable[[Slice], Slice]) -> None:
        """Make the table of launches."""
        #: The launches in order; of each the call that it is of, and where its inputs are.
        self.launches: list[Launch] = []
        self.calls: list[tuple[Call, list[tuple[Slice, Spec]]]] = []
        for call in calls:
            inputs = [(places(p), spec) for p, spec in call.inputs]
            for launch in call.launches:
                slots = []
                for word, o in launch.slots:
                    p = places(call.slices[o.buffer])
                    slots.append((word, Operand(p.buffer, o.spec, p.offset + o.offset)))
                self.launches.append(
                    Launch(launch.entry, launch.chunks, launch.work_ns, launch.words, tuple(slots))
                )
                self.calls.append((call, inputs))
        used = {o.buffer for launch in self.launches for _, o in launch.slots}
        #: Bytes of each buffer; what those hold that never change.
        self.sizes = list(graph.sizes)
        self.constants = [t if b in used else None for b, t in enumerate(graph.constants)]
        addresses = [0 if t is None else t.address for t in self.constants]
        self.sizes[self._scalars] = self._scalar_bytes
        self._table = LaunchTable(self.launches, spinning=True)
        self._addresses = addresses
        self._pool: deque[Instance] = deque()

    def _grouped(self, buffers: Sequence[tuple[int, int]]) -> list[tuple[int, list[tuple[int, int]]]]:
        """Return allocations of fresh results: (bytes, [(buffer, offset)])."""
        small = [(b, size) for b, size in buffers if size <= _SMALL]
        groups: list[tuple[int, list[tuple[int, int]]]] = []
        at, members = 0, []
        for b, size in small:
            members.append((b, at))
            at += -(-size // config.LINE) * config.LINE
        if members:
            groups.append((at, members))
        groups += [(size, [(b, 0)]) for b, size in buffers if size > _SMALL]
        return groups

    @property
    def nbytes(self) -> int:
        """Bytes that it holds: constants, its table and what describes it."""
        held = sum(t.array.nbytes for t in self.constants if t is not None)
        return held + 2000 * len(self.launches) + 4000

    def prepare(
        self,
        addresses: Sequence[int],
        numbers: Sequence[Any] = (),
        user_numbers: Sequence[Any] = (),
        owners: Sequence[Any] = (),
    ) -> Run:
        """Return a run on memory at addresses, ready to go; see `Request`.

        numbers: those that Python computes others of.  owners: arrays of donated externals.
        """
        try:
            instance = self._pool.pop()
        except IndexError:
            instance = Instance(self._table, self._addresses, self._scalars, self._scalar_bytes)
        arena = self._arenas.take(self.bytes)
        arrays = instance.arrays
        if user_numbers:
            for (dtype, k), value in zip(self._user, user_numbers, strict=True):
                arrays[dtype][k] = value
        if self._computed:
            values = self.request.numbers.evaluate(numbers) if self.request.numbers is not None else numbers
            for compute, source, dtype, k, size in self._computed:
                if size:
                    arrays[dtype][k : k + size] = compute(values[source])  # type: ignore[misc]
                else:
                    arrays[dtype][k] = compute(values[source])  # type: ignore[misc]
        mine, bound = instance.addresses, instance.bound
        for k, address in enumerate(addresses):
            if mine[k] != address:
                bound.rebind(k, address)
                mine[k] = address
        if mine[self._arena] != arena.address:
            bound.rebind(self._arena, arena.address)
            mine[self._arena] = arena.address
        memories: dict[int, Any] = {}
        for size, members in self._fresh:
            block = None
            for b, offset in members:
                given = self.in_place.get(b)
                if given is not None and owners:
                    base = address_of(owners[given])
                    memories[b] = (owners[given], addresses[given] - base, base)
                    instance.move(b, addresses[given])
                    continue
                if block is None:
                    small = size < config.KEPT_LEAST
                    block = np.empty(size, _BYTE) if small else memory.recycled((size,), _BYTE)
                    start = address_of(block)
                memories[b] = (block, offset, start)
                if mine[b] != start + offset:
                    bound.rebind(b, start + offset)
                    mine[b] = start + offset
        return Run(self, instance, arena, memories)

    def done(self, run: Run) -> None:
        """Give back what a run has taken."""
        self._arenas.give(run.arena)
        self._pool.append(run.instance)


class Run:
    """A run of a program: its results, until `Program.done`."""

    __slots__ = ("arena", "instance", "memories", "program")

    def __init__(self, program: Program, instance: Instance, arena: Arena, memories: Any) -> None:
        self.program, self.instance, self.arena, self.memories = program, instance, arena, memories

    def go(self) -> int:
        """Run; return -1, or the number of the launch that reported an error."""
        return self.instance.bound.run()

    def scalar(self, k: int) -> Any:
        """Return a result of one element, as a Python number."""
        dtype, at = self.program._results[k]
        return self.instance.arrays[dtype][at]

    def fresh(self) -> list[Tensor]:
        """Return the results that are in memory of their own."""
        made, memories = [], self.memories
        for buffer, first, shape, dtype in self.program._fresh_results:
            block, offset, start = memories[buffer]
            offset += first
            t = Tensor(np.ndarray(shape, dtype, block, offset))
            t._address = start + offset
            made.append(t)
        return made

    def error(self, failed: int) -> Exception:
        """Return the error that a launch reported."""
        call, inputs = self.program.calls[failed]
        assert isinstance(call.op, Op)
        tensors = []
        for at, spec in inputs:
            start = self.instance.addresses[at.buffer] + at.offset
            memory = (ctypes.c_char * spec.nbytes).from_address(start)
            array: np.ndarray = np.ndarray(spec.shape, spec.dtype, memory)  # type: ignore[arg-type]
            tensors.append(Tensor(array.copy()))
        return call.op.error(tensors, call.attributes)

    def peeked(self) -> list[np.ndarray]:
        """Return copies of the values that can be looked at where a launch reported an error."""
        made = []
        for at, spec, constant in self.program._peeked:
            owner = self.arena.memory if constant is None else constant.array.reshape(-1).view(_BYTE)
            made.append(np.ndarray(spec.shape, spec.dtype, owner, at.offset).copy())
        return made


def _copied(graph: Graph, at: Slice, spec: Spec) -> Slice:
    """Add the call that copies a slice into a buffer of its own."""
    copy_row, attributes = OPS["astype"], {"dtype": spec.dtype}
    plan = copy_row.planned([(spec.shape, spec.dtype)], attributes)
    to = graph.buffer(spec.nbytes)
    call = Call(copy_row, attributes, plan.launches, [at, Slice(to)], [(at, spec)], [spec], (to,))
    # As early as can be: before memory that is given is written to, and before a check that may fail.
    written = [k for k, c in enumerate(graph.calls) if at.buffer in c.written]
    first = written[-1] + 1 if written else 0
    graph.calls.insert(first, call)
    graph.cut += first <= graph.cut
    return Slice(to)


def _needed(calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return the calls that the wanted buffers depend on, and those that may raise an error."""
    kept, wanted = [], set(wanted)
    for call in reversed(calls):
        if call.op.failure is not None or not wanted.isdisjoint(call.written):
            wanted.update(p.buffer for p in call.slices)
            kept.append(call)
    return kept[::-1]


def _in_place(
    calls: Sequence[Call], donated: Sequence[int], sizes: Sequence[int], own: dict[int, int]
) -> dict[int, int]:
    """Return externals whose memory fresh results take: those whose last reader makes a result, in place.

    The buffer of the result's memory -> the external.
    """
    taken: dict[int, int] = {}
    for given in donated:
        readers = [call for call in calls if any(p.buffer == given for p in call.slices)]
        if not readers or not readers[-1].op.in_place:
            continue
        last = readers[-1]
        if all(spec.nbytes == sizes[given] for p, spec in last.inputs if p.buffer == given):
            outputs = last.written[: len(last.outputs)]
            fit = [own[b] for b in outputs if b in own and sizes[b] == sizes[given]]
            free = [b for b in fit if b not in taken]
            taken.update(dict.fromkeys(free[:1], given))
    return taken
