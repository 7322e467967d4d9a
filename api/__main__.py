"""The command line: `python -m treepie info` and `python -m treepie warmup`."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from treepie.autodiff import OPS, Tensor, vjp
from treepie.autodiff.op_inputs import operands, tensors
from treepie.autodiff.table import Case, Op
from treepie.kernels.compilations import compilations

from .machine import show_config


def main(arguments: list[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser("python -m treepie", description="treepie on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="print the CPU, the threads, the cache folder and the versions")
    warm = commands.add_parser("warmup", help="compile kernels into the cache folder, ahead of a job")
    warm.add_argument("dtypes", nargs="*", default=["float32"], help="float32 (by default), float64")
    options = parser.parse_args(arguments)
    if options.command == "info":
        show_config()
        return
    for dtype in options.dtypes:
        if dtype not in ("float32", "float64"):
            parser.error(f"warmup: a dtype is {dtype!r}, expected float32 or float64")
    with np.errstate(all="ignore"):
        warmup(options.dtypes)


def warmup(dtypes: list[str]) -> None:
    """Run every op of the table and its gradient once, so that their kernels are compiled and cached."""
    start, before = time.perf_counter(), compilations.count
    with compilations.watch():
        for row in OPS.values():
            for dtype in dtypes:
                for case in row.cases:
                    _run(row, case, dtype)
    seconds = time.perf_counter() - start
    operations = f"{len(OPS)} operations in {' and '.join(dtypes)}"
    print(f"{operations}: {compilations.count - before} kernels compiled in {seconds:.0f} s")


def _run(row: Op, case: Case, dtype: str) -> None:
    inputs = tensors(operands(row, case, dtype if dtype in row.dtypes else row.dtypes[0]))

    def call(*floats: Tensor) -> Any:
        rest = iter(floats)
        out = row(*(next(rest) if t.dtype.kind == "f" else t for t in inputs), **case.attributes)
        return [t for t in (out if isinstance(out, tuple | list) else [out]) if t.dtype.kind == "f"]

    floats = [t for t in inputs if t.dtype.kind == "f"]
    if row.differentiable and floats:
        results, pullback = vjp(call, *floats)
        pullback(results)
    else:
        call(*floats)


if __name__ == "__main__":
    main()
