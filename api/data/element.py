"""Elements of pipelines: their type variables, and functions of their parts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from treepie.autodiff.arguments import described

U = TypeVar("U")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    # `Data` alone is `Data[Any]`. At run time Pythons before 3.13 have no defaults, and need none.
    T_co = TypeVarWithDefault("T_co", covariant=True, default=Any)
else:
    T_co = TypeVar("T_co", covariant=True)


def check_callable(function: str, fn: Any) -> None:
    """Raise TypeError for other than a function."""
    if not callable(fn):
        raise TypeError(f"{function}: given a {type(fn).__name__}, expected a function")


def check_source(length: Any, element: Any) -> None:
    """Raise TypeError for other than a length and a function, such as arrays."""
    if not isinstance(length, int | np.integer) or not callable(element):
        raise TypeError(
            f"Data: length is {described(length)} and element {described(element)}, expected an int and a "
            "function: Data.prepare((x, y), batch_size=32) makes batches of arrays"
        )


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
        if isinstance(element, tuple) and len(element) == count:
            return fn(*before, *element)
        parts = f"a tuple of {len(element)}" if isinstance(element, tuple) else f"a {type(element).__name__}"
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(
            f"Data: {name} takes {count} parts of an element, and an element is {parts}: expected as many, "
            "or one argument for the whole element"
        )

    return call
