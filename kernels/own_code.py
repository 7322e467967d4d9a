"""The code of functions of a user's, as Numba is to compile it in kernels: with all that they call."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types as python_types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .digest import code_objects
from .intrinsics import scalar, unpacked
from .vector import Formula

#: Python's functions that stand for formulas in kernels, such as those of `tp.math`: (formula, operands).
_FORMULAS: dict[Any, tuple[Formula, int]] = {}

#: Modules whose functions Numba knows.
_LIBRARIES = ("builtins", "math", "numba", "numpy")


class KernelError(TypeError):
    """A function that cannot be a kernel; the message names its line."""


def where(function: Callable[..., Any], name: str | None = None) -> str:
    """Return a function's name, file and line, for messages."""
    code = function.__code__
    return f"kernel {name or function.__name__} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def reachable(function: Callable[..., Any]) -> Iterator[python_types.CodeType]:
    """Return the code of a function and of the functions that it calls, as far as they are not libraries'."""
    seen: set[python_types.CodeType] = set()
    stack: list[Any] = [function]
    while stack:
        each = stack.pop()
        each = getattr(each, "py_func", each)
        if not isinstance(each, python_types.FunctionType) or each.__code__ in seen or _is_known(each):
            continue
        codes = list(code_objects(each.__code__))
        seen.update(codes)
        yield from codes
        named = _named(each)
        stack += named.values()
        modules = [m for m in named.values() if isinstance(m, python_types.ModuleType) and not _is_known(m)]
        stack += [vars(m).get(name) for m in modules for code in codes for name in code.co_names]


