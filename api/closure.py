"""What a function reads besides its arguments: the cells of its closure, its globals, its defaults.

A program repeats what a function did, not its Python code. So what the code would have found is looked at
before each run: tensors and arrays are given to the program anew, everything else must be what it was.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treepie.autodiff import Tensor
from treepie.autodiff.arguments import as_tensor

from .layer import Layer
from .layout import Layout
from .optim import Optimizer

#: Packages whose functions and modules stay as they are, besides those that are installed.
_FIXED_PACKAGES = {*sys.stdlib_module_names, "treepie"} - {"__main__"}
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
_FIXED = (types.BuiltinFunctionType, np.ufunc, np.dtype, enum.Enum, Layer, Layout, Optimizer)
PLAIN = (bool, int, str, bytes, type(None), type(...))
#: Methods that show and compare objects.
_SHOWN = {f"__{name}__" for name in ("repr", "str", "format", "eq", "ne", "lt", "le", "gt", "ge", "hash")}

#: Things that are looked at, and bytes of an array of NumPy's, which is copied at each look.
_MOST, _LARGE = 2000, 1 << 24


class Same:
    """An object as a key: equal to itself alone."""

    __slots__ = ("is_",)

    def __init__(self, x: Any) -> None:
        """Hold an object."""
        self.is_ = x

    def __hash__(self) -> int:
        """Return a hash of its identity."""
        return id(self.is_)

    def __eq__(self, other: object) -> bool:
        """Whether another one holds the same object."""
        return type(other) is Same and self.is_ is other.is_


class Environment:
    """The tensors that a function reads, and `key`: all else that decides what it does.

    arrays: NumPy's arrays among them, each with the tensor that is made of it.
    unknown: why what it reads can not be told, where it can not.
    """

    def __init__(self, function: Callable[..., Any], others: Sequence[Callable[..., Any]] = ()) -> None:
        """Look around a function, and around others that it calls."""
        self.tensors: list[Tensor] = []
        self.arrays: list[tuple[Any, Tensor]] = []
        self.unknown: str | None = None
        self._parts: list[Hashable] = []
        self._seen: dict[int, tuple[int, Any]] = {}  # by id; held, since an id is another's after a death
        for f in (function, *others):
            self._visit(f, getattr(f, "__name__", type(f).__name__))
        self.key = tuple(self._parts)

    @staticmethod
    def of(function: Callable[..., Any], others: tuple[Callable[..., Any], ...] = ()) -> Environment:
        """Look around functions, or remember what a library's own has around it."""
        if not others and type(function) is types.FunctionType and is_fixed(function):
            return _fixed(function)
        return Environment(function, others)

    def _visit(self, x: Any, name: str) -> None:
        kind = type(x)
        if kind is Tensor:
            self._parts.append(Tensor)
            self.tensors.append(x)
        elif kind in PLAIN:
            self._parts.append((kind, x))
        elif kind in (float, complex, slice) or isinstance(x, np.generic):
            self._parts.append((kind, repr(x)))  # which tells -0.0 from 0.0, and a NaN is itself
        elif is_fixed(x):
            self._parts.append(Same(x))
        elif id(x) in self._seen:
            self._parts.append(("again", self._seen[id(x)][0]))
        elif len(self._parts) >= _MOST:
            self.unknown = self.unknown or f"it reads more than {_MOST} things from outside, such as {name!r}"
        else:
            self._seen[id(x)] = len(self._seen), x
            self._compound(x, name)

    def _compound(self, x: Any, name: str) -> None:
        """Visit what an object that may change holds."""
        kind = type(x)
        if isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, type):
            self._parts.append(Same(x))
            for own in (k for k in x.__mro__ if not is_fixed(k)):
                self._visit(_methods(own), own.__name__)
        elif isinstance(x, np.ndarray) and x.nbytes > _LARGE:
            self.unknown = self.unknown or (
                f"it reads {name!r}, an array of {x.nbytes >> 20} MB, which would be copied in each call "
                "(make a tensor of it)"
            )
        elif isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
            self.arrays.append((x, as_tensor(x)))
            self._visit(self.arrays[-1][1], name)
        elif isinstance(x, list | tuple):
            self._parts.append((kind, len(x)))
            for k, child in enumerate(x[:_MOST]):
                self._visit(child, f"{name}[{k}]")
            if len(x) > _MOST:
                self.unknown = self.unknown or f"it reads {name!r}, a {kind.__name__} of {len(x)} things"
        elif isinstance(x, set | frozenset) and all(type(child) in PLAIN for child in x):
            self._parts.append((kind, frozenset((type(child), child) for child in x)))
        elif isinstance(x, dict):
            self._parts.append((kind, len(x)))
            for k, child in x.items():
                self._visit(k, name)
                self._visit(child, f"{name}[{k!r}]")
        elif isinstance(x, types.MethodType):
            self._visit((x.__func__, x.__self__), name)
        elif isinstance(x, functools.partial):
            self._visit((x.func, x.args, x.keywords), name)
        elif isinstance(x, types.ModuleType):
            self._parts.append(Same(x))  # of its content, what a function names is visited with the function
        elif hasattr(x, "__wrapped__"):
            self._visit((kind, x.__wrapped__), name)
        elif dataclasses.is_dataclass(x):
            self._visit((kind, [getattr(x, f.name) for f in dataclasses.fields(x)]), name)
        elif _package(kind) == "treepie":
            self._parts.append(Same(x))
        elif hasattr(x, "__dict__") and not hasattr(kind, "__slots__"):
            self._visit((kind, vars(x)), name)
        else:
            self.unknown = self.unknown or f"it reads {name!r}, a {kind.__name__} whose content is not known"

    def _function(self, f: types.FunctionType) -> None:
        code = f.__code__
        self._parts.append(code)
        for cell_name, cell in zip(code.co_freevars, f.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # assigned later
                content = ValueError
            self._visit(content, cell_name)
        if f.__defaults__ or f.__kwdefaults__:
            self._visit((f.__defaults__, f.__kwdefaults__), f"a default of {f.__name__}")
        names = _names(code)
        for name in names:
            value = f.__globals__.get(name, self)
            if value is self:
                continue
            self._visit(value, name)
            if isinstance(value, types.ModuleType) and not is_fixed(value):
                for attribute in names:
                    if attribute in vars(value):
                        self._visit(vars(value)[attribute], f"{name}.{attribute}")


def is_fixed(x: Any) -> bool:
    """Whether an object stays as it is: of a library that does not change, or of a type that does not."""
    if isinstance(x, _FIXED):
        return True
    if isinstance(x, types.ModuleType):
        return _is_library(x.__name__.split(".")[0])
    return isinstance(x, types.FunctionType | type) and _is_library(_package(x))


@functools.lru_cache(maxsize=1000)
def _is_library(package: str) -> bool:
    file = getattr(sys.modules.get(package), "__file__", None)
    installed = file is not None and any(Path(file).is_relative_to(folder) for folder in _INSTALLED)
    return installed or package in _FIXED_PACKAGES


def _package(x: Any) -> str:
    return str(x.__module__).split(".")[0]


def _owner(x: Any) -> str:
    """Return the package of a method; nothing for anything else."""
    return _package(x) if isinstance(x, types.MethodType) else ""


def _methods(kind: type) -> list[types.FunctionType]:
    """Return the functions of a class that may compute something."""
    found = [
        x.fget if isinstance(x, property) else getattr(x, "__func__", x)
        for name, x in vars(kind).items()
        if name not in _SHOWN
    ]
    return [x for x in found if isinstance(x, types.FunctionType)]


def functions_of(model: Layer) -> tuple[Callable[..., Any], ...]:
    """Return the functions that users have put into a model: of layers of their own, and of `lambda_`."""
    found: dict[int, Callable[..., Any]] = {}
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        x = stack.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))  # all are held by the model
        if isinstance(x, Layer):
            stack.append(x.function)
        elif isinstance(x, list | tuple):
            stack += x
        elif isinstance(x, dict):
            stack += x.values()
        elif isinstance(x, types.FunctionType) and _package(x) == "treepie":
            stack += [cell.cell_contents for cell in x.__closure__ or ()]
        elif callable(x) and not is_fixed(x) and "treepie" not in (_package(type(x)), _owner(x)):
            found[id(x)] = x
    return tuple(found.values())


@functools.lru_cache(maxsize=1000)
def _fixed(function: Callable[..., Any]) -> Environment:
    return Environment(function)


@functools.lru_cache(maxsize=10_000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in a function's code, and in that of functions within."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(name for c in inner for name in _names(c))]))
