"""Layers without parameters of their own, as functions of tensors."""

from treepie.autodiff.ops import gelu, log_softmax, relu, sigmoid, silu, softmax, softplus, tanh

from .activation import (
    celu,
    elu,
    gelu_approx,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_swish,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    mish,
    prelu,
    relu6,
    selu,
    softsign,
    sparse_plus,
    sparse_sigmoid,
    squareplus,
    swish,
)
from .attention import dot_product_attention, rope
from .conv import conv1d, conv2d, conv_transpose2d
from .embedding import embedding
from .linear import dropout, linear
from .norm import batch_norm, group_norm, layer_norm, rms_norm
from .pool import avg_pool1d, avg_pool2d, max_pool1d, max_pool2d
from .recurrence import gru, lstm

# fmt: off
__all__ = [
    "avg_pool1d", "avg_pool2d", "batch_norm", "celu", "conv1d", "conv2d", "conv_transpose2d",
    "dot_product_attention", "dropout", "elu", "embedding", "gelu", "gelu_approx", "glu", "group_norm",
    "gru", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "layer_norm", "leaky_relu", "linear",
    "log_sigmoid", "log_softmax", "lstm", "max_pool1d", "max_pool2d", "mish", "prelu", "relu", "relu6",
    "rms_norm", "rope", "selu", "sigmoid", "silu", "softmax", "softplus", "softsign", "sparse_plus",
    "sparse_sigmoid", "squareplus", "swish", "tanh",
]
# fmt: on
