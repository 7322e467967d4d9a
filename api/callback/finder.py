"""The search for a learning rate: losses of steps with a rate that grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import integer

from ..data.check import check_data
from ..data.pipeline import Data
from ..plot import pyplot
from ..train.callbacks import EarlyStop
from ..train.state import TrainState
from ..train.trainer import Trainer

#: The weight of earlier losses in the moving average, and its multiple of the least at which a search ends.
_SMOOTHING, _DIVERGED = 0.9, 4.0


@dataclass(frozen=True, repr=False)
class LearningRates:
    """Losses by learning rate; `lr_finder` returns it.

    rates: ascending.  losses: of the step with each rate.
    suggestion: the rate at which the smoothed loss falls fastest, over the logarithm of the rate, up to its
        least value; None where it does not fall.

    >>> import treepie as tp
    >>> tp.callback.LearningRates([0.1, 1.0], [2.0, 1.0], 0.1)
    LearningRates(suggestion=0.1, 2 rates from 0.1 to 1)
    """

    rates: list[float]
    losses: list[float]
    suggestion: float | None

    def __repr__(self) -> str:
        """Return the suggestion and the range of rates."""
        suggestion = "None" if self.suggestion is None else f"{self.suggestion:.2g}"
        ends = f" from {self.rates[0]:.2g} to {self.rates[-1]:.2g}" if self.rates else ""
        return f"LearningRates(suggestion={suggestion}, {len(self.rates)} rates{ends})"

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses over the rates, with the suggestion, by matplotlib; return the axes.

        ax: axes to draw on; None for a new figure.

        Raises ImportError without matplotlib: `pip install "treepie[plot]"`.
        """
        ax = pyplot().subplots()[1] if ax is None else ax
        ax.plot(self.rates, self.losses, color="0.7", label="loss")
        smooth = _smoothed(self.losses)
        ax.plot(self.rates, smooth, label="smoothed")
        if self.suggestion is not None:
            height = smooth[self.rates.index(self.suggestion)]
            ax.plot(self.suggestion, height, "o", label=f"suggestion: {self.suggestion:.2g}")
        low, high = min(smooth), max(smooth[: _least(smooth) + 1])
        spread = (high - low) or abs(low) or 1.0
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        ax.set_ylim(low - 0.2 * spread, high + 0.5 * spread)
        ax.legend()
        return ax


class _Sweep:
    """Takes a step with each rate, until the loss diverges."""

    def __init__(self, rates: list[float]) -> None:
        self._rates = rates
        self.losses: list[float] = []

    def learning_rate(self, rate: float) -> float:
        return self._rates[len(self.losses)]

    def on_step(self, step: int, loss: float, st: TrainState) -> None:
        self.losses.append(loss)
        smooth = _smoothed(self.losses)
        spread = abs(smooth[0] - min(smooth)) if min(smooth) <= 0 else min(smooth) * (_DIVERGED - 1)
        if len(self.losses) == len(self._rates) or smooth[-1] > min(smooth) + max(spread, 1e-12):
            raise EarlyStop


def lr_finder(
    trainer: Trainer,
    st: TrainState,
    data: Data,
    loss: Callable[..., Tensor] | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    **options: Any,
) -> LearningRates:
    """Return the losses of steps whose learning rate grows, and a suggestion: the range test of Smith 2017.

    trainer, st, data, loss: as for `trainer.fit`. Neither the state nor the position of the data changes.
    low, high: the first and the last learning rate; those between are a geometric sequence. They replace the
        rate of the optimizer.
    steps: how many, at least 2; fewer where the loss diverges before. Data that ends begins again.
    options: other arguments of `fit`, such as `rngs`, `clip_norm` or `comm`.

    Raises ValueError for arguments out of range.

    >>> import treepie as tp
    >>> x = tp.rng.normal(tp.rng.key(0), (64, 2))
    >>> data = tp.Data.prepare((x, x @ tp.tensor([[2.0], [-1.0]])), batch_size=16)
    >>> trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.adam(1e-3))
    >>> found = tp.callback.lr_finder(trainer, trainer.init(tp.rng.key(1)), data, tp.loss.mse)
    >>> 1e-6 < found.suggestion < 1.0
    True
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"callback.lr_finder: low is {low} and high {high}, expected 0 < low < high")
    integer("callback.lr_finder", "steps", steps, least=2)
    where = check_data("callback.lr_finder", data).pass_number, data.position
    _check_loss(data, loss)
    sweep = _Sweep(np.geomspace(low, high, steps).tolist())
    options = {"progress": False, **options}
    options["callbacks"] = [*options.get("callbacks", ()), sweep]
    data.seek(where[0])
    try:
        trainer.fit(st, data, loss=loss, epochs=steps, **options)
    except FloatingPointError:  # the loss has diverged
        if not sweep.losses:
            raise
    finally:
        data.seek(*where)
    rates = sweep._rates[: len(sweep.losses)]
    return LearningRates(rates, sweep.losses, _suggestion(rates, sweep.losses))


def _check_loss(data: Data, loss: Any) -> None:
    """Raise TypeError where `fit` would miss a loss: it would name itself."""
    if loss is None and len(data):
        element = data._element(data.pass_number, 0)
        if not (isinstance(element, tuple) and len(element) == 2 and callable(element[1])):
            raise TypeError(
                "callback.lr_finder: loss is missing, such as lr_finder(trainer, st, data, loss=tp.loss.mse)"
            )


def _smoothed(losses: list[float]) -> list[float]:
    """Return the exponential moving average of losses, without the bias of its beginning."""
    average, smooth = 0.0, []
    for k, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth.append(average / (1 - _SMOOTHING**k))
    return smooth


def _suggestion(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate at which the smoothed loss falls fastest, None where it does not fall."""
    if len(losses) < 3:
        return None
    smooth = _smoothed(losses)
    # The average of few losses varies as much as the batches do: a tenth of the rates says nothing yet.
    first = len(losses) // 10
    slopes = np.gradient(smooth, np.log(rates))[first : _least(smooth) + 1]
    if slopes.size == 0 or not slopes.min() < 0:
        return None
    return rates[first + int(np.argmin(slopes))]


def _least(smooth: list[float]) -> int:
    """Return the index of the least smoothed loss: what falls after it falls by chance."""
    return int(np.argmin(smooth))
