"""The helper threads of a team: made, started and stopped.

They are one long parallel region, which a background thread enters once: the only `@njit(parallel=True)`
function of the library, whose iterations are the helpers' loops. Kernels themselves are serial: one
compiles in 0.34 s this way, and in 1.0 s with a parallel loop in it. Where a threading layer cannot hold
such a region beside others, each helper is a Python thread that stays in native code: on workqueue, which
runs one region at a time, on tbb, whose threads the region would take from others, and in a forked child.
"""

import ctypes
import functools
import os
import re
import signal
import sys
import threading
import time

import numpy as np

from . import config, native, team
from .compiled import c_function

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
#: lock and to report an exception. The driver holds no lock and can not raise.
_INTERPRETER = re.compile(
    r"^declare (?:\w+ )*(?P<result>\w+) @(?P<name>Py\w+|NRT_\w+|numba_gil_\w+|numba_do_raise"
    r"|numba_unpickle|numba_runtime_build_excinfo_struct|printf)\((?P<rest>.*)$",
    re.MULTILINE,
)


class Helpers:
    """A team in memory, and the threads that help its callers."""

    def __init__(self, count: int, region: bool) -> None:
        """Start helpers. region: whether they are a parallel region, or Python threads."""
        self.count = count
        memory = np.zeros(team.size(count) + 128, np.uint8)
        skip = -memory.ctypes.data % 128
        words = self._words = memory[skip : skip + team.size(count)].view(np.int64)
        self.address = words.ctypes.data
        self._pipes = os.pipe() + os.pipe()
        rate = ticks_per_ns()
        settings = {
            team.ACTIVE: round(config.ACTIVE_NS * rate),
            team.LATE: round(config.LATE_NS * rate),
            team.WINDOW: round(config.WINDOW_NS * rate),
            team.READ: _address_in_c("read"),
            team.WRITE: _address_in_c("write"),
        }
        ends = (team.HELPERS_READ, team.HELPERS_WRITE, team.CALLER_READ, team.CALLER_WRITE)
        settings |= dict(zip(ends, self._pipes, strict=True))
        if hasattr(os, "sched_getaffinity"):
            settings |= {
                team.GET_CORE: _address_in_c("sched_getcpu"),
                team.SET_CORES: _address_in_c("sched_setaffinity"),
            }
            cores = words[team.CORES // 8 : (team.CORES + team.CORES_BYTES) // 8].view(np.uint8)
            for core in os.sched_getaffinity(0):
                cores[core // 8 : core // 8 + 1] |= 1 << core % 8
        for offset, value in settings.items():
            words[offset // 8] = value
        serve = native.load("serve", lambda: c_function("serve", team.serve, 2))
        if region:
            self._threads = [_thread(_driver(), serve, self.address, 0, count)]
        else:
            self._threads = [_thread(serve, self.address, 0) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the helpers end, each after the chunk that it computes; launches go on without them."""
        self._words[team.STOP // 8] = 1
        os.write(self._pipes[1], bytes(self.count))
        for thread in self._threads:
            thread.join()
        self.close()

    def close(self) -> None:
        """Close the pipes, also in a forked child, which has no helpers."""
        for end in self._pipes:
            os.close(end)


def _thread(address: int, *arguments: int) -> threading.Thread:
    """Make a thread that calls a C function, without the interpreter's lock."""
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(address)

    def run() -> None:
        if hasattr(signal, "pthread_sigmask"):
            # Signals are for the main thread; one that came here would end a wait.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        function(*arguments)

    return threading.Thread(target=run, daemon=True, name="treepie")


def _address_in_c(name: str) -> int:
    """Return the address of a function of the C library, the one that Python's file numbers belong to."""
    if sys.platform == "win32":
        function = getattr(ctypes.CDLL("ucrtbase"), f"_{name}")
    else:
        function = getattr(ctypes.CDLL(None), name)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def ticks_per_ns() -> float:
    """Measure the rate of the clock of `atomics.ticks`, which takes a millisecond."""
    address = native.load("clock", lambda: c_function("clock", team.clock, 0, returns=True))
    clock = ctypes.CFUNCTYPE(ctypes.c_int64)(address)
    start, ticks = time.perf_counter_ns(), clock()
    time.sleep(1e-3)
    passed: int = clock() - ticks
    return passed / (time.perf_counter_ns() - start)


def _driver() -> int:
    return native.load("driver", _driver_ir, _LAYER)


def _driver_ir() -> str:
    """`void driver(worker, first, second, count)`: call `worker(first, second)` on `count` threads at
    once."""
    from numba import cfunc, njit, prange, types

    from .intrinsics import call_address, rename

    call = call_address.for_numba()  # type: ignore[attr-defined]

    @njit(parallel=True, nogil=True, error_model="numpy")
    def drive(worker, first, second, count):  # type: ignore[no-untyped-def]
        for _ in prange(count):
            call(worker, first, second)

    @cfunc(types.void(*[types.int64] * 4))
    def driver(worker, first, second, count):  # type: ignore[no-untyped-def]
        drive(worker, first, second, count)

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
