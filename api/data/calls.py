"""The calls that made a pipeline, which its repr shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ..display import call_text, counted, cut

P = ParamSpec("P")
R = TypeVar("R")


class ShownByCalls:
    """A pipeline whose repr shows how many elements it has, and the calls that made it."""

    _calls: tuple[Callable[[], str], ...] = ()
    _length = _next = 0

    def __repr__(self) -> str:
        """Show the number of elements, how many were read, and the calls."""
        calls = ".".join([text() for text in self._calls])
        read = f"{self._next:,} of {counted(self._length, 'element')} read"
        return f"Data({cut(f'{calls}; {read}' if calls else read)})"


def noted(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that returns a pipeline to note its call there, after those of its own pipeline."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        data: Any = method(*args, **kwargs)
        first: Any = args[0] if args else None
        calls = getattr(first, "_calls", ()) if isinstance(first, ShownByCalls) else ()
        data._calls = (*calls, lambda: _text(method, *args, **kwargs))
        return data  # type: ignore[no-any-return]

    return call


def _text(method: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    if args and isinstance(args[0], ShownByCalls):
        return call_text(functools.partial(method, args[0]), args[1:], kwargs, 1, method.__name__)
    return call_text(method, args, kwargs, 1)
