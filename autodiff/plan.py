"""The plan of an op's call, and the memory of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels import config, memory
from treepie.kernels.direct import Direct, direct
from treepie.kernels.program import Launch, LaunchTable, Spec

from .limits import check_total, out_of_memory
from .tensor import Tensor, address_of

Shape = tuple[int, ...]

_BYTE = np.dtype("u1")
#: The scratch buffer of a product that packs nothing.
_NONE = np.empty(0, _BYTE)


@dataclass(frozen=True)
class Plan:
    """The launches of an op for inputs of some shapes and dtypes.

    scratch: bytes of each scratch buffer, which are numbered after inputs and outputs.
    """

    outputs: tuple[tuple[Shape, np.dtype], ...]
    scratch: tuple[int, ...]
    program: LaunchTable | None
    launches: tuple[Launch, ...]

    @cached_property
    def direct(self) -> Direct | None:
        """The function that runs a small program on the arrays of all buffers, or None."""
        return direct(self.program, self.launches) if self.program is not None else None

    @cached_property
    def _small(self) -> bool:
        """Whether no output is large enough to be aligned or recycled."""
        return all(Spec(*output).nbytes < config.ALIGNED_LEAST for output in self.outputs)

    def small(self) -> list[Tensor] | None:
        """Return uninitialized outputs if all are small, else None."""
        return [Tensor(np.empty(s, d), None) for s, d in self.outputs] if self._small else None

    def results(self, name: str, recycled: bool) -> list[Tensor]:
        """Return uninitialized outputs. name: of the op, for the MemoryError."""
        empty = memory.recycled if recycled else memory.aligned
        results: list[Tensor] = []
        try:
            for shape, dtype in self.outputs:
                results.append(Tensor(empty(shape, dtype), None))
        except MemoryError:
            raise out_of_memory(name, *self.outputs[len(results)]) from None
        return results

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], name: str) -> bool:
        """Run the launches by the launch table; return whether one reported an error."""
        if self.program is None:
            return False
        scratch = self.scratch_buffers(name)  # a name keeps them alive during the run
        addresses = [t.address for t in (*inputs, *outputs)]
        return self.program.run(addresses + [address_of(a) for a in scratch]) >= 0

    def scratch_buffers(self, name: str) -> list[NDArray[Any]]:
        """Return the scratch buffers. name: of the op, for the MemoryError."""
        buffers: list[NDArray[Any]] = []
        try:
            for size in self.scratch:
                buffers.append(memory.recycled((size,), _BYTE) if size else _NONE)
        except MemoryError:
            raise out_of_memory(f"{name}, scratch", (self.scratch[len(buffers)],), _BYTE) from None
        return buffers


def checked(name: str, specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Return the results of a shape rule, or raise ValueError where 64 bits do not count their bytes."""
    for spec in specs:
        check_total(name, spec.shape)
    return tuple(specs)
