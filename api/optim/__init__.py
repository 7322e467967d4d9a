"""Optimizers and learning-rate schedules."""

from ..namespace import public_names as _public_names
from . import schedule as schedule
from .compose import (
    add_decayed_weights as add_decayed_weights,
    chain as chain,
    clip_norm as clip_norm,
    clip_value as clip_value,
    ema as ema,
)
from .gradients import (
    apply_updates as apply_updates,
    clip_by_global_norm as clip_by_global_norm,
    global_norm as global_norm,
)
from .opt_state import OptState as OptState, ema_params as ema_params
from .optimizer import Optimizer as Optimizer
from .optimizers import (
    adagrad as adagrad,
    adam as adam,
    adamw as adamw,
    lamb as lamb,
    lion as lion,
    nadam as nadam,
    rmsprop as rmsprop,
    sgd as sgd,
)
from .parts import frozen as frozen, partition as partition

__all__ = _public_names(globals(), schedule)


def __dir__() -> list[str]:
    return __all__
