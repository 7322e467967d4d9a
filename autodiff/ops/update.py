"""Update rules of optimizers: rows that compute the change of a parameter and the new moments in one pass.

Every rule is a formula of (parameter, gradient, moments..., hyperparameters...). Its row `<name>_step`
returns (change, moments...), its row `<name>_update` (parameter + change, moments...). Hyperparameters
are one float array, so that a schedule needs no new program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treepie.kernels import vector
from treepie.kernels.elementwise import elementwise as plan_elementwise
from treepie.kernels.program import Launch, Operand, Spec

from ..arguments import as_tensor
from ..elementwise import Fusible
from ..table import BoundArguments, Case, Op, register
from ..tensor import Tensor, TensorLike

#: Operations of a rule for an element, about.
_FLOPS = 10.0


def _row(
    name: str, moments: int, hyper: int, formula: Callable[..., Any], oracle: Callable[..., Any], doc: str
) -> Op:
    """Register one row: `formula` on values, `oracle` in NumPy, which takes hyperparameters one by one."""

    def reference(p: Any, *rest: Any) -> Any:
        return oracle(p, *rest[:-1], *rest[-1])

    def bind(*operands: TensorLike) -> BoundArguments:
        args = tuple(as_tensor(a) for a in operands)
        shapes, dtypes = {a.shape for a in args[:-1]}, {a.dtype for a in args}
        if len(shapes) > 1 or len(dtypes) > 1 or args[-1].shape != (hyper,):
            text = " and ".join(f"{a.shape} {a.dtype.name}" for a in args)
            raise ValueError(f"{name}: operands are {text}, expected one shape and dtype, and ({hyper},)")
        return args, {}

    def plan(inputs: list[Operand], outputs: list[Operand], scratch: Any) -> list[Launch]:
        numbers = inputs[-1]
        one, size = Spec((), numbers.dtype), numbers.dtype.itemsize
        scalars = [Operand(numbers.buffer, one, k * size) for k in range(hyper)]
        return [plan_elementwise(name, formula, [*inputs[:-1], *scalars], outputs, _FLOPS)]

    shapes = [((3, 5),), ((),), ((0, 2),)]
    row = Fusible(
        name,
        bind,
        lambda p, *rest: [Spec(p.shape, p.dtype)] * (1 + moments),
        plan,
        None,
        reference,
        tuple(Case((*s * (2 + moments), (hyper,))) for s in shapes),
        signature="(...)" + ",(...)" * (1 + moments) + f",({hyper})->(...)" + ",(...)" * moments,
        nondifferentiable=True,
        wrong=Case(((3, 5),) * (1 + moments) + ((3, 4), (hyper,))),
        large=Case(((1000, 1000),) * (2 + moments) + ((hyper,),)),
        domain=(0.05, 0.95),
        ulp=16,
        recycled=True,
        in_place=True,
        doc=doc,
        formula=formula,
        flops=_FLOPS,
        numbers=hyper,
    )
    return register(row)


def _added(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule that computes the new parameter where `formula` computes its change."""

    def rule(p: Any, *rest: Any) -> Any:
        change, *moments = formula(p, *rest)
        return p + change, *moments

    return rule


