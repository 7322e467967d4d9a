"""Elements of pipelines: their type variables, and functions of their parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

U = TypeVar("U")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    # `Data` alone is `Data[Any]`. At run time Pythons before 3.13 have no defaults, and need none.
    T_co = TypeVarWithDefault("T_co", covariant=True, default=Any)
else:
    T_co = TypeVar("T_co", covariant=True)


def unpacking(fn: Callable[..., Any], leading: int = 0) -> Callable[..., Any]:
    """Return fn, taking the parts of a tuple element if it has that many required arguments.

    leading: number of arguments before the element.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return fn
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    count = len(needed) - leading
    if count < 2:
        return fn

    def call(*args: Any) -> Any:
        *before, element = args
        fits = isinstance(element, tuple) and len(element) == count
        return fn(*before, *element) if fits else fn(*args)

    return call
