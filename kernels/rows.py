"""Formulas over rows, for Numba kernels: map a row, or reduce it to a number, in vectors.

`row_sum = row_reduce("row_sum", lambda x: x.astype("float64"), add, -0.0)` can be called in a kernel as
`row_sum(x[i])`. LLVM alone can not vectorise such a sum without reordering it; here the order is fixed
by the row's length and the CPU's vector width alone.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from .intrinsics import unpacked
from .loops import I32, I64, Loop, bytes_of, n64
from .vector import Formula, Value, constant, vector_type

#: Vectors summed side by side, so that one addition need not wait 4 cycles for the last.
_CHAINS = 4

#: Vectors of a chain that are combined before their result joins that of the others: the error of a sum of n
#: vectors grows with n / 128 and not with n.
_BLOCK = 128


def row_reduce(
    name: str,
    formula: Formula,
    combine: Formula,
    start: float,
    start_int: int = 0,
    stored: bool = False,
) -> Callable[..., Any]:
    """Make a function `(row, *numbers)` that combines `formula(element, *numbers)` over a row.

    The result has the formula's dtype; where the formula returns a tuple, so does the function, and each part
    is combined separately. `start`, for integers `start_int`, is the identity of `combine`.
    stored: the function is `(out, *rows_and_numbers)`, and stores the formula's values as `row_map` does.
    """

    def stand_in(row: Any, *numbers: Any) -> Any:
        raise TypeError(f"{name} runs only inside a kernel")

    stand_in.for_numba = lambda: _reduce_intrinsic(name, formula, combine, (start, start_int), stored)  # type: ignore[attr-defined]
    return stand_in


def row_map(name: str, formula: Formula, outs: int = 1) -> Callable[..., Any]:
    """Make a function `(out, *rows_and_numbers)` that stores `formula` of them in a row, element by element.

    `out` may be one of the rows. With `outs` above 1, that many output rows come first, and the formula
    returns a value for each.
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
    """Begin `name(length, arguments...)` in a module, or return None if the module has it."""
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
        values = formula(*row.values(i, mask, first=outs))
        for k, value in enumerate(values if outs > 1 else [values]):
            loop.store(value.astype(row.dtypes[k]), row.at(k, i), mask, rest=True)
        return []

    whole = b.and_(count, n64(-loop.lanes))
    loop.loop(n64(0), whole, loop.lanes, step)
    rest = b.sub(count, whole)
    loop.when(b.icmp_signed(">", rest, n64(0)), lambda: step(whole, loop.mask(rest)), [])
    b.ret_void()


def _write_reduce(
    row: _Row, formula: Formula, combine: Formula, dtypes: list[str], start: float, stored: bool
) -> None:
    loop, b, lanes = row.loop, row.loop.builder, row.loop.lanes
    count, parts = loop.function.args[0], len(dtypes)
    # More accumulators than registers would go through memory.
    chains = _CHAINS if parts <= 2 else _CHAINS // 2
    identities = [constant(d, lanes, start) for d in dtypes]

    def combined(totals: Sequence[ir.Value], values: Sequence[ir.Value]) -> list[ir.Value]:
        """Combine values of chains, each of all parts."""
        return [
            combine(Value(b, d, lanes, t), Value(b, d, lanes, v)).ir
            for d, t, v in zip(itertools.cycle(dtypes), totals, values, strict=False)
        ]

    def terms(i: ir.Value, mask: ir.Value | None) -> list[ir.Value]:
        values = formula(*row.values(i, mask, first=int(stored)))
        if stored:
            loop.store(values, row.at(0, i), mask, rest=True)
        return [v.ir for v in (values if isinstance(values, tuple) else (values,))]

    def step(i: ir.Value, *totals: ir.Value) -> list[ir.Value]:
        out: list[ir.Value] = []
        for k in range(len(totals) // parts):
            out += combined(totals[k * parts : (k + 1) * parts], terms(b.add(i, n64(k * lanes)), None))
        return out

    def block(i: ir.Value, *before: ir.Value) -> list[ir.Value]:
        end = loop.least(b.add(i, n64(size)), blocks)
        inside = loop.loop(i, end, chains * lanes, step, identities * chains)
        # Most rows have one block: adding it to nothing took up to a third of the time of 64 elements.
        return loop.when(b.icmp_signed(">", i, n64(0)), lambda: combined(before, inside), inside)

    blocks = b.and_(count, n64(-chains * lanes))
    whole = b.and_(count, n64(-lanes))
    size = _BLOCK * chains * lanes
    totals = loop.loop(n64(0), blocks, size, block, identities * chains)
    first = loop.loop(blocks, whole, lanes, step, totals[:parts])
    rest = b.sub(count, whole)

    def tail() -> list[ir.Value]:
        mask = loop.mask(rest)
        values = zip(terms(whole, mask), identities, strict=True)
        return combined(first, [b.select(mask, v, identity) for v, identity in values])

    totals[:parts] = loop.when(b.icmp_signed(">", rest, n64(0)), tail, first)
    while len(totals) > parts:
        half = len(totals) // 2
        totals = combined(totals[:half], totals[half:])
    _return(loop, [_across(Value(b, d, lanes, t), combine).ir for d, t in zip(dtypes, totals, strict=True)])


def _return(loop: Loop, results: list[ir.Value]) -> None:
    """Return one result, or a struct of several."""
    b = loop.builder
    if len(results) == 1:
        b.ret(results[0])
        return
    pack = ir.Constant(ir.LiteralStructType([r.type for r in results]), ir.Undefined)
    for k, value in enumerate(results):
        pack = b.insert_value(pack, value, k)
    b.ret(pack)


def _result_type(dtypes: list[str]) -> ir.Type:
    """Return void for no results, the type of one, a struct of several."""
    if not dtypes:
        return ir.VoidType()
    kinds = [vector_type(d, 1) for d in dtypes]
    return kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)


