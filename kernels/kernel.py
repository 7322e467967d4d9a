"""Kernels written in Numba: a serial function over chunks, and its C entry point.

    @kernel
    def scale(lo: int, hi: int, x: F1, factor: float, out: F1) -> None: ...

computes the chunks lo..hi-1; `scale(chunks, work_ns, x, 2.0, out)`, on operands, plans a launch. Arrays are
C-contiguous, with any dtypes; each combination of dtypes is compiled when a launch first needs it. Numba is
imported only then: a process whose kernels are all cached does not import it.
"""

from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import numpy as np
from llvmlite import ir

from . import native
from .compiled import c_function, compilable
from .digest import digest
from .intrinsics import Array, array_at
from .program import HEADER, Address, Argument, Launch, Operand, make_launch

A1 = Annotated[Array, 1]  # an array of one dimension, of two ...
A2 = Annotated[Array, 2]
A3 = Annotated[Array, 3]
A4 = Annotated[Array, 4]
#: Integers of the argument block itself, as an array: a count, then that many words. `rows_at` views memory
#: at an address among them as an array.
Words = Annotated[Array, "words"]
#: The error word of the launch, as an array of one: a kernel sets it to non-zero to report an error.
Status = Annotated[Array, "status"]


class Kernel:
    """A kernel and its compiled entry points, one for each combination of dtypes."""

    def __init__(self, body: Callable[..., None], name: str | None = None) -> None:
        self.body = body
        self.name = name or body.__name__
        hints = get_type_hints(body, include_extras=True)
        parameters = body.__code__.co_varnames[2 : body.__code__.co_argcount]
        self.kinds = [getattr(hints[p], "__metadata__", (hints[p],))[0] for p in parameters]
        self._entries: dict[tuple[np.dtype, ...], int] = {}

    def __call__(
        self, chunks: int, work_ns: float, *arguments: Argument | tuple[int | Address, ...]
    ) -> Launch:
        """Plan a launch over operands and numbers; a tuple of integers and addresses goes to `Words`."""
        words: list[Argument] = []
        for argument in arguments:
            if isinstance(argument, tuple):
                words += [len(argument), *argument]
            else:
                words.append(argument)
        dtypes = tuple(a.dtype for a in arguments if isinstance(a, Operand))
        return make_launch(self.entry(dtypes), chunks, work_ns, words)

    def entry(self, dtypes: tuple[np.dtype, ...]) -> int:
        """Return the address of the entry point for arrays of these dtypes."""
        if dtypes not in self._entries:
            symbol = self.symbol(dtypes)
            self._entries[dtypes] = native.load(symbol, lambda: self._build(symbol, dtypes))
        return self._entries[dtypes]

    def symbol(self, dtypes: tuple[np.dtype, ...]) -> str:
        """Return the name of the entry point, with a digest of the code that it is compiled from."""
        names = (d.kind + str(d.itemsize) for d in dtypes)
        return "_".join([self.name, *names, digest(self.body, self.kinds)])

    def _build(self, symbol: str, dtypes: tuple[np.dtype, ...]) -> str:
        """Compile with Numba, and return the LLVM IR of `void symbol(block, lo, hi)`."""
        from numba import from_dtype, types

        remaining = iter(dtypes)
        kinds: list[Any] = []
        for kind in self.kinds:
            if isinstance(kind, int):
                kinds.append(types.Array(from_dtype(next(remaining)), kind, "C"))
            elif isinstance(kind, str):
                kinds.append(kind)
            else:
                kinds.append(types.float64 if kind is float else types.int64)
        body, arguments = compilable(self.body), arguments_intrinsic(kinds)

        def entry(block, lo, hi):  # type: ignore[no-untyped-def]
            body(lo, hi, *arguments(block))

        return c_function(symbol, entry, 3)


def kernel(body: Callable[..., None]) -> Kernel:
    """Return the kernel of a function `(lo, hi, arrays and numbers...)`, which computes chunks lo..hi-1."""
    return Kernel(body)


def arguments_intrinsic(kinds: list[Any]) -> Any:
    """Return an intrinsic that reads a kernel's arguments from its block, as a tuple."""
    from numba import types
    from numba.extending import intrinsic

    i64 = ir.IntType(64)
    integers = types.Array(types.int64, 1, "C")
    results = types.Tuple([integers if isinstance(k, str) else k for k in kinds])

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        at = builder.add(args[0], ir.Constant(i64, 8 * HEADER))

        def word() -> ir.Value:
            nonlocal at
            value = builder.load(builder.inttoptr(at, i64.as_pointer()))
            at = builder.add(at, ir.Constant(i64, 8))
            return value

        def array(kind: Any, address: ir.Value, shape: list[ir.Value]) -> Any:
            return array_at(context, builder, kind, address, shape)

        values = []
        for kind in kinds:
            if kind == "status":
                values.append(array(integers, args[0], [ir.Constant(i64, 1)]))
            elif kind == "words":
                count = word()
                values.append(array(integers, at, [count]))
                at = builder.add(at, builder.mul(count, ir.Constant(i64, 8)))
            elif isinstance(kind, types.Array):
                address = word()
                values.append(array(kind, address, [word() for _ in range(kind.ndim)]))
            elif kind == types.float64:
                values.append(builder.bitcast(word(), ir.DoubleType()))
            elif kind == types.float32:
                values.append(builder.fptrunc(builder.bitcast(word(), ir.DoubleType()), ir.FloatType()))
            else:
                values.append(word())
        return context.make_tuple(builder, results, values)

    @intrinsic
    def arguments(typingctx, block):  # type: ignore[no-untyped-def]
        return results(block), codegen

    return arguments
