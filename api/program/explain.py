"""`explain`: what the programs of a step do, kernel by kernel."""

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
    """Print the programs of a step: kernels in order, what they read and write, how long they take.

    step: a function that `tp.jit` made, or a Trainer, whose programs are its steps and its
        predictions. A program is there once it was called.
    profile: time the kernels too, each by itself, on random numbers: the median of 20 walks.
    trace: also write the times to a file that https://ui.perfetto.dev and chrome://tracing show.

    A name such as `linear + relu` is one kernel, fused of several operations. Raises ValueError where there
    is no program yet.
    """
    if isinstance(step, Trainer):
        found = [("step", p) for p in step.steps.cache.programs]
        found += [("predict", p) for p in step.outputs.programs]
    elif isinstance(step, Jitted):
        found = [(step.name, p) for p in step.programs]
    else:
        raise TypeError(
            f"explain: step is a {type(step).__name__}, expected a function that tp.jit made, or a Trainer"
        )
    if not found:
        raise ValueError("explain: step has no program, expected one that was called")
    events: list[dict[str, Any]] = []
    for number, (name, program) in enumerate(found):
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
            spent = row.seconds or 0.0
            cells[-1] += [f"{spent * 1e6:.1f}", f"{spent / total:.1%}"]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = (1, 2)  # names and shapes; numbers are flush right
    for line in cells:
        padded = [f"{c:{'<' if k in left else '>'}{widths[k]}}" for k, c in enumerate(line)]
        lines.append("  ".join(padded).rstrip())
    return [*lines, ""]


def _events(name: str, number: int, rows: Sequence[CallProfile]) -> list[dict[str, Any]]:
    """Return events of Chrome's trace format, one after the other, in microseconds."""
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": number, "args": {"name": name}}
    ]
    at = 0.0
    for row in rows:
        spent = (row.seconds or 0.0) * 1e6
        arguments = {
            "inputs": _shapes(row.inputs),
            "outputs": _shapes(row.outputs),
            "bytes": row.nbytes,
            "threads": row.threads,
        }
        event = {"name": row.name, "ph": "X", "pid": 0, "tid": number, "ts": at, "dur": spent}
        events.append({**event, "args": arguments})
        at += spent
    return events


def _shapes(specs: Sequence[Any]) -> str:
    return " ".join("x".join(map(str, spec.shape)) or "()" for spec in specs)


def _size(nbytes: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
