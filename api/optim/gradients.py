"""Functions of trees of gradients and updates."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.tensor import float64

from .sparse import Gradient, RowGradient

Tree = Any


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return params + updates, leaf by leaf; ValueError for trees of different structure.

    >>> import treepie as tp
    >>> tp.optim.apply_updates({"w": tp.ones(2)}, {"w": tp.tensor([0.5, -1.0])})["w"].tolist()
    [1.5, 0.0]
    """
    return ptree.map(lambda p, u: as_tensor(p) + u, params, updates)


def global_norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, a float64 tensor of shape ().

    Before float32 gradients are scaled by it, cast it: `norm.astype(tp.float32)`; else they become float64.

    >>> import treepie as tp
    >>> tp.optim.global_norm({"a": tp.tensor([3.0]), "b": tp.tensor(4.0)}).item()
    5.0
    """
    return norm_of([as_tensor(x) for x in ptree.leaves(tree)])


def norm_of(grads: Sequence[Gradient]) -> Tensor:
    """Return the Euclidean norm of the gradients of groups together, a float64 tensor of shape ()."""
    norms = [g.norm() if isinstance(g, RowGradient) else ops.vector_norm(g, dtype=float64) for g in grads]
    if not norms:
        return zeros((), float64)
    return norms[0] if len(norms) == 1 else ops.norm(ops.stack(norms))


def clip_by_global_norm(max_norm: float, grads: Tree) -> Tree:
    """Return gradients scaled down so that their global norm is at most `max_norm` (Pascanu et al. 2013).

    Raises FloatingPointError for a norm that is NaN or infinite (scaling would make every gradient NaN or 0),
    ValueError for a `max_norm` that is not positive.

    >>> import treepie as tp
    >>> tp.optim.clip_by_global_norm(1.0, [tp.tensor([3.0]), tp.tensor([4.0])])[0].item()
    0.6000...
    """
    if not 0 < max_norm < math.inf:
        raise ValueError(f"clip_by_global_norm: max_norm is {max_norm}, expected a positive number")
    message = (
        "clip_by_global_norm: the norm of the gradients is {}, expected a finite number (leave such steps "
        "out, or lower the learning rate)"
    )
    # An op checks the norm, so that a program contains the check.
    norm = ops.check_range(global_norm(grads), 0.0, sys.float_info.max, message, finite=True)
    scale = ops.minimum(max_norm / norm, 1.0)
    return ptree.map(lambda g: as_tensor(g) * scale.astype(as_tensor(g).dtype), grads)
