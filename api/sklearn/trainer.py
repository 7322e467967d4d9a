"""Any layer as an estimator of scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from treepie.autodiff import Tensor, float32, float64

from .. import loss as losses
from ..layer import Layer, linear, relu, sequential
from ..optim import Optimizer, adam
from .base import Network, Plan

#: A layer, or a function (features, outputs) -> layer.
Model = Layer | Callable[[int, int], Layer]
Loss = Callable[..., Tensor]


def perceptron(features: int, outputs: int) -> Layer:
    """Return the layer that the estimators have by default: 100 hidden units with relu."""
    return sequential([linear(features, 100), relu(), linear(100, outputs)])


class _LayerEstimator(BaseEstimator):
    """The training and the outputs of `TrainerClassifier` and `TrainerRegressor`."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "layer": [Layer, callable, None],
        "optimizer": [Optimizer, None],
        "loss": [callable, None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "dtype": [StrOptions({"float32", "float64", "int32", "int64"}), None],
        "callbacks": [list, tuple, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _inputs(self, X: Any, reset: bool, **options: Any) -> Any:
        """Return X as an array of its dtype, or (X, y) where options have y."""
        dtype = self.dtype or ("float64", "float32")
        if self.dtype is None and np.asarray(X).dtype.kind in "biu":
            dtype = "float32"
        return validate_data(self, X, dtype=dtype, allow_nd=True, reset=reset, **options)

    def _continues(self, incremental: bool) -> bool:
        return (incremental or self.warm_start) and hasattr(self, "network_")

    def _train(
        self, X: NDArray[Any], target: NDArray[Any], weight: Any, outputs: int, incremental: bool
    ) -> Any:
        """Train from new parameters, or from those there are. outputs: their number."""
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=float64 if X.dtype == float64 else float32)
        if not self._continues(incremental):
            self._random_state = check_random_state(self.random_state)
            self.network_ = Network(self._plan(X, outputs))
        network = self.network_
        before = len(network.history.epochs)
        network.plan.target, network.plan.epochs = target, 1 if incremental else self.epochs
        network.train(X, weight, self._random_state, self.callbacks or (), bool(self.verbose))
        self.loss_curve_ = [epoch["loss"] for epoch in network.history.epochs]
        self.n_iter_ = len(self.loss_curve_) - before
        return self

    def _plan(self, X: NDArray[Any], outputs: int) -> Plan:
        layer = self.layer or perceptron
        return Plan(
            prepare=functools.partial(np.ascontiguousarray, dtype=X.dtype),
            layer=layer if isinstance(layer, Layer) else layer(X.shape[-1], outputs),
            optimizer=self.optimizer or adam(1e-3),
            loss=self.loss or self._default_loss,
            target=np.empty(0),
            epochs=self.epochs,
            batch_size=self.batch_size,
            dtype=float64 if X.dtype == float64 else float32,
        )

    def _outputs(self, X: Any, columns: int) -> NDArray[Any]:
        check_is_fitted(self)
        X = self._inputs(X, reset=False)
        out = self.network_.outputs(X)
        if out.shape != (len(X), columns):
            raise ValueError(
                f"{type(self).__name__}: the layer's output has shape {out.shape}, expected "
                f"{(len(X), columns)}, (examples, outputs)"
            )
        return out


class TrainerClassifier(ClassifierMixin, _LayerEstimator):
    """A layer as a classifier of scikit-learn, trained by `tp.Trainer`.

    layer: input -> logits (examples, classes); or a function (features, classes) -> layer, where features is
        the size of X's last axis. None for a perceptron of 100 hidden units.
    optimizer: None for `tp.optim.adam(1e-3)`.
    loss: function of (logits, indices of classes), with an argument sample_weight where weights are passed;
        None for `tp.loss.cross_entropy_sparse`.
    epochs, batch_size: of the training; rows are shuffled by `random_state` in each epoch.
    class_weight: weights of classes: a dict, or "balanced", as of scikit-learn's classifiers.
    dtype: that X is converted to: "int32" for a layer that begins with an embedding. None keeps floating
        point numbers, of which float32 are faster, and makes others float32.
    callbacks: of `Trainer.fit`, such as those of `tp.callback`.
    warm_start: whether `fit` continues from the parameters of the last one.
    verbose: whether to show the progress.

    X may have any number of axes, the first of them examples. `partial_fit` trains for an epoch. The state of
    the training is `network_.state`.

    >>> import treepie as tp
    >>> (x, y), (x_test, y_test) = tp.datasets.digits()
    >>> image = tp.layer.lambda_(tp.pure(lambda x: x.reshape((-1, 1, 8, 8))))
    >>> layers = [image, tp.layer.conv2d(1, 8), tp.layer.relu(), tp.layer.flatten(), tp.layer.linear(512, 10)]
    >>> model = tp.sklearn.TrainerClassifier(tp.layer.sequential(layers), epochs=3, random_state=0)
    >>> model.fit(x, y).score(x_test, y_test) > 0.8
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **_LayerEstimator._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }
    _default_loss = staticmethod(losses.cross_entropy_sparse)

    def __init__(
        self,
        layer: Model | None = None,
        *,
        optimizer: Optimizer | None = None,
        loss: Loss | None = None,
        epochs: int = 50,
        batch_size: int = 64,
        class_weight: Mapping[Any, float] | str | None = None,
        dtype: str | None = None,
        callbacks: Sequence[object] | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.layer, self.optimizer, self.loss = layer, optimizer, loss
        self.epochs, self.batch_size, self.class_weight = epochs, batch_size, class_weight
        self.dtype, self.callbacks, self.warm_start = dtype, callbacks, warm_start
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TrainerClassifier:
        """Train on X and the classes y, and return the estimator. sample_weight: (examples,)."""
        return self._fit(X, y, sample_weight, None, False)

    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> TrainerClassifier:
        """Train for an epoch. classes: all that will occur, needed in the first call."""
        if classes is None and not hasattr(self, "classes_"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return self._fit(X, y, sample_weight, classes, True)

    def _fit(self, X: Any, y: Any, sample_weight: Any, classes: Any, incremental: bool) -> TrainerClassifier:
        self._validate_params()
        if incremental and self.class_weight == "balanced":
            raise ValueError("class_weight 'balanced' is not supported for partial_fit, expected a dict")
        continues = self._continues(incremental)
        X, y = self._inputs(X, reset=not continues, y=y)
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        if not continues:
            self.classes_ = unique_labels(y if classes is None else classes)
        target = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (self.classes_[target] != y).any():
            raise ValueError(
                f"`y` has classes {np.setdiff1d(y, self.classes_)}, expected those of `classes_`: "
                f"{self.classes_}"
            )
        weight = sample_weight
        if self.class_weight is not None:
            weight = compute_sample_weight(self.class_weight, y)
            if sample_weight is not None:
                weight = weight * _check_sample_weight(sample_weight, X)
        return self._train(X, target, weight, len(self.classes_), incremental)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each example."""
        check_is_fitted(self)
        return self.classes_[self._outputs(X, len(self.classes_)).argmax(axis=1)]  # type: ignore[no-any-return]

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probability of each class, (examples, classes), in the order of `classes_`."""
        check_is_fitted(self)
        return softmax(self._outputs(X, len(self.classes_)), axis=1)  # type: ignore[no-any-return]

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Return the logarithms of `predict_proba`."""
        check_is_fitted(self)
        return log_softmax(self._outputs(X, len(self.classes_)), axis=1)  # type: ignore[no-any-return]


class TrainerRegressor(RegressorMixin, _LayerEstimator):
    """A layer as a regressor of scikit-learn, trained by `tp.Trainer`.

    layer: input -> predictions (examples, targets); or a function (features, targets) -> layer. None for a
        perceptron of 100 hidden units.
    loss: function of (predictions, targets), both (examples, targets); None for `tp.loss.mse`.

    The other parameters are those of `tp.sklearn.TrainerClassifier`. y: (examples,) or (examples, targets).

    >>> import treepie as tp
    >>> x = tp.rng.normal(tp.rng.key(0), (256, 2)).numpy()
    >>> optimizer = tp.optim.adam(0.01)
    >>> model = tp.sklearn.TrainerRegressor(tp.layer.linear(2, 1), optimizer=optimizer, random_state=0)
    >>> model.fit(x, x[:, 0] - 2.0 * x[:, 1]).score(x, x[:, 0] - 2.0 * x[:, 1]) > 0.9
    True
    """

    _default_loss = staticmethod(losses.mse)

    def __init__(
        self,
        layer: Model | None = None,
        *,
        optimizer: Optimizer | None = None,
        loss: Loss | None = None,
        epochs: int = 50,
        batch_size: int = 64,
        dtype: str | None = None,
        callbacks: Sequence[object] | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.layer, self.optimizer, self.loss = layer, optimizer, loss
        self.epochs, self.batch_size = epochs, batch_size
        self.dtype, self.callbacks, self.warm_start = dtype, callbacks, warm_start
        self.random_state, self.verbose = random_state, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TrainerRegressor:
        """Train on X and y, and return the estimator. sample_weight: (examples,)."""
        return self._fit(X, y, sample_weight, False)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> TrainerRegressor:
        """Train for an epoch, and return the estimator."""
        return self._fit(X, y, sample_weight, True)

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> TrainerRegressor:
        self._validate_params()
        reset = not self._continues(incremental)
        X, y = self._inputs(X, reset=reset, y=y, y_numeric=True, multi_output=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if reset:
            self._one, self.n_outputs_ = y.ndim == 1, y.size // len(y)
        target = y.reshape(len(y), -1).astype(float64 if X.dtype == float64 else float32)
        return self._train(X, target, sample_weight, self.n_outputs_, incremental)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return predictions, of the shape of the y that `fit` has had."""
        check_is_fitted(self)
        out = self._outputs(X, self.n_outputs_)
        return out[:, 0] if self._one else out

    def __sklearn_tags__(self) -> Any:
        """Return what the estimator can do, for scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
