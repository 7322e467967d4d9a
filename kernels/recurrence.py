"""LSTM and GRU over whole sequences: a kernel per direction that runs all steps of some sequences.

The contribution of the inputs, x W_ih, is one matrix product for all steps, computed before; the weights'
gradients are computed after, likewise. A chunk is a few sequences, at most the rows of the micro-kernel's
tile; chunks share nothing, so threads never wait for each other. Rows of a state or a gate are indexed by
(batch, steps), flat.
"""

from collections.abc import Callable, Sequence
from typing import Any

from . import config, gemm
from .blocks import clear, pack_panels, pack_transposed
from .compiled import device
from .formulas import sigmoid, tanh
from .intrinsics import Array, call_address, rows_at
from .kernel import A1, Kernel, Words, kernel
from .program import Address, Launch, Operand
from .rows import row_map

#: Words of a plan: sizes, tile and packer of the step's product, bytes of a chunk's scratch, offsets in it.
_BATCH, _STEPS, _HIDDEN, _CHUNKS, _WIDE, _TILE, _PACK, _CHUNK_BYTES, _PANELS, _ROWS, _CARRY = range(11)
#: Addresses of the arrays; 0 for a missing one.
_X, _W, _H0, _C0, _HS, _CS, _GATES, _BIAS, _G_H, _G_C, _G_GATES, _D, _DH0, _DC0 = range(11, 25)

_copy = row_map("row_copy", lambda x: x)
_add = row_map("row_add", lambda a, b: a + b)
_times = row_map("row_product", lambda a, b: a * b)
_sigmoid = row_map("row_sigmoid", sigmoid)
_tanh = row_map("row_tanh", tanh)
_cell = row_map("row_cell", lambda i, f, g, c: f * c + i * g)
_times_tanh = row_map("row_times_tanh", lambda o, c: o * tanh(c))
_cell_gradient = row_map("row_cell_gradient", lambda dc, dh, o, c: dc + dh * o * (1 - tanh(c) * tanh(c)))
_sigmoid_gradient = row_map("row_sigmoid_gradient", lambda d, y: d * (y * (1 - y)))
_tanh_gradient = row_map("row_tanh_gradient", lambda d, y: d * (1 - y * y))
_candidate = row_map("row_candidate", lambda x, r, h: tanh(x + r * h))
_blend = row_map("row_blend", lambda z, n, h: (1 - z) * n + z * h)
_times_rest = row_map("row_times_rest", lambda dh, z: dh * (1 - z))
_times_gap = row_map("row_times_gap", lambda dh, h, n: dh * (h - n))


@device
def _base(work: Array, chunk: int, plan: Array) -> Any:
    return (work.ctypes.data + 63) // 64 * 64 + chunk * plan[_CHUNK_BYTES]


@device
def _all_rows(plan: Array, word: int, width: int, like: Array) -> Any:
    """Return an array of `plan` as rows, one for each step of a sequence; a missing array has no rows."""
    return rows_at(plan[word], plan[_BATCH] * plan[_STEPS] if plan[word] else 0, width, like)


@device
def _before(states: Array, first: Array, batch: int, t: int, steps: int) -> Any:
    """Return the state before a step."""
    return states[batch * steps + t - 1] if t > 0 else first[batch]


