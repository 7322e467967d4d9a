"""All ops: importing this package fills the table."""

from .arithmetic import (
    abs,
    add,
    ceil,
    div,
    exp,
    expm1,
    floor,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    relu,
    round,
    rsqrt,
    sigmoid,
    sign,
    softplus,
    sqrt,
    square,
    sub,
    tanh,
    where,
)
from .compare import (
    equal,
    greater,
    greater_equal,
    isfinite,
    isnan,
    less,
    less_equal,
    logical_and,
    logical_not,
    logical_or,
    not_equal,
)
from .indexing import getitem, one_hot, scatter_add, take
from .linalg import matmul, product
from .reduction import argmax, argmin, max, mean, min, sum, var
from .shape import (
    astype,
    broadcast_to,
    concatenate,
    embed,
    expand_dims,
    ravel,
    reshape,
    squeeze,
    stack,
    strided_slice,
    swapaxes,
    transpose,
)
from . import random as _random
from . import update as _update
from .softmax import (
    cross_entropy_backward,
    cross_entropy_rows,
    log_softmax,
    logsumexp,
    softmax,
    softmax_backward,
)

__all__ = [
    *("abs", "add", "argmax", "argmin", "astype", "broadcast_to", "ceil", "concatenate"),
    *(
        "cross_entropy_backward",
        "cross_entropy_rows",
        "div",
        "embed",
        "equal",
        "exp",
        "expand_dims",
    ),
    *("expm1", "floor", "getitem", "greater", "greater_equal", "isfinite", "isnan", "less"),
    *("less_equal", "log", "log1p", "log_softmax", "logical_and", "logical_not", "logical_or"),
    *("logsumexp", "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "neg", "not_equal"),
    *("one_hot", "pow", "product", "ravel", "relu", "reshape", "round", "rsqrt", "scatter_add"),
    *("sigmoid", "sign", "softmax", "softmax_backward", "softplus", "sqrt", "square", "squeeze"),
    *(
        "stack",
        "strided_slice",
        "sub",
        "sum",
        "swapaxes",
        "take",
        "tanh",
        "transpose",
        "var",
        "where",
    ),
]
