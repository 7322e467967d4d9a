"""Tensors, the op table, the tape, and transformations of functions.

Read in this order: `table.py` (what a row is), `elementwise.py` and `ops/` (the rows), `tensor.py`,
`tape.py`, `transform.py`, then the package `program`.
"""

from .tensor import Tensor, bool_, float32, float64, int32, int64  # isort: skip

from . import ops, ptree, rng
from .check import check_grads
from .convert import tensor
from .creation import arange, eye, full, full_like, linspace, ones, ones_like, zeros, zeros_like
from .custom import checkpoint_activations, custom_vjp
from .ops import stop_gradient
from .program.pure import pure
from .table import OPS
from .transform import grad, value_and_grad, value_and_grad_aux, vjp

__all__ = [
    "OPS",
    "Tensor",
    "arange",
    "bool_",
    "check_grads",
    "checkpoint_activations",
    "custom_vjp",
    "eye",
    "float32",
    "float64",
    "full",
    "full_like",
    "grad",
    "int32",
    "int64",
    "linspace",
    "ones",
    "ones_like",
    "ops",
    "ptree",
    "pure",
    "rng",
    "stop_gradient",
    "tensor",
    "value_and_grad",
    "value_and_grad_aux",
    "vjp",
    "zeros",
    "zeros_like",
]
