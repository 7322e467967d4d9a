"""Time rows of the op table against their NumPy oracles: `python perf/ops.py [NAME ...]`.

Each row runs its `large` case in float32, blocks of ours and NumPy's in turn, so that a slow moment of the
machine hits both; the ratio is of the best times. NumPy runs the oracle as the row writes it, on float32.
`--write` puts the table of all rows, with the largest error found, into `autodiff/OPS.md`. `--accuracy`
sweeps elementwise rows instead, over 4 million float32 operands and the edges each, writes only their errors
into the page, and exits with status 1 where one exceeds the row's bound.
"""

import argparse
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import accuracy
import numpy as np

from treepie.autodiff import OPS
from treepie.autodiff.elementwise import Elementwise
from treepie.autodiff.op_accuracy import swept
from treepie.autodiff.op_inputs import operands, tensors
from treepie.kernels import threads
from treepie.kernels.compilations import compilations

BLOCKS = 5
PAGE = Path(__file__).parents[1] / "autodiff" / "OPS.md"

#: The heading after the table, of the section that `ops_fast.py` writes.
FAST = "\n## In fast accuracy\n"


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


HEAD = """# The ops

Written by `python perf/ops.py --write` and `--accuracy`; do not edit. Errors are the largest found in
float32, in units in the last place, beside the row's bound. Those of elementwise ops are of the element
itself, against float64, in a sweep of {points} operands over all exponents and the edges; the others' are
of the magnitude of what is summed, in the cases of the tests. The column float64 has the largest error of
{spots} operands against mpmath. Speed is NumPy's best time over ours, {threads} threads, the operands given,
{repeats} interleaved runs.

| op | signature | gradient | error | bound | float64 | operands | us | speed | |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
_FIELD = re.compile(r"\\{(\w+)\\}")
CELLS = 10


def page():
    """Return the page up to the section of fast accuracy, and that section."""
    text = PAGE.read_text(encoding="utf-8")
    table, heading, section = text.partition(FAST)
    return table, heading + section


def save_section(section):
    """Write the section of fast accuracy."""
    PAGE.write_text(page()[0] + section, encoding="utf-8")


def read():
    """Return the numbers of the page's head by name, and its rows: name -> cells."""
    text, _ = page()
    head = re.match(_FIELD.sub(r"(?P<\1>[\\d,]+)", re.escape(HEAD)), text)
    if head is None:
        raise ValueError(f"{PAGE} does not begin as perf/ops.py writes it")
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text[head.end() :].splitlines()]
    if any(len(row) != CELLS for row in rows):
        raise ValueError(f"a row of {PAGE} has not {CELLS} cells")
    return head.groupdict(), {row[0].strip("`"): row for row in rows}


def save(numbers, cells):
    """Write the page from the numbers of its head and the cells of each row, by name."""
    lines = [f"| {' | '.join(cells[name])} |\n" for name in sorted(cells)]
    PAGE.write_text(HEAD.format(**numbers) + "".join(lines) + page()[1], encoding="utf-8")
    print(f"wrote {len(cells)} ops to {PAGE}")


def bound(row):
    return f"{row.ulp:g}" if "float32" in row.dtypes else ""


def write(rows, options):
    """Measure speeds, and errors of rows that are not swept; the swept ones keep theirs."""
    (numbers, before), kept, cells = read(), {row.name for row in swept()}, {}
    for row in rows:
        off = f"{error(row):.2g}" if "float32" in row.dtypes else ""
        errors = [off, bound(row), ""]
        if row.name in kept and row.name in before:
            errors = before[row.name][3:6]
        speed = ["", "", ""]
        if row.large is not None:
            t = measure(row, options.repeats)
            speed = [shapes(row), f"{min(t.ours) * 1e6:.0f}", f"{t.ratio:.1f}"]
        gradient = "yes" if row.differentiable else "no"
        cells[row.name] = [f"`{row.name}`", f"`{row.signature}`", gradient, *errors, *speed, row.doc]
    save({**numbers, "threads": threads.get_num_threads(), "repeats": options.repeats}, cells)


def write_accuracy(rows, options):
    """Sweep rows, write their errors into the page, and exit with status 1 where one exceeds its bound."""
    measured, exceeded = accuracy.measure(rows, options.points)
    numbers, cells = read()
    for name, (single, double) in measured.items():
        if name in cells:
            cells[name][3:6] = f"{single:.3g}", bound(OPS[name]), "" if double is None else f"{double:.3g}"
    save({**numbers, "points": f"{options.points:,}", "spots": f"{accuracy.SPOTS:,}"}, cells)
    if exceeded:
        sys.exit("\n".join(exceeded))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to time; all of them by default")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--points", type=int, default=4_000_000, help="float32 operands of --accuracy's sweep"
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--write", action="store_true", help="write autodiff/OPS.md")
    task.add_argument("--accuracy", action="store_true", help="sweep elementwise rows, update their errors")
    options = parser.parse_args()
    unknown = [n for n in options.names if n not in OPS]
    if unknown:
        parser.error(f"no op is called {unknown[0]!r}")
    rows = [OPS[n] for n in options.names] or list(OPS.values())
    if options.write:
        write(sorted(OPS.values(), key=lambda r: r.name), options)
    elif options.accuracy:
        write_accuracy([row for row in swept() if not options.names or row in rows], options)
    else:
        show(rows, options.repeats)


if __name__ == "__main__":
    main()
