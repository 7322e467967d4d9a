"""The line of the user's program that messages and warnings name."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from types import FrameType

_STANDARD = (*{sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}, "<frozen")


def _user_frame() -> tuple[FrameType, int]:
    """Return the innermost frame of user code, and how many frames it is above the caller's.

    It is in neither this library nor the standard one; where none is, it is in the standard one.
    """
    frame, depth = sys._getframe(1), 0
    first: tuple[FrameType, int] | None = None
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] != "treepie" or module.startswith("treepie.examples"):
            if not frame.f_code.co_filename.startswith(_STANDARD):
                return frame, depth
            first = first or (frame, depth)
    return first or (frame, depth)


def user_line() -> str:
    """Return "file:line" of the innermost frame of user code."""
    frame, _ = _user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn the user: the warning is one of the line that called this library."""
    _, depth = _user_frame()
    warnings.warn(message, category, stacklevel=1 + depth)
