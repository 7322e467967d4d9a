"""Families of models against PyTorch and JAX: training steps, attention and predictions at several sizes.

    python perf/families.py                # all
    python perf/families.py resnet lstm    # some families
    python perf/families.py "lstm 3"       # one size of one
    python perf/families.py --write        # and write README's table

Each library starts from treepie's weights, in a process of its own, by turns; PyTorch eagerly (`train.py` has
torch.compile). Turns during which other processes were busy do not count, if enough others remain. The
numbers that the first steps return are compared: a library that does other work ends the run. Peak memory is
what a process grows by from the import of the library to the end of these steps.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import arena
import families_models
import models as common
import report

_MODULES = {"treepie": "families_treepie", "PyTorch": "families_torch", "JAX": "families_jax"}
LIBRARIES = tuple(_MODULES)
#: Seconds of timings of a library in one turn, and of a case in all.
TURN, CASE = 0.1, 4.0
FIRST, MOST = 3, 1e-3
HEADER = [
    "family",
    "size",
    "treepie, ms",
    "PyTorch, ms",
    "JAX, ms",
    "of the best rival",
    "peak, MB",
    "of PyTorch's",
]
CAPTION = f"{arena.threads()} threads; best / median, by turns, a process each:"
FOLDER = "TREEPIE_FAMILIES"
#: Of a turn's processor time, the share that other processes may take; of each library, so many turns.
QUIET, LEAST = 0.1, 3
Times = dict[str, list[float]]
#: Library -> (the share of other processes, timings) of each turn.
Turns = dict[str, list[tuple[float, list[float]]]]
First = dict[str, Any]


def step(library: str, name: str) -> Callable[[], float]:
    """Return a library's step of a case, after the first ones, whose results go to a file."""
    folder, case = pathlib.Path(os.environ[FOLDER]), families_models.cases()[name]
    make = importlib.import_module(_MODULES[library]).step
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if library == "treepie":
        run = make(case)
    else:
        run = make(case, pickle.loads((folder / f"{name}.pickle").read_bytes()))
    numbers = [run() for _ in range(FIRST)]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    (folder / f"{name} {library}.json").write_text(json.dumps({"numbers": numbers, "peak": peak}), "utf-8")
    return run  # type: ignore[no-any-return]


def save_weights(folder: str, names: list[str]) -> None:
    """Write treepie's first weights of some cases, for the others."""
    import families_treepie

    for name in names:
        arrays = families_treepie.weights(families_models.cases()[name])
        pathlib.Path(folder, f"{name}.pickle").write_bytes(pickle.dumps(arrays))


def differences(name: str, first: dict[str, First]) -> list[str]:
    """Return a line for each library whose first numbers are not treepie's."""
    ours, lines = first["treepie"]["numbers"], []
    for library, results in first.items():
        for k, (a, b) in enumerate(zip(ours, results["numbers"], strict=True)):
            if not math.isclose(a, b, rel_tol=MOST, abs_tol=MOST / 10):
                lines.append(f"{name}: {library} returns {b:.6g} in step {k + 1}, treepie {a:.6g}")
    return lines


def _busy(pid: int) -> tuple[float, float]:
    """Return the seconds that cores were busy since the machine's start, and those of a process."""
    every = pathlib.Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    own = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    idle = {4, 5}  # the cores that wait, for input too
    busy = sum(int(n) for k, n in enumerate(every) if 1 <= k <= 8 and k not in idle)
    return busy / ticks, (int(own[11]) + int(own[12])) / ticks


def _turn(worker: arena.Worker, name: str, count: int) -> tuple[float, list[float]]:
    """Return the share of the cores that others took in a turn, and its timings."""
    start, (every, own) = time.perf_counter(), _busy(worker.process.pid)
    times = worker.turn(name, count)
    after, own_after = _busy(worker.process.pid)
    capacity = (time.perf_counter() - start) * arena.threads()
    return (after - every - own_after + own) / capacity, times


def quiet(turns: list[tuple[float, list[float]]]) -> list[list[float]]:
    """Return the timings of the turns that others did not disturb, or else of those with the least of it."""
    ordered = sorted(turns, key=lambda turn: turn[0])
    quiet = [times for share, times in ordered if share < QUIET]
    return quiet if len(quiet) >= LEAST else [times for _, times in ordered[:LEAST]]


