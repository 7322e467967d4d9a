"""What a training step is taken from, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor

from ..layer import Context
from .state import Buffers

Loss = Callable[..., Tensor]


@dataclass
class Accumulation:
    """Where a step stands whose gradients are those of several elements.

    first, last: whether this is that element.  size: how many examples it has.  examples: of all elements up
    to this one.  total: the sum of losses so far, each times its examples.  sums: gradients so far.
    """

    first: bool
    last: bool
    size: int
    examples: int
    total: float
    sums: list[np.ndarray]
    addresses: list[int]


@dataclass
class StepInputs:
    """What a step is taken from: loss(model(x), *target), at parameters in buffers.

    out: the buffers of what comes out, which may be the same.
    checked: whether to check that the loss and the gradients are finite, and change nothing where not.
    folds: integers that are folded into the key.
    tick: a count that the program increments when it changes anything.
    """

    buffers: Buffers
    out: Buffers
    count: int
    state: Any
    dtype: Any
    x: Any
    loss: Loss
    target: tuple[Any, ...]
    key: Tensor | None
    folds: tuple[int, ...]
    training: bool
    ctx: Context | None
    tick: np.ndarray
    tick_address: int
    clip_norm: float | None = None
    accumulation: Accumulation | None = None
    checked: bool = True


@dataclass
class Outcome:
    """What a step gave.

    loss: of a step with accumulation the mean so far.  norm: of the gradients.  dtype: of the loss.
    gradients: those in flat buffers, where the step was not taken since something is not finite; else None.
    buffers: the new parameters and moments, where they are not in `StepInputs.out`.
    """

    loss: float
    norm: float
    dtype: Any
    state: Any
    gradients: list[np.ndarray] | None = None
    buffers: Buffers | None = None
