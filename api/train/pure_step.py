"""A training step of a pure model, which runs no Python of the user's if the loss is pure too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treepie.autodiff import Tensor, ptree, tape
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.cache import EAGER
from treepie.autodiff.program.call import PureCall
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.program import Program, ProgramFamily
from treepie.autodiff.program.pure import Pure
from treepie.autodiff.program.run import Run
from treepie.autodiff.ptree.structure import Flattened, rebuild
from treepie.autodiff.trace import active
from treepie.autodiff.trace.trace import Restart, Trace

from ..layer import Vars
from ..layer.core import inputs as as_inputs
from .binding import kind_of
from .inputs import Commit, Loss, Part, StepInputs, StepResult
from .plan import ValueRead, plan
from .step import Step

if TYPE_CHECKING:
    from .steps import Steps


class PureModelStep(Step):
    """One step of a pure model, with a loss that may be pure.

    leaves: the tensors of input, targets, state and context, in the order of `structure`; None if they are no
        such tree. A `structure` of None stands for one input, one target and a model without a state.
    """

    _key: Hashable = None
    call: PureCall | None = None

    def __init__(self, steps: Steps, inputs: StepInputs, pure_loss: bool) -> None:
        """pure_loss: whether the loss is pure."""
        super().__init__(steps, inputs)
        self.pure_loss = pure_loss
        self.leaves = None
        x, target = inputs.x, inputs.target
        if (
            type(x) is Tensor
            and inputs.ctx is None
            and not steps.state_leaves(inputs.state)
            and (not self.pure_loss or (len(target) == 1 and type(target[0]) is Tensor))
        ):  # a tenth of the time of `Flattened`
            self.leaves = [x, *target] if self.pure_loss else [x]
            self.structure: Hashable = None
            self.example = self._example(None, self.leaves)
            return
        if self.pure_loss and any(isinstance(t, int | float | np.generic) for t in target):
            return  # weak numbers, which tensors are not
        try:
            targets = tuple([as_inputs(t) for t in target]) if self.pure_loss else ()
            flat = Flattened("", (as_inputs(x), targets, inputs.state, inputs.ctx), numbers=False)
        except (TypeError, ValueError):
            return
        self.leaves, self.structure = flat.tensors, flat.structure
        self.example = self._example(flat.structure, flat.tensors)

    def _example(self, structure: Hashable, leaves: Sequence[Tensor]) -> Hashable:
        return _example_of(self.inputs.loss if self.pure_loss else None, structure, leaves)

    def key(self) -> Hashable:
        """Return everything that determines the program besides the ops that the Python calls."""
        if self._key is None:
            self._key = (super().key(), self.inputs.training, self.example)
        return self._key

    # ---- a pure loss: the program is replayed
    def take(self, commit: Commit) -> StepResult:
        """Take the step, without running Python of the user's if the loss is pure too."""
        if not self.pure_loss:
            return super().take(commit)
        try:
            return self._replayed(commit)
        finally:
            if self.trace is not None:
                self.trace.end()

    def _replayed(self, commit: Commit) -> StepResult:
        cache = self.steps.cache
        root = self._root()
        self.trace = Trace(root, user=False, depth=1)
        family = cache.find(root, 0)
        if family is EAGER:
            return self.eagerly()
        if family is None and not cache.worth_planning(root, 0, 1, self.inputs.description):
            return self.eagerly()
        if not isinstance(family, ProgramFamily):
            family = active.call_under(self.trace, self._whole)
            if family is None:
                cache.report_eager("the model, the loss or the optimizer reads values")
                root.programs[0] = EAGER
                return self.eagerly()
            cache.add(root, 0, family)
        self._check_out()
        self.dtype, self.state = family.result
        return self._run(family.program(), (), commit)

    def _done(self, program: Program, run: Run) -> None:
        """Keep the run for the next step like this one, or let others use it."""
        super()._done(program, run)
        # A step that fails is taken twice: host calls, which other ranks take part in, must not be.
        if self.binding is not None and self.pure_loss and self.structure is None and program.native:
            self.binding.replayed = program, self.dtype, self.state

    @classmethod
    def again(cls, inputs: StepInputs, commit: Commit) -> StepResult | None:
        """Take a step like one before, in half of the time: of one input and one target, with a pure loss.

        None where there is no such step, or a launch reported an error: the step is taken again, and raises
        it. The model's state has no tensors.
        """
        bindings, x, target = inputs.bindings, inputs.x, inputs.target
        if bindings is None or len(target) != 1 or type(x) is not Tensor or type(target[0]) is not Tensor:
            return None
        leaves = x, target[0]
        kind = kind_of(cls, _example_of(inputs.loss, None, leaves), inputs.part)
        binding = bindings.find(kind, inputs)
        if binding is None or binding.replayed is None:
            return None
        if type(inputs.part) is not Part and not (inputs.out is inputs.at.buffers and inputs.out.exclusive()):
            return None
        program, dtype, state = binding.replayed
        run = binding.again(program, leaves, inputs)
        if run is None:
            return None
        commit(inputs.out, state)
        failed = run.go()
        run.release_arena()
        return None if failed >= 0 else StepResult(run.scalar(0), run.scalar(1), dtype, state)

    def planned(self) -> Program | None:
        """Return the step's program; None where it has none yet, or another than a replayed one."""
        if self.leaves is None or not self.pure_loss:
            return None
        root = self.steps.cache.root(self.key())
        family = self.steps.cache.find(root, 0)
        if not isinstance(family, ProgramFamily):
            return None
        self.trace = Trace(root, user=False, depth=1)
        self.dtype, self.state = family.result
        return family.program()

    def _whole(self) -> ProgramFamily | None:
        """Trace the whole step; None where the model or the loss reads a value."""
        inputs, trace = self.inputs, self.trace
        self.number = tape.begin()
        self.declare()
        key = self.arguments[-1] if inputs.key is not None else None
        rest = self.arguments[len(self.variables) :]
        x, target, state, ctx = _unflatten(self.structure, inputs.state, len(self.leaves or ()), rest)
        trace.refuse = ValueRead
        self.entries: list[Any] = []
        trace.entries = self.entries
        vars = Vars(inputs.at.buffers.layout.around(self.variables), state, inputs.at.dtype)
        try:
            out, after = self.steps.model.apply(vars, x, inputs.training, key, ctx)
            self._end_forward(inputs.loss(out, *target), after.state)
            tape.clear()
        except ValueRead:
            return None
        family = plan(self, 0)
        if family is not None:
            assert self.loss is not None
            family.result = self.loss.dtype, self.state
        return family

    def fresh(self) -> Sequence[Tensor]:
        """Return the results that every program of this trace allocates: the model's new state."""
        return [as_tensor(t) for t in ptree.leaves(self.state)] if self.pure_loss else ()

    def _store(self, kept: tuple[int, ...], results: Sequence[Tensor]) -> Any:
        """Return the model's new state."""
        if not self.pure_loss:
            return super()._store(kept, results)
        tensors = iter(results)
        return ptree.map(lambda _: next(tensors), self.state)

    def forward_entries(self) -> list[Any]:
        """Return the entries of the forward pass."""
        return self.entries if self.pure_loss else super().forward_entries()

    # ---- a user's loss: the model is one entry of the trace
    def _forward(self) -> None:
        """Record the model as one call, and run the user's loss."""
        inputs, trace = self.inputs, self.trace
        model, leaves = self.binding.model if self.binding is not None else None, self.leaves
        self.model = model = model or self._traced_model()
        assert leaves is not None
        if model.checks and model.fails([*self._no_parameters(), *leaves, inputs.key]):
            raise Restart
        self.call = PureCall(
            model, model.replay, (), (), taped=True
        )  # its arguments are declared by `declare`
        number = self.number
        results = trace.call(self.call, "model", (), model.outputs, (number,), number)
        self.node = trace.nodes[-1]
        if self.structure is None and len(results) == 1 == len(model.refs):
            out, state = results[0], inputs.state
        else:
            arguments: list[Any] = [*self._no_parameters(), *leaves, None]
            if any(kind == "input" and arguments[k] is None for kind, k in model.refs):
                self.declare()
                arguments = self.arguments
            out, state = model.result(arguments, results)
        self._end_forward(inputs.loss(out, *inputs.target), state)

    def _no_parameters(self) -> list[None]:
        """Return None for each parameter: they have not been declared."""
        return [None] * len(self.inputs.at.buffers.layout.shapes)

    def _traced_model(self) -> Pure:
        """Return the model, traced for inputs of this structure."""
        inputs, at, key = self.inputs, self.inputs.at, self.key()
        key = (active.state.precision, active.state.accuracy, key)
        pure = self.steps.models.get(key)
        if pure is None:
            assert self.leaves is not None
            params = ptree.leaves(at.buffers.trees()[0])
            arguments = [*params, *self.leaves, *([inputs.key] if inputs.key is not None else [])]
            layout, dtype, training, model = at.buffers.layout, at.dtype, inputs.training, self.steps.model
            count, has_key, leaves = len(layout.shapes), inputs.key is not None, len(self.leaves)
            structure, static_state = self.structure, inputs.state

            def apply(*tensors: Tensor) -> Any:
                x, _, state, ctx = _unflatten(structure, static_state, leaves, tensors[count:])
                vars = Vars(layout.around(tensors[:count]), state, dtype)
                out, after = model.apply(vars, x, training, tensors[-1] if has_key else None, ctx)
                return out, after.state

            pure = Pure(model.name, apply, (tuple, len(arguments), (Tensor,) * len(arguments)))
            pure.trace(arguments, taped=True)
            self.steps.models[key] = pure
        return pure

    def declare(self) -> None:
        """Declare the model's arguments: parameters, leaves and key."""
        if self.variables:
            return
        trace, inputs = self.trace, self.inputs
        assert self.leaves is not None
        self._declare_parameters()
        for variable in self.variables:
            assert variable.node is not None
            variable.node.number = self.number  # before all nodes that depend on it
        first = self.first_leaf
        rest: list[Tensor] = []
        for k, t in enumerate(self.leaves):
            symbol = trace.symbol(t.shape, t.dtype)
            self.places[symbol.number] = Slice(first + k)
            rest.append(Tensor(symbol, None))
        if inputs.key is not None:
            symbol = trace.symbol((2,), inputs.key.dtype)
            self.key_number = symbol.number
            rest.append(Tensor(symbol, None))
        self.arguments = [*self.variables, *rest]
        self._set_arguments(tuple(self.arguments))

    def _set_arguments(self, tensors: tuple[Tensor, ...]) -> None:
        if self.call is not None:
            self.call.inputs = self.node.inputs = tensors

    def _materialize_inputs(self) -> None:
        """Give the model's arguments their elements."""
        inputs = self.inputs
        assert self.leaves is not None
        params = ptree.leaves(inputs.at.buffers.trees()[0])
        key = [self._folded_key()] if inputs.key is not None else []
        if self.variables:
            for symbolic, value in zip(self.arguments, [*params, *self.leaves, *key], strict=True):
                symbolic._data.value = value.array  # type: ignore[union-attr]
            return
        self.variables = [tape.leaf(t, self.number) for t in params]
        for variable in self.variables:
            assert variable.node is not None
            variable.node.number = self.number
        self._set_arguments((*self.variables, *self.leaves, *key))

    def backward(self) -> None:
        """Run the backward pass from the loss."""
        if not self.trace.closed:
            self.declare()
        super().backward()


def _example_of(loss: Loss | None, structure: Hashable, leaves: Sequence[Tensor]) -> Hashable:
    """Return what determines the program of an example. loss: where it is pure."""
    return (loss, structure, *[(t._data.shape, t._data.dtype) for t in leaves])


def _unflatten(structure: Any, state: Any, count: int, leaves: Sequence[Tensor]) -> Any:
    """Return (input, targets, state, context) of leaves; see `PureModelStep` for a structure of None."""
    if structure is None:
        return leaves[0], tuple(leaves[1:count]), state, None
    return rebuild(structure, iter(leaves), iter(()))
