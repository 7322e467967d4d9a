"""The optimizers: constructors that check hyperparameters, and compute those of each step.

The formula of a rule, such as Adam's, is in `autodiff/ops/update.py`, under the rule's name: it is fused, and
runs once over parameters, gradients and moments. The constructor here, such as `adam`, checks the arguments
and computes the hyperparameters of each step (schedules, bias corrections), in the order of the formula's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from treepie.autodiff.ops import update as rules

from ..pickling import constructor
from .arguments import Mask, check, decay_of, rate_of
from .optimizer import Optimizer
from .rule import Rule, TrustRatioRule
from .schedule import Schedule


@constructor
def sgd(
    lr: float | Schedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float | Schedule = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return stochastic gradient descent, with momentum and Nesterov's variant (Sutskever et al. 2013).

        v = momentum * v + g
        p = p - lr * v, with nesterov p - lr * (g + momentum * v)

    lr: a float or a schedule.  momentum: in [0, 1).  nesterov: needs a momentum above 0.
    weight_decay, mask: decoupled weight decay, as for `adamw`.

    Raises ValueError for a hyperparameter out of range.

    >>> import treepie as tp
    >>> opt = tp.optim.sgd(0.1, momentum=0.9, nesterov=True)
    """
    rate = rate_of("sgd", lr)
    check("sgd", momentum=(momentum, 0.0, 1.0))
    if momentum == 0:
        if nesterov:
            raise ValueError("sgd: nesterov is True with momentum 0, expected a momentum above 0")
        return _rule("sgd", rules.sgd, 0, lambda step: (rate(step),), weight_decay, mask, lazy=True)
    rule = rules.nesterov if nesterov else rules.momentum
    return _rule("sgd", rule, 1, lambda step: (rate(step), momentum), weight_decay, mask)


def _rule(
    name: str,
    rule: rules.UpdateRule,
    moments: int,
    numbers: Callable[[int], tuple[float, ...]],
    weight_decay: float | Schedule,
    mask: Mask,
    lazy: bool = False,
) -> Rule:
    """Return a rule with decoupled weight decay, or without where that is 0."""
    decay = decay_of(name, weight_decay)
    if weight_decay == 0:
        return Rule(name, rule, moments, numbers, lazy=lazy)
    assert rule.decayed is not None
    decayed = lambda step: (*numbers(step), decay(step))
    return Rule(name, rule.decayed, moments, decayed, mask, decay=True, lazy=lazy)


def _adam_numbers(
    name: str, lr: float | Schedule, b1: float, b2: float, eps: float, weight_decay: float | Schedule
) -> Callable[[int], tuple[float, ...]]:
    """Return the hyperparameters of `adam` by the step, after a check of the arguments."""
    rate, decay = rate_of(name, lr), decay_of(name, weight_decay)
    check(name, b1=(b1, 0.0, 1.0), b2=(b2, 0.0, 1.0), eps=(eps, 0.0, math.inf))

    def numbers(t: int) -> tuple[float, ...]:
        # The arguments of the formula from lr on; the bias corrections m^ = m / (1 - b1**t) and
        # v^ = v / (1 - b2**t) are factors there.
        m_factor, v_factor = 1.0 / (1.0 - b1**t), 1.0 / (1.0 - b2**t)
        return (rate(t), b1, 1.0 - b1, b2, 1.0 - b2, m_factor, v_factor, eps, decay(t))

    return numbers