def _named(function: python_types.FunctionType) -> dict[str, Any]:
    """Return the globals and the variables of enclosing functions that a function names, by name."""
    names = [name for code in code_objects(function.__code__) for name in code.co_names]
    found = {n: function.__globals__[n] for n in names if n in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        found[name] = cell.cell_contents
    return found


def _is_known(value: Any) -> bool:
    """Whether Numba knows a function by itself."""
    if isinstance(value, python_types.ModuleType):
        return value.__name__.partition(".")[0] in (*_LIBRARIES, __name__.partition(".")[0])
    return value in _FORMULAS or (getattr(value, "__module__", "") or "").partition(".")[0] in _LIBRARIES


def positional(function: Callable[..., Any]) -> python_types.FunctionType:
    """Return a function whose keyword-only parameters are positional ones, which Numba compiles."""
    assert isinstance(function, python_types.FunctionType)
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    code = code.replace(co_argcount=count, co_kwonlyargcount=0)
    return python_types.FunctionType(
        code, function.__globals__, function.__name__, None, function.__closure__
    )


def with_constants(function: Callable[..., Any], constants: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a function with constants in place of some of its keyword-only parameters.

    Numba then compiles the branches that their values take, and no strings.
    """
    if not constants:
        return function
    assert isinstance(function, python_types.FunctionType)
    code = function.__code__
    try:
        lines, _ = inspect.getsourcelines(function)
    except (OSError, TypeError):
        raise KernelError(
            f"{where(function)} has the text or bool {', '.join(constants)} as argument, for which Python "
            "must find its source: expected a function of a file or a notebook"
        ) from None
    tree = ast.parse(textwrap.dedent("".join(lines)))
    (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef))
    kept = [
        (a, d)
        for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if a.arg not in constants
    ]
    node.args.kwonlyargs, node.args.kw_defaults = [a for a, _ in kept], [None for _ in kept]
    node.args.defaults, node.decorator_list, node.returns = [], [], None
    for argument in (*node.args.args, *node.args.kwonlyargs):
        argument.annotation = None
    ast.increment_lineno(tree, code.co_firstlineno - 1)
    namespace: dict[str, Any] = {**function.__globals__, **_named(function), **constants}
    exec(compile(tree, code.co_filename, "exec", dont_inherit=True), namespace)  # the user's own source
    result: Callable[..., Any] = namespace[node.name]
    return result


def compilable_with_calls(function: python_types.FunctionType, fastmath: Any) -> Any:
    """Return a function for Numba, with all functions that it calls under the options of kernels.

    A function of a user's need not be decorated; one with `njit` loses its options, such as the division that
    raises, except for `fastmath`.
    """
    from numba import njit

    done: dict[Any, Any] = {}

    def swap(value: Any, names: frozenset[str] = frozenset()) -> Any:
        if hasattr(value, "for_numba"):
            return value.for_numba()
        if isinstance(value, python_types.ModuleType):
            return _module_like(value, names, swap)
        fast = (
            getattr(value, "targetoptions", {}).get("fastmath", False) if hasattr(value, "py_func") else False
        )
        inner = getattr(value, "py_func", value)
        if not isinstance(inner, python_types.FunctionType) or _is_known(inner):
            return value
        if inner not in done:
            done[inner] = None  # until it is complete: of a function that calls itself
            done[inner] = _jitted(_compilable_copy(inner, swap), fast)
        return value if done[inner] is None else done[inner]

    def _jitted(copy: Callable[..., Any], fast: Any) -> Any:
        return njit(
            nogil=True,
            error_model="numpy",
            fastmath=fast,
            no_cpython_wrapper=True,
            no_cfunc_wrapper=True,
            forceinline=True,
        )(copy)

    return _jitted(_compilable_copy(function, swap), fastmath)


def without_raising(body: Any, kinds: tuple[Any, ...]) -> Any:
    """Compile a function of a range and of arguments of Numba's types `kinds`.

    Returns a function for Numba that runs it, and returns whether it has raised an exception.
    """
    from numba import types
    from numba.extending import intrinsic

    whole = (types.range_state64_type, *kinds)
    body.compile(whole)
    compiled = body.overloads[whole]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        context.active_code_library.add_linking_library(compiled.library)
        values = [args[0], *unpacked(builder, args[1])]
        status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, compiled.signature, values)
        return status.is_error

    @intrinsic
    def run(typingctx, rows, *arguments):  # type: ignore[no-untyped-def]
        return types.boolean(rows, types.StarArgTuple.from_types(arguments)), codegen

    return run


def _module_like(
    module: python_types.ModuleType, names: frozenset[str], swap: Callable[..., Any]
) -> python_types.ModuleType:
    """Return a module whose functions of some names are replaced; a library's is itself."""
    if _is_known(module):
        return module
    copy = python_types.ModuleType(module.__name__)
    copy.__dict__.update({n: swap(vars(module)[n], names) for n in names if n in vars(module)})
    return copy


def _compilable_copy(
    function: python_types.FunctionType, swap: Callable[..., Any]
) -> python_types.FunctionType:
    """Copy a function, with replacements for what it names."""
    names = frozenset(name for code in code_objects(function.__code__) for name in code.co_names)
    named = {name: swap(value, names) for name, value in _named(function).items()}
    cells = tuple(python_types.CellType(named[name]) for name in function.__code__.co_freevars)
    namespace = {"__builtins__": __builtins__, "__name__": function.__module__, **named}
    return python_types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, cells
    )


# ---- formulas
def declare_formula(function: Any, formula: Formula, operands: int) -> None:
    """Let a Python function stand for a formula of some operands in kernels."""
    _FORMULAS[function] = formula, operands


@functools.cache
def declare_formulas_to_numba() -> None:
    """Tell Numba of the functions that stand for formulas."""
    for function, (formula, operands) in _FORMULAS.items():
        _declare_formula(function, scalar(formula).for_numba(), operands)  # type: ignore[attr-defined]


def _declare_formula(function: Any, call: Any, operands: int) -> None:
    from numba import types
    from numba.extending import overload

    def float_of(*kinds: Any) -> Any:
        if not all(isinstance(k, types.Float | types.Integer | types.Boolean) for k in kinds):
            return None
        return np.float32 if all(k == types.float32 for k in kinds) else np.float64

    options = {"forceinline": True, "error_model": "numpy"}
    if operands == 1:

        @overload(function, jit_options=options)
        def of_one(x):  # type: ignore[no-untyped-def]
            to = float_of(x)
            return to and (lambda x: call(to(x)))
    else:

        @overload(function, jit_options=options)
        def of_two(x, y):  # type: ignore[no-untyped-def]
            to = float_of(x, y)
            return to and (lambda x, y: call(to(x), to(y)))
