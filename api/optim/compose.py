"""Composed optimizers: transformations of the gradients before one, averages of the parameters after it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from treepie.autodiff import Tensor, ops

from ..pickling import Constructed, constructor
from .arguments import Mask, Tree, check, masked
from .flat import FlatGroup, LeafState, joined
from .gradients import norm_of
from .optimizer import Leaf, Moments, Optimizer
from .sparse import Gradient, check_sparse, mapped

#: (parameters, gradients, whether each has weight decay) -> gradients; all of groups, flat.
Change = Callable[[Sequence[Tensor], Sequence[Gradient], Sequence[bool]], list[Gradient]]


class Transform(Constructed):
    """A transformation of gradients, for `chain`; `clip_norm` and others return one.

    lazy: whether it takes gradients of tables, which are sets of rows; zeros stay zeros.
    """

    def __init__(
        self, name: str, change: Change, elementwise: bool = True, mask: Mask = None, lazy: bool = True
    ) -> None:
        self.name, self.change, self.elementwise, self.mask = name, change, elementwise, mask
        self.lazy = lazy


class Ema(Constructed):
    """A moving average of the parameters, for `chain`; `ema` returns one."""

    name = "ema"

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def advance(self, average: Tensor, new: Tensor) -> Tensor:
        """Return the average after a step. new: the parameters after it."""
        return self.decay * average + (1.0 - self.decay) * new


@constructor
def clip_norm(max_norm: float) -> Transform:
    """Return the transformation that scales gradients down to a global norm (Pascanu et al. 2013).

    max_norm: the largest norm of all gradients together; of a part's in `partition`. ValueError unless it is
        positive.

    As `fit(clip_norm=)` does, with the same bits.

    >>> import treepie as tp
    >>> opt = tp.optim.chain(tp.optim.clip_norm(1.0), tp.optim.adamw(1e-3))
    """
    _check_positive("clip_norm", "max_norm", max_norm)

    def change(values: Sequence[Tensor], grads: Sequence[Gradient], decays: Sequence[bool]) -> list[Gradient]:
        scale = ops.minimum(max_norm / norm_of(grads), 1.0)
        return [g * scale.astype(g.dtype) for g in grads]

    return Transform("clip_norm", change, elementwise=False)


@constructor
def clip_value(max_value: float) -> Transform:
    """Return the transformation that clips each element of the gradients to [-max_value, max_value].

    Raises ValueError for a max_value that is not positive.

    >>> import treepie as tp
    >>> opt = tp.optim.chain(tp.optim.clip_value(0.5), tp.optim.sgd(0.1))
    >>> opt.update(opt.init([tp.ones(2)]), [tp.ones(2)], [tp.tensor([3.0, -0.1])])[0][0].tolist()
    [0.9499..., 1.0099...]
    """
    _check_positive("clip_value", "max_value", max_value)

    def clipped(g: Tensor) -> Tensor:
        return ops.clip(g, -max_value, max_value)

    return Transform("clip_value", lambda values, grads, _: [mapped(clipped, g) for g in grads])


@constructor
def add_decayed_weights(rate: float, mask: Mask = None) -> Transform:
    """Return the transformation that adds rate * parameter to the gradients: L2 regularization.

    The optimizer after it scales the sum, as a penalty of rate / 2 * |parameters|**2 in the loss. Decoupled
    weight decay is an argument of the optimizers (Loshchilov & Hutter 2019).

    rate: 0 or more, else ValueError.  mask: which leaves it is added to, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.chain(tp.optim.add_decayed_weights(1e-4), tp.optim.sgd(0.1, momentum=0.9))
    """
    check("add_decayed_weights", rate=(rate, 0.0, math.inf))

    def change(values: Sequence[Tensor], grads: Sequence[Gradient], decays: Sequence[bool]) -> list[Gradient]:
        rows = zip(values, grads, decays, strict=True)
        return [g + rate * p if decays and isinstance(g, Tensor) else g for p, g, decays in rows]

    return Transform("add_decayed_weights", change, mask=mask, lazy=False)


@constructor
def ema(decay: float) -> Ema:
    """Return the exponential moving average of the parameters, for the end of a `chain`.

        average = decay * average + (1 - decay) * p after each step, from the first parameters on

    `ema_params` returns the averages of a state, which often generalize better (Polyak & Juditsky 1992).
    For loops of your own, and where averages are to be in the optimizer's state; for `fit`,
    `tp.callback.ema` averages with any optimizer, and returns the average at the end.

    decay: in [0, 1), else ValueError.

    >>> import treepie as tp
    >>> optimizer = tp.optim.chain(tp.optim.adamw(1e-3), tp.optim.ema(0.999))
    """
    check("ema", decay=(decay, 0.0, 1.0))
    return Ema(decay)


def _check_positive(name: str, argument: str, value: float) -> None:
    check(name, **{argument: (value, 0.0, math.inf)})
    if value == 0:
        raise ValueError(f"{name}: {argument} is 0, expected a positive number")


class Chain(Optimizer):
    """Transformations of gradients, an optimizer, and averages of the parameters.

    A leaf's label is that of the optimizer, with one for each transformation that has a mask.
    """

    def __init__(self, before: Sequence[Transform], inner: Optimizer, after: Sequence[Ema]) -> None:
        self.before, self.inner, self.after = list(before), inner, list(after)
        names = [t.name for t in before] + [inner.name] + [average.name for average in after]
        self.name = f"chain({', '.join(names)})"
        self.elementwise = inner.elementwise and all(t.elementwise for t in before)
        self._masked = [t for t in self.before if t.mask is not None]

    def keep(self, params: Tree, leaves: Sequence[Leaf]) -> list[LeafState]:
        """Return what the optimizer keeps, and an average for each `ema`."""
        kept = self.inner.keep(params, leaves)
        numbers = [k for k, _, _ in leaves]
        marks = [masked(t.name, t.mask, params, numbers) for t in self._masked]
        other = [part.name for part in (*self.before, *self.after) if not getattr(part, "lazy", False)]
        for state, (_, path, _) in zip(kept, leaves, strict=True):
            check_sparse(self.name, path, not (state.sparse and other), other[0] if other else "")
        for k, (state, (_, _, value)) in enumerate(zip(kept, leaves, strict=True)):
            label = (state.label, *[row[k] for row in marks]) if marks else state.label
            kept[k] = state._replace(label=label)
            if self.after and state.moments is not None:
                moments = (*state.moments, *[value.shape] * len(self.after))
                kept[k] = LeafState(label, moments, len(moments) - 1, state.sparse)
        return kept

    def start(self, group: FlatGroup, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the optimizer's moments, and the parameters as their averages."""
        (inner,) = self._inner_groups([group])
        return [*self.inner.start(inner, leaves), *[joined(leaves) for _ in self.after]]

    def _inner_groups(self, groups: Sequence[FlatGroup]) -> list[FlatGroup]:
        """Return the groups with the optimizer's own labels."""
        if not self._masked:
            return list(groups)
        return [dataclasses.replace(group, label=group.label[0]) for group in groups]  # type: ignore[index]

    def advance_groups(
        self,
        count: Any,
        groups: Sequence[FlatGroup],
        values: Sequence[Tensor],
        grads: Sequence[Gradient],
        moments: Sequence[Moments],
        apply: bool,
    ) -> tuple[list[Tensor], list[Moments]]:
        """Transform the gradients, update by them, then average."""
        for transform in self.before:
            place = 1 + self._masked.index(transform) if transform in self._masked else 0
            decays = [bool(group.label[place]) if place else True for group in groups]  # type: ignore[index]
            grads = transform.change(values, grads, decays)
        n = len(self.after)
        own = [row[: len(row) - n] for row in moments]
        first, rows = self.inner.advance_groups(count, self._inner_groups(groups), values, grads, own, apply)
        if not n:
            return first, rows
        after = []
        for p, new, row, old in zip(values, first, rows, moments, strict=True):
            updated = new if apply else p + new
            averages = zip(self.after, old[len(old) - n :], strict=True)
            after.append((*row, *[part.advance(average, updated) for part, average in averages]))
        return first, after


