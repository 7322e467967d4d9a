"""From Python functions to LLVM IR, by Numba, which is imported only when something is compiled."""

import contextlib
import functools
import re
import types as python_types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .intrinsics import rename

_F = TypeVar("_F", bound=Callable[..., Any])

#: The definitions of Numba's functions that count references.
_COUNTS = re.compile(
    r"^(define [^\n]* @NRT_(?:incref|decref)\([^\n]*\))[^\n]*\{\n.*?^\}$", re.MULTILINE | re.DOTALL
)


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
    with _lowering_only():
        compiled = cfunc(result(*[types.int64] * arguments), error_model="numpy")(_resolved(function))
        text = compiled.inspect_llvm()
    return _without_counts(rename(text, compiled.native_name, symbol))


def _without_counts(text: str) -> str:
    """Empty the functions that count an array's references: in a kernel, no array has an owner."""
    return _COUNTS.sub(r"\1 {\n  ret void\n}", text)


@contextlib.contextmanager
def _lowering_only() -> Iterator[None]:
    """Let Numba infer types and lower to LLVM IR, but neither optimise nor compile.

    `native.py` optimises a kernel's whole module once. Numba would optimise each function of it, and that of
    each function that calls it, and compile all of them to machine code that nothing runs: half of its time.
    """
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
    with global_compiler_lock:
        usual = context._internal_codegen
        context._internal_codegen = _lowering_codegen()
        try:
            yield
        finally:
            context._internal_codegen = usual


@functools.cache
def _lowering_codegen() -> Any:
    """Return a code generator of Numba's whose libraries stay LLVM IR as it was lowered."""
    from numba.core.codegen import JITCodeLibrary, JITCPUCodegen

    class Library(JITCodeLibrary):  # type: ignore[misc]
        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            return 0  # there is no machine code

    class Codegen(JITCPUCodegen):  # type: ignore[misc]
        _library_class = Library

        def set_env(self, env_name: str, env: Any) -> None:
            """Leave the pointer to a function's globals, which only code that raises or prints reads."""

    return Codegen("treepie")
