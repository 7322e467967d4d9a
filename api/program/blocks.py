"""The memory of a jitted function's arguments: contiguous blocks, some of which are donated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treepie.autodiff import Tensor


def contiguous_blocks(tensors: Sequence[Tensor]) -> tuple[list[int], tuple[bool, ...]]:
    """Return which tensors begin a block of memory, and of each tensor whether it continues the last block.

    Parameters are stored contiguously in an optimizer's buffers, each of which it reads as one array.
    """
    firsts, continues, end, base = [], [], -1, None
    for k, t in enumerate(tensors):
        array, start = t.array, t._address or t.address
        owner = array.base
        continued = start == end and owner is base and owner is not None
        continues.append(continued)
        if not continued:
            firsts.append(k)
        end, base = start + array.nbytes, owner
    return firsts, tuple(continues)


def donated_blocks(donated: Sequence[bool], continues: Sequence[bool]) -> tuple[int, ...]:
    """Return the blocks all of whose tensors are donated.

    donated: of each tensor whether it is.  continues: see `contiguous_blocks`.
    """
    blocks: list[bool] = []
    for own, continued in zip(donated, continues, strict=True):
        if continued:
            blocks[-1] &= own
        else:
            blocks.append(own)
    return tuple([k for k, own in enumerate(blocks) if own])


def overlap(addresses: Sequence[int], sizes: Sequence[int], donated: Sequence[int]) -> bool:
    """Whether a donated block overlaps another block."""
    spans = [(a, a + n) for a, n in zip(addresses, sizes, strict=True)]
    return any(
        j != k and spans[k][0] < spans[j][1] and spans[j][0] < spans[k][1]
        for k in donated
        for j in range(len(spans))
    )


def owners(tensors: Sequence[Tensor], firsts: Sequence[int], donated: Sequence[int]) -> dict[int, Any]:
    """Return donated block -> the array that owns its memory.

    firsts: the tensor that begins each block.
    """
    arrays = {}
    for k in donated:
        array = tensors[firsts[k]].array
        arrays[k] = array if array.base is None else array.base
    return arrays
