"""Layers: pairs of functions, `init` that creates parameters and `apply` that uses them.

Read `core.py` first, then `basic.py`.
"""

from ..namespace import public_names as _public_names
from .activation import (
    celu as celu,
    elu as elu,
    gelu as gelu,
    gelu_approx as gelu_approx,
    glu as glu,
    hard_sigmoid as hard_sigmoid,
    hard_silu as hard_silu,
    hard_swish as hard_swish,
    hard_tanh as hard_tanh,
    leaky_relu as leaky_relu,
    log_sigmoid as log_sigmoid,
    log_softmax as log_softmax,
    mish as mish,
    prelu as prelu,
    relu as relu,
    relu6 as relu6,
    selu as selu,
    sigmoid as sigmoid,
    silu as silu,
    softmax as softmax,
    softplus as softplus,
    softsign as softsign,
    sparse_plus as sparse_plus,
    sparse_sigmoid as sparse_sigmoid,
    squareplus as squareplus,
    swish as swish,
    tanh as tanh,
)
from .attention import multi_head_attention as multi_head_attention
from .basic import dropout as dropout, dropout2d as dropout2d, lambda_ as lambda_, linear as linear
from .check import check as check
from .container import (
    compose as compose,
    parallel as parallel,
    residual as residual,
    sequential as sequential,
)
from .conv import (
    conv1d as conv1d,
    conv2d as conv2d,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
)
from .core import Context as Context, Layer as Layer, Vars as Vars
from .embedding import embedding as embedding
from .model import Call as Call, model as model
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
from .positional import positional as positional
from .recurrence import bidirectional as bidirectional, gru as gru, lstm as lstm
from .shape import (
    flatten as flatten,
    pad as pad,
    permute as permute,
    reshape as reshape,
    upsample as upsample,
)
from .summary import summary as summary
from .tabular import (
    parametric_activation as parametric_activation,
    periodic_embedding as periodic_embedding,
    scale as scale,
)
from .transformer import (
    transformer_decoder as transformer_decoder,
    transformer_encoder as transformer_encoder,
)

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
