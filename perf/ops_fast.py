"""Write the fast functions' section of autodiff/OPS.md: `python perf/ops_fast.py`, in half a minute.

Errors are swept as by `ops.py --accuracy`; times are those of the row's `large` case against the default
accuracy, by turns. It exits with status 1 where an error exceeds its bound.
"""

import argparse
import sys

import ops

from treepie.autodiff.op_accuracy import largest_error, swept_fast
from treepie.autodiff.op_inputs import operands, tensors

HEAD = f"""{ops.FAST}
Written by `python perf/ops_fast.py`; do not edit. The functions that `tp.accuracy("fast")` and
`Trainer(accuracy="fast")` compute by shorter formulas, in float32. Errors are the largest of {{points}}
operands over all exponents and the edges, in units in the last place of the magnitude in the column
"relative to", beside the bound. exp, sigmoid and silu may be 0 where they are less than 2^-121. Speed is the
default's best time over that in fast accuracy, for a million elements.

| op | error | bound | relative to | us | speed |
| --- | --- | --- | --- | --- | --- |
"""
BLOCKS, REPEATS = 6, 10


def speed(row, usual):
    """Return the best seconds of a fast row, and of the usual one, in turns."""
    given = tensors(operands(row, row.large, "float32"))
    fast, high = [], []
    for _ in range(BLOCKS):
        fast += ops.block(lambda: row(*given), REPEATS)
        high += ops.block(lambda: usual(*given), REPEATS)
    return min(fast), min(high)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=4_000_000, help="float32 operands of each sweep")
    points = parser.parse_args().points
    lines, exceeded = [], []
    for row in sorted(swept_fast(), key=lambda r: r.name):
        error = largest_error(row, points).ulp
        fast, high = speed(row, ops.OPS[row.name])
        cells = [f"`{row.name}`", f"{error:.3g}", f"{row.ulp:g}", row.relative_to]
        lines.append(f"| {' | '.join([*cells, f'{fast * 1e6:.0f}', f'{high / fast:.1f}'])} |\n")
        print(lines[-1], end="")
        if error > row.ulp:
            exceeded.append(f"{row}: {error:.4g} ulp, its bound is {row.ulp:g}")
    ops.save_section(HEAD.format(points=f"{points:,}") + "".join(lines))
    if exceeded:
        sys.exit("\n".join(exceeded))


if __name__ == "__main__":
    main()
