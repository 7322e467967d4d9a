"""Predictions, each as one program."""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, ptree
from treepie.autodiff.accuracy import Arithmetic
from treepie.autodiff.program.cache import ProgramCache
from treepie.autodiff.program.call import inline_calls
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.program import ProgramFamily
from treepie.autodiff.program.request import Request
from treepie.autodiff.ptree.structure import Flattened, rebuild
from treepie.autodiff.tensor import TENSOR_DTYPES
from treepie.autodiff.trace import active
from treepie.autodiff.trace.entry import root
from treepie.autodiff.trace.trace import Restart, Trace
from treepie.kernels.compilations import compilations
from treepie.kernels.threads import get_num_threads

from ..layer import Context, Layer, Vars
from ..layer.core import inputs
from ..optim.flat import FlatLayout
from .model_of import ModelOf
from .state import Snapshot

_ADDRESS = operator.attrgetter("address")


class Predictor:
    """Runs a model in evaluation mode, and holds its programs."""

    def __init__(self, model: Layer, arithmetic: Arithmetic) -> None:
        """arithmetic: the precision and the accuracy."""
        self.model, self._arithmetic, self.model_of = model, arithmetic, ModelOf(model)
        self.cache = ProgramCache("predictions of this model")
        self._without_tensors: Any = None  # the last such state of the model
        #: What selected the programs of the last call on one tensor, and these.
        self._last: tuple[Any, ProgramFamily | None] = (None, None)

    @property
    def programs(self) -> Sequence[Any]:
        """The programs in the cache."""
        return self.cache.programs

    def __call__(self, at: Snapshot, vars: Any, x: Any, ctx: Context | None) -> Tensor:
        """Return the output, or the tree of outputs. vars: a function that returns the variables of `at`."""
        if not self._arithmetic.in_force:
            return self._arithmetic.call(self, at, vars, x, ctx)
        if self.model.pure:
            return self._pure(at, vars, x, ctx)  # type: ignore[no-any-return]
        with compilations.watch():
            return self._python(at, vars, x, ctx)  # type: ignore[no-any-return]

    # ---- a pure model: the program is replayed
    def _pure(self, at: Snapshot, vars: Any, x: Any, ctx: Context | None) -> Any:
        leaves, structure = self._leaves(at.state, x, ctx)
        same: Any = None
        if structure is None:
            data, layout = leaves[0]._data, at.buffers.layout
            arithmetic = active.state.precision, active.state.accuracy
            same = data.shape, data.dtype, layout, at.dtype, get_num_threads(), *arithmetic
        family = self._last[1] if same is not None and same == self._last[0] else None
        if family is None:
            self.model_of.check("Trainer.predict", at)
            family = self._family(at, leaves, structure)
            if family is None:
                return self.model.apply(vars(), inputs(x), ctx=ctx)[0]
            self._last = same, family
        program = family.program()
        run = program.prepare([*at.buffers.parameter_addresses, *map(_ADDRESS, leaves)])
        results = run.fresh()
        if run.go() >= 0:
            return self.model.apply(vars(), inputs(x), ctx=ctx)[0]
        program.done(run)
        if family.result is Tensor:
            return results[0]
        return rebuild(family.result, iter(results), iter(()))

    def _family(self, at: Snapshot, leaves: Sequence[Tensor], structure: Hashable) -> ProgramFamily | None:
        """Return the programs for inputs like these; None where the model runs op by op."""
        specs = tuple([(t._data.shape, t._data.dtype) for t in leaves])
        root = self.cache.root((get_num_threads(), at.buffers.layout.key, at.dtype, structure, specs))
        family = self.cache.find(root, 0)
        if isinstance(family, ProgramFamily):
            return family
        describe = lambda: {"inputs": str([t.shape for t in leaves])}
        with compilations.watch():
            if family is None and not self.cache.worth_planning(root, 0, 1, describe):
                return None
            family = self._whole(at, leaves, structure)
            self.cache.add(root, 0, family)
            family.program()
        return family

    def _leaves(self, state: Any, x: Any, ctx: Context | None) -> tuple[list[Tensor], Hashable]:
        """Return the tensors of the model's inputs, and their structure; None for one input and no state."""
        # A masked array is converted, with an error for what is masked.
        array = type(x) is np.ndarray or isinstance(x, np.memmap)
        if array and x.dtype in TENSOR_DTYPES and x.flags.c_contiguous:
            x = Tensor(x, None)  # not copied: the tensor does not outlive the call
        if ctx is None and type(x) is Tensor:
            if state is self._without_tensors:
                return [x], None
            if not ptree.leaves(state):
                self._without_tensors = state
                return [x], None
        flat = Flattened("Trainer.predict", (inputs(x), state, ctx), numbers=False)
        return flat.tensors, flat.structure

    def _whole(self, at: Snapshot, leaves: Sequence[Tensor], structure: Any) -> ProgramFamily:
        """Trace the model."""
        trace = Trace(root(), user=False)
        layout = at.buffers.layout
        params, places = _declared(trace, layout)
        rest = []
        for k, t in enumerate(leaves):
            symbol = trace.symbol(t.shape, t.dtype)
            places[symbol.number] = Slice(len(layout.groups) + k)
            rest.append(Tensor(symbol, None))
        x, state, ctx = (
            (rest[0], at.state, None) if structure is None else rebuild(structure, iter(rest), iter(()))
        )
        vars = Vars(layout.around(params), state, at.dtype)
        out, _ = active.call_under(trace, functools.partial(self.model.apply, vars, x, ctx=ctx))
        result = Flattened("Trainer.predict: the output", out, numbers=False)
        sizes = [a.nbytes for a in at.buffers.parameters] + [t.array.nbytes for t in leaves]
        fresh = [trace.number_of(t) for t in result.tensors]
        family = ProgramFamily(trace, trace.entries, Request(sizes, places, fresh), self.cache.arenas)
        family.result = result.structure
        trace.end()
        return family

    # ---- a user's own model: its Python runs in every call
    def _python(self, at: Snapshot, vars: Any, x: Any, ctx: Context | None) -> Any:
        trace = Trace(self.cache.root((get_num_threads(), at.buffers.layout.key, at.dtype)))
        layout = at.buffers.layout
        params, places = _declared(trace, layout)

        def materialize_inputs() -> None:
            for symbolic, value in zip(params, ptree.leaves(at.buffers.trees()[0]), strict=True):
                symbolic._data.value = value.array  # type: ignore[union-attr]

        def forward() -> Any:
            return self.model.apply(Vars(layout.around(params), at.state, at.dtype), x, ctx=ctx)[0]

        trace.materialize_inputs = materialize_inputs
        try:
            out = active.call_under(trace, forward)
            if trace.closed:
                self.cache.report_eager(f"a value is read in {trace.read_at}")
                return out
            return self._replayed(trace, at, params, places, out)
        except Restart:
            return self.model.apply(vars(), inputs(x), ctx=ctx)[0]
        finally:
            trace.end()

    def _replayed(
        self, trace: Trace, at: Snapshot, params: list[Tensor], places: dict[int, Slice], out: Any
    ) -> Any:
        """Run the trace's program, which gives the symbolic tensors of the output their elements."""
        values, entry = len(trace.values), trace.entry
        family = self.cache.find(entry, 0)
        if family is None and not self.cache.worth_planning(entry, 0, values, dict):
            trace.materialize()
            return out
        tensors: list[Any] = [trace.values[n] for n in trace.inputs]
        if not isinstance(family, ProgramFamily):
            family = active.call_under(trace, self._plan, trace, at, places, tensors, values)
            self.cache.add(entry, 0, family)
        params.clear()
        kept = trace.kept_values(values)
        program = family.program(kept)
        run = program.prepare(
            [*at.buffers.parameter_addresses, *[t.address for t in tensors]], (), trace.numbers
        )
        results = run.fresh()
        if run.go() >= 0:
            raise Restart
        program.done(run)
        for n, t in zip(kept, results, strict=True):
            trace.values[n].value = t.array  # type: ignore[union-attr]
        return out

    def _plan(
        self, trace: Trace, at: Snapshot, places: dict[int, Slice], tensors: Sequence[Any], values: int
    ) -> ProgramFamily:
        trace.enter_library()
        count = len(at.buffers.layout.groups)
        slices = {**places, **{n: Slice(count + k) for k, n in enumerate(trace.inputs)}}
        sizes = [a.nbytes for a in at.buffers.parameters] + [t.array.nbytes for t in tensors]
        entries = inline_calls(trace)
        request = Request(sizes, slices, user_numbers=tuple(trace.number_values))
        return ProgramFamily(trace, entries, request, self.cache.arenas, values)


def _declared(trace: Trace, layout: FlatLayout) -> tuple[list[Tensor], dict[int, Slice]]:
    """Begin a trace with the parameters; return them, and their slices of the buffers by number."""
    params, places = [], {}
    for shape, dtype, (g, start) in zip(layout.shapes, layout.dtypes, layout.starts, strict=True):
        symbol = trace.symbol(shape, dtype)
        places[symbol.number] = Slice(g, start * dtype.itemsize)
        params.append(Tensor(symbol, None))
    return params, places
