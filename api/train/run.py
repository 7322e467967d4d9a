"""The progress of a `fit` through its data, saved in checkpoints, so that a resumed run has the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from treepie.autodiff import Tensor

from ..checkpoint.checkpoint import Entry, Every, Store
from ..data.check import check_data, check_not_empty
from ..data.pipeline import Data
from ..errors import add_note
from .callbacks import Callbacks
from .checks import check_history
from .history import History, plain_scores, restored_scores
from .preemption import Preemption
from .ranks import Ranks
from .runner import StepRunner
from .saved import decode, encode, reader
from .state import TrainState


class Run:
    """The epochs of a `fit`, and its checkpoints.

    epoch: number of the current epoch, from 0.  ended: whether it has ended, validation included.
    rngs: the key of the run.  preemption: the signals that end it early.
    resumed: whether the run continues from a checkpoint.
    """

    def __init__(
        self,
        optimizer: str,
        data: Data,
        history: History | None,
        rngs: Tensor | None,
        plan: Every | None,
        ranks: Ranks,
        callbacks: Callbacks,
    ) -> None:
        """Check the arguments of `fit`. optimizer: its name.  plan: when and where to write checkpoints."""
        self.ranks, self._callbacks, self.resumed = ranks, callbacks, False
        self.optimizer, self.data, self.rngs = optimizer, check_data("Trainer.fit", data), rngs
        self.history = history if history is not None else History()
        check_history(self.history)
        self.epoch, self.ended = 0, False
        if plan is not None and not isinstance(plan, Every):
            kind = type(plan).__name__
            raise TypeError(f"Trainer.fit: checkpoint is a {kind}, expected tp.checkpoint.every(...)")
        self._plan = plan
        self.preemption = Preemption(plan.on_signals if plan else ())
        ranks.check_same(checkpoint=plan and (plan.steps, plan.on_signals))
        self._store = Store("Trainer.fit", plan.directory) if plan else None
        self._number: int | None = None
        self._written: tuple[int, int, bool] | None = None

    @property
    def done(self) -> int:
        """Number of elements trained on."""
        return len(self.data) * self.epoch + self.data.position

    def begin(self, st: TrainState, resume: bool) -> TrainState:
        """Return the initial state: with `resume` that of the last checkpoint, if there is one."""
        if resume and self._store is None:
            raise ValueError("Trainer.fit: resume is True, expected checkpoint=tp.checkpoint.every(...) too")
        if resume:
            # Rank 0 reads: files of a network file system may be seen by one rank before another.
            checkpoint = self._store.newest() if self._store and self.ranks.first else None
            resumed = self.ranks.from_first(checkpoint and self._read(checkpoint, st))
            if resumed is not None:
                return self._resume(*resumed)
        check_not_empty("Trainer.fit", self.data)
        return st

    def _read(
        self, checkpoint: Entry, like: TrainState
    ) -> tuple[TrainState, dict[str, Any], Any, dict[str, Any], int | None]:
        """Return a checkpoint's state, notes, steps and losses, states of callbacks, and the run's number."""
        notes = checkpoint.training().get("fit")
        if notes is None:
            raise ValueError(
                f"Trainer.fit: {checkpoint.path} was written by save_state, without a position in the data; "
                "expected a checkpoint that fit has written (see checkpoint.load_state)"
            )
        for what, mine in (("optimizer", self.optimizer), ("length of data", len(self.data))):
            if notes[what] != mine:
                raise ValueError(
                    f"Trainer.fit: {what} is {mine}, expected {notes[what]}, as in {checkpoint.path}"
                )
        arrays = checkpoint.arrays()
        steps, losses = (arrays[f"history.{k}"].tolist() for k in ("steps", "losses"))
        rows = list(zip(steps, losses, strict=True))
        at, states = reader(arrays, "callbacks"), notes.get("callbacks", {})
        callbacks = {name: decode(state, at, like) for name, state in states.items()}
        return checkpoint.state(like, arrays), notes, rows, callbacks, checkpoint.run

    def _resume(
        self, st: TrainState, notes: dict[str, Any], steps: Any, callbacks: dict[str, Any], number: int | None
    ) -> TrainState:
        """Continue from a checkpoint: seek to its position in the data, and return its state."""
        self.resumed = True
        self._callbacks.restore(callbacks)
        self.data.seek(notes["pass"], notes["position"])
        self.epoch, self.ended, self._number = notes["epoch"], notes["ended"], number
        self.rngs = None if notes["rngs"] is None else Tensor(np.array(notes["rngs"], np.int64), None)
        scores = [restored_scores(epoch) for epoch in notes["scores"]]
        self.history.restore(steps, scores, notes["begun"])
        self._written = (st.step, self.epoch, self.ended)
        return st

    def epochs(self, count: int) -> Iterator[int]:
        """Iterate over the remaining epochs, each but the first on a new pass over the data."""
        for epoch in range(self.epoch + self.ended, count):
            if epoch > self.epoch:
                self.data.reset()
            self.epoch, self.ended = epoch, False
            yield epoch

    def name_batch(self, error: Exception, runner: StepRunner) -> None:
        """Say in an error which batch was read last."""
        if self.data.position:
            batch = f"batch {self.data.position} of {len(self.data)}"
            add_note(error, f"Trainer.fit: epoch {self.epoch + 1}, {batch}; steps so far: {runner.steps}")

    def after_step(self, runner: StepRunner) -> None:
        """Write a checkpoint if one is due; after the last step of an epoch, only once it has scores."""
        if self.data.position < len(self.data):
            self._write_if_due(runner)

    def after_epoch(self, runner: StepRunner) -> None:
        """Write a checkpoint if one is due, with the epoch's scores."""
        self.ended = True
        self._write_if_due(runner)

    def finish(self, runner: StepRunner) -> None:
        """Write a checkpoint of the last state, unless it has been written, and the history to its file."""
        if self._plan and self._written != (runner.steps, self.epoch, self.ended):
            self._write(runner.state())
        if self.history.file is not None and self.ranks.first:
            self.history.save(self.history.file)

    def leave_if_asked(self, runner: StepRunner) -> None:
        """Write a checkpoint and raise Preempted, where a signal has asked some rank to leave."""
        if self.preemption.signals and self.ranks.any(self.preemption.asked):
            self.finish(runner)
            self.preemption.leave()

    def _write_if_due(self, runner: StepRunner) -> None:
        if self._plan and runner.steps % self._plan.steps == 0:
            self._write(runner.state())

    def _write(self, st: TrainState) -> None:
        if self.ranks.first:
            self._write_files(st)
        self.ranks.barrier()  # a job that ends now is complete on all ranks
        self._written = (st.step, self.epoch, self.ended)

    def _write_files(self, st: TrainState) -> None:
        assert self._plan is not None
        assert self._store is not None
        history = self.history
        kept: list[Tensor] = []
        states = self._callbacks.states().items()
        notes = {
            "callbacks": {name: encode(f"Trainer.fit: the state of {name}", x, kept) for name, x in states},
            "epoch": self.epoch,
            "ended": self.ended,
            "pass": self.data.pass_number,
            "position": self.data.position,
            "length of data": len(self.data),
            "rngs": None if self.rngs is None else self.rngs.tolist(),
            "optimizer": self.optimizer,
            "scores": [plain_scores(epoch) for epoch in history.epochs],
            "begun": history.begun,
        }
        # Losses are tensors, since there may be millions of them: 16 bytes a step, against 30 in JSON.
        steps, losses = ([row[k] for row in history.steps] for k in (0, 1))
        tensors = {"steps": np.array(steps, np.int64), "losses": np.array(losses, np.float64)}
        content = {"history": tensors, "callbacks": kept}
        self._number = self._store.write(st, {"fit": notes}, content, self._plan.keep, self._number)
