"""Sums over ranks that share memory, and phases to which all of them come."""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import config, native
from .atomics import load, pause, store, ticks
from .compiled import c_function, device
from .helpers import ticks_per_ns
from .intrinsics import rows_at, scalar
from .kernel import A1, A2, Status, Words, kernel
from .memory import address_of
from .program import Address, Launch, LaunchTable, Operand, Spec
from .rows import row_map, row_reduce
from .vector import Value, sqrt

#: Elements of a chunk: its running sum stays in the first-level cache while rank after rank is added.
_CHUNK = 4096


def _square(x: Value) -> Value:
    wide = x.astype("float64")
    return wide * wide


_root = scalar(sqrt)
_add = row_map("rank_add", lambda a, b: a + b)
_copy = row_map("rank_copy", lambda a: a)
_squares = row_reduce("rank_squares", _square, lambda a, b: a + b, -0.0)


@kernel
def _sum(lo: int, hi: int, like: A1, squares: A1, sources: Words, targets: Words) -> None:
    size = like.size
    for chunk in range(lo, hi):
        first = chunk * _CHUNK
        count = min(_CHUNK, size - first)
        skip = first * like.itemsize
        out = rows_at(targets[0] + skip, 1, count, like)[0]
        x = rows_at(sources[0] + skip, 1, count, like)[0]
        if sources.size == 1:
            _copy(out, x)
        for r in range(1, sources.size):
            y = rows_at(sources[r] + skip, 1, count, like)[0]
            if r == 1:
                _add(out, x, y)
            else:
                _add(out, out, y)
        if squares.size:
            squares[chunk] = _squares(out)
        for r in range(1, targets.size):
            _copy(rows_at(targets[r] + skip, 1, count, like)[0], out)


