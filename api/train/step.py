"""A training step: forward, backward, check, clipping and update, as one program.

A user's Python runs in every step, on symbolic tensors, and what it calls decides which program runs. Where
it reads a value, the step goes on op by op; see `autodiff/trace/trace.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treepie.autodiff import Tensor, ptree, rng, tape, value_and_grad_aux
from treepie.autodiff.program.call import inline_calls
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.program import Program, ProgramFamily
from treepie.autodiff.trace import active
from treepie.autodiff.trace.trace import Restart, Trace
from treepie.autodiff.transform import check_scalar, or_zeros, without_history
from treepie.kernels.threads import get_num_threads

from ..layer import Vars
from .finish import NONFINITE, ended
from .inputs import Outcome, StepInputs
from .plan import planned

if TYPE_CHECKING:
    from .steps import Steps


class Step:
    """One step, whose model runs in Python."""

    def __init__(self, steps: Steps, given: StepInputs) -> None:
        self.steps, self.given = steps, given
        self.leaves: list[Tensor] | None = []  # inputs that are there whatever the trace is
        self.variables: list[Tensor] = []
        self.places: dict[int, Slice] = {}
        self.loss: Tensor | None = None
        self.dtype: Any = None  # of the loss
        self.state: Any = None
        self.number = 0
        self.trace: Any = None  # a `Trace`, once there is one
        self.gradients: list[Tensor | None] | None = None

    # ---- the way of a step
    def take(self, commit: Callable[[Any], None]) -> Outcome:
        """Take the step: by a program that is known, else op by op, or by a new one."""
        try:
            return self._taken(commit)
        except Exception:
            self._leave()
            raise
        finally:
            if self.trace is not None:
                self.trace.end()

    def _resolve(self, kept: tuple[int, ...]) -> None:
        """Give values that somebody holds their elements, as far as there are any, after a failed run."""
        trace = self.trace
        trace.tick = None
        for n in kept:
            trace.values[n].value = None
        if kept:
            with contextlib.suppress(Exception):  # the error is raised by the eager run
                active.call_under(None, trace.run)

    def _leave(self) -> None:
        """Give tensors their elements that somebody keeps of a step that failed."""
        trace = self.trace
        if trace is not None and not trace.closed:
            self.loss = self.gradients = None
            with contextlib.suppress(Restart):  # what comes after an op that fails has no elements
                active.call_under(None, trace.materialize)

    def _taken(self, commit: Callable[[Any], None]) -> Outcome:
        programs = self.steps.cache
        root = programs.root(self.key())
        self.trace = trace = Trace(root, depth=1)
        trace.materialize_inputs = self._materialized
        try:
            active.call_under(trace, self._forward)
            if trace.closed:
                programs.report_eager(f"a value is read in {trace.read_at}")
                return active.call_under(None, self._finish)
            key = self._results()
            entry, values = trace.entry, len(trace.values)
            found = programs.find(entry, key)
            if found is None and not programs.worth_planning(entry, key, values, self.described):
                trace.materialize()
                return active.call_under(None, self._finish)
        except Restart:
            return self.eagerly()
        if not isinstance(found, ProgramFamily):
            found = active.call_under(trace, planned, self, values)
            if found is None:
                trace.materialize()
                return active.call_under(None, self._finish)
            programs.add(entry, key, found)
        assert self.loss is not None
        self.dtype = self.loss.dtype
        self.loss = self.gradients = None
        self.variables.clear()
        trace.forget_nodes()
        kept = trace.live_values(values)
        if self.given.out is self.given.buffers and not self.given.out.exclusive():
            self.given.out = self.given.buffers.like()
        return self._run(found.program(kept), kept, commit)

    def _results(self) -> Hashable:
        """Return which values of the trace are the loss and, if they were traced, the gradients."""
        number_of: Callable[[Any], int] = self.trace.number_of
        if self.gradients is None:
            return number_of(self.loss)
        return number_of(self.loss), *[None if g is None else number_of(g) for g in self.gradients]

    def key(self) -> Hashable:
        """Return what decides on the step besides what its Python does."""
        g = self.given
        part = g.accumulation
        return (
            type(self),
            get_num_threads(),
            g.buffers.layout.key,
            g.dtype,
            g.key is None,
            len(g.folds),
            g.clip_norm,
            g.checked,
            None if part is None else (part.first, part.last),
        )

    def described(self) -> dict[str, str]:
        """Return what a message says about the step where it differs from others."""
        g = self.given
        rows = {"inputs": g.x} | ({"targets": g.target} if g.target else {})
        return {name: _shown(x) for name, x in rows.items()}

    # ---- forward
    def _forward(self) -> None:
        """Run the model and the loss on symbolic tensors."""
        g, trace = self.given, self.trace
        self.number = tape.begin()
        self._declare_parameters()
        key = None
        if g.key is not None:
            symbol = trace.symbol((2,), g.key.dtype)
            self.key_number = symbol.number
            key = Tensor(symbol)
        out, after = self._model(key)
        self._end(g.loss(out, *g.target), after)

    def _end(self, loss: Any, after: Any) -> None:
        """Take what the forward pass gave; walk back at once where a user's Python takes part in that."""
        same = after is self.given.state
        self.loss = check_scalar("value_and_grad_aux", loss)
        self.state = after if same else without_history(after)
        if self.trace.python_backward and not self.trace.closed:
            self.backward()
        tape.clear()

    def _model(self, key: Tensor | None) -> tuple[Any, Any]:
        g = self.given
        params = g.buffers.layout.around(self.variables)
        out, after = self.steps.model.apply(Vars(params, g.state, g.dtype), g.x, g.training, key, g.ctx)
        return out, after.state

    def _declare_parameters(self) -> None:
        """Begin the trace with the parameters, as variables of the step's gradient."""
        layout, trace, variables, number = self.given.buffers.layout, self.trace, self.variables, self.number
        for shape, dtype in layout.specs:
            symbol = trace.symbol(shape, dtype)
            variables.append(Tensor(symbol, tape.Node(None, (), {}, (symbol,), number)))

    def place_parameters(self) -> None:
        """Say where the parameters are in the buffers."""
        layout = self.given.buffers.layout
        for variable, dtype, (g, at) in zip(self.variables, layout.dtypes, layout.starts, strict=True):
            self.places[variable._data.number] = Slice(g, at * dtype.itemsize)  # type: ignore[union-attr]

    def fill(self) -> None:
        """Declare what the trace has not needed so far."""

    def _materialized(self) -> None:
        """Give the declared values their elements."""
        values, params = self.trace.values, self.given.buffers.trees()[0]
        for n, value in enumerate(ptree.leaves(params)):
            values[n].value = value.array
        if self.given.key is not None:
            self.trace.values[self.key_number].value = self._folded(self.given.folds).array

    def _folded(self, folds: Sequence[Any]) -> Tensor:
        key = self.given.key
        assert key is not None
        for number in folds:
            key = rng.fold_in(key, number)
        return key

    def backward(self) -> None:
        """Walk back from the loss."""
        if self.gradients is not None:
            return
        tape.clear()
        assert self.loss is not None
        one = Tensor(np.ones((), self.loss.dtype))
        self.gradients = tape.backward(self.number, [self.loss], [one], self.variables)

    # ---- op by op
    def _finish(self) -> Outcome:
        """Go on op by op after the forward pass."""
        g = self.given
        self.backward()
        assert self.gradients is not None
        assert self.loss is not None
        grads = [or_zeros(x, v) for x, v in zip(self.gradients, self.variables, strict=True)]
        flat = list(g.buffers.layout.flat(grads))
        self.trace.forget_nodes()
        return ended(self.given, self.steps.optimizer, self.loss, flat, self.state)

    def eagerly(self) -> Outcome:
        """Take the step op by op from its beginning, as if there were no programs."""
        g = self.given

        def objective(params: Any) -> tuple[Tensor, Any]:
            key = None if g.key is None else self._folded(g.folds)
            out, after = self.steps.model.apply(Vars(params, g.state, g.dtype), g.x, g.training, key, g.ctx)
            return g.loss(out, *g.target), after.state

        def run() -> tuple[Tensor, Any, Any]:
            return value_and_grad_aux(objective)(params)

        params = g.buffers.trees()[0]
        loss, grads, state = active.call_under(None, run)
        flat = list(g.buffers.layout.flat(ptree.leaves(grads)))
        return ended(g, self.steps.optimizer, loss, flat, state)

    def forward_entries(self) -> list[Any]:
        """Return the entries of the forward pass."""
        return inline_calls(self.trace)

    @property
    def first_leaf(self) -> int:
        """Return the number of the first external that is no buffer of the step's own."""
        part = self.given.accumulation
        return 2 * len(self.given.buffers.arrays) + 1 + (len(part.sums) if part is not None else 0)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that a run is given, in the order of externals."""
        g, trace = self.given, self.trace
        made = list(self.leaves or ())
        if g.key is not None:
            made.append(g.key)
        return made + [trace.values[n] for n in trace.inputs]

    def _run(self, program: Program, kept: tuple[int, ...], commit: Callable[[Any], None]) -> Outcome:
        g, trace, part = self.given, self.trace, self.given.accumulation
        addresses = [*g.buffers.addresses, *g.out.addresses, g.tick_address]
        numbers: list[Any] = [g.count, *g.folds]
        if part is not None:
            addresses += part.addresses
            numbers += part.size, part.examples, part.total
        tensors = self.tensors()
        addresses += [t.address for t in tensors]
        run = program.prepare(addresses, numbers, trace.numbers)
        trace.closed, trace.tick = True, (g.tick, int(g.tick[()]) + 1)
        state = self._keep(kept, run.fresh())
        commit(state)
        failed = run.go()
        if failed >= 0 and not is_check(program, failed):
            self._resolve(kept)
            return self.eagerly()
        trace.tick = None
        outcome = Outcome(run.scalar(0), run.scalar(1), self.dtype, state)
        if failed >= 0:
            outcome.gradients = run.peeked()
        program.done(run)
        return outcome

    def fresh(self) -> Sequence[Tensor]:
        """Return results that every program of this trace gives."""
        return ()

    def _keep(self, kept: tuple[int, ...], made: Sequence[Tensor]) -> Any:
        """Give values that somebody holds their elements, and return the model's new state."""
        for n, t in zip(kept, made, strict=True):
            self.trace.values[n].value = t.array
        return self.state


def is_check(program: Program, failed: int) -> bool:
    """Whether what failed is the check that a step may be taken."""
    return program.calls[failed][0].attributes.get("message") is NONFINITE


def _shown(x: Any) -> str:
    """Return the shapes of tensors or arrays."""
    try:
        return ", ".join(str(tuple(t.shape)) for t in ptree.leaves(x))
    except (TypeError, ValueError, AttributeError):
        return type(x).__name__
