"""Layers without parameters of their own, as functions of tensors."""

from treepie.autodiff.ops import gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh

from .activation import elu, glu, leaky_relu, log_sigmoid, softsign, swish
from .linear import dropout, linear

# fmt: off
__all__ = [
    "dropout", "elu", "gelu", "glu", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "relu",
    "sigmoid", "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]
# fmt: on
