"""Recurrent layers over whole sequences: the recurrence, after inputs were multiplied by their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from treepie.kernels import recurrence as kernels
from treepie.kernels.program import Spec

from ..arguments import as_tensor, same_float_dtype
from ..table import BoundArguments, Case, Shape, op, pick
from ..tensor import Tensor, TensorLike
from ..transform import by_formula, zeros_of
from .elementary import tanh
from .linalg import batch_matmul
from .reduction import sum
from .shape import expand_dims, reshape
from .slicing import concatenate, stack


def _bind(
    name: str, count: int, shapes: dict[str, tuple[Any, ...]], /, **operands: TensorLike
) -> BoundArguments:
    """Check operands against shapes in terms of b, t and n: those of the first, (b, t, count n).

    An operand named `g_...` may have no elements, which means zero.
    """
    tensors = {k: as_tensor(x) for k, x in operands.items()}
    same_float_dtype(name, **tensors)
    first = next(iter(tensors.values())).shape
    if len(first) == 3 and first[2] and first[2] % count == 0:
        sizes = {"b": first[0], "t": first[1], "n": first[2] // count}
        expected = {k: tuple(_size(e, sizes) for e in shapes[k]) for k in tensors}
        wrong = [k for k, x in tensors.items() if x.shape != expected[k] and not _absent(k, x)]
        if not wrong:
            return tuple(tensors.values()), {}
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


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _lstm_oracle(x: Any, h0: Any, c0: Any, w: Any, bias: Any) -> Any:
    h, c, steps = h0, c0, []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] + bias + h @ w, 4, -1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((h, c, np.concatenate([i, f, g, o], -1)))
    return [np.stack(y, 1) for y in zip(*steps, strict=True)]


def _gru_oracle(x: Any, h0: Any, w: Any, bias: Any) -> Any:
    h, n, steps = h0, h0.shape[1], []
    for t in range(x.shape[1]):
        own = h @ w + bias
        r, z = _sigmoid(x[:, t, :n] + own[:, :n]), _sigmoid(x[:, t, n : 2 * n] + own[:, n : 2 * n])
        new = np.tanh(x[:, t, 2 * n :] + r * own[:, 2 * n :])
        h = (1 - z) * new + z * h
        steps.append((h, np.concatenate([r, z, new, own[:, 2 * n :]], -1)))
    return [np.stack(y, 1) for y in zip(*steps, strict=True)]


def _rnn_oracle(x: Any, h0: Any, w: Any, bias: Any) -> Any:
    h, states = h0, []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] + h @ w + bias)
        states.append(h)
    return np.stack(states, 1)


class _Steps:
    """The operations that a backward formula needs, over NumPy arrays or over tensors."""

    def __init__(self, stack: Any, concatenate: Any, tanh: Any) -> None:
        self.stack, self.concatenate, self.tanh = stack, concatenate, tanh


_NUMPY = _Steps(lambda xs: np.stack(xs, 1), lambda xs: np.concatenate(xs, -1), np.tanh)
_OPS = _Steps(lambda xs: stack(xs, 1), lambda xs: concatenate(xs, -1), tanh)


def _gates(x: Any, n: int) -> list[Any]:
    return [x[:, k : k + n] for k in range(0, x.shape[1], n)]


def _lstm_backward(
    on: _Steps, g_h: Any, g_c: Any, g_gates: Any, gates: Any, cells: Any, c0: Any, w: Any
) -> Any:
    """Compute `lstm_backward`, in NumPy as its oracle and in plain ops for its own gradient."""
    n, steps = c0.shape[1], list[Any]()
    dh, dc = c0 * 0, c0 * 0
    for t in reversed(range(g_h.shape[1])):
        (i, f, g, o), c = _gates(gates[:, t], n), cells[:, t]
        dh = dh + g_h[:, t]
        if g_c.size:
            dc = dc + g_c[:, t]
        dc = dc + dh * o * (1 - on.tanh(c) * on.tanh(c))
        gradients = [dc * g, dc * (cells[:, t - 1] if t else c0), dc * i, dh * on.tanh(c)]
        if g_gates.size:
            gradients = [a + b for a, b in zip(gradients, _gates(g_gates[:, t], n), strict=True)]
        factors = (i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o))
        d = on.concatenate([a * b for a, b in zip(gradients, factors, strict=True)])
        dc, dh = dc * f, d @ w.T
        steps.insert(0, d)
    return on.stack(steps), dh, dc


def _gru_backward(on: _Steps, g_h: Any, g_gates: Any, gates: Any, states: Any, h0: Any, w: Any) -> Any:
    """Compute `gru_backward`, in NumPy as its oracle and in plain ops for its own gradient."""
    size, steps, products = h0.shape[1], list[Any](), list[Any]()
    dh = h0 * 0
    for t in reversed(range(g_h.shape[1])):
        r, z, n, own = _gates(gates[:, t], size)
        more = _gates(g_gates[:, t], size) if g_gates.size else [0.0] * 4
        dh = dh + g_h[:, t]
        dn = (dh * (1 - z) + more[2]) * (1 - n * n)
        dz = (dh * ((states[:, t - 1] if t else h0) - n) + more[1]) * (z * (1 - z))
        dr, dp = (dn * own + more[0]) * (r * (1 - r)), dn * r + more[3]
        steps.insert(0, on.concatenate([dr, dz, dn]))
        products.insert(0, on.concatenate([dr, dz, dp]))
        dh = dh * z + products[0] @ w.T
    return on.stack(steps), on.stack(products), dh


def _rnn_backward(on: _Steps, g_h: Any, states: Any, w: Any) -> Any:
    """Compute `rnn_backward`, in NumPy as its oracle and in plain ops for its own gradient."""
    dh, steps = states[:, 0] * 0, list[Any]()
    for t in reversed(range(g_h.shape[1])):
        h = states[:, t]
        steps.insert(0, (dh + g_h[:, t]) * (1 - h * h))
        dh = steps[0] @ w.T
    return on.stack(steps), dh


def _in_ops(formula: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward formula over tensors, which is differentiated for second derivatives."""
    return lambda *arguments: formula(_OPS, *arguments)


