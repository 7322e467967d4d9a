"""Fusion: calls become fewer ones, which read and write less memory and give the same bits.

What constants alone determine is computed once, and no call is made twice. An elementwise call joins the
matrix product that made one of its operands, as what becomes of each tile while it is in cache, or else the
elementwise call that did; what only members of such a group read is not stored. A formula's operations are
neither reordered nor contracted, so a chain has the bits of its links.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treepie.kernels import memory
from treepie.kernels.program import LaunchTable

from ..tensor import Tensor
from .graph import Call, Graph, Slice
from .group import Group, is_elementwise, needed

#: What calls on constants give is held on to up to so many bytes each; more is computed again in every run.
_HELD = 1 << 20


def fused(graph: Graph, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return calls that compute the wanted buffers of a graph as `calls` do."""
    groups = _grouped(_distinct(_folded(graph, calls, wanted), wanted), wanted)
    stored = wanted | {b for group in groups for b in group.reads}
    return [group.call(stored, graph.sizes) for group in _ordered(groups)]


def _folded(graph: Graph, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Run calls on constants here, once; the graph holds what they give."""
    kept = []
    for call in calls:
        apart = wanted.isdisjoint(call.written) and call.op.failure is None
        size = sum(graph.sizes[b] for b in call.written)
        if apart and size <= _HELD and all(_constant(graph, p) for p, _ in call.inputs):
            for b in call.written:
                graph.constants[b] = Tensor(memory.aligned((graph.sizes[b],), np.dtype("u1")))
            if call.launches:
                tensors = [graph.constants[p.buffer] for p in call.slices]
                addresses = [t.address for t in tensors if t is not None]
                LaunchTable(call.launches).run(
                    [a + p.offset for a, p in zip(addresses, call.slices, strict=True)]
                )
        else:
            kept.append(call)
    return kept


def _constant(graph: Graph, p: Slice) -> bool:
    return graph.constants[p.buffer] is not None


def _distinct(calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Leave out calls that another one equals."""
    kept: list[Call] = []
    first: dict[Any, Call] = {}
    same: dict[int, int] = {}  # buffer -> the equal one that is made earlier
    for old in calls:
        call = _renamed(old, same) if same else old
        key = (call.op, tuple(call.inputs), tuple(call.attributes.items()))
        if key in first and wanted.isdisjoint(call.written):
            same.update(zip(call.written, first[key].written, strict=True))
        else:
            first.setdefault(key, call)
            kept.append(call)
    return kept


def _renamed(call: Call, same: dict[int, int]) -> Call:
    def moved(p: Slice) -> Slice:
        return Slice(same[p.buffer], p.offset) if p.buffer in same else p

    inputs = [(moved(p), spec) for p, spec in call.inputs]
    return replace(call, slices=[*map(moved, call.slices)], inputs=inputs)


def _grouped(calls: Sequence[Call], wanted: set[int]) -> list[Group]:
    """Put each call into a group, as early as its operands allow."""
    users = {b: {-1} for b in wanted}  # buffer -> the calls that read it, by number
    for at, call in enumerate(calls):
        for p, _ in call.inputs:
            users.setdefault(p.buffer, set()).add(at)
    groups: list[Group] = []
    makers: dict[int, Group] = {}
    for at, call in enumerate(calls):
        sources = {makers[p.buffer] for p, _ in call.inputs if p.buffer in makers}
        group = None
        if is_elementwise(call):
            # A product has its result in cache, an elementwise call only reads memory; of two, the later one.
            hosts = sorted(sources, key=lambda g: (g.root is not None, g.last), reverse=True)
            group = next((g for g in hosts if g.join(call, at, sources, users)), None)
        if group is None:
            group = Group(call, at, sources)
            groups.append(group)
        else:
            more = needed(sources - {group})
            for g in groups:
                if g is group or g.needs & group.bit:
                    g.needs |= more
        makers.update(dict.fromkeys(call.written, group))
    return groups


def _ordered(groups: Sequence[Group]) -> list[Group]:
    """Return groups each after its sources, else in the order of their last members."""
    waits = {group: len(group.sources) for group in groups}
    users: dict[Group, list[Group]] = {group: [] for group in groups}
    for group in groups:
        for source in group.sources:
            users[source].append(group)
    ready = [(group.last, group) for group in groups if not group.sources]
    heapq.heapify(ready)
    done = []
    while ready:
        _, group = heapq.heappop(ready)
        done.append(group)
        for user in users[group]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, (user.last, user))
    assert len(done) == len(groups)
    return done
