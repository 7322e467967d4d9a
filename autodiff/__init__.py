"""Tensors, the op table, the tape, and transformations of functions.

Read in this order: `table.py` (the definition of a row), `elementwise.py` and `ops/` (the rows), `tensor.py`,
`tape.py`, `transform.py`, then the package `program`.
"""

from . import math as math, ops as ops, ptree as ptree, rng as rng
from .accuracy import accuracy as accuracy
from .check import check_grads as check_grads
from .convert import tensor as tensor
from .creation import (
    arange as arange,
    eye as eye,
    full as full,
    full_like as full_like,
    linspace as linspace,
    ones as ones,
    ones_like as ones_like,
    zeros as zeros,
    zeros_like as zeros_like,
)
from .custom import checkpoint_activations as checkpoint_activations, custom_vjp as custom_vjp
from .ops import stop_gradient as stop_gradient
from .own import elementwise as elementwise, kernel as kernel, spec as spec
from .precision import BFLOAT16 as _BFLOAT16, precision as precision
from .program.pure import pure as pure
from .table import OPS as OPS
from .tensor import (
    Tensor as Tensor,
    bool_ as bool_,
    float32 as float32,
    float64 as float64,
    int32 as int32,
    int64 as int64,
)
from .transform import (
    grad as grad,
    value_and_grad as value_and_grad,
    value_and_grad_aux as value_and_grad_aux,
    vjp as vjp,
)

#: The name of bfloat16, which products and files may have as their precision, and no tensor as its dtype.
bfloat16 = _BFLOAT16
