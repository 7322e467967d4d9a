"""`jit`: a function of trees of tensors as one program."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from treepie.autodiff import Tensor, tape
from treepie.autodiff.arguments import integer
from treepie.autodiff.program.cache import ProgramCache
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

#: What stands for a program of arguments for which the function reads values.
_EAGER = "eager"


class _Read(ValueError):
    """A traced function reads a value."""

    why = ""


class Jitted:
    """A pure function of trees of tensors that runs as one program, which `tp.jit` made."""

    pure = once = True

    def __init__(
        self,
        function: Callable[..., Any],
        static: Sequence[int | str] = (),
        donate: Sequence[int] = (),
        fallback: bool = False,
        check: bool = False,
    ) -> None:
        """Take a function; see `jit`."""
        functools.update_wrapper(self, function)
        self.function, self._static, self._donate = function, frozenset(static), frozenset(donate)
        self._fallback, self._check = fallback, check or CHECK
        self.name = getattr(function, "__name__", type(function).__name__)
        self._known: dict[Hashable, PureCache] = {}
        self._last: tuple[Matcher, Hashable] = (lambda arguments: None, None)
        self._cache = ProgramCache(f"calls of {self.name}")

    @property
    def programs(self) -> Sequence[Any]:
        """Its programs."""
        return self._cache.programs

    def __repr__(self) -> str:
        """Show the function's name."""
        return f"jit({self.name})"

    def __reduce__(self) -> Any:
        """Pickle as the function and the options."""
        options = tuple(self._static), tuple(self._donate), self._fallback, self._check
        return Jitted, (self.function, *options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        trace = active.tracing()
        if trace is not None or tape.recording():
            known = self._known.setdefault(self._statics(args, kwargs), {})
            return call_pure(known, self._apply, (args, kwargs), once=True, eager=True)
        with compilations.watch():
            return self._run(args, kwargs)

    def _apply(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.function(*args, **kwargs)

    def _statics(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the static arguments, with their positions or names and their types."""
        if not self._static:
            return ()
        found: list[tuple[int | str, type, Any]] = []
        found += [(k, type(a), a) for k, a in enumerate(args) if k in self._static]
        found += [(k, type(a), a) for k, a in kwargs.items() if k in self._static]
        try:
            hash(tuple(found))
        except TypeError:
            raise TypeError(
                f"jit: a static argument of {self.name} is not hashable, expected one that is"
            ) from None
        return tuple(found)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        statics = self._statics(args, kwargs)
        if statics:
            args = tuple([None if k in self._static else a for k, a in enumerate(args)])
            kwargs = {k: a for k, a in kwargs.items() if k not in self._static}
        flat = self._flat((args, kwargs))
        numbers, tensors = flat.numbers or [], flat.tensors
        specs = tuple([(t._data.shape, t._data.dtype) for t in tensors])
        root = self._cache.root((flat.structure, statics, tuple(map(type, numbers)), specs))
        found = self._cache.find(root, 0)
        if found is None or (self._check and found is not _EAGER):
            found = self._known_or_traced(root, found, flat, statics)
        if not isinstance(found, ProgramFamily):
            return self._called(flat, statics, tensors, numbers)
        firsts, continues = _blocks(tensors)
        program = found.variant(
            (get_num_threads(), continues), lambda: self._request(found.request, args, flat, continues)
        )
        addresses = [tensors[k].address for k in firsts]
        owners: Any = ()
        if program.donated_memory and _apart(addresses, program.request.externals, program.request.donated):
            owners = _owners(tensors, firsts, program.request.donated)
        run = program.prepare(addresses, numbers, (), owners)
        results = run.fresh()
        failed = run.go()
        if failed >= 0:
            if owners:
                raise run.error(failed)
            return self._called(flat, statics, tensors, numbers)  # which raises the error, or handles it
        program.done(run)
        build, result_numbers = found.result
        values: Sequence[Any] = ()
        if result_numbers:
            every = found.request.numbers.evaluate(numbers)  # type: ignore[union-attr]
            values = [every[n.index] if type(n) is Number else n for n in result_numbers]
        return build(results, values)

    def _flat(self, arguments: Any) -> Flattened:
        """Return the arguments taken apart, in the way of the last call if they are alike."""
        match, structure = self._last
        found = match(arguments)
        if found is not None:
            return Flattened.of(*found, structure)
        flat = Flattened(f"jit: {self.name}, (args, kwargs)", arguments)
        if flat.plain:
            self._last = matcher(flat.structure), flat.structure
        return flat

    def _called(
        self, flat: Flattened, statics: Any, tensors: Sequence[Tensor], numbers: Sequence[Any]
    ) -> Any:
        """Call the function with these in the places of its arguments' tensors and numbers."""
        args, kwargs = rebuild(flat.structure, iter(tensors), iter(numbers))
        static = {k: a for k, _, a in statics}
        args = [static.get(k, a) for k, a in enumerate(args)]
        return self.function(*args, **kwargs, **{k: a for k, a in static.items() if isinstance(k, str)})

    def _known_or_traced(self, root: Entry, found: Any, flat: Flattened, statics: Any) -> Any:
        """Trace the function; hold it against what was traced before, if there is that."""
        try:
            made = self._traced(flat, statics)
        except _Read as error:
            if not self._fallback:
                raise
            self._cache.report_eager(error.why)
            root.programs[0] = _EAGER
            return _EAGER
        if isinstance(found, ProgramFamily):
            made.transcript.compare(found.transcript, f"jit: {self.name}")
            _compare_numbers(f"jit: {self.name}", made.result[1], found.result[1])
            return found
        self._cache.add(root, 0, made)
        return made

    def _traced(self, flat: Flattened, statics: Any) -> ProgramFamily:
        """Run the function on symbolic tensors, and return what it does."""
        trace = Trace(root(), user=False, refuse=self._refuse, lines=self._check)
        numbers = Numbers(flat.numbers or ())
        given = [Tensor(trace.symbol(t.shape, t.dtype)) for t in flat.tensors]
        symbols = [numbers.number(k) for k in range(len(flat.numbers or ()))]

        def run() -> Flattened:
            result = self._called(flat, statics, given, symbols)
            return Flattened(f"jit: the result of {self.name}", result)

        result = active.inside(trace, run)
        if trace.read_at is not None:
            self._refuse(trace.read_at)  # the function has caught it
        fresh = [trace.number_of(t) for t in result.tensors]
        inputs = {n: Slice(n) for n in range(len(given))}
        request = Request([t.array.nbytes for t in flat.tensors], inputs, fresh, numbers=numbers)
        made = ProgramFamily(trace, trace.entries, request, self._cache.arenas)
        made.result = (builder(result.structure), result.numbers)
        made.transcript = Transcript(trace, set(inputs)) if self._check else None
        trace.end()
        return made

    def _request(
        self, request: Request, args: tuple[Any, ...], flat: Flattened, continues: Sequence[bool]
    ) -> Request:
        """Return a request with arguments in blocks of memory."""
        sizes: list[int] = []
        inputs: dict[int, Slice] = {}
        for n, (t, on) in enumerate(zip(flat.tensors, continues, strict=True)):
            if not on:
                sizes.append(0)
            inputs[n] = Slice(len(sizes) - 1, sizes[-1])
            sizes[-1] += t.array.nbytes
        donated = self._donated(args, flat, continues)
        return replace(request, externals=sizes, inputs=inputs, donated=donated)

    def _refuse(self, line: str) -> NoReturn:
        reads = f"a value is read in {line}"
        error = _Read(
            f"jit: {self.name} can not run as one program: {reads}. Use tp.where in the place of `if`, name "
            "the argument in static=, or let it run op by op with fallback=True"
        )
        error.why = reads
        raise error

    def _donated(self, args: tuple[Any, ...], flat: Flattened, continues: Sequence[bool]) -> tuple[int, ...]:
        """Return the externals that hold nothing but donated tensors."""
        if not self._donate:
            return ()
        owned = [k in self._donate for k, a in enumerate(args) for _ in Flattened("", a).tensors]
        owned += [False] * (len(flat.tensors) - len(owned))
        made: list[bool] = []
        for own, on in zip(owned, continues, strict=True):
            if on:
                made[-1] &= own
            else:
                made.append(own)
        return tuple([k for k, own in enumerate(made) if own])


def _blocks(tensors: Sequence[Tensor]) -> tuple[list[int], tuple[bool, ...]]:
    """Return which tensors begin blocks of memory, and of each tensor whether it goes on with one.

    Parameters lie side by side in an optimizer's buffers, which it reads whole.
    """
    firsts, continues, end, base = [], [], -1, None
    for k, t in enumerate(tensors):
        array, start = t.array, t._address or t.address
        mine = array.base
        on = start == end and mine is base and mine is not None
        continues.append(on)
        if not on:
            firsts.append(k)
        end, base = start + array.nbytes, mine
    return firsts, tuple(continues)


def _apart(addresses: Sequence[int], sizes: Sequence[int], donated: Sequence[int]) -> bool:
    """Whether donated memory overlaps no other."""
    spans = [(a, a + n) for a, n in zip(addresses, sizes, strict=True)]
    return all(
        j == k or spans[j][1] <= spans[k][0] or spans[k][1] <= spans[j][0]
        for k in donated
        for j in range(len(spans))
    )


def _owners(tensors: Sequence[Tensor], externals: Sequence[int], donated: Sequence[int]) -> dict[int, Any]:
    """Return the arrays whose memory donated externals are."""
    made = {}
    for k in donated:
        array = tensors[externals[k]].array
        made[k] = array if array.base is None else array.base
    return made


def _compare_numbers(function: str, now: Sequence[Any], before: Sequence[Any]) -> None:
    """Raise ValueError where a result is another number of Python's than it was."""
    for a, b in zip(now, before, strict=True):
        if type(a) is not Number and type(b) is not Number and repr(a) != repr(b):
            raise ValueError(f"{function} is not pure: a number in its result was {b} and is {a}")


def _positions(function: Callable[..., Any], static: Sequence[int | str]) -> list[int | str]:
    """Return static arguments by name, and by position where they can be given so too."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return list(static)
    names = [p.name for p in parameters]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    made: list[int | str] = []
    for s in static:
        made.append(s)
        if isinstance(s, int):
            made += names[s : s + 1]
        elif s in names:
            if parameters[names.index(s)].kind is not inspect.Parameter.KEYWORD_ONLY:
                made.append(names.index(s))
        elif not any_name:
            raise ValueError(
                f"jit: static is {s!r}, expected an argument of the function: {', '.join(names)}"
            )
    return made


def jit(
    function: Callable[..., Any] | None = None,
    static: int | str | Sequence[int | str] = (),
    donate: int | Sequence[int] = (),
    fallback: bool = False,
    check: bool = False,
) -> Any:
    """Return a pure function as one program: forward, backward and update in one native call.

    It is traced once for each structure of its arguments; what it reads from outside is fixed then.

    function: takes and returns trees of tensors; states of optimizers, models and training too. Python
        numbers among the arguments are values, NumPy's arrays become tensors; strings and None are structure.
    static: positions or names of arguments that are structure too, such as numbers that a branch depends on.
    donate: positions of arguments whose memory results may take. They are not read afterwards.
    fallback: run op by op, and say so once, where the function reads values; else ValueError says where.
    check: trace at each call, and raise ValueError where the function is not pure, naming the line and what
        differs. TREEPIE_CHECK=1 in the environment does so for all functions.

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
