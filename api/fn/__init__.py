"""Layers without parameters of their own, as functions of tensors."""

from treepie.autodiff.ops import gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh

from .activation import elu, glu, leaky_relu, log_sigmoid, softsign, swish
from .conv import conv1d, conv2d, conv_transpose2d
from .linear import dropout, linear
from .pool import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d

# fmt: off
__all__ = [
    "avg_pool1d", "avg_pool2d", "conv1d", "conv2d", "conv_transpose2d", "dropout", "elu", "gelu", "glu",
    "leaky_relu", "linear", "log_sigmoid", "log_softmax", "max_pool1d", "max_pool2d", "relu", "sigmoid",
    "silu", "softmax", "softplus", "softsign", "swish", "tanh",
]
# fmt: on
