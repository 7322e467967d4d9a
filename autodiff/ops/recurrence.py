"""Recurrent layers over whole sequences: the recurrence, after inputs were multiplied by their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import recurrence as kernels
from treepie.kernels.program import Spec

from ..accuracy import Arithmetic
from ..arguments import as_tensor, same_float_dtype
from ..precision import FLOAT32, attribute
from ..table import BoundArguments, Case, Shape, op, pick
from ..tensor import Tensor, TensorLike
from ..transform import by_formula, zeros_of
from .elementary import tanh
from .linalg import batch_matmul
from .recurrence_formulas import (
    NUMPY,
    Steps,
    gru_gradients,
    gru_oracle,
    lstm_gradients,
    lstm_oracle,
    rnn_gradients,
    rnn_oracle,
)
from .reduction import sum
from .shape import expand_dims, reshape
from .slicing import concatenate, stack


def _bind(
    name: str,
    count: int,
    shapes: dict[str, tuple[Any, ...]],
    precision: str | None,
    /,
    **operands: TensorLike,
) -> BoundArguments:
    """Check operands against shapes in terms of b, t and n: those of the first, (b, t, count n).

    An operand named `g_...` may have no elements, which means zero.  precision: None for that of the block.
    """
    tensors = {k: as_tensor(x) for k, x in operands.items()}
    same_float_dtype(name, **tensors)
    first = next(iter(tensors.values())).shape
    if len(first) == 3 and first[2] and first[2] % count == 0:
        sizes = {"b": first[0], "t": first[1], "n": first[2] // count}
        expected = {k: tuple(_size(e, sizes) for e in shapes[k]) for k in tensors}
        wrong = [k for k, x in tensors.items() if x.shape != expected[k] and not _absent(k, x)]
        if not wrong:
            return tuple(tensors.values()), attribute(tensors["w"], precision)
        k = wrong[0]
        raise ValueError(f"{name}: {k} has shape {tensors[k].shape}, expected {expected[k]}")
    raise ValueError(f"{name}: {next(iter(tensors))} has shape {first}, expected (batch, steps, {count} n)")


def _absent(name: str, x: Tensor) -> bool:
    return name.startswith("g_") and x.shape == (0,)


def _size(term: Any, sizes: dict[str, int]) -> int:
    return sizes[term] if isinstance(term, str) else term[0] * sizes[term[1]]


def _gate(count: int) -> tuple[Any, ...]:
    return ("b", "t", (count, "n"))


_STATE, _STATES = ("b", "n"), ("b", "t", "n")
_LSTM = {
    "x": _gate(4),
    "h0": _STATE,
    "c0": _STATE,
    "w": ("n", (4, "n")),
    "bias": ((4, "n"),),
    "g_h": _STATES,
    "g_c": _STATES,
    "g_gates": _gate(4),
    "gates": _gate(4),
    "cells": _STATES,
}
_GRU = {
    "x": _gate(3),
    "h0": _STATE,
    "w": ("n", (3, "n")),
    "bias": ((3, "n"),),
    "g_h": _STATES,
    "g_gates": _gate(4),
    "gates": _gate(4),
    "states": _STATES,
}


_RNN = {"x": _STATES, "h0": _STATE, "w": ("n", "n"), "bias": ("n",), "g_h": _STATES, "states": _STATES}


_OPS = Steps(lambda xs: stack(xs, 1), lambda xs: concatenate(xs, -1), tanh)


def _in_ops(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward formula over tensors, which is differentiated for second derivatives."""
    return lambda *arguments, precision=FLOAT32: Arithmetic(precision).call(formula, _OPS, *arguments)


def _filled(cotangents: Any, results: Any) -> list[Tensor]:
    """Return cotangents, where None becomes zeros for the first, an empty tensor for others."""
    states, *others = (
        Tensor(np.zeros(0, y.dtype), None) if c is None else c
        for c, y in zip(cotangents, results, strict=True)
    )
    return [states if states.size else zeros_of(results[0]), *others]


def _weight_gradient(states: Tensor, h0: Tensor, d: Tensor, precision: str) -> Tensor:
    before = concatenate([expand_dims(h0, 1), states[:, :-1]], 1)
    rows = reshape(before, (-1, h0.shape[1])), reshape(d, (-1, d.shape[2]))
    return batch_matmul(*rows, True, False, precision)


def _lstm_vjp(
    g: Any,
    result: Any,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w: Tensor,
    bias: Tensor,
    precision: str = FLOAT32,
) -> Any:
    states, cells, gates = result
    g_h, g_c, g_gates = _filled(g, result)
    d, dh0, dc0 = lstm_backward(g_h, g_c, g_gates, gates, cells, c0, w, precision)
    return d, dh0, dc0, _weight_gradient(states, h0, d, precision), sum(d, (0, 1))


