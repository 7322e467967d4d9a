"""The sum over ranks of what a step has computed on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor

from ..distributed.communicator import Communicator
from .inputs import Accumulation


def reduce_gradients(comm: Communicator, part: Accumulation) -> None:
    """Replace accumulated gradients, losses and numbers of examples by their sums over ranks."""
    mine = part.examples
    if mine == 0:
        for sums in part.sums:
            sums[...] = 0
    numbers = np.array([part.total, part.examples], np.float64)
    comm.sum(numbers)
    for sums in part.sums:
        comm.sum(sums)
    part.size = mine
    part.total, part.examples = float(numbers[0]), int(numbers[1])


def reduce_state(comm: Communicator, leaves: Sequence[Tensor], state: Any, part: Accumulation) -> Any:
    """Return a model's state, such as running statistics, as its mean over ranks, weighted by examples.

    part: after `reduce_gradients`, which leaves the rank's own examples in `size`.
    """
    floats = [t for t in leaves if t.dtype.kind == "f"]
    if not floats:
        return state
    weight = part.size / part.examples
    flat = np.concatenate([t.array.ravel().astype(np.float64) * weight for t in floats])
    comm.sum(flat)
    parts = iter(np.split(flat, np.cumsum([t.size for t in floats])[:-1]))

    def mean(leaf: Any) -> Any:
        t = as_tensor(leaf)
        if t.dtype.kind != "f":
            return leaf
        return Tensor(next(parts).reshape(t.shape).astype(t.dtype), None)

    return ptree.map(mean, state)
