"""Preemption: a signal asks `Trainer.fit` to write a checkpoint at the end of a step, and to leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from .state import TrainState

#: The exit status of a process that left on a signal, and continues with the same command line.
EXIT_STATUS = 85


class Preempted(SystemExit):
    """Raised by `Trainer.fit` after a signal of `tp.checkpoint.every(on_signals=...)`, on all ranks.

    The checkpoint of the last step is written: the same command line with `resume=True` continues from it,
    with the same bits. Unless it is caught, the process exits with status 85.

    code: 85.  state: the state after the last step.

    >>> import treepie as tp
    >>> tp.Preempted().code
    85
    """

    state: TrainState

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class Preemption:
    """Handles signals while its block runs in the main thread: a handler notes that one has come.

    It does nothing else, since a signal may come at any moment, while a checkpoint is written too.

    signals: names of signals; those that the platform does not have are left out.
    asked: whether a signal has come.
    """

    def __init__(self, signals: tuple[str, ...]) -> None:
        self.signals, self.asked = signals, False
        self._previous: dict[int, Any] = {}
        self._received: set[int] = set()
        self._error: BaseException | None = None

    def __enter__(self) -> None:
        """Install the handlers; Python allows that in the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = [getattr(signal, name) for name in self.signals if hasattr(signal, name)]
        for number in numbers:
            previous = signal.getsignal(number)
            if previous is not None:  # None is a handler in C, which could not be restored
                self._previous[number] = previous
                signal.signal(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Restore the previous handlers; a signal that came after the last step is theirs."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if error is None:
            if self._error is not None:
                raise self._error
            for number in self._received:
                if not callable(self._previous[number]):
                    signal.raise_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._received.add(number)
        previous = self._previous[number]
        if callable(previous):
            try:
                previous(number, frame)
            except BaseException as error:  # it would end the step: it is raised after the checkpoint
                self._error = error

    def leave(self) -> NoReturn:
        """Raise Preempted, or what the program's own handler of the signal has raised."""
        raise self._error if self._error is not None else Preempted()


def check_signals(function: str, names: Any) -> tuple[str, ...]:
    """Return names of signals as a tuple, or raise TypeError or ValueError."""
    listed = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if isinstance(names, str) or not all(isinstance(name, str) for name in listed):
        raise TypeError(
            f"{function}: on_signals is {names!r}, expected names, such as ('SIGTERM', 'SIGUSR1')"
        )
    for name in listed:
        if name not in _SIGNALS:
            expected = ", ".join(_SIGNALS)
            raise ValueError(f"{function}: on_signals has {name!r}, expected some of {expected}")
    return tuple(listed)


#: Signals that ask a process to end or may mean anything; Windows has the first alone.
_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU")
