"""Rows of arrays: a batch's, and those of a rank."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, ops, ptree, rng, tensor
from treepie.autodiff.arguments import as_tensor, described, integer
from treepie.autodiff.convert import check_not_masked
from treepie.autodiff.ops.random import check_key
from treepie.autodiff.tensor import TENSOR_DTYPES, TensorLike

from ..display import counted
from ..distributed.communicator import Communicator

#: Bytes up to which NumPy gathers a batch: it takes 3 us for one row of 256 bytes, a launch 10 us.
_SMALL_BATCH = 1 << 16


def columns_of(x: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a data frame, of pandas or Polars; None for other arrays."""
    return tuple(map(str, x.columns)) if hasattr(x, "columns") and hasattr(x, "__array__") else None


def _table(frame: Any) -> Any:
    """Return the numbers of a data frame as an array, or raise TypeError that names columns of others."""
    columns = [np.asarray(frame[name]) for name in frame.columns]
    pairs = zip(frame.columns, columns, strict=True)
    texts = [f"{str(name)!r} ({column.dtype})" for name, column in pairs if column.dtype.kind not in "biuf"]
    if texts:
        listed = ", ".join(texts[:5]) + ", ..." * (len(texts) > 5)
        raise TypeError(
            f"Data.prepare: arrays has columns that are no numbers: {listed}; drop them, or encode them as "
            "numbers (pandas.get_dummies)"
        )
    return np.stack(columns, axis=1) if columns else np.asarray(frame)


def array_of(x: Any) -> Any:
    """Return an array of a tensor's layout and dtype as a tensor, other NumPy arrays unchanged.

    x: an array, or a dict of them, such as the columns of a table.
    """
    if isinstance(x, dict):
        return {name: array_of(part) for name, part in x.items()}
    if columns_of(x) is not None:
        x = _table(x)
    if isinstance(x, np.ndarray) and x.ndim:
        check_not_masked("Data.prepare", x)
        if x.dtype.kind not in "biuf":
            return as_tensor(x)  # which says what is wrong, now and not at the first batch
        direct = x.dtype in TENSOR_DTYPES and x.flags.c_contiguous and x.flags.aligned
        return Tensor(np.asarray(x), None) if direct else x
    _check_present(x)
    return as_tensor(x)


def _check_present(x: Any) -> None:
    """Raise ValueError for a column of integers or bools, of pandas, with missing values: floats with NaN."""
    if getattr(x, "hasnans", False) is True and x.dtype.kind in "biu":
        rows = np.flatnonzero(np.asarray(x.isna()))
        raise ValueError(
            f"Data.prepare: column {x.name!r} is {x.dtype} with {counted(len(rows), 'missing value')}, the "
            f"first at row {rows[0]}: drop these rows, or fill them with column.fillna(...)"
        )


