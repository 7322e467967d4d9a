"""The state of an optimizer, and the checks that it is not another's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        """For each moment a tree like the parameters, whose leaves are views of the buffers."""
        return tuple(self.layout.tree(flat) for flat in self.buffers) if self.layout else ()

    def to_trees(self) -> tuple[int, list[Tree]]:
        """Return the count and a tree for each moment, to save; `Optimizer.state_of_trees` is the inverse."""
        return self.count, list(self.moments)

    def with_trees(self, count: int, trees: list[Tree]) -> OptState:
        """Return a state of the same layout with another count and other moments."""
        if self.layout is None:
            return OptState(count, (), None)
        rows = [[as_tensor(x) for x in ptree.leaves(tree)] for tree in trees]
        return OptState(count, tuple(self.layout.flat(row) for row in rows), self.layout)


register_state(OptState)


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


def check_mask(function: str, layout: FlatLayout, expected: FlatLayout | None) -> None:
    """Raise ValueError, with the path, where a state was made with another mask. expected: None for all."""
    mine = [True] * len(layout.shapes) if expected is None else expected.decays
    for (path, _), decays, other in zip(
        ptree.flatten_with_paths(layout.numbered), mine, layout.decays, strict=False
    ):
        if decays != other:
            raise ValueError(
                f"{function}: the state was made with a mask that is {other} for {path!r}, expected {decays} "
                "(optimizer.state_of_trees(*state.to_trees()) converts it)"
            )