@constructor
def adam(lr: float | Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Return Adam (Kingma & Ba 2015, Algorithm 1); its formula is `adam` in `autodiff/ops/update.py`.

        m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g**2
        p = p - lr * m^ / (sqrt(v^) + eps) with m^ = m / (1 - b1**t), v^ = v / (1 - b2**t) in step t

    lr: a float or a schedule.  b1, b2: in [0, 1).  eps: 0 or more. ValueError for others.

    For the table of an embedding with `sparse=True` it is lazy: rows whose gradient is zero keep their
    moments.

    >>> import treepie as tp
    >>> opt = tp.optim.adam(tp.optim.schedule.cosine_decay(1e-3, 1000))
    """
    return Rule("adam", rules.adam, 2, _adam_numbers("adam", lr, b1, b2, eps, 0.0), lazy=True)


@constructor
def adamw(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.01,
    mask: Mask = None,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2).

        p = p - lr * (m^ / (sqrt(v^) + eps) + weight_decay * p), m^ and v^ as in `adam`

    lr, b1, b2, eps: as for `adam`.
    weight_decay: 0 or more, else ValueError; a float or a schedule.
    mask: which leaves to decay: a tree of bools like the parameters, or a function that returns one of
        them; by default all. This one leaves out biases and norms, which have one axis:

    >>> import treepie as tp
    >>> opt = tp.optim.adamw(1e-3, mask=lambda params: tp.ptree.map(lambda p: p.ndim > 1, params))
    """
    numbers = _adam_numbers("adamw", lr, b1, b2, eps, weight_decay)
    return Rule("adamw", rules.adam, 2, numbers, mask, decay=weight_decay != 0, lazy=True)


@constructor
def rmsprop(
    lr: float | Schedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float | Schedule = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return RMSprop (Tieleman & Hinton 2012).

        v = decay * v + (1 - decay) * g**2;  u = momentum * u + g / (sqrt(v) + eps)
        p = p - lr * u

    lr: a float or a schedule.  decay, momentum: in [0, 1).  eps: 0 or more. ValueError for others.
    weight_decay, mask: decoupled weight decay, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.rmsprop(1e-3, momentum=0.9)
    """
    rate = rate_of("rmsprop", lr)
    check("rmsprop", decay=(decay, 0.0, 1.0), eps=(eps, 0.0, math.inf))
    check("rmsprop", momentum=(momentum, 0.0, 1.0))
    plain = lambda step: (rate(step), decay, 1.0 - decay, eps)
    if momentum == 0:
        return _rule("rmsprop", rules.rmsprop, 1, plain, weight_decay, mask)
    with_momentum = lambda step: (rate(step), decay, 1.0 - decay, eps, momentum)
    return _rule("rmsprop", rules.rmsprop_momentum, 2, with_momentum, weight_decay, mask)


@constructor
def adagrad(
    lr: float | Schedule, eps: float = 1e-8, weight_decay: float | Schedule = 0.0, mask: Mask = None
) -> Optimizer:
    """Return Adagrad (Duchi et al. 2011).

        s = s + g**2
        p = p - lr * g / (sqrt(s) + eps)

    lr: a float or a schedule.  eps: 0 or more, else ValueError.
    weight_decay, mask: decoupled weight decay, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.adagrad(0.1)
    """
    rate = rate_of("adagrad", lr)
    check("adagrad", eps=(eps, 0.0, math.inf))
    numbers = lambda step: (rate(step), eps)
    return _rule("adagrad", rules.adagrad, 1, numbers, weight_decay, mask, lazy=True)


@constructor
def nadam(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float | Schedule = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return NAdam, Adam with Nesterov's momentum (Dozat 2016, with a constant b1), as Optax has it.

        m, v as in `adam`;  m^ = b1 * m / (1 - b1**(t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = p - lr * (m^ / (sqrt(v^) + eps) + weight_decay * p) with v^ = v / (1 - b2**t) in step t

    lr, weight_decay: 0 or more, floats or schedules.  b1, b2: in [0, 1).  eps: 0 or more. ValueError for
        others.
    mask: which leaves have weight decay, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.nadam(2e-3)
    """
    rate, decay = rate_of("nadam", lr), decay_of("nadam", weight_decay)
    check("nadam", b1=(b1, 0.0, 1.0), b2=(b2, 0.0, 1.0), eps=(eps, 0.0, math.inf))

    def numbers(t: int) -> tuple[float, ...]:
        m_factor, g_factor = b1 / (1.0 - b1 ** (t + 1)), (1.0 - b1) / (1.0 - b1**t)
        v_factor = 1.0 / (1.0 - b2**t)
        return (rate(t), b1, 1.0 - b1, b2, 1.0 - b2, m_factor, g_factor, v_factor, eps, decay(t))

    return Rule("nadam", rules.nadam, 2, numbers, mask)


@constructor
def lion(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float | Schedule = 1e-3,
    mask: Mask = None,
) -> Optimizer:
    """Return Lion (Chen et al. 2023, Algorithm 2), whose learning rates are 3 to 10 times below Adam's.

        p = p - lr * (sign(b1 * m + (1 - b1) * g) + weight_decay * p)
        m = b2 * m + (1 - b2) * g

    lr, weight_decay: 0 or more, floats or schedules.  b1, b2: in [0, 1). ValueError for others.
    mask: which leaves have weight decay, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.lion(1e-4, weight_decay=0.1)
    """
    rate, decay = rate_of("lion", lr), decay_of("lion", weight_decay)
    check("lion", b1=(b1, 0.0, 1.0), b2=(b2, 0.0, 1.0))
    numbers = lambda t: (rate(t), b1, 1.0 - b1, b2, 1.0 - b2, decay(t))
    return Rule("lion", rules.lion, 1, numbers, mask)


@constructor
def lamb(
    lr: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float | Schedule = 0.0,
    mask: Mask = None,
) -> Optimizer:
    """Return LAMB, for large batches (You et al. 2020, Algorithm 2).

        u = m^ / (sqrt(v^) + eps) + weight_decay * p, m^ and v^ as in `adam`
        p = p - lr * |p| / |u| * u for each parameter, where a norm of 0 makes the ratio 1

    lr, weight_decay: 0 or more, floats or schedules.  b1, b2: in [0, 1).  eps: 0 or more. ValueError for
        others.
    mask: which leaves have weight decay, as for `adamw`.

    >>> import treepie as tp
    >>> opt = tp.optim.lamb(2e-3, weight_decay=0.01)
    """
    numbers = _adam_numbers("lamb", lr, b1, b2, eps, weight_decay)
    return TrustRatioRule("lamb", rules.adam, 2, numbers, mask, elementwise=False)
