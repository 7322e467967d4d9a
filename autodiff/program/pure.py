"""Pure functions: their results depend on their arguments alone, so a call is one entry of a trace.

The library's own layers and losses are pure, and users' functions under `pure` and `jit`. Where a user's
Python runs on symbolic tensors, a pure function that it calls does not: the entry knows the shapes of its
results from the first time, and what it does from a trace of its own.
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
from ..ptree.structure import Flattened, rebuild
from ..tensor import Tensor
from ..trace import active
from ..trace.active import tracing
from ..trace.compare import Transcript
from ..trace.entry import Entry, Symbol, root
from ..trace.trace import Trace
from .call import entered

P = ParamSpec("P")
R = TypeVar("R")


class Pure:
    """A pure function for arguments of one structure, traced.

    structure: of its results, whose tensors are, in order, `refs`: ("input", number of an argument's tensor),
        ("output", number) or ("constant", a tensor).
    outputs: shapes and dtypes.
    """

    __slots__ = (
        "_constants",
        "_function",
        "_items",
        "_numbers",
        "_specs",
        "_taken",
        "checks",
        "name",
        "outputs",
        "refs",
        "structure",
        "written",
    )

    def __init__(self, name: str, function: Callable[..., Any], taken: Hashable) -> None:
        self.name, self._function, self._taken = name, function, taken
        self.refs: list[tuple[str, Any]] = []
        self.outputs: list[tuple[tuple[int, ...], np.dtype]] = []
        self.structure: Any = None
        self.written: Transcript | None = None
        self._items: list[Entry] | None = []
        self.checks: list[Entry] = []  # that look at the elements of an argument
        self._constants: dict[int, Tensor] = {}
        self._numbers: list[int] = []

    def trace(self, given: Sequence[Tensor], taped: bool, lines: bool = False) -> None:
        """Learn what it does, by running it on symbolic tensors that lead nowhere.

        taped: whether a gradient is taken of it, so that gradients inside of it have one too.
        """
        trace = Trace(root(), user=False, refuse=_Opaque, lines=lines)

        def run() -> tuple[list[Tensor], Flattened]:
            arguments = [Tensor(trace.symbol(t.shape, t.dtype)) for t in given]
            if taped:
                number = tape.begin()
                arguments = [tape.leaf(t, number) if t.dtype.kind == "f" else t for t in arguments]
            else:
                tape.clear()
            return arguments, self._result(arguments)

        arguments, results = active.inside(trace, run)
        self.structure = results.structure
        for t in results.tensors:
            at = next((k for k, a in enumerate(arguments) if a is t), None)
            if at is not None:
                self.refs.append(("input", at))
            elif type(t._data) is Symbol:
                self.refs.append(("output", len(self.outputs)))
                self.outputs.append((t.shape, t.dtype))
                self._numbers.append(trace.number_of(t))
            else:
                self.refs.append(("constant", t))
        # A rule of a user's own in the backward pass is no entry: then its Python runs again.
        self._items = None if trace.python_backward else list(trace.entries)
        self.checks = [e for e in trace.entries if e.op.failure is not None]
        self._specs = [Spec(v.shape, v.dtype) for v in trace.values]
        held = enumerate(trace.values)
        self._constants = {n: v for n, v in held if not isinstance(v, Symbol)}
        if lines:
            self.written = Transcript(trace, set(range(len(given))))
        trace.end()

    @property
    def alone(self) -> bool:
        """Whether one tensor is all that it gives."""
        return len(self.refs) == 1 == len(self.outputs)

    def fails(self, given: Sequence[Tensor | None]) -> bool:
        """Whether an op in it would find elements of an argument outside of their range.

        given: its arguments' tensors, or None for those that are not known.
        """
        for entry in self.checks:
            known = [given[n] if n < len(given) else self._constants.get(n) for n in entry.inputs]
            operands = [
                self._specs[n] if t is None else t._data for n, t in zip(entry.inputs, known, strict=True)
            ]
            if entry.op.fails(operands, entry.attributes):
                return True
        return False

    def _result(self, given: Sequence[Tensor]) -> Flattened:
        arguments = rebuild(self._taken, iter(given), iter(()))
        return Flattened(f"{self.name}: the result", self._function(*arguments), numbers=False)

    def replay(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors of its results that are no arguments and no constants."""
        if self._items is None:
            tensors = self._result(given).tensors
            return [t for t, (kind, _) in zip(tensors, self.refs, strict=True) if kind == "output"]
        values = dict(enumerate(given)) | self._constants
        for entry in self._items:
            out = entry.op.apply(tuple([values[n] for n in entry.inputs]), entry.attributes)
            for k, t in enumerate(out if isinstance(out, tuple) else (out,), entry.first):
                values[k] = t
        return [values[n] for n in self._numbers]

    def result(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> Any:
        """Return its result around tensors."""
        if self.structure is Tensor and made:
            return made[0]
        of = {"input": given, "output": made}
        tensors = [k if kind == "constant" else of[kind][k] for kind, k in self.refs]
        return rebuild(self.structure, iter(tensors), iter(()))


class _Opaque(Exception):
    """A function reads values, so that it can not be one entry."""


#: What is known of a pure function, by the structure of its arguments; None where it reads values.
PureCache = dict[Any, Pure | None]


def call_pure(
    known: PureCache,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    once: bool = False,
    eager: bool = False,
) -> Any:
    """Call a pure function: as one entry where a trace of a user's Python is active.

    known: what it keeps of a function.  once: whether the function's Python runs once only, for any trace.
    eager: whether it is replayed in ops where no trace is active.
    """
    trace = tracing()
    user = trace is not None and trace.user and tape.depth() <= trace.depth
    if not user and not once and not eager:
        return function(*arguments)
    if trace is None and not eager:
        return function(*arguments)
    try:
        flat = Flattened("", arguments, numbers=False)
    except TypeError:
        return function(*arguments)  # with arguments that are no structure, such as floats
    structure, given = flat.structure, tuple(flat.tensors)
    taped = bool(active.state.gradients)
    key = (structure, taped, *[(t._data.shape, t._data.dtype) for t in given])
    pure = known.get(key, known)
    if pure is known:
        pure = known[key] = _outlined(function, structure, given, taped, once)
    elif once and CHECK and isinstance(pure, Pure) and pure.written is not None:
        again = _outlined(function, structure, given, taped, once)
        if again is not None and again.written is not None:
            again.written.compare(pure.written, f"pure: {pure.name}")
    if not isinstance(pure, Pure) or (user and pure.checks and pure.fails(given)):
        return function(*arguments)
    if user:
        assert trace is not None
        return pure.result(given, entered(trace, pure, None, pure.replay, given, pure.outputs))
    return pure.result(given, pure.replay(given))


def call_tensors(
    trace: Trace, known: PureCache, key: Hashable, function: Callable[..., Any], given: tuple[Tensor, ...]
) -> tuple[Pure, list[Tensor]] | None:
    """Call a pure function of nothing but tensors as one entry: the usual case, in a third of the time.

    key: what else decides on its result.  Returns what is known of it, and results; None where the call is no
    entry, see `call_pure`.
    """
    gradients = active.state.gradients
    if len(gradients) > trace.depth:
        return None
    taped = bool(gradients)
    whole = (key, taped, *[(t._data.shape, t._data.dtype) for t in given])
    pure = known.get(whole, known)
    if pure is known:
        taken = (tuple, len(given), (Tensor,) * len(given))
        pure = known[whole] = _outlined(function, taken, given, taped, once=False)
    if not isinstance(pure, Pure) or (pure.checks and pure.fails(given)):
        return None
    return pure, entered(trace, pure, None, pure.replay, given, pure.outputs)


def _outlined(
    function: Callable[..., Any], taken: Hashable, given: Sequence[Tensor], taped: bool, once: bool
) -> Pure | None:
    pure = Pure(getattr(function, "__name__", type(function).__name__), function, taken)
    try:
        pure.trace(given, taped, lines=once and CHECK)
    except _Opaque:
        return None
    return pure


def _applied(function: Callable[..., R]) -> Callable[[tuple[Any, ...], dict[str, Any]], R]:
    """Return a function of a tuple and a dict of arguments, under its name."""

    def apply(args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        return function(*args, **kwargs)

    apply.__name__ = getattr(function, "__name__", type(function).__name__)
    return apply


def pure(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function as pure: its result depends on its arguments alone, and it has no side effects.

    function: a loss, or the function of a layer: takes and returns trees of tensors.

    A training step with a pure loss, and a model whose layers are pure, replays a program without running
    their Python. What the function reads from outside is fixed when it is traced, once for each structure of
    its arguments. With TREEPIE_CHECK=1 in the environment it is traced at each call, and a ValueError names
    the line where two traces differ. Called by itself, it does what it says.

    >>> import treepie as tp
    >>> loss = tp.pure(lambda out, y: tp.square(out - y).mean())
    >>> loss(tp.tensor([1.0, 2.0]), tp.tensor([0.0, 2.0]))
    tensor(0.5, dtype=float32)
    """
    if not callable(function):
        raise TypeError(f"pure: function is a {type(function).__name__}, expected a function")
    known: PureCache = {}
    apply = _applied(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        return call_pure(known, apply, (args, kwargs), once=True)  # type: ignore[no-any-return]

    wrapped.pure = wrapped.once = True  # type: ignore[attr-defined]
    return wrapped


def library(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function of the library's own as pure."""
    known: PureCache = {}
    apply = _applied(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        trace = active.state.trace
        if trace is None or not trace.user or trace.closed:
            return function(*args, **kwargs)
        if not kwargs:
            given = tuple([as_tensor(a) if type(a) is np.ndarray else a for a in args])
            for a in given:
                if type(a) is not Tensor:
                    break
            else:
                found = call_tensors(trace, known, "", function, given)  # type: ignore[arg-type]
                return function(*args) if found is None else found[0].result(given, found[1])  # type: ignore
        return call_pure(known, apply, (args, kwargs))  # type: ignore[no-any-return]

    wrapped.pure = True  # type: ignore[attr-defined]
    return wrapped


def is_pure(function: Any) -> bool:
    """Whether a function is marked as pure, or one of the library's own that reads nothing else.

    A user's function is not while it is held to its word, since its Python runs then.
    """
    if getattr(function, "pure", False) is True:
        return not (CHECK and getattr(function, "once", False) is True)
    module = str(getattr(function, "__module__", ""))
    if not module.startswith("treepie.") or module.startswith("treepie.examples"):
        return False
    return hasattr(function, "op") or (isinstance(function, FunctionType) and function.__closure__ is None)


def user_runs() -> bool:
    """Whether a trace of a user's Python is active."""
    trace = active.state.trace
    return trace is not None and trace.user and not trace.closed
