"""From Python functions to LLVM IR, by Numba, which is imported only when something is compiled."""

import functools
import types as python_types
from collections.abc import Callable
from typing import Any, TypeVar

from .intrinsics import rename

_F = TypeVar("_F", bound=Callable[..., Any])


def device(function: _F) -> _F:
    """Mark a function that kernels call; it is compiled into each of them.

    It is always inlined: LLVM must see that the arrays it takes have no owner, or reference counts stay.
    """
    # Cached, because kernels share device functions, and Numba takes 0.1 to 0.3 s for each.
    function.for_numba = functools.cache(lambda: compilable(function, forceinline=True))  # type: ignore[attr-defined]
    return function


def compilable(function: Callable[..., Any], **options: Any) -> Any:
    """Return a function as one that functions compiled by Numba may call.

    Division by zero gives inf and nan, as in NumPy, instead of an exception no kernel can raise.
    """
    from numba import njit

    fast: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    return njit(nogil=True, error_model="numpy", **fast)(_resolved(function))


def _resolved(function: Any) -> Any:
    """Copy a function, replacing the marked functions that it calls by those that Numba compiles."""

    def swap(value: Any) -> Any:
        return value.for_numba() if hasattr(value, "for_numba") else value

    used = {n: swap(v) for n, v in function.__globals__.items() if n in function.__code__.co_names}
    cells = tuple(python_types.CellType(swap(c.cell_contents)) for c in function.__closure__ or ())
    return python_types.FunctionType(
        function.__code__, {"__builtins__": __builtins__, **used}, function.__name__, None, cells
    )


def c_function(symbol: str, function: Callable[..., Any], arguments: int, returns: bool = False) -> str:
    """Return LLVM IR that defines a C function, `void symbol(int64...)` or `int64 symbol(int64...)`."""
    from numba import cfunc, types

    result = types.int64 if returns else types.void
    compiled = cfunc(result(*[types.int64] * arguments), error_model="numpy")(_resolved(function))
    return rename(compiled.inspect_llvm(), compiled.native_name, symbol)
