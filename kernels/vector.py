"""Values of a kernel under construction: LLVM vectors that behave like numbers.

A formula is a Python function of such values: `lambda x: 1 / (1 + exp(-x))`. Written once, it becomes a
loop over vectors (`elementwise.py`), a function that Numba kernels call on numbers (`kernel.scalar`) or
rows (`rows.py`), or a link in a fused chain. No operation is reordered or contracted: a formula runs
as written.
"""

from collections.abc import Callable
from typing import Any, Union

import numpy as np
from llvmlite import ir

Number = Union["Value", float, int, bool]

#: The kinds of element a value can have, by NumPy's names.
ELEMENT: dict[str, ir.Type] = {
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
    "int32": ir.IntType(32),
    "int64": ir.IntType(64),
    "bool": ir.IntType(1),
}
BITS = {"float32": 32, "float64": 64, "int32": 32, "int64": 64, "bool": 1}
_AS_INT = {"float32": "int32", "float64": "int64"}
_AS_FLOAT = {"int32": "float32", "int64": "float64"}


def vector_type(dtype: str, lanes: int) -> ir.Type:
    """Return the LLVM type of `lanes` elements; one lane is a scalar."""
    return ELEMENT[dtype] if lanes == 1 else ir.VectorType(ELEMENT[dtype], lanes)


def constant(dtype: str, lanes: int, number: float | int | bool) -> ir.Constant:
    """Return a number in every lane. Floats are rounded to `dtype` here, not by LLVM's parser."""
    if dtype == "float32":
        with np.errstate(over="ignore"):
            number = float(np.float32(number))
    elif dtype == "float64":
        number = float(number)
    else:
        number = int(number)
    return ir.Constant(vector_type(dtype, lanes), number if lanes == 1 else [number] * lanes)


def declare(module: ir.Module, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    """Return the function `name` of a module, declared if it is not yet."""
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(result, arguments), name)


