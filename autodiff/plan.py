"""The plan of an op's call, and the memory of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import memory
from treepie.kernels.program import Launch, LaunchTable, Spec

from .limits import check_total, out_of_memory
from .tensor import Tensor, address_of

Shape = tuple[int, ...]

_BYTE = np.dtype("u1")


@dataclass(frozen=True)
class Plan:
    """The launches of an op for inputs of some shapes and dtypes.

    scratch: bytes of each scratch buffer, which are numbered after inputs and outputs.
    """

    outputs: tuple[tuple[Shape, np.dtype], ...]
    scratch: tuple[int, ...]
    program: LaunchTable | None
    launches: tuple[Launch, ...]

    def results(self, name: str, recycled: bool) -> list[Tensor]:
        """Return uninitialized outputs. name: of the op, for the MemoryError."""
        empty = memory.recycled if recycled else memory.aligned
        results = []
        try:
            for shape, dtype in self.outputs:
                array = empty(shape, dtype)
                result = Tensor(array, None)
                result._address = address_of(array)
                results.append(result)
        except MemoryError:
            raise out_of_memory(name, *self.outputs[len(results)]) from None
        return results

    def scratch_buffers(self, name: str) -> list[NDArray[Any]]:
        """Return the scratch buffers."""
        buffers: list[NDArray[Any]] = []
        try:
            for size in self.scratch:
                buffers.append(memory.recycled((size,), _BYTE))
        except MemoryError:
            raise out_of_memory(f"{name}, scratch", (self.scratch[len(buffers)],), _BYTE) from None
        return buffers


def checked(name: str, specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Return the results of a shape rule, or raise ValueError where 64 bits do not count their bytes."""
    for spec in specs:
        check_total(name, spec.shape)
    return tuple(specs)
