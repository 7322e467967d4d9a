"""Layers: pairs of functions, `init` that makes parameters and `apply` that uses them.

Read `core.py` first, then `basic.py`.
"""

from .attention import multi_head_attention
from .basic import dropout, flatten, gelu, lambda_, linear, relu, sigmoid, silu, tanh
from .check import check
from .container import compose, residual, sequential
from .conv import avg_pool1d, avg_pool2d, conv1d, conv2d, max_pool1d, max_pool2d
from .core import Context, Layer, Vars
from .embedding import embedding
from .norm import batch_norm, group_norm, layer_norm, rms_norm
from .recurrence import gru, lstm
from .summary import summary

# fmt: off
__all__ = [
    "Context", "Layer", "Vars", "avg_pool1d", "avg_pool2d", "batch_norm", "check", "compose", "conv1d",
    "conv2d", "dropout", "embedding", "flatten", "gelu", "group_norm", "gru", "lambda_", "layer_norm",
    "linear", "lstm", "max_pool1d", "max_pool2d", "multi_head_attention", "relu", "residual", "rms_norm",
    "sequential", "sigmoid", "silu", "summary", "tanh",
]
# fmt: on
