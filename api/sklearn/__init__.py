"""Estimators of scikit-learn: its own perceptrons, trained by treepie, and any layer as an estimator."""

try:
    from sklearn.utils.validation import validate_data as _oldest  # noqa: F401
except ImportError as error:
    raise ImportError('tp.sklearn needs scikit-learn 1.7 or newer: pip install "treepie[sklearn]"') from error

from ..namespace import public_names as _public_names
from .mlp import MLPClassifier as MLPClassifier, MLPRegressor as MLPRegressor
from .trainer import TrainerClassifier as TrainerClassifier, TrainerRegressor as TrainerRegressor

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
