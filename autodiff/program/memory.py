"""Memory planning: copies that are elided, results in donated memory, and one arena for the other buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from treepie.kernels import config

from ..table import Op
from .graph import OpCall, Slice


def elide_copies(
    calls: Sequence[OpCall], fixed: set[int], sizes: Sequence[int]
) -> tuple[list[OpCall], dict[int, Slice]]:
    """Let calls write results directly into the result of a later join (concatenation), without a copy.

    fixed: buffers whose location is decided already.

    Returns the calls, whose joins copy only the remaining operands, and buffer -> the slice of the join's
    result where it is stored.
    """
    outputs = {b for call in calls for b in call.written[: len(call.outputs)]}
    nested: dict[int, Slice] = {}
    result = []
    for call in calls:
        op = call.op
        specs = [spec for _, spec in call.inputs]
        if not (isinstance(op, Op) and op.joins is not None and op.joins(*specs, **call.attributes)):
            result.append(call)
            continue
        launches, offset, join = iter(call.launches), 0, call.written[0]
        remaining = []
        for p, spec in call.inputs:
            if not spec.nbytes:
                continue
            launch, b = next(launches), p.buffer
            movable = b in outputs and b not in fixed and b not in nested and b != join
            if movable and not p.offset and sizes[b] == spec.nbytes and join not in nested:
                nested[b] = Slice(join, offset)
            else:
                remaining.append(launch)
            offset += spec.nbytes
        # A join without launches stays: it orders the readers of the whole after the writers of its parts.
        result.append(replace(call, launches=tuple(remaining)))
    return result, nested


def resolver(nested: dict[int, Slice]) -> Callable[[Slice], Slice]:
    """Return a function that maps a slice to the outermost buffer that its buffer is stored in.

    nested: buffer -> the slice of another buffer where it is stored.
    """

    def resolve(p: Slice) -> Slice:
        while p.buffer in nested:
            outer = nested[p.buffer]
            p = Slice(outer.buffer, outer.offset + p.offset)
        return p

    return resolve


def donations(
    calls: Sequence[OpCall], donated: Sequence[int], sizes: Sequence[int], memories: dict[int, int]
) -> dict[int, int]:
    """Return which fresh results are stored in donated memory: buffer of a result's memory -> external.

    An external is reused where the last call that reads it works in place and writes a fresh result of its
    size.

    memories: buffers of fresh results -> the buffers of their memory.
    """
    reused: dict[int, int] = {}
    for external in donated:
        readers = [call for call in calls if any(p.buffer == external for p in call.slices)]
        if not readers or not readers[-1].op.in_place:
            continue
        last = readers[-1]
        if all(spec.nbytes == sizes[external] for p, spec in last.inputs if p.buffer == external):
            outputs = last.written[: len(last.outputs)]
            fitting = [memories[b] for b in outputs if b in memories and sizes[b] == sizes[external]]
            free = [b for b in fitting if b not in reused]
            reused.update(dict.fromkeys(free[:1], external))
    return reused


def allocate(
    calls: Sequence[OpCall],
    resolve: Callable[[Slice], Slice],
    live_out: set[int],
    excluded: set[int],
    sizes: Sequence[int],
) -> tuple[dict[int, int], int]:
    """Return the offset in the arena of each buffer that calls write, and the arena's size.

    First-fit allocation in the order of the first write: buffers overlap only where their live ranges do not.

    live_out: buffers that are read after the program.  excluded: buffers that are not in the arena.
    """
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for k, call in enumerate(calls):
        for b in call.written:
            begins.setdefault(resolve(Slice(b)).buffer, k)
        for p in call.slices:
            ends[resolve(p).buffer] = k
    offsets: dict[int, int] = {}
    live: list[int] = []
    total = 0
    for b, begin in sorted(begins.items(), key=lambda pair: pair[1]):
        if b in excluded:
            continue
        if b in live_out:
            ends[b] = len(calls)
        live = [o for o in live if ends[o] >= begin]
        offset = 0
        for o in sorted(live, key=offsets.__getitem__):
            if offsets[o] - offset >= sizes[b]:
                break
            offset = max(offset, -(-(offsets[o] + sizes[o]) // config.LINE) * config.LINE)
        offsets[b] = offset
        live.append(b)
        total = max(total, offset + sizes[b])
    return offsets, total