def _across(total: Value, combine: Formula) -> Value:
    """Combine the lanes of a vector: its halves, then their halves, down to one element."""
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
    dtypes: list[str],
    write: Callable[[_Row], None],
) -> ir.Value:
    """Call a row function from a kernel; write it first if the module does not have it yet."""
    kinds = [signature.args[0], *signature.args[1]]
    flat, length = _flatten(context, builder, kinds, [args[0], *unpacked(builder, args[1])])
    symbol = "_".join([name, *(("a" if hasattr(k, "dtype") else "") + _dtype(k) for k in kinds)])
    loop = _function(builder.module, symbol, kinds, _result_type(dtypes), dtypes)
    if loop is not None:
        write(_Row(loop, kinds))
    return builder.call(builder.module.globals[symbol], [length, *flat])


def _map_intrinsic(name: str, formula: Formula, outs: int) -> Any:
    from numba import types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        _call(context, builder, signature, args, name, [], lambda row: _write_map(row, formula, outs))
        return context.get_dummy_value()

    @intrinsic
    def call(typingctx, out, *arguments):  # type: ignore[no-untyped-def]
        return types.void(out, types.StarArgTuple.from_types(arguments)), codegen

    return call


def _result_dtypes(formula: Formula, kinds: Sequence[Any], first: int) -> list[str]:
    """Return the dtypes of a formula's results for these arguments: write it into a function to discard."""
    loop = _function(ir.Module("probe"), "probe", kinds, ir.VoidType(), ["float64"])
    assert loop is not None
    values = formula(*_Row(loop, kinds).values(n64(0), None, first))
    return [v.dtype for v in (values if isinstance(values, tuple) else (values,))]


def _reduce_intrinsic(
    name: str, formula: Formula, combine: Formula, starts: tuple[float, int], stored: bool
) -> Any:
    from numba import from_dtype, types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        result = signature.return_type
        several = isinstance(result, types.BaseTuple)
        dtypes = [_dtype(k) for k in (result if several else (result,))]
        start = starts[0 if "float" in dtypes[0] else 1]

        def write(row: _Row) -> None:
            _write_reduce(row, formula, combine, dtypes, start, stored)

        value = _call(context, builder, signature, args, name, dtypes, write)
        if not several:
            return value
        return context.make_tuple(
            builder, result, [builder.extract_value(value, k) for k in range(len(dtypes))]
        )

    @intrinsic
    def call(typingctx, row, *arguments):  # type: ignore[no-untyped-def]
        kinds = [from_dtype(np.dtype(d)) for d in _result_dtypes(formula, [row, *arguments], int(stored))]
        result = kinds[0] if len(kinds) == 1 else types.Tuple(kinds)
        return result(row, types.StarArgTuple.from_types(arguments)), codegen

    return call