def _filled(cotangents: Any, results: Any) -> list[Tensor]:
    """Return cotangents, where None becomes zeros for the first, an empty tensor for others."""
    states, *others = (
        Tensor(np.zeros(0, y.dtype), None) if c is None else c
        for c, y in zip(cotangents, results, strict=True)
    )
    return [states if states.size else zeros_of(results[0]), *others]


def _weight_gradient(states: Tensor, h0: Tensor, d: Tensor) -> Tensor:
    before = concatenate([expand_dims(h0, 1), states[:, :-1]], 1)
    return batch_matmul(reshape(before, (-1, h0.shape[1])), reshape(d, (-1, d.shape[2])), True)


def _lstm_vjp(g: Any, result: Any, x: Tensor, h0: Tensor, c0: Tensor, w: Tensor, bias: Tensor) -> Any:
    states, cells, gates = result
    g_h, g_c, g_gates = _filled(g, result)
    d, dh0, dc0 = lstm_backward(g_h, g_c, g_gates, gates, cells, c0, w)
    return d, dh0, dc0, _weight_gradient(states, h0, d), sum(d, (0, 1))


def _gru_vjp(g: Any, result: Any, x: Tensor, h0: Tensor, w: Tensor, bias: Tensor) -> Any:
    states, gates = result
    g_h, g_gates = _filled(g, result)
    d, own, dh0 = gru_backward(g_h, g_gates, gates, states, h0, w)
    return d, dh0, _weight_gradient(states, h0, own), sum(own, (0, 1))


def _rnn_vjp(g: Any, states: Tensor, x: Tensor, h0: Tensor, w: Tensor, bias: Tensor) -> Any:
    d, dh0 = rnn_backward(g, states, w)
    return d, dh0, _weight_gradient(states, h0, d), sum(d, (0, 1))


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
    infer=lambda g_h, g_c, g_gates, gates, cells, c0, w: [gates, c0, c0],
    plan=kernels.lstm_backward,
    vjp=tuple(map(pick, range(7))),
    shared=by_formula(_in_ops(_lstm_backward)),
    oracle=lambda *arrays: _lstm_backward(_NUMPY, *arrays),
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
) -> BoundArguments:
    """Return gradients of lstm_steps with respect to x, h0 and c0; a gradient of shape (0,) means zero."""
    others = {"g_h": g_h, "g_c": g_c, "g_gates": g_gates, "gates": gates, "cells": cells, "c0": c0, "w": w}
    return _bind("lstm", 1, _LSTM, **others)


@op(
    signature="(b,t,4n),(b,n),(b,n),(n,4n),(4n)->(b,t,n),(b,t,n),(b,t,4n)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda x, h0, c0, w, bias: [
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        x,
    ],
    plan=kernels.lstm,
    vjp=tuple(map(pick, range(5))),
    shared=_lstm_vjp,
    oracle=_lstm_oracle,
    cases=_cases(_lstm_shapes),
    wrong=Case(((2, 3, 16), (2, 4), (2, 5), (4, 16), (16,))),
    large=Case(_lstm_shapes(64, 20, 64)),
    ulp=64,
    recycled=True,
)
def lstm_steps(
    x: TensorLike, h0: TensorLike, c0: TensorLike, w: TensorLike, bias: TensorLike
) -> BoundArguments:
    """Return hidden states, cells and gates (i f g o) of an LSTM; x is inputs times their weights."""
    return _bind("lstm", 4, _LSTM, x=x, h0=h0, c0=c0, w=w, bias=bias)


