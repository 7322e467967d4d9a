"""Callbacks that keep the state with the best score, or end training when scores no longer improve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from treepie.autodiff.arguments import integer

from ..checkpoint.checkpoint import path_of, save_state
from ..train.callbacks import EarlyStop
from ..train.state import TrainState
from .monitor import Monitor


class _Best:
    """Keeps the best score, its epoch, and the state of training after it.

    state: what checkpoints hold.
    """

    def __init__(self, monitor: Monitor, keep: bool) -> None:
        self._monitor, self._keep = monitor, keep
        self.state: dict[str, Any] = {}
        self._reset()

    def _described(self, call: str) -> str:
        """Return the repr. call: the name and the arguments of the constructor."""
        if self.score is None:
            return f"{call}; no score yet"
        return f"{call}; best {self.score:.4g}, after epoch {self.epoch}"

    def _reset(self) -> None:
        self.state = {"score": None, "epoch": 0, "best": None, "wait": 0}

    @property
    def score(self) -> float | None:
        """The best score so far; None before the first."""
        return self.state["score"]  # type: ignore[no-any-return]

    @property
    def epoch(self) -> int:
        """The epoch of the best score, counted from 1; 0 before the first."""
        return self.state["epoch"]  # type: ignore[no-any-return]

    @property
    def best(self) -> TrainState | None:
        """The state of training after that epoch; None before the first, and where it is not kept."""
        return self.state["best"]  # type: ignore[no-any-return]

    def _check_scores(self, names: Sequence[str]) -> None:
        self._monitor.check_names(names)

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Begin anew, unless the state is that of a checkpoint."""
        if not resumed:
            self._reset()

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Compare the epoch's score with the best one."""
        score = self._monitor.score(scores)
        if self._monitor.better(score, self.score):
            kept = st if self._keep else None
            self.state = {"score": score, "epoch": epoch, "best": kept, "wait": 0}
        else:
            self.state = {**self.state, "wait": self.state["wait"] + 1}


class EarlyStopping(_Best):
    """Ends training; `early_stopping` constructs it."""

    def __init__(self, monitor: Monitor, patience: int, restore_best: bool) -> None:
        super().__init__(monitor, restore_best)
        self._patience = patience

    def __repr__(self) -> str:
        """Return the call that constructs it, and the best score."""
        keep = "" if self._keep else ", restore_best=False"
        call = f"early_stopping({self._monitor.metric!r}, patience={self._patience}{keep})"
        return self._described(call)

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Begin anew; of a run that has been ended by this callback, end it again."""
        super().on_begin(resumed, st)
        self._end_if_due()

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Compare the epoch's score with the best one; end training if that is too long ago."""
        super().on_epoch(epoch, scores, st)
        self._end_if_due()

    def on_end(self, st: TrainState) -> TrainState | None:
        """Return the best state, where it is kept."""
        return self.best

    def _end_if_due(self) -> None:
        if self.state["wait"] >= self._patience:
            raise EarlyStop


class Best(_Best):
    """Keeps the best state; `best` constructs it.

    rank: of this process, set by `fit`; rank 0 writes files.
    """

    rank = 0

    def __init__(self, monitor: Monitor, directory: str | os.PathLike[str] | None) -> None:
        super().__init__(monitor, True)
        self._directory = directory

    def __repr__(self) -> str:
        """Return the call that constructs it, and the best score."""
        folder = "" if self._directory is None else f", {os.fspath(self._directory)!r}"
        return self._described(f"best({self._monitor.metric!r}{folder})")

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Compare the epoch's score with the best one, and save the state if it is better."""
        super().on_epoch(epoch, scores, st)
        if self._directory is not None and self.epoch == epoch and self.rank == 0:
            save_state(self._directory, st)


def early_stopping(
    metric: str,
    patience: int,
    mode: str | None = None,
    min_delta: float = 0.0,
    restore_best: bool = True,
) -> EarlyStopping:
    """Return a callback that ends training when a score has not improved for some epochs.

    metric: "loss", the mean loss of an epoch's steps, or a name of `fit(validate=(data, metrics))`.
    patience: epochs without a better score after which training ends, at least 1.
    mode: "min" if lower scores are better, "max" if higher ones; None tells it by names such as "loss" and
        "accuracy".
    min_delta: by how much a better score differs at least.
    restore_best: whether `fit` returns the state after the epoch with the best score, however training has
        ended, except by an error. It is kept in memory and in checkpoints, which are twice as large.

    Its attributes `score`, `epoch` and `best` have the best score, its epoch and the state after it.

    Raises ValueError for arguments out of range and, at the end of an epoch, for a metric without a score.

    >>> import treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(1.5))  # the rate is too large
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=4)
    >>> stop = tp.callback.early_stopping("loss", patience=2)
    >>> st = trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, epochs=50, callbacks=[stop])
    >>> st.step, stop.epoch
    (1, 1)
    """
    monitor = Monitor("callback.early_stopping", metric, mode, min_delta)
    integer(monitor.function, "patience", patience, least=1)
    return EarlyStopping(monitor, patience, restore_best)


def best(
    metric: str,
    directory: str | os.PathLike[str] | None = None,
    mode: str | None = None,
    min_delta: float = 0.0,
) -> Best:
    """Return a callback that keeps the state of training after the epoch with the best score.

    metric, mode, min_delta: as for `early_stopping`.
    directory: a folder that the state is saved in each time, for `tp.checkpoint.load_state`.

    Its attributes `score`, `epoch` and `best` have the best score, its epoch and the state after it; `fit`
    returns the last state all the same.

    >>> import treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1))
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=4)
    >>> kept = tp.callback.best("loss")
    >>> st = trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, epochs=3, callbacks=[kept])
    >>> kept.epoch, kept.best.step
    (3, 3)
    """
    if directory is not None:
        directory = path_of("callback.best", directory, "directory")
    return Best(Monitor("callback.best", metric, mode, min_delta), directory)
