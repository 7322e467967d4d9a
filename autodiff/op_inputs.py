"""Operands of a row of the op table, for its tests and its benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np

from .convert import tensor
from .table import Case, Op
from .tensor import DType, Tensor


def operands(row: Op, case: Case, dtype: DType, seed: int = 0) -> list[Any]:
    """Return NumPy arrays for a case: floats drawn from the row's domain, integers below their bound.

    An operand with integers below 2 is a bool.
    """
    rng = np.random.default_rng(seed)
    out: list[Any] = []
    for k, shape in enumerate(case.shapes):
        if k in case.integers:
            values = rng.integers(0, case.integers[k], shape) + np.array(case.added.get(k, 0))
            out.append(np.asarray(values, bool if case.integers[k] == 2 and _is_bool(row, k) else np.int64))
            continue
        if np.dtype(dtype).kind == "b":
            out.append(np.asarray(rng.random(shape) < 0.5))
            continue
        domain = row.domain.get(k, (-2.0, 2.0)) if isinstance(row.domain, dict) else row.domain
        if row.distinct:
            values = rng.permutation(np.linspace(*domain, int(np.prod(shape)))).reshape(shape)
        else:
            values = np.asarray(rng.uniform(*domain, shape))
        out.append(values.astype(dtype))
    return out


def _is_bool(row: Op, argument: int) -> bool:
    from .elementwise import Elementwise

    return isinstance(row, Elementwise)


def tensors(arrays: list[Any]) -> list[Tensor]:
    """Return arrays as tensors of the same dtypes."""
    return [tensor(a) for a in arrays]
