"""Pipelines of examples: lazy, one pass at a time, with random access underneath.

A pipeline is a length and a function (pass, k) -> element: `batch`, `take` and `shuffle` compute only
the elements that are read, and the order of a pass depends only on its number.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, overload

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, rng, tensor
from treepie.autodiff.arguments import as_tensor, described, integer
from treepie.autodiff.ops.random import check_key
from treepie.autodiff.tensor import TensorLike

from ..distributed.communicator import Communicator, check_communicator
from ..errors import explain_calls
from .element import T_co, U, unpacking
from .prefetch import Prefetcher
from .rows import Shards, array_of, read_rows, row_count, rows_of


class Data(Generic[T_co]):
    """A lazy pipeline of elements; iterating yields each once, until `reset()` begins the next pass.

    length: number of elements.  element: (pass, k) -> element k of a pass; usually one of `of_array`,
        `of_tensors`, `of_fn` and `prepare` makes the pipeline.

    A pipeline derived from another (`map`, `batch`, `shuffle` ...) reads it from the beginning and has its
    own position. A function with as many arguments as a tuple element has parts takes the parts:
    `.map(lambda x, y: ...)`.

    >>> import treepie as tp
    >>> data = tp.Data.of_array([1, 2, 3, 4, 5]).map(lambda x: 10 * x).batch(2)
    >>> data.to_list()
    [[10, 20], [30, 40], [50]]
    >>> data.to_list()
    []
    >>> data.reset()
    >>> len(data), next(iter(data))
    (3, [10, 20])
    """

    _tensor_hint = "loop over a pipeline: for x in data"

    def __init__(
        self,
        length: int,
        element: Callable[[int, int], T_co],
        part: Callable[[int, int, Shards], T_co] | None = None,
    ) -> None:
        self._length, self._element = integer("Data", "length", length, least=0), element
        #: (pass, k, shards) -> this rank's rows of an element, computed without the others.
        self._part = part
        #: The ranks that the elements are shared out to.
        self.shards: Shards | None = None
        self._pass, self._next = 0, 0
        self._lock = threading.Lock()

    # ---- sources
    @overload
    @staticmethod
    def of_array(array: Sequence[U]) -> Data[U]: ...
    @overload
    @staticmethod
    def of_array(array: NDArray[Any]) -> Data[Any]: ...
    @staticmethod
    def of_array(array: Sequence[Any] | NDArray[Any]) -> Data[Any]:
        """Return the elements of a list, or the slices of an array along its first axis.

        Raises TypeError for what has no length or no indexing.
        """
        if not hasattr(array, "__len__") or not hasattr(array, "__getitem__"):
            raise TypeError(
                f"Data.of_array: array is a {type(array).__name__}, expected a list or an array (for what "
                "has no length, make a list of it, or use Data.of_fn)"
            )
        return Data(len(array), lambda e, k: array[k])

    @staticmethod
    def of_tensor(x: TensorLike) -> Data[Tensor]:
        """Return the slices of a tensor along its first axis."""
        return Data.of_tensors((x,)).map(lambda row: row[0])

    @staticmethod
    def of_tensors(xs: tuple[TensorLike, ...]) -> Data[tuple[Tensor, ...]]:
        """Return tuples of slices of tensors along their first axes; ValueError for different lengths."""
        tensors = tuple(as_tensor(x) for x in xs)
        length = _length("Data.of_tensors", tensors)
        return Data(length, lambda e, k: tuple(Tensor(np.asarray(x.array[k]), None) for x in tensors))

    @staticmethod
    def of_fn(n: int, fn: Callable[[int], U]) -> Data[U]:
        """Return fn(0), ..., fn(n - 1), each computed when it is read."""
        _check_callable("Data.of_fn", fn)
        return Data(_count("Data.of_fn", "n", n, 0), lambda e, k: fn(k))

    @staticmethod
    def repeat(n: int, value: U) -> Data[U]:
        """Return one value n times."""
        return Data(_count("Data.repeat", "n", n, 0), lambda e, k: value)

    @overload
    @staticmethod
    def prepare(
        arrays: tuple[TensorLike, ...], batch_size: int, shuffle: Tensor | None = ..., drop_last: bool = ...
    ) -> Data[tuple[Tensor, ...]]: ...
    @overload
    @staticmethod
    def prepare(
        arrays: Tensor | NDArray[Any], batch_size: int, shuffle: Tensor | None = ..., drop_last: bool = ...
    ) -> Data[Tensor]: ...
    @staticmethod
    @explain_calls
    def prepare(arrays: Any, batch_size: int, shuffle: Tensor | None = None, drop_last: bool = False) -> Any:
        """Return batches of arrays as tensors: a tuple for a tuple of arrays, else a tensor.

        arrays: NumPy arrays (memory-mapped ones are read batch by batch) or tensors, of one length. Do not
            write to them while the pipeline is in use: batches that are not shuffled are views of C-ordered
            arrays that have a tensor's dtype.
        shuffle: a key; pass e is ordered by fold_in(key, e).  drop_last: omit a last batch that is short.

        Raises ValueError for arrays of different lengths, TypeError for a list of arrays.

        >>> import treepie as tp
        >>> for x, y in tp.Data.prepare((tp.arange(5), tp.zeros((5, 3))), batch_size=2, drop_last=True):
        ...     print(x.tolist(), y.shape)
        [0, 1] (2, 3)
        [2, 3] (2, 3)
        """
        if isinstance(arrays, list) and any(hasattr(x, "shape") for x in arrays):
            raise TypeError(
                "Data.prepare: arrays is a list, expected a tuple of arrays, (x, y), or one array"
            )
        if hasattr(batch_size, "shape") and batch_size.shape:
            raise TypeError(
                f"Data.prepare: batch_size is {described(batch_size)}, expected an int (arrays go into one "
                "tuple: Data.prepare((x, y), batch_size=32))"
            )
        if shuffle is not None:
            check_key("Data.prepare", shuffle, "shuffle")
        single = not isinstance(arrays, tuple)
        sources = tuple(array_of(x) for x in ((arrays,) if single else arrays))
        length = _length("Data.prepare", sources)
        size = _count("Data.prepare", "batch_size", batch_size, 1)
        order = None if shuffle is None else _Shuffled(shuffle, length)

        def batch(e: int, k: int, shards: Shards | None = None) -> Tensor | tuple[Tensor, ...]:
            first, last = k * size, min((k + 1) * size, length)
            if shards is not None:
                own = shards.own_rows(last - first)
                first, last = first + own.start, first + own.stop
            rows = slice(first, last) if order is None else order.of_pass(e)[first:last]
            tensors = tuple(read_rows(x, rows) for x in sources)
            return tensors[0] if single else tensors

        return Data(length // size if drop_last else -(-length // size), batch, batch)

    # ---- pipelines from pipelines
    @overload
    def map(self, fn: Callable[[T_co], U]) -> Data[U]: ...
    @overload
    def map(self, fn: Callable[..., U]) -> Data[U]: ...
    def map(self, fn: Callable[..., Any]) -> Data[Any]:
        """Return fn(element) for each element."""
        _check_callable("Data.map", fn)
        call = unpacking(fn)
        return self._with(Data(self._length, lambda e, k: call(self._element(e, k))))

    def batch(self, batch_size: int, drop_last: bool = False) -> Data[list[T_co]]:
        """Return lists of `batch_size` elements; drop_last omits a last one that is short."""
        return self.map_batch(batch_size, lambda elements: elements, drop_last)

    def map_batch(
        self, batch_size: int, collate: Callable[[list[T_co]], U], drop_last: bool = False
    ) -> Data[U]:
        """Return collate(elements) for each list of elements that `batch` returns.

        >>> import treepie as tp
        >>> [b.shape for b in tp.Data.of_tensor(tp.zeros((5, 3))).map_batch(2, tp.data.stack_batch)]
        [(2, 3), (2, 3), (1, 3)]
        """
        _check_callable("Data.map_batch", collate)
        size = _count("Data.batch", "batch_size", batch_size, 1)
        length = self._length // size if drop_last else -(-self._length // size)

        def batch(e: int, k: int) -> U:
            stop = min((k + 1) * size, self._length)
            return collate([self._element(e, j) for j in range(k * size, stop)])

        return Data(length, batch)

    def shuffle(self, key: Tensor) -> Data[T_co]:
        """Return the elements in random order; pass e is ordered by fold_in(key, e).

        >>> import treepie as tp
        >>> sorted(tp.Data.of_array([1, 2, 3]).shuffle(tp.rng.key(0)))
        [1, 2, 3]
        """
        order = _Shuffled(key, self._length)
        return Data(self._length, lambda e, k: self._element(e, int(order.of_pass(e)[k])))

    def prefetch(self, n: int = 2) -> Data[T_co]:
        """Return the same elements, up to n of them computed ahead by a background thread.

        An exception while an element is computed is raised when that element is read. No thread outlives
        a pass, a loop that breaks, or `reset()`.

        >>> import treepie as tp
        >>> tp.Data.of_fn(3, lambda i: i * i).prefetch(2).to_list()
        [0, 1, 4]
        """
        ahead = Prefetcher(self._element, self._length, _count("Data.prefetch", "n", n, 1))
        return self._with(Data(self._length, ahead))

    def take(self, n: int) -> Data[T_co]:
        """Return the first n elements."""
        return self._with(Data(min(_count("Data.take", "n", n, 0), self._length), self._element, self._part))

    def _with(self, data: Data[U]) -> Data[U]:
        """Return a pipeline of this one's elements, which belongs to the same ranks."""
        data.shards = self.shards
        return data

    @property
    def comm(self) -> Communicator | None:
        """The ranks that the elements are shared out to, None where they are not."""
        return None if self.shards is None else self.shards.comm

    # ---- use
    def __len__(self) -> int:
        """Return the number of elements of a whole pass."""
        return self._length

    @property
    def position(self) -> int:
        """The number of elements of this pass that were read."""
        return self._next

    @property
    def pass_number(self) -> int:
        """The number of this pass, from 0; `reset()` begins the next."""
        return self._pass

    def seek(self, pass_number: int, position: int = 0) -> None:
        """Continue at a `pass_number` and `position`, as read from this pipeline or in another process.

        Raises ValueError for a position after the end.
        """
        number = _count("Data.seek", "pass_number", pass_number, 0)
        start = _count("Data.seek", "position", position, 0)
        if start > self._length:
            raise ValueError(f"Data.seek: position is {position}, expected at most {self._length}")
        self._pass, self._next = number, start

    def shard(self, comm: Communicator) -> Data[T_co]:
        """Return this rank's rows of each element: of n rows, those from n * rank // size on.

        comm: `tp.distributed.world()`, or another communicator. An element with fewer rows than there are
            ranks has none on some of them. Batches of `prepare` are read by rows; other elements are computed
            as a whole on every rank, so a slow `map` comes after `shard`.

        >>> import treepie as tp
        >>> data = lambda comm: tp.Data.prepare(tp.arange(5), batch_size=5).shard(comm).to_list()[0].tolist()
        >>> tp.distributed.Local(2).run(data)
        [[0, 1], [2, 3, 4]]
        """
        check_communicator("Data.shard", comm)
        if self.shards is not None:
            raise ValueError("Data.shard: the data is sharded already, expected one call")
        shards, part = Shards(comm), self._part

        def own(e: int, k: int) -> T_co:
            if part is not None:
                return part(e, k, shards)
            element = self._element(e, k)
            return rows_of(element, shards.own_rows(row_count("Data.shard", element)))  # type: ignore[no-any-return]

        data = Data(self._length, own)
        data.shards = shards
        return data

    def __iter__(self) -> Iterator[T_co]:
        """Iterate over the rest of this pass; threads that do so together get each element once."""
        while True:
            with self._lock:
                e, k = self._pass, self._next
                if k >= self._length:
                    return
                self._next = k + 1
            yield self._element(e, k)

    def reset(self) -> None:
        """Begin the next pass; a shuffled pipeline gets a new order."""
        self._pass, self._next = self._pass + 1, 0

    def iter(self, fn: Callable[..., Any]) -> None:
        """Call fn(element) for each element."""
        call = unpacking(fn)
        for element in self:
            call(element)

    def iteri(self, fn: Callable[..., Any]) -> None:
        """Call fn(k, element) for each element, k counting from 0."""
        call = unpacking(fn, leading=1)
        for k, element in enumerate(self):
            call(k, element)

    def fold(self, fn: Callable[..., U], init: U) -> U:
        """Return fn(... fn(fn(init, first), second) ..., last).

        >>> import treepie as tp
        >>> tp.Data.of_array([1, 2, 3]).fold(lambda total, x: total + x, 0)
        6
        """
        call, out = unpacking(fn, leading=1), init
        for element in self:
            out = call(out, element)
        return out

    def to_list(self) -> list[T_co]:
        """Return the rest of this pass."""
        return list(self)


