"""Threads: their number, and the team that launches share."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from . import config
from .helpers import Helpers

#: More threads than any machine has cores are a mistake.
_MOST = 4096

_lock = threading.RLock()
_forked = _ended = False
_count: int | None = None
_helpers: Helpers | None = None
#: Teams without helpers. A launch of another thread may still use their memory.
_former: list[Helpers] = []
_on_change: list[Callable[[], None]] = []


def get_num_threads() -> int:
    """Return how many threads kernels may use: as `set_num_threads` set it, or the number of cores.

    >>> import treepie as tp
    >>> tp.get_num_threads() >= 1
    True
    """
    global _count
    if _count is None:
        _count = 1 if _forked else config.cores()
    return _count


def set_num_threads(n: int | Literal["auto"]) -> None:
    """Let kernels use at most n threads. Results have the same bits for every n.

    n: at least 1, or "auto", the default: the number of cores that this process may use, counted anew. A
    forked child has 1 thread until it calls this.

    Raises TypeError if n is neither an int nor "auto", ValueError if it is below 1 or above 4096.

    >>> import treepie as tp
    >>> before = tp.get_num_threads()
    >>> tp.set_num_threads(1)
    >>> tp.get_num_threads()
    1
    >>> tp.set_num_threads(before)
    """
    global _count
    if n == "auto":
        n = config.cores()
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads: n is {n!r}, expected an int or 'auto'")
    if not 1 <= n <= _MOST:
        raise ValueError(f"set_num_threads: n is {n}, expected 1 to {_MOST}")
    with _lock:
        _count = n
        if _helpers is not None and _helpers.count != n - 1:
            _stop()
    for notify in _on_change:
        notify()


def on_change(notify: Callable[[], None]) -> None:
    """Call `notify` after each change of the number of threads."""
    _on_change.append(notify)


def layer() -> str:
    """Name of Numba's threading layer: omp, tbb or workqueue. Starts it."""
    import numba

    numba.get_num_threads()  # makes the layer's symbols known to the linker
    return str(numba.threading_layer())


def team_size(chunks: int, work_ns: float, spinning: bool = False) -> int:
    """Return how many threads share a launch: 1 where that would cost more than it saves.

    spinning: whether it is one of many launches, between which helpers do not go to sleep.
    """
    most = min(chunks, get_num_threads())
    cost = config.SPINNING_COST_NS if spinning else config.PARALLEL_COST_NS
    return most if most > 1 and work_ns >= config.PARALLEL_GAIN * cost else 1


def worth_waking(work_ns: Sequence[float]) -> bool:
    """Whether launches of one table that could be shared are worth waking the helpers for, together.

    Two launches of 4 us within a step of 43 took 27 us more with helpers, which sleep between steps.
    """
    return sum(work_ns) >= config.PARALLEL_GAIN * config.PARALLEL_COST_NS


def team() -> int:
    """Return the address of the team, whose helpers this starts; 0 where there is one thread."""
    helpers = _helpers or _start()
    return helpers.address if helpers else 0


def _start() -> Helpers | None:
    global _helpers
    with _lock:
        if _helpers is None and get_num_threads() > 1 and not _ended:
            _helpers = Helpers(get_num_threads() - 1, region=not _forked and layer() == "omp")
        return _helpers


def _stop() -> None:
    global _helpers
    with _lock:
        helpers, _helpers = _helpers, None
        if helpers is not None:
            _former.append(helpers)
            helpers.stop()


@atexit.register
def _end() -> None:
    global _ended
    _ended = True  # a thread that still computes goes on alone
    _stop()


def _after_fork_in_child() -> None:
    # The child has none of the helpers, and the layer's own threads do not survive either: omp ends the
    # process, workqueue hangs.
    global _forked, _count, _helpers
    _forked, _count = True, None
    if _helpers is not None:
        _helpers.close()
        _former.append(_helpers)
        _helpers = None
    _lock.release()


if hasattr(os, "register_at_fork"):
    # A fork waits for the lock, so that the child has it free, and no team that is half made.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork_in_child
    )
