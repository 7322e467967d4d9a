"""Embeddings: rows of a table by index."""

from __future__ import annotations

import math

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ops.indexing import no_indices, take_axis
from treepie.autodiff.tensor import TensorLike


def embedding(indices: TensorLike, weight: TensorLike, scale: bool = True) -> Tensor:
    """Return the rows of a table, times sqrt(dim) with `scale` (Vaswani et al. 2017, section 3.4).

    indices: (...) integers; as in NumPy, a negative index counts from the end.
    weight: (vocabulary, dim) float.  Result: (..., dim).

    Raises IndexError for an index out of range, TypeError for indices that are not integers, ValueError for
    another weight.

    >>> import treepie as tp
    >>> tp.fn.embedding([2, 0], [[1.0], [2.0], [3.0]]).tolist()
    [[3.0], [1.0]]
    """
    w = as_tensor(weight)
    if w.ndim != 2 or w.dtype.kind != "f":
        raise ValueError(
            f"embedding: weight has shape {w.shape}, dtype {w.dtype.name}, expected floats (vocabulary, dim)"
        )
    i = as_tensor(indices)
    if i.dtype.kind != "i":
        raise no_indices("embedding", i)
    out = take_axis(w, i, 0, "embedding")
    return out * math.sqrt(w.shape[1]) if scale else out
