"""The coefficient of determination, by moments that merge exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from treepie.autodiff.tensor import TensorLike

from .base import Accumulator
from .inputs import errors_of


class _Moments(NamedTuple):
    """Statistics of targets, and the squared errors of their predictions.

    The mean is pivot + shift. For numbers far from 0, number - pivot is exact and small, so that neither
    the spread nor the combination of two loses digits to the offset.
    """

    size: int
    pivot: float
    shift: float
    spread: float  # sum of squared differences from the mean
    errors: float  # sum of squared differences from the predictions


class R2(Accumulator):
    """Accumulates `r2`, columns pooled.

    >>> import treepie as tp
    >>> m = tp.metric.R2()
    >>> m.update([1.0, 2.0], [1.0, 3.0])
    >>> m.compute()
    0.5
    """

    def _measure(self, pred: TensorLike, target: TensorLike) -> _Moments | None:
        errors, y = errors_of(self._name, pred, target)
        if not y.size:
            return None
        pivot = y.flat[0]
        with np.errstate(invalid="ignore"):
            near = y - pivot
            shift = near.mean()
            spread = np.square(near - shift).sum()
        return _Moments(y.size, float(pivot), float(shift), float(spread), float(np.square(errors).sum()))

    def _join(self, mine: _Moments, new: _Moments | None, function: str) -> _Moments:
        """Combine two sets of numbers (Chan, Golub & LeVeque 1983)."""
        if new is None:
            return mine
        size, apart = mine.size + new.size, (new.pivot - mine.pivot) + (new.shift - mine.shift)
        shift = mine.shift + apart * (new.size / size)
        spread = mine.spread + new.spread + apart * apart * (mine.size * new.size / size)
        return _Moments(size, mine.pivot, shift, spread, mine.errors + new.errors)

    def _score(self, statistics: _Moments) -> float:
        size, spread = statistics.size, statistics.spread
        if spread == 0:
            message = f"target has {size} elements and no variance, expected values that differ"
            raise ValueError(f"{self._name}: {message}")
        return 1.0 - statistics.errors / spread
