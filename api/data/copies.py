"""Copies of pipelines."""

from __future__ import annotations

import threading
from typing import NoReturn, TypeVar

P = TypeVar("P", bound="OfOneProcess")


class OfOneProcess:
    """A pipeline: its functions, its lock and its thread belong to this process."""

    _lock: threading.Lock

    def __copy__(self: P) -> P:
        """Return a pipeline with a position of its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _lock=threading.Lock())
        return other

    def __reduce__(self) -> NoReturn:
        """Raise TypeError."""
        raise TypeError(
            "Data: a pipeline can not be pickled or copied deeply, expected its arrays, of which "
            "Data.prepare makes another one"
        )
