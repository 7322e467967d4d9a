"""Functions of elements, for kernels and formulas of one's own: the library's vector functions.

In a kernel they are code that LLVM vectorises in a loop, without a call of the C library; in a formula they
continue it; on tensors they are the ops of the same name.
"""

from typing import Any

from treepie.kernels.own_code import declare_formula

from .ops import (
    abs as abs,
    ceil as ceil,
    cos as cos,
    erf as erf,
    exp as exp,
    expm1 as expm1,
    floor as floor,
    gelu as gelu,
    log as log,
    log1p as log1p,
    maximum as maximum,
    minimum as minimum,
    pow as pow,
    relu as relu,
    round as round,
    rsqrt as rsqrt,
    sigmoid as sigmoid,
    sign as sign,
    silu as silu,
    sin as sin,
    softplus as softplus,
    sqrt as sqrt,
    square as square,
    tanh as tanh,
    where as where,
)

_UNARY: tuple[Any, ...] = (
    *(abs, ceil, cos, erf, exp, expm1, floor, gelu, log, log1p, relu, round, rsqrt),
    *(sigmoid, sign, silu, sin, softplus, sqrt, square, tanh),
)
_BINARY: tuple[Any, ...] = (maximum, minimum, pow)

__all__ = sorted(f.__name__ for f in (*_UNARY, *_BINARY, where))


def __dir__() -> list[str]:
    return __all__


for _function in _UNARY:
    declare_formula(_function, _function.op.formula, 1)
for _function in _BINARY:
    declare_formula(_function, _function.op.formula, 2)
