"""Translations of elementwise ops, and of comparisons and logic."""

from __future__ import annotations

import math

import numpy as np

from .graph import Emitter, Term
from .rules import RULES, Rule, rule

#: Of selu (Klambauer et al. 2017).
_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _node(op: str) -> Rule:
    return lambda on, *operands: on.one(op, *operands)


RULES.update(
    {
        name: _node(op)
        for name, op in {
            "abs": "Abs",
            "ceil": "Ceil",
            "cos": "Cos",
            "div": "Div",
            "equal": "Equal",
            "erf": "Erf",
            "exp": "Exp",
            "floor": "Floor",
            "isnan": "IsNaN",
            "log": "Log",
            "logical_and": "And",
            "logical_not": "Not",
            "logical_or": "Or",
            "neg": "Neg",
            "pow": "Pow",
            "round": "Round",
            "sigmoid": "Sigmoid",
            "sign": "Sign",
            "sin": "Sin",
            "softplus": "Softplus",
            "sqrt": "Sqrt",
            "sub": "Sub",
            "tanh": "Tanh",
        }.items()
    }
)


@rule("add")
def _add(on: Emitter, a: Term, b: Term) -> Term:
    return on.Or(a, b) if on.dtype.kind == "b" else a + b


@rule("mul")
def _mul(on: Emitter, a: Term, b: Term) -> Term:
    return on.And(a, b) if on.dtype.kind == "b" else a * b


@rule("not_equal")
def _not_equal(on: Emitter, a: Term, b: Term) -> Term:
    return on.Not(on.Equal(a, b))


@rule("less", "less_equal", "greater", "greater_equal")
def _order(on: Emitter, a: Term, b: Term) -> Term:
    if on.dtype.kind == "b":
        a, b = on.cast(a, np.int32), on.cast(b, np.int32)
    names = {"less": "Less", "less_equal": "LessOrEqual", "greater": "Greater"}
    return on.one(names.get(on.call.op.name, "GreaterOrEqual"), a, b)


@rule("maximum", "minimum")
def _larger(on: Emitter, a: Term, b: Term) -> Term:
    larger = on.call.op.name == "maximum"
    if on.dtype.kind == "b":
        return on.Or(a, b) if larger else on.And(a, b)
    return on.Max(a, b) if larger else on.Min(a, b)


@rule("where")
def _where(on: Emitter, condition: Term, a: Term, b: Term) -> Term:
    return on.choose(condition, a, b, on.outputs[0].dtype)


@rule("clip")
def _clip(on: Emitter, x: Term, low: Term, high: Term) -> Term:
    if on.dtype.kind == "b":
        return on.And(on.Or(x, low), high)
    return on.Min(on.Max(x, low), high)


@rule("isfinite")
def _isfinite(on: Emitter, x: Term) -> Term:
    return on.Abs(x) < math.inf


@rule("expm1")
def _expm1(on: Emitter, x: Term) -> Term:
    return on.Tanh(x * 0.5) * (on.Exp(x) + 1.0)  # accurate near 0


@rule("log1p")
def _log1p(on: Emitter, x: Term) -> Term:
    # Kahan's: the rounding of 1 + x cancels in the quotient. At 1 and at infinity it would be NaN.
    whole = x + 1.0
    exact = on.Or(on.Equal(whole, 1.0), on.Equal(whole, math.inf))
    return on.Where(exact, x, on.Log(whole) * (x / (whole - 1.0)))


RULES.update(
    {
        "celu": lambda on, x, alpha: on.Where(x > 0, x, alpha * _expm1(on, on.Min(x, 0) / alpha)),
        "elu": lambda on, x, alpha: on.Where(x > 0, x, alpha * _expm1(on, on.Min(x, 0))),
        "gelu": lambda on, x: x * 0.5 * (on.Erf(x * math.sqrt(0.5)) + 1.0),
        "gelu_approx": lambda on, x: (
            x * on.Sigmoid((x * x * x * 0.044715 + x) * (2 * math.sqrt(2 / math.pi)))
        ),
        "hard_sigmoid": lambda on, x: on.Min(on.Max(x + 3.0, 0), 6) / 6.0,
        "hard_silu": lambda on, x: x * (on.Min(on.Max(x + 3.0, 0), 6) / 6.0),
        "hard_tanh": lambda on, x: on.Min(on.Max(x, -1), 1),
        "leaky_relu": lambda on, x, slope: on.Where(x > 0, x, x * slope),
        "log_sigmoid": lambda on, x: -on.Softplus(-x),
        "mish": lambda on, x: x * on.Tanh(on.Softplus(x)),
        "relu": lambda on, x: on.Relu(x) if on.dtype.kind == "f" else on.Max(x, 0),
        "relu6": lambda on, x: on.Min(on.Max(x, 0), 6),
        "rsqrt": lambda on, x: 1.0 / on.Sqrt(x),
        "scale_shift": lambda on, x, mean, scale, shift: (x - mean) * scale + shift,
        "selu": lambda on, x: on.Where(x > 0, x, _ALPHA * _expm1(on, on.Min(x, 0))) * _SCALE,
        "silu": lambda on, x: x * on.Sigmoid(x),
        "softsign": lambda on, x: x / (on.Abs(x) + 1.0),
        "sparse_sigmoid": lambda on, x: on.Min(on.Max(x * 0.5 + 0.5, 0), 1),
        "square": lambda on, x: x * x,
    }
)


@rule("squareplus")
def _squareplus(on: Emitter, x: Term) -> Term:
    root = on.Sqrt(x * x + 4.0)
    return on.Where(x > 0, (x + root) * 0.5, 2.0 / (root - x))


@rule("sparse_plus")
def _sparse_plus(on: Emitter, x: Term) -> Term:
    near = on.Max(x + 1.0, 0)
    return on.Where(x > 1, x, near * near * 0.25)