def _gru_vjp(
    g: Any, result: Any, x: Tensor, h0: Tensor, w: Tensor, bias: Tensor, precision: str = FLOAT32
) -> Any:
    states, gates = result
    g_h, g_gates = _filled(g, result)
    d, own, dh0 = gru_backward(g_h, g_gates, gates, states, h0, w, precision)
    return d, dh0, _weight_gradient(states, h0, own, precision), sum(own, (0, 1))


def _rnn_vjp(
    g: Any, states: Tensor, x: Tensor, h0: Tensor, w: Tensor, bias: Tensor, precision: str = FLOAT32
) -> Any:
    d, dh0 = rnn_backward(g, states, w, precision)
    return d, dh0, _weight_gradient(states, h0, d, precision), sum(d, (0, 1))


_SIZES = [(2, 3, 4), (13, 2, 1), (1, 1, 17), (30, 5, 33), (3, 1, 2)]


def _cases(make: Callable[[int, int, int], tuple[Shape, ...]]) -> list[Case]:
    return [Case(make(*sizes)) for sizes in _SIZES]


def _lstm_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    return (b, t, 4 * n), (b, n), (b, n), (n, 4 * n), (4 * n,)


def _lstm_backward_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    some = [(b, t, n), (b, t, 4 * n)] if b != 13 else [(0,), (0,)]
    return (b, t, n), *some, (b, t, 4 * n), (b, t, n), (b, n), (n, 4 * n)


def _gru_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    return (b, t, 3 * n), (b, n), (n, 3 * n), (3 * n,)


def _gru_backward_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    some = (b, t, 4 * n) if b != 13 else (0,)
    return (b, t, n), some, (b, t, 4 * n), (b, t, n), (b, n), (n, 3 * n)


def _rnn_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    return (b, t, n), (b, n), (n, n), (n,)


def _rnn_backward_shapes(b: int, t: int, n: int) -> tuple[Shape, ...]:
    return (b, t, n), (b, t, n), (n, n)


@op(
    signature="(b,t,n),(b,t,n),(b,t,4n),(b,t,4n),(b,t,n),(b,n),(n,4n)->(b,t,4n),(b,n),(b,n)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g_h, g_c, g_gates, gates, cells, c0, w, precision=FLOAT32: [gates, c0, c0],
    plan=kernels.lstm_backward,
    vjp=tuple(map(pick, range(7))),
    shared=by_formula(_in_ops(lstm_gradients)),
    oracle=lambda *arrays: lstm_gradients(NUMPY, *arrays),
    cases=_cases(_lstm_backward_shapes),
    wrong=Case(((2, 3, 4), (0,), (0,), (2, 3, 12), (2, 3, 4), (2, 4), (4, 16))),
    large=Case(_lstm_backward_shapes(64, 20, 64)),
    domain=(-0.9, 0.9),
    ulp=64,
    recycled=True,
)
def lstm_backward(
    g_h: TensorLike,
    g_c: TensorLike,
    g_gates: TensorLike,
    gates: TensorLike,
    cells: TensorLike,
    c0: TensorLike,
    w: TensorLike,
    precision: str | None = None,
) -> BoundArguments:
    """Return gradients of lstm_steps with respect to x, h0 and c0; a gradient of shape (0,) means zero."""
    others = {"g_h": g_h, "g_c": g_c, "g_gates": g_gates, "gates": gates, "cells": cells, "c0": c0, "w": w}
    return _bind("lstm", 1, _LSTM, precision, **others)


@op(
    signature="(b,t,4n),(b,n),(b,n),(n,4n),(4n)->(b,t,n),(b,t,n),(b,t,4n)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda x, h0, c0, w, bias, precision=FLOAT32: [
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        x,
    ],
    plan=kernels.lstm,
    vjp=tuple(map(pick, range(5))),
    shared=_lstm_vjp,
    oracle=lstm_oracle,
    cases=_cases(_lstm_shapes),
    wrong=Case(((2, 3, 16), (2, 4), (2, 5), (4, 16), (16,))),
    large=Case(_lstm_shapes(64, 20, 64)),
    ulp=64,
    recycled=True,
)
def lstm_steps(
    x: TensorLike,
    h0: TensorLike,
    c0: TensorLike,
    w: TensorLike,
    bias: TensorLike,
    precision: str | None = None,
) -> BoundArguments:
    """Return hidden states, cells and gates (i f g o) of an LSTM; x is inputs times their weights."""
    return _bind("lstm", 4, _LSTM, precision, x=x, h0=h0, c0=c0, w=w, bias=bias)


