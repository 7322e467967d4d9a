"""The end of a training step, in ops: gradients are summed, checked, clipped, and applied.

An eager step runs it, and a program traces it, so both have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ops
from treepie.autodiff.arguments import as_tensor

from ..optim.optimizers import Optimizer, OptState, global_norm
from .inputs import Accumulation, Outcome, StepInputs
from .state import Buffers

#: The message of the check that a step may be taken, by which a program's failure is told from others.
NONFINITE = "the loss or the norm of its gradients is {}"
_LARGEST = float(np.finfo(np.float64).max)


def summed(
    flat: Sequence[Tensor],
    sums: Sequence[Tensor],
    part: Accumulation,
    size: Any,
    examples: Any,
) -> list[Tensor]:
    """Return gradients so far, each times its examples; those of the last element divided by all.

    size, examples: Python's numbers, or those of a program.
    """
    scaled = [g * size for g in flat]
    if not part.first:
        scaled = [a + b for a, b in zip(sums, scaled, strict=True)]
    return [g / examples for g in scaled] if part.last else scaled


def norm_of(flat: Sequence[Tensor]) -> Tensor:
    """Return the global norm of gradients, float64."""
    return global_norm(list(flat))


def check(loss: Tensor, norm: Tensor) -> Tensor:
    """Return the norm; a launch fails where it or the loss is not finite."""
    ops.check_range(loss, -_LARGEST, _LARGEST, NONFINITE, finite=True)
    return ops.check_range(norm, 0.0, _LARGEST, NONFINITE, finite=True)


def clipped(flat: Sequence[Tensor], most: float, norm: Tensor) -> list[Tensor]:
    """Return gradients scaled down so that their norm is at most `most`."""
    scale = ops.minimum(most / norm, 1.0)
    return [g * scale.astype(g.dtype) for g in flat]


def updated(
    optimizer: Optimizer, layout: Any, count: Any, held: Sequence[Tensor], flat: Sequence[Tensor]
) -> list[Tensor]:
    """Return new parameters and moments of those that are held, all in flat buffers."""
    n = len(layout.groups)
    rows = [tuple(held[k * n : (k + 1) * n]) for k in range(1 + optimizer.moments)]
    made, state = optimizer.advance(OptState(count, tuple(rows[1:]), layout), rows[0], flat)
    return [*made, *[t for row in state.buffers for t in row]]


def ended(given: StepInputs, optimizer: Optimizer, value: Tensor, flat: list[Tensor], state: Any) -> Outcome:
    """Return the outcome of an eager step, from its loss and gradients."""
    part, loss, dtype = given.accumulation, value.item(), value.dtype
    if part is not None:
        sums = [Tensor(a) for a in part.sums]
        flat = summed(flat, sums, part, float(part.size), float(part.examples))
        loss = (part.total + loss * part.size) / part.examples if part.last else loss
        if not part.last:
            part.sums = [t.array for t in flat]
            return Outcome(loss, 0.0, dtype, state)
    norm = norm_of(flat).item() if given.checked or given.clip_norm is not None else 0.0
    if given.checked and not (math.isfinite(loss) and math.isfinite(norm)):
        return Outcome(loss, norm, dtype, state, [t.array for t in flat])
    if given.clip_norm is not None:
        flat = clipped(flat, given.clip_norm, as_tensor(np.float64(norm)))
    layout, held = given.buffers.layout, [Tensor(a) for a in given.buffers.arrays]
    new = updated(optimizer, layout, given.count, held, flat)
    return Outcome(loss, norm, dtype, state, None, Buffers(layout, [t.array for t in new], own=True))
