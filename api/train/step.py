"""A training step as one program: forward pass, backward pass, finite check, clipping and update.

A user's Python runs in every step on symbolic tensors, and the ops that it calls determine the program. Where
it reads a value, the step continues op by op; see `autodiff/trace/trace.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treepie.autodiff import Tensor, ptree, rng, tape
from treepie.autodiff.arguments import as_tensor
from treepie.autodiff.program.call import inline_calls
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.instance import Arena
from treepie.autodiff.program.program import Program, ProgramFamily
from treepie.autodiff.program.pure import Pure
from treepie.autodiff.program.run import Run
from treepie.autodiff.trace import active
from treepie.autodiff.trace.entry import Entry
from treepie.autodiff.trace.trace import Restart, Trace
from treepie.autodiff.transform import (
    check_dependent,
    check_scalar,
    or_zeros,
    without_history,
)
from treepie.kernels.threads import get_num_threads

from ..layer import Vars
from ..optim.sparse import arrays_of
from .binding import Binding, kind_of
from .eager import loss_and_gradients, weight_of, weighted_gradients
from .finish import NONFINITE, finish
from .inputs import Commit, Part, StepInputs, StepResult
from .plan import plan

if TYPE_CHECKING:
    from .steps import Steps


class Step:
    """One step of a model that runs in Python.

    leaves: inputs of the program besides buffers, key and what the trace finds.  variables: the parameters.
    places: number of a value -> its slice of the caller's memory.
    """

    # Defaults of the class, since an instance is made for each step.
    loss: Tensor | None = None
    dtype: Any = None  # of the loss
    state: Any = None
    number = 0  # of the gradient, on the tape
    trace: Any = None  # a `Trace`, once it has begun
    gradients: list[Tensor | None] | None = None
    #: What the backward pass starts from: the weight of the loss, None for 1.
    seed: Tensor | None = None
    weight: Tensor | None = None  # of the loss of a part
    binding: Binding | None = None
    root: Entry  # where the trace begins
    #: See `kind_of`.
    example: Hashable = None
    kind: Hashable = None
    #: The traced model, where it is one entry of the trace.
    model: Pure | None = None

    def __init__(self, steps: Steps, inputs: StepInputs) -> None:
        self.steps, self.inputs = steps, inputs
        self.leaves: list[Tensor] | None = []
        self.variables: list[Tensor] = []
        self.places: dict[int, Slice] = {}

    # ---- traced, then run
    def take(self, commit: Commit) -> StepResult:
        """Take the step by a program, or op by op where a value is read."""
        try:
            return self._traced(commit)
        except Exception:
            self._materialize_after_error()
            raise
        finally:
            if self.trace is not None:
                self.trace.end()

    def _traced(self, commit: Commit) -> StepResult:
        cache = self.steps.cache
        self.trace = trace = self._begun()
        trace.materialize_inputs = self._materialize_inputs
        try:
            active.call_under(trace, self._forward, gradients=(self.number,))
            if trace.closed:
                cache.report_eager(f"a value is read in {trace.read_at}")
                return active.call_under(None, self._finish)
            key = self._outputs()
            entry, values = trace.entry, len(trace.values)
            family = cache.find(entry, key)
            if family is None and not cache.worth_planning(entry, key, values, self.inputs.description):
                trace.materialize()
                return active.call_under(None, self._finish)
        except Restart:
            return self.eagerly()
        if not isinstance(family, ProgramFamily):
            trace.drop_reuse()  # the plan defines more values
            family = active.call_under(trace, plan, self, values)
            if family is None:
                trace.materialize()
                return active.call_under(None, self._finish)
            cache.add(entry, key, family)
        assert self.loss is not None
        self.dtype = self.loss.dtype
        self.loss = self.gradients = None
        self.variables.clear()
        kept = trace.kept_values(values)
        self._check_out()
        return self._run(family.program(kept), kept, commit)

    def _begun(self) -> Trace:
        """Return a trace, that of a step like this one where it can take over its values."""
        root = self._root()
        trace = Trace(root, depth=1) if self.binding is None else self.binding.trace()
        self.number = tape.next_number() if trace.reuse is None else trace.reuse.number
        return trace

    def _root(self) -> Entry:
        """Return where the trace begins; note the binding that the step fits."""
        inputs, bindings = self.inputs, self.inputs.bindings
        if bindings is not None:
            self.kind = kind_of(type(self), self.example, inputs.part)
            self.binding = bindings.find(self.kind, inputs)
        self.root = self.steps.cache.root(self.key()) if self.binding is None else self.binding.root
        return self.root

    def _check_out(self) -> None:
        """Take other buffers for the results, unless those of the parameters are exclusively owned."""
        inputs = self.inputs
        if type(inputs.part) is Part:
            return  # it writes none
        if inputs.out is inputs.at.buffers and not inputs.out.exclusive():
            inputs.out = inputs.out.empty_like()

    def _outputs(self) -> Hashable:
        """Return the numbers of the loss and, where the backward pass is traced already, the gradients."""
        number_of: Callable[[Any], int] = self.trace.number_of
        if self.gradients is None:
            return number_of(self.loss)
        return number_of(self.loss), *[None if g is None else number_of(g) for g in self.gradients]

    def key(self) -> Hashable:
        """Return everything that determines the program besides the ops that the Python calls."""
        inputs = self.inputs
        at, part = inputs.at, inputs.part
        return (
            type(self),
            get_num_threads(),
            at.buffers.layout.key,
            at.dtype,
            inputs.key is None,
            len(inputs.folds),
            inputs.clip_norm,
            inputs.check,
            None if part is None else (type(part), part.sums.empty, isinstance(part, Part) and part.counted),
        )

    # ---- forward and backward pass
    def _forward(self) -> None:
        """Run the model and the loss on symbolic tensors."""
        inputs, trace = self.inputs, self.trace
        self._declare_parameters()
        key = None
        if inputs.key is not None:
            symbol = trace.symbol((2,), inputs.key.dtype)
            self.key_number = symbol.number
            key = Tensor(symbol, None)
        at = inputs.at
        vars = Vars(at.buffers.layout.around(self.variables), inputs.state, at.dtype)
        out, after = self.steps.model.apply(vars, inputs.x, inputs.training, key, inputs.ctx)
        self._end_forward(inputs.loss(out, *inputs.target), after.state)

    def _end_forward(self, loss: Any, state: Any) -> None:
        """Check the loss; trace the backward pass at once where it runs a user's Python."""
        self.loss = check_scalar("Trainer", loss, "loss")
        self.state = state if state is self.inputs.state else without_history(state)
        if self.trace.python_backward and not self.trace.closed:
            if self.inputs.part is not None:
                self.seed = Tensor(self.trace.symbol((), self.loss.dtype), None)
            self.backward()

    def _declare_parameters(self) -> None:
        """Begin the trace with the parameters, as variables of the step's gradient."""
        layout, trace, variables = self.inputs.at.buffers.layout, self.trace, self.variables
        reuse = trace.reuse
        if reuse is not None:
            variables += reuse.declared(trace)
            if variables:
                return
        number, node, symbol_of = self.number, tape.Node, trace.symbol
        for shape, dtype in layout.specs:
            symbol = symbol_of(shape, dtype)
            variables.append(Tensor(symbol, node(None, (), {}, (symbol,), number)))
        if reuse is not None:
            reuse.declare(variables)

    def place_parameters(self) -> None:
        """Map the parameters to their slices of the buffers."""
        buffers = self.inputs.at.buffers
        layout, frozen = buffers.layout, self.first_leaf - len(buffers.frozen)
        for variable, dtype, (g, start) in zip(self.variables, layout.dtypes, layout.starts, strict=True):
            external = g if g < layout.trained else frozen + g - layout.trained
            self.places[variable._data.number] = Slice(external, start * dtype.itemsize)  # type: ignore[union-attr]

    def declare(self) -> None:
        """Declare the inputs that the trace has not needed so far."""

    def backward(self) -> None:
        """Run the backward pass from the loss."""
        if self.gradients is not None:
            return
        tape.clear()
        assert self.loss is not None
        seed = self.seed if self.seed is not None else Tensor(np.ones((), self.loss.dtype), None)
        self.gradients = tape.backward(self.number, [self.loss], [seed], self.variables)

    def weighted(self, grads: list[Tensor]) -> list[Tensor]:
        """Return gradients times the weight of the loss, where the backward pass has begun with another."""
        if self.weight is None or self.seed is None or self.weight is self.seed:
            return grads
        factor = self.weight / self.seed
        return [g * factor for g in grads]

    def forward_entries(self) -> list[Any]:
        """Return the entries of the forward pass."""
        return inline_calls(self.trace)

    # ---- op by op
    def _finish(self) -> StepResult:
        """Continue op by op after the forward pass."""
        part = self.inputs.part
        assert self.loss is not None
        if isinstance(part, Part):
            self.weight = weight_of(self.loss, part)
            self.seed = self.weight if self.gradients is None else self.seed
        self.backward()
        assert self.gradients is not None
        check_dependent(self.gradients)
        grads = self.weighted([or_zeros(x, v) for x, v in zip(self.gradients, self.variables, strict=True)])
        flat = list(self.inputs.at.buffers.layout.flat_trained(grads))
        self.trace.forget_nodes()
        return finish(self.inputs, self.steps.optimizer, self.loss, self.weight, flat, self.state)

    def eagerly(self) -> StepResult:
        """Take the step op by op from its beginning."""
        inputs, at = self.inputs, self.inputs.at

        def run() -> tuple[Tensor, Tensor | None, Any, Any]:
            key = None if inputs.key is None else self._folded_key()
            vars, model = Vars(at.buffers.trees()[0], inputs.state, at.dtype), self.steps.model
            if inputs.part is not None:
                return weighted_gradients(model, vars, inputs, key)  # type: ignore[no-any-return]
            example = inputs.x, inputs.loss, inputs.target
            loss, grads, state = loss_and_gradients(model, vars, *example, inputs.training, key, inputs.ctx)
            return loss, None, grads, state

        loss, weight, grads, state = active.call_under(None, run)
        flat = list(at.buffers.layout.flat_trained([as_tensor(g) for g in ptree.leaves(grads)]))
        return finish(inputs, self.steps.optimizer, loss, weight, flat, state)

    def _folded_key(self) -> Tensor:
        key = self.inputs.key
        assert key is not None
        for number in self.inputs.folds:
            key = rng.fold_in(key, number)
        part = self.inputs.part
        return rng.for_rows(key, part.row, part.rows) if isinstance(part, Part) else key

    def _materialize_inputs(self) -> None:
        """Give the declared values their elements."""
        values, params = self.trace.values, self.inputs.at.buffers.trees()[0]
        for n, value in enumerate(ptree.leaves(params)):
            values[n].value = value.array
        if self.inputs.key is not None:
            values[self.key_number].value = self._folded_key().array
        if self.seed is not None:
            part = self.inputs.part
            assert isinstance(part, Part)
            self.seed._data.value = np.array(part.weight, self.seed.dtype)  # type: ignore[union-attr]

    def _materialize_after_error(self) -> None:
        """Give tensors that the user has kept their elements, after an error in the user's Python."""
        trace = self.trace
        if trace is not None and not trace.closed:
            self.loss = self.gradients = None
            with contextlib.suppress(Restart):  # values after an op that fails have no elements
                active.call_under(None, trace.materialize)

    def _materialize_after_launch(self, kept: tuple[int, ...]) -> None:
        """Give tensors that the user has kept their elements, op by op, after a failed launch."""
        trace = self.trace
        trace.tick = None
        for n in kept:
            trace.values[n].value = None
        if kept:
            with contextlib.suppress(Exception):  # raised by the eager run
                active.call_under(None, trace.run)

    # ---- the native call
    @property
    def first_leaf(self) -> int:
        """The first external after buffers, counter, accumulated gradients and frozen parameters."""
        part, buffers = self.inputs.part, self.inputs.at.buffers
        sums = len(part.addresses) if part is not None else 0
        return 2 * len(buffers.arrays) + 1 + sums + len(buffers.frozen)

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the program's inputs, in the order of externals."""
        inputs, trace = self.inputs, self.trace
        tensors = list(self.leaves or ())
        if inputs.key is not None:
            tensors.append(inputs.key)
        return tensors + [trace.values[n] for n in trace.inputs]

    def prepare(self, program: Program, arena: Arena | None = None) -> Run:
        """Return a run of the program. arena: see `Program.prepare`."""
        inputs, part = self.inputs, self.inputs.part
        at = inputs.at
        addresses = [*at.buffers.addresses, *inputs.out.addresses, inputs.counter.address]
        if part is not None:
            addresses += part.addresses
        if at.buffers.frozen:
            addresses += at.buffers.parameter_addresses[at.buffers.layout.trained :]
        addresses += [t.address for t in self.tensors()]
        return program.prepare(addresses, inputs.numbers(), self.trace.numbers, (), arena)

    def _bound(self, program: Program) -> Run | None:
        """Return the run of a step like this one on this one's example and numbers; None without one."""
        binding, inputs = self.binding, self.inputs
        if binding is None or inputs.out is not inputs.at.buffers:
            return None
        return binding.again(program, self.tensors(), inputs, self.trace.numbers)

    def _done(self, program: Program, run: Run) -> None:
        """Keep a new run for the next step like this one, or let others use it."""
        inputs, binding = self.inputs, self.binding
        if inputs.bindings is not None and inputs.out is inputs.at.buffers:
            self.binding = binding = binding or inputs.bindings.add(self.kind, self)
            if binding is not None and binding.keep(program, run):
                return
        program.done(run)

    def _run(self, program: Program, kept: tuple[int, ...], commit: Commit) -> StepResult:
        """Run the program. kept: numbers of values that the user's Python has kept."""
        inputs, trace, counter = self.inputs, self.trace, self.inputs.counter
        bound, binding = self._bound(program), self.binding
        run = bound or self.prepare(program)
        trace.closed = True
        if kept:
            trace.tick = (counter.array, counter.value() + 1)
        state = self._store(kept, run.fresh()) if kept or run.memories else self.state
        commit(inputs.out, state)
        failed = run.go()
        if failed >= 0 and not is_finite_check(program, failed):
            if not program.repeatable(failed):
                raise run.error(failed)
            self._materialize_after_launch(kept)
            return self.eagerly()
        trace.tick = None
        result = StepResult(run.scalar(0), run.scalar(1), self.dtype, state)
        if failed >= 0:
            peeked = run.peeked()  # none of a part of an update, whose ranks add them up
            result.gradients = arrays_of(inputs.at.buffers.layout, peeked) if peeked else []
        if bound is not None:
            run.release_arena()
        else:
            self._done(program, run)
        if binding is not None and trace.reuse is not None:
            self.trace = None
            binding.keep_trace(trace)
        return result

    def fresh(self) -> Sequence[Tensor]:
        """Return the results that every program of this trace allocates."""
        return ()

    def _store(self, kept: tuple[int, ...], results: Sequence[Tensor]) -> Any:
        """Give kept values their memory, and return the model's new state."""
        for n, t in zip(kept, results, strict=True):
            self.trace.values[n].value = t.array
        return self.state


def is_finite_check(program: Program, failed: int) -> bool:
    """Whether the launch that reported an error is the finite check."""
    return program.calls[failed][0].attributes.get("message") is NONFINITE
