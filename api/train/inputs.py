"""What a training step takes, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.tensor import address_of

from ..layer import Context
from .state import FlatBuffers, Snapshot

Loss = Callable[..., Tensor]


class StepCounter:
    """A count in memory that a program increments when it writes the new parameters.

    The native call can not be interrupted, so the count tells, whatever interrupts Python, whether the
    state is that before a step or that after it.
    """

    __slots__ = ("address", "array", "value")

    def __init__(self) -> None:
        self.array = np.zeros((), np.int64)
        self.address = address_of(self.array)
        #: Returns the count; a bound method, since a step of 14 us asks three times.
        self.value: Callable[[], int] = self.array.item


@dataclass
class Accumulation:
    """The gradients of a step over several elements, after one of them.

    first, last: whether it is the first or the last element.  size: its number of examples.  examples: of all
    elements so far.  total: the sum of losses so far, each times its examples.  sums: gradients so far, in
    flat buffers, each times its examples.
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
    """The inputs of a step on loss(model(x), *target), from a snapshot.

    out: buffers for the new parameters and moments, which may be those of the snapshot.
    state: the model's state.  key: a pseudo-random key, into which the integers `folds` are folded.
    counter: incremented by the program that writes `out`.
    check: whether a loss or gradients that are not finite keep the program from writing.
    """

    at: Snapshot
    out: FlatBuffers
    state: Any
    x: Any
    loss: Loss
    target: tuple[Any, ...]
    key: Tensor | None
    folds: tuple[int, ...]
    training: bool
    ctx: Context | None
    counter: StepCounter
    clip_norm: float | None = None
    accumulation: Accumulation | None = None
    check: bool = True


@dataclass
class StepResult:
    """The loss of a step, and its gradients where they are not finite.

    loss: with accumulation, the mean so far.  norm: of the gradients.  dtype: of the loss.
    state: the model's new state.
    gradients: in flat buffers, where something is not finite and nothing was written; else None.
    buffers: the new parameters and moments, where they are not in `StepInputs.out`.
    """

    loss: float
    norm: float
    dtype: Any
    state: Any
    gradients: list[np.ndarray] | None = None
    buffers: FlatBuffers | None = None
