"""Capturing: what ops launch while a function runs, recorded, to run again as one program (`captured.py`).

The function runs once, eagerly. Each op adds its launches and the memory that they read and wrote; tensors
are known by their memory, so views need no launch.

What a Python program does with the values of tensors is not seen. So reading one (`item`, `numpy`, `if x >
0`) while recording makes the recording void, and says which. Numbers that Python computes from the count of
steps, as a schedule does, are computed anew before each run: see `Counter` and `computed`.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from treepie.kernels.program import Launch, Spec

if TYPE_CHECKING:
    from .tensor import Tensor


class Row(Protocol):
    """What a call needs of its op: the error to raise where a kernel reported one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def failure(self) -> Any:
        """Its failure, see `table.Op`."""

    @property
    def in_place(self) -> bool:
        """Whether an output may lie where an input does, see `table.Op`."""


@dataclass
class Call:
    """An op that ran: its launches over buffers that it numbers, and which those are in the recording."""

    op: Row
    meta: dict[str, Any]
    launches: tuple[Launch, ...]
    places: list[Place]  # inputs, outputs, scratch
    inputs: list[tuple[Place, Spec]]
    outputs: list[Spec]
    made: tuple[int, ...]  # buffers that it writes: outputs and scratch


@dataclass(frozen=True)
class Place:
    """Bytes of a buffer, from an offset on."""

    buffer: int
    offset: int = 0


class _State(threading.local):
    recorder: Recorder | None = None


#: The recorder of this thread; None while nothing is captured.
state = _State()


class Recorder:
    """What ops did while it was active, and why it is void, if it is.

    It holds on to givens and constants. What ops make may die meanwhile, so that a recording takes no more
    memory than running does; what gets that memory next is something else, though its address is the same.
    """

    def __init__(self, givens: Sequence[Tensor]) -> None:
        """Begin; `givens` are the tensors whose values are others in later runs."""
        self.calls: list[Call] = []
        self.void: str | None = None
        self.sizes: list[int] = []  # bytes of each buffer
        self.held: list[Tensor | None] = []  # the memory of givens and constants
        self.computed: list[Computed] = []
        self.arrays: dict[int, Tensor] = {}  # id of an array of NumPy's that fn is given -> the tensor of it
        self._owners: list[weakref.ref[Any] | None] = []  # whose memory a buffer is, where not held
        self._starts: list[tuple[int, int]] = []  # (address, buffer), sorted; none overlap
        self.givens = len(givens)
        self.derived = {self._new(t, held=True) for t in givens}  # all but constants

    def _new(self, t: Tensor, held: bool) -> int:
        number = len(self.sizes)
        self.sizes.append(t.array.nbytes)
        self.held.append(t if held else None)
        self._owners.append(None if held else weakref.ref(_owner(t)))
        if t.array.nbytes:
            self._forget(t.address, t.address + t.array.nbytes)
            insort(self._starts, (t.address, number))
        return number

    def _forget(self, start: int, end: int) -> None:
        """Forget buffers in memory that another tensor has now."""
        k = bisect_right(self._starts, (start, -1))
        if k and self._starts[k - 1][0] + self.sizes[self._starts[k - 1][1]] > start:
            k -= 1
        while k < len(self._starts) and self._starts[k][0] < end:
            del self._starts[k]

    def place(self, t: Tensor) -> Place:
        """Return where a tensor lies; memory that is not known is a constant's."""
        found = self._find(t)
        return found if found is not None else Place(self._new(t, held=True))

    def _find(self, t: Tensor) -> Place | None:
        if not t.array.nbytes:
            return None
        k = bisect_right(self._starts, (t.address, len(self.sizes))) - 1
        if k < 0:
            return None
        start, number = self._starts[k]
        owner = self._owners[number]
        if t.address + t.array.nbytes > start + self.sizes[number]:
            return None
        return Place(number, t.address - start) if owner is None or owner() is _owner(t) else None

    def add(
        self,
        op: Row,
        launches: tuple[Launch, ...],
        inputs: Sequence[Tensor],
        meta: dict[str, Any],
        outputs: Sequence[Tensor],
        scratch: Sequence[int],
    ) -> None:
        """Take the call of an op."""
        read = [self.place(t) for t in inputs]
        made = [self._new(t, held=False) for t in outputs]
        for size in scratch:
            made.append(len(self.sizes))
            self.sizes.append(size)
            self.held.append(None)
            self._owners.append(None)
        if self.derived.intersection(p.buffer for p in read):
            self.derived.update(made)
        places = [*read, *map(Place, made)]
        specs = [(p, Spec(t.shape, t.dtype)) for p, t in zip(read, inputs, strict=True)]
        given = [Spec(t.shape, t.dtype) for t in outputs]
        self.calls.append(Call(op, meta, launches, places, specs, given, tuple(made)))

    def read(self, t: Tensor) -> None:
        """Note that Python reads the value of a tensor."""
        found = self._find(t)
        if found is not None and found.buffer in self.derived:
            self.refuse(f"it reads the values of a tensor of shape {t.shape} in Python")

    def converted(self, data: Any) -> Tensor | None:
        """Return the tensor of an array that the function was given; None for one that it made itself."""
        known = self.arrays.get(id(data))
        if known is None and self.arrays and isinstance(data, np.ndarray):
            # It may be computed from one that is another in the next run.
            self.refuse(f"it makes a NumPy array of shape {data.shape} while it uses others from outside")
        return known

    def refuse(self, why: str) -> None:
        """Make the recording void; the first reason counts."""
        self.void = self.void or why


