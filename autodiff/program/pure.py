"""Pure functions: their results depend on their arguments alone, so a call is one entry of a trace.

The library's own layers and losses are pure, and users' functions under `pure` and `jit`. Such a function is
traced once for each structure of its arguments. When a user's Python calls it on symbolic tensors, its own
Python does not run: the first trace has the shapes of its results, and the ops to inline.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from treepie.kernels.config import CHECK
from treepie.kernels.program import Spec

from .. import tape
from ..arguments import as_tensor
from ..calls import call_error
from ..ptree.structure import Flattened, rebuild
from ..tensor import Tensor
from ..trace import active
from ..trace.active import tracing
from ..trace.compare import Transcript
from ..trace.entry import Entry, Symbol, root
from ..trace.trace import Trace
from .call import PureCall, record, record_call

P = ParamSpec("P")
R = TypeVar("R")


class Pure:
    """A pure function for arguments of one structure, traced.

    structure: the structure of its results.
    refs: of each tensor in the results: ("input", index of an argument's tensor), ("output", index in
        `outputs`) or ("constant", the tensor).
    outputs: shapes and dtypes of the tensors that the function computes.
    checks: the entries whose ops check the elements of an operand.
    transcript: of the trace, where later ones are compared with it.
    """

    __slots__ = (
        "_arguments",
        "_constants",
        "_entries",
        "_function",
        "_numbers",
        "_specs",
        "checks",
        "name",
        "outputs",
        "refs",
        "structure",
        "transcript",
    )

    def __init__(self, name: str, function: Callable[..., Any], arguments: Hashable) -> None:
        """Begin without a trace. arguments: the structure of the tuple of arguments."""
        self.name, self._function, self._arguments = name, function, arguments
        self.refs: list[tuple[str, Any]] = []
        self.outputs: list[tuple[tuple[int, ...], np.dtype]] = []
        self.structure: Any = None
        self.transcript: Transcript | None = None
        self._entries: list[Entry] | None = []  # None where the function's Python has to run again
        self.checks: list[Entry] = []
        self._constants: dict[int, Tensor] = {}  # by value number
        self._numbers: list[int] = []  # the value numbers of the outputs

    def trace(self, inputs: Sequence[Tensor], taped: bool, lines: bool = False) -> None:
        """Trace the function on symbolic tensors like the inputs, in a new trace.

        taped: whether a gradient is taken of it, so that gradients inside of it nest.
        lines: whether to note lines of the user's code, and keep a transcript.
        """
        trace = Trace(root(), user=False, refuse=_ReadsValues, lines=lines)

        def run() -> tuple[list[Tensor], Flattened]:
            arguments = [Tensor(trace.symbol(t.shape, t.dtype), None) for t in inputs]
            if taped:
                number = tape.begin()
                arguments = [tape.leaf(t, number) if t.dtype.kind == "f" else t for t in arguments]
            else:
                tape.clear()
            return arguments, self._result(arguments)

        arguments, results = active.call_under(trace, run)
        self.structure = results.structure
        for t in results.tensors:
            index = next((k for k, a in enumerate(arguments) if a is t), None)
            if index is not None:
                self.refs.append(("input", index))
            elif type(t._data) is Symbol:
                self.refs.append(("output", len(self.outputs)))
                self.outputs.append((t.shape, t.dtype))
                self._numbers.append(trace.number_of(t))
            else:
                self.refs.append(("constant", t))
        # A user's own VJP rule is not recorded as an entry.
        self._entries = None if trace.python_backward else list(trace.entries)
        self.checks = [e for e in trace.entries if e.op.failure is not None]
        self._specs = [Spec(v.shape, v.dtype) for v in trace.values]
        self._constants = {n: v for n, v in enumerate(trace.values) if not isinstance(v, Symbol)}
        if lines:
            self.transcript = Transcript(trace, set(range(len(inputs))))
        trace.end()

    @property
    def alone(self) -> bool:
        """Whether the result is a single tensor that the function computes."""
        return len(self.refs) == 1 == len(self.outputs)

    def fails(self, inputs: Sequence[Tensor | None]) -> bool:
        """Whether an op in it would find elements of an argument outside of their range.

        inputs: the arguments' tensors; None for one that is not there yet, which is not checked.
        """
        for entry in self.checks:
            tensors = [inputs[n] if n < len(inputs) else self._constants.get(n) for n in entry.inputs]
            operands = [
                self._specs[n] if t is None else t._data for n, t in zip(entry.inputs, tensors, strict=True)
            ]
            if entry.op.fails(operands, entry.attributes):
                return True
        return False

    def _result(self, inputs: Sequence[Tensor]) -> Flattened:
        arguments = rebuild(self._arguments, iter(inputs), iter(()))
        return Flattened(f"{self.name}: the result", self._function(*arguments), numbers=False)

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the traced ops on tensors; return the outputs."""
        if self._entries is None:
            tensors = self._result(inputs).tensors
            return [t for t, (kind, _) in zip(tensors, self.refs, strict=True) if kind == "output"]
        values = dict(enumerate(inputs)) | self._constants
        for entry in self._entries:
            out = entry.op.apply(tuple([values[n] for n in entry.inputs]), entry.attributes)
            for k, t in enumerate(out if isinstance(out, tuple) else (out,), entry.first):
                values[k] = t
        return [values[n] for n in self._numbers]

    def result(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """Return the function's result, rebuilt from the tensors of its arguments and its outputs."""
        if self.structure is Tensor and outputs:
            return outputs[0]
        of = {"input": inputs, "output": outputs}
        tensors = [k if kind == "constant" else of[kind][k] for kind, k in self.refs]
        return rebuild(self.structure, iter(tensors), iter(()))


class _ReadsValues(Exception):
    """A function reads values, so that a call of it can not be one entry."""


class PureCache(dict[Any, Pure | None]):
    """The traces of a pure function, by the structure of its arguments; None where it reads values.

    It is hashed by identity, as the part of an entry's key that names the function.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]


def call_pure(
    cache: PureCache,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    once: bool = False,
    eager: bool = False,
) -> Any:
    """Call a pure function: recorded as one entry where a trace of a user's Python is active.

    cache: the function's traces.
    once: whether its Python runs only to trace it, whichever trace is active.
    eager: whether its ops are replayed where no trace is active, too.
    """
    trace = tracing()
    user = trace is not None and trace.user and tape.depth() <= trace.depth
    if not user and not once and not eager:
        return function(*arguments)
    if trace is None and not eager:
        return function(*arguments)
    try:
        flat = Flattened("", arguments, numbers=False, scalars=False)
    except TypeError:
        return function(*arguments)  # arguments without a structure, such as floats
    structure, inputs = flat.structure, tuple(flat.tensors)
    taped = bool(active.state.gradients)
    state = active.state
    specs = [(t._data.shape, t._data.dtype) for t in inputs]
    key = (structure, taped, state.precision, state.accuracy, *specs)
    pure = cache.get(key, cache)
    if pure is cache:
        pure = cache[key] = _traced(function, structure, inputs, taped, once)
    elif once and CHECK and isinstance(pure, Pure) and pure.transcript is not None:
        again = _traced(function, structure, inputs, taped, once)
        if again is not None and again.transcript is not None:
            again.transcript.compare(pure.transcript, f"pure: {pure.name}")
    if not isinstance(pure, Pure) or (user and pure.checks and pure.fails(inputs)):
        return function(*arguments)
    if user:
        assert trace is not None
        return pure.result(inputs, record_call(trace, pure, None, pure.replay, inputs, pure.outputs))
    return pure.result(inputs, pure.replay(inputs))


def call_tensors(
    trace: Trace, cache: PureCache, key: Hashable, function: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> tuple[Pure, tuple[Tensor, ...]] | None:
    """Record a call of a pure function whose arguments are all tensors: in a third of `call_pure`'s time.

    key: whatever else the result depends on.

    Returns the traced function and its outputs; None where the call is not recorded, see `call_pure`.
    """
    state = active.state
    gradients = state.gradients
    if len(gradients) > trace.depth:
        return None
    taped = bool(gradients)
    numbers, deepest = trace.numbers_of(inputs)
    # The path of the trace determines the shapes and dtypes of its values.
    call_key = (cache, key, taped, state.precision, state.accuracy, numbers)
    entry = trace.entry.children.get(call_key)
    if entry is not None:
        pure = entry.op
    else:
        specs = [(t._data.shape, t._data.dtype) for t in inputs]
        full_key = (key, taped, state.precision, state.accuracy, *specs)
        pure = cache.get(full_key, cache)
        if pure is cache:
            structure = (tuple, len(inputs), (Tensor,) * len(inputs))
            pure = cache[full_key] = _traced(function, structure, inputs, taped, once=False)
    if not isinstance(pure, Pure) or (pure.checks and pure.fails(inputs)):
        return None
    call = PureCall(pure, pure.replay, inputs, numbers, taped)
    if state.captures:
        return pure, record(trace, call, call_key, pure.outputs, deepest)
    return pure, trace.call(call, call_key, inputs, pure.outputs, gradients, deepest)


def _traced(
    function: Callable[..., Any], structure: Hashable, inputs: Sequence[Tensor], taped: bool, once: bool
) -> Pure | None:
    pure = Pure(getattr(function, "__name__", type(function).__name__), function, structure)
    try:
        pure.trace(inputs, taped, lines=once and CHECK)
    except _ReadsValues:
        return None
    return pure


def _applied(function: Callable[..., R]) -> Callable[[tuple[Any, ...], dict[str, Any]], R]:
    """Return the function as one of (args, kwargs), with the same name."""

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        return function(*args, **kwargs)

    apply.__name__ = getattr(function, "__name__", type(function).__name__)
    return apply


def pure(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function as pure: its result depends on its arguments alone, and it has no side effects.

    function: a loss, or the function of a layer, which takes and returns trees of tensors.

    Returns the function with the mark. Called directly, it runs as before. A training step whose loss and
    layers are pure runs as a program without running their Python. The function is traced once for each
    structure of its arguments, and what it reads from outside is fixed then. With TREEPIE_CHECK=1 in the
    environment it is traced at each call.

    Raises TypeError for something that can not be called; where it is checked, ValueError, which names the
    line, when two traces differ.

    >>> import treepie as tp
    >>> loss = tp.pure(lambda out, y: tp.square(out - y).mean())
    >>> loss(tp.tensor([1.0, 2.0]), tp.tensor([0.0, 2.0]))
    tensor(0.5, dtype=float32)
    """
    if not callable(function):
        raise TypeError(f"pure: function is a {type(function).__name__}, expected a function")
    cache = PureCache()
    apply = _applied(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        return call_pure(cache, apply, (args, kwargs), once=True)  # type: ignore[no-any-return]

    wrapped.pure = wrapped.once = True  # type: ignore[attr-defined]
    return wrapped


def library(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of this library as pure, and explain wrong arguments, as `explain_calls` does."""
    cache = PureCache()
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    apply = _applied(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            trace = active.state.trace
            if trace is None or not trace.user or trace.closed:
                return function(*args, **kwargs)
            if not kwargs:
                inputs: tuple[Any, ...] = args
                if np.ndarray in map(type, args):
                    inputs = tuple([as_tensor(a) if type(a) is np.ndarray else a for a in args])
                for a in inputs:
                    if type(a) is not Tensor:
                        break
                else:
                    call = call_tensors(trace, cache, "", function, inputs)
                    return function(*args) if call is None else call[0].result(inputs, call[1])  # type: ignore
            return call_pure(cache, apply, (args, kwargs))  # type: ignore[no-any-return]
        except TypeError:
            explained = call_error(function, name, args, kwargs)
            if explained is not None:
                raise explained from None
            raise

    wrapped.pure = wrapped.explained = True  # type: ignore[attr-defined]
    return wrapped


def is_pure(function: Any) -> bool:
    """Whether a function is marked as pure, or is an op or a function without a closure of this library.

    A user's function is not while purity is checked (TREEPIE_CHECK=1), which runs its Python.
    """
    if getattr(function, "pure", False) is True:
        return not (CHECK and getattr(function, "once", False) is True)
    module = str(getattr(function, "__module__", ""))
    if not module.startswith("treepie.") or module.startswith("treepie.examples"):
        return False
    return hasattr(function, "op") or (isinstance(function, FunctionType) and function.__closure__ is None)
