"""Estimators whose preprocessing, network and training are those of a preset."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, is_classifier
from sklearn.preprocessing import LabelBinarizer, LabelEncoder
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from .base import Network, Plan


class Preset(BaseEstimator):
    """Delegates to the module of the preset, whose function `plan` returns a `Plan`:

    plan(X, y, classes, random_state): X a data frame or an array; y class indices (int64), or float32 targets
    (examples, targets); classes their number, None for a regression.
    """

    def _fit_preset(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        if incremental or self.warm_start:
            raise ValueError(
                f"preset={self.preset!r} trains anew in each fit: no partial_fit, warm_start=False"
            )
        validate_data(self, X, skip_check_array=True)
        classes, target = self._target(y)
        weight = (
            None if sample_weight is None else _check_sample_weight(sample_weight, target, dtype=np.float32)
        )
        random_state = check_random_state(self.random_state)
        module = importlib.import_module(f".{self.preset}", __package__)
        plan: Plan = module.plan(X, target, classes, random_state)
        self.network_ = Network(plan)
        self.network_.train(X, weight, random_state, self.callbacks or (), self.verbose)
        self.loss_curve_ = [epoch["loss"] for epoch in self.network_.history.epochs]
        self.n_iter_, self.loss_ = len(self.loss_curve_), self.loss_curve_[-1]
        return self

    def _target(self, y: Any) -> tuple[int | None, Any]:
        """Return the number of classes, None for a regression, and the targets."""
        if is_classifier(self):
            check_classification_targets(y)
            y = column_or_1d(y, warn=True)
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
            self.n_outputs_ = 1 if len(self.classes_) == 2 else len(self.classes_)
            self.out_activation_ = "logistic" if self.n_outputs_ == 1 else "softmax"
            return len(self.classes_), LabelEncoder().fit(self.classes_).transform(y)
        y = check_array(y, dtype=np.float32, ensure_2d=False)
        y = y.reshape(len(y), -1)
        self.n_outputs_, self.out_activation_ = y.shape[1], "identity"
        return None, y

    def _forward_pass_fast(self, X: Any, check_input: bool = True) -> Any:
        """Return probabilities, or predictions."""
        if self.preset is None:
            return super()._forward_pass_fast(X, check_input=check_input)
        if check_input:
            validate_data(self, X, skip_check_array=True, reset=False)
        out = self.network_.outputs(X)
        if not is_classifier(self):
            return out
        probabilities = softmax(out, axis=1)
        return probabilities[:, 1:] if self.n_outputs_ == 1 else probabilities
