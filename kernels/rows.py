"""Formulas over rows, for Numba kernels: map a row, or reduce it to a number, in vectors.

`row_sum = row_reduce("row_sum", lambda x: x.astype("float64"), add, -0.0)` can be called in a kernel as
`row_sum(x[i])`. LLVM alone can not vectorise such a sum without reordering it; here the order is fixed
by the row's length and the CPU's vector width, whatever surrounds the call.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from .kernel import unpacked
from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Formula, Value, constant, vector_type

#: Vectors summed side by side, so that one addition need not wait 4 cycles for the last.
_CHAINS = 4


def row_reduce(
    name: str, formula: Formula, combine: Formula, start: float, start_int: int = 0
) -> Callable[..., Any]:
    """Make a function `(row, *numbers)` that combines `formula(element, *numbers)` over a row.

    The result has the formula's dtype. `start`, for integers `start_int`, must leave any value as it
    is when combined.
    """

    def stand_in(row: Any, *numbers: Any) -> Any:
        raise TypeError(f"{name} runs only inside a kernel")

    stand_in.for_numba = lambda: _reduce_intrinsic(name, formula, combine, (start, start_int))  # type: ignore[attr-defined]
    return stand_in


def row_map(name: str, formula: Formula, outs: int = 1) -> Callable[..., Any]:
    """Make a function `(out, *rows_and_numbers)` that stores `formula` of them in a row, element by element.

    `out` may be one of the rows. With `outs` above 1, so many rows come first, and the formula gives a
    value for each.
    """

    def stand_in(out: Any, *arguments: Any) -> Any:
        raise TypeError(f"{name} runs only inside a kernel")

    stand_in.for_numba = lambda: _map_intrinsic(name, formula, outs)  # type: ignore[attr-defined]
    return stand_in


def _dtype(kind: Any) -> str:
    """NumPy's name of a Numba number type or array type."""
    name = str(getattr(kind, "dtype", kind))
    return {"boolean": "bool"}.get(name, name)


def _flatten(
    context: Any, builder: ir.IRBuilder, kinds: Sequence[Any], values: Any
) -> tuple[list[ir.Value], ir.Value]:
    """Return arrays as addresses and numbers as they are, and the length of the first array."""
    flat, length = [], None
    for kind, value in zip(kinds, values, strict=True):
        if hasattr(kind, "dtype"):
            array = context.make_array(kind)(context, builder, value)
            flat.append(builder.ptrtoint(array.data, I64))
            length = array.nitems if length is None else length
        else:
            flat.append(value)
    return flat, length


def _function(
    module: ir.Module, name: str, kinds: Sequence[Any], result: ir.Type, extra: list[str]
) -> Loop | None:
    """Begin `name(length, arguments...)` in a module, or return None if it is there."""
    if name in module.globals:
        return None
    dtypes = [_dtype(k) for k in kinds]
    arguments = [
        I64 if hasattr(k, "dtype") else vector_type(d, 1) for k, d in zip(kinds, dtypes, strict=True)
    ]
    loop = Loop(module, name, ir.FunctionType(result, [I64, *arguments]), [*dtypes, *extra])
    loop.function.linkage = "internal"
    return loop


class _Row:
    """The arguments of a row function, read a vector at a time."""

    def __init__(self, loop: Loop, kinds: Sequence[Any]) -> None:
        self.loop, self.kinds = loop, kinds
        self.dtypes = [_dtype(k) for k in kinds]
        self.fixed = {
            k: Value(loop.builder, self.dtypes[k], loop.lanes, loop.splat(loop.function.args[1 + k]))
            for k, kind in enumerate(kinds)
            if not hasattr(kind, "dtype")
        }

    def at(self, k: int, i: ir.Value) -> ir.Value:
        """Return the address of element i of argument k."""
        b = self.loop.builder
        return b.add(self.loop.function.args[1 + k], b.mul(i, n64(bytes_of(self.dtypes[k]))))

    def values(self, i: ir.Value, mask: ir.Value | None, first: int = 0) -> list[Value]:
        """Return the arguments from `first` on, at elements i, i + 1, ..."""
        return [
            self.fixed[k] if k in self.fixed else self.loop.load(self.dtypes[k], self.at(k, i), mask)
            for k in range(first, len(self.kinds))
        ]


def _write_map(row: _Row, formula: Formula, outs: int) -> None:
    loop, b = row.loop, row.loop.builder
    count = loop.function.args[0]

    def step(i: ir.Value, mask: ir.Value | None = None) -> list[ir.Value]:
        made = formula(*row.values(i, mask, first=outs))
        for k, value in enumerate(made if outs > 1 else [made]):
            loop.store(value.astype(row.dtypes[k]), row.at(k, i), mask)
        return []

    whole = b.and_(count, n64(-loop.lanes))
    loop.loop(n64(0), whole, loop.lanes, step)
    rest = b.sub(count, whole)
    loop.when(b.icmp_signed(">", rest, n64(0)), lambda: step(whole, loop.mask(rest)), [])
    b.ret_void()


