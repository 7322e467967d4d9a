"""Means over a number of terms that depends on data, such as the targets that are not ignored."""

from typing import Any

import numpy as np

from treepie.kernels import vector

from ..elementwise import elementwise
from .arithmetic import maximum


@elementwise(
    oracle=lambda total, count: total / np.maximum(count, 1),
    vjp=(
        lambda g, y, total, count: g / maximum(count, 1.0),
        lambda g, y, total, count: -(g * y) / maximum(count, 1.0),
    ),
    accepts="float",
    domain={0: (-2.0, 2.0), 1: (1.5, 9.0)},
    flops=5,
    ulp=0.5,
)
def mean_of_terms(total: Any, count: Any) -> Any:
    """Return total / count, and 0 where there are no terms.

    A training step finds it at the end of a loss, and weighs a part of a batch by its `count`.
    """
    return total / vector.maximum(count, 1.0)
