"""The edits of `tests/mutants.py`, by the part of the library that they break."""

from . import (
    arguments,
    audit,
    caches,
    checkpoints,
    data,
    draws,
    formulas,
    functions,
    kernels,
    mpi,
    ops,
    optimizers,
    programs,
    rank_sums,
    shards,
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
    rank_sums,
    threads,
    traces,
    optimizers,
    data,
    checkpoints,
    training,
    caches,
    draws,
    shards,
    mpi,
)
ALL = [e for part in _PARTS for e in part.EDITS]
