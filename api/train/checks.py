"""Checks of the arguments of `Trainer`, and the batch that an error is about."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import described
from treepie.autodiff.ops.random import check_key

from .. import loss as losses, metric as metrics_package, optim
from ..data.check import check_data, whole_pass
from ..data.element import U
from ..data.pipeline import Data
from ..errors import add_note, did_you_mean
from ..layer import Layer
from ..metric import Metric
from ..optim import Optimizer
from .history import History

_METRICS = 'such as {"accuracy": tp.metric.Accuracy()}'


def check_loss(function: str, loss: Any) -> None:
    """Raise TypeError for other than a function of (output, target)."""
    example = "expected a function of (output, target), such as tp.loss.mse"
    if not callable(loss):
        near = did_you_mean(loss, losses.__all__, "tp.loss.") if isinstance(loss, str) else ""
        raise TypeError(f"{function}: loss is {described(loss)}, {near or example}")


def check_loss_call(loss: Any, target: tuple[Any, ...]) -> None:
    """Raise TypeError for a loss that can not be called with an output and these targets."""
    if not callable(loss):
        raise TypeError(f"Trainer: loss is {described(loss)}, {_of_output(target)}")
    call = _other_call(loss, None, *target)
    if call is not None:
        raise TypeError(f"Trainer: loss is {call}, {_of_output(target)}")


def check_report(report: Any) -> None:
    """Raise TypeError for other than a function of (step, loss, state)."""
    expected = "expected a function of (step, loss, state)"
    if not callable(report):
        raise TypeError(f"Trainer.fit: report is {described(report)}, {expected}")
    call = _other_call(report, 1, 0.0, None)
    if call is not None:
        raise TypeError(f"Trainer.fit: report is {call}, {expected}")


def _other_call(function: Callable[..., Any], *arguments: Any) -> str | None:
    """Return how a function that does not take these arguments is called, such as "f(x)"; None if it does."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return f"{getattr(function, '__name__', type(function).__name__)}({', '.join(signature.parameters)})"
    return None


def check_rngs(function: str, rngs: Any) -> Tensor:
    """Return a key, or raise TypeError; the argument follows the data, where one may expect the loss."""
    if callable(rngs):
        raise TypeError(f"{function}: rngs is {described(rngs)}, expected a key (a loss by name: loss=...)")
    return check_key(function, rngs, "rngs")


def check_history(history: Any) -> None:
    """Raise TypeError for other than a history."""
    if not isinstance(history, History):
        raise TypeError(f"Trainer.fit: history is {described(history)}, expected a tp.History()")


def check_progress(progress: Any) -> None:
    """Raise TypeError for other than a bool or None: 0 would not be silent."""
    if progress is not None and not isinstance(progress, bool | np.bool_):
        raise TypeError(f"Trainer.fit: progress is {described(progress)}, expected True, False or None")


def _of_output(target: tuple[Any, ...]) -> str:
    if target:
        return "expected a function of (output, target)"
    return "expected a function of the output: lambda out: tp.loss.mse(out, y)"


def check_model(model: Any) -> Layer:
    """Return the model of a trainer, or raise TypeError."""
    if isinstance(model, Layer):
        return model
    if isinstance(model, Optimizer):
        raise TypeError("Trainer: model is an optimizer, expected Trainer(model, optimizer), in this order")
    several = isinstance(model, list | tuple) and all(isinstance(layer, Layer) for layer in model)
    what = "a list of layers" if several else described(model)
    hint = ": tp.layer.sequential(layers)" if several else ", such as tp.layer.linear(784, 10)"
    raise TypeError(f"Trainer: model is {what}, expected a Layer{hint}")


def check_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer of a trainer, or raise TypeError."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    name = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "")
    likely = name if name in optim.__all__ else "adam"
    raise TypeError(
        f"Trainer: optimizer is {described(optimizer)}, expected an Optimizer, such as "
        f"tp.optim.{likely}(1e-3)"
    )


def check_metrics(function: str, metrics: Any) -> Mapping[str, Metric]:
    """Return a mapping of accumulators by name, or raise TypeError."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{function}: metrics is {described(metrics)}, expected a dict, {_METRICS}")
    for name, metric in metrics.items():
        if isinstance(metric, type) or not all(hasattr(metric, m) for m in ("update", "compute", "reset")):
            raise TypeError(
                f"{function}: metrics[{name!r}] is {described(metric)}, expected an accumulator, "
                f"{_accumulator(name, metric)}"
            )
    return metrics


def _accumulator(name: Any, metric: Any) -> str:
    """Return the accumulator to use for a class, a function or a name of a metric."""
    names = {n.lower(): n for n in metrics_package.__all__ if isinstance(getattr(metrics_package, n), type)}
    for text in (metric if isinstance(metric, str) else getattr(metric, "__name__", ""), str(name)):
        accumulator = names.get(text.lower().replace("_", ""))
        if accumulator is not None:
            return f"tp.metric.{accumulator}()"
    if callable(metric) and not isinstance(metric, type):
        return "tp.metric.Mean(function) for the mean of a loss"
    return "such as tp.metric.Accuracy()"


def check_validation(function: str, validate: Any) -> Data:
    """Return the data of (data, metrics), or raise TypeError."""
    if isinstance(validate, tuple) and len(validate) == 2 and isinstance(validate[1], Mapping):
        check_data(f"{function}, validate", validate[0])
    elif not isinstance(validate, tuple) or len(validate) != 2 or not isinstance(validate[0], Data):
        raise TypeError(
            f"{function}: validate is {described(validate)}, expected a tuple (data, metrics) of a tp.Data "
            f"and a dict, {_METRICS}"
        )
    data, metrics = validate
    check_metrics(f"{function}, validate", metrics)
    return data  # type: ignore[no-any-return]


def check_clip_norm(function: str, clip_norm: Any) -> None:
    """Raise TypeError or ValueError for other than a positive number."""
    if isinstance(clip_norm, str) or not hasattr(clip_norm, "__float__"):
        raise TypeError(f"{function}: clip_norm is {described(clip_norm)}, expected a positive number")
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"{function}: clip_norm is {clip_norm}, expected a positive number")


def is_summed(function: str, loss_reduction: str) -> bool:
    """Whether the losses of a batch's parts are summed; ValueError for other than "mean" and "sum"."""
    if loss_reduction not in ("mean", "sum"):
        raise ValueError(f"{function}: loss_reduction is {loss_reduction!r}, expected 'mean' or 'sum'")
    return loss_reduction == "sum"


@contextlib.contextmanager
def naming_batch(function: str, data: Data[U]) -> Iterator[Iterator[U]]:
    """Return the elements of the current pass to a block, whose errors say which one was read last."""
    number = 1

    def elements() -> Iterator[U]:
        nonlocal number
        for element in whole_pass(data):
            yield element
            number += 1

    try:
        yield elements()
    except Exception as error:
        add_note(error, f"{function}: batch {number} of {len(data)}")
        raise
