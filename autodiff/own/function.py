"""What kernels and formulas of one's own have in common."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from treepie.kernels.digest import code_objects
from treepie.kernels.own_code import where

from ..table import Op


class OwnFunction:
    """What is common to ops of one's own: a name, a rule of gradients, and the op as it is at the moment.

    An op stands for the functions as they are: where one of them reads another value of a global, there is
    another op, so that no program keeps an old value.
    """

    __name__: str

    def __init__(self, function: Callable[..., Any]) -> None:
        if not isinstance(function, FunctionType):
            raise TypeError(f"kernel: {function!r} is no function, expected one that is written in Python")
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self.function = function
        self.rule: Callable[..., Any] | None = None
        self._op: Op | None = None
        self._reads: list[tuple[dict[str, Any], str, Any, bytes | None]] = []

    def __repr__(self) -> str:
        """Return the name, with the file and line of the function."""
        return where(self.function, self.__name__)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return the name under which its module holds it, as functions do, for pickle."""
        return self.importable_name() or super().__reduce_ex__(protocol)

    def importable_name(self) -> str | None:
        """Return the name under which its module holds it, None if it does not."""
        module = sys.modules.get(self.__module__)
        names = (name for name, value in vars(module).items() if value is self) if module else ()
        return next(iter(names), None)

    def __copy__(self) -> Any:
        """Return itself."""
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        """Return itself."""
        return self

    @property
    def op(self) -> Op:
        """The op, of the functions and of the globals that they read as these are now."""
        for namespace, name, value, content in self._reads:
            if namespace.get(name, _MISSING) is not value or (content and value.tobytes() != content):
                self._op = None
                break
        if self._op is None:
            functions = [self.function] if self.rule is None else [self.function, self.rule]
            self._reads = _reads(functions)
            self._op = self._make()
        return self._op

    def _make(self) -> Op:
        raise NotImplementedError

    def _set_rule(self, rule: Callable[..., Any]) -> None:
        self.rule, self._op = rule, None


_MISSING = object()


#: Bytes of a global array at most, which is compared at each call: an argument costs nothing.
_LARGEST_ARRAY = 1 << 14


def _reads(functions: Sequence[Any]) -> list[tuple[dict[str, Any], str, Any, bytes | None]]:
    """Return the globals that functions read, and those that they call.

    Each is (namespace, name, value, the bytes of an array). Raises TypeError for a large array.
    """
    found: list[tuple[dict[str, Any], str, Any, bytes | None]] = []
    seen: set[Any] = set()
    stack = list(functions)
    while stack:
        function = stack.pop()
        function = getattr(function, "py_func", getattr(function, "function", function))
        if not isinstance(function, FunctionType) or function in seen or _is_of_library(function.__module__):
            continue
        seen.add(function)
        names = {name for code in code_objects(function.__code__) for name in code.co_names}
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            found.append((function.__globals__, name, value, _content(function, name, value)))
            stack.append(value)
            if isinstance(value, ModuleType) and not _is_of_library(value.__name__):
                inner = {n: x for n, x in vars(value).items() if n in names}
                found += [(vars(value), n, x, _content(function, n, x)) for n, x in inner.items()]
                stack += inner.values()
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            value = cell.cell_contents
            content = _content(function, name, value)
            if content:
                found.append(({name: value}, name, value, content))
            stack.append(value)
    return found


def _content(function: FunctionType, name: str, value: Any) -> bytes | None:
    """Return the bytes of an array, which may change."""
    if not isinstance(value, np.ndarray):
        return None
    if value.nbytes > _LARGEST_ARRAY:
        raise TypeError(
            f"{where(function)} reads the array {name}, of {value.nbytes} bytes: expected an argument, or a "
            f"global of at most {_LARGEST_ARRAY} bytes, which is compiled in"
        )
    return value.tobytes()


def _is_of_library(module: str | None) -> bool:
    root = (module or "").partition(".")[0]
    return root in ("builtins", "math", "numba", "numpy") or (
        root == __name__.partition(".")[0] and ".examples" not in (module or "")
    )