def _decayed(moments: int, formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return a rule with decoupled weight decay, its last hyperparameter."""

    def rule(p: Any, *rest: Any) -> Any:
        *operands, decay = rest
        change, *after = formula(p, *operands)
        lr = operands[1 + moments]
        return change - lr * decay * p, *after

    return rule


def _rule(
    name: str, moments: int, hyper: int, formula: Callable[..., Any], oracle: Callable[..., Any]
) -> UpdateRule:
    """Register the rows of a rule that has no weight decay, and of the one with it."""
    pair = _decayed(moments, formula), _decayed(moments, oracle)
    decayed = _rows(f"{name}_decay", moments, hyper + 1, *pair)
    return replace(_rows(name, moments, hyper, formula, oracle), decayed=decayed)


def _rows(
    name: str, moments: int, hyper: int, formula: Callable[..., Any], oracle: Callable[..., Any]
) -> UpdateRule:
    """Register the rows of a rule."""
    sizes = moments, hyper
    step = _row(f"{name}_step", *sizes, formula, oracle, f"Change and moments by {name}.")
    update = _row(
        f"{name}_update", *sizes, _added(formula), _added(oracle), f"New parameter and moments by {name}."
    )
    return UpdateRule(step, update, hyper)


@dataclass(frozen=True)
class UpdateRule:
    """The two rows of a rule, and how many hyperparameters they take.

    decayed: the rule with decoupled weight decay; None where `self` has it.
    """

    step: Op
    update: Op
    hyper: int
    decayed: UpdateRule | None = None

    def __call__(
        self, p: Tensor, g: Tensor, old: tuple[Tensor, ...], hyper: Tensor, apply: bool
    ) -> tuple[Tensor, ...]:
        """Return the change, or the new parameter where it is applied, and the new moments."""
        out = (self.update if apply else self.step)(p, g, *old, hyper)
        return out if isinstance(out, tuple) else (out,)


def _sgd(p: Any, g: Any, lr: Any) -> Any:
    return (-lr * g,)


def _momentum(p: Any, g: Any, v: Any, lr: Any, momentum: Any) -> Any:
    v = momentum * v + g
    return -lr * v, v


def _nesterov(p: Any, g: Any, v: Any, lr: Any, momentum: Any) -> Any:
    v = momentum * v + g
    return -lr * (g + momentum * v), v


def _adam_rule(sqrt: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(
        p: Any, g: Any, m: Any, v: Any,
        lr: Any, b1: Any, rest1: Any, b2: Any, rest2: Any, unbias1: Any, unbias2: Any, eps: Any, decay: Any,
    ) -> Any:  # fmt: skip
        m = b1 * m + rest1 * g
        v = b2 * v + rest2 * (g * g)
        return -lr * ((m * unbias1) / (sqrt(v * unbias2) + eps) + decay * p), m, v

    return formula


def _rmsprop_rule(sqrt: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(p: Any, g: Any, v: Any, lr: Any, decay: Any, rest: Any, eps: Any) -> Any:
        v = decay * v + rest * (g * g)
        return -lr * g / (sqrt(v) + eps), v

    return formula


def _rmsprop_momentum_rule(sqrt: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(
        p: Any, g: Any, v: Any, u: Any, lr: Any, decay: Any, rest: Any, eps: Any, momentum: Any
    ) -> Any:
        v = decay * v + rest * (g * g)
        u = momentum * u + g / (sqrt(v) + eps)
        return -lr * u, v, u

    return formula


def _adagrad_rule(sqrt: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(p: Any, g: Any, s: Any, lr: Any, eps: Any) -> Any:
        s = s + g * g
        return -lr * g / (sqrt(s) + eps), s

    return formula


def _nadam_rule(sqrt: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(
        p: Any, g: Any, m: Any, v: Any,
        lr: Any, b1: Any, rest1: Any, b2: Any, rest2: Any, next1: Any, now1: Any, unbias2: Any, eps: Any,
        decay: Any,
    ) -> Any:  # fmt: skip
        m, v = b1 * m + rest1 * g, b2 * v + rest2 * (g * g)
        return -lr * (decay * p + (next1 * m + now1 * g) / (sqrt(v * unbias2) + eps)), m, v

    return formula


def _lion_rule(sign: Callable[[Any], Any]) -> Callable[..., Any]:
    def formula(p: Any, g: Any, m: Any, lr: Any, b1: Any, rest1: Any, b2: Any, rest2: Any, decay: Any) -> Any:
        direction = sign(b1 * m + rest1 * g)
        return -lr * (direction + decay * p), b2 * m + rest2 * g

    return formula


def _sign(x: Any) -> Any:
    return vector.select(x > 0, 1, vector.select(x < 0, -1, vector.select(x == 0, 0, x)))


#: Hyperparameters are one tensor, in the order of the formulas above; `rest1` is 1 - b1, `unbias1` is
#: 1 / (1 - b1**t), computed in float64. Kingma & Ba 2015, Algorithm 1; decoupled weight
#: decay: Loshchilov & Hutter 2019, Algorithm 2; Tieleman & Hinton 2012; Duchi et al. 2011; Dozat 2016;
#: Chen et al. 2023, Algorithm 2. In NAdam `next1` is b1 / (1 - b1**(t + 1)), `now1` (1 - b1) / (1 - b1**t).
sgd = _rule("sgd", 0, 1, _sgd, _sgd)
momentum = _rule("momentum", 1, 2, _momentum, _momentum)
nesterov = _rule("nesterov", 1, 2, _nesterov, _nesterov)
adam = _rows("adam", 2, 9, _adam_rule(vector.sqrt), _adam_rule(np.sqrt))
rmsprop = _rule("rmsprop", 1, 4, _rmsprop_rule(vector.sqrt), _rmsprop_rule(np.sqrt))
rmsprop_momentum = _rule(
    "rmsprop_momentum", 2, 5, _rmsprop_momentum_rule(vector.sqrt), _rmsprop_momentum_rule(np.sqrt)
)
adagrad = _rule("adagrad", 1, 2, _adagrad_rule(vector.sqrt), _adagrad_rule(np.sqrt))
nadam = _rows("nadam", 2, 10, _nadam_rule(vector.sqrt), _nadam_rule(np.sqrt))
lion = _rows("lion", 1, 6, _lion_rule(_sign), _lion_rule(np.sign))
