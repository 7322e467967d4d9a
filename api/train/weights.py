"""Examples of an element of data: the loss and its arguments, with sample and class weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from treepie.autodiff import Tensor
from treepie.autodiff.program.pure import is_pure

from ..loss import ClassWeight as ClassWeight, check_class_weight
from .inputs import Loss


class Losses:
    """The loss functions of the elements of data.

    loss: of (output, target), where elements are not (input, loss_fn).  class_weight: as for `fit`.
    """

    def __init__(self, loss: Loss | None, class_weight: ClassWeight | None) -> None:
        self._loss, self._class_weight = loss, None
        self._weighted: Loss | None = None
        if class_weight is not None:
            if loss is None:
                raise ValueError("Trainer.fit: class_weight is given without loss, expected both")
            self._class_weight = check_class_weight("Trainer.fit", class_weight)
            self._loss = WeightedLoss(loss, False, self._class_weight)

    def example(self, element: Any) -> tuple[Any, Loss, tuple[Any, ...]]:
        """Return an input, a loss function, and the loss function's arguments besides the output."""
        loss = self._loss
        if type(element) is tuple and len(element) == 2:
            x, second = element
        elif isinstance(element, tuple) and len(element) == 3 and loss is not None:
            x, target, weight = element
            return x, self._for_samples(loss), (target, weight)
        else:
            x, second = two("Trainer.fit", element)
        if loss is not None:
            if callable(second):
                raise TypeError(
                    "Trainer.fit: an element of data holds a function and loss is given, expected one of the "
                    "two"
                )
            return x, loss, (second,)
        if not callable(second):
            raise TypeError(
                f"Trainer.fit: an element of data is (input, {type(second).__name__}), expected (input, "
                "loss_fn), or the argument loss, such as fit(..., loss=tp.loss.mse)"
            )
        return x, second, ()

    def _for_samples(self, loss: Loss) -> Loss:
        if self._weighted is None:
            function = loss.loss if isinstance(loss, WeightedLoss) else loss
            self._weighted = WeightedLoss(function, True, self._class_weight)
        return self._weighted


class WeightedLoss:
    """A loss as a function of (output, target) or, with sample weights, (output, target, sample_weight).

    Equal ones select the same program.
    """

    def __init__(self, loss: Loss, samples: bool, class_weight: Any) -> None:
        self.loss = loss
        self._options = {} if class_weight is None else {"class_weight": class_weight}
        self._key = loss, samples, None if class_weight is None else _key(class_weight)
        self.pure, self.once = is_pure(loss), getattr(loss, "once", False)
        accepted, self._positional = _parameters(loss)
        self._samples = samples
        for name in ["sample_weight"] * samples + list(self._options):
            if name not in accepted and not (name == "sample_weight" and self._positional):
                what = getattr(loss, "__name__", type(loss).__name__)
                raise TypeError(
                    f"Trainer.fit: the loss {what} takes no {name}, expected a function with that argument, "
                    "such as those of tp.loss"
                )
        self._positional = self._positional and "sample_weight" not in accepted

    def __call__(self, output: Any, target: Any, *weight: Any) -> Tensor:
        """Return the weighted loss."""
        if not self._samples or self._positional:
            return self.loss(output, target, *weight, **self._options)
        return self.loss(output, target, sample_weight=weight[0], **self._options)

    def __eq__(self, other: object) -> bool:
        """Whether another computes the same."""
        return isinstance(other, WeightedLoss) and self._key == other._key

    def __hash__(self) -> int:
        """Return a hash that equal ones share."""
        return hash(self._key)


def two(function: str, element: Any) -> tuple[Any, Any]:
    """Return the two parts of an element, or raise TypeError."""
    if isinstance(element, tuple) and len(element) == 3 and function == "Trainer.evaluate":
        raise TypeError(
            "Trainer.evaluate: an element of data is (input, target, sample_weight), and metrics take no "
            "weights, expected (input, target): data.map(lambda x, y, weight: (x, y))"
        )
    if not isinstance(element, tuple) or len(element) != 2:
        kind = f"tuple of {len(element)}" if isinstance(element, tuple) else type(element).__name__
        pairs = isinstance(element, list) and all(isinstance(e, tuple) for e in element)
        batch = "lambda batch: tuple(map(tp.data.stack_batch, zip(*batch)))"
        hint = f" (a batch of a list of examples: data.map({batch}))" if pairs else ""
        raise TypeError(
            f"{function}: an element of data is a {kind}, expected a tuple of 2, (input, target), such as "
            f"the batches of tp.Data.prepare((x, y), batch_size=32){hint}"
        )
    return element


def _key(class_weight: Mapping[int, float] | Tensor) -> Any:
    if isinstance(class_weight, Mapping):
        return tuple(class_weight.items())
    return class_weight.array.tobytes()


def _parameters(loss: Callable[..., Any]) -> tuple[set[str], bool]:
    """Return the names of a loss's parameters, and whether it takes three required positional ones."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {"sample_weight", "class_weight"}, False
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {"sample_weight", "class_weight"}, False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return {p.name for p in parameters}, len(required) == 3
