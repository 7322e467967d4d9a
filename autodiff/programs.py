"""Programs of a function, by the structure of its arguments: recorded, proven, then run.

The first call of a structure runs op by op and is recorded. The second runs both ways, and where their bits
differ, as they do where Python computes something of its own, that structure stays eager. From the third on
the program runs alone.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from . import capture, tape
from .capture import Recorder, record
from .captured import Arena, Captured, Outline
from .captured import get_num_threads as get_num_threads  # the api layer uses it too
from .tensor import Tensor

A = TypeVar("A")  # arguments
R = TypeVar("R")  # result

#: Structures that are kept: of data whose every batch has another shape, few come again.
_MOST = 64


@dataclass
class _Known:
    """What is known of a structure: its recording, then its program. With neither, it stays eager."""

    recorder: Recorder | None = None
    outline: Outline | None = None
    pattern: Any = None  # how a result is put together from tensors
    program: Captured | None = None
    proven: bool = False


class Programs(ABC, Generic[A, R]):
    """Runs a function: op by op while a structure is new, by its program once that is proven.

    subject: what runs, in the plural.
    """

    subject = "calls"

    def __init__(self) -> None:
        """Begin with no structure known."""
        self._known: dict[Hashable, _Known] = {}
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self.arena = Arena()

    @property
    def programs(self) -> list[Captured]:
        """The programs that are proven by now."""
        return [known.program for known in self._known.values() if known.program and known.proven]

    def release(self) -> None:
        """Give back the memory of intermediate results; the next run takes new."""
        with self._lock:
            for known in self._known.values():
                if known.program is not None:
                    known.program.forget()
            self.arena.release()

    def call(self, structure: Hashable, givens: Sequence[Tensor], arguments: A) -> tuple[R, bool]:
        """Return the function's result, and whether a program alone gave it.

        structure: all that decides what the function does, but for the values of givens.
        """
        if tape.recording() or capture.state.recorder is not None:
            return self.eager(arguments), False  # it is part of what is recorded
        known = self._known.get(structure)
        if known is None:
            if len(self._known) < _MOST:
                return self._recorded(structure, givens, arguments), False
            self.say(f"of its arguments, {_MOST} structures have programs already")
            return self.eager(arguments), False
        if known.proven and known.program is not None:
            with self._lock:
                return self.run(known.program, known.pattern, givens, arguments), True
        if known.recorder is None:
            return self.eager(arguments), False
        return self._proven(known, givens, arguments), False

    def _recorded(self, structure: Hashable, givens: Sequence[Tensor], arguments: A) -> R:
        with record(givens) as recorder:
            result, outline, pattern = self.traced(recorder, arguments)
        if recorder.void is None:
            self._known[structure] = _Known(recorder, outline, pattern)
        else:
            self._known[structure] = _Known()
            self.refused(recorder.void)
        return result

    def _proven(self, known: _Known, givens: Sequence[Tensor], arguments: A) -> R:
        """Run both ways, and trust the program if both give the same bits."""
        with self._lock:
            if known.program is None and known.recorder is not None and known.outline is not None:
                donated = self.donated(arguments)
                known.program = Captured(known.recorder, known.outline, self.arena, donated)
            program = known.program
            assert program is not None
            found = _digests(self.named(self.run(program, known.pattern, givens, arguments, spare=True)))
        self.release()  # the same op by op takes as much
        result = self.eager(arguments)
        both = zip(found, _digests(self.named(result)), strict=True)
        different = next((name for (name, a), (_, b) in both if a != b), None)
        known.proven = different is None
        known.recorder = known.outline = None
        if different is not None:
            self.refused(f"{different} differs when it runs again")
        return result

    @abstractmethod
    def eager(self, arguments: A) -> R:
        """Run op by op."""

    @abstractmethod
    def traced(self, recorder: Recorder, arguments: A) -> tuple[R, Outline, Any]:
        """Run op by op while `recorder` records; return the result, and how a program gives one."""

    @abstractmethod
    def run(
        self, program: Captured, pattern: Any, givens: Sequence[Tensor], arguments: A, spare: bool = False
    ) -> R:
        """Run a program."""

    @abstractmethod
    def named(self, result: R) -> list[tuple[str, Tensor]]:
        """Return the tensors of a result, with what to call them."""

    def refused(self, why: str) -> None:
        """Learn that a structure stays eager."""
        self.say(why)

    def say(self, why: str) -> None:
        """Say, once for each reason, that something runs op by op."""
        if why not in self._said:
            self._said.add(why)
            what = f"treepie: {self.subject} run op by op, not as one program: {why}"
            print(what, file=sys.stderr, flush=True)

    def donated(self, arguments: A) -> Sequence[int]:
        """Return the numbers of givens whose memory results may take."""
        return ()


def _digests(tensors: Sequence[tuple[str, Tensor]]) -> list[tuple[str, bytes]]:
    """Return digests of the bits of tensors, by their names."""
    return [(name, hashlib.sha256(t.array.reshape(-1).view("u1").data).digest()) for name, t in tensors]
