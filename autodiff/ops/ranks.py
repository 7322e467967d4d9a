"""Sums over ranks, inside of functions that are differentiated and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.program import Launch, Operand, Spec, host_call

from ..arguments import as_float
from ..table import Attributes, BoundArguments, Case, op
from ..tensor import Tensor, TensorLike


class Ranks:
    """A communicator as an attribute of a call: equal to itself alone, whatever its class defines."""

    __slots__ = ("comm",)

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same communicator."""
        return type(other) is Ranks and other.comm is self.comm

    def __hash__(self) -> int:
        """Return the hash of the communicator's identity."""
        return id(self.comm)

    def __repr__(self) -> str:
        """Show the communicator."""
        return repr(self.comm)


class EqualRanks:
    """A communicator of one process for the row's tests: `size` ranks that all have the same arrays."""

    def __init__(self, size: int) -> None:
        self.size = size

    def sum(self, array: NDArray[Any]) -> None:
        """Replace an array by its sum over ranks."""
        array *= self.size


def _plan(inputs: list[Operand], outputs: list[Operand], scratch: Any, comm: Ranks) -> list[Launch]:
    def add_up(x: NDArray[Any], out: NDArray[Any]) -> None:
        out[...] = x
        comm.comm.sum(out)

    return [host_call(add_up, *inputs, *outputs)]


def _vjp(g: Tensor, y: Tensor, x: Tensor, comm: Ranks) -> Tensor:
    return rank_sum(g, comm)


_TWO: Attributes = {"comm": EqualRanks(2)}


@op(
    signature="(...)->(...)",
    infer=lambda x, comm: [Spec(x.shape, x.dtype)],
    plan=_plan,
    vjp=_vjp,
    oracle=lambda x, comm: np.asarray(x) * comm.size,
    cases=[
        Case(((3, 5),), _TWO),
        Case(((),), _TWO),
        Case(((0, 3),), _TWO),
        Case(((7,),), {"comm": EqualRanks(3)}),
    ],
    wrong=Case(((3, 5),), {"comm": None}),
    large=Case(((1000, 1000),), _TWO),
    ulp=1,
    effect=True,
)
def rank_sum(x: TensorLike, comm: Any) -> BoundArguments:
    """Return the sum over ranks of an array of one shape and dtype; of no elements, without communication.

    comm: its method `sum` replaces a C-contiguous array by its sum over ranks. Ranks make the same calls in
        the same order.

    The loss that gradients are taken of is the sum of the ranks' losses, so the upstream gradient is summed
    over ranks too. An exception of `sum` is raised unchanged, in a program too.
    """
    ranks = comm if isinstance(comm, Ranks) else Ranks(comm)
    if not callable(getattr(ranks.comm, "sum", None)):
        raise TypeError(f"rank_sum: comm is {ranks!r}, expected a communicator, with a method sum(array)")
    return (as_float("rank_sum", x),), {"comm": ranks}
