"""Compares libraries: each in a process of its own, by turns, the others stopped.

Idle thread pools spin, and in one process they slow each other 5- to 50-fold. So a benchmark starts itself
once for each library; while one process times a case, the others are stopped by a signal. The machine's speed
drifts by the second, so turns alternate, and only ratios of what one run measured count.

A script gives `compete(__file__, cases, libraries)` the names of its cases, and `serve(make)` a function
(library, case) -> (function to time, or (function, calls a timing)); see `gemm.py`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

#: A timing covers calls of about so many seconds, so that the clock does not matter.
LEAST = 2e-5

#: A turn begins with so many seconds of calls that do not count. What ran since the last turn has pushed this
#: process out of the caches: the first call of `xor` took 44 us, the tenth 23, from the fifteenth on 21.
WARM = 5e-3

#: A timing of what takes microseconds covers so many calls, which `repeated` makes.
CALLS = 200


def threads() -> int:
    """How many threads every library uses: the cores there are, or what NUMBA_NUM_THREADS says."""
    return int(os.environ.get("NUMBA_NUM_THREADS") or len(os.sched_getaffinity(0)))


class Worker:
    """The process of one library."""

    def __init__(self, script: str, library: str) -> None:
        n = str(threads())
        env = {**os.environ, "OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n, "OPENBLAS_NUM_THREADS": n}
        # These make an older OpenBLAS safe on some processors, and a current one slow.
        env = {k: v for k, v in env.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        self.library = library
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.ask("ready")
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, case: str, count: int = 0) -> Any:
        """Send one request and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([case, count]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.library} ended at {case!r}; its error is above")
        return json.loads(line)

    def turn(self, case: str, count: int) -> list[float]:
        """Run while the others are stopped; return `count` timings in seconds."""
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.ask(case, count)  # type: ignore[no-any-return]
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        with self.process:  # which closes its pipes, and waits for it
            pass


def compete(
    script: str, cases: Sequence[str], libraries: Sequence[str], turns: int = 8, count: int = 10
) -> dict[str, dict[str, list[float]]]:
    """Return case -> library -> timings in seconds, `turns` times `count` of each."""
    workers = [Worker(script, library) for library in libraries]
    try:
        found: dict[str, dict[str, list[float]]] = {}
        for case in cases:
            times: dict[str, list[float]] = {w.library: [] for w in workers}
            for turn in range(turns + 1):
                for w in workers:
                    made = w.turn(case, count if turn else 2)
                    if turn:  # the first one compiles and warms up
                        times[w.library] += made
            found[case] = times
        return found
    finally:
        for w in workers:
            w.end()


def serve(make: Callable[[str, str], Callable[[], Any]]) -> None:
    """Answer requests on standard input if this process is a worker, and exit; else return."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--worker")
    library = parser.parse_known_args()[0].worker
    if library is None:
        return
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    name, run, calls = None, None, 1
    for line in sys.stdin:
        case, count = json.loads(line)
        times: list[float] = []
        if case != "ready":
            if case != name:
                name, run = case, make(library, case)
                run()
                start = time.perf_counter()
                run()
                calls = max(1, round(LEAST / (time.perf_counter() - start)))
            assert run is not None
            start = time.perf_counter()
            run()
            while time.perf_counter() - start < WARM:
                run()
            for _ in range(count):
                start = time.perf_counter()
                for _ in range(calls):
                    run()
                times.append((time.perf_counter() - start) / calls)
        print(json.dumps(times), file=answers, flush=True)
    sys.exit()


def repeated(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that makes CALLS calls, and returns what the last one did."""

    def run() -> Any:
        for _ in range(CALLS):
            result = call()
        return result

    return run


def best(times: list[float]) -> float:
    """The best of many timings."""
    return min(times)


def median(times: list[float]) -> float:
    """The median of many timings."""
    return statistics.median(times)


def geometric_mean(ratios: Sequence[float]) -> float:
    """The geometric mean of ratios."""
    return statistics.geometric_mean(ratios)
