"""A callback that lowers the learning rate when scores no longer improve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from treepie.autodiff.arguments import integer

from ..train.state import TrainState
from .monitor import Monitor


class ReduceOnPlateau:
    """Lowers the learning rate; `reduce_on_plateau` constructs it.

    state: what checkpoints hold: the factor of the learning rate, the best score, epochs since then.
    """

    def __init__(self, monitor: Monitor, factor: float, patience: int, cooldown: int, min_lr: float) -> None:
        self._monitor, self._factor, self._patience = monitor, factor, patience
        self._cooldown, self._min_lr = cooldown, min_lr
        self.state: dict[str, Any] = {}
        self.on_begin(False, None)

    def __repr__(self) -> str:
        """Return the call that constructs it, and the factor of the rates."""
        call = f"{self._monitor.metric!r}, factor={self._factor:g}, patience={self._patience}"
        return f"reduce_on_plateau({call}); rates times {self.factor:g}"

    @property
    def factor(self) -> float:
        """The factor that the optimizer's learning rate is multiplied by."""
        return self.state["factor"]  # type: ignore[no-any-return]

    def _check_scores(self, names: Sequence[str]) -> None:
        self._monitor.check_names(names)

    def on_begin(self, resumed: bool, st: TrainState | None) -> None:
        """Begin anew, unless the state is that of a checkpoint."""
        if not resumed:
            self.state = {"factor": 1.0, "score": None, "wait": 0, "rest": 0}

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Compare the epoch's score with the best one; lower the learning rate if that is too long ago."""
        state, score = dict(self.state), self._monitor.score(scores)
        if self._monitor.better(score, state["score"]):
            state |= {"score": score, "wait": 0}
        elif state["rest"]:
            state["wait"] = 0
        else:
            state["wait"] += 1
        state["rest"] = max(state["rest"] - 1, 0)
        if state["wait"] >= self._patience:
            state |= {"factor": state["factor"] * self._factor, "wait": 0, "rest": self._cooldown}
        self.state = state

    def learning_rate(self, rate: float) -> float:
        """Return the learning rate of the next step. rate: that of the optimizer."""
        return max(rate * self.factor, min(rate, self._min_lr))


def reduce_on_plateau(
    metric: str = "loss",
    factor: float = 0.1,
    patience: int = 10,
    mode: str | None = None,
    min_delta: float = 1e-4,
    cooldown: int = 0,
    min_lr: float = 0.0,
) -> ReduceOnPlateau:
    """Return a callback that multiplies the learning rate by `factor` when a score does not improve.

    metric, mode, min_delta: as for `early_stopping`.
    factor: above 0 and below 1.
    patience: epochs without a better score after which the rate is lowered.
    cooldown: epochs after that which do not count.  min_lr: the least learning rate.

    The rate may be a schedule, whose values are multiplied. No program is compiled for another rate: it is
    passed by value. Its attribute `factor` has the product so far.

    Raises ValueError for arguments out of range.

    >>> import treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(1.0))  # the rate is too large
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=4)
    >>> lower = tp.callback.reduce_on_plateau(factor=0.5, patience=2)
    >>> st = trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, epochs=5, callbacks=[lower])
    >>> lower.factor
    0.25
    """
    monitor = Monitor("callback.reduce_on_plateau", metric, mode, min_delta)
    integer(monitor.function, "patience", patience, least=1)
    integer(monitor.function, "cooldown", cooldown, least=0)
    if not 0 < factor < 1:
        raise ValueError(f"{monitor.function}: factor is {factor}, expected above 0 and below 1")
    if not 0 <= min_lr < math.inf:
        raise ValueError(f"{monitor.function}: min_lr is {min_lr}, expected 0 or more")
    return ReduceOnPlateau(monitor, factor, patience, cooldown, min_lr)
