"""Layers without parameters of their own, as functions of tensors."""

from treepie.autodiff.ops import gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh

from .activation import elu, glu, leaky_relu, log_sigmoid, softsign, swish
from .attention import dot_product_attention, rope
from .conv import conv1d, conv2d, conv_transpose2d
from .linear import dropout, linear
from .pool import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d
from .recurrence import gru, lstm

# fmt: off
__all__ = [
    "avg_pool1d", "avg_pool2d", "conv1d", "conv2d", "conv_transpose2d", "dot_product_attention",
    "dropout", "elu", "gelu", "glu", "gru", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "lstm",
    "max_pool1d", "max_pool2d", "relu", "rope", "sigmoid", "silu", "softmax", "softplus", "softsign",
    "swish", "tanh",
]
# fmt: on
