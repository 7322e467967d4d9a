"""The state of a thread: its active trace and the gradients being taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..tape import Node
    from ..tensor import Tensor
    from .trace import Trace

R = TypeVar("R")


class _Classes:
    """The classes of tensors and of nodes; `tape.py` sets them, since it imports this module.

    next_number: returns the number of a new node.
    """

    tensor: type[Tensor]
    node: type[Node]
    next_number: Callable[[], int]


classes = _Classes()


class _State(threading.local):
    """The state of a thread.

    trace: the trace that records ops; it may be closed.  gradients: the numbers of the gradients being taken.
    captures: the collectors of `tape.capture`.
    precision: of matrix products, where it is not float32; see `precision.py`.
    accuracy: of functions, where one is set; see `accuracy.py`.
    """

    trace: Trace | None = None
    gradients: tuple[int, ...] = ()
    captures: tuple[Any, ...] = ()
    precision: str | None = None
    accuracy: str | None = None


state = _State()


class Setting(ContextDecorator):
    """A block in which a name of the state has a value; as a decorator, one for each call."""

    def __init__(self, name: str, value: str) -> None:
        self._name, self._value = name, value
        self._before: str | None = None

    def _recreate_cm(self) -> Setting:
        return Setting(self._name, self._value)

    def __enter__(self) -> None:
        """Begin the block."""
        self._before = getattr(state, self._name)
        setattr(state, self._name, self._value)

    def __exit__(self, *error: object) -> None:
        """End the block."""
        setattr(state, self._name, self._before)


def tracing() -> Trace | None:
    """Return the active trace, or None."""
    trace = state.trace
    return None if trace is None or trace.closed else trace


def call_under(
    trace: Trace | None, function: Callable[..., R], *arguments: Any, gradients: tuple[int, ...] = ()
) -> R:
    """Call a function with a trace active, or with none, and with these gradients being taken alone.

    The state is restored twice, since a KeyboardInterrupt may be raised within the first `finally`.
    """
    before = state.trace, state.gradients, state.captures
    try:
        try:
            state.trace, state.gradients, state.captures = trace, gradients, ()
            return function(*arguments)
        finally:
            state.trace, state.gradients, state.captures = before
    finally:
        state.trace, state.gradients, state.captures = before