def read_rows(x: Any, rows: Any) -> Any:
    """Return some rows as a tensor: a view for a slice, else gathered, by one parallel kernel if large.

    x: as `array_of` returns it; of a dict or a tuple, the rows of each part.
    """
    if isinstance(x, dict):
        return {name: read_rows(part, rows) for name, part in x.items()}
    if isinstance(x, tuple):
        return tuple([read_rows(part, rows) for part in x])
    if not isinstance(x, Tensor):
        return tensor(x[rows])
    array = x.array
    if isinstance(rows, slice):
        return Tensor(np.asarray(array[rows]), None)
    if len(rows) * (array.nbytes // max(len(array), 1)) < _SMALL_BATCH:
        return Tensor(array.take(rows, 0), None)  # a third of the time of array[rows]
    return ops.take(x, Tensor(rows, None), 0)


def stack_batch(tensors: Sequence[TensorLike]) -> Tensor:
    """Return tensors stacked along a new first axis: a collate function for `Data.map_batch`.

    tensors: of one shape, else ValueError.

    >>> import treepie as tp
    >>> tp.data.stack_batch([tp.zeros(3), tp.ones(3)]).shape
    (2, 3)
    """
    if any(isinstance(x, tuple) for x in tensors):
        raise TypeError(
            "data.stack_batch: the elements are tuples, expected tensors: for (input, target), "
            "lambda batch: tuple(map(tp.data.stack_batch, zip(*batch)))"
        )
    parts = [as_tensor(x) for x in tensors]
    shapes = sorted({x.shape for x in parts})
    if len(shapes) != 1:
        listed = " and ".join(map(str, shapes)) or "no tensors"
        raise ValueError(f"data.stack_batch: given {listed}, expected tensors of one shape")
    return tensor(np.stack([x.numpy() for x in parts]))


def length_of(function: str, arrays: Sequence[Any]) -> int:
    """Return the length that the first axes of arrays share, or raise ValueError."""
    shapes = [x.shape for x in arrays]
    if not shapes or not all(shapes) or len({s[0] for s in shapes}) > 1:
        listed = " and ".join(map(str, shapes)) or "no arrays"
        raise ValueError(f"{function}: shapes are {listed}, expected first axes of one length")
    return int(shapes[0][0])


#: Rows of arrays: a slice with a start and a stop, or their indices.
Rows = slice | NDArray[np.int64]


class Order(Protocol):
    """The order of the rows of each pass."""

    def of_pass(self, e: int) -> NDArray[np.int64]:
        """Return the indices of the rows in the order of pass e."""


class Shuffled:
    """The order of each pass, by a key; the last one that was read is cached."""

    def __init__(self, key: Tensor, length: int) -> None:
        """Take a key and the number of elements; raise for another key."""
        rng.fold_in(key, 0)  # a wrong key is an error here, not at the first element
        self.of_pass = functools.lru_cache(maxsize=1)(
            lambda e: rng.permutation(rng.fold_in(key, e), length).numpy()
        )


class Shards:
    """The shards that each batch is cut into, and which of them are this rank's: consecutive ones.

    comm: the ranks.  count: how many shards there are, by default one for each rank.
    """

    def __init__(self, comm: Communicator, count: int | None = None) -> None:
        self.comm, self.count = comm, comm.size if count is None else count

    @property
    def own(self) -> range:
        """This rank's shards."""
        return self.of(self.comm.rank)

    def of(self, rank: int) -> range:
        """Return a rank's shards."""
        return range(self.count * rank // self.comm.size, self.count * (rank + 1) // self.comm.size)

    def rows(self, shard: int, length: int) -> slice:
        """Return which rows of a batch belong to a shard."""
        return slice(length * shard // self.count, length * (shard + 1) // self.count)

    def own_rows(self, length: int) -> slice:
        """Return which rows of a batch are this rank's."""
        return slice(length * self.own.start // self.count, length * self.own.stop // self.count)


class Batches:
    """The batches of arrays of one length, by pass and number.

    sources: the arrays.  single: whether an element is a tensor, not a tuple.  order: of the rows of a pass.
    """

    def __init__(
        self, sources: tuple[Any, ...], single: bool, size: int, length: int, order: Order | None
    ) -> None:
        self._sources, self._order = sources, order
        self.length, self.size, self.single = length, size, single

    def rows(self, e: int, k: int, shards: Shards | None = None, count: int = 1) -> Rows:
        """Return the rows of batch k of pass e, or of this rank's part of it. count: of batches from k on."""
        first, last = k * self.size, min((k + count) * self.size, self.length)
        if shards is not None:
            own = shards.own_rows(last - first)
            first, last = first + own.start, first + own.stop
        return slice(first, last) if self._order is None else self._order.of_pass(e)[first:last]

    def read(self, e: int, rows: Rows) -> tuple[Tensor, ...]:
        """Return rows of the arrays, the same in each pass."""
        return tuple([read_rows(x, rows) for x in self._sources])

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of a row of all arrays."""
        arrays = [x.array if isinstance(x, Tensor) else x for x in ptree.leaves(self._sources)]
        return sum(a.nbytes for a in arrays) // self.length

    def element(self, e: int, k: int, shards: Shards | None = None, count: int = 1) -> Any:
        """Return batch k of pass e, or this rank's part of it. count: of batches from k on, as one."""
        tensors = self.read(e, self.rows(e, k, shards, count))
        return tensors[0] if self.single else tensors


def batches_of(arrays: Any, batch_size: int, shuffle: Tensor | None) -> Batches:
    """Return the batches that `Data.prepare` reads, or raise for arguments that do not fit."""
    if isinstance(arrays, list) and any(hasattr(x, "shape") for x in arrays):
        raise TypeError("Data.prepare: arrays is a list, expected a tuple of arrays, (x, y), or one array")
    if hasattr(batch_size, "shape") and batch_size.shape:
        raise TypeError(
            f"Data.prepare: batch_size is {described(batch_size)}, expected an int (arrays go into one "
            "tuple: Data.prepare((x, y), batch_size=32))"
        )
    if shuffle is not None:
        check_key("Data.prepare", shuffle, "shuffle")
    single = not isinstance(arrays, tuple)
    sources = tuple([array_of(x) for x in ((arrays,) if single else arrays)])
    length = length_of("Data.prepare", ptree.leaves(sources))
    size = integer("Data.prepare", "batch_size", batch_size, 1)
    return Batches(sources, single, size, length, None if shuffle is None else Shuffled(shuffle, length))


def batch_lengths(rows: tuple[int, int], first: int, count: int) -> list[int]:
    """Return the lengths of batches from number `first` on. rows: of a whole batch, and of all batches."""
    size, total = rows
    return [min(size, total - k * size) for k in range(first, first + count)]


def row_count(function: str, element: Any) -> int:
    """Return the number of rows of an element's tensors and arrays, or raise ValueError."""
    parts = _parts(element)
    if all(type(part) is Tensor and part.array.ndim for part in parts):
        leaves = parts
    else:
        leaves = () if any(map(callable, parts)) else tuple(ptree.leaves(element))
    lengths = {leaf.shape[0] for leaf in leaves if getattr(leaf, "shape", ())}
    if len(lengths) != 1 or not all(getattr(leaf, "shape", ()) for leaf in leaves):
        raise ValueError(
            f"{function}: an element is not of tensors or arrays whose first axes have one length, so it has "
            "no rows to share out (for (input, loss_fn), use (input, target) and fit(loss=...))"
        )
    return int(lengths.pop())


def rows_of(element: Any, rows: slice) -> Any:
    """Return some rows of an element: of each of its tensors and arrays."""
    if type(element) is Tensor:
        return Tensor(element.array[rows], None)
    if type(element) is tuple:
        return tuple([rows_of(part, rows) for part in element])
    return ptree.map(
        lambda leaf: Tensor(leaf.array[rows], None) if isinstance(leaf, Tensor) else leaf[rows], element
    )


def _parts(element: Any) -> tuple[Any, ...]:
    return element if isinstance(element, tuple) else (element,)
