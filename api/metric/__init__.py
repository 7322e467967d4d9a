"""Metrics: accumulators over a data set, functions of one batch, means of numbers."""

from ..namespace import public_names as _public_names
from .accumulators import (
    AUC as AUC,
    F1 as F1,
    MAE as MAE,
    MSE as MSE,
    Accuracy as Accuracy,
    BinaryAccuracy as BinaryAccuracy,
    ConfusionMatrix as ConfusionMatrix,
    Mean as Mean,
    Metric as Metric,
    Precision as Precision,
    Recall as Recall,
    TopKAccuracy as TopKAccuracy,
)
from .determination import R2 as R2
from .functions import (
    accuracy as accuracy,
    auc_roc as auc_roc,
    binary_accuracy as binary_accuracy,
    confusion_matrix as confusion_matrix,
    f1 as f1,
    mae as mae,
    mse as mse,
    precision as precision,
    r2 as r2,
    recall as recall,
    top_k_accuracy as top_k_accuracy,
)
from .means import Tracker as Tracker, eval as eval, eval_many as eval_many

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
