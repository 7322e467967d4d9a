"""`explain`: a table of a step's programs, call by call, with times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treepie.autodiff.program.profile import CallProfile, profile_calls
from treepie.autodiff.program.program import Program

from ..train.trainer import Trainer
from .jit import Jitted

_RUNS = 20


def explain(step: Any, profile: bool = False, trace: str | Path | None = None) -> None:
    """Print the programs of a step as tables: kernels in order, their shapes, bytes, threads and times.

    step: a function from `tp.jit`, or a Trainer, whose programs are its steps and its predictions. Programs
        exist once they were called.
    profile: also time each kernel by itself, on inputs of random numbers: the median of 20 runs.
    trace: the path of a JSON file with the times, for https://ui.perfetto.dev or chrome://tracing.

    The bytes are those of inputs and outputs; times are in microseconds. A name such as `linear + relu` is
    one kernel, fused from several operations.

    Raises TypeError for another step, and ValueError where there is no program yet.

    >>> import treepie as tp
    >>> step = tp.jit(lambda x: x * x + 1.0)
    >>> y = step(tp.zeros((2, 3)))
    >>> tp.explain(step)
    <lambda>: 1 calls, 1 launches; intermediate results 0 B, without sharing 0 B
       kernel     shapes         bytes  threads
    0  mul + add  2x3 () -> 2x3   52 B        1
    <BLANKLINE>
    """
    if isinstance(step, Trainer):
        programs = [("step", p) for p in step.steps.cache.programs]
        programs += [("predict", p) for p in step.predictor.programs]
    elif isinstance(step, Jitted):
        programs = [(step.name, p) for p in step.programs]
    else:
        raise TypeError(
            f"explain: step is a {type(step).__name__}, expected a function that tp.jit made, or a Trainer"
        )
    if not programs:
        raise ValueError("explain: step has no program, expected one that was called")
    events: list[dict[str, Any]] = []
    for number, (name, program) in enumerate(programs):
        rows = profile_calls(program, _RUNS if profile or trace is not None else 0)
        print("\n".join(_table(name, program, rows)))
        events += _events(name, number, rows)
    if trace is not None:
        Path(trace).write_text(json.dumps({"traceEvents": events}), encoding="utf-8")


def _table(name: str, program: Program, rows: Sequence[CallProfile]) -> list[str]:
    total = sum(row.seconds or 0.0 for row in rows)
    lines = [
        f"{name}: {len(rows)} calls, {sum(row.launches for row in rows)} launches; intermediate results "
        f"{_size(program.bytes)}, without sharing {_size(program.unshared)}"
        + (f"; {total * 1e6:.0f} us" if total else "")
    ]
    cells = [["", "kernel", "shapes", "bytes", "threads", *(["us", "%"] if total else [])]]
    for k, row in enumerate(rows):
        shapes = f"{_shapes(row.inputs)} -> {_shapes(row.outputs)}"
        cells.append([str(k), row.name, shapes, _size(row.nbytes), str(row.threads)])
        if total:
            seconds = row.seconds or 0.0
            cells[-1] += [f"{seconds * 1e6:.1f}", f"{seconds / total:.1%}"]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = (1, 2)  # names and shapes; numbers are right-aligned
    for line in cells:
        padded = [f"{c:{'<' if k in left else '>'}{widths[k]}}" for k, c in enumerate(line)]
        lines.append("  ".join(padded).rstrip())
    return [*lines, ""]


def _events(name: str, number: int, rows: Sequence[CallProfile]) -> list[dict[str, Any]]:
    """Return the calls as events of Chrome's trace format, one after another, in microseconds."""
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": name}}
    ]
    start = 0.0
    for row in rows:
        duration = (row.seconds or 0.0) * 1e6
        arguments = {
            "inputs": _shapes(row.inputs),
            "outputs": _shapes(row.outputs),
            "bytes": row.nbytes,
            "threads": row.threads,
        }
        event = {"name": row.name, "ph": "X", "pid": 0, "tid": number, "ts": start, "dur": duration}
        events.append({**event, "args": arguments})
        start += duration
    return events


def _shapes(specs: Sequence[Any]) -> str:
    return " ".join("x".join(map(str, spec.shape)) or "()" for spec in specs)


def _size(nbytes: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