class Value:
    """`lanes` elements of `dtype` inside the function that `builder` writes."""

    __slots__ = ("builder", "dtype", "ir", "lanes")

    def __init__(self, builder: ir.IRBuilder, dtype: str, lanes: int, value: ir.Value) -> None:
        self.builder = builder
        self.dtype = dtype
        self.lanes = lanes
        self.ir = value

    # ---- construction
    def like(self, value: ir.Value, dtype: str | None = None) -> "Value":
        """Wrap an LLVM value of the same lanes."""
        return Value(self.builder, dtype or self.dtype, self.lanes, value)

    def coerce(self, other: Number) -> "Value":
        """Return `other` as a value of this dtype; numbers take it, values must have it."""
        if isinstance(other, Value):
            if other.dtype != self.dtype:
                raise TypeError(f"formula mixes {self.dtype} and {other.dtype}; use astype")
            return other
        return self.like(constant(self.dtype, self.lanes, other))

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.dtype in _AS_INT

    def intrinsic(self, name: str, *others: "Value") -> "Value":
        """Call the LLVM intrinsic `name` on values of this dtype."""
        kind = ("f" if self.is_float else "i") + str(BITS[self.dtype])
        suffix = kind if self.lanes == 1 else f"v{self.lanes}{kind}"
        kind_of = self.ir.type
        arguments = [self.ir, *(o.ir for o in others)]
        function = declare(self.builder.module, f"llvm.{name}.{suffix}", kind_of, [kind_of] * len(arguments))
        return self.like(self.builder.call(function, arguments))

    # ---- arithmetic
    def _arith(self, other: Number, of_float: str, of_int: str, swap: bool = False) -> "Value":
        a, b = self, self.coerce(other)
        if swap:
            a, b = b, a
        name = of_float if self.is_float else of_int
        if not name:
            raise TypeError(f"formula: this operation is not defined for {self.dtype}")
        return self.like(getattr(self.builder, name)(a.ir, b.ir))

    def __add__(self, other: Number) -> "Value":
        """Sum; integers wrap."""
        return self._arith(other, "fadd", "add")

    __radd__ = __add__

    def __sub__(self, other: Number) -> "Value":
        """Difference; integers wrap."""
        return self._arith(other, "fsub", "sub")

    def __rsub__(self, other: Number) -> "Value":
        """Difference with a number on the left."""
        return self._arith(other, "fsub", "sub", swap=True)

    def __mul__(self, other: Number) -> "Value":
        """Product; integers wrap."""
        return self._arith(other, "fmul", "mul")

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> "Value":
        """Quotient of floats."""
        return self._arith(other, "fdiv", "")

    def __rtruediv__(self, other: Number) -> "Value":
        """Quotient with a number on the left."""
        return self._arith(other, "fdiv", "", swap=True)

    def __neg__(self) -> "Value":
        """Negation: the sign bit of floats, two's complement of integers."""
        return self.like(self.builder.fneg(self.ir) if self.is_float else self.builder.neg(self.ir))

    # ---- comparison: ordered, so false with a NaN, except `!=`
    def _compare(self, how: str, other: Number) -> "Value":
        b = self.coerce(other)
        if not self.is_float:
            emit = self.builder.icmp_unsigned if self.dtype == "bool" else self.builder.icmp_signed
        else:
            emit = self.builder.fcmp_unordered if how == "!=" else self.builder.fcmp_ordered
        return self.like(emit(how, self.ir, b.ir), "bool")

    def __lt__(self, other: Number) -> "Value":
        """Less than."""
        return self._compare("<", other)

    def __le__(self, other: Number) -> "Value":
        """Less than or equal."""
        return self._compare("<=", other)

    def __gt__(self, other: Number) -> "Value":
        """Greater than."""
        return self._compare(">", other)

    def __ge__(self, other: Number) -> "Value":
        """Greater than or equal."""
        return self._compare(">=", other)

    def __eq__(self, other: object) -> "Value":  # type: ignore[override]
        """Equal, element by element."""
        return self._compare("==", other)  # type: ignore[arg-type]

    def __ne__(self, other: object) -> "Value":  # type: ignore[override]
        """Not equal, element by element; true with a NaN."""
        return self._compare("!=", other)  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]

    #: NumPy's functions raise TypeError for a value.
    __array_ufunc__ = None

    def __bool__(self) -> bool:
        """Raise TypeError: the elements of a vector differ."""
        raise TypeError("a formula has no branches, since it computes many elements at once: use where")

    def __pow__(self, exponent: int) -> "Value":
        """Return a power of a small integer, by multiplications."""
        if type(exponent) is not int or not 1 <= exponent <= 16:
            raise TypeError(
                f"a formula has a power of {exponent!r}, expected an integer from 1 to 16, or power"
            )
        half = self if exponent < 4 else self ** (exponent // 2)
        if exponent >= 4:
            return half * half * self if exponent % 2 else half * half
        return (self, self * self, self * self * self)[exponent - 1]

    def __abs__(self) -> "Value":
        """Absolute value."""
        return fabs(self)

    # ---- bits
    def _bitwise(self, name: str, other: Number) -> "Value":
        return self.like(getattr(self.builder, name)(self.ir, self.coerce(other).ir))

    def __and__(self, other: Number) -> "Value":
        """Bitwise and."""
        return self._bitwise("and_", other)

    def __or__(self, other: Number) -> "Value":
        """Bitwise or."""
        return self._bitwise("or_", other)

    def __xor__(self, other: Number) -> "Value":
        """Bitwise exclusive or."""
        return self._bitwise("xor", other)

    def __invert__(self) -> "Value":
        """Bitwise not."""
        return self.like(self.builder.not_(self.ir))

    def __lshift__(self, other: Number) -> "Value":
        """Shift left."""
        return self._bitwise("shl", other)

    def __rshift__(self, other: Number) -> "Value":
        """Shift right, filling with zeros."""
        return self._bitwise("lshr", other)

    def shift_signed(self, count: Number) -> "Value":
        """Shift right, filling with the sign bit."""
        return self._bitwise("ashr", count)

    def rotate_left(self, count: int) -> "Value":
        """Rotate the bits of an integer left."""
        return self.intrinsic("fshl", self, self.coerce(count))

    def as_int(self) -> "Value":
        """Return the bits of a float as an integer of the same width."""
        dtype = _AS_INT[self.dtype]
        return self.like(self.builder.bitcast(self.ir, vector_type(dtype, self.lanes)), dtype)

    def as_float(self) -> "Value":
        """Return the bits of an integer as a float of the same width."""
        dtype = _AS_FLOAT[self.dtype]
        return self.like(self.builder.bitcast(self.ir, vector_type(dtype, self.lanes)), dtype)

    # ---- conversion
    def astype(self, dtype: str) -> "Value":
        """Convert as C does; a float out of an integer's range, or NaN, gives its least value."""
        if dtype == self.dtype:
            return self
        b, to = self.builder, vector_type(dtype, self.lanes)
        if dtype == "bool":
            return self != 0
        if self.dtype == "bool":
            emit = b.uitofp if dtype in _AS_INT else b.zext
        elif self.is_float and dtype in _AS_INT:
            emit = b.fptrunc if dtype == "float32" else b.fpext
        elif self.is_float:
            return self._to_int(dtype)
        elif dtype in _AS_INT:
            emit = b.sitofp
        else:
            emit = b.trunc if dtype == "int32" else b.sext
        return self.like(emit(self.ir, to), dtype)

    def unsigned_to(self, dtype: str) -> "Value":
        """Convert an integer, read as unsigned, to a float."""
        return self.like(self.builder.uitofp(self.ir, vector_type(dtype, self.lanes)), dtype)

    def _to_int(self, dtype: str) -> "Value":
        # LLVM leaves out-of-range conversions undefined; x86 gives the least integer, and so do we.
        least = -(2 ** (BITS[dtype] - 1))
        fits = (self >= float(least)) & (self < -float(least))
        safe = select(fits, self, 0)
        out = self.like(self.builder.fptosi(safe.ir, vector_type(dtype, self.lanes)), dtype)
        return select(fits, out, least)


Formula = Callable[..., Any]


# ---- operations that have no Python operator
def fma(a: Value, b: Number, c: Number) -> Value:
    """Return a * b + c, rounded once."""
    return a.intrinsic("fma", a.coerce(b), a.coerce(c))


def select(mask: Value, a: Number, b: Number) -> Value:
    """Return a where the mask is true, else b. One of them must be a value."""
    sample = a if isinstance(a, Value) else b
    if not isinstance(sample, Value):
        raise TypeError("select needs a value for a or b")
    return sample.like(mask.builder.select(mask.ir, sample.coerce(a).ir, sample.coerce(b).ir))


def sqrt(x: Value) -> Value:
    """Return the square root, correctly rounded."""
    return x.intrinsic("sqrt")


def rint(x: Value) -> Value:
    """Round to the nearest integer, ties to even."""
    return x.intrinsic("rint")


def floor(x: Value) -> Value:
    """Round down."""
    return x.intrinsic("floor")


def ceil(x: Value) -> Value:
    """Round up."""
    return x.intrinsic("ceil")


def fabs(x: Value) -> Value:
    """Return the absolute value: of a float without its sign bit, of an integer wrapping."""
    return x.intrinsic("fabs") if x.is_float else select(x < 0, -x, x)


def copysign(x: Value, sign: Value) -> Value:
    """Return the magnitude of x with the sign bit of `sign`."""
    return x.intrinsic("copysign", sign)


def minimum(a: Value, b: Number) -> Value:
    """Return the smaller; a NaN in either gives NaN."""
    b = a.coerce(b)
    return select((a < b) | (a != a), a, b)


def maximum(a: Value, b: Number) -> Value:
    """Return the larger; a NaN in either gives NaN."""
    b = a.coerce(b)
    return select((a > b) | (a != a), a, b)


def polynomial(x: Value, coefficients: tuple[float, ...]) -> Value:
    """Evaluate a polynomial by Horner's rule with fused steps; the highest power comes first."""
    total = x.coerce(coefficients[0])
    for c in coefficients[1:]:
        total = fma(total, x, c)
    return total
