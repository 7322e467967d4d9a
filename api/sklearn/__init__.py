"""Estimators for scikit-learn: `MLPClassifier`, `MLPRegressor`, and any layer as an estimator."""

try:
    import sklearn.base as _base  # noqa: F401
except ImportError as error:
    raise ImportError('tp.sklearn needs scikit-learn 1.7 or newer: pip install "treepie[sklearn]"') from error

from .mlp import MLPClassifier as MLPClassifier, MLPRegressor as MLPRegressor
from .trainer import TrainerClassifier as TrainerClassifier, TrainerRegressor as TrainerRegressor
