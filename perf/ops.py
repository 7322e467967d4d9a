"""Time rows of the op table against their NumPy oracles: `python perf/ops.py [NAME ...]`.

Each row runs its `large` case in float32, ours and NumPy's in turn, so that a slow moment of the machine
hits both; the ratio is of the best times. NumPy runs the oracle as the row writes it, on float32.
"""

import argparse
import statistics
import time

import numpy as np

from treepie.autodiff import OPS
from treepie.autodiff.sample import operands, tensors
from treepie.kernels import threads
from treepie.kernels.native import compilations


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def measure(row, repeats):
    """Return (compile seconds, ours, NumPy's): best and median seconds of interleaved runs."""
    arrays = operands(row, row.large, row.dtypes[0])
    given = tensors(arrays)
    before = compilations.seconds
    row(*given, **row.large.meta)
    compiled = compilations.seconds - before
    ours, theirs = [], []
    with np.errstate(all="ignore"):
        row.oracle(*arrays, **row.large.meta)
        for _ in range(repeats):
            ours.append(timed(row, *given, **row.large.meta))
            theirs.append(timed(row.oracle, *arrays, **row.large.meta))
    return compiled, ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to time; all of them by default")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    unknown = [n for n in options.names if n not in OPS]
    if unknown:
        parser.error(f"no op is called {unknown[0]!r}")
    rows = [OPS[n] for n in options.names] or list(OPS.values())
    print(f"{threads.get_num_threads()} threads, {options.repeats} interleaved runs; times in microseconds")
    heads = ("best", "median", "NumPy", "ratio", "compile")
    print(f"{'op':24s} {'operands':34s}" + "".join(f" {h:>9s}" for h in heads))
    for row in rows:
        if row.large is None:
            continue
        compiled, ours, theirs = measure(row, options.repeats)
        best, base = min(ours), min(theirs)
        shapes = " ".join("x".join(map(str, s)) or "scalar" for s in row.large.shapes[:3])
        print(
            f"{row.name:24s} {shapes:34s} {best * 1e6:9.1f} {statistics.median(ours) * 1e6:9.1f} "
            f"{base * 1e6:9.1f} {base / best:9.2f} {compiled:8.2f}s"
        )


if __name__ == "__main__":
    main()
