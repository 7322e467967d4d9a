"""Translations of ops that layers are made of: convolution, pooling, normalization, attention, recurrence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .graph import Emitter, Term
from .rules import rule

_Pair = tuple[int, int]
_Margins = tuple[int, int, int, int]


# ---- images
def _padded(on: Emitter, x: Term, padding: _Margins, value: float | None = None) -> Term:
    """Return images with rows and columns added at the top, bottom, left and right, or left out."""
    top, bottom, left, right = padding
    pads = (0, 0, top, left, 0, 0, bottom, right)
    return on.Pad(x, pads) if value is None else on.Pad(x, pads, value)


def _pads(padding: _Margins) -> list[int]:
    top, bottom, left, right = padding
    return [top, left, bottom, right]


@rule("convolution", "convolution_bias")
def _convolution(
    on: Emitter, x: Term, w: Term, *bias: Term, stride: _Pair, dilation: _Pair, padding: _Margins, groups: int
) -> Term:
    if min(padding) < 0:
        x, padding = _padded(on, x, padding), (0, 0, 0, 0)
    kernel = on.inputs[1].shape[2:]
    return on.Conv(
        *(x, w, *bias),
        kernel_shape=list(kernel),
        strides=list(stride),
        dilations=list(dilation),
        pads=_pads(padding),
        group=groups,
    )


@rule("convolution_input")
def _convolution_input(
    on: Emitter,
    g: Term,
    w: Term,
    size: _Pair,
    stride: _Pair,
    dilation: _Pair,
    padding: _Margins,
    groups: int,
) -> Term:
    kernel, count = on.fixed(*on.inputs[1].shape[2:]), on.fixed(*on.inputs[0].shape[2:])
    whole = [
        (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(count, stride, dilation, kernel, strict=True)
    ]
    # Rows and columns to leave out at each end of the whole result; negative where zeros are added.
    top, left = padding[0], padding[2]
    out = (top, whole[0] - top - size[0], left, whole[1] - left - size[1])
    inside: Any = tuple(max(n, 0) for n in out)
    y = on.ConvTranspose(
        *(g, w),
        kernel_shape=kernel,
        strides=list(stride),
        dilations=list(dilation),
        pads=_pads(inside),
        group=groups,
    )
    rest: Any = tuple(max(-n, 0) for n in out)
    return _padded(on, y, rest) if any(rest) else y


@rule("max_pool")
def _max_pool(
    on: Emitter, x: Term, kernel: _Pair, stride: _Pair, dilation: _Pair, padding: _Margins
) -> tuple[Term, Term | None]:
    top, bottom, left, right = padding
    options: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "dilations": list(dilation),
    }
    small = max(top, bottom) < kernel[0] and max(left, right) < kernel[1] and min(padding) >= 0
    if not on.used[1]:
        if not small:
            x, padding = _padded(on, x, padding, -np.inf), (0, 0, 0, 0)
        return on.MaxPool(x, pads=_pads(padding), **options), None
    if not small:
        raise on.unsupported("returns positions, of padded windows", "padding smaller than the window")
    y, positions = on.several("MaxPool", 2, x, pads=_pads(padding), **options)
    h, w = on.fixed(*on.inputs[0].shape[2:])
    # ONNX counts over all images and channels.
    return y, on.cast(on.Mod(positions, on.array(h * w, np.int64)), np.int32)


# ---- normalization
@rule("normalize")
def _normalize(
    on: Emitter, x: Term, w: Term, b: Term, axis: int, groups: int, eps: float, centered: bool
) -> Term:
    shape = on.inputs[0].shape
    # LayerNormalization computes in float32 whatever the dtype.
    if axis == len(shape) - 1 and groups == 1 and centered and on.dtype == np.float32:
        return on.LayerNormalization(x, w, b, axis=-1, epsilon=eps)
    channels, *rest = on.fixed(*shape[axis:])
    rows = (*shape[:axis], groups, channels // groups * math.prod(rest))
    t = on.reshape(x, rows)
    if centered:
        t = t - on.ReduceMean(t, (-1,), keepdims=1)
    t = t / on.Sqrt(on.ReduceMean(t * t, (-1,), keepdims=1) + eps)
    column = (channels, *[1] * len(rest))
    return on.reshape(t, shape) * on.reshape(w, column) + on.reshape(b, column)


# ---- attention
@rule("rope")
def _rope(on: Emitter, x: Term, cos: Term, sin: Term, seq_first: bool) -> Term:
    shape = on.inputs[0].shape
    half, last = on.fixed(shape[-1])[0] // 2, len(shape) - 1
    if seq_first:
        cos, sin = on.Unsqueeze(cos, (1,)), on.Unsqueeze(sin, (1,))
    a, b = on.slice(x, last, 0, half), on.slice(x, last, half, shape[-1])
    return on.Concat(a * cos - b * sin, b * cos + a * sin, axis=-1)


@rule("attention")
def _attention(
    on: Emitter,
    q: Term,
    k: Term,
    v: Term,
    mask: Term,
    key: Term,
    scale: float,
    is_causal: bool,
    dropout: float,
    seq_first: bool,
) -> tuple[Term, Term | None]:
    if dropout:
        raise on.unsupported(
            "draws random numbers for dropout", "a model that draws none with training=False"
        )
    if on.used[1]:
        raise on.unsupported("returns the logarithms of its sums", "the result of attention alone")
    shapes = [value.shape for value in on.inputs]
    if seq_first:
        q, k, v = (on.transpose(t, [0, 2, 1, 3]) for t in (q, k, v))
        shapes = [(s[0], s[2], s[1], s[3]) if len(s) == 4 and n < 3 else s for n, s in enumerate(shapes)]
    batch = shapes[0][0]
    (heads, steps, width), (kv_heads, keys, d) = on.fixed(*shapes[0][1:]), on.fixed(*shapes[2][1:])
    grouped = heads != kv_heads
    if grouped:  # heads of a group share a head of k and v, which broadcast along a new axis
        q = on.reshape(q, (batch, kv_heads, heads // kv_heads, steps, width))
        k, v = on.Unsqueeze(k, (2,)), on.Unsqueeze(v, (2,))
    last = 4 if grouped else 3
    scores = (q * scale) @ on.transpose(k, [*range(last - 1), last, last - 1])
    keep = _visible(on, mask, is_causal, (steps, keys), (kv_heads, heads // kv_heads))
    if keep is not None:
        scores = on.Where(keep, scores, float(np.finfo(on.dtype).min))
    p = on.Softmax(scores, axis=-1)
    if keep is not None:  # a query that attends to no key
        p = on.Where(keep, p, 0.0)
    out = p @ v
    if grouped:
        out = on.reshape(out, (batch, heads, steps, d))
    return (on.transpose(out, [0, 2, 1, 3]) if seq_first else out), None


def _visible(on: Emitter, mask: Term, is_causal: bool, scores: _Pair, heads: _Pair) -> Term | None:
    """Return which scores (..., steps, keys) the masks keep, or None for all.

    scores: steps and keys.  heads: those of k and v, and how many of q share each of them.
    """
    keep = None
    value = on.inputs[3]
    if 0 not in value.shape:
        keep = mask if value.dtype.kind == "b" else on.cast(mask, bool)
        if heads[1] > 1 and value.shape[1] == 1:
            keep = on.Unsqueeze(keep, (2,))
        elif heads[1] > 1:
            keep = on.reshape(keep, (value.shape[0], *heads, *value.shape[2:]))
    if is_causal:
        causal = on.array(np.tri(*scores, dtype=bool), bool)
        keep = causal if keep is None else on.And(keep, causal)
    return keep


# ---- recurrence
@rule("lstm_steps")
def _lstm(
    on: Emitter, x: Term, h0: Term, c0: Term, w: Term, bias: Term
) -> tuple[Term, Term | None, Term | None]:
    if on.dtype != np.float32 or on.used[1] or on.used[2]:
        return _unrolled_lstm(on, x, h0, c0, w, bias)
    sequence, w_x, b_x = _projected(on, x)
    order = (0, 3, 1, 2)  # ONNX has the gates i o f c
    weights = [_gates_first(on, t, order, 4) for t in (w_x, w)]
    both = _biases(on, [b_x, bias], order, 4)
    states = [on.Unsqueeze(t, (0,)) for t in (h0, c0)]
    n = on.outputs[0].shape[2]
    y = on.LSTM(_time_first(on, sequence), *weights, both, None, *states, hidden_size=n)
    return _batch_first(on, y), None, None


@rule("gru_steps")
def _gru(on: Emitter, x: Term, h0: Term, w: Term, bias: Term) -> tuple[Term, Term | None]:
    if on.dtype != np.float32 or on.used[1]:
        return _unrolled_gru(on, x, h0, w, bias)
    sequence, w_x, b_x = _projected(on, x)
    order = (1, 0, 2)  # ONNX has the gates z r h
    weights = [_gates_first(on, t, order, 3) for t in (w_x, w)]
    both = _biases(on, [b_x, bias], order, 3)
    n, first = on.outputs[0].shape[2], on.Unsqueeze(h0, (0,))
    y = on.GRU(_time_first(on, sequence), *weights, both, None, first, hidden_size=n, linear_before_reset=1)
    return _batch_first(on, y), None


@rule("rnn_steps")
def _rnn(on: Emitter, x: Term, h0: Term, w: Term, bias: Term) -> Term:
    if on.dtype != np.float32:
        return _unrolled_rnn(on, x, h0, w, bias)
    sequence, w_x, b_x = _projected(on, x)
    weights = [_gates_first(on, t, (0,), 1) for t in (w_x, w)]
    both, first = _biases(on, [b_x, bias], (0,), 1), on.Unsqueeze(h0, (0,))
    n = on.outputs[0].shape[2]
    y = on.RNN(_time_first(on, sequence), *weights, both, None, first, hidden_size=n)
    return _batch_first(on, y)


def _projected(on: Emitter, x: Term) -> tuple[Term, Term, Term]:
    """Return a sequence, weights and a bias whose product is x: those of the linear layer that computes x.

    Of another x: itself, the identity matrix and zeros.
    """
    call, size = on.producers.get(on.call.inputs[0]), _width(on)
    if call is not None and call.op.name == "linear" and call.attributes["activation"] is None:
        sequence, w, bias = map(on.term, call.inputs)
        return sequence, w, bias
    return x, on.array(np.eye(size)), on.array(np.zeros(size))


def _width(on: Emitter) -> int:
    """Return the size of all gates together."""
    return on.fixed(on.inputs[0].shape[2])[0]


def _rows_of(order: tuple[int, ...], size: int, count: int) -> Any:
    return np.concatenate([np.arange(k * size // count, (k + 1) * size // count) for k in order])


def _gates_first(on: Emitter, w: Term, order: tuple[int, ...], count: int) -> Term:
    """Return weights (in, gates) as (1, gates, in), the gates in another order."""
    rows = on.array(_rows_of(order, _width(on), count), np.int64)
    return on.Unsqueeze(on.Gather(on.transpose(w, [1, 0]), rows, axis=0), (0,))


def _biases(on: Emitter, biases: list[Term], order: tuple[int, ...], count: int) -> Term:
    """Return both biases as (1, 2 gates), the gates in another order."""
    rows = on.array(_rows_of(order, _width(on), count), np.int64)
    parts = [on.Gather(on.reshape(b, (-1,)), rows, axis=0) for b in biases]
    return on.Unsqueeze(on.Concat(*parts, axis=0), (0,))


def _time_first(on: Emitter, x: Term) -> Term:
    return on.transpose(x, [1, 0, 2])


def _batch_first(on: Emitter, y: Term) -> Term:
    """Return (steps, 1, batch, n), of one direction, as (batch, steps, n)."""
    return on.transpose(on.Squeeze(y, (1,)), [1, 0, 2])


def _steps(on: Emitter, x: Term) -> list[Term]:
    """Return the steps of x (batch, steps, n)."""
    (count,) = on.fixed(on.inputs[0].shape[1])
    return [on.Gather(x, on.array(t, np.int64), axis=1) for t in range(count)]


def _split(on: Emitter, x: Term, n: int, size: int) -> list[Term]:
    return [on.slice(x, 1, k * size // n, (k + 1) * size // n) for k in range(n)]


def _joined(on: Emitter, steps: list[Term]) -> Term:
    return on.Concat(*[on.Unsqueeze(t, (1,)) for t in steps], axis=1)


def _unrolled_lstm(
    on: Emitter, x: Term, h: Term, c: Term, w: Term, bias: Term
) -> tuple[Term, Term | None, Term | None]:
    """Return an LSTM step by step: ONNX's returns no cells or gates, and onnxruntime's has no float64."""
    size, results = _width(on), list[tuple[Term, Term, Term]]()
    for step in _steps(on, x):
        i, f, g, o = _split(on, step + bias + h @ w, 4, size)
        i, f, g, o = on.Sigmoid(i), on.Sigmoid(f), on.Tanh(g), on.Sigmoid(o)
        c = f * c + i * g
        h = o * on.Tanh(c)
        results.append((h, c, on.Concat(i, f, g, o, axis=1)))
    states, cells, gates = (_joined(on, list(part)) for part in zip(*results, strict=True))
    return states, cells, gates


def _unrolled_gru(on: Emitter, x: Term, h: Term, w: Term, bias: Term) -> tuple[Term, Term | None]:
    """Return a GRU step by step: ONNX's returns no gates, and onnxruntime's has no float64."""
    size, results = _width(on), list[tuple[Term, Term]]()
    for step in _steps(on, x):
        (xr, xz, xn), (hr, hz, hn) = _split(on, step, 3, size), _split(on, h @ w + bias, 3, size)
        r, z = on.Sigmoid(xr + hr), on.Sigmoid(xz + hz)
        new = on.Tanh(xn + r * hn)
        h = (1.0 - z) * new + z * h
        results.append((h, on.Concat(r, z, new, hn, axis=1)))
    states, gates = (_joined(on, list(part)) for part in zip(*results, strict=True))
    return states, gates


def _unrolled_rnn(on: Emitter, x: Term, h: Term, w: Term, bias: Term) -> Term:
    """Return an Elman network step by step: onnxruntime's has no float64."""
    states = []
    for step in _steps(on, x):
        h = on.Tanh(step + h @ w + bias)
        states.append(h)
    return _joined(on, states)
