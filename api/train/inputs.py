"""What a training step takes, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.tensor import address_of

from ..layer import Context
from .state import FlatBuffers, Snapshot

if TYPE_CHECKING:
    from .binding import Bindings

Loss = Callable[..., Tensor]


def no_loss(*_: Any) -> Tensor:
    """Stand for the loss of a step whose example is not known yet."""
    raise AssertionError


#: Called with the buffers of the new parameters and the model's new state, right before they are written.
Commit = Callable[[FlatBuffers, Any], None]


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


class Sums:
    """Sums of gradients in flat buffers, each gradient times the weight of its loss.

    empty: whether nothing was added yet; the buffers are uninitialized.
    """

    __slots__ = ("addresses", "arrays", "empty")

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays, self.empty = arrays, True
        self.addresses = [address_of(a) for a in arrays]


@dataclass
class Part:
    """A part of a step's batch, whose gradients are added to sums.

    weight: of its loss: its number of examples, or 1 where losses are summed.  counted: whether a loss that
        is a mean over counted terms weighs their number instead.
    row, rows: the index of its first example in the batch, and their number.
    """

    weight: float
    counted: bool
    row: int
    rows: int
    sums: Sums

    @property
    def numbers(self) -> tuple[float, int, int]:
        """The numbers that a program takes by value."""
        return self.weight, self.row, self.rows

    @property
    def arrays(self) -> list[np.ndarray]:
        """The memory that a program reads and writes."""
        return self.sums.arrays

    @property
    def addresses(self) -> list[int]:
        """The addresses of `arrays`."""
        return self.sums.addresses


class TotalValues:
    """The sum of the weights of a step's losses, the sum of the losses times their weights, and a norm.

    They are in memory, where a native call that goes through the whole step writes and reads them.
    """

    __slots__ = ("address", "array")

    def __init__(self) -> None:
        self.array = np.zeros(3)
        self.address = address_of(self.array)


@dataclass
class Total:
    """The whole batch of a step, after all of its parts.

    partial: whether the sums are a part of the gradients, so that `values` has the norm of all of them.
    """

    sums: Sums
    values: TotalValues
    partial: bool = False

    #: A program takes none of its numbers by value.
    numbers: ClassVar[tuple[()]] = ()

    @property
    def weight(self) -> float:
        """The sum of the weights."""
        return float(self.values.array[0])

    @property
    def loss(self) -> float:
        """The sum of the losses, each times its weight."""
        return float(self.values.array[1])

    @property
    def norm(self) -> float | None:
        """The norm of the gradients, where the sums are a part of them."""
        return float(self.values.array[2]) if self.partial else None

    @property
    def arrays(self) -> list[np.ndarray]:
        """The memory that a program reads and writes."""
        return [*self.sums.arrays, self.values.array]

    @property
    def addresses(self) -> list[int]:
        """The addresses of `arrays`."""
        return [*self.sums.addresses, self.values.address]


@dataclass
class StepInputs:
    """The inputs of a step on loss(model(x), *target), from a snapshot.

    out: buffers for the new parameters and moments, which may be those of the snapshot.
    state: the model's state.  key: a pseudo-random key, into which the integers `folds` are folded.
    counter: incremented by the program that writes `out`.
    part: the part of a batch whose gradients are added to sums, without an update; or the total to update by.
    check: whether a loss or gradients that are not finite keep the program from writing.
    bindings: of the `fit` that the step belongs to; None for a single step.
    """

    at: Snapshot
    out: FlatBuffers
    state: Any
    key: Tensor | None
    folds: tuple[int, ...]
    training: bool
    ctx: Context | None
    counter: StepCounter
    x: Any = None
    loss: Loss = no_loss
    target: tuple[Any, ...] = ()
    clip_norm: float | None = None
    part: Part | Total | None = None
    check: bool = True
    bindings: Bindings | None = None

    def numbers(self) -> list[Any]:
        """Return the numbers that the program takes by value, besides those of the user's."""
        numbers = [self.at.count, *self.folds]
        return numbers if self.part is None else [*numbers, *self.part.numbers]

    def description(self) -> dict[str, str]:
        """Return the shapes of inputs and targets, for a message about steps that all differ."""
        rows = {"inputs": self.x} | ({"targets": self.target} if self.target else {})
        return {name: _shapes(x) for name, x in rows.items()}

    def but(self, **changes: Any) -> StepInputs:
        """Return these inputs with changes; in a quarter of the time of `dataclasses.replace`."""
        other = object.__new__(StepInputs)
        other.__dict__.update(self.__dict__)
        other.__dict__.update(changes)
        return other


def _shapes(x: Any) -> str:
    """Return the shapes of tensors or arrays."""
    try:
        return ", ".join(str(tuple(t.shape)) for t in ptree.leaves(x))
    except (TypeError, ValueError, AttributeError):
        return type(x).__name__


@dataclass
class StepResult:
    """The loss of a step, and its gradients where they are not finite.

    norm: of the gradients; of a part, the weight of its loss.  dtype: of the loss.
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
