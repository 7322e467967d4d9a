"""scikit-learn's perceptrons, trained by treepie: the solvers "adam" and "sgd" run native programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

from numpy.typing import NDArray
from sklearn import neural_network
from sklearn.base import is_classifier
from sklearn.model_selection import train_test_split
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import _check_sample_weight

from .preset import Preset
from .training import Progress, Rows, Training

_CONSTRAINTS: dict[str, Any] = {
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "callbacks": [list, tuple, None],
    "preset": [StrOptions({"realmlp"}), None],
}


class _Perceptron(Preset):
    """The training of `MLPClassifier` and `MLPRegressor`, in place of scikit-learn's loop.

    scikit-learn's own code validates the arguments, initializes the weights, and predicts.
    """

    def _set_parameters(self, parameters: dict[str, Any], own: Sequence[str]) -> None:
        """Keep a constructor's arguments. own: the names of those that scikit-learn's class does not have."""
        parameters.pop("self")
        kept = {name: parameters.pop(name) for name in own}
        super().__init__(**parameters)
        self.__dict__ |= kept

    def _fit(self, X: Any, y: Any, sample_weight: Any = None, incremental: bool = False) -> Any:
        if getattr(self, "class_weight", None) is not None:
            sample_weight = self._weights(y, sample_weight, incremental)
        if self.preset is not None:
            return self._fit_preset(X, y, sample_weight, incremental)
        if self.solver == "lbfgs" and (self.dropout or self.callbacks):
            raise ValueError(
                "solver='lbfgs' has no dropout and no callbacks, expected solver='adam' or 'sgd' with them"
            )
        return super()._fit(X, y, sample_weight=sample_weight, incremental=incremental)

    def _weights(self, y: Any, sample_weight: Any, incremental: bool) -> NDArray[Any]:
        """Return the weights of examples, times those of their classes."""
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, expected a dict of weights "
                "(sklearn.utils.class_weight.compute_class_weight returns balanced ones)"
            )
        weights: NDArray[Any] = compute_sample_weight(self.class_weight, y)
        return weights if sample_weight is None else weights * _check_sample_weight(sample_weight, weights)

    def _fit_stochastic(self, X: Any, y: Any, sample_weight: Any, *rest: Any) -> None:
        """Train. rest: scikit-learn's memory for gradients, the numbers of units, whether it is one epoch."""
        *_, units, incremental = rest
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if not incremental or not isinstance(getattr(self, "_optimizer", None), Progress):
            self._optimizer = Progress(float(self.learning_rate_init))
        train, validation = self._split(Rows(X, y, sample_weight))
        Training(self, train, validation, self._optimizer, units, incremental).run()

    def _split(self, rows: Rows) -> tuple[Rows, Rows | None]:
        """Return the rows to train on and, for early stopping, those to validate with."""
        if not self.early_stopping:
            return rows, None
        arrays = [rows.X, rows.y, *([] if rows.weight is None else [rows.weight])]
        X, X_val, y, y_val, *weights = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=rows.y if is_classifier(self) and self.n_outputs_ == 1 else None,
        )
        if X_val.shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            y_val = self._label_binarizer.inverse_transform(y_val)
        weight, weight_val = weights or (None, None)
        return Rows(X, y, weight), Rows(X_val, y_val, weight_val)


class MLPClassifier(_Perceptron, neural_network.MLPClassifier):
    """scikit-learn's `MLPClassifier`, trained by treepie: a multi-layer perceptron that classifies.

    It has scikit-learn's parameters, attributes and methods, and with the same `random_state` its results up
    to rounding, in a fraction of the time. It computes in the dtype of X: float32 is the faster one. These
    parameters are treepie's:

    dropout: probability with which the output of a hidden unit is set to 0 in training, in [0, 1).
    class_weight: weights of classes: a dict, or "balanced", as of scikit-learn's other classifiers.
    callbacks: of `Trainer.fit`, such as those of `tp.callback`.
    preset: "realmlp" for the tuned defaults of Holzmüller et al. 2024 (arXiv 2407.04491), with categorical
        columns of data frames; `hidden_layer_sizes` and the parameters of the training are then the preset's.

    Data frames of numbers go in as they are; columns of categories with `preset`, or through a
    `sklearn.compose.ColumnTransformer`.

    >>> import treepie as tp
    >>> (x, y), (x_test, y_test) = tp.datasets.digits()
    >>> model = tp.sklearn.MLPClassifier((64,), batch_size=32, early_stopping=True, random_state=0).fit(x, y)
    >>> model.score(x_test, y_test) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        class_weight: Mapping[Any, float] | str | None = None,
        callbacks: Sequence[object] | None = None,
        preset: str | None = None,
    ) -> None:
        self._set_parameters(dict(locals()), ("dropout", "class_weight", "callbacks", "preset"))


class MLPRegressor(_Perceptron, neural_network.MLPRegressor):
    """scikit-learn's `MLPRegressor`, trained by treepie: a multi-layer perceptron that predicts numbers.

    It has scikit-learn's parameters, attributes and methods, and with the same `random_state` its results up
    to rounding; `dropout`, `callbacks` and `preset` are those of `tp.sklearn.MLPClassifier`.

    >>> import treepie as tp
    >>> x = tp.rng.normal(tp.rng.key(0), (200, 2)).numpy()
    >>> model = tp.sklearn.MLPRegressor(solver="lbfgs", random_state=0).fit(x, x[:, 0] - 2.0 * x[:, 1])
    >>> model.predict([[1.0, 1.0]]).round(1).tolist()
    [-1.0]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **_CONSTRAINTS,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        callbacks: Sequence[object] | None = None,
        preset: str | None = None,
    ) -> None:
        self._set_parameters(dict(locals()), ("dropout", "callbacks", "preset"))