@device
def _project(a: Array, panels: int, c: int, width: int, step_c: int, plan: Array) -> None:
    """Add a (rows, depth) times panels (depth, wide) to rows of `width` at c, `step_c` elements apart."""
    itemsize, (rows, depth), wide = a.itemsize, a.shape, plan[_WIDE]
    for k in range((width + wide - 1) // wide):
        j = k * wide
        b, at, used = panels + j * depth * itemsize, c + j * itemsize, min(wide, width - j)
        call_address(
            plan[_TILE],
            depth,
            a.ctypes.data,
            depth * itemsize,
            itemsize,
            b,
            wide * itemsize,
            at,
            step_c * itemsize,
            0,
            rows,
            used,
            1,
        )


@kernel
def _lstm(lo: int, hi: int, work: A1, plan: Words) -> None:
    n, steps, batch = plan[_HIDDEN], plan[_STEPS], plan[_BATCH]
    x, gates = _all_rows(plan, _X, 4 * n, work), _all_rows(plan, _GATES, 4 * n, work)
    hs, cs = _all_rows(plan, _HS, n, work), _all_rows(plan, _CS, n, work)
    h0, c0 = rows_at(plan[_H0], batch, n, work), rows_at(plan[_C0], batch, n, work)
    bias = rows_at(plan[_BIAS], 1, 4 * n, work)[0]
    for chunk in range(lo, hi):
        base, first = _base(work, chunk, plan), chunk * batch // plan[_CHUNKS]
        h = rows_at(base + plan[_ROWS], (chunk + 1) * batch // plan[_CHUNKS] - first, n, work)
        pack_panels(plan[_PACK], base + plan[_PANELS], rows_at(plan[_W], n, 4 * n, work), plan[_WIDE], n)
        for i in range(h.shape[0]):
            _copy(h[i], h0[first + i])
        for t in range(steps):
            for i in range(h.shape[0]):
                _add(gates[(first + i) * steps + t], x[(first + i) * steps + t], bias)
            to = gates[first * steps + t].ctypes.data
            _project(h, base + plan[_PANELS], to, 4 * n, steps * 4 * n, plan)
            for i in range(h.shape[0]):
                row = (first + i) * steps + t
                gate = gates[row]
                _sigmoid(gate[: 2 * n], gate[: 2 * n])
                _tanh(gate[2 * n : 3 * n], gate[2 * n : 3 * n])
                _sigmoid(gate[3 * n :], gate[3 * n :])
                before = _before(cs, c0, first + i, t, steps)
                _cell(cs[row], gate[:n], gate[n : 2 * n], gate[2 * n : 3 * n], before)
                _times_tanh(h[i], gate[3 * n :], cs[row])
                _copy(hs[row], h[i])


@device
def _lstm_gradients(
    d: Array, dc: Array, dh: Array, c: Array, before: Array, gate: Array, extra: Array, row: int
) -> None:
    """Set d to the gradients of one step's gates before their activations; dc moves a step back.

    extra: gradients of the gates themselves, or empty; row `row` is this step's.
    """
    n = dh.size
    i, f, g, o = gate[:n], gate[n : 2 * n], gate[2 * n : 3 * n], gate[3 * n :]
    _cell_gradient(dc, dc, dh, o, c)
    _times(d[:n], dc, g)
    _times(d[n : 2 * n], dc, before)
    _times(d[2 * n : 3 * n], dc, i)
    _times_tanh(d[3 * n :], dh, c)
    _times(dc, dc, f)
    if extra.size:
        _add(d, d, extra[row])
    _sigmoid_gradient(d[: 2 * n], d[: 2 * n], gate[: 2 * n])
    _tanh_gradient(d[2 * n : 3 * n], d[2 * n : 3 * n], g)
    _sigmoid_gradient(d[3 * n :], d[3 * n :], o)


@kernel
def _lstm_backward(lo: int, hi: int, work: A1, plan: Words) -> None:
    n, steps, batch = plan[_HIDDEN], plan[_STEPS], plan[_BATCH]
    gates, d = _all_rows(plan, _GATES, 4 * n, work), _all_rows(plan, _D, 4 * n, work)
    g_h, g_c = _all_rows(plan, _G_H, n, work), _all_rows(plan, _G_C, n, work)
    cs, c0 = _all_rows(plan, _CS, n, work), rows_at(plan[_C0], batch, n, work)
    g_gates = _all_rows(plan, _G_GATES, 4 * n, work)
    dh0, dc0 = rows_at(plan[_DH0], batch, n, work), rows_at(plan[_DC0], batch, n, work)
    for chunk in range(lo, hi):
        base, first = _base(work, chunk, plan), chunk * batch // plan[_CHUNKS]
        rows = (chunk + 1) * batch // plan[_CHUNKS] - first
        gradients = rows_at(base + plan[_ROWS], rows, 4 * n, work)
        dh = rows_at(base + plan[_CARRY], rows, n, work)
        pack_transposed(plan[_PACK], base + plan[_PANELS], rows_at(plan[_W], n, 4 * n, work), plan[_WIDE])
        for i in range(rows):
            clear(dh[i])
            clear(dc0[first + i])
        for back in range(steps):
            t = steps - 1 - back
            for i in range(rows):
                row = (first + i) * steps + t
                _add(dh[i], dh[i], g_h[row])
                if g_c.size:
                    _add(dc0[first + i], dc0[first + i], g_c[row])
                before = _before(cs, c0, first + i, t, steps)
                _lstm_gradients(
                    gradients[i], dc0[first + i], dh[i], cs[row], before, gates[row], g_gates, row
                )
                _copy(d[row], gradients[i])
                clear(dh[i])
            _project(gradients, base + plan[_PANELS], dh.ctypes.data, n, n, plan)
        for i in range(rows):
            _copy(dh0[first + i], dh[i])


@kernel
def _gru(lo: int, hi: int, work: A1, plan: Words) -> None:
    n, steps, batch = plan[_HIDDEN], plan[_STEPS], plan[_BATCH]
    x, gates = _all_rows(plan, _X, 3 * n, work), _all_rows(plan, _GATES, 4 * n, work)
    hs, h0 = _all_rows(plan, _HS, n, work), rows_at(plan[_H0], batch, n, work)
    w, bias = rows_at(plan[_W], n, 3 * n, work), rows_at(plan[_BIAS], 1, 3 * n, work)[0]
    for chunk in range(lo, hi):
        base, first = _base(work, chunk, plan), chunk * batch // plan[_CHUNKS]
        panels, panels_n = base + plan[_PANELS], base + plan[_CARRY]
        h = rows_at(base + plan[_ROWS], (chunk + 1) * batch // plan[_CHUNKS] - first, n, work)
        pack_panels(plan[_PACK], panels, w[:, : 2 * n], plan[_WIDE], n)
        pack_panels(plan[_PACK], panels_n, w[:, 2 * n :], plan[_WIDE], n)
        for i in range(h.shape[0]):
            _copy(h[i], h0[first + i])
        for t in range(steps):
            for i in range(h.shape[0]):
                gate = gates[(first + i) * steps + t]
                _add(gate[: 2 * n], x[(first + i) * steps + t, : 2 * n], bias[: 2 * n])
                _copy(gate[3 * n :], bias[2 * n :])
            to = gates[first * steps + t].ctypes.data
            _project(h, panels, to, 2 * n, steps * 4 * n, plan)
            _project(h, panels_n, to + 3 * n * h.itemsize, n, steps * 4 * n, plan)
            for i in range(h.shape[0]):
                row = (first + i) * steps + t
                gate = gates[row]
                _sigmoid(gate[: 2 * n], gate[: 2 * n])
                _candidate(gate[2 * n : 3 * n], x[row, 2 * n :], gate[:n], gate[3 * n :])
                _blend(h[i], gate[n : 2 * n], gate[2 * n : 3 * n], h[i])
                _copy(hs[row], h[i])


@device
def _gru_gradients(d: Array, dh: Array, before: Array, gate: Array, extra: Array, row: int) -> None:
    """Set d to the gradients of one step's r, z, n before their activations, and of the state's part of n.

    dh: replaced by the gradient that reaches the previous state directly.  extra: as for `_lstm_gradients`.
    """
    size = dh.size
    r, z, n = gate[:size], gate[size : 2 * size], gate[2 * size : 3 * size]
    dr, dz, dn, dp = d[:size], d[size : 2 * size], d[2 * size : 3 * size], d[3 * size :]
    _times_rest(dn, dh, z)
    _times_gap(dz, dh, before, n)
    _times(dh, dh, z)
    if extra.size:
        _add(dn, dn, extra[row, 2 * size : 3 * size])
        _add(dz, dz, extra[row, size : 2 * size])
    _tanh_gradient(dn, dn, n)
    _times(dr, dn, gate[3 * size :])
    _times(dp, dn, r)
    if extra.size:
        _add(dr, dr, extra[row, :size])
        _add(dp, dp, extra[row, 3 * size :])
    _sigmoid_gradient(d[: 2 * size], d[: 2 * size], gate[: 2 * size])


@kernel
def _gru_backward(lo: int, hi: int, work: A1, plan: Words) -> None:
    n, steps, batch = plan[_HIDDEN], plan[_STEPS], plan[_BATCH]
    gates, d = _all_rows(plan, _GATES, 4 * n, work), _all_rows(plan, _D, 4 * n, work)
    g_h, g_gates = _all_rows(plan, _G_H, n, work), _all_rows(plan, _G_GATES, 4 * n, work)
    hs, h0 = _all_rows(plan, _HS, n, work), rows_at(plan[_H0], batch, n, work)
    dh0 = rows_at(plan[_DH0], batch, n, work)
    for chunk in range(lo, hi):
        base, first = _base(work, chunk, plan), chunk * batch // plan[_CHUNKS]
        rows = (chunk + 1) * batch // plan[_CHUNKS] - first
        gradients = rows_at(base + plan[_ROWS], rows, 3 * n, work)
        pack_transposed(plan[_PACK], base + plan[_PANELS], rows_at(plan[_W], n, 3 * n, work), plan[_WIDE])
        for i in range(rows):
            clear(dh0[first + i])
        for back in range(steps):
            t = steps - 1 - back
            for i in range(rows):
                row, dh = (first + i) * steps + t, dh0[first + i]
                _add(dh, dh, g_h[row])
                _gru_gradients(d[row], dh, _before(hs, h0, first + i, t, steps), gates[row], g_gates, row)
                _copy(gradients[i, : 2 * n], d[row, : 2 * n])
                _copy(gradients[i, 2 * n :], d[row, 3 * n :])
            if rows:
                _project(gradients, base + plan[_PANELS], dh0[first].ctypes.data, n, n, plan)


def _launch(
    kernel: Kernel,
    arrays: dict[int, Operand],
    sizes: tuple[int, ...],
    gates: int,
    backward: bool,
    scratch: Callable[..., Operand],
) -> Launch:
    """Plan a kernel over sequences.  sizes: batch, steps, hidden.  gates: of the recurrent weight."""
    batch, steps, n = sizes
    dtype, itemsize = arrays[_W].dtype, arrays[_W].dtype.itemsize
    # An even number, for two threads: 32 sequences are 4 times 8 rather than 12, 12 and 8.
    chunks = 1 if batch <= gemm.rows() else 2 * -(-batch // (2 * gemm.rows()))
    high = gemm.height(-(-batch // chunks))
    # One width of panels for all products of a kernel; a GRU's gates are two products of 2 n and n columns.
    wide = gemm.panel(dtype.name, n)
    padded = -(-n // wide) * wide

    def rounded(count: int) -> int:
        return -(-count * itemsize // 64) * 64

    panels = rounded(gates * n * padded if backward else n * -(-gates * n // wide) * wide)
    rows = rounded(high * n * (gates if backward else 1))
    carry = rounded(high * n if backward else n * padded)
    tile, pack = gemm.micro_kernel(dtype.name, wide, high), gemm.packer(dtype.name, wide, backward)
    words = (batch, steps, n, chunks, wide, tile, pack, panels + rows + carry, 0, panels, panels + rows)
    in_order = (arrays.get(word) for word in range(_X, _DC0 + 1))
    addresses = (Address(a) if a is not None and a.size else 0 for a in in_order)
    work = scratch((chunks * (panels + rows + carry) // itemsize + 64,), dtype)
    flops = batch * steps * n * (2.0 * gates * n + 30 * gates)
    return kernel(chunks, flops * config.FLOP_NS, work, (*words, *addresses))


def lstm(
    inputs: Sequence[Operand], outputs: Sequence[Operand], scratch: Callable[..., Operand]
) -> list[Launch]:
    """Plan an LSTM's hidden states (batch, steps, n), its cells, and its gates i f g o (batch, steps, 4 n).

    inputs: x (batch, steps, 4 n), the inputs' contribution to the gates; h0 and c0 (batch, n); the weight
    (n, 4 n) and the bias (4 n,).
    """
    arrays = dict(zip((_X, _H0, _C0, _W, _BIAS, _HS, _CS, _GATES), (*inputs, *outputs), strict=True))
    return [_launch(_lstm, arrays, outputs[0].shape, 4, False, scratch)]


def lstm_backward(
    inputs: Sequence[Operand], outputs: Sequence[Operand], scratch: Callable[..., Operand]
) -> list[Launch]:
    """Plan the gradients of an LSTM's x, h0 and c0.

    inputs: the gradients of hidden states, of cells and of gates, the last two perhaps empty; then gates,
    cells, c0 and w.
    """
    arrays = dict(
        zip((_G_H, _G_C, _G_GATES, _GATES, _CS, _C0, _W, _D, _DH0, _DC0), (*inputs, *outputs), strict=True)
    )
    return [_launch(_lstm_backward, arrays, inputs[0].shape, 4, True, scratch)]


def gru(
    inputs: Sequence[Operand], outputs: Sequence[Operand], scratch: Callable[..., Operand]
) -> list[Launch]:
    """Plan a GRU's hidden states (batch, steps, n) and its gates (batch, steps, 4 n).

    inputs: x (batch, steps, 3 n), the inputs' contribution to r z n; h0 (batch, n); the weight (n, 3 n) and
    the bias (3 n,) of the state's part. gates: r, z, n, and the state's part of n, which r multiplies.
    """
    arrays = dict(zip((_X, _H0, _W, _BIAS, _HS, _GATES), (*inputs, *outputs), strict=True))
    return [_launch(_gru, arrays, outputs[0].shape, 3, False, scratch)]


def gru_backward(
    inputs: Sequence[Operand], outputs: Sequence[Operand], scratch: Callable[..., Operand]
) -> list[Launch]:
    """Plan the gradients of a GRU's r z n before their activations and of the state's part of n, and of h0.

    inputs: the gradients of hidden states and of gates, the latter perhaps empty; then gates, hidden states,
    h0 and w.
    """
    arrays = dict(zip((_G_H, _G_GATES, _GATES, _HS, _H0, _W, _D, _DH0), (*inputs, *outputs), strict=True))
    return [_launch(_gru_backward, arrays, inputs[0].shape, 3, True, scratch)]