def enough(turns: Turns, seconds: float) -> bool:
    """Return whether there are turns enough: on a busy machine a case has up to three times its seconds."""
    least = min(sum(share < QUIET for share, _ in every) for every in turns.values())
    count = min(map(len, turns.values()))
    if count < LEAST or (seconds < CASE and count < 40):
        return False
    return least >= LEAST or seconds > 3 * CASE


def measure(name: str, libraries: list[str]) -> tuple[Times, dict[str, First]]:
    """Return the timings in seconds of a case, and the results of the first steps."""
    workers = [arena.Worker(__file__, library) for library in libraries]
    turns: Turns = {library: [] for library in libraries}
    try:
        counts = []
        for w in workers:
            w.turn(name, 1)
            counts.append(max(1, min(2000, int(TURN / arena.best(w.turn(name, 2))))))
        start = time.perf_counter()
        while not enough(turns, time.perf_counter() - start):
            for w, count in zip(workers, counts, strict=True):
                turns[w.library].append(_turn(w, name, count))
    finally:
        for w in workers:
            w.end()
    folder = pathlib.Path(os.environ[FOLDER])
    times = {x: [t for turn in quiet(every) for t in turn] for x, every in turns.items()}
    return times, {x: json.loads((folder / f"{name} {x}.json").read_text("utf-8")) for x in libraries}


def row(name: str, times: Times, first: dict[str, First]) -> list[str]:
    """Return the cells of a case: times of each library, our median over the best rival's, and memory."""
    both = {x: f"{arena.best(t) * 1e3:.3g} / {arena.median(t) * 1e3:.3g}" for x, t in times.items()}
    rivals = [arena.median(t) for x, t in times.items() if x != "treepie"]
    ratio = f"{arena.median(times['treepie']) / min(rivals):.2f}" if rivals else ""
    peaks = {x: max(1.0, results["peak"]) for x, results in first.items()}
    share = f"{peaks['treepie'] / peaks['PyTorch']:.2f}" if "PyTorch" in peaks else ""
    cells = [both.get(x, "") for x in LIBRARIES]
    return [*_keys(name), *cells, ratio, f"{peaks['treepie']:.0f}", share]


def _keys(name: str) -> list[str]:
    return [f"`{name}`", families_models.cases()[name].text]


def has_jax(family: str) -> bool:
    """Return whether JAX has a family: it has no convolutions here, see `families_jax`."""
    return family.split()[0] not in ("resnet", "separable", "autoencoder", "temporal")


def rivals_of(name: str, installed: list[str]) -> list[str]:
    """Return the libraries that have a case."""
    return [x for x in LIBRARIES if x in installed and (x != "JAX" or has_jax(name))]


def _names() -> tuple[list[str], bool]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = families_models.cases()
    parser.add_argument("names", nargs="*", choices=[*families_models.FAMILIES, *every, []])
    parser.add_argument("--write", action="store_true", help="write README's table")
    options = parser.parse_args()
    chosen = [n for n in every if not options.names or n in options.names or n.split()[0] in options.names]
    return chosen, options.write


def main() -> None:
    """Measure, print the table, and the geometric mean of the ratios; with --write, write it."""
    arena.serve(step)
    if sys.argv[1:2] == ["--weights"]:
        return save_weights(sys.argv[2], sys.argv[3:])
    names, write = _names()
    installed, left_out = common.installed()
    print(*[line for line in left_out if "torch.compile" not in line], sep="\n")
    rows: dict[str, list[str] | None] = {_keys(n)[0]: None for n in families_models.cases()}
    print(*report.table(HEADER, []), sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        subprocess.run([sys.executable, __file__, "--weights", folder, *names], check=True)
        for name in names:
            times, first = measure(name, rivals_of(name, installed))
            if lines := differences(name, first):
                sys.exit("\n".join(lines))
            cells = rows[_keys(name)[0]] = row(name, times, first)
            print(*report.table(HEADER, [cells])[2:], sep="\n", flush=True)
            if write:
                report.write("perf/families.py", CAPTION, HEADER, rows)
    ratios = [float(cells[5]) for cells in rows.values() if cells and cells[5]]
    if ratios:
        print(f"geometric mean: {arena.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main()