def _chunk_count(size: int) -> int:
    """Return into how many chunks arrays of a size are cut."""
    return -(-size // _CHUNK)


@functools.lru_cache(64)
def _table(size: int, dtype: np.dtype, sources: int, targets: int, squares: bool) -> LaunchTable:
    return LaunchTable([_sum_launch(size, dtype, sources, targets, squares)])


def _sum_launch(size: int, dtype: np.dtype, sources: int, targets: int, squares: bool) -> Launch:
    """Plan a sum: its buffers are the sources, the targets, and the sums of squares of chunks."""
    spec = Spec((size,), dtype)
    addresses = [Address(Operand(k, spec)) for k in range(sources + targets)]
    work_ns = (sources + targets) * spec.nbytes * config.BYTE_NS
    chunks = _chunk_count(size)
    partial = Operand(sources + targets, Spec((chunks if squares else 0,), np.dtype("float64")))
    from_, to = tuple(addresses[:sources]), tuple(addresses[sources:])
    return _sum(chunks, work_ns, Operand(0, spec), partial, from_, to)


def sum_arrays(
    size: int,
    dtype: np.dtype,
    sources: Sequence[int],
    targets: Sequence[int],
    norm: bool = False,
) -> float:
    """Add up arrays at addresses, in their order, and store the sum at other addresses.

    Targets may be among the sources; the first target may be none of them but the first two, since the sum is
    built up there. Returns the Euclidean norm of the sum if `norm`, else 0.
    """
    if not size:
        return 0.0
    squares = np.zeros(_chunk_count(size) if norm else 0)
    _table(size, dtype, len(sources), len(targets), norm).run([*sources, *targets, address_of(squares)])
    return math.sqrt(np.add.accumulate(squares)[-1]) if norm else 0.0  # in the order of `_tell`


@device
def meet(words: int, stride: int, own: int, count: int, phase: int, at: int, value: int, limit: int) -> int:
    """Come to a phase, and wait for the first `count` ranks to come to it too; then compare a word of theirs.

    words: the address of the phase of the first rank; those of the others follow by a stride.
    own: this rank's number.  at: the offset of the word that is compared.  value: this rank's.

    Returns -1, the number of a rank with another value, or, after `limit` ticks, `count` + that of one that
    has not come. It may be called again for the same phase.
    """
    mine = words + own * stride
    store(mine + at, value)
    store(mine, phase)
    until = ticks() + limit
    for k in range(count):
        while load(words + k * stride) < phase:
            if ticks() > until:
                return count + k
            pause()
    for k in range(count):
        if load(words + k * stride + at) != value:
            return k
    return -1


@kernel
def _meet(lo: int, hi: int, place: A1, late: Status) -> None:
    found = meet(place[0], place[1], place[2], place[3], place[4], place[5], place[6], place[7])
    if found >= 0:
        late[0] = found + 1


@device
def _scaled_squares(norms: NDArray[np.float64]) -> tuple[float, float]:
    """Return the largest norm, and the sum of the squares of all over it, added up in their order."""
    most = 0.0
    for norm in norms:
        if norm != norm:
            return norm, 1.0
        most = max(most, norm)
    if most == 0.0 or most == np.inf:
        return most, 1.0
    total = 0.0
    for norm in norms:
        total += (norm / most) * (norm / most)
    return most, total


def combined(norms: Sequence[float]) -> float:
    """Return the Euclidean norm of what parts with these norms make up, without an overflow."""
    most, total = _scaled_squares(np.array(norms, np.float64))
    return float(most * math.sqrt(total))


@kernel
def _tell(lo: int, hi: int, place: A1, parts: A2, squares: A1, slots: Words, results: Words) -> None:
    """Write this rank's rows of the table that ranks exchange."""
    shards, ranks = parts[0, 0], parts[0, 1]
    table = rows_at(slots[place[8]], shards + ranks, 3, squares)
    table[:] = 0.0
    for k in range(results.size):
        shard, result = parts[1 + k, 0], rows_at(results[k], 1, 2, squares)[0]
        table[shard, 0] += result[0] * result[1]
        table[shard, 1] += result[1]
        table[shard, 2] += parts[1 + k, 1]
    total = 0.0
    for square in squares:
        total += square
    own = shards + place[2]
    table[own, 0] = _root(total)
    table[own, 2] = parts[0, 2]


@kernel
def _totals(
    lo: int, hi: int, place: A1, slots: Words, settings: Words, table: A2, norms: A1, values: A1, no: Status
) -> None:
    """Add up the tables of all ranks; report an error where the step cannot end as one call."""
    ranks, rows = norms.size, table.shape[0]
    shards = rows - ranks
    for r in range(ranks):
        told = rows_at(slots[place[8] * ranks + r], rows, 3, values)
        for k in range(rows):
            for c in range(3):
                table[k, c] = told[k, c] if r == 0 else table[k, c] + told[k, c]
    loss = weight = elements = 0.0
    for k in range(shards):
        loss += table[k, 0]
        weight += table[k, 1]
    for r in range(ranks):
        norms[r] = table[shards + r, 0]
        elements += table[shards + r, 2]
        if table[shards + r, 1] != 0.0:
            no[0] = 1
    if weight == 0.0:
        no[0] = 1
    values[0] = 1.0 if settings[0] else weight
    values[1] = loss
    nodes = elements / max(settings[1], 1)
    most, squares = _scaled_squares(norms)
    values[2] = most * _root(squares) / (values[0] * _root(nodes if nodes != 0.0 else 1.0))


@dataclass(frozen=True)
class Exchange:
    """What ranks that share memory add up and tell each other before they share an update.

    size, dtype: of this rank's part of the gradients.  sources: where each rank has it, in their order.
    targets: see `sum_arrays`.
    slots: for even and odd sums, where each rank writes its table.  own: this rank's number.
    shards: rows of the table before those of ranks.  parts: how many results of this rank's there are.
    summed: whether the weight of the losses is 1.  length: elements of all gradients.
    """

    size: int
    dtype: np.dtype
    sources: Sequence[int]
    targets: Sequence[int]
    slots: Sequence[Sequence[int]]
    own: int
    shards: int
    parts: int
    summed: bool
    length: int


class ExchangeTable:
    """The launches of an exchange: ranks meet, each adds up its part, they exchange a table and add it up.

    places: (3, 9): of the sum, of the exchange and of what follows the update: the arguments of `meet`, and
        whether the number of the collective is odd.
    parts: the numbers of shards, ranks and elements; then of each result its shard and its examples.
    table: the sum of the tables.  values: where the weight, the loss and the norm are written.
    before, after: the launches around the update.  meets: those launches of `before` that ranks wait in.
    """

    meets = (0, 3)

    def __init__(self, exchange: Exchange, values: NDArray[np.float64]) -> None:
        x, ranks = exchange, len(exchange.sources)
        float64, int64 = np.dtype("float64"), np.dtype("int64")
        self.places = np.zeros((3, 9), np.int64)
        self.parts = np.zeros((1 + x.parts, 3), np.int64)
        self.parts[0] = x.shards, ranks, x.size
        self.table = np.zeros((x.shards + ranks, 3))
        self._squares, self._norms = np.zeros(_chunk_count(x.size)), np.zeros(ranks)
        self._values = values
        arrays = (self.places, self.parts, self.table, self._squares, self._norms, values)
        sums = len(x.sources) + len(x.targets)
        places, parts, table, squares, norms, total = range(sums + 1, sums + 7)
        self._first = sums + 7

        def place(k: int) -> Operand:
            return Operand(places, Spec((9,), int64), 72 * k)

        def array(buffer: int, of: NDArray[Any]) -> Operand:
            return Operand(buffer, Spec(of.shape, of.dtype))

        word = Spec((1,), int64)
        results = [Address(Operand(self._first + k, word)) for k in range(x.parts)]
        own_slots, all_slots = tuple([s[x.own] for s in x.slots]), tuple([a for s in x.slots for a in s])
        total_operand = Operand(total, Spec((3,), float64))
        told = array(squares, self._squares)
        add = _sum_launch(x.size, x.dtype, len(x.sources), len(x.targets), True)
        tell = _tell(1, 0.0, place(1), array(parts, self.parts), told, own_slots, tuple(results))
        settings = (int(x.summed), x.length)
        table_operand = array(table, self.table)
        totals = _totals(
            1, 0.0, place(1), all_slots, settings, table_operand, array(norms, self._norms), total_operand
        )
        launches = [_meet(1, 0.0, place(0)), add, tell, _meet(1, 0.0, place(1)), totals]
        addresses = [*x.sources, *x.targets, address_of(self._squares), *map(address_of, arrays)]
        addresses += [0] * x.parts
        self.before = LaunchTable(launches).bound(addresses)
        self.after = LaunchTable([_meet(1, 0.0, place(2))]).bound(addresses)

    def bind(self, part: int, result: int) -> None:
        """Read the loss and the weight of a part at an address."""
        self.before.rebind(self._first + part, result)


def publish(address: int, value: int) -> int:
    """Set a word, after which others see what was stored before."""
    return store(address, value)


@functools.cache
def _c(name: str, arguments: int) -> "ctypes._FuncPointer":
    functions: dict[str, Callable[..., int]] = {"meet_ranks": meet, "publish_word": publish}
    function = functions[name]
    address = native.load(name, lambda: c_function(name, function, arguments, returns=True))
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)(address)


def come(*place: int, ns: float = 0) -> int:
    """Run `meet`, and wait actively for so many ns. place: its arguments but the last."""
    return _c("meet_ranks", 8)(*place, ticks_of(ns))  # type: ignore[no-any-return]


def ticks_of(ns: float) -> int:
    """Return so many nanoseconds in ticks of the clock."""
    return round(ns * ticks_per_ns())


def set_word(address: int, value: int) -> None:
    """Set a word that other processes wait for, after all that was stored before."""
    _c("publish_word", 2)(address, value)
