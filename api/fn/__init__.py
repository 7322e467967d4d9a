"""Layers as functions of tensors: parameters are arguments."""

from treepie.autodiff.ops import (
    gelu as gelu,
    log_softmax as log_softmax,
    relu as relu,
    sigmoid as sigmoid,
    silu as silu,
    softmax as softmax,
    softplus as softplus,
    tanh as tanh,
)

from ..namespace import public_names as _public_names
from .activation import (
    celu as celu,
    elu as elu,
    gelu_approx as gelu_approx,
    glu as glu,
    hard_sigmoid as hard_sigmoid,
    hard_silu as hard_silu,
    hard_swish as hard_swish,
    hard_tanh as hard_tanh,
    leaky_relu as leaky_relu,
    log_sigmoid as log_sigmoid,
    mish as mish,
    prelu as prelu,
    relu6 as relu6,
    selu as selu,
    softsign as softsign,
    sparse_plus as sparse_plus,
    sparse_sigmoid as sparse_sigmoid,
    squareplus as squareplus,
    swish as swish,
)
from .attention import dot_product_attention as dot_product_attention, rope as rope
from .conv import (
    conv1d as conv1d,
    conv2d as conv2d,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
)
from .embedding import embedding as embedding
from .linear import dropout as dropout, dropout2d as dropout2d, linear as linear
from .norm import (
    batch_norm as batch_norm,
    group_norm as group_norm,
    instance_norm as instance_norm,
    layer_norm as layer_norm,
    rms_norm as rms_norm,
)
from .pool import (
    adaptive_avg_pool2d as adaptive_avg_pool2d,
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    global_avg_pool as global_avg_pool,
    global_max_pool as global_max_pool,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
)
from .recurrence import gru as gru, lstm as lstm, rnn as rnn
from .resize import upsample as upsample

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
