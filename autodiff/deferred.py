"""Results that are computed when they are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shaped import Shaped


class Deferred(Shaped):
    """The data of a tensor whose elements are computed at the first read: a shape and a dtype until then.

    compute: returns the elements; it holds arrays, not tensors, so that no graph of nodes stays alive.
    """

    __slots__ = ("_compute", "_value")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[], NDArray[Any]]) -> None:
        self.shape, self.dtype = shape, dtype
        self._compute: Callable[[], NDArray[Any]] | None = compute
        self._value: NDArray[Any] | None = None

    def read(self) -> NDArray[Any]:
        """Return the elements. Threads that read at once may each compute them, to the same bits."""
        compute, value = self._compute, self._value  # in this order: below they are set in the other
        if value is None:
            assert compute is not None
            value = self._value = compute()
            self._compute = None  # releases the operands
        return value
