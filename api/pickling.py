"""Pickling of layers, optimizers, schedules and initializers.

They contain nested functions, which pickle can not find by name. So each records the call of its constructor,
and is pickled as that call.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from pickle import PicklingError
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from treepie.autodiff.own import OwnFunction

from .display import call_text
from .errors import explain_calls

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self", bound="Constructed")

#: Packages that copy or pickle functions by value, not by name.
_BY_VALUE = {"copy", "cloudpickle", "dill"}


class Call(NamedTuple):
    """A call of a constructor."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Constructed:
    """An immutable object: it is pickled as the call of its constructor, and a copy is the object itself.

    An object without a recorded call, such as a user's own `Layer`, is pickled by its class and attributes.
    """

    __slots__ = ()
    #: Up to how many required arguments the repr shows without their names.
    _unnamed = math.inf

    def __repr__(self) -> str:
        """Show the recorded call, else the class and the name."""
        call: Call | None = getattr(self, "_call", None)
        if call is not None:
            return call_text(*call, unnamed=self._unnamed)
        name = getattr(self, "name", getattr(self, "__name__", ""))
        return f"{type(self).__name__}({name})"

    def __copy__(self: Self) -> Self:
        """Return itself."""
        return self

    def __deepcopy__(self: Self, memo: Any) -> Self:
        """Return itself."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return the recorded call, for pickle; PicklingError for a function without an importable name."""
        call: Call | None = getattr(self, "_call", None)
        reduced = super().__reduce_ex__(protocol) if call is None else (_run, tuple(call))
        name = getattr(self, "name", getattr(self, "__name__", ""))
        kind = getattr(self, "kind", type(self).__name__)
        check_picklable(f"{kind} {name!r}", reduced)
        return reduced


class Function(Constructed, functools.partial[Any]):
    """A function that a constructor returned.

    A `partial`, since calling one costs 35 ns more than calling the function; `__call__` in Python costs 120.
    """

    __name__: str
    _call: Call

    __repr__ = Constructed.__repr__  # not that of `partial`


def constructor(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a constructor to record its call in the result, so that the result can be pickled.

    function: one at the top level of a module, that returns a `Constructed` or a function; a function
        becomes a `Function`.

    Containers among the arguments are copied first, since they may change later. A call that is recorded
    already is kept.
    """

    checked = explain_calls(function, _public_name(function))

    @functools.wraps(checked)
    def construct(*args: P.args, **kwargs: P.kwargs) -> R:
        call = Call(construct, _snapshot(args), _snapshot(kwargs))
        result: Any = checked(*call.args, **call.kwargs)
        if not isinstance(result, Constructed):
            result = Function(result)
            result.__name__, result.__doc__ = function.__name__, function.__doc__
        if not hasattr(result, "_call"):
            object.__setattr__(result, "_call", call)  # optimizers are frozen
        return cast(R, result)

    return construct


def _public_name(function: Callable[..., Any]) -> str:
    """Return a constructor's name in messages, such as "layer.linear"."""
    package, *modules = function.__module__.removeprefix("treepie.").split(".")
    schedules = ".schedule" if modules[-1:] == ["schedule"] else ""
    return f"{package}{schedules}.{function.__name__}"


def _snapshot(x: Any) -> Any:
    """Return a copy of lists, dicts and tuples, and a list of an iterator's elements."""
    if type(x) is list or (isinstance(x, Iterator) and not callable(x)):
        return [_snapshot(child) for child in x]
    if type(x) is tuple:
        return tuple([_snapshot(child) for child in x])
    if type(x) is dict:
        return {k: _snapshot(child) for k, child in x.items()}
    return x


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Repeat a pickled call."""
    return function(*args, **kwargs)


def check_picklable(owner: str, parts: Any) -> None:
    """Raise PicklingError, with its name, file and line, for a function that pickle can not find by name."""
    for x in _functions(parts):
        if not _importable(x) and not _copied_by_value():
            inner = inspect.unwrap(x)
            code = getattr(inner, "__code__", None)
            location = f" at {code.co_filename}:{code.co_firstlineno}" if code else f" of {x.__module__}"
            raise PicklingError(
                f"{owner}: {inner.__qualname__}{location} can not be pickled; define it by name at the top "
                "level of a module"
            )


def _functions(x: Any) -> Iterator[Any]:
    """Yield the functions and classes in containers, methods and partials, which pickle saves by name."""
    if isinstance(x, types.FunctionType | type):
        yield x
    elif isinstance(x, types.MethodType):
        yield from _functions(x.__self__)
    elif isinstance(x, functools.partial) and not isinstance(x, Function):
        yield from _functions((x.func, x.args, x.keywords))
    elif isinstance(x, list | tuple | set | frozenset):
        for child in x:
            yield from _functions(child)
    elif isinstance(x, dict):
        yield from _functions(list(x.values()))
    elif isinstance(x, OwnFunction) and x.importable_name():
        return
    elif hasattr(x, "__wrapped__") and not _importable(x):
        yield from _functions(x.__wrapped__)


def _importable(x: Any) -> bool:
    """Whether importing a function or class by its name returns it."""
    try:
        return operator.attrgetter(x.__qualname__)(importlib.import_module(x.__module__)) is x
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def _copied_by_value() -> bool:
    """Whether the caller is `copy`, or a pickler that saves functions by their code."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _BY_VALUE.isdisjoint(str(frame.f_globals.get("__name__")).split(".")):
            return True
        frame = frame.f_back
    return False
