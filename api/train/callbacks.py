"""The callbacks of a `fit`: their methods, when these are called, and their states in checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treepie.autodiff.arguments import described

from ..errors import did_you_mean
from .checks import check_report
from .ranks import Ranks
from .state import TrainState

Report = Callable[[int, float, TrainState], Any]
State = Callable[[], TrainState]

#: The methods that a callback may have.
METHODS = ("on_begin", "on_step", "on_epoch", "on_end", "learning_rate")
#: Names of such methods in Keras and Lightning.
_ELSEWHERE = {
    "on_train_begin": "on_begin",
    "on_train_start": "on_begin",
    "on_fit_start": "on_begin",
    "on_step_end": "on_step",
    "on_batch_end": "on_step",
    "on_train_batch_end": "on_step",
    "on_epoch_end": "on_epoch",
    "on_train_epoch_end": "on_epoch",
    "on_validation_end": "on_epoch",
    "on_validation_epoch_end": "on_epoch",
    "on_train_end": "on_end",
    "on_fit_end": "on_end",
}


class EarlyStop(Exception):
    """Raise it in `report` or in a callback to end training; `Trainer.fit` then returns the current state.

    >>> import treepie as tp
    >>> def report(step, loss, st):
    ...     if loss < 0.1:
    ...         raise tp.EarlyStop
    """


class Callbacks:
    """The callbacks of a `fit`, in the order of their list.

    observers: the functions that are called after each step, `report` first; None where there are none.
    """

    def __init__(
        self, callbacks: Sequence[object], report: Report | None, ranks: Ranks, scores: Sequence[str]
    ) -> None:
        """Check the callbacks, and tell them the rank. scores: the names of those of an epoch."""
        if not isinstance(callbacks, list | tuple):
            raise TypeError(f"Trainer.fit: callbacks is {described(callbacks)}, expected a list of callbacks")
        for callback in callbacks:
            _check(callback)
            # Refuses a name without a score now, rather than after the first epoch.
            if hasattr(callback, "_check_scores"):
                callback._check_scores(scores)
            if hasattr(callback, "rank"):
                callback.rank = ranks.comm.rank
        if report is not None:
            check_report(report)
        self._all = list(callbacks)
        ranks.check_same(callbacks=self.names)
        observers = [*([] if report is None else [report]), *self._methods("on_step")]
        self.observers = observers or None
        self._rates = self._methods("learning_rate")

    @property
    def names(self) -> list[str]:
        """For each callback the name that its state is saved by: its class, and a number among its kind."""
        kinds = [type(c).__name__ for c in self._all]
        return [f"{kind}-{kinds[:k].count(kind)}" for k, kind in enumerate(kinds)]

    @property
    def learning_rate(self) -> Callable[[float], float] | None:
        """The function: the optimizer's learning rate -> that of the next step. None if none changes it."""
        if not self._rates:
            return None

        def adjusted(rate: float) -> float:
            for adjust in self._rates:
                rate = adjust(rate)
            return rate

        return adjusted

    def __len__(self) -> int:
        """Return the number of callbacks."""
        return len(self._all)

    def begin(self, resumed: bool, state: State) -> bool:
        """Call `on_begin` of each, and return whether one ends training. resumed: from a checkpoint."""
        functions = self._methods("on_begin")
        return bool(functions) and _stops(functions, resumed, state())

    def end_epoch(self, epoch: int, scores: Mapping[str, Any], state: State) -> bool:
        """Call `on_epoch` of each, and return whether one ends training. state: returns the current one."""
        functions = self._methods("on_epoch")
        return bool(functions) and _stops(functions, epoch, dict(scores), state())

    def end(self, st: TrainState) -> TrainState:
        """Call `on_end` of each with the state that the one before it returns; return the last."""
        for function in self._methods("on_end"):
            changed = function(st)
            if changed is not None and not isinstance(changed, TrainState):
                raise TypeError(
                    f"Trainer.fit: on_end of a callback returns a {type(changed).__name__}, expected a state "
                    "of training or None"
                )
            st = st if changed is None else changed
        return st

    def states(self) -> dict[str, Any]:
        """Return the states to save, by the names of callbacks."""
        pairs = zip(self.names, self._all, strict=True)
        return {name: callback.state for name, callback in pairs if hasattr(callback, "state")}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Set the states of a checkpoint; a callback that it does not have begins anew."""
        for name, callback in zip(self.names, self._all, strict=True):
            if name in states:
                callback.state = states[name]

    def _methods(self, name: str) -> list[Callable[..., Any]]:
        return [getattr(c, name) for c in self._all if hasattr(c, name)]


def _stops(functions: Sequence[Callable[..., Any]], *arguments: Any) -> bool:
    """Call functions, and return whether one of them raises EarlyStop; the others are called all the same."""
    stop = False
    for function in functions:
        try:
            function(*arguments)
        except EarlyStop:
            stop = True
    return stop


def _check(callback: Any) -> None:
    """Raise TypeError for an object that has none of the methods, or one with a name that is never called."""
    kind = type(callback).__name__
    names = [name for name in dir(callback) if name.startswith("on_") and callable(getattr(callback, name))]
    for name in names:
        if name not in METHODS:
            hint = (
                f"did you mean {_ELSEWHERE[name]!r}?" if name in _ELSEWHERE else did_you_mean(name, METHODS)
            )
            raise TypeError(
                f"Trainer.fit: the callback {kind} has a method {name}, which fit does not call, expected "
                f"some of {', '.join(METHODS)}{hint and '; '}{hint}"
            )
    if isinstance(callback, type) or not (names or hasattr(callback, "learning_rate")):
        raise TypeError(
            f"Trainer.fit: callbacks has {described(callback)}, expected an object with some of the methods "
            f"{', '.join(METHODS)}, such as those of tp.callback"
        )
