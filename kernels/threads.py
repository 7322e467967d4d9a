"""Threads: their number, and the one parallel driver that all kernels share.

The driver is the only `@njit(parallel=True)` function: it runs a kernel, whose code is serial, on a team of
threads. A kernel compiles in 0.34 s this way, and in 1.0 s with a parallel loop in it; a forked child, or a
machine with one core, runs the same code without the driver.
"""

import functools
import os
import re
import threading
from collections.abc import Callable

from . import config, native

#: Functions of the threading layer that the driver calls.
_LAYER = frozenset(
    [
        "numba_parallel_for",
        "do_scheduling_unsigned",
        "get_num_threads",
        "get_parallel_chunksize",
        "set_parallel_chunksize",
        "get_sched_size",
        "allocate_sched",
        "deallocate_sched",
    ]
)

#: Functions of the interpreter that Numba's wrapper of a parallel region calls, to acquire and release the
#: lock and to report an exception. The driver holds no lock and can not raise; with the lock, a region would
#: wait up to 5 ms for a Python thread that computes, such as one that prepares the next batch.
_INTERPRETER = re.compile(
    r"^declare (?:\w+ )*(?P<result>\w+) @(?P<name>Py\w+|NRT_\w+|numba_gil_\w+|numba_do_raise"
    r"|numba_unpickle|numba_runtime_build_excinfo_struct|printf)\((?P<rest>.*)$",
    re.MULTILINE,
)

_lock = threading.Lock()
_forked = False
_count = 0
_driver = 0
_on_change: list[Callable[[], None]] = []


@functools.cache
def default_threads() -> int:
    """Return the default number of threads: `NUMBA_NUM_THREADS`, or the number of available cores."""
    return int(os.environ.get("NUMBA_NUM_THREADS") or config.affinity())


def get_num_threads() -> int:
    """Return how many threads kernels may use: as `set_num_threads` set it, or the number of cores.

    >>> import treepie as tp
    >>> tp.get_num_threads() >= 1
    True
    """
    return _count or default_threads()


def set_num_threads(n: int) -> None:
    """Let kernels use at most n threads. Results have the same bits for every n.

    n: at least 1. Above `NUMBA_NUM_THREADS` (by default the number of cores), only that many threads run.

    Raises TypeError if n is not an int, ValueError if it is below 1.

    >>> import treepie as tp
    >>> before = tp.get_num_threads()
    >>> tp.set_num_threads(1)
    >>> tp.get_num_threads()
    1
    >>> tp.set_num_threads(before)
    """
    global _count
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"set_num_threads: n is {n!r}, expected an int")
    if n < 1:
        raise ValueError(f"set_num_threads: n is {n}, expected at least 1")
    _count = n
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


def team(chunks: int, work_ns: float, spinning: bool = False) -> int:
    """Return how many threads run a launch: 1 where a parallel region would cost more than it saves.

    spinning: whether it is one of many launches, between which the threads do not go to sleep.
    """
    most, costs = min(chunks, get_num_threads()), config.PARALLEL_COST_NS
    if spinning:
        costs = config.SPINNING_COST_NS
    if most < 2 or work_ns < config.PARALLEL_GAIN * min(costs.values()):
        return 1
    return most if work_ns >= config.PARALLEL_GAIN * costs[layer()] else 1


def _after_fork_in_child() -> None:
    # No threading layer survives a fork: omp ends the process, workqueue hangs. A child is serial.
    global _forked, _lock
    _forked, _lock = True, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def driver() -> int:
    """Return the address of the parallel driver, 0 in a forked child."""
    global _driver
    if _forked:
        return 0
    if not _driver:
        with _lock:
            layer()
            _driver = native.load("driver", _driver_ir, _LAYER)
    return _driver


def _driver_ir() -> str:
    """`void driver(worker, entry, block, team)`: call `worker(entry, block)` `team` times at once."""
    from numba import cfunc, njit, prange, types

    from .intrinsics import call_address, rename

    call = call_address.for_numba()  # type: ignore[attr-defined]

    @njit(parallel=True, nogil=True, error_model="numpy")
    def drive(worker, entry, block, team):  # type: ignore[no-untyped-def]
        for _ in prange(team):
            call(worker, entry, block)

    @cfunc(types.void(*[types.int64] * 4))
    def driver(worker, entry, block, team):  # type: ignore[no-untyped-def]
        drive(worker, entry, block, team)

    text = rename(driver.inspect_llvm(), driver.native_name, "driver")
    return _INTERPRETER.sub(_empty, text)


def _empty(declaration: re.Match[str]) -> str:
    result, rest = declaration["result"], declaration["rest"]
    depth, end = 1, 0
    while depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    value = "void" if result == "void" else f"{result} {'null' if result == 'ptr' else 0}"
    return f"define internal {result} @{declaration['name']}({rest[: end - 1]}) {{ ret {value} }}"
