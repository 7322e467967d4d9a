"""Families of models against PyTorch and JAX: training steps, attention and predictions at several sizes.

    python perf/families.py                # all
    python perf/families.py resnet lstm    # some families
    python perf/families.py "lstm 3"       # one size of one
    python perf/families.py --write        # and write README's table

Each library starts from treepie's weights, in a process of its own, by turns; PyTorch eagerly (`train.py` has
torch.compile). The numbers that the first steps return are compared: a library that does other work ends the
run. Peak memory is that of a process after these steps, less what it had before the model.
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
TURN, CASE = 0.1, 6.0
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
_FOLDER = "TREEPIE_FAMILIES"
Times = dict[str, list[float]]
First = dict[str, Any]


def step(library: str, name: str) -> Callable[[], float]:
    """Return a library's step of a case, after the first ones, whose results go to a file."""
    folder, case = pathlib.Path(os.environ[_FOLDER]), families_models.cases()[name]
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


def measure(name: str, libraries: list[str]) -> tuple[Times, dict[str, First]]:
    """Return the timings in seconds of a case, and the results of the first steps."""
    workers = [arena.Worker(__file__, library) for library in libraries]
    times: Times = {library: [] for library in libraries}
    try:
        counts = []
        for w in workers:
            w.turn(name, 1)
            counts.append(max(1, min(50, int(TURN / arena.best(w.turn(name, 2))))))
        start, turns = time.perf_counter(), 0
        while turns < 3 or (turns < 40 and time.perf_counter() - start < CASE):
            for w, count in zip(workers, counts, strict=True):
                times[w.library] += w.turn(name, count)
            turns += 1
    finally:
        for w in workers:
            w.end()
    folder = pathlib.Path(os.environ[_FOLDER])
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
        os.environ[_FOLDER] = folder
        subprocess.run([sys.executable, __file__, "--weights", folder, *names], check=True)
        for name in names:
            times, first = measure(name, rivals_of(name, installed))
            if lines := differences(name, first):
                sys.exit("\n".join(lines))
            cells = rows[_keys(name)[0]] = row(name, times, first)
            print(*report.table(HEADER, [cells])[2:], sep="\n", flush=True)
    ratios = [float(cells[5]) for cells in rows.values() if cells and cells[5]]
    if ratios:
        print(f"geometric mean: {arena.geometric_mean(ratios):.2f}")
    if write:
        caption = f"{arena.threads()} threads; best / median, by turns, a process each:"
        report.write("perf/families.py", caption, HEADER, rows)


if __name__ == "__main__":
    main()
