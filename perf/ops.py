"""Time rows of the op table against their NumPy oracles: `python perf/ops.py [NAME ...] [--write]`.

Each row runs its `large` case in float32, blocks of ours and NumPy's in turn, so that a slow moment of the
machine hits both; the ratio is of the best times. NumPy runs the oracle as the row writes it, on float32.
`--write` puts the table of all rows, with the largest error found, into `autodiff/OPS.md`.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from treepie.autodiff import OPS
from treepie.autodiff.elementwise import Elementwise
from treepie.autodiff.op_inputs import operands, tensors
from treepie.kernels import threads
from treepie.kernels.compilations import compilations

BLOCKS = 5
PAGE = Path(__file__).parents[1] / "autodiff" / "OPS.md"


@dataclass
class Timing:
    """Seconds: of the first call's compilations, and of interleaved runs of ours and NumPy's."""

    compiled: float
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self):
        """How many times as fast as NumPy, by the best of each."""
        return min(self.theirs) / min(self.ours)


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - start


def block(function, count):
    """Time some calls in a row, after the other library's threads have stopped spinning."""
    time.sleep(0.1)
    first = timed(function)  # wakes our own threads
    if first > 0.2:  # an oracle in pure Python
        return [first]
    return [timed(function) for _ in range(count)]


def measure(row, repeats):
    """Time a row's large case; NumPy's views, which copy nothing, are made to copy as ours do."""
    arrays = operands(row, row.large, row.dtypes[0])
    given = tensors(arrays)
    before = compilations.seconds
    row(*given, **row.large.attributes)
    compiled = compilations.seconds - before

    def numpy():
        made = row.oracle(*arrays, **row.large.attributes)
        for out in made if isinstance(made, tuple | list) else (made,):
            np.ascontiguousarray(out)

    ours, theirs = [], []
    with np.errstate(all="ignore"):
        for _ in range(BLOCKS):
            ours += block(lambda: row(*given, **row.large.attributes), repeats // BLOCKS)
            theirs += block(numpy, repeats // BLOCKS)
    return Timing(compiled, ours, theirs)


def error(row):
    """Return the largest error in float32 over a row's cases, in units in the last place.

    Of the element itself for elementwise ops without a `magnitude` (see `Op`), of that for the others.
    """
    worst = 0.0
    for case in (*row.cases, *([row.large] if isinstance(row, Elementwise) else [])):
        arrays = operands(row, case, "float32", seed=1)
        made = row(*tensors(arrays), **case.attributes)
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
        want = row.oracle(*wide, **case.attributes)
        several = isinstance(made, tuple | list)
        for out, exact in zip(made if several else [made], want if several else [want], strict=True):
            if out.dtype != np.float32 or not out.size:
                continue
            exact = np.asarray(exact, np.float64)
            if isinstance(row, Elementwise) and row.magnitude is None:
                unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
            elif row.magnitude is not None:
                unit = np.finfo(np.float32).eps * row.magnitude(*wide, **case.attributes)
            else:
                unit = np.finfo(np.float32).eps * np.abs(exact).max()
            off = np.abs(out.array - exact)
            worst = max(worst, float(np.max(np.divide(off, unit, out=np.zeros_like(off), where=off > 0))))
    return worst


def shapes(row):
    return " ".join("x".join(map(str, s)) or "scalar" for s in row.large.shapes[:3])


def show(rows, repeats):
    print(f"{threads.get_num_threads()} threads, {repeats} interleaved runs; times in microseconds")
    heads = ("best", "median", "NumPy", "ratio", "compile")
    print(f"{'op':24s} {'operands':34s}" + "".join(f" {h:>9s}" for h in heads))
    for row in rows:
        if row.large is None:
            continue
        t = measure(row, repeats)
        times = (min(t.ours), statistics.median(t.ours), min(t.theirs))
        numbers = "".join(f" {s * 1e6:9.1f}" for s in times)
        print(f"{row.name:24s} {shapes(row):34s}{numbers} {t.ratio:9.2f} {t.compiled:8.2f}s")


def write(rows, repeats):
    lines = [
        "# The ops",
        "",
        "Written by `python perf/ops.py --write`; do not edit. Errors are the largest found in float32,",
        "in units in the last place: of the element for elementwise ops, for others of the magnitude of",
        f"what is summed. Speed is NumPy's best time over ours, {threads.get_num_threads()} threads, the",
        f"operands given, {repeats} interleaved runs.",
        "",
        "| op | signature | gradient | error | operands | us | speed | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gradient = "yes" if row.differentiable else "no"
        off = f"{error(row):.2g}" if "float32" in row.dtypes else ""
        speed = " | | "
        if row.large is not None:
            t = measure(row, repeats)
            speed = f"{shapes(row)} | {min(t.ours) * 1e6:.0f} | {t.ratio:.1f}"
        lines.append(f"| `{row.name}` | `{row.signature}` | {gradient} | {off} | {speed} | {row.doc} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {len(rows)} ops to {PAGE}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to time; all of them by default")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="write autodiff/OPS.md")
    options = parser.parse_args()
    unknown = [n for n in options.names if n not in OPS]
    if unknown:
        parser.error(f"no op is called {unknown[0]!r}")
    rows = [OPS[n] for n in options.names] or list(OPS.values())
    if options.write:
        write(sorted(OPS.values(), key=lambda r: r.name), options.repeats)
    else:
        show(rows, options.repeats)


if __name__ == "__main__":
    main()
