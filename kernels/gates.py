"""Gates of recurrent layers: a step of one sequence in one pass over its rows, forward and backward.

Arrays of several gates are (gates, hidden). x, product: the parts of the gates before their activations that
come from the input and from the state. In backward passes d are the gradients of x, s those of the state's
product, dh and dc those of the state and of the cell.
"""

from .compiled import device
from .formulas import sigmoid, tanh
from .intrinsics import Array
from .rows import row_map
from .vector import Value

Values = tuple[Value, ...]


def _lstm(
    xi: Value,
    xf: Value,
    xg: Value,
    xo: Value,
    pi: Value,
    pf: Value,
    pg: Value,
    po: Value,
    bi: Value,
    bf: Value,
    bg: Value,
    bo: Value,
    c: Value,
) -> Values:
    i, f = sigmoid(xi + pi + bi), sigmoid(xf + pf + bf)
    g, o = tanh(xg + pg + bg), sigmoid(xo + po + bo)
    c = f * c + i * g
    h = o * tanh(c)
    return i, f, g, o, c, h, h


def _lstm_gradients(
    dh: Value, g_h: Value, dc: Value, c: Value, before: Value, i: Value, f: Value, g: Value, o: Value
) -> Values:
    dh, y = dh + g_h, tanh(c)
    dc = dc + dh * o * (1 - y * y)
    di, df, dg = dc * g * (i * (1 - i)), dc * before * (f * (1 - f)), dc * i * (1 - g * g)
    do = dh * y * (o * (1 - o))
    return di, df, dg, do, di, df, dg, do, dc * f


def _gru(
    xr: Value,
    xz: Value,
    xn: Value,
    pr: Value,
    pz: Value,
    pn: Value,
    br: Value,
    bz: Value,
    bn: Value,
    h: Value,
) -> Values:
    r, z, own = sigmoid(xr + pr + br), sigmoid(xz + pz + bz), pn + bn
    n = tanh(xn + r * own)
    h = (1 - z) * n + z * h
    return r, z, n, own, h, h


def _gru_gradients(dh: Value, g_h: Value, before: Value, r: Value, z: Value, n: Value, own: Value) -> Values:
    dh = dh + g_h
    dn, dz = dh * (1 - z) * (1 - n * n), dh * (before - n) * (z * (1 - z))
    dr, down = dn * own * (r * (1 - r)), dn * r
    return dr, dz, dn, dr, dz, down, dr, dz, down, dh * z


def _gru_extra(
    dr: Value,
    dz: Value,
    dn: Value,
    down: Value,
    er: Value,
    ez: Value,
    en: Value,
    eown: Value,
    r: Value,
    z: Value,
    n: Value,
    own: Value,
) -> Values:
    en = en * (1 - n * n)
    er, eown = (er + en * own) * (r * (1 - r)), eown + en * r
    dr, dz, down = dr + er, dz + ez * (z * (1 - z)), down + eown
    return dr, dz, dn + en, dr, dz, down, dr, dz, down


def _rnn(x: Value, product: Value, bias: Value) -> Values:
    h = tanh(x + product + bias)
    return h, h


def _rnn_gradients(dh: Value, g_h: Value, h: Value) -> Values:
    d = (dh + g_h) * (1 - h * h)
    return d, d


_copy = row_map("row_copy", lambda x: x)
_lstm_row = row_map("row_lstm", _lstm, outs=7)
_lstm_gradients_row = row_map("row_lstm_gradients", _lstm_gradients, outs=9)
_sigmoid_extra = row_map("row_sigmoid_extra", lambda d, extra, y: d + extra * (y * (1 - y)))
_tanh_extra = row_map("row_tanh_extra", lambda d, extra, y: d + extra * (1 - y * y))
_gru_row = row_map("row_gru", _gru, outs=6)
_gru_gradients_row = row_map("row_gru_gradients", _gru_gradients, outs=10)
_gru_extra_row = row_map("row_gru_extra", _gru_extra, outs=9)
rnn_step = row_map("row_rnn", _rnn, outs=2)
rnn_gradients = row_map("row_rnn_gradients", _rnn_gradients, outs=2)


@device
def lstm_step(
    gate: Array, cell: Array, h: Array, state: Array, x: Array, product: Array, bias: Array, before: Array
) -> None:
    """Set gates i f g o, the cell, and the state twice.  before: the cell a step before."""
    _lstm_row(
        gate[0],
        gate[1],
        gate[2],
        gate[3],
        cell,
        h,
        state,
        x[0],
        x[1],
        x[2],
        x[3],
        product[0],
        product[1],
        product[2],
        product[3],
        bias[0],
        bias[1],
        bias[2],
        bias[3],
        before,
    )


@device
def lstm_gradients(
    d: Array, s: Array, dc: Array, dh: Array, g_h: Array, cell: Array, before: Array, gate: Array
) -> None:
    """Set d and s, and move dc a step back.  g_h: the gradient of this step's state as a result.

    dh: the gradient of this step's state through later steps.  before: the cell a step before.
    """
    _lstm_gradients_row(
        d[0],
        d[1],
        d[2],
        d[3],
        s[0],
        s[1],
        s[2],
        s[3],
        dc,
        dh,
        g_h,
        dc,
        cell,
        before,
        gate[0],
        gate[1],
        gate[2],
        gate[3],
    )


@device
def lstm_extra(d: Array, s: Array, extra: Array, gate: Array) -> None:
    """Add the gradients of the gates as results to d and s."""
    for k in range(4):
        if k == 2:
            _tanh_extra(d[k], d[k], extra[k], gate[k])
        else:
            _sigmoid_extra(d[k], d[k], extra[k], gate[k])
        _copy(s[k], d[k])


@device
def gru_step(gate: Array, h: Array, state: Array, x: Array, product: Array, bias: Array) -> None:
    """Set r, z, n, and the state's part of n; replace h by the next state, and copy it."""
    _gru_row(
        gate[0],
        gate[1],
        gate[2],
        gate[3],
        h,
        state,
        x[0],
        x[1],
        x[2],
        product[0],
        product[1],
        product[2],
        bias[0],
        bias[1],
        bias[2],
        h,
    )


@device
def gru_gradients(d: Array, p: Array, s: Array, dh: Array, g_h: Array, before: Array, gate: Array) -> None:
    """Set d to the gradients of x, p and s to those of the state's part, and dh to the rest of before's.

    g_h: as for an LSTM.  before: the state a step before.
    """
    _gru_gradients_row(
        d[0],
        d[1],
        d[2],
        p[0],
        p[1],
        p[2],
        s[0],
        s[1],
        s[2],
        dh,
        dh,
        g_h,
        before,
        gate[0],
        gate[1],
        gate[2],
        gate[3],
    )


@device
def gru_extra(d: Array, p: Array, s: Array, extra: Array, gate: Array) -> None:
    """Add the gradients of r, z, n and the state's part of n, as results, to d, p and s."""
    _gru_extra_row(
        d[0],
        d[1],
        d[2],
        p[0],
        p[1],
        p[2],
        s[0],
        s[1],
        s[2],
        d[0],
        d[1],
        d[2],
        p[2],
        extra[0],
        extra[1],
        extra[2],
        extra[3],
        gate[0],
        gate[1],
        gate[2],
        gate[3],
    )
