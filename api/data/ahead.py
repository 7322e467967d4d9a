"""Elements that are in memory, of which several can be read before the first is used."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from treepie.autodiff import Tensor, ptree

from .rows import Batches

if TYPE_CHECKING:
    from .pipeline import Data

#: Bytes that are gathered at once: the size of a core's L2.
_BYTES = 1 << 20


class Listed:
    """The elements of a list or an array, the same in each pass."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self, e: int, k: int) -> Any:
        """Return element k."""
        return self.source[k]


class Ahead(Protocol):
    """Elements that follow one another, alike in structure, shapes and dtypes.

    key: what the shapes and dtypes depend on.  count: of the elements.  rows: examples of each.
    """

    key: Hashable
    count: int
    rows: int

    @property
    def first(self) -> Any:
        """The first element."""

    def addresses(self) -> list[Any]:
        """Return the addresses of each tensor of the elements: a number for each element."""


#: Function of a pass, the number of an element, and the most elements to read.
Read: TypeAlias = Callable[[int, int, int], "Ahead | None"]


def reader(data: Data[Any]) -> Read | None:
    """Return the function that reads elements ahead, which does not change the position.

    None where reading an element may run Python of the user's: its order would be another.
    """
    batches, shards, listed = data._batches, data.shards, data._element
    if type(batches) is Batches and (shards is None or shards.comm.size == 1):
        return functools.partial(BatchesAhead, batches)
    if isinstance(listed, Listed) and type(listed.source) in (list, tuple):
        return functools.partial(_listed_ahead, listed.source)
    return None


class BatchesAhead:
    """Batches whose rows are read at once."""

    def __init__(self, batches: Batches, e: int, k: int, most: int) -> None:
        """Read up to `most` batches from k of pass e on."""
        size, length = batches.size, batches.length
        whole = length // size - k  # the last batch may be short
        self.rows = size if whole else length % size
        self.key: Hashable = self.rows
        self.count = max(1, min(most, whole, _BYTES // max(size * batches.row_bytes, 1)))
        self._element = batches.element(e, k, None, self.count)

    @property
    def first(self) -> Any:
        """The first batch."""
        return ptree.map(lambda t: Tensor(t.array[: self.rows], None), self._element)

    def addresses(self) -> list[Any]:
        """Return the addresses of each tensor of the batches."""
        tensors = self._element if _specs(self._element) else ptree.leaves(self._element)
        if self.count == 1:
            return [t.address for t in tensors]
        steps = np.arange(self.count)
        return [t.address + t.array.nbytes // self.count * steps for t in tensors]


class ListedAhead:
    """Tuples of tensors in a list."""

    def __init__(self, elements: Sequence[tuple[Tensor, ...]], key: Hashable) -> None:
        self._elements, self.key = elements, key
        self.count, self.first = len(elements), elements[0]
        self.rows = self.first[0].shape[0] if self.first[0].shape else 1

    def addresses(self) -> list[Any]:
        """Return the addresses of each tensor of the elements."""
        return list(zip(*[[t.address for t in element] for element in self._elements], strict=True))


def _listed_ahead(source: Sequence[Any], e: int, k: int, most: int) -> ListedAhead | None:
    """Return the elements from k on that are tuples of tensors with the shapes and dtypes of the first."""
    elements = source[k : k + most]
    specs = _specs(elements[0])
    if not specs:
        return None
    count = 1
    while count < len(elements) and _specs(elements[count]) == specs:
        count += 1
    return ListedAhead(elements[:count], specs)


def _specs(element: Any) -> tuple[Any, ...]:
    """Return the shapes and dtypes of a tuple of tensors; an empty tuple for another element."""
    if type(element) is not tuple or not all(type(t) is Tensor for t in element):
        return ()
    return tuple([(t._data.shape, t._data.dtype) for t in element])


def advance(data: Data[Any], count: int) -> None:
    """Move the position, as reading `count` elements does."""
    with data._lock:
        data._next += count
        if count and data._next == len(data):
            data._ended = threading.current_thread() is data._thread
