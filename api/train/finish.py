"""The end of a training step in ops: gradients are accumulated, checked, clipped and applied.

An eager step runs these functions, and a program traces them, so that both have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_tensor

from ..optim.gradients import norm_of
from ..optim.optimizer import Optimizer, OptState
from ..optim.sparse import Gradient, row_gradients
from .inputs import Part, StepInputs, StepResult
from .state import FlatBuffers

#: The message of the finite check, by which its failure is told from other errors of a program.
NONFINITE = "the loss or the norm of its gradients is {}"
_LARGEST = float(np.finfo(np.float64).max)


def check_finite(loss: Tensor, norm: Tensor) -> Tensor:
    """Return the norm; a launch reports an error where it or the loss is not finite."""
    ops.check_range(loss, -_LARGEST, _LARGEST, NONFINITE, finite=True)
    return ops.check_range(norm, 0.0, _LARGEST, NONFINITE, finite=True)


def clip(flat: Sequence[Gradient], max_norm: float, norm: Tensor) -> list[Gradient]:
    """Return the gradients, scaled down where their norm exceeds `max_norm`."""
    scale = ops.minimum(max_norm / norm, 1.0)
    return [g * scale.astype(g.dtype) for g in flat]


def update(
    optimizer: Optimizer, layout: Any, count: Any, buffers: Sequence[Tensor], flat: Sequence[Gradient]
) -> list[Tensor]:
    """Return the new parameters and moments, in flat buffers."""
    n = layout.trained
    rows = [tuple(buffers[k : k + n]) for k in range(0, len(buffers), n)] if n else [()]
    params, state = optimizer.advance(OptState(count, tuple(rows[1:]), layout), rows[0], flat)
    return [*params, *[t for row in state.buffers for t in row]]


def finish(
    inputs: StepInputs,
    optimizer: Optimizer,
    value: Tensor,
    weight: Tensor | None,
    flat: list[Tensor],
    state: Any,
    norm: float | None = None,
) -> StepResult:
    """Return the result of an eager step, from its loss and its gradients in flat buffers.

    weight: of the loss of a part, which its gradients were multiplied by.
    norm: of all gradients, where `flat` is a part of them.
    """
    part, loss, dtype = inputs.part, value.item(), value.dtype
    if weight is not None:
        assert isinstance(part, Part)
        for total, g in zip(part.sums.arrays, flat, strict=True):
            total[...] = g.array if part.sums.empty else total + g.array
        return StepResult(loss, weight.item(), dtype, state)
    at = inputs.at
    grads = row_gradients(at.buffers.layout, flat)
    if norm is None:
        norm = norm_of(grads).item() if inputs.check or inputs.clip_norm is not None else 0.0
    if inputs.check and not (math.isfinite(loss) and math.isfinite(norm)):
        return StepResult(loss, norm, dtype, state, [t.array for t in flat])
    if inputs.clip_norm is not None:
        grads = clip(grads, inputs.clip_norm, as_tensor(np.float64(norm)))
    buffers = [Tensor(a, None) for a in at.buffers.arrays]
    arrays = [t.array for t in update(optimizer, at.buffers.layout, at.count, buffers, grads)]
    after = FlatBuffers(at.buffers.layout, arrays, owned=True, frozen=at.buffers.frozen)
    return StepResult(loss, norm, dtype, state, None, after)
