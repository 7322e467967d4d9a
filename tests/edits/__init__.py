"""The edits of `tests/mutants.py`, by the part of the library that they break."""

from . import (
    arguments,
    audit,
    checkpoints,
    data,
    formulas,
    functions,
    kernels,
    ops,
    optimizers,
    programs,
    traces,
    training,
)

_PARTS = (
    *(arguments, audit, functions, ops, kernels, formulas, programs, traces, optimizers, data, checkpoints),
    training,
)
ALL = [e for part in _PARTS for e in part.EDITS]
