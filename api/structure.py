"""Trees of whatever a user's function takes and gives, as a structure and tensors, and back.

Besides the trees of `ptree`: the states of models, optimizers and training, whose counts of steps are another
in every call, and numbers, strings and the like, which belong to the structure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.capture import Counter

from .closure import PLAIN, Same, is_fixed
from .layer import Context, Vars
from .optim import OptState
from .state import TrainState

#: Fields that count steps.
_COUNTS = {(OptState, "count"), (TrainState, "step")}
_STATES = (Vars, OptState, TrainState, Context)


@dataclass
class Flat:
    """The tensors of a tree, its counts of steps, and its structure, hashable: all else."""

    tensors: list[Tensor] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    structure: Hashable = None


def flatten(name: str, tree: Any) -> Flat:
    """Take a tree apart; raise TypeError, which names the function and the path, where it can not be."""
    flat = Flat()
    flat.structure = _taken(name, tree, "", flat)
    return flat


def _taken(name: str, x: Any, path: str, flat: Flat) -> Hashable:
    kind = type(x)
    if kind is Tensor or isinstance(x, np.ndarray | np.generic):
        flat.tensors.append(as_tensor(x))
        return Tensor
    if isinstance(x, dict):
        parts = tuple(_taken(name, v, f"{path}[{k!r}]", flat) for k, v in x.items())
        return (kind, tuple(x), parts)
    if isinstance(x, list | tuple):
        return (kind, len(x), tuple(_taken(name, v, f"{path}[{k}]", flat) for k, v in enumerate(x)))
    if kind in _STATES or ptree.is_registered(x):
        fields: list[Hashable] = []
        for f in dataclasses.fields(x):
            value = getattr(x, f.name)
            if (kind, f.name) in _COUNTS:
                flat.counts.append(value)
                fields.append(Counter)
            else:
                fields.append(_taken(name, value, f"{path}.{f.name}", flat))
        return (kind, None, tuple(fields))
    if kind in PLAIN:
        return ("value", kind, x)
    if kind is float:
        return ("value", kind, repr(x))  # which tells -0.0 from 0.0, and a NaN is itself
    if is_fixed(x):
        return ("value", Same, Same(x))
    raise TypeError(
        f"{name}{path} is a {kind.__name__}, expected a tree of tensors (and numbers, strings or None)"
    )


def rebuild(structure: Any, tensors: Iterator[Any], counts: Iterator[Any]) -> Any:
    """Put a tree together again around other tensors and counts."""
    if structure is Tensor:
        return next(tensors)
    if structure is Counter:
        return next(counts)
    kind, keys, parts = structure
    if kind == "value":
        return float(parts) if keys is float else parts.is_ if keys is Same else parts
    children = [rebuild(p, tensors, counts) for p in parts]
    if issubclass(kind, dict):
        return kind(zip(keys, children, strict=True))
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*children)
    return kind(children) if issubclass(kind, list | tuple) else kind(*children)
