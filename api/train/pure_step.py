"""A training step of a pure model: without any of a user's Python if the loss is pure too."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from treepie.autodiff import Tensor, ptree, tape
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.call import PureCall
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.program import ProgramFamily
from treepie.autodiff.program.pure import Pure, is_pure
from treepie.autodiff.ptree.structure import Flattened, rebuild
from treepie.autodiff.trace import active
from treepie.autodiff.trace.trace import Restart, Trace

from ..layer import Vars
from ..layer.core import inputs
from .inputs import Outcome, StepInputs
from .plan import Reads, planned
from .step import Step

if TYPE_CHECKING:
    from .steps import Steps


#: What stands for a program where a function that is marked as pure reads values.
_EAGER = "eager"


class PureModelStep(Step):
    """One step of a model that is pure, with a loss that may be."""

    def __init__(self, steps: Steps, given: StepInputs) -> None:
        super().__init__(steps, given)
        self.pure_loss = is_pure(given.loss)
        self.leaves = None
        self._key: Hashable = None
        self.call: PureCall | None = None
        g = given
        state = steps.state_leaves(g.state)
        if (
            type(g.x) is Tensor
            and g.ctx is None
            and not state
            and (not self.pure_loss or (len(g.target) == 1 and type(g.target[0]) is Tensor))
        ):  # the usual case, in a tenth of the time
            self.leaves = [g.x, *g.target] if self.pure_loss else [g.x]
            self.structure: Hashable = None
            return
        try:
            x = inputs(g.x)
            target = tuple([inputs(t) for t in g.target]) if self.pure_loss else ()
            flat = Flattened("", (x, target, g.state, g.ctx), numbers=False)
        except (TypeError, ValueError):
            return
        self.leaves, self.structure = flat.tensors, flat.structure

    def key(self) -> Hashable:
        """Return what decides on the step besides what its Python does."""
        if self._key is None:
            g, leaves = self.given, self.leaves
            assert leaves is not None
            specs = tuple([(t._data.shape, t._data.dtype) for t in leaves])
            loss = g.loss if self.pure_loss else None
            self._key = (super().key(), loss, g.training, self.structure, specs)
        return self._key

    def take(self, commit: Callable[[Any], None]) -> Outcome:
        """Take the step: without any Python of the user's if the loss is pure too."""
        if not self.pure_loss:
            return super().take(commit)
        try:
            return self._replayed(commit)
        finally:
            if self.trace is not None:
                self.trace.end()

    def _replayed(self, commit: Callable[[Any], None]) -> Outcome:
        programs = self.steps.cache
        root = programs.root(self.key())
        self.trace = Trace(root, user=False, depth=1)
        found = programs.find(root, 0)
        if found == _EAGER:
            return self.eagerly()
        if found is None and not programs.worth_planning(root, 0, 1, self.described):
            return self.eagerly()
        if not isinstance(found, ProgramFamily):
            found = active.call_under(self.trace, self._whole)
            if found is None:
                programs.report_eager("the model or the loss reads values")
                root.programs[0] = _EAGER
                return self.eagerly()
            programs.add(root, 0, found)
        if self.given.out is self.given.buffers and not self.given.out.exclusive():
            self.given.out = self.given.buffers.like()
        self.dtype, self.after = found.result
        return self._run(found.program(), (), commit)

    def _whole(self) -> ProgramFamily | None:
        """Trace the whole step, which is all the library's."""
        g, trace = self.given, self.trace
        self.number = tape.begin()
        self.fill()
        key = self.inner[-1] if g.key is not None else None
        rest = self.inner[len(self.variables) :]
        x, target, state, ctx = _arguments(self.structure, g.state, len(self.leaves or ()), rest)
        trace.refuse = Reads
        self.forward: list[Any] = []
        trace.entries = self.forward
        params = g.buffers.layout.around(self.variables)
        try:
            out, after = self.steps.model.apply(Vars(params, state, g.dtype), x, g.training, key, ctx)
            self._end(g.loss(out, *target), after.state)
        except Reads:
            return None
        made = planned(self, 0)
        if made is not None:
            assert self.loss is not None
            made.result = self.loss.dtype, self.state
        return made

    def fresh(self) -> Sequence[Tensor]:
        """Return results that every program of this trace gives: the model's new state."""
        return [as_tensor(t) for t in ptree.leaves(self.state)] if self.pure_loss else ()

    def _keep(self, kept: tuple[int, ...], made: Sequence[Tensor]) -> Any:
        """Return the model's new state."""
        if not self.pure_loss:
            return super()._keep(kept, made)
        if not made:
            return self.after
        new = iter(made)
        return ptree.map(lambda _: next(new), self.after)

    def forward_entries(self) -> list[Any]:
        """Return the entries of the forward pass."""
        return self.forward if self.pure_loss else super().forward_entries()

    def _forward(self) -> None:
        """Write the model's call down as one entry, and run the user's loss."""
        g, trace = self.given, self.trace
        self.number = tape.begin()
        pure, leaves = self._outline(), self.leaves
        assert leaves is not None
        if pure.fails([*[None] * len(g.buffers.layout.shapes), *leaves, g.key]):
            raise Restart
        self.call = PureCall(pure, pure.replay, (), (), taped=True)  # whose arguments `fill` declares
        made = [Tensor(s) for s in trace.call(self.call, "model", pure.outputs)]
        self.node = node = tape.Node(self.call, (), {}, tuple([t._data for t in made]), self.number)
        trace.nodes.append(node)
        for k, out in enumerate(made):
            if out.dtype.kind == "f":
                out.node, out.output = node, k
        # Without a state, and with one output, which no argument is: the usual case.
        self.plain = self.structure is None and len(made) == 1 == len(pure.refs)
        given: list[Any] = []
        if not self.plain:
            count = len(g.buffers.layout.shapes)
            given = [*[None] * count, *leaves, None]
            if any(kind == "input" and given[k] is None for kind, k in pure.refs):
                self.fill()
                given = self.inner
        if self.plain:
            out, after = made[0], g.state
        else:
            out, after = pure.result(given, made)
        self._end(g.loss(out, *g.target), after)

    def _outline(self) -> Pure:
        g, known, key = self.given, self.steps.outlines, self.key()
        pure = known.get(key)
        if pure is None:
            params = g.buffers.trees()[0]
            assert self.leaves is not None
            given = [*ptree.leaves(params), *self.leaves, *([g.key] if g.key is not None else [])]
            layout, dtype, training, model = g.buffers.layout, g.dtype, g.training, self.steps.model
            count, has_key = len(layout.shapes), g.key is not None
            structure, bare, n = self.structure, g.state, len(self.leaves)

            def apply(*tensors: Tensor) -> Any:
                x, _, state, ctx = _arguments(structure, bare, n, tensors[count:])
                vars = Vars(layout.around(tensors[:count]), state, dtype)
                out, after = model.apply(vars, x, training, tensors[-1] if has_key else None, ctx)
                return out, after.state

            pure = Pure(model.name, apply, (tuple, len(given), (Tensor,) * len(given)))
            pure.trace(given, taped=True)
            known[key] = pure
        return pure

    def fill(self) -> None:
        """Declare what the model is given."""
        if self.variables:
            return
        trace, g = self.trace, self.given
        assert self.leaves is not None
        self._declare_parameters()
        for variable in self.variables:
            assert variable.node is not None
            variable.node.number = self.number  # before whatever is made of it
        first = self.first_leaf
        rest: list[Tensor] = []
        for k, t in enumerate(self.leaves):
            symbol = trace.symbol(t.shape, t.dtype)
            self.places[symbol.number] = Slice(first + k)
            rest.append(Tensor(symbol))
        if g.key is not None:
            symbol = trace.symbol((2,), g.key.dtype)
            self.key_number = symbol.number
            rest.append(Tensor(symbol))
        self.inner = [*self.variables, *rest]
        self._give(tuple(self.inner))

    def _give(self, tensors: tuple[Tensor, ...]) -> None:
        if self.call is not None:
            self.call.inputs = self.node.inputs = tensors

    def _materialized(self) -> None:
        """Give the model tensors that have elements."""
        g = self.given
        assert self.leaves is not None
        params = ptree.leaves(g.buffers.trees()[0])
        key = [self._folded(g.folds)] if g.key is not None else []
        values = [*params, *self.leaves, *key]
        if self.variables:
            for symbolic, value in zip(self.inner, values, strict=True):
                symbolic._data.value = value.array  # type: ignore[union-attr]
            return
        self.variables = [tape.leaf(t, self.number) for t in params]
        for variable in self.variables:
            assert variable.node is not None
            variable.node.number = self.number
        self._give((*self.variables, *self.leaves, *key))

    def backward(self) -> None:
        """Walk back from the loss."""
        if not self.trace.closed:
            self.fill()
        super().backward()


def _arguments(structure: Any, state: Any, count: int, leaves: Sequence[Tensor]) -> Any:
    """Return (input, targets, state, context) around leaves; without a structure it is a plain step's."""
    if structure is None:
        return leaves[0], tuple(leaves[1:count]), state, None
    return rebuild(structure, iter(leaves), iter(()))
