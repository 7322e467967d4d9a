"""Layers without parameters of their own, as functions of tensors."""

from treepie.autodiff.ops import gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh

from .activation import elu, glu, leaky_relu, log_sigmoid, softsign, swish
from .attention import dot_product_attention, rope
from .linear import dropout, linear
from .recurrence import gru, lstm

# fmt: off
__all__ = [
    "dot_product_attention", "dropout", "elu", "gelu", "glu", "gru", "leaky_relu", "linear", "log_sigmoid",
    "log_softmax", "lstm", "relu", "rope", "sigmoid", "silu", "softmax", "softplus", "softsign", "swish",
    "tanh",
]
# fmt: on
