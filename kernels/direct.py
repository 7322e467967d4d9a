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
from llvmlite import ir

from . import native
from .loops import I64, Loop, n64
from .program import CHUNKS, STATUS, Launch, LaunchTable

#: Estimated ns of a table at most: Python itself hands the GIL over every 5 ms.
_MOST_NS = 100_000

#: Bytes from an array's object to the address of its elements: after the reference count and the type.
_DATA = 16
#: Bytes in the words of a function: Py_IncRef, the objects that are returned after success and failure, the
#: numbers of launches and of slots; then the slots, of three words, and the launch table.
_SUCCESS, _FAILURE, _LAUNCHES, _SLOTS, _FIRST = range(8, 48, 8)
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


def _run_table(symbol: str) -> str:
    """Write `run_table(owner, arguments, count)`: run the table in the array `owner` on arrays.

    It is the code of the built-in functions. The IR is written here, since Numba takes 0.4 s to lower it.
    """
    loop = Loop(ir.Module(symbol), symbol, ir.FunctionType(I64, [I64] * 3), ["int64"])
    b, (owner, arguments, _) = loop.builder, loop.function.args

    def at(address: ir.Value, offset: int = 0) -> ir.Value:
        return b.inttoptr(b.add(address, n64(offset)), I64.as_pointer())

    words = b.load(at(owner, _DATA))
    slots, count = b.load(at(words, _SLOTS)), b.load(at(words, _LAUNCHES))
    table = b.add(b.add(words, n64(_FIRST)), b.mul(slots, n64(_NEXT)))
    result = b.alloca(I64)
    b.store(b.load(at(words, _SUCCESS)), result)

    def fill(k: ir.Value) -> None:
        slot = b.add(b.add(words, n64(_FIRST)), b.mul(k, n64(_NEXT)))
        array = b.load(at(b.add(arguments, b.mul(b.load(at(slot, _ARGUMENT)), n64(8)))))
        address = b.add(b.load(at(array, _DATA)), b.load(at(slot, _OFFSET)))
        b.store(address, at(b.add(table, b.load(at(slot, _TO)))))

    def launch(k: ir.Value) -> ir.Value:
        row = b.add(table, b.mul(k, n64(16)))
        block = b.add(row, b.load(at(row, 8)))
        b.store(n64(0), at(block, STATUS))
        kernel = b.inttoptr(b.load(at(row)), ir.FunctionType(ir.VoidType(), [I64] * 3).as_pointer())
        b.call(kernel, [block, n64(0), b.load(at(block, CHUNKS))])
        failed = b.icmp_signed("!=", b.load(at(block, STATUS)), n64(0))
        b.store(b.load(b.select(failed, at(words, _FAILURE), at(words, _SUCCESS))), result)
        return b.select(failed, count, b.add(k, n64(1)))

    loop.loop(n64(0), slots, 1, fill)
    loop.loop(n64(0), count, None, launch)
    increment = b.inttoptr(b.load(at(words)), ir.FunctionType(ir.VoidType(), [I64]).as_pointer())
    b.call(increment, [b.load(result)])
    b.ret(b.load(result))
    return str(loop.module)


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
    address = native.load("run_table", lambda: _run_table("run_table"))
    definition = _Definition(b"run_table", address, _FASTCALL, None)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(definition))  # a function that ends later reads its flags
    return definition