def _owner(t: Tensor) -> Any:
    """Return the object whose memory a tensor's is."""
    return t.array if t.array.base is None else t.array.base


@contextmanager
def record(givens: Sequence[Tensor]) -> Iterator[Recorder]:
    """Record the ops of a block of code. Recordings do not nest: an inner one belongs to the outer."""
    before, recorder = state.recorder, Recorder(givens)
    state.recorder = recorder
    try:
        yield recorder
    finally:
        state.recorder = before


class Counter:
    """A count of steps, another in each run: `source` says of what, `value` is what it is in this one.

    Whole numbers can be added to it. Any other use reads it in Python, which makes the recording void.
    """

    __slots__ = ("offset", "source", "value")

    def __init__(self, value: int, source: int, offset: int = 0) -> None:
        self.value, self.source, self.offset = value, source, offset

    def __add__(self, n: int) -> Counter:
        """Return a later count."""
        return Counter(self.value + n, self.source, self.offset + n)

    __radd__ = __add__

    def __index__(self) -> int:
        """Return the number, which a program can not repeat."""
        if state.recorder is not None:
            state.recorder.refuse("it reads a count of steps in Python")
        return self.value


def _reading(name: str) -> Callable[..., Any]:
    return lambda self, *others: getattr(self.__index__(), name)(*others)


#: What else Python asks of a number.
_READS = ["eq", "ne", "lt", "le", "gt", "ge", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv"]
_READS += ["mod", "pow", "rpow", "neg", "abs", "int", "float", "bool", "hash", "format", "str"]
for _name in _READS:
    setattr(Counter, f"__{_name}__", _reading(f"__{_name}__"))


@dataclass(frozen=True)
class Computed:
    """A tensor whose numbers are `function(count)`; it is written to before each run."""

    tensor: Tensor
    function: Callable[[int], Sequence[float]]
    count: Counter

    def refresh(self, counts: Sequence[int]) -> None:
        """Compute the numbers of a run, in which the counts of all sources are these."""
        self.tensor.array[...] = self.function(counts[self.count.source] + self.count.offset)


def computed(function: Callable[[int], Sequence[float]], count: int | Counter, dtype: np.dtype) -> Tensor:
    """Return numbers that Python computes from a count of steps as a tensor."""
    from .tensor import Tensor

    if not isinstance(count, Counter):
        return Tensor(np.array(function(count), dtype))
    made = Tensor(np.array(function(count.value), dtype))
    if state.recorder is not None:
        state.recorder.computed.append(Computed(made, function, count))
        state.recorder.derived.add(state.recorder.place(made).buffer)
    return made


class _Bytes:
    """The memory from the first of some tensors to the end of the last, as NumPy's array interface."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        start = tensors[0].address
        size = max(t.address + t.array.nbytes for t in tensors) - start
        self.arrays = [t.array for t in tensors]  # which own it
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (start, False)}


def blocks(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[tuple[int, int], ...]]:
    """Return the memory of tensors in blocks, and of each tensor (block, offset in bytes).

    Tensors that share memory, or lie side by side in that of one owner, as parameters do in an optimizer's
    buffers, are one block. Where every tensor is a block of its own, the places are ().
    """
    end = -1
    for start, size in sorted([(t.address, t.array.nbytes) for t in tensors]):
        if start <= end:
            return _grouped(tensors)
        end = start + size
    return list(tensors), ()


def _grouped(tensors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[tuple[int, int], ...]]:
    from .tensor import Tensor

    groups: list[list[int]] = []
    end, last = -1, None
    for address, k in sorted((t.address, k) for k, t in enumerate(tensors)):
        t = tensors[k]
        if last is not None and (address < end or (address == end and _owner(t) is _owner(last))):
            groups[-1].append(k)
        else:
            groups.append([k])
        end, last = max(end, address + t.array.nbytes), t
    if len(groups) == len(tensors):
        return list(tensors), ()
    made: list[Tensor] = []
    places = [(0, 0)] * len(tensors)
    for group in sorted(groups, key=min):  # an order that does not depend on where memory is
        first = tensors[group[0]]
        for k in group:
            places[k] = (len(made), tensors[k].address - first.address)
        alone = len(group) == 1
        made.append(first if alone else Tensor(np.asarray(_Bytes([tensors[k] for k in group]))))
    return made, tuple(places)
