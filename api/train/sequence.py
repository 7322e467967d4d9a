"""Consecutive steps of a `fit` as one native call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from treepie.autodiff import ptree
from treepie.autodiff.accuracy import current
from treepie.autodiff.program.pure import is_pure
from treepie.autodiff.program.run import Runs
from treepie.kernels.threads import get_num_threads

from ..data.ahead import Ahead, Read, reader
from ..data.pipeline import Data
from .inputs import StepInputs
from .state import FlatBuffers, Snapshot
from .weights import Losses

if TYPE_CHECKING:
    from .steps import Steps

#: Steps and nanoseconds of a call, before Python handles signals. A step by itself costs 25 us of Python.
_MOST, _LONGEST = 256, 5e6
#: Attempts in a row without a program, after which a `fit` takes all of its steps by themselves.
_ATTEMPTS = 16


class StepSequence:
    """Takes steps in one native call where none of them runs Python of the user's: see `next`."""

    def __init__(self, steps: Steps, losses: Losses) -> None:
        self._steps, self._losses = steps, losses
        self._failed = 0 if steps.model.pure else _ATTEMPTS  # attempts, since the last that succeeded
        self._read: Read | None = None
        self._buffers: FlatBuffers | None = None  # which the replays write
        self._replays: dict[Hashable, Replay] = {}

    def worth_trying(self) -> bool:
        """Whether the next steps may be such ones; counts as an attempt."""
        self._failed += 1
        return self._failed <= _ATTEMPTS

    def next(
        self, at: Snapshot, inputs: Callable[[Snapshot], StepInputs], data: Data, most: float
    ) -> Replay | None:
        """Return up to `most` steps on the next elements of data, which replay one program.

        None where there is no program yet, a launch is a host call, or elements are not in memory.
        at: whose buffers are exclusively owned.  inputs: returns those of a step from it, without an example.
        """
        if self._read is None:
            self._read = reader(data)
        left = len(data) - data.position
        if self._read is None or not left:
            return None
        elements = self._read(data.pass_number, data.position, min(int(min(most, _MOST)), left))
        if elements is None:
            return None
        if at.buffers is not self._buffers:
            self.clear()
            self._buffers = at.buffers
        key = elements.key, get_num_threads(), current()
        replay = self._replays.get(key)
        if replay is None:
            replay = self._replay(inputs(at), elements, len(data))
            if replay is None:
                return None
            self._replays[key] = replay
        self._failed = 0
        replay.take(elements)
        return replay

    def _replay(self, inputs: StepInputs, elements: Ahead, most: int) -> Replay | None:
        """Return the replay of elements that are like these."""
        element = elements.first
        if type(element) is not tuple or len(element) not in (2, 3):
            return None
        inputs.x, inputs.loss, inputs.target = self._losses.example(element)
        if not is_pure(inputs.loss) or self._steps.state_leaves(inputs.state):
            return None
        planned = self._steps.planned(inputs)
        if planned is None:
            return None
        step, program = planned
        limit = int(_LONGEST / max(program.work_ns, 1.0))
        numbers = {id(t): k for k, t in enumerate(ptree.leaves(element))}
        leaves = [numbers.get(id(t)) for t in step.leaves or ()]
        if limit < 2 or None in leaves:
            return None
        most = min(limit, _MOST, most)
        externals = range(step.first_leaf, step.first_leaf + len(leaves))
        return Replay(Runs(step.prepare(program), externals, most), leaves, most, step.state)

    def clear(self) -> None:
        """Forget the programs."""
        for replay in self._replays.values():
            replay.runs.done()
        self._replays.clear()
        self._buffers = None


class Replay:
    """Consecutive steps that replay one program in place.

    leaves: the tensors of an element that the program reads, by their numbers.  most: of steps.
    state: the model's state after each step.
    """

    def __init__(self, runs: Runs, leaves: list[Any], most: int, state: Any) -> None:
        self.runs, self.leaves, self.most, self.state = runs, leaves, most, state

    def take(self, elements: Ahead) -> None:
        """Prepare steps on some elements."""
        self.elements, self.rows = elements, elements.rows
        self._count = count = min(elements.count, self.most)
        columns, addresses = elements.addresses(), self.runs.addresses
        for k, leaf in enumerate(self.leaves):
            column = columns[leaf]
            addresses[1 : 1 + count, k] = column if isinstance(column, int) else column[:count]

    def go(self, at: Snapshot, folds: bool) -> None:
        """Take the steps, up to one whose launch reports an error.

        folds: whether the number of a step is folded into its key.
        """
        count, step = at.count, at.step
        numbers: list[tuple[int, ...]]
        if folds:
            numbers = [(count + k, step + k) for k in range(self._count)]
        else:
            numbers = [(count + k,) for k in range(self._count)]
        self.runs.go(numbers)
        del self.elements

    def losses(self, count: int) -> list[float]:
        """Return the losses of the first `count` steps."""
        return self.runs.scalars(0, count)
