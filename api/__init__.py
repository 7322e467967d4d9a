"""treepie: neural networks on CPUs, from pip install alone."""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

from treepie.autodiff import (
    Tensor as Tensor,
    accuracy as accuracy,
    arange as arange,
    bfloat16 as bfloat16,
    bool_ as bool_,
    check_grads as check_grads,
    checkpoint_activations as checkpoint_activations,
    custom_vjp as custom_vjp,
    elementwise as elementwise,
    eye as eye,
    float32 as float32,
    float64 as float64,
    full as full,
    full_like as full_like,
    grad as grad,
    int32 as int32,
    int64 as int64,
    kernel as kernel,
    linspace as linspace,
    math as math,
    ones as ones,
    ones_like as ones_like,
    precision as precision,
    ptree as ptree,
    pure as pure,
    rng as rng,
    spec as spec,
    stop_gradient as stop_gradient,
    value_and_grad as value_and_grad,
    value_and_grad_aux as value_and_grad_aux,
    vjp as vjp,
    zeros as zeros,
    zeros_like as zeros_like,
)

# Not from `treepie.autodiff`, where type checkers take the name for that of the module `tensor.py`.
from treepie.autodiff.convert import tensor as tensor
from treepie.autodiff.ops import (
    abs as abs,
    add as add,
    all as all,
    any as any,
    argmax as argmax,
    argmin as argmin,
    argsort as argsort,
    astype as astype,
    broadcast_to as broadcast_to,
    ceil as ceil,
    clip as clip,
    concatenate as concatenate,
    cos as cos,
    cumsum as cumsum,
    div as div,
    einsum as einsum,
    equal as equal,
    erf as erf,
    exp as exp,
    expand_dims as expand_dims,
    expm1 as expm1,
    flip as flip,
    floor as floor,
    gather as gather,
    greater as greater,
    greater_equal as greater_equal,
    isfinite as isfinite,
    isnan as isnan,
    less as less,
    less_equal as less_equal,
    log as log,
    log1p as log1p,
    log_softmax as log_softmax,
    logical_and as logical_and,
    logical_not as logical_not,
    logical_or as logical_or,
    logsumexp as logsumexp,
    matmul as matmul,
    max as max,
    maximum as maximum,
    mean as mean,
    min as min,
    minimum as minimum,
    moveaxis as moveaxis,
    mul as mul,
    neg as neg,
    norm as norm,
    not_equal as not_equal,
    one_hot as one_hot,
    outer as outer,
    pad as pad,
    pow as pow,
    prod as prod,
    ravel as ravel,
    repeat as repeat,
    reshape as reshape,
    roll as roll,
    round as round,
    rsqrt as rsqrt,
    sigmoid as sigmoid,
    sign as sign,
    sin as sin,
    softmax as softmax,
    sort as sort,
    split as split,
    sqrt as sqrt,
    square as square,
    squeeze as squeeze,
    stack as stack,
    std as std,
    sub as sub,
    sum as sum,
    swapaxes as swapaxes,
    take as take,
    take_along_axis as take_along_axis,
    tanh as tanh,
    tile as tile,
    top_k as top_k,
    transpose as transpose,
    tril as tril,
    triu as triu,
    var as var,
    where as where,
)
from treepie.kernels.config import __version__ as __version__
from treepie.kernels.threads import get_num_threads as get_num_threads, set_num_threads as set_num_threads

from . import (
    callback as callback,
    checkpoint as checkpoint,
    data as data,
    distributed as distributed,
    fn as fn,
    hub as hub,
    init as init,
    layer as layer,
    loss as loss,
    metric as metric,
    onnx as onnx,
    optim as optim,
)
from .data import augment as augment, datasets as datasets
from .data.pipeline import Data as Data
from .layer import Context as Context
from .machine import cache_info as cache_info, show_config as show_config
from .namespace import (
    explain_names as _explain_names,
    public_names as _public_names,
    suggest_attributes as _suggest_attributes,
    suggest_names as _suggest_names,
)
from .program.check_kernel import check_kernel as check_kernel
from .program.explain import explain as explain
from .program.jit import jit as jit
from .train.history import History as History
from .train.preemption import Preempted as Preempted
from .train.trainer import EarlyStop as EarlyStop, Trainer as Trainer

if _TYPE_CHECKING:
    from . import sklearn as sklearn

bool = bool_

_MODULES = (
    augment,
    callback,
    checkpoint,
    data,
    datasets,
    distributed,
    fn,
    hub,
    init,
    layer,
    loss,
    math,
    metric,
    onnx,
    optim,
    ptree,
    rng,
)
#: Imported where they are first used: they need packages that may not be installed.
_OPTIONAL = ("sklearn",)
__all__ = [*_public_names(globals(), *_MODULES), "__version__"]


def __dir__() -> list[str]:
    return sorted([*__all__, *_OPTIONAL])


_NAMES = {m.__name__.split(".")[-1]: m for m in _MODULES} | {"optim.schedule": optim.schedule}
_suggest_names(_sys.modules[__name__], _NAMES, _OPTIONAL)
_suggest_attributes(Tensor, _sys.modules[__name__])
_explain_names(
    _sys.modules[__name__],
    _NAMES,
    quick=(Tensor, Context, layer.Layer, layer.Vars, optim.Optimizer, optim.OptState),
)
