"""Operands that several products of a program read in one layout: each is packed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .graph import OpCall, Slice


def share_packing(calls: Sequence[OpCall]) -> list[OpCall]:
    """Drop launches that pack what an earlier one has packed; their calls read the earlier result.

    A buffer of a graph has one value, so launches that are equal and read the same slices write the same.
    """
    packed: dict[Any, Slice] = {}
    result = []
    for call in calls:
        slices, launches, dropped = list(call.slices), [], set[int]()
        for launch in call.launches:
            if launch.packed is not None:
                out = next(o.buffer for word, o in launch.slots if word == launch.packed)
                read = tuple(
                    (call.slices[o.buffer], o.offset) for word, o in launch.slots if word != launch.packed
                )
                key = launch.entry, launch.chunks, launch.words, read
                if key in packed:
                    dropped.add(slices[out].buffer)
                    slices[out] = packed[key]
                    continue
                packed[key] = slices[out]
            launches.append(launch)
        if dropped:
            written = tuple(b for b in call.written if b not in dropped)
            call = replace(call, slices=slices, launches=tuple(launches), written=written)
        result.append(call)
    return result
