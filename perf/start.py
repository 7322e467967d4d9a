"""Starts and memory: how long from the start of Python to the end of the first training step, and the peak.

    python perf/start.py              # all models
    python perf/start.py mlp gpt      # some
    python perf/start.py --write      # and write their rows of README's tables

Every start is a process of its own, one after the other. Cold is with an empty folder of compiled kernels
(treepie and torch.compile; the others keep none), otherwise with what the start before it has left there.
Memory is the peak of resident memory (VmHWM) after 30 steps.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc

import arena
import models
import report

#: Starts of each kind; a cold one of torch.compile takes 10 to 60 s, and is alone.
STARTS, STEPS, TRACED = 3, 30, 100
COMPILING = ("treepie", "torch.compile")


def peak():
    """Return the peak of resident memory of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def held(run):
    """Return by how many bytes Python's memory rises within steps, beyond what it holds all the time."""
    tracemalloc.start()
    run()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(TRACED):
        run()
    return tracemalloc.get_traced_memory()[1] - before


def work(library, name):
    """Start here; print when the first step ended, how long it took, the peak, and what Python allocates."""
    run = models.step(library, name)
    begun = time.perf_counter()
    run()
    ended, first = time.time(), time.perf_counter() - begun
    for _ in range(STEPS - 1):
        run()
    print(json.dumps([ended, first, peak(), held(run) if library == "treepie" else None]))


def start(library, name, folder):
    """Return the seconds of a start and of its first step, the peak in MB, and what Python allocates."""
    threads = str(arena.threads())
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env |= {"TREEPIE_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
    begun = time.time()
    command = [sys.executable, __file__, "--start", library, name]
    out = subprocess.run(command, env=env, capture_output=True, check=False, text=True)
    if out.returncode:
        raise RuntimeError(f"the process of {library} ended at {name!r}:\n{out.stderr}")
    ended, first, memory, python = json.loads(out.stdout.splitlines()[-1])
    return ended - begun, first, memory, python


def starts(libraries, name):
    """Return column -> its starts: of each library the warm ones, and the cold ones where there are such."""
    found = {}
    for library in libraries:
        found[library] = []
        count = 1 if library == "torch.compile" else STARTS
        for _ in range(count):
            with tempfile.TemporaryDirectory() as folder:
                if library in COMPILING:
                    found.setdefault(f"{library}, cold", []).append(start(library, name, folder))
                found[library].append(start(library, name, folder))
    return found


def cells(found):
    """Return of each table the cells of a model."""
    both = lambda xs: f"{min(xs):.3g} / {statistics.median(xs):.3g}"
    column = lambda k: [[s[k] for s in column] for column in found.values()]
    python = statistics.median(s[3] for s in found["treepie"])
    return {
        "start": list(map(both, column(0))),
        "first step": list(map(both, column(1))),
        "memory": [*(f"{statistics.median(xs):.0f}" for xs in column(2)), f"{python / 1000:.1f}"],
    }


def main():
    options, libraries = models.options(__doc__, "tables")
    made = {}
    for name in options.names or models.MODELS:
        found = starts(libraries, name)
        made[name] = cells(found)
        print(f"{name}: {', '.join(found)}")
        for what, values in made[name].items():
            print(f"  {what:12}", *values, sep="  ", flush=True)
    captions = {
        "start": "Seconds from the start of Python to the end of the first step, best / median of "
        f"{STARTS} processes (torch.compile: one):",
        "first step": "Of these, the first step:",
        "memory": f"Peak of resident memory after {STEPS} steps, MB:",
    }
    if options.write:
        for what, caption in captions.items():
            rows = {f"`{n}`": [f"`{n}`", *made[n][what]] if n in made else None for n in models.MODELS}
            more = ["kB that Python allocates in a step of treepie"] if what == "memory" else []
            report.write(f"perf/start.py {what}", caption, [what, *found, *more], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        work(*sys.argv[2:])
    else:
        main()