@op(
    signature="(b,t,n),(b,t,4n),(b,t,4n),(b,t,n),(b,n),(n,3n)->(b,t,3n),(b,t,3n),(b,n)",
    returns=tuple[Tensor, Tensor, Tensor],
    infer=lambda g_h, g_gates, gates, states, h0, w: [
        Spec((*gates.shape[:2], w.shape[1]), gates.dtype),
        Spec((*gates.shape[:2], w.shape[1]), gates.dtype),
        h0,
    ],
    plan=kernels.gru_backward,
    vjp=tuple(map(pick, range(6))),
    shared=by_formula(_in_ops(_gru_backward)),
    oracle=lambda *arrays: _gru_backward(_NUMPY, *arrays),
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
) -> BoundArguments:
    """Return gradients of gru_steps: of x, of the state's product and its bias at each step, and of h0."""
    others = {"g_h": g_h, "g_gates": g_gates, "gates": gates, "states": states, "h0": h0, "w": w}
    return _bind("gru", 1, _GRU, **others)


@op(
    signature="(b,t,3n),(b,n),(n,3n),(3n)->(b,t,n),(b,t,4n)",
    returns=tuple[Tensor, Tensor],
    infer=lambda x, h0, w, bias: [
        Spec((*x.shape[:2], w.shape[0]), x.dtype),
        Spec((*x.shape[:2], 4 * w.shape[0]), x.dtype),
    ],
    plan=kernels.gru,
    vjp=tuple(map(pick, range(4))),
    shared=_gru_vjp,
    oracle=_gru_oracle,
    cases=_cases(_gru_shapes),
    wrong=Case(((2, 3, 12), (2, 4), (4, 16), (12,))),
    large=Case(_gru_shapes(64, 20, 64)),
    ulp=64,
    recycled=True,
)
def gru_steps(x: TensorLike, h0: TensorLike, w: TensorLike, bias: TensorLike) -> BoundArguments:
    """Return hidden states of a GRU, and its r, z, n and the state's term of n; x is inputs times weights."""
    return _bind("gru", 3, _GRU, x=x, h0=h0, w=w, bias=bias)


@op(
    signature="(b,t,n),(b,t,n),(n,n)->(b,t,n),(b,n)",
    returns=tuple[Tensor, Tensor],
    infer=lambda g_h, states, w: [states, Spec((states.shape[0], states.shape[2]), states.dtype)],
    plan=kernels.rnn_backward,
    vjp=tuple(map(pick, range(3))),
    shared=by_formula(_in_ops(_rnn_backward)),
    oracle=lambda *arrays: _rnn_backward(_NUMPY, *arrays),
    cases=_cases(_rnn_backward_shapes),
    wrong=Case(((2, 3, 4), (2, 3, 5), (4, 4))),
    large=Case(_rnn_backward_shapes(64, 20, 64)),
    domain=(-0.9, 0.9),
    ulp=64,
    recycled=True,
)
def rnn_backward(g_h: TensorLike, states: TensorLike, w: TensorLike) -> BoundArguments:
    """Return gradients of rnn_steps with respect to x and h0."""
    return _bind("rnn", 1, _RNN, g_h=g_h, states=states, w=w)


@op(
    signature="(b,t,n),(b,n),(n,n),(n)->(b,t,n)",
    infer=lambda x, h0, w, bias: [x],
    plan=kernels.rnn,
    vjp=tuple(map(pick, range(4))),
    shared=_rnn_vjp,
    oracle=_rnn_oracle,
    cases=_cases(_rnn_shapes),
    wrong=Case(((2, 3, 4), (2, 4), (4, 16), (4,))),
    large=Case(_rnn_shapes(64, 20, 64)),
    # Larger weights make errors grow from step to step.
    domain=(-0.5, 0.5),
    ulp=64,
    recycled=True,
)
def rnn_steps(x: TensorLike, h0: TensorLike, w: TensorLike, bias: TensorLike) -> BoundArguments:
    """Return hidden states of an Elman network; x is inputs times their weights."""
    return _bind("rnn", 1, _RNN, x=x, h0=h0, w=w, bias=bias)
