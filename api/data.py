"""Pipelines of examples: lazy, one pass at a time, with random access underneath.

A pipeline is a length and a function (pass, k) -> element: `batch`, `take` and `shuffle` read only
what is asked for, and the order of a pass depends on nothing but its number.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, rng, tensor
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.tensor import TensorLike

Element = Any


class Data:
    """A pipeline of elements, each given once until `reset()`; `Data.of_array`() makes one.

    A pipeline made from another (`map`, `batch`, `shuffle` ...) reads it from the beginning and
    keeps its own place. A function that takes as many arguments as a tuple element has items is
    given them one by one: `.map(lambda x, y: ...)`.
    """

    def __init__(self, length: int, element: Callable[[int, int], Element]) -> None:
        """Make a pipeline of its length and its function (pass, k) -> element."""
        self._length, self._element = length, element
        self._pass, self._next = 0, 0

    # ---- sources
    @staticmethod
    def of_array(array: Sequence[Any] | np.ndarray) -> Data:
        """Return the elements of a list, or the slices of an array along its first axis."""
        return Data(len(array), lambda e, k: array[k])

    @staticmethod
    def of_tensor(x: TensorLike) -> Data:
        """Return the slices of a tensor along its first axis."""
        return Data.of_tensors((x,)).map(lambda row: row[0])

    @staticmethod
    def of_tensors(xs: tuple[TensorLike, ...]) -> Data:
        """Return tuples of slices of tensors of one length."""
        made = tuple(as_tensor(x) for x in xs)
        length = _length("Data.of_tensors", made)
        return Data(length, lambda e, k: tuple(Tensor(np.asarray(x.array[k])) for x in made))

    @staticmethod
    def of_fn(n: int, fn: Callable[[int], Element]) -> Data:
        """Return fn(0), ..., fn(n - 1)."""
        return Data(_count("Data.of_fn", "n", n, 0), lambda e, k: fn(k))

    @staticmethod
    def repeat(n: int, value: Element) -> Data:
        """Return one value n times."""
        return Data(_count("Data.repeat", "n", n, 0), lambda e, k: value)

    @staticmethod
    def prepare(arrays: Any, batch_size: int, shuffle: Tensor | None = None, drop_last: bool = False) -> Data:
        """Return batches of arrays as tensors: a tuple for a tuple of arrays, else a tensor.

        arrays: NumPy arrays (memory-mapped ones are read batch by batch) or tensors, of one length.
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
    def map(self, fn: Callable[..., Element]) -> Data:
        """Return fn(element) for each element."""
        call = unpacking(fn)
        return Data(self._length, lambda e, k: call(self._element(e, k)))

    def batch(self, batch_size: int, drop_last: bool = False) -> Data:
        """Return lists of `batch_size` elements; a short last one is left out with drop_last."""
        return self.map_batch(batch_size, lambda elements: elements, drop_last)

    def map_batch(
        self, batch_size: int, collate: Callable[[list[Element]], Element], drop_last: bool = False
    ) -> Data:
        """Return collate(list) of each list that `batch` gives."""
        size = _count("Data.batch", "batch_size", batch_size, 1)
        length = self._length // size if drop_last else -(-self._length // size)

        def batch(e: int, k: int) -> Element:
            stop = min((k + 1) * size, self._length)
            return collate([self._element(e, j) for j in range(k * size, stop)])

        return Data(length, batch)

    def shuffle(self, key: Tensor) -> Data:
        """Return the elements in random order; pass e is ordered by fold_in(key, e)."""
        order = _Shuffled(key, self._length)
        return Data(self._length, lambda e, k: self._element(e, int(order.of_pass(e)[k])))

    def take(self, n: int) -> Data:
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

    def __iter__(self) -> Iterator[Element]:
        """Iterate over what is left of this pass."""
        while self._next < self._length:
            k, self._next = self._next, self._next + 1
            yield self._element(self._pass, k)

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

    def fold(self, fn: Callable[..., Any], init: Any) -> Any:
        """Return fn(... fn(fn(init, first), second) ..., last)."""
        call, out = unpacking(fn, leading=1), init
        for element in self:
            out = call(out, element)
        return out

    def to_list(self) -> list[Element]:
        """Return the elements that are left."""
        return list(self)


def check_not_empty(function: str, data: Any) -> Data:
    """Return a pipeline that has elements left, or raise TypeError or ValueError."""
    if not isinstance(data, Data):
        raise TypeError(
            f"{function}: data is a {type(data).__name__}, expected a tp.Data (Data.of_array "
            "makes one of a list)"
        )
    if not len(data):
        raise ValueError(
            f"{function}: data is empty, expected at least one element (drop_last leaves out a "
            "batch that is not full)"
        )
    if data.position >= len(data):
        raise ValueError(
            f"{function}: data is exhausted after {len(data)} elements, expected some left (call reset())"
        )
    return data


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


def _count(function: str, argument: str, value: Any, least: int) -> int:
    n = integer(function, argument, value)
    if n < least:
        raise ValueError(f"{function}: {argument} is {value}, expected at least {least}")
    return n


def _array(x: Any) -> Any:
    """Return NumPy arrays and tensors as they are, anything else as a tensor."""
    return x if isinstance(x, np.ndarray) else as_tensor(x)


def _length(function: str, arrays: Sequence[Any]) -> int:
    shapes = [x.shape for x in arrays]
    if not shapes or not all(shapes) or len({s[0] for s in shapes}) > 1:
        given = " and ".join(map(str, shapes)) or "no arrays"
        raise ValueError(f"{function}: shapes are {given}, expected first axes of one length")
    return int(shapes[0][0])


def _rows(x: Any, rows: Any) -> Tensor:
    """Return some rows as a tensor, which never shares memory that a user can write to."""
    if isinstance(x, Tensor):
        return Tensor(np.ascontiguousarray(x.array[rows]))
    return tensor(x[rows])


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
