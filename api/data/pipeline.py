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

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TensorLike
from treepie.kernels.frames import warn

from ..distributed.communicator import Communicator, check_communicator
from .ahead import Listed
from .augmentation import Augmentation, AugmentedBatches
from .calls import ShownByCalls, noted
from .copies import OfOneProcess
from .element import T_co, U, check_callable, check_source, unpacking
from .prefetch import Prefetcher
from .rows import Batches, Shards, Shuffled, batches_of, columns_of, length_of, row_count, rows_of


class Data(OfOneProcess, ShownByCalls, Generic[T_co]):
    """A lazy pipeline of elements; iterating yields each once, until `reset()` begins the next pass.

    A loop over a pass that has ended yields nothing, with a RuntimeWarning; `Trainer.evaluate` always reads a
    whole pass and leaves the position unchanged.

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
        check_source(length, element)
        self._length, self._element = integer("Data", "length", length, least=0), element
        #: (pass, k, shards) -> this rank's rows of an element, computed without the others.
        self._part = part
        #: The batches of `prepare`, where the elements are such.
        self._batches: Batches | AugmentedBatches | None = None
        #: Rows of a whole batch of these, and of all batches, where no function has changed them.
        self.rows: tuple[int, int] | None = None
        self.shards: Shards | None = None  # the ranks that the elements are shared out to
        #: The names of the columns of each part of an element, where it is rows of a data frame.
        self.columns: tuple[tuple[str, ...] | None, ...] = ()
        self._pass, self._next = 0, 0
        #: The thread to warn of a loop after the end, and whether it has read the last element, unwarned.
        self._thread, self._ended = threading.current_thread(), False
        self._lock = threading.Lock()

    # ---- sources
    @overload
    @staticmethod
    def of_array(array: Sequence[U]) -> Data[U]: ...
    @overload
    @staticmethod
    def of_array(array: NDArray[Any]) -> Data[Any]: ...
    @staticmethod
    @noted
    def of_array(array: Sequence[Any] | NDArray[Any]) -> Data[Any]:
        """Return the elements of a list, or the slices of an array along its first axis.

        Raises TypeError for what has no length or no indexing.
        """
        if not hasattr(array, "__len__") or not hasattr(array, "__getitem__"):
            raise TypeError(
                f"Data.of_array: array is a {type(array).__name__}, expected a list or an array (for what "
                "has no length, make a list of it, or use Data.of_fn)"
            )
        return Data(len(array), Listed(array))

    @staticmethod
    @noted
    def of_tensor(x: TensorLike) -> Data[Tensor]:
        """Return the slices of a tensor along its first axis."""
        return Data.of_tensors((x,)).map(lambda row: row[0])

    @staticmethod
    @noted
    def of_tensors(xs: tuple[TensorLike, ...]) -> Data[tuple[Tensor, ...]]:
        """Return tuples of slices of tensors along their first axes; ValueError for different lengths."""
        tensors = tuple(as_tensor(x) for x in xs)
        length = length_of("Data.of_tensors", tensors)
        return Data(length, lambda e, k: tuple(Tensor(np.asarray(x.array[k]), None) for x in tensors))

    @staticmethod
    @noted
    def of_fn(n: int, fn: Callable[[int], U]) -> Data[U]:
        """Return fn(0), ..., fn(n - 1), each computed when it is read."""
        check_callable("Data.of_fn", fn)
        return Data(integer("Data.of_fn", "n", n, 0), lambda e, k: fn(k))

    @staticmethod
    @noted
    def repeat(n: int, value: U) -> Data[U]:
        """Return one value n times."""
        return Data(integer("Data.repeat", "n", n, 0), lambda e, k: value)

    @overload
    @staticmethod
    def prepare(
        arrays: tuple[TensorLike, ...], batch_size: int, shuffle: Tensor | None = ..., drop_last: bool = ...
    ) -> Data[tuple[Tensor, ...]]: ...
    @overload
    @staticmethod
    def prepare(
        arrays: tuple[Any, ...], batch_size: int, shuffle: Tensor | None = ..., drop_last: bool = ...
    ) -> Data[tuple[Any, ...]]: ...
    @overload
    @staticmethod
    def prepare(
        arrays: Tensor | NDArray[Any], batch_size: int, shuffle: Tensor | None = ..., drop_last: bool = ...
    ) -> Data[Tensor]: ...
    @staticmethod
    @noted
    def prepare(arrays: Any, batch_size: int, shuffle: Tensor | None = None, drop_last: bool = False) -> Any:
        """Return batches of arrays as tensors: a tuple for a tuple of arrays, else a tensor.

        arrays: NumPy arrays (memory-mapped ones are read batch by batch), tensors or data frames of numbers,
            of one length. Do not write to them while the pipeline is in use: batches that are not shuffled
            are views of C-ordered arrays that have a tensor's dtype. A dict of arrays counts as one array:
            its batches are dicts, for models of several inputs.
        shuffle: a key; pass e is ordered by fold_in(key, e).  drop_last: omit a last batch that is short.

        Raises ValueError for arrays of different lengths, TypeError for a list of arrays, and for a column
        of a data frame that does not hold numbers.

        >>> import treepie as tp
        >>> for x, y in tp.Data.prepare((tp.arange(5), tp.zeros((5, 3))), batch_size=2, drop_last=True):
        ...     print(x.tolist(), y.shape)
        [0, 1] (2, 3)
        [2, 3] (2, 3)
        """
        batches = batches_of(arrays, batch_size, shuffle)
        whole, rest = divmod(batches.length, batches.size)
        data: Data[Any] = Data(whole + (rest > 0 and not drop_last), batches.element, batches.element)
        data._batches, data.rows = batches, (batches.size, batches.length)
        data.columns = tuple(map(columns_of, arrays if isinstance(arrays, tuple) else (arrays,)))
        return data

    # ---- pipelines from pipelines
    @overload
    def map(self, fn: Callable[[T_co], U]) -> Data[U]: ...
    @overload
    def map(self, fn: Callable[..., U]) -> Data[U]: ...
    @noted
    def map(self, fn: Callable[..., Any]) -> Data[Any]:
        """Return fn(element) for each element."""
        check_callable("Data.map", fn)
        call = unpacking(fn)
        return self._with(Data(self._length, lambda e, k: call(self._element(e, k))))

    @noted
    def augment(self, *augmentations: Augmentation, key: Tensor | None = None) -> Data[T_co]:
        """Return the batches of `prepare` with their examples augmented, by each of `tp.augment` in turn.

        augmentations: they change the first part of an element, images (batch, height, width) or (batch,
            channels, height, width); `mixup` and `cutmix` mix the other parts too.
        key: example i of pass e draws by fold_in(fold_in(key, k), e) and i, for the augmentation k = 1, 2 ...
            Batch size, number of ranks and threads, and where a run was resumed, change no example.

        It comes after `prepare`, `shard` or `take`, before `map` and `prefetch`, whose thread then augments.

        Raises ValueError for another pipeline and for shapes or dtypes that do not fit, TypeError for what is
        no augmentation, and without a key.

        >>> import treepie as tp
        >>> x, y = tp.zeros((6, 1, 28, 28)), tp.one_hot(tp.arange(6), 10)
        >>> train = tp.Data.prepare((x, y), batch_size=4, shuffle=tp.rng.key(0))
        >>> train = train.augment(tp.augment.crop(24), tp.augment.mixup(), key=tp.rng.key(1))
        >>> next(iter(train))[0].shape
        (4, 1, 24, 24)
        """
        batches = AugmentedBatches(self._batches, augmentations, key)
        element = functools.partial(batches.element, shards=self.shards)
        data: Data[Any] = self._with(Data(self._length, element, batches.element), rows=self.rows)
        data._batches = batches
        return data

    @noted
    def batch(self, batch_size: int, drop_last: bool = False) -> Data[list[T_co]]:
        """Return lists of `batch_size` elements; drop_last omits a last one that is short."""
        return self.map_batch(batch_size, lambda elements: elements, drop_last)

    @noted
    def map_batch(
        self, batch_size: int, collate: Callable[[list[T_co]], U], drop_last: bool = False
    ) -> Data[U]:
        """Return collate(elements) for each list of elements that `batch` returns.

        >>> import treepie as tp
        >>> [b.shape for b in tp.Data.of_tensor(tp.zeros((5, 3))).map_batch(2, tp.data.stack_batch)]
        [(2, 3), (2, 3), (1, 3)]
        """
        check_callable("Data.map_batch", collate)
        size = integer("Data.batch", "batch_size", batch_size, 1)
        length = self._length // size if drop_last else -(-self._length // size)

        def batch(e: int, k: int) -> U:
            stop = min((k + 1) * size, self._length)
            return collate([self._element(e, j) for j in range(k * size, stop)])

        return Data(length, batch)

    @noted
    def shuffle(self, key: Tensor) -> Data[T_co]:
        """Return the elements in random order; pass e is ordered by fold_in(key, e).

        >>> import treepie as tp
        >>> sorted(tp.Data.of_array([1, 2, 3]).shuffle(tp.rng.key(0)))
        [1, 2, 3]
        """
        order = Shuffled(key, self._length)
        return Data(self._length, lambda e, k: self._element(e, int(order.of_pass(e)[k])))

    @noted
    def prefetch(self, n: int = 2) -> Data[T_co]:
        """Return the same elements, up to n of them computed ahead by a background thread.

        An exception while an element is computed is raised when that element is read. No thread outlives
        a pass, a loop that breaks, or `reset()`.

        >>> import treepie as tp
        >>> tp.Data.of_fn(3, lambda i: i * i).prefetch(2).to_list()
        [0, 1, 4]
        """
        ahead = Prefetcher(self._element, self._length, integer("Data.prefetch", "n", n, 1))
        return self._with(Data(self._length, ahead), self.columns, self.rows)

    @noted
    def take(self, n: int) -> Data[T_co]:
        """Return the first n elements."""
        length = min(integer("Data.take", "n", n, 0), self._length)
        data = self._with(Data(length, self._element, self._part), self.columns, self.rows)
        data._batches = self._batches
        return data

    def _with(self, data: Data[U], columns: Any = (), rows: tuple[int, int] | None = None) -> Data[U]:
        """Return a pipeline of this one's elements, which belongs to the same ranks."""
        data.shards, data.columns, data.rows = self.shards, columns, rows
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
        number = integer("Data.seek", "pass_number", pass_number, 0)
        start = integer("Data.seek", "position", position, 0)
        if start > self._length:
            raise ValueError(f"Data.seek: position is {position}, expected at most {self._length}")
        self._pass, self._next, self._ended = number, start, False

    @noted
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

        data = self._with(Data(self._length, own), self.columns, self.rows)
        data._batches, data.shards = self._batches, shards
        return data

    def __iter__(self) -> Iterator[T_co]:
        """Iterate over the rest of this pass; threads that do so together get each element once.

        Warns, once in a pass, where the thread that made the pipeline has read the last element before.
        """
        self._warn_if_exhausted()
        return self._rest()

    def _rest(self) -> Iterator[T_co]:
        while True:
            with self._lock:
                e, k = self._pass, self._next
                if k >= self._length:
                    return
                self._next = k + 1
                if k + 1 == self._length:
                    self._ended = threading.current_thread() is self._thread
            yield self._element(e, k)

    def _warn_if_exhausted(self) -> None:
        """Warn the caller's caller where a loop would silently do nothing.

        Threads of a pool may come late to a pass that they share, and a resumed run begin at the end of one.
        """
        if not self._ended or threading.current_thread() is not self._thread:
            return
        self._ended = False
        warn(
            f"Data: all {self._length} elements of this pass have been read, so nothing is left to iterate "
            "over; call reset() to begin the next pass"
        )

    def reset(self) -> None:
        """Begin the next pass; a shuffled pipeline gets a new order."""
        self._pass, self._next, self._ended = self._pass + 1, 0, False

    def iter(self, fn: Callable[..., Any]) -> None:
        """Call fn(element) for each element."""
        self._warn_if_exhausted()
        call = unpacking(fn)
        for element in self._rest():
            call(element)

    def iteri(self, fn: Callable[..., Any]) -> None:
        """Call fn(k, element) for each element, k counting from 0."""
        self._warn_if_exhausted()
        call = unpacking(fn, leading=1)
        for k, element in enumerate(self._rest()):
            call(k, element)

    def fold(self, fn: Callable[..., U], init: U) -> U:
        """Return fn(... fn(fn(init, first), second) ..., last).

        >>> import treepie as tp
        >>> tp.Data.of_array([1, 2, 3]).fold(lambda total, x: total + x, 0)
        6
        """
        call, out = unpacking(fn, leading=1), init
        for element in self._rest():
            out = call(out, element)
        return out

    def to_list(self) -> list[T_co]:
        """Return the rest of this pass; an empty list after its end."""
        return list(self._rest())
