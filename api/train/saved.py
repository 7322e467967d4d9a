"""Values in checkpoints: numbers and texts as JSON, tensors and training states as tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree, tensor
from treepie.autodiff.arguments import as_tensor

from ..layer import Vars
from .state import TrainState


def encode(what: str, value: Any, tensors: list[Tensor]) -> Any:
    """Return a value for JSON; its tensors are appended to a list.

    what: the value's name in errors.  value: None, numbers, texts, tensors, training states, variables, and
        lists, tuples and dicts of them.

    Raises TypeError for others.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(what, x, tensors) for x in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(what, x, tensors) for x in value]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode(what, x, tensors) for k, x in value.items()}}
    if isinstance(value, Tensor | np.ndarray):
        return {"tensor": _append(tensors, [as_tensor(value)])}
    if isinstance(value, Vars):
        return {"vars": _append(tensors, ptree.leaves((value.params, value.state)))}
    if isinstance(value, TrainState):
        count, moments = value.opt_state.to_trees()
        first = _append(tensors, ptree.leaves((value.vars.params, value.vars.state, moments)))
        return {"state": first, "step": value.step, "count": count}
    kind = "dict with other keys than texts" if isinstance(value, dict) else type(value).__name__
    raise TypeError(
        f"{what} has a {kind}, expected None, numbers, texts, tensors, states of training, and lists, tuples "
        "and dicts of them"
    )


def decode(value: Any, tensor_at: Callable[[int], Any], like: TrainState) -> Any:
    """Return the value that `encode` has made JSON of.

    tensor_at: returns the array with an index.  like: has the structure of training states.
    """
    if isinstance(value, list):
        return [decode(x, tensor_at, like) for x in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(decode(x, tensor_at, like) for x in value["tuple"])
    if "dict" in value:
        return {k: decode(x, tensor_at, like) for k, x in value["dict"].items()}
    if "tensor" in value:
        return tensor(tensor_at(value["tensor"]))
    arrays = (tensor_at(k) for k in itertools.count(value["vars" if "vars" in value else "state"]))

    def fill(tree: Any) -> Any:
        return ptree.map(lambda leaf: tensor(next(arrays), as_tensor(leaf).dtype), tree)

    vars = like.vars.with_params(fill(like.vars.params)).with_state(fill(like.vars.state))
    if "vars" in value:
        return vars
    moments = [fill(tree) for tree in like.opt_state.moments]
    return TrainState(vars, like.opt_state.with_trees(value["count"], moments), value["step"])


def reader(arrays: Mapping[str, Any], prefix: str) -> Callable[[int], Any]:
    """Return the function from an index to an array that is named by it."""
    return lambda k: arrays[f"{prefix}.{k}"]


def _append(tensors: list[Tensor], new: list[Any]) -> int:
    """Append tensors; return the index of the first."""
    tensors += [as_tensor(t) for t in new]
    return len(tensors) - len(new)
