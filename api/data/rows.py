"""Rows of arrays: a batch's, and those of a rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops, ptree, tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import TENSOR_DTYPES

from ..distributed.communicator import Communicator

#: Bytes up to which NumPy gathers a batch: it takes 3 us for one row of 256 bytes, a launch 10 us.
_SMALL_BATCH = 1 << 16


def array_of(x: Any) -> Any:
    """Return an array of a tensor's layout and dtype as a tensor, other NumPy arrays unchanged."""
    if isinstance(x, np.ndarray) and x.ndim:
        direct = x.dtype in TENSOR_DTYPES and x.flags.c_contiguous and x.flags.aligned
        return Tensor(np.asarray(x), None) if direct else x
    return as_tensor(x)


def read_rows(x: Any, rows: Any) -> Tensor:
    """Return some rows as a tensor: a view for a slice, else gathered, by one parallel kernel if large."""
    if not isinstance(x, Tensor):
        return tensor(x[rows])
    if isinstance(rows, slice) or len(rows) * (x.array.nbytes // max(len(x), 1)) < _SMALL_BATCH:
        return Tensor(np.asarray(x.array[rows]), None)
    return ops.take(x, Tensor(rows, None), 0)


def own_rows(comm: Communicator, count: int) -> slice:
    """Return which of some rows are this rank's."""
    return slice(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def rows_of(element: Any, comm: Communicator) -> Any:
    """Return this rank's rows of an element: of each of its tensors and arrays."""
    leaves = ptree.leaves(element) if not any(map(callable, _parts(element))) else []
    lengths = {leaf.shape[0] for leaf in leaves if getattr(leaf, "shape", ())}
    if len(lengths) != 1 or not all(getattr(leaf, "shape", ()) for leaf in leaves):
        raise ValueError(
            "Data.shard: an element is not of tensors or arrays whose first axes have one length, so it has "
            "no rows to share out (for (input, loss_fn), use (input, target) and fit(loss=...))"
        )
    rows = own_rows(comm, lengths.pop())
    return ptree.map(lambda leaf: leaf[rows], element)


def _parts(element: Any) -> tuple[Any, ...]:
    return element if isinstance(element, tuple) else (element,)
