"""Pipelines of examples: lazy, one pass at a time, with random access underneath.

A pipeline is a length and a function (pass, k) -> element: `batch`, `take` and `shuffle` read only
what is asked for, and the order of a pass depends on nothing but its number.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, overload

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ops, rng, tensor
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TENSOR_DTYPES, TensorLike

from ..distributed import Communicator, check_communicator
from .element import T_co, U

Element = Any

#: Bytes up to which NumPy gathers a batch: it takes 3 us for one row of 256 bytes, a launch 10 us.
_SMALL_BATCH = 1 << 16


class Data(Generic[T_co]):
    """A pipeline of elements, each given once until `reset()`; `Data.of_array`() makes one.

    A pipeline made from another (`map`, `batch`, `shuffle` ...) reads it from the beginning and
    keeps its own place. A function that takes as many arguments as a tuple element has items is
    given them one by one: `.map(lambda x, y: ...)`.
    """

    def __init__(self, length: int, element: Callable[[int, int], T_co]) -> None:
        """Make a pipeline of its length and its function (pass, k) -> element."""
        self._length, self._element = length, element
        self._pass, self._next = 0, 0
        self._place = threading.Lock()

    # ---- sources
    @overload
    @staticmethod
    def of_array(array: Sequence[U]) -> Data[U]: ...
    @overload
    @staticmethod
    def of_array(array: NDArray[Any]) -> Data[Any]: ...
    @staticmethod
    def of_array(array: Sequence[Any] | NDArray[Any]) -> Data[Any]:
        """Return the elements of a list, or the slices of an array along its first axis."""
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
        """Return tuples of slices of tensors of one length."""
        made = tuple(as_tensor(x) for x in xs)
        length = _length("Data.of_tensors", made)
        return Data(length, lambda e, k: tuple(Tensor(np.asarray(x.array[k])) for x in made))

    @staticmethod
    def of_fn(n: int, fn: Callable[[int], U]) -> Data[U]:
        """Return fn(0), ..., fn(n - 1)."""
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
    def prepare(arrays: Any, batch_size: int, shuffle: Tensor | None = None, drop_last: bool = False) -> Any:
        """Return batches of arrays as tensors: a tuple for a tuple of arrays, else a tensor.

        arrays: NumPy arrays (memory-mapped ones are read batch by batch) or tensors, of one length. Do not
            write to them while the pipeline is in use: batches that are not shuffled are views of C-ordered
            arrays that have a tensor's dtype.
        shuffle: a key; pass e is ordered by fold_in(key, e).  drop_last: leave out a short batch.
        """
        if isinstance(arrays, list) and any(hasattr(x, "shape") for x in arrays):
            raise TypeError("Data.prepare: arrays is a list, expected a tuple of arrays or one array")
        single = not isinstance(arrays, tuple)
        made = tuple(_array(x) for x in ((arrays,) if single else arrays))
        length = _length("Data.prepare", made)
        size = _count("Data.prepare", "batch_size", batch_size, 1)
        order = None if shuffle is None else _Shuffled(shuffle, length)

        def batch(e: int, k: int) -> Element:
            first, last = k * size, min((k + 1) * size, length)
            rows = slice(first, last) if order is None else order.of_pass(e)[first:last]
            found = tuple(_rows(x, rows) for x in made)
            return found[0] if single else found

        return Data(length // size if drop_last else -(-length // size), batch)

    # ---- pipelines from pipelines
    @overload
    def map(self, fn: Callable[[T_co], U]) -> Data[U]: ...
    @overload
    def map(self, fn: Callable[..., U]) -> Data[U]: ...
    def map(self, fn: Callable[..., Any]) -> Data[Any]:
        """Return fn(element) for each element."""
        _check_callable("Data.map", fn)
        call = unpacking(fn)
        return Data(self._length, lambda e, k: call(self._element(e, k)))

    def batch(self, batch_size: int, drop_last: bool = False) -> Data[list[T_co]]:
        """Return lists of `batch_size` elements; a short last one is left out with drop_last."""
        return self.map_batch(batch_size, lambda elements: elements, drop_last)

    def map_batch(
        self, batch_size: int, collate: Callable[[list[T_co]], U], drop_last: bool = False
    ) -> Data[U]:
        """Return collate(list) of each list that `batch` gives."""
        _check_callable("Data.map_batch", collate)
        size = _count("Data.batch", "batch_size", batch_size, 1)
        length = self._length // size if drop_last else -(-self._length // size)

        def batch(e: int, k: int) -> U:
            stop = min((k + 1) * size, self._length)
            return collate([self._element(e, j) for j in range(k * size, stop)])

        return Data(length, batch)

    def shuffle(self, key: Tensor) -> Data[T_co]:
        """Return the elements in random order; pass e is ordered by fold_in(key, e)."""
        order = _Shuffled(key, self._length)
        return Data(self._length, lambda e, k: self._element(e, int(order.of_pass(e)[k])))

    def prefetch(self, n: int = 2) -> Data[T_co]:
        """Return the same elements, up to n of them made ahead by a thread while the last one is in use.

        An exception in making an element is raised where the element would have come. No thread stays
        behind a pass, a loop that is left, or `reset()`.
        """
        return Data(self._length, _Ahead(self._element, self._length, _count("Data.prefetch", "n", n, 1)))

    def take(self, n: int) -> Data[T_co]:
        """Return the first n elements."""
        return Data(min(_count("Data.take", "n", n, 0), self._length), self._element)

    # ---- use
    def __len__(self) -> int:
        """Return how many elements a whole pass has."""
        return self._length

    @property
    def position(self) -> int:
        """How many elements of this pass were given."""
        return self._next

    @property
    def pass_number(self) -> int:
        """How many passes were begun before this one; `reset()` begins the next."""
        return self._pass

    def seek(self, pass_number: int, position: int = 0) -> None:
        """Go to a place that `pass_number` and `position` have told, of this or of another process."""
        number = _count("Data.seek", "pass_number", pass_number, 0)
        place = _count("Data.seek", "position", position, 0)
        if place > self._length:
            raise ValueError(f"Data.seek: position is {position}, expected at most {self._length}")
        self._pass, self._next = number, place

    def shard(self, comm: Communicator) -> Data[T_co]:
        """Return the part of the elements that a process of `tp.distributed.world()` trains on."""
        check_communicator("Data.shard", comm)
        return Data(self._length, self._element)

    def __iter__(self) -> Iterator[T_co]:
        """Iterate over what is left of this pass; threads that do so together get each element once."""
        while True:
            with self._place:
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
        """Return fn(... fn(fn(init, first), second) ..., last)."""
        call, out = unpacking(fn, leading=1), init
        for element in self:
            out = call(out, element)
        return out

    def to_list(self) -> list[T_co]:
        """Return the elements that are left."""
        return list(self)


def check_data(function: str, data: Any) -> Data:
    """Return a pipeline, or raise TypeError."""
    if not isinstance(data, Data):
        raise TypeError(
            f"{function}: data is a {type(data).__name__}, expected a tp.Data (Data.of_array "
            "makes one of a list)"
        )
    return data


def check_not_empty(function: str, data: Any) -> Data:
    """Return a pipeline that has elements left, or raise TypeError or ValueError."""
    found = check_data(function, data)
    if not len(found):
        raise ValueError(
            f"{function}: data is empty, expected at least one element (drop_last leaves out a "
            "batch that is not full)"
        )
    if found.position >= len(found):
        raise ValueError(
            f"{function}: data is exhausted after {len(found)} elements, expected some left (call reset())"
        )
    return found


def stack_batch(tensors: Sequence[TensorLike]) -> Tensor:
    """Return tensors of one shape joined along a new first axis: a collate for `Data.map_batch`."""
    made = [as_tensor(x) for x in tensors]
    shapes = sorted({x.shape for x in made})
    if len(shapes) != 1:
        given = " and ".join(map(str, shapes)) or "no tensors"
        raise ValueError(f"data.stack_batch: given {given}, expected tensors of one shape")
    return tensor(np.stack([x.numpy() for x in made]))


class _Shuffled:
    """The order of each pass, kept for the last one asked for."""

    def __init__(self, key: Tensor, length: int) -> None:
        rng.fold_in(key, 0)  # a wrong key is an error here, not at the first element
        self.of_pass = functools.lru_cache(maxsize=1)(
            lambda e: rng.permutation(rng.fold_in(key, e), length).numpy()
        )


class _Ahead:
    """Makes elements ahead of a reader that asks for one after the other.

    The thread that makes them ends when n are ready, and a new one begins when one is taken: it never
    waits, so none is left behind. It is given 50 us, which is little where a thread is worth it.
    """

    def __init__(self, element: Callable[[int, int], Element], length: int, n: int) -> None:
        self._element, self._length, self._n = element, length, n
        self._reader = threading.Lock()  # one at a time
        self._changed = threading.Condition()
        self._ready: deque[tuple[Element, BaseException | None]] = deque()
        self._place = (-1, 0)  # pass and number of the first that is ready
        self._course = 0  # counted up when the reader jumps, so that an old thread's element is dropped
        self._working = False

    def __call__(self, e: int, k: int) -> Element:
        """Return element k of pass e, and have the next ones made."""
        with self._reader, self._changed:
            if (e, k) != self._place:
                self._ready.clear()
                self._place, self._course, self._working = (e, k), self._course + 1, False
            self._start()
            while not self._ready:
                self._changed.wait()
            made, error = self._ready.popleft()
            self._place = (e, k + 1)
            self._start()
        if error is not None:
            raise error
        return made

    def _next(self) -> int:
        return self._place[1] + len(self._ready)

    def _start(self) -> None:
        if not self._working and len(self._ready) < self._n and self._next() < self._length:
            self._working = True
            worker = threading.Thread(target=self._work, args=(self._course,), name="treepie-prefetch")
            worker.daemon = True  # an element that never comes must not keep a program from ending
            worker.start()

    def _work(self, course: int) -> None:
        while True:
            with self._changed:
                if course != self._course:
                    return
                if len(self._ready) >= self._n or self._next() >= self._length:
                    self._working = False
                    return
                e, k = self._place[0], self._next()
            made, failed = None, None
            try:
                made = self._element(e, k)
            except BaseException as error:  # raised again by the reader
                failed = error
            with self._changed:
                if course == self._course:
                    self._ready.append((made, failed))
                    self._changed.notify_all()


def _check_callable(function: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"{function}: given a {type(fn).__name__}, expected a function")


def _count(function: str, argument: str, value: Any, least: int) -> int:
    n = integer(function, argument, value)
    if n < least:
        raise ValueError(f"{function}: {argument} is {value}, expected at least {least}")
    return n


def _array(x: Any) -> Any:
    """Return what has a tensor's layout and dtype as a tensor, other NumPy arrays as they are."""
    if isinstance(x, np.ndarray) and x.ndim:
        direct = x.dtype in TENSOR_DTYPES and x.flags.c_contiguous and x.flags.aligned
        return Tensor(np.asarray(x)) if direct else x
    return as_tensor(x)


def _length(function: str, arrays: Sequence[Any]) -> int:
    shapes = [x.shape for x in arrays]
    if not shapes or not all(shapes) or len({s[0] for s in shapes}) > 1:
        given = " and ".join(map(str, shapes)) or "no arrays"
        raise ValueError(f"{function}: shapes are {given}, expected first axes of one length")
    return int(shapes[0][0])


def _rows(x: Any, rows: Any) -> Tensor:
    """Return some rows as a tensor: a view for a slice, else gathered, by one parallel kernel if large."""
    if not isinstance(x, Tensor):
        return tensor(x[rows])
    if isinstance(rows, slice) or len(rows) * (x.array.nbytes // max(len(x), 1)) < _SMALL_BATCH:
        return Tensor(np.asarray(x.array[rows]))
    return ops.take(x, Tensor(rows), 0)


def unpacking(fn: Callable[..., Any], leading: int = 0) -> Callable[..., Any]:
    """Return a function that hands a tuple on item by item where fn takes that many arguments."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not tell
        return fn
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    count = len(needed) - leading
    if count < 2:
        return fn

    def call(*args: Any) -> Any:
        *before, element = args
        fits = isinstance(element, tuple) and len(element) == count
        return fn(*before, *element) if fits else fn(*args)

    return call
