"""Optimizers and learning-rate schedules."""

from ..namespace import public_names as _public_names
from . import schedule as schedule
from .optimizers import (
    Optimizer as Optimizer,
    OptState as OptState,
    adagrad as adagrad,
    adam as adam,
    adamw as adamw,
    apply_updates as apply_updates,
    clip_by_global_norm as clip_by_global_norm,
    global_norm as global_norm,
    rmsprop as rmsprop,
    sgd as sgd,
)

__all__ = _public_names(globals(), schedule)


def __dir__() -> list[str]:
    return __all__
