"""Steps beside other work: busy processes on the same cores, and a quota of one core.

    python perf/shared.py              # all models
    python perf/shared.py mlp gpt      # some
    python perf/shared.py --write      # and write README's table

treepie with as many threads as it chooses, with one, and PyTorch, each in a process of its own, by turns. A
busy process is a loop in Python, pinned to a core. The system gives a core to each process for some
milliseconds, so single steps are either undisturbed or longer by such a period: a figure is the median of
the turns' means. The quota needs a control group that this process may make: it is left out where there is
none.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import arena
import models
import report

NAMES = {name: (models.MODELS | models.DEEP)[name] for name in ("xor", "mlp", "deep", "gpt")}
TURNS, LONG = 20, {"gpt": 3}
STEPS = 10
#: Of the best time alone: beside one busy process, beside two; of the time of one thread there.
BARS = {"beside one busy process": (2.2, 1.15), "beside two": (3.0, None), "quota of one core": (None, 1.1)}
_HEADER = ["step", "treepie, ms", "of its best alone", "one thread, ms", "of one thread", "PyTorch, ms"]


def worker(library, threads=None):
    """Start a process of a library; threads: how many, instead of as many as it chooses."""
    before = os.environ.pop("NUMBA_NUM_THREADS", None)
    if threads:
        os.environ["NUMBA_NUM_THREADS"] = str(threads)
    try:
        return arena.Worker(__file__, library)
    finally:
        os.environ.pop("NUMBA_NUM_THREADS", None)
        if before:
            os.environ["NUMBA_NUM_THREADS"] = before


@contextlib.contextmanager
def busy(cores):
    """Keep cores busy, each with a process."""
    loop = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop, str(core)]) for core in cores]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in loops:
            process.kill()
            process.wait()


@contextlib.contextmanager
def quota(workers):
    """Let each of some processes have one core in all; raises OSError where that is not permitted."""
    root = pathlib.Path("/sys/fs/cgroup")
    version2 = (root / "cgroup.controllers").exists()
    groups = []
    try:
        for w in workers:
            group = pathlib.Path(tempfile.mkdtemp(prefix="treepie-", dir=root if version2 else root / "cpu"))
            groups.append(group)
            names = ["cpu.max"] if version2 else ["cpu.cfs_period_us", "cpu.cfs_quota_us"]
            for name in names:
                text = "100000 100000" if version2 else "100000"
                (group / name).write_text(text, encoding="ascii")
            (group / "cgroup.procs").write_text(str(w.process.pid), encoding="ascii")
        yield
    finally:
        for w in workers:
            w.end()
        for group in groups:
            group.rmdir()


def measure(name, workers):
    """Return the means of turns, in seconds, for each worker."""
    means = [[] for _ in workers]
    for turn in range(LONG.get(name, TURNS) + 1):
        for w, of_worker in zip(workers, means, strict=True):
            times = w.turn(name, STEPS if turn else 2)
            if turn:
                of_worker.append(sum(times) / len(times))
    return means


def started(libraries):
    """Start a process of treepie, one of a single thread, and one of each other library."""
    return [worker("treepie"), worker("treepie", 1), *map(worker, libraries)]


def places(libraries):
    """Yield each place, and the workers that are there; they end with it."""
    every = sorted(os.sched_getaffinity(0))
    beside = {"alone": [], "beside one busy process": every[-1:], "beside two": every[-2:]}
    for place, cores in beside.items():
        workers = started(libraries)
        with busy(cores):
            yield place, workers
        for w in workers:
            w.end()
    workers = started(libraries)
    try:
        with quota(workers):
            yield "quota of one core", workers
    except OSError as error:
        print(f"the quota is left out: {error}")


def main():
    arena.serve(models.step)
    options, libraries = models.options(__doc__, "table", NAMES)
    rivals = [library for library in libraries if library == "PyTorch"]
    rows, alone, missed = {}, {}, []
    for place, workers in places(rivals):
        for name in options.names or NAMES:
            means = measure(name, workers)
            ours, one, *others = map(arena.median, means)
            alone.setdefault(name, min(means[0]))
            ratios = ours / alone[name], ours / one
            for ratio, bar in zip(ratios, BARS.get(place, (None, None)), strict=True):
                if bar and ratio > bar:
                    missed.append(f"{name}, {place}: {ratio:.2f}, at most {bar}")
            key = f"`{name}`, {place}"
            cells = [f"{ours * 1e3:.3g}", f"{ratios[0]:.2f}", f"{one * 1e3:.3g}", f"{ratios[1]:.2f}"]
            rows[key] = [key, *cells, *(f"{t * 1e3:.3g}" for t in others)]
            print(*report.table(_HEADER, [rows[key]])[2:], sep="\n", flush=True)
    print(*(missed or ["all bars are held"]), sep="\n")
    if options.write:
        ordered = {f"`{n}`, {place}": None for n in NAMES for place in ("alone", *BARS)}
        turns = f"medians of {TURNS} turns (gpt {LONG['gpt']}) of {STEPS} steps"
        caption = f"{len(os.sched_getaffinity(0))} cores; {turns}, a process each:"
        report.write("perf/shared.py", caption, _HEADER, ordered | rows)


if __name__ == "__main__":
    main()
