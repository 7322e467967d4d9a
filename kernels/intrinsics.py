"""Extension points of Numba: functions written in LLVM IR that kernels call.

Each has a stand-in in Python under its name, whose `for_numba` returns the intrinsic: Numba is imported only
when a kernel is compiled.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numpy.typing import NDArray

from .vector import Formula, Value

Array = NDArray[Any]


def rename(text: str, old: str, new: str) -> str:
    """Give a function of a module in LLVM IR another name."""
    return text.replace(f'@"{old}"', f"@{new}").replace(f"@{old}(", f"@{new}(")


def unpacked(builder: ir.IRBuilder, pack: ir.Value) -> list[ir.Value]:
    """Return the values of an intrinsic's `*arguments`."""
    count = len(pack.type.elements) if hasattr(pack.type, "elements") else pack.type.count
    return [builder.extract_value(pack, i) for i in range(count)]


def scalar(formula: Formula) -> Callable[..., Any]:
    """Make a formula callable from kernels, on numbers of one dtype.

    It is branch-free code that LLVM vectorises in a kernel's loop, where `np.exp` would be a call
    to libm for every element.
    """

    def stand_in(*arguments: Any) -> Any:
        raise TypeError("a scalar formula runs only inside a kernel")

    stand_in.for_numba = lambda: _scalar_intrinsic(formula)  # type: ignore[attr-defined]
    return stand_in


def _scalar_intrinsic(formula: Formula) -> Any:
    from numba import types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        dtype = str(signature.return_type)
        raw = [args[0], *unpacked(builder, args[1])]
        return formula(*(Value(builder, dtype, 1, a) for a in raw)).ir

    @intrinsic
    def call(typingctx, x, *others):  # type: ignore[no-untyped-def]
        return x(x, types.StarArgTuple.from_types([x] * len(others))), codegen

    return call


def array_at(context: Any, builder: ir.IRBuilder, kind: Any, address: ir.Value, shape: list[ir.Value]) -> Any:
    """Return memory at an address as a C-contiguous array of Numba's type `kind`."""
    from numba.core import cgutils
    from numba.np.arrayobj import populate_array

    element = context.get_data_type(kind.dtype)
    size = ir.Constant(ir.IntType(64), context.get_abi_sizeof(element))
    strides = [size]
    for n in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], n))
    array = context.make_array(kind)(context, builder)
    populate_array(
        array,
        data=builder.inttoptr(address, element.as_pointer()),
        shape=cgutils.pack_array(builder, shape),
        strides=cgutils.pack_array(builder, strides),
        itemsize=size,
        meminfo=None,
    )
    return array._getvalue()


def call_address(function: int, *arguments: int) -> None:
    """Call a C function `void(int64...)` by its address, from inside a kernel."""
    raise TypeError("call_address runs only inside a kernel")


def _call_address_intrinsic() -> Any:
    from numba import types
    from numba.extending import intrinsic

    i64 = ir.IntType(64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = unpacked(builder, args[1])
        function = ir.FunctionType(ir.VoidType(), [i64] * len(values)).as_pointer()
        builder.call(builder.inttoptr(args[0], function), values)
        return context.get_dummy_value()

    @intrinsic
    def call(typingctx, function, *arguments):  # type: ignore[no-untyped-def]
        wide = types.StarArgTuple.from_types([types.int64] * len(arguments))
        return types.void(types.int64, wide), codegen

    return call


call_address.for_numba = _call_address_intrinsic  # type: ignore[attr-defined]


def rows_at(address: int, rows: int, columns: int, like: Array) -> Array:
    """Return memory at an address as an array (rows, columns) of the dtype of `like`, inside a kernel."""
    raise TypeError("rows_at runs only inside a kernel")


def _rows_at_intrinsic() -> Any:
    from numba import types
    from numba.extending import intrinsic

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return array_at(context, builder, signature.return_type, args[0], [args[1], args[2]])

    @intrinsic
    def view(typingctx, address, rows, columns, like):  # type: ignore[no-untyped-def]
        integers = [types.int64] * 3
        return types.Array(like.dtype, 2, "C")(*integers, like), codegen

    return view


rows_at.for_numba = _rows_at_intrinsic  # type: ignore[attr-defined]
