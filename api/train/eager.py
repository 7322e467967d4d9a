"""Losses and gradients of training steps that are taken op by op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.transform import check_scalar, training_gradients, without_history

from ..layer import Context, Layer, Vars
from .inputs import Part, StepInputs
from .terms import terms_of


def loss_and_gradients(
    model: Layer,
    vars: Vars,
    x: Any,
    loss: Callable[..., Tensor],
    target: tuple[Any, ...],
    training: bool,
    key: Tensor | None,
    ctx: Context | None,
) -> tuple[Tensor, Any, Any]:
    """Return loss(model(x), *target), its gradients and the model's new state, op by op."""

    def objective(params: Any) -> tuple[Tensor, Any]:
        out, after = model.apply(vars.with_params(params), x, training, key, ctx)
        return check_scalar("Trainer", loss(out, *target), "loss"), after.state

    return training_gradients(objective, vars.params)


def weighted_gradients(model: Layer, vars: Vars, inputs: StepInputs, key: Tensor | None) -> Any:
    """Return the loss of a part of a batch, its weight, the gradients times it, and the new state."""
    part = inputs.part
    assert isinstance(part, Part)

    def objective(params: Any) -> tuple[Tensor, Any]:
        out, after = model.apply(vars.with_params(params), inputs.x, inputs.training, key, inputs.ctx)
        loss = check_scalar("Trainer", inputs.loss(out, *inputs.target), "loss")
        weight = weight_of(loss, part)
        return loss * weight, (loss, weight, after.state)

    _, grads, (loss, weight, state) = training_gradients(objective, vars.params)
    return loss, weight, grads, state


def weight_of(loss: Tensor, part: Part) -> Tensor:
    """Return the weight of a part's loss: the number of terms that it is a mean over, or of examples."""
    terms = terms_of(loss) if part.counted else None
    return as_tensor(np.array(part.weight, loss.dtype)) if terms is None else without_history(terms)