def check_data(function: str, data: Any) -> Data:
    """Return a pipeline, or raise TypeError."""
    if not isinstance(data, Data):
        raise TypeError(
            f"{function}: data is {described(data)}, expected a tp.Data, such as "
            "tp.Data.prepare((x, y), batch_size=32)"
        )
    return data


def check_not_empty(function: str, data: Any) -> Data:
    """Return a pipeline before its end, or raise TypeError or ValueError."""
    pipeline = check_data(function, data)
    if not len(pipeline):
        raise ValueError(
            f"{function}: data is empty, expected at least one element (drop_last leaves out a "
            "batch that is not full: choose a smaller batch_size)"
        )
    if pipeline.position >= len(pipeline):
        raise ValueError(
            f"{function}: data is exhausted after {len(pipeline)} elements, expected some left (call reset())"
        )
    return pipeline


def stack_batch(tensors: Sequence[TensorLike]) -> Tensor:
    """Return tensors stacked along a new first axis: a collate function for `Data.map_batch`.

    tensors: of one shape, else ValueError.

    >>> import treepie as tp
    >>> tp.data.stack_batch([tp.zeros(3), tp.ones(3)]).shape
    (2, 3)
    """
    parts = [as_tensor(x) for x in tensors]
    shapes = sorted({x.shape for x in parts})
    if len(shapes) != 1:
        listed = " and ".join(map(str, shapes)) or "no tensors"
        raise ValueError(f"data.stack_batch: given {listed}, expected tensors of one shape")
    return tensor(np.stack([x.numpy() for x in parts]))


class _Shuffled:
    """The order of each pass; the last one that was read is cached."""

    def __init__(self, key: Tensor, length: int) -> None:
        rng.fold_in(key, 0)  # a wrong key is an error here, not at the first element
        self.of_pass = functools.lru_cache(maxsize=1)(
            lambda e: rng.permutation(rng.fold_in(key, e), length).numpy()
        )


def _check_callable(function: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"{function}: given a {type(fn).__name__}, expected a function")


def _count(function: str, argument: str, value: Any, least: int) -> int:
    return integer(function, argument, value, least)


def _length(function: str, arrays: Sequence[Any]) -> int:
    shapes = [x.shape for x in arrays]
    if not shapes or not all(shapes) or len({s[0] for s in shapes}) > 1:
        listed = " and ".join(map(str, shapes)) or "no arrays"
        raise ValueError(f"{function}: shapes are {listed}, expected first axes of one length")
    return int(shapes[0][0])
