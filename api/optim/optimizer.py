"""The interface of optimizers, and optimizers that are two functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from treepie.autodiff import Tensor, ops, ptree, zeros
from treepie.autodiff.arguments import as_tensor, described
from treepie.autodiff.ptree.structure import register_static
from treepie.autodiff.tensor import TensorLike
from treepie.autodiff.trace.number import computed

from ..pickling import Constructed
from .arguments import checked_numbers
from .flat import FlatGroup, FlatLayout, LeafState, joined
from .opt_state import OptState as OptState, check_labels, check_layout
from .rated import RatedStep
from .sparse import Gradient, check_sparse, row_gradients

Tree = Any
#: The number, the path and the value of a parameter.
Leaf = tuple[int, str, Tensor]
Moments = tuple[Tensor, ...]


def step_number(step: int) -> tuple[float, ...]:
    """Return the number of a step, the only hyperparameter of an optimizer that names no others."""
    return (step,)


class Optimizer(Constructed):
    """An optimizer: `sgd`, `adam`, `chain`, `partition` and the others return one, or two functions of yours.

    init: parameter -> its state, a tuple of tensors of its dtype.
    update: (parameter, gradient, state, *numbers) -> (change, new state); the change is added to the
        parameter. Both are pure functions of tensors, called for each parameter and traced into the program
        of a step.
    numbers: 1-based step -> a tuple of floats, such as the learning rate of a schedule and bias corrections,
        which `update` takes as tensors of shape (); by default the step alone.
    elementwise: whether `update` computes each element by itself. It is then called once for all parameters
        of a dtype, flat, and ranks may share its work.
    name: shown in messages; a state or checkpoint of an optimizer of another name is refused.

    Functions at the top level of a module can be pickled.

    >>> import treepie as tp
    >>> def init(p):
    ...     return (tp.zeros_like(p),)
    >>> def update(p, g, state, step):
    ...     v = 0.9 * state[0] + g
    ...     return -0.1 * tp.sign(v), (v,)
    >>> opt = tp.optim.chain(tp.optim.clip_norm(1.0), tp.optim.Optimizer(init, update, name="sign"))
    >>> params = {"w": tp.tensor([1.0, 2.0])}
    >>> params, state = opt.update(opt.init(params), params, {"w": tp.tensor([1.0, -1.0])})
    >>> params["w"].tolist(), state.count
    ([0.8999..., 2.0999...], 1)
    """

    #: The name of the class in messages.
    kind = "Optimizer"
    _unnamed = 0
    name: str
    #: Whether each element is updated by itself, so that ranks can update slices of the flat buffers.
    elementwise: bool
    #: The number of moments of each parameter; None where it depends on the parameter.
    moments: int | None = None

    def __init__(
        self,
        init: Callable[[Tensor], tuple[Tensor, ...]],
        update: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
        numbers: Callable[[int], tuple[float, ...]] = step_number,
        elementwise: bool = False,
        name: str = "",
    ) -> None:
        for argument, f in (("init", init), ("update", update), ("numbers", numbers)):
            if not callable(f):
                raise TypeError(f"Optimizer: {argument} is a {type(f).__name__}, expected a function")
        self._init, self._update, self._numbers = init, update, numbers
        self.elementwise, self.name = elementwise, name or getattr(update, "__name__", "optimizer")
        self._hyper = len(tuple(numbers(1)))

    # ---- for users
    def init(self, params: Tree) -> OptState:
        """Return the state before the first step; TypeError for a parameter that is not floating point."""
        for path, value in ptree.flatten_with_paths(params):
            dtype = as_tensor(value).dtype
            if dtype.kind != "f":
                raise TypeError(
                    f"{self.name}: the parameter {path!r} is {dtype.name}, expected float32 or float64"
                )
        layout = self._layout(params)
        if layout.groups and not layout.trained:
            raise ValueError(f"{self.name}: all parameters are frozen, expected some to train")
        leaves = [as_tensor(x) for x in ptree.leaves(params)]
        groups = layout.groups[: layout.trained]
        rows = [self.start(group, [leaves[k] for k in group.leaves]) for group in groups]
        empty: Any = ((),) * (self.moments or 0)
        return OptState(0, _by_moment(rows, layout, []) if rows else empty, layout)

    def step(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return the updates, to be added to the parameters (`apply_updates`), and the new state.

        grads: a tree like the parameters, of the same shapes and dtypes, else ValueError.
        """
        self._check_order("step", state)
        self.check_state(f"{self.name}.step", state.layout, len(state.buffers), lambda: params)
        return self._run(state, params, self.flat(state, grads), apply=False)

    def update(self, state: OptState, params: Tree, grads: Tree) -> tuple[Tree, OptState]:
        """Return the new parameters and the new state, in one pass over memory."""
        self._check_order("update", state)
        self.check_state(f"{self.name}.update", state.layout, len(state.buffers), lambda: params)
        return self._run(state, params, self.flat(state, grads), apply=True)

    def state_of_trees(self, count: int, trees: list[Tree], params: Tree | None = None) -> OptState:
        """Return the state of a count and trees of moments: the inverse of `OptState.to_trees`.

        params: the parameters, needed where moments have other shapes than they (`partition`, for one).
        """
        moments = self.moments
        if moments is None or params is not None:
            layout = self._layout(trees[0] if params is None and trees else params)
            moments = layout.moments
        if count < 0 or len(trees) != moments:
            raise ValueError(
                f"{self.name}: count is {count} with {len(trees)} trees, expected 0 or more with {moments}"
            )
        if not trees:
            return OptState(count, (), None)
        layout = self._layout(trees[0] if params is None else params)
        rows = [self._leaves(layout, "moment", tree, layout.moment(k).shapes) for k, tree in enumerate(trees)]
        return OptState(count, tuple(layout.flat_trained(row) for row in rows), layout)

    # ---- for training: buffers of parameters, gradients and moments
    def _check_order(self, method: str, state: Any) -> None:
        """Raise TypeError for other than a state: optax has another order of arguments."""
        if not isinstance(state, OptState):
            raise TypeError(
                f"{self.name}.{method}: state is {described(state)}, expected one that init returns: "
                f"{method}(state, params, grads)"
            )

    def check_state(
        self, function: str, layout: FlatLayout | None, moments: int, params: Callable[[], Tree]
    ) -> None:
        """Raise ValueError for the layout and the number of moments of another optimizer's state.

        params: returns the parameters, for a function that is the mask.
        """
        if layout is not None and layout.accepted is self and moments == (self.moments or layout.moments):
            return
        if self.moments is not None and (layout is None or layout.optimizer not in ("", self.name)):
            check_layout(function, self.name, self.moments, layout, moments)
        expected = self._layout(params())
        count = expected.moments if self.moments is None else self.moments
        check_layout(function, self.name, count, layout, moments)
        if layout is not None:
            check_labels(function, layout, expected)
            if self.moments is None and layout.shapes == expected.shapes and layout.key != expected.key:
                raise ValueError(f"{function}: the moments in the state have other shapes than {self.name}'s")
            layout.accepted = self

    def flat(self, state: OptState, grads: Tree) -> list[Tensor]:
        """Return a tree of gradients as buffers for `advance`."""
        layout = state.layout or self._layout(grads)
        return list(layout.flat_trained(self._leaves(layout, "gradient", grads, layout.shapes)))

    def buffers(self, state: OptState, params: Tree) -> tuple[list[Tensor], OptState]:
        """Return parameters as buffers, and the state with a layout."""
        layout = state.layout or self._layout(params)
        flat = layout.flat(self._leaves(layout, "parameter", params, layout.shapes))
        return list(flat), OptState(state.count, state.buffers, layout)

    def tree(self, state: OptState, buffers: Sequence[Tensor]) -> Tree:
        """Return the tree whose leaves are views of buffers."""
        assert state.layout is not None
        return state.layout.tree(buffers)

    def advance(
        self, state: OptState, buffers: Sequence[Tensor], flat: Sequence[Gradient], apply: bool = True
    ) -> tuple[list[Tensor], OptState]:
        """Return the new parameters, or where `apply` is False their changes, and the new state.

        From and to buffers, of the groups that are trained.
        """
        layout = state.layout
        assert layout is not None
        count, groups = state.count + 1, layout.groups[: layout.trained]
        if layout.uniform:
            rows: list[Moments] = list(zip(*state.buffers, strict=True)) or [()] * len(groups)
        else:
            rows = [
                tuple([moment[g] for moment in state.buffers[: len(group.moments[0])]])
                for g, group in enumerate(groups)
            ]
        grads = row_gradients(layout, flat)
        first, rows = self.advance_groups(count, groups, buffers, grads, rows, apply)
        after = _by_moment(rows, layout, state.buffers) if rows else state.buffers
        return first, OptState(count, after, layout)

    def _run(self, state: OptState, params: Tree, flat: list[Tensor], apply: bool) -> tuple[Tree, OptState]:
        values, state = self.buffers(state, params)
        layout = state.layout
        assert layout is not None
        first, after = self.advance(state, values[: layout.trained], flat, apply)
        return layout.tree([*first, *values[layout.trained :]] if apply else first), after

    def _layout(self, params: Tree) -> FlatLayout:
        rows = enumerate(ptree.flatten_with_paths(params))
        leaves = [(k, path, as_tensor(x)) for k, (path, x) in rows]
        return FlatLayout(params, self.keep(params, leaves), self.name)

    def _leaves(self, layout: FlatLayout, what: str, tree: Tree, shapes: list[Any]) -> list[Tensor]:
        """Return the leaves of a tree like the parameters, in their order; ValueError for other shapes."""
        leaves: list[Tensor] = []

        def take(k: int, x: TensorLike) -> int:
            leaves.append(as_tensor(x))
            return k

        ptree.map(take, layout.numbered, tree)
        for k, t in enumerate(leaves):
            if t.shape != shapes[k] or t.dtype != layout.dtypes[k]:
                path = ptree.flatten_with_paths(layout.numbered)[k][0]
                raise ValueError(
                    f"{self.name}: the {what} of {path!r} has shape {t.shape} and dtype "
                    f"{t.dtype.name}, expected {shapes[k]} and {layout.dtypes[k].name}"
                )
        return leaves

    # ---- what kinds of optimizers differ in
    def keep(self, params: Tree, leaves: Sequence[Leaf]) -> list[LeafState]:
        """Return what the optimizer keeps of some leaves of a tree of parameters."""
        kept = []
        for _, path, t in leaves:
            check_sparse(self.name, path, False)
            state = self._checked("init", path, t, self._init(t))
            kept.append(LeafState(len(state), tuple([x.shape for x in state])))
        return kept

    def start(self, group: FlatGroup, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the initial moments of a group's leaves, flat."""
        rows = [self._checked("init", "", t, self._init(t)) for t in leaves]
        return [joined(column) for column in zip(*rows, strict=True)]

    def advance_groups(
        self,
        count: Any,
        groups: Sequence[FlatGroup],
        values: Sequence[Tensor],
        grads: Sequence[Gradient],
        moments: Sequence[Moments],
        apply: bool,
    ) -> tuple[list[Tensor], list[Moments]]:
        """Return each group's new parameters, or their changes, and its new moments.

        count: the 1-based step.  values, grads, moments: of each group, flat; the gradient of a table that
        `keep` calls sparse is a `RowGradient`.
        """
        first, after = [], []
        for group, p, g, old in zip(groups, values, grads, moments, strict=True):
            assert isinstance(g, Tensor)
            hyper = computed(self._finite_numbers, count, (self._hyper,), p.dtype)
            numbers = [ops.flat_slice(hyper, k, ()) for k in range(self._hyper)]
            if self.elementwise:
                change, new = self._updated(p, g, old, numbers)
            else:
                split = [group.split(m, k) for k, m in enumerate(old)]
                states = list(zip(*split, strict=True)) or [()] * len(group.leaves)
                results = [
                    self._updated(*row, numbers)
                    for row in zip(group.split(p), group.split(g), states, strict=True)
                ]
                change = joined([c for c, _ in results])
                new = tuple([joined(column) for column in zip(*[s for _, s in results], strict=True)])
            first.append(p + change if apply else change)
            after.append(new)
        return first, after

    def _finite_numbers(self, step: int) -> tuple[float, ...]:
        if isinstance(step, RatedStep):
            raise ValueError(
                f"{self.name}: a callback changes the learning rate, which an optimizer of your own does not "
                "tell: use a schedule in its function numbers, or one of the optimizers of tp.optim"
            )
        return checked_numbers(self.name, step, tuple(self._numbers(step)))

    def _updated(
        self, p: Tensor, g: Tensor, old: Sequence[Tensor], numbers: Sequence[Tensor]
    ) -> tuple[Tensor, Moments]:
        result = self._update(p, g, tuple(old), *numbers)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(
                f"{self.name}: update returned a {type(result).__name__}, expected (change, state)"
            )
        change, new = as_tensor(result[0]), self._checked("update", "", p, result[1])
        if change.dtype != p.dtype or [t.shape for t in (change, *new)] != [t.shape for t in (p, *old)]:
            raise ValueError(
                f"{self.name}: update returned a change of shape {change.shape}, dtype {change.dtype.name} "
                f"and a state of shapes {[t.shape for t in new]}, expected {p.shape}, {p.dtype.name} and "
                f"{[t.shape for t in old]}"
            )
        return change, new

    def _checked(self, function: str, path: str, p: Tensor, state: Any) -> Moments:
        """Return a state that a user's function has returned, as tensors."""
        if not isinstance(state, tuple | list):
            raise TypeError(
                f"{self.name}: {function} returned a state that is a {type(state).__name__}, expected a "
                "tuple of tensors"
            )
        tensors = tuple([as_tensor(x) for x in state])
        for t in tensors:
            if t.dtype != p.dtype or (self.elementwise and t.shape != p.shape):
                where = f" for {path!r}" if path else ""
                shape = f" and its shape {p.shape}" if self.elementwise else ""
                raise ValueError(
                    f"{self.name}: {function} returned a state of dtype {t.dtype.name} and shape "
                    f"{t.shape}{where}, expected the parameter's dtype {p.dtype.name}{shape}"
                )
        return tensors


register_static(Optimizer)


def size_of(group: FlatGroup) -> int:
    """Return the number of elements of a group."""
    return sum(math.prod(shape) for shape in group.shapes)


def _by_moment(
    rows: Sequence[Sequence[Tensor]], layout: FlatLayout, before: Sequence[Moments]
) -> tuple[Moments, ...]:
    """Return moments by moment and group, of those by group and moment; empty where a group has it not."""
    if layout.uniform:
        return tuple(zip(*rows, strict=True))
    return tuple(
        tuple(
            row[k] if k < len(row) else before[k][g] if before else zeros(0, layout.groups[g].dtype)
            for g, row in enumerate(rows)
        )
        for k in range(layout.moments)
    )
