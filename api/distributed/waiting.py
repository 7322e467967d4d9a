"""Waiting for other ranks: actively at first, then asleep, and with a limit after which they are named."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from treepie.kernels import config

#: Lets another process have this core.
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))


class Wait(Protocol):
    """What a collective waits for.

    patience: seconds for which a wait is looked at all the time, between which others may have the core.
    """

    patience: float

    def ready(self, ns: float = 0) -> bool:
        """Whether it has come; wait actively for so many nanoseconds."""

    def tell(self) -> None:
        """Tell other nodes what this rank waits for, where it waits for long."""

    def missing(self) -> Sequence[int]:
        """Return the ranks that it waits for, as far as this rank knows; none where another rank says it."""


#: A collective: each element is waited for before the next one is asked for.
Steps = Generator[Wait, None, None]

T = TypeVar("T")


class Waiter:
    """Waits for what collectives need.

    rank: of this process, in messages.  abort: ends all ranks.
    spin_ns: how long it waits actively.
    """

    def __init__(self, rank: int, abort: Callable[[int], object], spin_ns: float) -> None:
        self._rank, self._abort, self.spin_ns = rank, abort, spin_ns

    def run(self, steps: Generator[Wait, None, T], what: Callable[[], str]) -> T:
        """Run a collective to its end, and return its result. what: its name in messages."""
        while True:
            try:
                wait = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self.wait(wait, what)

    def wait(self, wait: Wait, what: Callable[[], str]) -> None:
        """Wait, and let others have the core when it takes long: a helper thread may need it."""
        if wait.ready(self.spin_ns):
            return
        start = time.perf_counter()
        limit, last = config.STUCK_SECONDS, config.STUCK_ABORT_SECONDS
        tell = min((t for t in (limit, last) if t), default=0.0) / 2
        while not wait.ready():
            waited = time.perf_counter() - start
            if waited < wait.patience:
                _yield()
            else:
                time.sleep(config.RANK_SLEEP if waited < 1 else config.RANK_LONG_SLEEP)
            if tell and waited > tell:
                tell = 0.0
                wait.tell()
            if limit and waited > limit:
                self._say(wait.missing(), what(), limit, "it goes on waiting")
                limit = 0.0
            if last and waited > last:
                self._say(wait.missing(), what(), last, "it ends the job")
                self._abort(1)

    def _say(self, ranks: Sequence[int], what: str, seconds: float, then: str) -> None:
        if not ranks:
            return
        listed = ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(map(str, ranks))
        sys.stderr.write(
            f"[rank {self._rank}] treepie: {listed} did not arrive within {seconds:.3g} s at {what}; {then} "
            "(TREEPIE_STUCK_SECONDS and TREEPIE_STUCK_ABORT_SECONDS are the limits)\n"
        )
        sys.stderr.flush()
