"""A digest of a function with all that it calls: part of a kernel's name, so that an edit gives another name.

It covers the bytecode of a function and the values that it names: functions, numbers, arrays, attributes of
modules, wherever they are defined. It depends on no address, path or line number, and is the same in every
process. What the key of the cache covers, in this package and in libraries, enters by name.
"""

import hashlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: Types whose `repr` is the value.
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type(...))

#: Libraries whose versions, and that of Python, are in the key of the cache.
_LIBRARIES = ("builtins", "numpy", "numba", "llvmlite")

#: What marks a function that Numba compiles, or that wraps another: attributes that lead to the code.
_MARKS = ("for_numba", "py_func", "targetoptions", "__wrapped__")


def digest(*values: Any) -> str:
    """Return a digest of values, as 12 hexadecimal digits."""
    text: list[str] = []
    _write(values, text.append, {})
    return hashlib.sha256("\n".join(text).encode(errors="surrogatepass")).hexdigest()[:12]


def _write(value: Any, write: Callable[[str], None], seen: dict[int, tuple[int, Any]]) -> None:
    """Write a value as lines: its kind, the number of its parts, and the parts.

    seen: the number of each object that is written, and the object, so that its id is not used again.
    """
    if type(value) in _PLAIN:
        write(repr(value))
    elif id(value) in seen:
        write(f"object {seen[id(value)][0]}")
    else:
        seen[id(value)] = len(seen), value
        kind, parts = _parts(value)
        write(f"{kind} of {len(parts)}")
        for part in parts:
            _write(part, write, seen)


def _parts(value: Any) -> tuple[str, list[Any]]:
    """Return the kind of an object, and what else distinguishes it."""
    kind = type(value).__qualname__
    if isinstance(value, tuple | list):
        return kind, list(value)
    if isinstance(value, set | frozenset):
        return kind, sorted(digest(v) for v in value)  # their order depends on the process
    if isinstance(value, dict):
        return kind, [part for item in value.items() for part in item]
    if isinstance(value, types.ModuleType):
        return kind, [value.__name__]
    if isinstance(value, types.CodeType):
        counts = [value.co_argcount, value.co_kwonlyargcount, value.co_flags]
        return kind, [*counts, value.co_code, value.co_names, value.co_consts]
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    if isinstance(name, str):
        return f"{kind} {getattr(value, '__module__', None)} {name}", _named(value)
    return kind, _state(value)


def _named(value: Any) -> list[Any]:
    """Return the parts of a function, a class, or an object that wraps one."""
    covered = _in_key(getattr(value, "__module__", None) or "")
    parts = [getattr(value, mark) for mark in _MARKS if hasattr(value, mark)]
    if isinstance(value, types.FunctionType):
        parts += [value.__code__, value.__defaults__, value.__kwdefaults__]
        parts += [_content(cell) for cell in value.__closure__ or ()]
        return parts if covered else [*parts, *_globals(value)]
    if covered or parts:
        return parts
    if isinstance(value, type):
        inherited = [base for base in value.__bases__ if base is not object]
        return inherited + [x for pair in vars(value).items() if _is_of_class(*pair) for x in pair]
    return [getattr(value, "__self__", None), getattr(value, "__func__", None)]


def _in_key(module: str) -> bool:
    """Whether the key of the cache covers a module: of this library, but for its examples, or of another one.

    The key has the sources of this package, and the version of the rest, which compiles nothing by itself.
    """
    if module.rpartition(".")[0] == __package__ or module.partition(".")[0] in _LIBRARIES:
        return True
    root = (__package__ or "").partition(".")[0]
    return module.partition(".")[0] == root and module.split(".")[1:2] != ["examples"]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty: of a function that is still being defined
        return None


def _globals(function: types.FunctionType) -> list[Any]:
    """Return the names and values of the globals that a function reads, and functions inside of it."""
    names = dict.fromkeys(name for code in code_objects(function.__code__) for name in code.co_names)
    return _reads(list(names), function.__globals__)


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """Return the code of a function, and of functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


def _reads(names: Iterable[str], namespace: dict[str, Any]) -> list[Any]:
    """Return those of some names that a namespace has, with their values, and those that its modules have."""
    parts: list[Any] = []
    for name in names:
        if name in namespace:
            value = namespace[name]
            parts += [name, value]
            if isinstance(value, types.ModuleType) and not _in_key(f"{value.__name__}."):
                parts.append(_reads([n for n in names if n != name], vars(value)))
    return parts


def _is_of_class(name: str, value: Any) -> bool:
    """Whether an entry of a class is a method or a value, and not what Python itself keeps there."""
    return isinstance(value, types.FunctionType) or not (name.startswith("__") and name.endswith("__"))


def _state(value: Any) -> list[Any]:
    """Return what an object is pickled as: arrays, dtypes, ranges, instances of classes."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return []  # such as a lock: its type is all that two processes can compare
    if isinstance(reduced, str):
        return [reduced]
    return [list(part) if isinstance(part, Iterator) else part for part in reduced]
