"""Optimizers of parts of the parameters: groups with hyperparameters of their own, and frozen parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treepie.autodiff import Tensor

from ..errors import did_you_mean, nearest
from ..pickling import constructor
from .arguments import Tree
from .flat import FlatGroup, LeafState
from .optimizer import Leaf, Moments, Optimizer
from .sparse import Gradient


class Frozen(Optimizer):
    """Leaves parameters as they are."""

    name, elementwise, moments = "frozen", True, None

    def __init__(self) -> None:
        """Take nothing."""

    def keep(self, params: Tree, leaves: Sequence[Leaf]) -> list[LeafState]:
        """Return nothing for each leaf."""
        return [LeafState(None, None) for _ in leaves]


@constructor
def frozen() -> Optimizer:
    """Return the optimizer of parameters that do not change, for `partition`.

    Their gradients are not computed, and no decay moves them.

    >>> import treepie as tp
    >>> parts = {"body": tp.optim.frozen(), "head": tp.optim.adam(1e-3)}
    >>> opt = tp.optim.partition(parts, {"": "body", "layers.2": "head"})
    """
    return Frozen()


Labels = Callable[[str], str] | Mapping[str, str]


class Partition(Optimizer):
    """An optimizer for each part of the parameters. A leaf's label is its part's with the optimizer's."""

    def __init__(self, optimizers: Mapping[str, Optimizer], labels: Labels) -> None:
        self.optimizers, self.labels = dict(optimizers), labels
        self.name = f"partition({', '.join(f'{k}={part.name}' for k, part in optimizers.items())})"
        self.elementwise = all(part.elementwise for part in optimizers.values())

    def keep(self, params: Tree, leaves: Sequence[Leaf]) -> list[LeafState]:
        """Return what each leaf's optimizer keeps."""
        names = labels_of(self.labels, list(self.optimizers), [path for _, path, _ in leaves])
        kept: list[Any] = [None] * len(leaves)
        for name, part in self.optimizers.items():
            own = [k for k, label in enumerate(names) if label == name]
            for k, state in zip(own, part.keep(params, [leaves[k] for k in own]), strict=True):
                kept[k] = state._replace(label=(name, state.label))
        return kept

    def start(self, group: FlatGroup, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the moments of the group's optimizer."""
        label: Any = group.label
        name, own = label
        return self.optimizers[name].start(dataclasses.replace(group, label=own), leaves)

    def advance_groups(
        self,
        count: Any,
        groups: Sequence[FlatGroup],
        values: Sequence[Tensor],
        grads: Sequence[Gradient],
        moments: Sequence[Moments],
        apply: bool,
    ) -> tuple[list[Tensor], list[Moments]]:
        """Return the results of each group's optimizer."""
        first: list[Any] = [None] * len(groups)
        after: list[Any] = [None] * len(groups)
        for name, part in self.optimizers.items():
            own = [g for g, group in enumerate(groups) if group.label[0] == name]  # type: ignore[index]
            if not own:
                continue
            inner = [dataclasses.replace(groups[g], label=groups[g].label[1]) for g in own]  # type: ignore[index]
            p, d = [values[g] for g in own], [grads[g] for g in own]
            results = part.advance_groups(count, inner, p, d, [moments[g] for g in own], apply)
            for g, new, state in zip(own, *results, strict=True):
                first[g], after[g] = new, state
        return first, after


@constructor
def partition(optimizers: Mapping[str, Optimizer], labels: Labels) -> Optimizer:
    """Return an optimizer with parts of the parameters, each with its own optimizer: groups, or frozen parts.

    optimizers: label -> optimizer.
    labels: path of a parameter -> label: a function, or a dict of the beginnings of paths, of which the
        longest decides and "" is that of all. `tp.ptree.flatten_with_paths(params)` lists the paths.

    A mask in an optimizer is of the whole tree of parameters. Running statistics of a frozen part, such as
    batch norm's, are not parameters: they change in training.

    Raises ValueError, at the latest in `init`, for an unknown label, for a parameter without one, and for a
    label or beginning of a path that no parameter has.

    >>> import treepie as tp
    >>> params = {"body": {"w": tp.ones(2)}, "head": {"w": tp.ones(2)}}
    >>> parts = {"slow": tp.optim.sgd(0.01), "fast": tp.optim.sgd(0.5)}
    >>> opt = tp.optim.partition(parts, {"body": "slow", "head": "fast"})
    >>> tp.ptree.leaves(opt.update(opt.init(params), params, params)[0])[1].tolist()
    [0.5, 0.5]
    """
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(
            f"partition: optimizers is {type(optimizers).__name__}, expected a dict such as "
            "{'body': frozen(), 'head': adam(1e-3)}"
        )
    for name, part in optimizers.items():
        if not isinstance(part, Optimizer):
            raise TypeError(f"partition: {name!r} is a {type(part).__name__}, expected an optimizer")
    if isinstance(labels, Mapping):
        for prefix, label in labels.items():
            _check_label(f"the label of {prefix!r}", label, list(optimizers))
    elif not callable(labels):
        raise TypeError(
            f"partition: labels is a {type(labels).__name__}, expected a function path -> label or a dict"
        )
    return Partition(optimizers, labels)


def _check_label(what: str, label: Any, names: Sequence[str]) -> str:
    if label not in names:
        near = did_you_mean(str(label), names)
        hint = f" ({near})" if near else ""
        raise ValueError(
            f"partition: {what} is {label!r}, expected one of {', '.join(map(repr, names))}{hint}"
        )
    return label  # type: ignore[no-any-return]


def labels_of(labels: Labels, names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return the label of each path; see `partition`."""
    if isinstance(labels, Mapping):
        result = _of_prefixes(labels, paths)
    else:
        result = [_check_label(f"the label of the parameter {path!r}", labels(path), names) for path in paths]
    unused = [name for name in names if name not in result]
    if unused:
        raise ValueError(
            f"partition: no parameter has the label {unused[0]!r}; the parameters are {_listed(paths)}"
        )
    return result


def _of_prefixes(labels: Mapping[str, str], paths: Sequence[str]) -> list[str]:
    result, used = [], set()
    for path in paths:
        prefixes = [p for p in labels if not p or path == p or path.startswith((f"{p}.", f"{p}["))]
        if not prefixes:
            raise ValueError(
                f"partition: labels has no beginning of the path {path!r}, expected one, or '' for all others"
            )
        used.update(prefixes)
        result.append(labels[max(prefixes, key=len)])
    for prefix in labels:
        if prefix and prefix not in used:
            near = nearest(prefix, paths, 0.5)
            hint = f" (did you mean the beginning of {near!r}?)" if near else ""
            raise ValueError(
                f"partition: no parameter's path begins with {prefix!r} in labels{hint}; the parameters are "
                f"{_listed(paths)}"
            )
    return result


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(map(repr, paths[:8])) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
