"""The loop of `Trainer.fit`: epochs, steps, and what happens at their ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ..data.pipeline import Data
from ..metric.accumulators import Metric
from .callbacks import Callbacks, EarlyStop
from .checks import check_progress
from .options import Validation
from .parts import length
from .progress import Progress
from .run import Run
from .runner import StepRunner
from .state import TrainState

Evaluate = Callable[[TrainState, Data, Mapping[str, Metric], Any], dict[str, Any]]


class Loop:
    """Runs the epochs of a `fit`.

    validate: (data, metrics), which `evaluate` scores after each epoch.
    progress: as for `fit`.
    """

    def __init__(
        self,
        run: Run,
        runner: StepRunner,
        callbacks: Callbacks,
        evaluate: Evaluate,
        validate: Validation | None,
        progress: bool | None,
    ) -> None:
        self.run, self.runner, self.callbacks = run, runner, callbacks
        check_progress(progress)
        self.evaluate, self.validate, self.progress = evaluate, validate, progress

    def through(self, epochs: int) -> TrainState:
        """Return the state after the remaining epochs."""
        run, runner = self.run, self.runner
        bar = Progress(self.progress, run.history, run.done, len(run.data), epochs)
        with run.preemption, bar:
            try:
                self._epochs(epochs, bar)
                run.finish(runner)
                run.leave_if_asked(runner)
            except Exception as error:
                run.name_batch(error, runner)
                raise
            finally:
                runner.release()
        return self.callbacks.end(runner.end())

    def _epochs(self, epochs: int, bar: Progress) -> None:
        """Train until the last epoch has ended, or someone ends training."""
        if self._agreed(self.callbacks.begin(self.run.resumed, self.runner.state)):
            return
        for epoch in self.run.epochs(epochs):
            bar.begin_epoch(epoch)
            try:
                self._epoch(bar)
            except EarlyStop:
                return
            if self._end_epoch(bar):
                return

    def _epoch(self, bar: Progress) -> None:
        """Train on the rest of a pass over the data."""
        run, runner, observers = self.run, self.runner, self.callbacks.observers
        elements = iter(run.data)
        while True:
            count, rows = self._several(bar) if observers is None and runner.takes_several else (0, 0)
            if not count:
                batches = list(itertools.islice(elements, runner.size))
                if not batches:
                    return
                count, rows, loss = 1, 0, runner.step(batches)
                run.ranks.compare(runner)
                run.history.add_step(runner.steps, loss)
            bar.left -= count
            if bar.left <= 0:
                rows = rows or sum(length(b[0]) for b in batches) * run.ranks.comm.size
                bar.tick(run.done, rows)
            if observers is not None:
                stop = False
                for observe in observers:
                    try:
                        observe(runner.steps, loss, runner.state())
                    except EarlyStop:
                        stop = True
                if run.ranks.any(stop):
                    raise EarlyStop
            run.after_step(runner)
            run.leave_if_asked(runner)

    def _several(self, bar: Progress) -> tuple[int, int]:
        """Take steps in one native call, if the next ones are such; return how many, and each one's examples.

        Whatever interrupts Python, the history has the losses of the steps that the state has.
        """
        runner, history = self.runner, self.run.history
        step, noted = runner.steps, len(history.steps)

        def note() -> None:
            first = len(history.steps) - noted
            history.add_steps(step + first + 1, runner.losses(runner.steps - step)[first:])

        try:
            rows = runner.several(min(bar.left, self.run.until_checkpoint(runner)))
            if rows:
                note()
        except BaseException:
            note()
            raise
        return runner.steps - step, rows

    def _end_epoch(self, bar: Progress) -> bool:
        """Score, note and save the state after an epoch; return whether a callback ends training."""
        run, runner, history = self.run, self.runner, self.run.history
        scores = self._scores()
        bar.end_epoch(run.done, scores)
        history.end_epoch(runner.steps, scores)
        scores = {"loss": history.epochs[-1]["loss"], **scores}
        stop = self._agreed(self.callbacks.end_epoch(run.epoch + 1, scores, runner.state))
        run.after_epoch(runner)
        return stop

    def _agreed(self, stop: bool) -> bool:
        """Return whether a callback of some rank ends training."""
        return len(self.callbacks) > 0 and self.run.ranks.any(stop)

    def _scores(self) -> dict[str, Any]:
        if self.validate is None:
            return {}
        data, metrics = self.validate
        return self.evaluate(self.runner.state(), data, metrics, data.comm)
