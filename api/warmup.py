"""Compiling kernels ahead of a job: every op of the table and its gradient runs once, on all cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np
from tqdm import tqdm

from treepie.autodiff import OPS, Tensor, vjp
from treepie.autodiff.op_inputs import operands, tensors
from treepie.autodiff.table import Case, Op
from treepie.kernels import cache, config, program, threads
from treepie.kernels.compilations import compilations

from .display import counted

#: Processes at most: each imports Numba for a second, and the slowest op compiles for 6.
_WORKERS = 32


def warmup(dtypes: list[str]) -> str:
    """Compile the kernels of all ops for some dtypes into the cache; return what was done, in a line.

    Raises OSError where there is no folder to keep them in.
    """
    if cache.folder() is None:
        raise OSError(f"there is no folder for kernels: {cache.store().problem}")
    start = time.perf_counter()
    compiled = _compile_shared()
    jobs = [(name, dtype) for name in OPS for dtype in dtypes]
    for count in tqdm(_counts(jobs), desc="ops", total=len(jobs), leave=False, disable=None):
        compiled += count
    seconds = time.perf_counter() - start
    operations = f"{len(OPS)} operations in {' and '.join(dtypes)}"
    return f"{operations}: {counted(compiled, 'kernel')} compiled in {seconds:.0f} s"


def _counts(jobs: list[tuple[str, str]]) -> Iterator[int]:
    """Run jobs, and yield how many kernels each compiled."""
    # Processes, since compiling holds a lock of Numba; new ones, since threads do not survive a fork.
    workers = min(config.cores(), _WORKERS)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (config.CACHE_DIR,)) as pool:
        try:
            for future in as_completed([pool.submit(_run, *job) for job in jobs]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin(root: str | None) -> None:
    """Prepare a process of the pool."""
    cache.move(root)
    threads.set_num_threads(1)
    compilations.silent = True


def _compile_shared() -> int:
    """Compile what all processes need: the loop over launches, and the helpers of a team."""
    before, count = compilations.count, threads.get_num_threads()
    compilations.silent = True
    try:
        threads.set_num_threads(max(count, 2))
        threads.team()
        program.runner()
        _run("add", "float32")
    finally:
        compilations.silent = False
        threads.set_num_threads(count)
    return compilations.count - before


def _run(name: str, dtype: str) -> int:
    """Run an op and its gradient; return how many kernels that compiled."""
    row, before = OPS[name], compilations.count
    with np.errstate(all="ignore"):
        for case in row.cases:
            _run_case(row, case, dtype if dtype in row.dtypes else row.dtypes[0])
    return compilations.count - before


def _run_case(row: Op, case: Case, dtype: str) -> None:
    inputs = tensors(operands(row, case, dtype))

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
