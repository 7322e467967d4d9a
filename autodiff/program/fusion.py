"""Optimization of a graph: fewer calls, which read and write less memory and return the same bits.

Passes: constant folding, elimination of common subexpressions, fusion of elementwise calls. An elementwise
call joins the matrix product that computes one of its operands, as an epilogue that runs on each tile while
it is in cache, or else the elementwise call that does. A result that only members of its fusion group read is
not stored. A formula's operations are neither reordered nor contracted, so a fused chain has the bits of its
links. Calls with an effect, which other ranks take part in, all run, in the order of the trace, whichever
results are live: a rank that runs op by op makes the same calls.
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
from .graph import Graph, OpCall, Slice
from .group import FusionGroup, dependency_bits, is_elementwise

#: Folded results of at most this many bytes are stored with the program; larger ones each run computes.
_MOST_FOLDED = 1 << 20


def fuse(graph: Graph, calls: Sequence[OpCall], live_out: set[int]) -> list[OpCall]:
    """Return fewer calls with the effect of `calls` on the buffers that are live afterwards."""
    calls = _eliminate_common(_fold_constants(graph, calls, live_out), live_out)
    groups = _group(calls, live_out)
    stored = live_out | {b for group in groups for b in group.reads}
    return [group.fused_call(stored, graph.sizes) for group in _schedule(groups)]


def live_calls(calls: Sequence[OpCall], live_out: set[int]) -> list[OpCall]:
    """Return the calls that live buffers depend on, that may report an error, or that have an effect."""
    result, live = [], set(live_out)
    for call in reversed(calls):
        kept = call.op.failure is not None or call.op.effect
        if kept or not live.isdisjoint(call.written):
            live.update(p.buffer for p in call.slices)
            result.append(call)
    return result[::-1]


def _fold_constants(graph: Graph, calls: Sequence[OpCall], live_out: set[int]) -> list[OpCall]:
    """Run the calls whose inputs are constants, and make their results constants of the graph."""
    result = []
    for call in calls:
        pure = call.op.failure is None and not call.op.effect
        foldable = pure and live_out.isdisjoint(call.written)
        size = sum(graph.sizes[b] for b in call.written)
        constant = all(graph.constants[p.buffer] is not None for p, _ in call.inputs)
        if foldable and constant and size <= _MOST_FOLDED:
            _fold(graph, call)
        else:
            result.append(call)
    return result


def _fold(graph: Graph, call: OpCall) -> None:
    for b in call.written:
        graph.constants[b] = Tensor(memory.aligned((graph.sizes[b],), np.dtype("u1")), None)
    if call.launches:
        tensors = [graph.constants[p.buffer] for p in call.slices]
        addresses = [t.address for t in tensors if t is not None]
        LaunchTable(call.launches).run([a + p.offset for a, p in zip(addresses, call.slices, strict=True)])


def _eliminate_common(calls: Sequence[OpCall], live_out: set[int]) -> list[OpCall]:
    """Drop calls that equal an earlier one; their users read the earlier result."""
    result: list[OpCall] = []
    first: dict[Any, OpCall] = {}
    replacement: dict[int, int] = {}  # buffer -> the equal one that is computed earlier
    for original in calls:
        call = _substitute(original, replacement) if replacement else original
        # Of calls with an effect, only the same one merges: a forward pass that a recorded VJP repeats.
        same = id(call.attributes) if call.op.effect else None
        key = (call.op, tuple(call.inputs), tuple(call.attributes.items()), same)
        if key in first and live_out.isdisjoint(call.written):
            replacement.update(zip(call.written, first[key].written, strict=True))
        else:
            first.setdefault(key, call)
            result.append(call)
    return result


def _substitute(call: OpCall, replacement: dict[int, int]) -> OpCall:
    def substituted(p: Slice) -> Slice:
        return Slice(replacement[p.buffer], p.offset) if p.buffer in replacement else p

    inputs = [(substituted(p), spec) for p, spec in call.inputs]
    return replace(call, slices=[*map(substituted, call.slices)], inputs=inputs)


def _group(calls: Sequence[OpCall], live_out: set[int]) -> list[FusionGroup]:
    """Put each call into a fusion group: one that computes an operand, or a new one."""
    users = {b: {-1} for b in live_out}  # buffer -> the indices of calls that read it; -1: after the program
    for index, call in enumerate(calls):
        for p, _ in call.inputs:
            users.setdefault(p.buffer, set()).add(index)
    groups: list[FusionGroup] = []
    producers: dict[int, FusionGroup] = {}
    effects: set[FusionGroup] = set()  # the last call with an effect, which the next one waits for
    for index, call in enumerate(calls):
        sources = {producers[p.buffer] for p, _ in call.inputs if p.buffer in producers}
        if call.op.effect:
            sources |= effects
        group = None
        if is_elementwise(call):
            # A product first, whose result is in cache, while an elementwise call only saves memory traffic;
            # of two, the later one.
            hosts = sorted(sources, key=lambda g: (g.product is not None, g.last), reverse=True)
            group = next((g for g in hosts if g.join(call, index, sources, users)), None)
        if group is None:
            group = FusionGroup(call, index, sources)
            groups.append(group)
        else:
            added = dependency_bits(sources - {group})
            for g in groups:
                if g is group or g.dependencies & group.bit:
                    g.dependencies |= added
        producers.update(dict.fromkeys(call.written, group))
        if call.op.effect:
            effects = {group}
    return groups


def _schedule(groups: Sequence[FusionGroup]) -> list[FusionGroup]:
    """Return the groups in topological order; among those that are ready, by the index of the last call."""
    waiting = {group: len(group.sources) for group in groups}
    users: dict[FusionGroup, list[FusionGroup]] = {group: [] for group in groups}
    for group in groups:
        for source in group.sources:
            users[source].append(group)
    ready = [(group.last, group) for group in groups if not group.sources]
    heapq.heapify(ready)
    order = []
    while ready:
        _, group = heapq.heappop(ready)
        order.append(group)
        for user in users[group]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, (user.last, user))
    assert len(order) == len(groups)
    return order
