"""Layers: pairs of functions, `init` that creates parameters and `apply` that uses them.

Read `core.py` first, then `basic.py`.
"""

from ..namespace import public_names as _public_names
from .attention import multi_head_attention as multi_head_attention
from .basic import (
    dropout as dropout,
    flatten as flatten,
    gelu as gelu,
    lambda_ as lambda_,
    linear as linear,
    relu as relu,
    sigmoid as sigmoid,
    silu as silu,
    tanh as tanh,
)
from .check import check as check
from .container import compose as compose, residual as residual, sequential as sequential
from .conv import (
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    conv1d as conv1d,
    conv2d as conv2d,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
)
from .core import Context as Context, Layer as Layer, Vars as Vars
from .embedding import embedding as embedding
from .norm import (
    batch_norm as batch_norm,
    group_norm as group_norm,
    layer_norm as layer_norm,
    rms_norm as rms_norm,
)
from .recurrence import gru as gru, lstm as lstm
from .summary import summary as summary

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
