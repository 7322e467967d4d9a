"""Layers: pairs of functions, `init` that makes parameters and `apply` that uses them.

Read `core.py` first, then `basic.py`.
"""

from .basic import dropout, flatten, gelu, lambda_, linear, relu, sigmoid, silu, tanh
from .check import check
from .container import compose, residual, sequential
from .core import Context, Layer, Vars
from .embedding import embedding
from .norm import batch_norm, group_norm, layer_norm, rms_norm
from .summary import summary

# fmt: off
__all__ = [
    "Context", "Layer", "Vars", "batch_norm", "check", "compose", "dropout", "embedding", "flatten", "gelu",
    "group_norm", "lambda_", "layer_norm", "linear", "relu", "residual", "rms_norm", "sequential", "sigmoid",
    "silu", "summary", "tanh",
]
# fmt: on
