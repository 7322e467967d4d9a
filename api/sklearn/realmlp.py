"""RealMLP-TD: a recipe for tables, tuned on many data sets, that beats plain MLPs by its defaults.

Holzmüller, Grinsztajn & Steinwart 2024, "Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on
Tabular Data" (arXiv 2407.04491), section 3 and appendix A, with the constants of the authors' implementation
(pytabkit, Apache 2.0). Its parts: preprocessing (`table.py`); the network, its initialization by the data and
its optimizer (`realmlp_network.py`); here label smoothing, standardized targets, and the best epoch on a
validation set.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing

from treepie.autodiff import Tensor, ops
from treepie.autodiff.program.pure import library

from .. import layer as layers, loss as losses
from ..layer import Layer
from ..optim import Optimizer
from ..train.state import TrainState
from ..train.trainer import Trainer
from .base import Plan
from .realmlp_network import Sizes, initialized, network_parts, optimizer_of
from .table import Table

LABEL_SMOOTHING = 0.1
#: Peaks of the learning rate.
CLASSIFIER_RATE, REGRESSOR_RATE = 0.04, 0.2
#: Rows that the initialization reads at most.
INITIAL_ROWS = 10_000


def plan(
    X: Any,
    target: NDArray[Any],
    classes: int | None,
    random_state: np.random.RandomState,
    epochs: int = 256,
    batch_size: int = 256,
    validation_fraction: float = 0.2,
) -> Plan:
    """Return the plan of a network for a table.

    X: a data frame or an array (rows, columns); missing values are NaN or None.
    target: (rows,) indices of classes, or (rows, targets) numbers where `classes` is None.
    validation_fraction: of the rows, which select the best epoch and are not trained on; 0 keeps the last.
    """
    y = np.asarray(target, np.int32) if classes else np.asarray(target, np.float64).reshape(len(target), -1)
    rows, held = split_rows(y, classes, validation_fraction, random_state)
    table = Table(_safe_indexing(X, rows))
    unscale = None if classes else Unscale(y[rows])
    if unscale is not None:
        y = unscale.scaled(y)
    size = min(batch_size, len(rows))
    steps = epochs * (len(rows) // size)
    sizes = Sizes(table.numbers, table.binary, len(table.large), table.vocabulary)
    parts = network_parts(sizes, classes or y.shape[1], steps, not classes)
    network = layers.sequential(parts)
    optimizer = optimizer_of(CLASSIFIER_RATE if classes else REGRESSOR_RATE, steps)
    arrays = table(X)
    best = LastBest(network, optimizer, take(arrays, held), y[held], unscale)
    return Plan(
        prepare=table,
        layer=network,
        optimizer=optimizer,
        loss=smoothed_cross_entropy if classes else losses.mse,
        target=y,
        epochs=epochs,
        batch_size=size,
        finish=unscale,
        callbacks=[best] if len(held) else [],
        rows=rows,
        drop_last=True,
        initial=functools.partial(initialized, parts, take(arrays, rows[:INITIAL_ROWS])),
    )


def split_rows(
    y: NDArray[Any], classes: int | None, fraction: float, random_state: np.random.RandomState
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows to train on, in a random order, and those held out, of each class alike if possible."""
    rows = random_state.permutation(len(y))
    count = math.ceil(fraction * len(y)) if len(y) > 1 else 0
    if not count:
        return rows, rows[:0]
    stratify = None
    if classes and np.bincount(y).min() > 1 and classes <= min(count, len(y) - count):
        stratify = y[rows]
    train, held = train_test_split(rows, test_size=count, random_state=random_state, stratify=stratify)
    return train, held


def take(arrays: Any, rows: NDArray[Any]) -> Any:
    """Return rows of an array, or of a tuple of arrays."""
    return tuple(a[rows] for a in arrays) if isinstance(arrays, tuple) else arrays[rows]


class Unscale:
    """Standardized outputs to predictions, limited to the range of the training set's targets.

    y: (rows, targets), the targets of the training set.
    """

    def __init__(self, y: NDArray[Any]) -> None:
        self.mean, self.std = y.mean(axis=0), y.std(axis=0)
        self.low, self.high = self.scaled(y.min(axis=0)), self.scaled(y.max(axis=0))

    def scaled(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return standardized targets, float32; those of a constant are 0."""
        return np.asarray((y - self.mean) / np.where(self.std > 0, self.std, 1.0), np.float32)

    def limited(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Return outputs within the range."""
        limited: NDArray[Any] = np.clip(outputs, self.low, self.high)
        return limited

    def __call__(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Return predictions."""
        predictions: NDArray[Any] = self.limited(outputs).astype(np.float64) * self.std + self.mean
        return predictions


class LastBest:
    """A callback that returns the state after the best epoch on held-out rows, the last one among equals.

    network, optimizer: of the trainer.  x, y: the rows.  unscale: None for classes.

    epoch, score: the best epoch, from 1, and its error: the fraction of wrong classes, or the mean square.
    """

    def __init__(
        self, network: Layer, optimizer: Optimizer, x: Any, y: NDArray[Any], unscale: Unscale | None
    ) -> None:
        self._trainer, self._x, self._y, self._unscale = Trainer(network, optimizer), x, y, unscale
        self.epoch, self.score = 0, math.inf
        self.best: TrainState | None = None

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Begin anew."""
        self.epoch, self.score, self.best = 0, math.inf, None

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Compare the epoch's error with the best one."""
        out = self._trainer.predict(st, self._x, batch_size=8192).numpy()
        if self._unscale is None:
            score = float((out.argmax(axis=1) != self._y).mean())
        else:
            score = float(np.square(self._unscale.limited(out) - self._y).mean(dtype=np.float64))
        if score <= self.score:
            self.epoch, self.score, self.best = epoch, score, st

    def on_end(self, st: TrainState) -> TrainState | None:
        """Return the best state."""
        return self.best


@library
def smoothed_cross_entropy(out: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of logits against smoothed indices of classes."""
    return losses.cross_entropy(
        out, ops.one_hot(y, out.shape[-1], out.dtype), LABEL_SMOOTHING, sample_weight=sample_weight
    )
