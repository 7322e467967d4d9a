"""Runs of a program."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..table import Op
from ..tensor import Tensor, address_of
from .instance import Arena, Instance, NumberRows

if TYPE_CHECKING:
    from .program import Program

_BYTE = np.dtype(np.uint8)


class Run:
    """A run of a program. Its results are valid until `Program.done`; fresh ones stay so."""

    __slots__ = ("arena", "instance", "memories", "owns_arena", "program")

    def __init__(
        self, program: Program, instance: Instance, arena: Arena, memories: Any, owns_arena: bool
    ) -> None:
        self.program, self.instance, self.arena, self.memories = program, instance, arena, memories
        self.owns_arena = owns_arena

    def again(
        self,
        first: int,
        addresses: Sequence[int],
        numbers: Sequence[Any],
        user_numbers: Sequence[Any] = (),
        arena: Arena | None = None,
    ) -> None:
        """Prepare the run anew, with other addresses of externals from `first` on, and other numbers.

        Of a program without fresh results; see `Program.prepare`. Its arena has been released.
        """
        program, instance = self.program, self.instance
        if arena is None:
            arena = program._arenas.acquire(program.bytes)
        self.arena = arena
        current, rebind = instance.addresses, instance.bound.rebind
        for k, address in enumerate(addresses, first):
            if current[k] != address:
                rebind(k, address)
        if current[program._arena] != arena.address:
            rebind(program._arena, arena.address)
        if user_numbers:
            program.write_user_numbers(instance.numbers, user_numbers)
        if program._computed:
            program.write_numbers(instance.numbers, 0, numbers)

    def release_arena(self) -> None:
        """Let other runs use the arena, where the run took it from the pool."""
        if self.owns_arena:
            self.program._arenas.release(self.arena)

    def go(self) -> int:
        """Run the launches; return -1, or the index of the launch that reported an error."""
        return self.instance.bound.run()

    def scalar(self, k: int) -> Any:
        """Return a scalar result as a Python number."""
        dtype, index = self.program._results[k]
        return self.instance.numbers.arrays[dtype][index]

    def scalar_address(self, k: int) -> int:
        """Return the address of a scalar result."""
        dtype, index = self.program._results[k]
        return self.instance.addresses[self.program._scalars] + index * dtype.itemsize

    def fresh(self) -> list[Tensor]:
        """Return the fresh results; they have their elements after `go`."""
        tensors, memories = [], self.memories
        for buffer, first, shape, dtype in self.program._fresh_results:
            block, offset, start = memories[buffer]
            offset += first
            t = Tensor(np.ndarray(shape, dtype, block, offset), None)
            t._address = start + offset
            tensors.append(t)
        return tensors

    def error(self, failed: int) -> Exception:
        """Return the error that a launch reported, whose inputs still have their elements."""
        call, inputs = self.program.calls[failed]
        assert isinstance(call.op, Op)
        tensors = []
        for p, spec in inputs:
            start = self.instance.addresses[p.buffer] + p.offset
            memory = (ctypes.c_char * spec.nbytes).from_address(start)
            array: np.ndarray = np.ndarray(spec.shape, spec.dtype, memory)  # type: ignore[arg-type]
            tensors.append(Tensor(array.copy(), None))
        return call.op.error(tensors, call.attributes)

    def peeked(self) -> list[np.ndarray]:
        """Return copies of the peeked values, after a launch has reported an error."""
        copies = []
        for p, spec, constant in self.program._peeked:
            owner = self.arena.memory if constant is None else constant.array.reshape(-1).view(_BYTE)
            copies.append(np.ndarray(spec.shape, spec.dtype, owner, p.offset).copy())
        return copies


class Runs:
    """Runs of a native program, one after another in one call, each with externals at other addresses.

    addresses: (1 + most, externals), of which the rows from 1 on are set before `go`.
    """

    def __init__(self, run: Run, externals: Sequence[int], most: int) -> None:
        """Take a run, which is then done, the externals that move, and the largest number of runs."""
        self._program, self._instance = program, instance = run.program, run.instance
        program._arenas.release(run.arena)
        self._rows = rows = NumberRows(instance.numbers.size, most)
        buffers = [program._scalars, *externals]
        table = np.empty((1 + most, len(buffers)), np.int64)
        table[0] = [instance.addresses[b] for b in buffers]
        table[1:, 0] = rows.address + rows.size * np.arange(most)
        self.addresses, self._table, self._moves = table[:, 1:], table, instance.bound.moving(buffers)
        self._address = address_of(table)

    def go(self, numbers: Sequence[Sequence[Any]]) -> None:
        """Run the launches, as often as there are numbers. A run whose launch reports an error is the last.

        It ends before numbers from which none follow, since a function of a user's raises an exception.

        numbers: of each run the arguments of `Request.numbers`.
        """
        program, instance, rows = self._program, self._instance, self._rows
        count = 0
        with contextlib.suppress(Exception):  # raised again where the run is taken by itself
            for arguments in numbers:
                program.write_numbers(rows, count, arguments)
                count += 1
        arena = program._arenas.acquire(program.bytes)
        instance.bound.rebind(program._arena, arena.address)
        instance.bound.run_each(self._moves, self._address, count)
        program._arenas.release(arena)

    def scalars(self, k: int, count: int) -> list[Any]:
        """Return a scalar result of the first `count` runs as Python numbers."""
        dtype, index = self._program._results[k]
        stride = self._rows.size // dtype.itemsize
        scalars: list[Any] = self._rows.arrays[dtype][index : index + stride * count : stride]
        return scalars

    def done(self) -> None:
        """Return the instance to the program's pool."""
        self._program._pool.append(self._instance)
