"""`jit`: a pure function of trees of tensors that runs as one program."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from treepie.autodiff import Tensor, tape
from treepie.autodiff.arguments import integer
from treepie.autodiff.program.cache import EAGER, ProgramCache
from treepie.autodiff.program.graph import Slice
from treepie.autodiff.program.program import ProgramFamily
from treepie.autodiff.program.pure import PureCache, call_pure
from treepie.autodiff.program.request import Request
from treepie.autodiff.ptree.structure import Flattened, Matcher, builder, matcher, rebuild
from treepie.autodiff.trace import active
from treepie.autodiff.trace.compare import Transcript
from treepie.autodiff.trace.entry import Entry, root
from treepie.autodiff.trace.number import Number, Numbers
from treepie.autodiff.trace.trace import Trace
from treepie.kernels.compilations import compilations
from treepie.kernels.config import CHECK
from treepie.kernels.threads import get_num_threads

from .blocks import contiguous_blocks, donated_blocks, overlap, owners

P = ParamSpec("P")
R = TypeVar("R")


class ReadError(ValueError):
    """A traced function reads a value.

    reason: the part of the message that says where.
    """

    reason = ""


class Jitted(Generic[P, R]):
    """A pure function of trees of tensors that runs as one program; `tp.jit` returns it."""

    pure = once = True

    def __init__(
        self,
        function: Callable[P, R],
        static: Sequence[int | str] = (),
        donate: Sequence[int] = (),
        fallback: bool = False,
        check: bool = False,
    ) -> None:
        """Wrap a function; see `jit`."""
        functools.update_wrapper(self, function)
        self.function, self._static, self._donate = function, frozenset(static), frozenset(donate)
        self._fallback, self._check = fallback, check or CHECK
        self.name = getattr(function, "__name__", type(function).__name__)
        self._pure_caches: dict[Hashable, PureCache] = {}  # by static arguments
        self._last: tuple[Matcher, Hashable] = (lambda arguments: None, None)  # of the last call's structure
        self._cache = ProgramCache(f"calls of {self.name}")

    @property
    def programs(self) -> Sequence[Any]:
        """The programs so far."""
        return self._cache.programs

    def __repr__(self) -> str:
        """Show the function's name."""
        return f"jit({self.name})"

    def __reduce__(self) -> Any:
        """Pickle as the function and the options."""
        options = tuple(self._static), tuple(self._donate), self._fallback, self._check
        return Jitted, (self.function, *options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function."""
        trace = active.tracing()
        if trace is not None or tape.recording():
            cache = self._pure_caches.setdefault(self._statics(args, kwargs), PureCache())
            result: R = call_pure(cache, self._apply, (args, kwargs), once=True, eager=True)
            return result
        with compilations.watch():
            return self._run(args, kwargs)  # type: ignore[no-any-return]

    def _apply(self, args: Any, kwargs: Any) -> R:
        return self.function(*args, **kwargs)

    # ---- arguments
    def _statics(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the static arguments, as (position or name, type, value)."""
        if not self._static:
            return ()
        statics: list[tuple[int | str, type, Any]] = []
        statics += [(k, type(a), a) for k, a in enumerate(args) if k in self._static]
        statics += [(k, type(a), a) for k, a in kwargs.items() if k in self._static]
        try:
            hash(tuple(statics))
        except TypeError:
            raise TypeError(
                f"jit: a static argument of {self.name} is not hashable, expected one that is"
            ) from None
        return tuple(statics)

    def _flatten(self, arguments: Any) -> Flattened:
        """Return (args, kwargs) flattened, by the matcher of the last call if the structure is the same."""
        match, structure = self._last
        leaves = match(arguments)
        if leaves is not None:
            return Flattened.of(*leaves, structure)
        flat = Flattened(f"jit: {self.name}, (args, kwargs)", arguments)
        if flat.plain:
            self._last = matcher(flat.structure), flat.structure
        return flat

    def _call(self, flat: Flattened, statics: Any, tensors: Sequence[Tensor], numbers: Sequence[Any]) -> R:
        """Call the function itself, with these leaves in its arguments."""
        args, kwargs = rebuild(flat.structure, iter(tensors), iter(numbers))
        values = {k: a for k, _, a in statics}
        args = [values.get(k, a) for k, a in enumerate(args)]
        return self.function(*args, **kwargs, **{k: a for k, a in values.items() if isinstance(k, str)})

    # ---- running
    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        statics = self._statics(args, kwargs)
        if statics:
            args = tuple([None if k in self._static else a for k, a in enumerate(args)])
            kwargs = {k: a for k, a in kwargs.items() if k not in self._static}
        flat = self._flatten((args, kwargs))
        numbers, tensors = flat.numbers or [], flat.tensors
        specs = tuple([(t._data.shape, t._data.dtype) for t in tensors])
        entry = self._cache.root((flat.structure, statics, tuple(map(type, numbers)), specs))
        family: Any = self._cache.find(entry, 0)
        if family is None or (self._check and family is not EAGER):
            family = self._trace_or_check(entry, family, flat, statics)
        if not isinstance(family, ProgramFamily):
            return self._call(flat, statics, tensors, numbers)
        firsts, continues = contiguous_blocks(tensors)
        program = family.variant(
            (get_num_threads(), continues), lambda: self._request(family.request, args, flat, continues)
        )
        addresses = [tensors[k].address for k in firsts]
        donated: Any = ()
        if program.donated_memory:
            request = program.request
            if not overlap(addresses, request.externals, request.donated):
                donated = owners(tensors, firsts, request.donated)
        run = program.prepare(addresses, numbers, (), donated)
        results = run.fresh()
        failed = run.go()
        if failed >= 0:
            if donated or not program.repeatable(failed):
                raise run.error(failed)
            return self._call(flat, statics, tensors, numbers)  # raises the error, or handles it
        program.done(run)
        build, result_numbers = family.result
        values: Sequence[Any] = ()
        if result_numbers:
            evaluated = family.request.numbers.evaluate(numbers)  # type: ignore[union-attr]
            values = [evaluated[n.index] if type(n) is Number else n for n in result_numbers]
        return build(results, values)

    def _request(
        self, request: Request, args: tuple[Any, ...], flat: Flattened, continues: Sequence[bool]
    ) -> Request:
        """Return the request of a variant, whose externals are contiguous blocks of arguments."""
        sizes: list[int] = []
        inputs: dict[int, Slice] = {}
        for n, (t, continued) in enumerate(zip(flat.tensors, continues, strict=True)):
            if not continued:
                sizes.append(0)
            inputs[n] = Slice(len(sizes) - 1, sizes[-1])
            sizes[-1] += t.array.nbytes
        donated: tuple[int, ...] = ()
        if self._donate:
            owned = [k in self._donate for k, a in enumerate(args) for _ in Flattened("", a).tensors]
            owned += [False] * (len(flat.tensors) - len(owned))  # keyword arguments
            donated = donated_blocks(owned, continues)
        return replace(request, externals=sizes, inputs=inputs, donated=donated)

    # ---- tracing
    def _trace_or_check(self, entry: Entry, family: Any, flat: Flattened, statics: Any) -> Any:
        """Trace the function; return its programs, or `EAGER`.

        Where there are programs already, raise ValueError if the trace differs from theirs.
        """
        try:
            traced = self._trace(flat, statics)
        except ReadError as error:
            if not self._fallback:
                raise
            self._cache.report_eager(error.reason)
            entry.programs[0] = EAGER
            return EAGER
        if isinstance(family, ProgramFamily):
            assert traced.transcript is not None
            assert family.transcript is not None
            traced.transcript.compare(family.transcript, f"jit: {self.name}")
            _compare_numbers(f"jit: {self.name}", traced.result[1], family.result[1])
            return family
        self._cache.add(entry, 0, traced)
        return traced

    def _trace(self, flat: Flattened, statics: Any) -> ProgramFamily:
        """Run the function on symbolic tensors and numbers; return the programs of the trace."""
        trace = Trace(root(), user=False, refuse=self._refuse, lines=self._check)
        numbers = Numbers(flat.numbers or ())
        tensors = [Tensor(trace.symbol(t.shape, t.dtype), None) for t in flat.tensors]
        symbols = [numbers.number(k) for k in range(len(flat.numbers or ()))]

        def run() -> Flattened:
            result = self._call(flat, statics, tensors, symbols)
            return Flattened(f"jit: the result of {self.name}", result)

        result = active.call_under(trace, run)
        if trace.read_at is not None:
            self._refuse(trace.read_at)  # the function caught the error
        fresh = [trace.number_of(t) for t in result.tensors]
        inputs = {n: Slice(n) for n in range(len(tensors))}
        request = Request([t.array.nbytes for t in flat.tensors], inputs, fresh, numbers=numbers)
        family = ProgramFamily(trace, trace.entries, request, self._cache.arenas)
        family.result = (builder(result.structure), result.numbers)
        family.transcript = Transcript(trace, set(inputs)) if self._check else None
        trace.end()
        return family

    def _refuse(self, line: str) -> NoReturn:
        """Raise the error of a read in a line of the user's code."""
        reason = f"a value is read in {line}"
        error = ReadError(
            f"jit: {self.name} can not run as one program: {reason}. Use treepie's functions, such as tp.exp "
            "for np.exp, and tp.where instead of `if`; name the argument in static=; or let it run op by op "
            "with fallback=True"
        )
        error.reason = reason
        raise error


def _compare_numbers(function: str, now: Sequence[Any], before: Sequence[Any]) -> None:
    """Raise ValueError where a Python number in the result differs from that of the first trace."""
    for a, b in zip(now, before, strict=True):
        if type(a) is not Number and type(b) is not Number and repr(a) != repr(b):
            raise ValueError(f"{function} is not pure: a number in its result was {b} and is {a}")


def _positions(function: Callable[..., Any], static: Sequence[int | str]) -> list[int | str]:
    """Return the static arguments by name, and also by position where they can be passed so."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return list(static)
    names = [p.name for p in parameters]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    positions: list[int | str] = []
    for s in static:
        positions.append(s)
        if isinstance(s, int):
            positions += names[s : s + 1]
        elif s in names:
            if parameters[names.index(s)].kind is not inspect.Parameter.KEYWORD_ONLY:
                positions.append(names.index(s))
        elif not any_name:
            raise ValueError(
                f"jit: static is {s!r}, expected an argument of the function: {', '.join(names)}"
            )
    return positions


@overload
def jit(
    function: Callable[P, R],
    static: int | str | Sequence[int | str] = (),
    donate: int | Sequence[int] = (),
    fallback: bool = False,
    check: bool = False,
) -> Jitted[P, R]: ...


@overload
def jit(
    function: None = None,
    static: int | str | Sequence[int | str] = (),
    donate: int | Sequence[int] = (),
    fallback: bool = False,
    check: bool = False,
) -> Callable[[Callable[P, R]], Jitted[P, R]]: ...


def jit(
    function: Callable[..., Any] | None = None,
    static: int | str | Sequence[int | str] = (),
    donate: int | Sequence[int] = (),
    fallback: bool = False,
    check: bool = False,
) -> Any:
    """Return a function that runs a pure one as one program: forward, backward and update in one native call.

    The contract is that of `jax.jit`: the function is traced once for each structure of its arguments
    (shapes, dtypes, static values), and what it reads from outside is fixed then. The results have the bits
    of the function itself.

    function: takes and returns trees of tensors; states of optimizers, models and training too. Python
        numbers among the arguments are values, NumPy arrays become tensors; strings and None are structure.
        None returns a decorator.
    static: positions or names of arguments that are structure too, such as numbers that a branch depends on.
    donate: positions of arguments whose memory results may reuse; they must not be read afterwards.
    fallback: where the function reads values, run it op by op, with one line on stderr.
    check: trace at each call, and raise ValueError where two traces differ. TREEPIE_CHECK=1 in the
        environment does so for all functions.

    Raises TypeError for something that can not be called, and ValueError for a static argument that the
    function does not have. A call raises TypeError for arguments or results that are no trees of tensors, and
    for static arguments that are not hashable. It raises ValueError, which names the line, where the function
    reads a value, and where it is checked and not pure.

    >>> import treepie as tp
    >>> step = tp.jit(lambda w, x: w - 0.1 * tp.grad(lambda w: ((w * x) ** 2).sum())(w))
    >>> step(tp.tensor([1.0, 2.0]), tp.tensor([1.0, 0.5]))
    tensor([0.8, 1.9], dtype=float32)
    """
    if function is None:
        return functools.partial(jit, static=static, donate=donate, fallback=fallback, check=check)
    if not callable(function):
        raise TypeError(f"jit: function is a {type(function).__name__}, expected a function")
    names = [static] if isinstance(static, int | str) else static
    numbers = [donate] if isinstance(donate, int) else donate
    positions = [n if isinstance(n, str) else integer("jit", "static", n) for n in names]
    return Jitted(
        function,
        _positions(function, positions),
        [integer("jit", "donate", n) for n in numbers],
        fallback,
        check,
    )