@constructor
def chain(*parts: Transform | Optimizer | Ema) -> Optimizer:
    """Return an optimizer with transformations of the gradients before it, and `ema` after it.

    parts: any number of `clip_norm`, `clip_value` and `add_decayed_weights`, which gradients pass in this
        order; one optimizer; then `ema` or none.

    Raises TypeError or ValueError for other parts, or another order.

    >>> import treepie as tp
    >>> opt = tp.optim.chain(tp.optim.clip_norm(1.0), tp.optim.adamw(1e-3), tp.optim.ema(0.999))
    >>> opt.init({"w": tp.ones(2)}).optimizer
    'chain(clip_norm, adamw, ema)'
    """
    for k, part in enumerate(parts, 1):
        if not isinstance(part, Transform | Optimizer | Ema):
            kind = part.__name__ if callable(part) and hasattr(part, "__name__") else type(part).__name__
            raise TypeError(
                f"chain: part {k} is a {type(part).__name__} ({kind}), expected a transformation such as "
                "clip_norm(1.0), or an optimizer such as adam(1e-3)"
            )
    names = ", ".join(part.name for part in parts)
    optimizers = [k for k, part in enumerate(parts) if isinstance(part, Optimizer)]
    if len(optimizers) != 1:
        raise ValueError(
            f"chain: the parts are ({names}), {len(optimizers)} optimizers, expected one, such as "
            "chain(clip_norm(1.0), adam(1e-3)); partition has an optimizer for each part of the parameters"
        )
    (k,) = optimizers
    before, inner, after = parts[:k], parts[k], parts[k + 1 :]
    if not all(isinstance(part, Transform) for part in before) or not all(isinstance(p, Ema) for p in after):
        raise ValueError(
            f"chain: the parts are ({names}), expected transformations of gradients, then an optimizer, then "
            "ema"
        )
    if len(after) > 1:
        raise ValueError(f"chain: the parts are ({names}), expected at most one ema")
    return Chain(before, inner, after)  # type: ignore[arg-type]