def _write_reduce(row: _Row, formula: Formula, combine: Formula, dtype: str, start: float) -> None:
    loop, b, lanes = row.loop, row.loop.builder, row.loop.lanes
    count = loop.function.args[0]
    identity = constant(dtype, lanes, start)

    def wrap(raw: ir.Value) -> Value:
        return Value(b, dtype, lanes, raw)

    def step(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        out = []
        for k, total in enumerate(totals):
            value = formula(*row.values(b.add(i, n64(k * lanes)), None))
            out.append(combine(wrap(total), value).ir)
        return out

    blocks = b.and_(count, n64(-_CHAINS * lanes))
    whole = b.and_(count, n64(-lanes))
    chains = loop.loop(n64(0), blocks, _CHAINS * lanes, step, [identity] * _CHAINS)
    first = loop.loop(blocks, whole, lanes, step, chains[:1])
    rest = b.sub(count, whole)

    def tail() -> list[ir.Value]:
        mask = loop.mask(rest)
        value = formula(*row.values(whole, mask))
        kept = wrap(b.select(mask, value.ir, identity))
        return [combine(wrap(first[0]), kept).ir]

    chains[0] = loop.when(b.icmp_signed(">", rest, n64(0)), tail, first)[0]
    pairs = [combine(wrap(chains[k]), wrap(chains[k + 2])) for k in (0, 1)]
    b.ret(_across(combine(*pairs), combine).ir)


def _across(total: Value, combine: Formula) -> Value:
    """Combine the lanes of a vector: its halves, then theirs, down to one element."""
    b = total.builder
    while total.lanes > 1:
        half = total.lanes // 2
        raw = []
        for start in (0, half):
            part = ir.Constant(ir.VectorType(I32, half), list(range(start, start + half)))
            raw.append(b.shuffle_vector(total.ir, total.ir, part))
        if half == 1:
            raw = [b.extract_element(r, ir.Constant(I32, 0)) for r in raw]
        total = combine(*(Value(b, total.dtype, half, r) for r in raw))
    return total


def _call(
    context: Any,
    builder: ir.IRBuilder,
    signature: Any,
    args: Any,
    name: str,
    dtype: str | None,
    write: Callable[[_Row], None],
) -> ir.Value:
    """Call a row function from a kernel, and write it where the module does not have it yet."""
    kinds = [signature.args[0], *signature.args[1]]
    flat, length = _flatten(context, builder, kinds, [args[0], *unpacked(builder, args[1])])
    symbol = "_".join([name, *(_dtype(k) for k in kinds)])
    result = ir.VoidType() if dtype is None else vector_type(dtype, 1)
    loop = _function(builder.module, symbol, kinds, result, [dtype] if dtype else [])
    if loop is not None:
        write(_Row(loop, kinds))
    return builder.call(builder.module.globals[symbol], [length, *flat])


def _map_intrinsic(name: str, formula: Formula, outs: int) -> Any:
    from numba import types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _call(context, builder, signature, args, name, None, lambda row: _write_map(row, formula, outs))
        return context.get_dummy_value()

    @intrinsic
    def call(typingctx, out, *arguments):  # type: ignore[no-untyped-def]
        return types.void(out, types.StarArgTuple.from_types(arguments)), codegen

    return call


def _result_dtype(formula: Formula, kinds: Sequence[Any]) -> str:
    """Return the dtype that a formula gives for these arguments: write it into a function thrown away."""
    loop = _function(ir.Module("probe"), "probe", kinds, ir.VoidType(), ["float64"])
    assert loop is not None
    dtype: str = formula(*_Row(loop, kinds).values(n64(0), None)).dtype
    return dtype


def _reduce_intrinsic(name: str, formula: Formula, combine: Formula, starts: tuple[float, int]) -> Any:
    from numba import from_dtype, types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        dtype = _dtype(signature.return_type)
        start = starts[0 if "float" in dtype else 1]

        def write(row: _Row) -> None:
            _write_reduce(row, formula, combine, dtype, start)

        return _call(context, builder, signature, args, name, dtype, write)

    @intrinsic
    def call(typingctx, row, *arguments):  # type: ignore[no-untyped-def]
        result = from_dtype(np.dtype(_result_dtype(formula, [row, *arguments])))
        return result(row, types.StarArgTuple.from_types(arguments)), codegen

    return call
