"""Runs of a kernel of one's own in other ways than a call: in Python, between guard bands, in another order.

They show what a call can not: what is out of bounds, what is not written, what depends on the threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.program import LaunchTable, Spec

from ..table import Attributes, Op
from ..tensor import Tensor, address_of
from .kernel import Kernel

#: Bytes before and after each array that a kernel writes to, which must stay as they are.
_BAND = 256

Array = NDArray[Any]


class BrokenLaw(AssertionError):
    """A law does not hold; the message says why."""


def in_python(kernel: Kernel, tensors: Sequence[Tensor], statics: Attributes) -> list[Array]:
    """Run a kernel's function in Python, and return the outputs.

    Raises BrokenLaw with the line of an error, such as an index out of bounds.
    """
    try:
        return kernel.run_in_python(tensors, statics)
    except Exception as error:
        place, line = kernel.line_of(error)
        what = f"{type(error).__name__}: {error}"
        if "read-only" in str(error):
            what = "writes to an input"
        elif isinstance(error, IndexError):
            what = f"an index is out of bounds ({error})"
        raise BrokenLaw(f"{kernel!r}: {place}, {line}: {what}") from None


def between_bands(op: Op, tensors: Sequence[Tensor], statics: Attributes, fill: int) -> list[bytes]:
    """Run an op on outputs and scratch that held a byte before; return the outputs.

    Raises BrokenLaw where something beside them is written.
    """
    plan = op.planned([(t.shape, t.dtype) for t in tensors], statics)
    sizes = [Spec(*spec).nbytes for spec in plan.outputs] + list(plan.scratch)
    blocks = [np.full(n + 2 * _BAND + -n % 64, fill, np.uint8) for n in sizes]
    if plan.program is not None:
        addresses = [t.address for t in tensors] + [address_of(b) + _BAND for b in blocks]
        if plan.program.run(addresses) >= 0:
            raise op.error(tuple(tensors), statics)
    for block, n in zip(blocks, sizes, strict=True):
        if (block[:_BAND] != fill).any() or (block[_BAND + n :] != fill).any():
            raise BrokenLaw("the kernel writes outside of an output or of scratch")
    return [b[_BAND : _BAND + n].tobytes() for b, n in zip(blocks[: len(plan.outputs)], sizes, strict=False)]


def in_order(
    op: Op, tensors: Sequence[Tensor], statics: Attributes, backwards: bool
) -> tuple[list[bytes], int]:
    """Run an op with its ranges from the last to the first, or all threads; return outputs and ranges."""
    plan = op.planned([(t.shape, t.dtype) for t in tensors], statics)
    results, scratch = plan.results(op.name, False), plan.scratch_buffers(op.name)
    for a in (*[t.array for t in results], *scratch):
        a[...] = 0  # not what an earlier run has left there
    addresses = [*[t.address for t in (*tensors, *results)], *map(address_of, scratch)]
    for launch in plan.launches:
        if not backwards:
            LaunchTable([replace(launch, work_ns=1e12)]).run(addresses)
            continue
        table = LaunchTable([launch]).bound(addresses)
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(launch.entry)
        for chunk in reversed(range(launch.chunks)):
            run(table.block(), chunk, chunk + 1)
    return [t.array.tobytes() for t in results], sum(launch.chunks for launch in plan.launches)
