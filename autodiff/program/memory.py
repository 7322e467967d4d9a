"""The layout of memory: which buffers lie inside of others, and where the rest lie in one arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from treepie.kernels import config

from ..table import Op
from .graph import Call, Slice


def joined(
    calls: Sequence[Call], placed: set[int], sizes: Sequence[int]
) -> tuple[list[Call], dict[int, Slice]]:
    """Let calls write results where another call would copy them to, to join them.

    Returns the calls, whose joins copy what is left, and where buffers lie in others.
    placed: buffers that have a place already.
    """
    makers = {b for call in calls for b in call.written[: len(call.outputs)]}
    inside: dict[int, Slice] = {}
    made = []
    for call in calls:
        op = call.op
        specs = [spec for _, spec in call.inputs]
        if not (isinstance(op, Op) and op.joins is not None and op.joins(*specs, **call.attributes)):
            made.append(call)
            continue
        launches, offset, whole = iter(call.launches), 0, call.written[0]
        left = []
        for place, spec in call.inputs:
            if not spec.nbytes:
                continue
            launch, b = next(launches), place.buffer
            own = b in makers and b not in placed and b not in inside and b != whole
            if own and not place.offset and sizes[b] == spec.nbytes and whole not in inside:
                inside[b] = Slice(whole, offset)
            else:
                left.append(launch)
            offset += spec.nbytes
        # Without a launch too it stays, since what reads the whole comes after what writes its parts.
        made.append(replace(call, launches=tuple(left)))
    return made, inside


def resolved(inside: dict[int, Slice]) -> Callable[[Slice], Slice]:
    """Return the function that says where a slice of a buffer is, if the buffer lies in another one."""

    def where(at: Slice) -> Slice:
        while at.buffer in inside:
            outer = inside[at.buffer]
            at = Slice(outer.buffer, outer.offset + at.offset)
        return at

    return where


def arena(
    calls: Sequence[Call],
    where: Callable[[Slice], Slice],
    last: set[int],
    elsewhere: set[int],
    sizes: Sequence[int],
) -> tuple[dict[int, int], int]:
    """Give each buffer that calls write an offset in the arena; return them, and the arena's size.

    First fit in the order of writing: buffers overlap only where one is dead before the other is written.
    last: buffers that are read after the program.  elsewhere: buffers in memory of their own.
    """
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for k, call in enumerate(calls):
        for b in call.written:
            begins.setdefault(where(Slice(b)).buffer, k)
        for p in call.slices:
            ends[where(p).buffer] = k
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
