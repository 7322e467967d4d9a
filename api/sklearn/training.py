"""The training of scikit-learn's perceptrons: its epochs, its stopping rules and its learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from treepie.kernels.frames import warn

from ..data.pipeline import Data
from ..optim.opt_state import OptState
from ..train.callbacks import EarlyStop
from ..train.history import History
from ..train.state import TrainState
from .base import batches, random_key
from .solver import LOSSES, Solver, solver_of, variables, weights

#: The learning rate below which "adaptive" stops, and what it divides the rate by.
_SMALLEST_RATE, _FACTOR = 1e-6, 5.0


@dataclass
class Rows:
    """Rows to train on or to validate with, as scikit-learn has validated them."""

    X: Any  # an array, or a sparse one
    y: NDArray[Any]
    weight: NDArray[Any] | None


@dataclass
class Progress:
    """What `partial_fit` continues with: the learning rate, and the state of the optimizer."""

    learning_rate: float
    state: OptState | None = None
    steps: int = 0


class Training:
    """One `fit` or `partial_fit` of an estimator, whose attributes it sets as scikit-learn's loop does.

    It is a callback of `Trainer.fit`.

    estimator: validated, with its first weights.  units: of the layers.  incremental: whether to train for
        one epoch, from `progress` on.
    """

    def __init__(
        self,
        estimator: Any,
        train: Rows,
        validation: Rows | None,
        progress: Progress,
        units: Sequence[int],
        incremental: bool,
    ) -> None:
        self.estimator, self.train, self.validation = estimator, train, validation
        self.progress, self.incremental = progress, incremental
        self.solver = _solver(estimator, tuple(units))
        self.length = len(train.y)
        self.size = _batch_size(estimator.batch_size, self.length)
        self.sizes = np.diff([*range(0, self.length, self.size), self.length])
        self.history, self.stopped = History(), False

    def run(self) -> None:
        """Train until scikit-learn's rules, or a callback of the user, end it."""
        estimator, progress, rate = self.estimator, self.progress, self.solver.rate
        trainer = self.solver.trainer
        vars = variables(estimator.coefs_, estimator.intercepts_)
        state = progress.state or trainer.optimizer.init(vars.params)
        estimator.n_iter_ = 0
        before, rate.value = rate.value, progress.learning_rate  # a callback may fit an estimator too
        try:
            st = trainer.fit(
                TrainState(vars, state, progress.steps),
                self._data(),
                rngs=random_key(estimator._random_state) if estimator.dropout else None,
                loss=LOSSES[_objective(estimator)],
                epochs=1 if self.incremental else estimator.max_iter,
                history=self.history,
                progress=False,
                callbacks=[self, *(estimator.callbacks or ())],
            )
        except KeyboardInterrupt as interrupt:
            warn("Training interrupted by user.", UserWarning)
            st, self.stopped = interrupt.state, True  # type: ignore[attr-defined]
        except FloatingPointError as error:
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                "need to be preprocessed."
            ) from error
        finally:
            rate.value = before
        self._finish(st)

    def _finish(self, st: TrainState) -> None:
        estimator = self.estimator
        self.progress.state, self.progress.steps = st.opt_state, st.step
        if self.validation is not None:
            estimator.coefs_, estimator.intercepts_ = estimator._best_coefs, estimator._best_intercepts
        else:
            self._set_weights(st)
        if not self.stopped and not self.incremental and estimator.n_iter_ == estimator.max_iter:
            warn(
                f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
            )

    def _set_weights(self, st: TrainState) -> None:
        estimator = self.estimator
        estimator.coefs_, estimator.intercepts_ = weights(st.vars.params)

    # ---- data
    def _data(self) -> Data[Any]:
        """Return the elements (input, targets), or (input, (targets, weights))."""
        estimator, train, dtype = self.estimator, self.train, self.estimator.coefs_[0].dtype
        sparse = scipy.sparse.issparse(train.X)
        x = train.X.astype(dtype).tocsr() if sparse else np.ascontiguousarray(train.X, dtype)
        classes = estimator.out_activation_ == "softmax"
        y = train.y.argmax(axis=1) if classes else np.ascontiguousarray(train.y, dtype)
        target = y if train.weight is None else (y, np.ascontiguousarray(train.weight, dtype))
        return batches((x, target), self.size, estimator._random_state if estimator.shuffle else None)

    # ---- the end of an epoch
    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Set the attributes after an epoch; end training by scikit-learn's rules."""
        estimator = self.estimator
        estimator.n_iter_ += 1
        losses = [loss for _, loss in self.history.steps[-len(self.sizes) :]]
        estimator.loss_ = float(np.dot(losses, self.sizes)) / self.length
        estimator.t_ += self.length
        estimator.loss_curve_.append(estimator.loss_)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
        validation = self.validation
        if validation is None:
            estimator._update_no_improvement_count(False, None, None, None)
        else:
            self._set_weights(st)
            estimator._update_no_improvement_count(True, validation.X, validation.y, validation.weight)
        if estimator.solver == "sgd" and estimator.learning_rate == "invscaling":
            self._set_rate(float(estimator.learning_rate_init) / (estimator.t_ + 1) ** estimator.power_t)
        if estimator._no_improvement_count > estimator.n_iter_no_change:
            self._stop_or_slow_down()

    def _stop_or_slow_down(self) -> None:
        """End training, or divide the learning rate, after epochs without an improvement."""
        estimator, rate = self.estimator, self.progress.learning_rate
        what = "Training loss" if self.validation is None else "Validation score"
        message = (
            f"{what} did not improve more than tol={estimator.tol:f} for {estimator.n_iter_no_change} "
            "consecutive epochs."
        )
        adaptive = estimator.solver == "sgd" and estimator.learning_rate == "adaptive"
        if adaptive and rate > _SMALLEST_RATE:
            self._set_rate(rate / _FACTOR)
            estimator._no_improvement_count = 0
            if estimator.verbose:
                print(f"{message} Setting learning rate to {rate / _FACTOR:f}")
            return
        if estimator.verbose:
            print(f"{message}{' Learning rate too small.' if adaptive else ''} Stopping.")
        self.stopped = True
        raise EarlyStop

    def _set_rate(self, rate: float) -> None:
        self.progress.learning_rate = self.solver.rate.value = rate


def _objective(estimator: Any) -> str:
    """Return the name of the loss."""
    return "binary_log_loss" if estimator.out_activation_ == "logistic" else estimator.loss


def _batch_size(size: Any, length: int) -> int:
    if size == "auto":
        return min(200, length)
    if size > length:
        warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", UserWarning
        )
    return int(np.clip(size, 1, length))


def _solver(estimator: Any, units: tuple[int, ...]) -> Solver:
    options: tuple[Any, ...]
    if estimator.solver == "adam":
        options = estimator.beta_1, estimator.beta_2, estimator.epsilon
    else:
        options = estimator.momentum, estimator.nesterovs_momentum
    numbers = float(estimator.dropout), float(estimator.alpha)
    return solver_of(tuple(map(int, units)), estimator.activation, *numbers, estimator.solver, options)
