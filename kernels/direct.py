"""Native calls that take arrays as Python objects, for launch tables of a few microseconds.

ctypes converts each argument, and needs the addresses of all buffers: 2 us for an operation of 16 elements. A
built-in function of CPython gets pointers to its arguments, and an array's object holds the address of its
elements; so a launch table becomes a built-in function whose code is compiled as kernels are. It keeps the
GIL, so only tables with little work are called so, and writes the addresses into the table itself, which the
GIL protects from other threads.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import sysconfig
from collections.abc import Callable, Sequence

import numpy as np

from . import native
from .atomics import call_c, load, store
from .compiled import c_function
from .program import Launch, LaunchTable, walk

#: Estimated ns of a table at most: Python itself hands the GIL over every 5 ms.
_MOST_NS = 100_000

#: Bytes from an array's object to the address of its elements: after the reference count and the type.
_DATA = 16
#: Bytes in the words of a function: Py_IncRef, the objects that are returned after success and failure, the
#: numbers of launches and of slots; then the slots, of three words, and the launch table.
_INCREMENT, _SUCCESS, _FAILURE, _LAUNCHES, _SLOTS, _FIRST = range(0, 48, 8)
#: Bytes in a slot: where in the table the address goes, the number of the argument, and an offset.
_TO, _ARGUMENT, _OFFSET, _NEXT = range(0, 32, 8)

#: Called with the arrays of all buffers; returns None, or False where a launch reported an error.
Direct = Callable[..., bool | None]


class _Definition(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL = 0x80


def run_table(owner: int, arguments: int, count: int) -> int:
    """Run the launch table in the array `owner`, on arrays: the code of the built-in functions."""
    words = load(owner + _DATA)
    slots = load(words + _SLOTS)
    table = words + _FIRST + _NEXT * slots
    for k in range(slots):
        slot = words + _FIRST + _NEXT * k
        array = load(arguments + 8 * load(slot + _ARGUMENT))
        store(table + load(slot + _TO), load(array + _DATA) + load(slot + _OFFSET))
    failed = walk(table, load(words + _LAUNCHES), 0) >= 0
    result = load(words + (_FAILURE if failed else _SUCCESS))
    call_c(load(words + _INCREMENT), result)
    return result


def direct(table: LaunchTable, launches: Sequence[Launch]) -> Direct | None:
    """Return a built-in function that runs the table of some launches, None where `LaunchTable.run` must."""
    if not table.alone or sum(x.work_ns for x in launches) > _MOST_NS or not _supported():
        return None
    slots, template = table.layout
    words = [_increment(), id(None), id(False), len(launches), len(slots)]
    for word, buffer, offset in slots:
        words += [8 * word, buffer, offset]
    owner = np.array([*words, *template], np.int64)
    function: Direct = ctypes.pythonapi.PyCFunction_NewEx(ctypes.byref(_definition()), owner, None)
    return function


@functools.cache
def _supported() -> bool:
    """Whether objects of this Python, and arrays of this NumPy, have the layout above."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    array = np.empty(3)
    return ctypes.c_int64.from_address(id(array) + _DATA).value == array.ctypes.data


@functools.cache
def _increment() -> int:
    return ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value or 0


@functools.cache
def _definition() -> _Definition:
    create = ctypes.pythonapi.PyCFunction_NewEx
    create.argtypes = [ctypes.POINTER(_Definition), ctypes.py_object, ctypes.py_object]
    create.restype = ctypes.py_object
    address = native.load("run_table", lambda: c_function("run_table", run_table, 3, returns=True))
    return _Definition(b"run_table", address, _FASTCALL, None)
