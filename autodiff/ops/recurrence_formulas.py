"""Formulas of recurrent layers: their oracles in NumPy, and gradients in NumPy or in ops."""

from typing import Any

import numpy as np


def _sigmoid(x: Any) -> Any:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def lstm_oracle(x: Any, h0: Any, c0: Any, w: Any, bias: Any) -> Any:
    """Compute `lstm_steps` in NumPy."""
    h, c, steps = h0, c0, []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] + bias + h @ w, 4, -1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((h, c, np.concatenate([i, f, g, o], -1)))
    return [np.stack(y, 1) for y in zip(*steps, strict=True)]


def gru_oracle(x: Any, h0: Any, w: Any, bias: Any) -> Any:
    """Compute `gru_steps` in NumPy."""
    h, n, steps = h0, h0.shape[1], []
    for t in range(x.shape[1]):
        own = h @ w + bias
        r, z = _sigmoid(x[:, t, :n] + own[:, :n]), _sigmoid(x[:, t, n : 2 * n] + own[:, n : 2 * n])
        new = np.tanh(x[:, t, 2 * n :] + r * own[:, 2 * n :])
        h = (1 - z) * new + z * h
        steps.append((h, np.concatenate([r, z, new, own[:, 2 * n :]], -1)))
    return [np.stack(y, 1) for y in zip(*steps, strict=True)]


def rnn_oracle(x: Any, h0: Any, w: Any, bias: Any) -> Any:
    """Compute `rnn_steps` in NumPy."""
    h, states = h0, []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] + h @ w + bias)
        states.append(h)
    return np.stack(states, 1)


class Steps:
    """The operations that a backward formula needs, over NumPy arrays or over tensors."""

    def __init__(self, stack: Any, concatenate: Any, tanh: Any) -> None:
        """stack: of steps, on axis 1.  concatenate: of gates, on the last axis."""
        self.stack, self.concatenate, self.tanh = stack, concatenate, tanh


NUMPY = Steps(lambda xs: np.stack(xs, 1), lambda xs: np.concatenate(xs, -1), np.tanh)


def _gates(x: Any, n: int) -> list[Any]:
    return [x[:, k : k + n] for k in range(0, x.shape[1], n)]


def lstm_gradients(
    on: Steps, g_h: Any, g_c: Any, g_gates: Any, gates: Any, cells: Any, c0: Any, w: Any
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


def gru_gradients(on: Steps, g_h: Any, g_gates: Any, gates: Any, states: Any, h0: Any, w: Any) -> Any:
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


def rnn_gradients(on: Steps, g_h: Any, states: Any, w: Any) -> Any:
    """Compute `rnn_backward`, in NumPy as its oracle and in plain ops for its own gradient."""
    dh, steps = states[:, 0] * 0, list[Any]()
    for t in reversed(range(g_h.shape[1])):
        h = states[:, t]
        steps.insert(0, (dh + g_h[:, t]) * (1 - h * h))
        dh = steps[0] @ w.T
    return on.stack(steps), dh