@op(
    signature="(b,t,n),(b,t,4n),(b,t,4n),(b,t,n),(b,n),(n,3n)->(b,t,3n),(b,t,3n),(b,n)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g_h, g_gates, gates, states, h0, w, precision=FLOAT32: [
        Spec((*gates.shape[:2], w.shape[1]), gates.dtype),
        Spec((*gates.shape[:2], w.shape[1]), gates.dtype),
        h0,
    ],
    plan=kernels.gru_backward,
    vjp=tuple(map(pick, range(6))),
    shared=by_formula(_in_ops(gru_gradients)),
    oracle=lambda *arrays: gru_gradients(NUMPY, *arrays),
    cases=_cases(_gru_backward_shapes),
    wrong=Case(((2, 3, 4), (0,), (2, 3, 12), (2, 3, 4), (2, 4), (4, 12))),
    large=Case(_gru_backward_shapes(64, 20, 64)),
    domain=(-0.9, 0.9),
    ulp=64,
    recycled=True,
)
def gru_backward(
    g_h: TensorLike,
    g_gates: TensorLike,
    gates: TensorLike,
    states: TensorLike,
    h0: TensorLike,
    w: TensorLike,
    precision: str | None = None,
) -> BoundArguments:
    """Return gradients of gru_steps: of x, of the state's product and its bias at each step, and of h0."""
    others = {"g_h": g_h, "g_gates": g_gates, "gates": gates, "states": states, "h0": h0, "w": w}
    return _bind("gru", 1, _GRU, precision, **others)


@op(
    signature="(b,t,3n),(b,n),(n,3n),(3n)->(b,t,n),(b,t,4n)",
    returns=tuple[Tensor, Tensor],
    infer=lambda x, h0, w, bias, precision=FLOAT32: [
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        Spec((*x.shape[:2], 4 * w.shape[0]), x.dtype),
    ],
    plan=kernels.gru,
    vjp=tuple(map(pick, range(4))),
    shared=_gru_vjp,
    oracle=gru_oracle,
    cases=_cases(_gru_shapes),
    wrong=Case(((2, 3, 12), (2, 4), (4, 16), (12,))),
    large=Case(_gru_shapes(64, 20, 64)),
    ulp=64,
    recycled=True,
)
def gru_steps(
    x: TensorLike, h0: TensorLike, w: TensorLike, bias: TensorLike, precision: str | None = None
) -> BoundArguments:
    """Return hidden states of a GRU, and its r, z, n and the state's term of n; x is inputs times weights."""
    return _bind("gru", 3, _GRU, precision, x=x, h0=h0, w=w, bias=bias)


@op(
    signature="(b,t,n),(b,t,n),(n,n)->(b,t,n),(b,n)",
    returns=tuple[Tensor, Tensor],
    infer=lambda g_h, states, w, precision=FLOAT32: [
        states,
        Spec((states.shape[0], states.shape[2]), states.dtype),
    ],
    plan=kernels.rnn_backward,
    vjp=tuple(map(pick, range(3))),
    shared=by_formula(_in_ops(rnn_gradients)),
    oracle=lambda *arrays: rnn_gradients(NUMPY, *arrays),
    cases=_cases(_rnn_backward_shapes),
    wrong=Case(((2, 3, 4), (2, 3, 5), (4, 4))),
    large=Case(_rnn_backward_shapes(64, 20, 64)),
    domain=(-0.9, 0.9),
    ulp=64,
    recycled=True,
)
def rnn_backward(
    g_h: TensorLike, states: TensorLike, w: TensorLike, precision: str | None = None
) -> BoundArguments:
    """Return gradients of rnn_steps with respect to x and h0."""
    return _bind("rnn", 1, _RNN, precision, g_h=g_h, states=states, w=w)


@op(
    signature="(b,t,n),(b,n),(n,n),(n)->(b,t,n)",
    infer=lambda x, h0, w, bias, precision=FLOAT32: [x],
    plan=kernels.rnn,
    vjp=tuple(map(pick, range(4))),
    shared=_rnn_vjp,
    oracle=rnn_oracle,
    cases=_cases(_rnn_shapes),
    wrong=Case(((2, 3, 4), (2, 4), (4, 16), (4,))),
    large=Case(_rnn_shapes(64, 20, 64)),
    # Larger weights make errors grow from step to step.
    domain=(-0.5, 0.5),
    ulp=64,
    recycled=True,
)
def rnn_steps(
    x: TensorLike, h0: TensorLike, w: TensorLike, bias: TensorLike, precision: str | None = None
) -> BoundArguments:
    """Return hidden states of an Elman network; x is inputs times their weights."""
    return _bind("rnn", 1, _RNN, precision, x=x, h0=h0, w=w, bias=bias)
