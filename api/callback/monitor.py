"""The comparison of an epoch's score with the best one so far."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import did_you_mean

_LOWER = ("loss", "error", "mse", "mae", "rmse", "perplexity")
_HIGHER = ("accuracy", "acc", "auc", "f1", "precision", "recall", "r2", "top")


class Monitor:
    """Compares the scores of a metric.

    function: for errors.  metric: its name in the scores.  mode: "min" or "max"; None tells it by the name.
    min_delta: by how much a better score differs at least.
    """

    def __init__(self, function: str, metric: str, mode: str | None, min_delta: float = 0.0) -> None:
        if not isinstance(metric, str):
            kind = type(metric).__name__
            raise TypeError(f"{function}: metric is a {kind}, expected a name, such as 'loss'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"{function}: min_delta is {min_delta}, expected 0 or more")
        self.function, self.metric, self.min_delta = function, metric, min_delta
        self.mode = _mode(metric) if mode is None else mode
        if self.mode not in ("min", "max"):
            told = "" if mode is None else f"mode is {mode!r}, "
            raise ValueError(
                f"{function}: {told}expected mode='min' or mode='max': whether the best {metric!r} is the "
                "lowest or the highest"
            )

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError for names of scores without the metric's."""
        names = list(names)
        if self.metric not in names:
            near = self._meant(names)
            hint = f" ({near})" if near else ""
            raise ValueError(
                f"{self.function}: metric is {self.metric!r}{hint}, expected one of the epoch's scores: "
                f"{', '.join(map(repr, names))} (see validate= of fit)"
            )

    def _meant(self, names: list[str]) -> str:
        """Return which name is meant, or how a score gets it: "val_loss" is not the loss of training."""
        if not self.metric.startswith("val_"):
            return did_you_mean(self.metric, names)
        plain = self.metric.removeprefix("val_")
        if plain == "loss":
            return "validate=(data, {'val_loss': tp.metric.Mean(loss)}) gives one"
        return did_you_mean(plain, [n for n in names if n != "loss"])

    def score(self, scores: Mapping[str, Any]) -> float:
        """Return the metric's score; ValueError if there is none, or if it is no number."""
        self.check_names(scores)
        try:
            return float(scores[self.metric])
        except (TypeError, ValueError):
            kind = type(scores[self.metric]).__name__
            raise ValueError(
                f"{self.function}: the score {self.metric!r} is a {kind}, expected a number"
            ) from None

    def better(self, score: float, best: float | None) -> bool:
        """Return whether a score is better than the best one, None before the first. NaN never is."""
        if math.isnan(score) or best is None:
            return best is None and not math.isnan(score)
        gain = best - score if self.mode == "min" else score - best
        return gain > self.min_delta


def _mode(metric: str) -> str | None:
    words = re.split(r"[^a-z0-9]+", metric.lower())
    lower, higher = any(w in _LOWER for w in words), any(w in _HIGHER for w in words)
    return None if lower == higher else "min" if lower else "max"
