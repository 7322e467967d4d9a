"""Operations on words that threads share, and the processor's clock, for functions that Numba compiles.

A word is an int64 at an address. Loads acquire, stores release, and the others are sequentially consistent.
"""

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from .intrinsics import unpacked
from .vector import declare

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_ORDER = "seq_cst"


def _primitive(emit: Callable[..., ir.Value]) -> Callable[..., int]:
    """Make a function that Numba compiles, of int64s and with an int64 as result, out of one that emits
    LLVM IR."""

    @functools.wraps(emit)
    def stand_in(*arguments: int) -> int:
        raise TypeError(f"{emit.__name__} runs only inside a kernel")

    def for_numba() -> Any:
        from numba import types
        from numba.extending import intrinsic

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return emit(builder, *unpacked(builder, args[0]))

        @intrinsic
        def call(typingctx, *arguments):  # type: ignore[no-untyped-def]
            return types.int64(types.StarArgTuple.from_types([types.int64] * len(arguments))), codegen

        return call

    stand_in.for_numba = for_numba  # type: ignore[attr-defined]
    return stand_in


def _pointer(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.inttoptr(address, _I64.as_pointer())


@_primitive
def load(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Return a word."""
    return b.load_atomic(_pointer(b, address), "acquire", 8)


@_primitive
def store(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> ir.Value:
    """Set a word; return the value."""
    b.store_atomic(value, _pointer(b, address), "release", 8)
    return value


@_primitive
def exchange(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> ir.Value:
    """Set a word; return what it was."""
    return b.atomic_rmw("xchg", _pointer(b, address), value, _ORDER)


@_primitive
def fetch_add(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> ir.Value:
    """Add to a word; return what it was."""
    return b.atomic_rmw("add", _pointer(b, address), value, _ORDER)


@_primitive
def compare_exchange(b: ir.IRBuilder, address: ir.Value, expected: ir.Value, value: ir.Value) -> ir.Value:
    """Set a word if it is what is expected; return 1 then, else 0."""
    outcome = b.cmpxchg(_pointer(b, address), expected, value, _ORDER, _ORDER)
    return b.zext(b.extract_value(outcome, 1), _I64)


@_primitive
def pause(b: ir.IRBuilder) -> ir.Value:
    """Let a moment pass in a loop that waits; the core gives its resources to its other thread."""
    if _architecture() == "x86_64":
        b.call(declare(b.module, "llvm.x86.sse2.pause", _VOID, []), [])
    elif _architecture() == "aarch64":
        b.asm(ir.FunctionType(_VOID, []), "isb", "", [], True)
    return ir.Constant(_I64, 0)


@_primitive
def ticks(b: ir.IRBuilder) -> ir.Value:
    """Return a clock of constant rate, the same on all cores; see `threads` for its rate."""
    if _architecture() == "aarch64":  # the counter of cycles is the kernel's alone there
        return b.asm(ir.FunctionType(_I64, []), "mrs $0, cntvct_el0", "=r", [], True)
    return b.call(declare(b.module, "llvm.readcyclecounter", _I64, []), [])


@_primitive
def call_c(b: ir.IRBuilder, function: ir.Value, *arguments: ir.Value) -> ir.Value:
    """Call a C function by its address, with integers or pointers; return its result, an int."""
    kind = ir.FunctionType(_I32, [_I64] * len(arguments))
    return b.sext(b.call(b.inttoptr(function, kind.as_pointer()), arguments), _I64)


@functools.cache
def _architecture() -> str:
    name: str = llvm.get_process_triple().partition("-")[0]
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(name, name)
