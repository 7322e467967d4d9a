"""The state of training."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import Vars
from .optim import OptState


@dataclass(frozen=True)
class TrainState:
    """Where training stands: the model's variables, the optimizer's state, the steps taken."""

    vars: Vars
    opt_state: OptState
    step: int
