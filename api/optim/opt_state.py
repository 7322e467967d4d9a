"""The state of an optimizer, and the checks that it is not another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.ptree.structure import register_state

from ..display import value_text
from .flat import FlatLayout

Tree = Any


@dataclass(frozen=True)
class OptState:
    """The number of steps so far, and the rule's moments, in flat buffers.

    >>> import treepie as tp
    >>> state = tp.optim.sgd(0.1, momentum=0.9).init({"w": tp.ones(2)})
    >>> state.count, state.moments[0]["w"].tolist()
    (0, [0.0, 0.0])
    """

    count: int
    buffers: tuple[tuple[Tensor, ...], ...]
    layout: FlatLayout | None

    def __repr__(self) -> str:
        """Show the optimizer's name, the count and the number of moments."""
        optimizer = self.optimizer or "unknown"
        return f"OptState(optimizer={optimizer}, count={value_text(self.count)}, moments={len(self.buffers)})"

    @property
    def optimizer(self) -> str:
        """The name of the optimizer, such as "adam"; "" where the state does not have it."""
        return self.layout.optimizer if self.layout else ""

    @property
    def moments(self) -> tuple[Tree, ...]:
        """For each moment a tree like the parameters, whose leaves are views of the buffers.

        A parameter without the moment, such as one that is frozen, has an empty leaf.
        """
        if self.layout is None:
            return ()
        return tuple(self.layout.moment_tree(k, flat) for k, flat in enumerate(self.buffers))

    def to_trees(self) -> tuple[int, list[Tree]]:
        """Return the count and a tree for each moment, to save; `Optimizer.state_of_trees` is the inverse."""
        return self.count, list(self.moments)

    def with_trees(self, count: int, trees: list[Tree]) -> OptState:
        """Return a state of the same layout with another count and other moments."""
        if self.layout is None:
            return OptState(count, (), None)
        rows = [[as_tensor(x) for x in ptree.leaves(tree)] for tree in trees]
        return OptState(count, tuple(self.layout.flat_trained(row) for row in rows), self.layout)


register_state(OptState)


class _Variables(Protocol):
    @property
    def params(self) -> Any: ...


class Trained(Protocol):
    """A state of training, such as `TrainState`."""

    @property
    def vars(self) -> _Variables:
        """The model's variables."""

    @property
    def opt_state(self) -> OptState:
        """The optimizer's state."""


def ema_params(st: Trained) -> Tree:
    """Return the moving averages of the parameters that `ema` has kept in a training state.

    st: a `TrainState` of an optimizer with `ema`. Parameters that are frozen are their own averages.

    Raises ValueError for a state of an optimizer without `ema`.

    >>> import treepie as tp
    >>> optimizer = tp.optim.chain(tp.optim.adam(1e-3), tp.optim.ema(0.999))
    >>> trainer = tp.Trainer(tp.layer.linear(2, 1), optimizer)
    >>> st = trainer.init(rngs=tp.rng.key(0))
    >>> averaged = trainer.make_state(st.vars.with_params(tp.optim.ema_params(st)))
    >>> trainer.predict(averaged, tp.ones((3, 2))).shape
    (3, 1)
    """
    if not hasattr(st, "opt_state"):
        raise TypeError(f"optim.ema_params: st is a {type(st).__name__}, expected a TrainState")
    state: OptState = st.opt_state
    layout = state.layout
    groups = layout.groups if layout is not None else []
    if layout is None or all(group.average is None for group in groups):
        raise ValueError(
            f"optim.ema_params: the state is of {state.optimizer or 'an optimizer'}, which keeps no "
            "averages, expected one with ema, such as chain(adam(1e-3), ema(0.999))"
        )
    leaves = [as_tensor(x) for x in ptree.leaves(st.vars.params)]
    moments = [ptree.leaves(tree) for tree in state.moments]
    for group in groups:
        if group.average is not None:
            for k in group.leaves:
                leaves[k] = moments[group.average][k]
    return layout.around(leaves)


def described(optimizer: str, moments: int) -> str:
    """Return an optimizer for a message; its name is empty where a state does not have it."""
    return f"{optimizer or 'an optimizer'} with {moments} moment{'s' * (moments != 1)}"


def check_layout(
    function: str, optimizer: str, moments: int, layout: FlatLayout | None, actual_moments: int
) -> None:
    """Raise ValueError for a state of an optimizer of another name or with another number of moments."""
    name = layout.optimizer if layout is not None else ""
    if actual_moments != moments or name not in ("", optimizer):
        raise ValueError(
            f"{function}: the state is of {described(name, actual_moments)}, expected one of "
            f"{described(optimizer, moments)}"
        )


def check_labels(function: str, layout: FlatLayout, expected: FlatLayout | None) -> None:
    """Raise ValueError, with the path, where a state was made with another mask or other parts.

    expected: None for a mask of all.
    """
    mine = [True] * len(layout.shapes) if expected is None else expected.labels
    for (path, _), label, other in zip(
        ptree.flatten_with_paths(layout.numbered), mine, layout.labels, strict=False
    ):
        if label != other:
            names = [x[0] if isinstance(x, tuple) else x for x in (other, label)]
            parts = names[0] != names[1] and all(isinstance(name, str) for name in names)
            what, was, now = ("in the part", *names) if parts else ("made with a mask that is", other, label)
            raise ValueError(
                f"{function}: the state was {what} {was} for {path!r}, expected {now} "
                "(optimizer.state_of_trees(*state.to_trees()) converts it)"
            )
