"""The gradient check: derivatives along random directions against central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ptree
from .arguments import as_tensor, integer
from .ptree import Tree
from .tensor import Tensor, TensorLike, float64
from .transform import vjp

#: Half the distance of the central difference. Its error is about 1e-12 for the third derivative, and
#: 1e-10 for float64's rounding, of functions and derivatives near 1.
_EPS = 1e-6


#: The highest order of derivatives that is checked: each takes a few times as long as the one below.
_MOST_ORDERS = 10


def check_grads(
    f: Callable[..., Tree],
    args: tuple[Tree, ...],
    order: int = 1,
    rtol: float = 1e-6,
    reference: Callable[..., Tree] | None = None,
    seed: int = 0,
) -> None:
    """Check the gradients of f at args against central differences.

    f: takes trees of arrays, returns a tree of tensors. Float leaves are converted to float64 first.
    args: the arguments of f, a tuple of trees.
    order: 2 checks the gradient of the gradient too, and so on.
    rtol: allowed difference, relative to the larger of 1 and the derivative.
    reference: computes the differences instead of f, an independent implementation of it.
    seed: of the random direction. One is enough: <g, J v> is measured by two evaluations, <vjp(g), v> is
        exact, and a wrong entry of J changes their difference with probability 1.

    Raises AssertionError with the two numbers where they differ, ValueError for an order below 1 or above 10
    and for a negative rtol or seed.

    >>> import treepie as tp
    >>> tp.check_grads(lambda x: tp.sin(x).sum(), (tp.tensor([0.5, 1.0]),), order=2)
    """
    if not isinstance(args, tuple | list):
        raise TypeError(f"check_grads: args is {args!r}, expected a tuple of the arguments of f")
    orders = integer("check_grads", "order", order, least=1, most=_MOST_ORDERS)
    number = integer("check_grads", "seed", seed, least=0)
    if not rtol >= 0:
        raise ValueError(f"check_grads: rtol is {rtol}, expected a number of 0 or more")
    primals = tuple(ptree.map(_wide, a) for a in args)
    _check(f, primals, orders, rtol, reference or f, np.random.default_rng(number), "f")


def _wide(x: TensorLike) -> Tensor:
    t = as_tensor(x)
    return Tensor(t.array.astype(float64), None) if t.dtype.kind == "f" else t


def _check(
    f: Callable[..., Tree],
    primals: tuple[Tree, ...],
    order: int,
    rtol: float,
    reference: Callable[..., Tree],
    rng: np.random.Generator,
    name: str,
) -> None:
    leaves, rebuild = ptree.flatten(primals)
    floats = [k for k, x in enumerate(leaves) if x.dtype.kind == "f"]

    def of_floats(function: Callable[..., Tree]) -> Callable[..., list[Tensor]]:
        """Return a function as one of the float leaves alone, giving a list of float tensors."""

        def flat(*values: Any) -> list[Tensor]:
            full = list(leaves)
            for k, v in zip(floats, values, strict=True):
                full[k] = v
            out = [as_tensor(x) for x in ptree.leaves(function(*rebuild(full)))]
            return [x for x in out if x.dtype.kind == "f"]

        return flat

    at = [leaves[k] for k in floats]
    direction = [rng.standard_normal(x.shape) for x in at]
    result, pullback = vjp(of_floats(f), *at)
    weights = [rng.standard_normal(y.shape) for y in result]
    exact = 0.0
    for gradient, v in zip(pullback([Tensor(np.array(w), None) for w in weights]), direction, strict=True):
        exact += float(np.sum(gradient.array * v))

    def moved(sign: float) -> float:
        values = [
            Tensor(np.asarray(x.array + sign * _EPS * v), None) for x, v in zip(at, direction, strict=True)
        ]
        outputs = of_floats(reference)(*values)
        return sum(float(np.sum(w * y.array)) for w, y in zip(weights, outputs, strict=True))

    numeric = (moved(1.0) - moved(-1.0)) / (2 * _EPS)
    if not abs(numeric - exact) <= rtol * max(1.0, abs(numeric)):
        raise AssertionError(
            f"check_grads: the derivative of {name} along a random direction is {numeric!r} by central "
            f"differences, {exact!r} by its gradient rule"
        )
    if order > 1:

        def gradient_of(*values: Any) -> Tree:
            _, back = vjp(of_floats(f), *values)
            return list(back([Tensor(np.array(w), None) for w in weights]))

        _check(gradient_of, tuple(at), order - 1, rtol, gradient_of, rng, f"the gradient of {name}")
