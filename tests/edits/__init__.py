"""The edits of `tests/mutants.py`, by the part of the library that they break."""

from . import (
    arguments,
    audit,
    caches,
    checkpoints,
    data,
    formulas,
    functions,
    jobs,
    kernels,
    ops,
    optimizers,
    programs,
    threads,
    traces,
    training,
)

_PARTS = (
    arguments,
    audit,
    functions,
    ops,
    kernels,
    formulas,
    programs,
    threads,
    traces,
    optimizers,
    data,
    checkpoints,
    training,
    caches,
    jobs,
)
ALL = [e for part in _PARTS for e in part.EDITS]
