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
from .embedding import embedding
from .linear import dropout, linear
from .norm import batch_norm, group_norm, layer_norm, rms_norm

# fmt: off
__all__ = [
    "batch_norm", "celu", "dropout", "elu", "embedding", "gelu", "gelu_approx", "glu", "group_norm",
    "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "layer_norm", "leaky_relu", "linear",
    "log_sigmoid", "log_softmax", "mish", "prelu", "relu", "relu6", "rms_norm", "selu", "sigmoid", "silu",
    "softmax", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "swish", "tanh",
]
# fmt: on
