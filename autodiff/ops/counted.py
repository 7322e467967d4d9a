"""Means whose number of terms, or weights, depend on data, such as the targets that are not ignored."""

from typing import Any

import numpy as np

from treepie.kernels import vector

from ..elementwise import elementwise
from .arithmetic import where
from .compare import equal


@elementwise(
    oracle=lambda total, count: total / np.where(count == 0, 1, count),
    vjp=(
        lambda g, y, total, count: g / where(equal(count, 0.0), 1.0, count),
        lambda g, y, total, count: -(g * y) / where(equal(count, 0.0), 1.0, count),
    ),
    accepts="float",
    domain={0: (-2.0, 2.0), 1: (0.5, 9.0)},
    flops=5,
    ulp=0.5,
)
def mean_of_terms(total: Any, count: Any) -> Any:
    """Return total / count, and total where count is 0.

    count: a number of terms, or the sum of their weights. A training step that finds this op at the end of a
    loss weighs a part of a batch by it.
    """
    return total / vector.select(count == 0.0, 1.0, count)
