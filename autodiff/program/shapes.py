"""Abstract evaluation: the shapes and dtypes of a function's results, without memory for them or a launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..tensor import Tensor
from ..trace import active
from ..trace.entry import Shape, root
from ..trace.trace import Trace

R = TypeVar("R")


class ReadsValues(Exception):
    """The function reads the elements of a tensor, which it does not have."""


def abstractly(function: Callable[[Callable[[Shape, np.dtype], Tensor]], R]) -> R:
    """Return a function's result, whose tensors have a shape and a dtype, but no elements.

    function: takes a function (shape, dtype) -> a tensor of that kind. Its Python runs once, with the ops'
        shape rules only.

    Raises ReadsValues where it reads elements.
    """
    trace = Trace(root(), user=False, refuse=ReadsValues)
    try:
        return active.call_under(
            trace, function, lambda shape, dtype: Tensor(trace.symbol(shape, dtype), None)
        )
    finally:
        trace.end()
