"""All ops: importing this package fills the table."""

from . import (
    activation as activation,
    batch_normalization as batch_normalization,
    images as images,
    methods as methods,
    normalization as normalization,
    random as random,
    sparse as sparse,
    update as update,
)
from .activation import gelu as gelu, silu as silu
from .advanced import At as At, getitem as getitem
from .arithmetic import (
    abs as abs,
    add as add,
    ceil as ceil,
    clip as clip,
    div as div,
    floor as floor,
    maximum as maximum,
    minimum as minimum,
    mul as mul,
    neg as neg,
    pow as pow,
    relu as relu,
    round as round,
    sign as sign,
    softplus as softplus,
    square as square,
    sub as sub,
    where as where,
)
from .attention import attention as attention, attention_backward as attention_backward
from .check_range import check_range as check_range
from .compare import (
    equal as equal,
    greater as greater,
    greater_equal as greater_equal,
    isfinite as isfinite,
    isnan as isnan,
    less as less,
    less_equal as less_equal,
    logical_and as logical_and,
    logical_not as logical_not,
    logical_or as logical_or,
    not_equal as not_equal,
)
from .conv import (
    convolution as convolution,
    convolution_bias as convolution_bias,
    convolution_input as convolution_input,
    convolution_weight as convolution_weight,
)
from .einsum import einsum as einsum
from .elementary import (
    cos as cos,
    erf as erf,
    exp as exp,
    expm1 as expm1,
    log as log,
    log1p as log1p,
    rsqrt as rsqrt,
    sigmoid as sigmoid,
    sin as sin,
    sqrt as sqrt,
    tanh as tanh,
)
from .embedding_linear import embedding_linear as embedding_linear
from .gather import (
    gather as gather,
    scatter_add_along_axis as scatter_add_along_axis,
    take_along_axis as take_along_axis,
)
from .indexing import one_hot as one_hot, scatter_add as scatter_add, take as take
from .linalg import batch_matmul as batch_matmul, linear as linear, matmul as matmul
from .minmax import all as all, any as any, argmax as argmax, argmin as argmin, max as max, min as min
from .pool import max_pool as max_pool, max_pool_backward as max_pool_backward
from .ranks import rank_sum as rank_sum
from .rearrange import (
    flip as flip,
    moveaxis as moveaxis,
    outer as outer,
    pad as pad,
    repeat as repeat,
    roll as roll,
    split as split,
    tile as tile,
    tril as tril,
    triu as triu,
)
from .recurrence import (
    gru_backward as gru_backward,
    gru_steps as gru_steps,
    lstm_backward as lstm_backward,
    lstm_steps as lstm_steps,
    rnn_backward as rnn_backward,
    rnn_steps as rnn_steps,
)
from .reduction import (
    mean as mean,
    norm as norm,
    prod as prod,
    std as std,
    sum as sum,
    var as var,
    vector_norm as vector_norm,
)
from .rope import rope as rope
from .scan import cumsum as cumsum
from .shape import (
    astype as astype,
    broadcast_to as broadcast_to,
    expand_dims as expand_dims,
    ravel as ravel,
    reshape as reshape,
    squeeze as squeeze,
    stop_gradient as stop_gradient,
    swapaxes as swapaxes,
    transpose as transpose,
)
from .slicing import (
    concatenate as concatenate,
    flat_slice as flat_slice,
    stack as stack,
    strided_slice as strided_slice,
    strided_slice_grad as strided_slice_grad,
)
from .softmax import (
    cross_entropy_backward as cross_entropy_backward,
    cross_entropy_rows as cross_entropy_rows,
    log_softmax as log_softmax,
    logsumexp as logsumexp,
    softmax as softmax,
    softmax_backward as softmax_backward,
    weighted_cross_entropy as weighted_cross_entropy,
)
from .sort import argsort as argsort, sort as sort, top_k as top_k

methods.bind()
