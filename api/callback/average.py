"""A moving average of the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor

from .. import optim
from ..layer import Vars
from ..optim.compose import Ema
from ..train.state import TrainState


class Average:
    """Averages the parameters; `ema` constructs it."""

    def __init__(self, rule: Ema) -> None:
        self._rule = rule
        self._vars: Vars | None = None  # the average, until the first step
        self._flat: list[Tensor] = []  # the average in flat buffers, from then on
        self._layout: Any = None

    def __repr__(self) -> str:
        """Return the call that constructs it."""
        return f"ema({self._rule.decay:g})"

    @property
    def average(self) -> Vars | None:
        """The model's variables with the average of the parameters; None before `fit`."""
        if self._layout is None or self._vars is None:
            return self._vars
        return self._vars.with_params(self._layout.tree(self._flat))

    @property
    def state(self) -> Vars | None:
        """What checkpoints hold."""
        return self.average

    @state.setter
    def state(self, average: Vars) -> None:
        self._vars, self._layout = average, None

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Begin with the parameters, unless the average is that of a checkpoint."""
        if not resumed:
            self.state = st.vars

    def on_step(self, step: int, loss: float, st: TrainState) -> None:
        """Add the new parameters to the average."""
        at = st.snapshot
        assert at is not None
        assert self._vars is not None
        if self._layout is None:
            self._layout = at.buffers.layout
            leaves = [as_tensor(t) for t in ptree.leaves(self._vars.params)]
            self._flat = list(self._layout.flat(leaves))
        params = [Tensor(a, None) for a in at.buffers.arrays]  # without those that are frozen
        for k, (average, new) in enumerate(zip(self._flat, params, strict=False)):
            self._flat[k] = self._rule.advance(average, new)

    def on_end(self, st: TrainState) -> TrainState:
        """Return the state with the average of the parameters."""
        average = self.average
        assert average is not None
        return dataclasses.replace(st, vars=st.vars.with_params(average.params))


def ema(decay: float = 0.999) -> Average:
    """Return a callback that averages the parameters over steps; `fit` returns the average.

        average = decay * average + (1 - decay) * params, after each step, from the initial parameters on

    decay: in [0, 1), else ValueError (Polyak & Juditsky 1992, with exponential weights).

    The average has the bits of `tp.optim.ema`'s, which is part of an optimizer and keeps it in the
    optimizer's state, for loops of your own. Steps, scores and checkpoints are those of the parameters
    themselves, and a resumed run continues with them. The attribute `average` has the model's variables with
    the average, for use before the end.

    >>> import treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1))
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=2)
    >>> average = tp.callback.ema(0.9)
    >>> st = trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, callbacks=[average])
    >>> (st.vars.params["weight"] == average.average.params["weight"]).item()
    True
    """
    if not 0 <= decay < 1:
        raise ValueError(f"callback.ema: decay is {decay}, expected at least 0 and below 1")
    return Average(optim.ema(decay))
