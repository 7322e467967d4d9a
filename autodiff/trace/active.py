"""What is active in a thread: a trace, and the gradients that are being taken; and whose code runs."""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..tape import Node
    from ..tensor import Tensor
    from .trace import Trace

R = TypeVar("R")


class _Classes:
    """The classes of tensors and of the tape's nodes, which their modules put here: they import this one."""

    tensor: type[Tensor]
    node: type[Node]


classes = _Classes()


class _State(threading.local):
    """What is active in a thread.

    trace: the trace that ops are written to; it may be closed.  gradients: numbers of those being taken.
    captures: what collects tensors for `tape.capture`.
    """

    trace: Trace | None = None
    gradients: tuple[int, ...] = ()
    captures: tuple[Any, ...] = ()


state = _State()


def tracing() -> Trace | None:
    """Return the trace that is active, if any."""
    trace = state.trace
    return None if trace is None or trace.closed else trace


def inside(trace: Trace | None, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function while a trace is active, or none, and no gradient is being taken but its own.

    Twice in `finally`, since a KeyboardInterrupt may come in the first.
    """
    before = state.trace, state.gradients, state.captures
    try:
        try:
            state.trace, state.gradients, state.captures = trace, (), ()
            return function(*arguments)
        finally:
            state.trace, state.gradients, state.captures = before
    finally:
        state.trace, state.gradients, state.captures = before


_LIBRARY = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})


def line() -> str:
    """Return the file and the line of the user's code that runs: the innermost that is not the library's."""
    frame: FrameType | None = sys._getframe(1)
    first: str | None = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] != "treepie" or module.startswith("treepie.examples"):
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            first = first or where
            path = frame.f_code.co_filename
            if not path.startswith(_LIBRARY) and not path.startswith("<frozen"):
                return where
        frame = frame.f_back
    return first or "?"
