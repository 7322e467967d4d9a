"""Fusion: recorded calls become fewer ones, which read and write less memory and give the same bits.

What constants alone determine is not computed again, nor the same call twice. An elementwise call joins the
matrix product that made one of its operands, as what becomes of each tile while it is in cache, or else the
elementwise call that did; what only members of such a group read is not stored. A formula's operations are
neither reordered nor contracted, so a chain has the bits of its links.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .capture import Call, Place, Recorder
from .group import Group, is_elementwise, needed


def fused(recorder: Recorder, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Return calls that compute the wanted buffers of a recording as `calls` do."""
    groups = _grouped(_distinct(recorder, calls, wanted), wanted)
    stored = wanted | {b for group in groups for b in group.reads}
    return [group.call(stored, recorder.sizes) for group in _ordered(groups)]


def _distinct(recorder: Recorder, calls: Sequence[Call], wanted: set[int]) -> list[Call]:
    """Leave out calls on constants, whose results the recording holds, and calls that another one equals."""
    kept: list[Call] = []
    first: dict[Any, Call] = {}
    same: dict[int, int] = {}  # buffer -> the equal one that is made earlier
    for old in calls:
        call = _renamed(old, same) if same else old
        free = wanted.isdisjoint(call.made)
        if free and recorder.derived.isdisjoint(call.made):
            continue
        key = (call.op, tuple(call.inputs), tuple(call.meta.items()))
        if free and key in first:
            same.update(zip(call.made, first[key].made, strict=True))
            continue
        first.setdefault(key, call)
        kept.append(call)
    return kept


def _renamed(call: Call, same: dict[int, int]) -> Call:
    def moved(p: Place) -> Place:
        return Place(same[p.buffer], p.offset) if p.buffer in same else p

    inputs = [(moved(p), spec) for p, spec in call.inputs]
    return replace(call, places=[*map(moved, call.places)], inputs=inputs)


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
        makers.update(dict.fromkeys(call.made, group))
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
