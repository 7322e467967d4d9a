"""Recurrent layers over whole sequences: a kernel per direction that runs all steps of some sequences.

The contribution of the inputs, x W_ih, is one matrix product for all steps, computed before; the weights'
gradients are computed after, likewise. The state's weight is packed once. A chunk is a few sequences, at most
the rows of the micro-kernel's tile; chunks share nothing, so threads never wait for each other. Rows of an
array (batch, steps, ...) are indexed by (batch, steps), flat.

In bfloat16 the weight, and in each step the states or the gradients that are multiplied by it, are rounded;
states, cells and gates stay float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

from . import config, gemm, matmul_bfloat16, threads
from .blocks import clear
from .compiled import device
from .gates import (
    gru_extra,
    gru_gradients,
    gru_step,
    lstm_extra,
    lstm_gradients,
    lstm_step,
    rnn_gradients,
    rnn_step,
)
from .intrinsics import Array, call_address, rows_at
from .kernel import A1, Kernel, Words, kernel
from .matmul import pack_panels
from .program import Address, Launch, Operand
from .rounding import ONE, Rounding, rounding
from .rows import row_map

#: Words of a plan: sizes, tile of the step's product, bytes of a chunk's scratch, offset of products in it;
#: fields of a `Rounding`, and the offset of rounded rows.
_BATCH, _STEPS, _HIDDEN, _CHUNKS, _WIDE, _TILE, _CHUNK_BYTES, _PRODUCTS, _SHIFT, _ROUND, _ROUNDED = range(11)
#: Addresses of the arrays; 0 for a missing one.
_X, _H0, _C0, _HS, _CS, _GATES, _BIAS, _G_H, _G_C, _G_GATES, _D, _DP, _DH0, _DC0 = range(11, 25)
#: The key of the weight, which is packed, among operands.
_W = -1

#: The fewest sequences of a chunk where there are threads for more chunks: with 4, a term of the sum is 8
#: fused multiply-adds, enough to hide their latency of 4 cycles.
_FEWEST = 4

_copy = row_map("row_copy", lambda x: x)
_add = row_map("row_add", lambda a, b: a + b)


@device
def _extent(chunk: int, plan: Array) -> Any:
    """Return the first sequence of a chunk, and their number."""
    first = chunk * plan[_BATCH] // plan[_CHUNKS]
    return first, (chunk + 1) * plan[_BATCH] // plan[_CHUNKS] - first


@device
def _scratch(work: Array, chunk: int, plan: Array) -> Any:
    return (work.ctypes.data + 63) // 64 * 64 + chunk * plan[_CHUNK_BYTES]


@device
def _parts(plan: Array, word: int, row: int, count: int, like: Array) -> Any:
    """Return a row of an array as (count, hidden)."""
    n = plan[_HIDDEN]
    return rows_at(plan[word] + row * count * n * like.itemsize, count, n, like)


@device
def _row(plan: Array, word: int, row: int, like: Array) -> Any:
    """Return a row of an array of one hidden vector for each row."""
    return _parts(plan, word, row, 1, like)[0]


@device
def _before(plan: Array, word: int, first: int, index: Any, like: Array) -> Any:
    """Return the state before a step.  word, first: all states, initial ones.  index: sequence, step."""
    i, t = index
    return _row(plan, word, i * plan[_STEPS] + t - 1, like) if t > 0 else _row(plan, first, i, like)


@device
def _project(a: Array, packed: Array, out: int, width: int, accumulate: int, plan: Array) -> None:
    """Store a (rows, depth) times panels (depth, wide) of a packed weight in rows of `width`, or add it.

    a: the first part of a chunk's scratch.
    """
    itemsize, (rows, depth), wide, left = a.itemsize, a.shape, plan[_WIDE], a.ctypes.data
    terms = (depth + plan[_SHIFT]) >> plan[_SHIFT]
    row_a, row_b, row_c = terms * itemsize, wide * itemsize, width * itemsize
    if plan[_ROUND]:
        call_address(plan[_ROUND], left + plan[_ROUNDED], row_a, left, depth * itemsize, rows, depth, ONE)
        left += plan[_ROUNDED]
    for k in range((width + wide - 1) // wide):
        j = k * wide
        b, c, used = packed.ctypes.data + j * row_a, out + j * itemsize, min(wide, width - j)
        call_address(plan[_TILE], terms, left, row_a, itemsize, b, row_b, c, row_c, 0, rows, used, accumulate)


@kernel
def _lstm(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps = plan[_HIDDEN], plan[_STEPS]
    bias = _parts(plan, _BIAS, 0, 4, work)
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        h, products = rows_at(base, rows, n, work), base + plan[_PRODUCTS]
        for i in range(rows):
            _copy(h[i], _row(plan, _H0, first + i, work))
        for t in range(steps):
            _project(h, packed, products, 4 * n, 0, plan)
            for i in range(rows):
                row, p = (first + i) * steps + t, rows_at(products + i * 4 * n * work.itemsize, 4, n, work)
                x, gate = _parts(plan, _X, row, 4, work), _parts(plan, _GATES, row, 4, work)
                c, states = _row(plan, _CS, row, work), _row(plan, _HS, row, work)
                before = _before(plan, _CS, _C0, (first + i, t), work)
                lstm_step(gate, c, h[i], states, x, p, bias, before)


@kernel
def _lstm_backward(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps = plan[_HIDDEN], plan[_STEPS]
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        gradients, dh = rows_at(base, rows, 4 * n, work), rows_at(plan[_DH0], plan[_BATCH], n, work)
        for i in range(rows):
            clear(dh[first + i])
            clear(_row(plan, _DC0, first + i, work))
        for back in range(steps):
            t = steps - 1 - back
            for i in range(rows):
                row, dc = (first + i) * steps + t, _row(plan, _DC0, first + i, work)
                d, s = _parts(plan, _D, row, 4, work), rows_at(gradients[i].ctypes.data, 4, n, work)
                gate, c = _parts(plan, _GATES, row, 4, work), _row(plan, _CS, row, work)
                before = _before(plan, _CS, _C0, (first + i, t), work)
                if plan[_G_C]:
                    _add(dc, dc, _row(plan, _G_C, row, work))
                g_h = _row(plan, _G_H, row, work)
                lstm_gradients(d, s, dc, dh[first + i], g_h, c, before, gate)
                if plan[_G_GATES]:
                    lstm_extra(d, s, _parts(plan, _G_GATES, row, 4, work), gate)
            _project(gradients, packed, _row(plan, _DH0, first, work).ctypes.data, n, 0, plan)


@kernel
def _gru(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps = plan[_HIDDEN], plan[_STEPS]
    bias = _parts(plan, _BIAS, 0, 3, work)
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        h, products = rows_at(base, rows, n, work), base + plan[_PRODUCTS]
        for i in range(rows):
            _copy(h[i], _row(plan, _H0, first + i, work))
        for t in range(steps):
            _project(h, packed, products, 3 * n, 0, plan)
            for i in range(rows):
                row, p = (first + i) * steps + t, rows_at(products + i * 3 * n * work.itemsize, 3, n, work)
                x, gate = _parts(plan, _X, row, 3, work), _parts(plan, _GATES, row, 4, work)
                gru_step(gate, h[i], _row(plan, _HS, row, work), x, p, bias)


@kernel
def _gru_backward(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps = plan[_HIDDEN], plan[_STEPS]
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        gradients, dh = rows_at(base, rows, 3 * n, work), rows_at(plan[_DH0], plan[_BATCH], n, work)
        for i in range(rows):
            clear(dh[first + i])
        for back in range(steps):
            t = steps - 1 - back
            for i in range(rows):
                row = (first + i) * steps + t
                d, p = _parts(plan, _D, row, 3, work), _parts(plan, _DP, row, 3, work)
                s, g_h = rows_at(gradients[i].ctypes.data, 3, n, work), _row(plan, _G_H, row, work)
                gate, before = (
                    _parts(plan, _GATES, row, 4, work),
                    _before(plan, _HS, _H0, (first + i, t), work),
                )
                gru_gradients(d, p, s, dh[first + i], g_h, before, gate)
                if plan[_G_GATES]:
                    gru_extra(d, p, s, _parts(plan, _G_GATES, row, 4, work), gate)
            _project(gradients, packed, _row(plan, _DH0, first, work).ctypes.data, n, 1, plan)


@kernel
def _rnn(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps, bias = plan[_HIDDEN], plan[_STEPS], _row(plan, _BIAS, 0, work)
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        h, products = rows_at(base, rows, n, work), rows_at(base + plan[_PRODUCTS], rows, n, work)
        for i in range(rows):
            _copy(h[i], _row(plan, _H0, first + i, work))
        for t in range(steps):
            _project(h, packed, products.ctypes.data, n, 0, plan)
            for i in range(rows):
                row = (first + i) * steps + t
                rnn_step(h[i], _row(plan, _HS, row, work), _row(plan, _X, row, work), products[i], bias)


@kernel
def _rnn_backward(lo: int, hi: int, packed: A1, work: A1, plan: Words) -> None:
    n, steps = plan[_HIDDEN], plan[_STEPS]
    for chunk in range(lo, hi):
        base, (first, rows) = _scratch(work, chunk, plan), _extent(chunk, plan)
        gradients, dh = rows_at(base, rows, n, work), rows_at(plan[_DH0], plan[_BATCH], n, work)
        for i in range(rows):
            clear(dh[first + i])
        for back in range(steps):
            t = steps - 1 - back
            for i in range(rows):
                row = (first + i) * steps + t
                d, g_h, h = _row(plan, _D, row, work), _row(plan, _G_H, row, work), _row(plan, _HS, row, work)
                rnn_gradients(d, gradients[i], dh[first + i], g_h, h)
            _project(gradients, packed, _row(plan, _DH0, first, work).ctypes.data, n, 0, plan)


def _launches(
    kernel: Kernel,
    arrays: dict[int, Operand],
    sizes: tuple[int, ...],
    gates: int,
    backward: bool,
    scratch: Callable[..., Operand],
    precision: str,
) -> list[Launch]:
    """Plan packing the weight, and a kernel over sequences.

    sizes: batch, steps, hidden.  gates: of the recurrent weight.
    """
    how = rounding(precision)
    batch, steps, n = sizes
    weight, dtype = arrays.pop(_W), arrays[_DH0 if backward else _HS].dtype
    # An even number, for two threads: 32 sequences are 4 times 8 rather than 12, 12 and 8.
    chunks = 1 if batch == 1 else 2 * -(-batch // (2 * gemm.rows()))
    chunks = max(chunks, min(threads.get_num_threads(), batch // _FEWEST), 1)
    high = -(-batch // chunks)
    depth, width = (gates * n, n) if backward else (n, gates * n)
    wide = gemm.panel(dtype.name, width)
    tile = gemm.micro_kernel(dtype.name, wide, high, pairs=how.pairs)
    packed = scratch((-(-width // wide) * wide * how.terms(depth),), dtype)
    pack = _pack(weight.reshaped(1, n, gates * n), packed, not backward, wide, how, scratch)

    def lines(count: int) -> int:
        return -(-count * dtype.itemsize // 64) * 64

    rows, products = lines(high * depth), 0 if backward else lines(high * width)
    size = rows + products + (lines(high * how.terms(depth)) if how.along else 0)
    rounded = how.shift, how.along, rows + products
    words = (batch, steps, n, chunks, wide, tile, size, rows, *rounded)
    in_order = (arrays.get(word) for word in range(_X, _DC0 + 1))
    addresses = (Address(a) if a is not None and a.size else 0 for a in in_order)
    work = scratch((chunks * size // dtype.itemsize + 64,), dtype)
    flops = batch * steps * n * (2.0 * gates * n + 30 * gates)
    return [*pack, kernel(chunks, flops * config.FLOP_NS, packed, work, (*words, *addresses))]


def _pack(
    weight: Operand, out: Operand, across: bool, wide: int, how: Rounding, scratch: Callable[..., Operand]
) -> list[Launch]:
    """Plan packing the weight in panels, rounded."""
    if how.pairs:
        return [pack_panels(weight, out, across, wide, pairs=True)]
    launches = []
    if how.along:
        exact, weight = weight, scratch(weight.shape, weight.dtype)
        launches = [matmul_bfloat16.rounded(exact, weight)]
    return [*launches, pack_panels(weight, out, across, wide)]


def lstm(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan an LSTM's hidden states (batch, steps, n), its cells, and its gates i f g o (batch, steps, 4 n).

    inputs: x (batch, steps, 4 n), the inputs' contribution to the gates; h0 and c0 (batch, n); the weight
    (n, 4 n) and the bias (4 n,).
    """
    arrays = dict(zip((_X, _H0, _C0, _W, _BIAS, _HS, _CS, _GATES), (*inputs, *outputs), strict=True))
    return _launches(_lstm, arrays, outputs[0].shape, 4, False, scratch, precision)


def lstm_backward(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan the gradients of an LSTM's x, h0 and c0.

    inputs: the gradients of hidden states, of cells and of gates, the last two perhaps empty; then gates,
    cells, c0 and w.
    """
    arrays = dict(
        zip((_G_H, _G_C, _G_GATES, _GATES, _CS, _C0, _W, _D, _DH0, _DC0), (*inputs, *outputs), strict=True)
    )
    return _launches(_lstm_backward, arrays, inputs[0].shape, 4, True, scratch, precision)


def gru(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan a GRU's hidden states (batch, steps, n) and its gates (batch, steps, 4 n).

    inputs: x (batch, steps, 3 n), the inputs' contribution to r z n; h0 (batch, n); the weight (n, 3 n) and
    the bias (3 n,) of the state's part. gates: r, z, n, and the state's part of n, which r multiplies.
    """
    arrays = dict(zip((_X, _H0, _W, _BIAS, _HS, _GATES), (*inputs, *outputs), strict=True))
    return _launches(_gru, arrays, outputs[0].shape, 3, False, scratch, precision)


def gru_backward(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan the gradients of a GRU's x, of the state's part of r z n, and of h0.

    inputs: the gradients of hidden states and of gates, the latter perhaps empty; then gates, hidden states,
    h0 and w.
    """
    arrays = dict(
        zip((_G_H, _G_GATES, _GATES, _HS, _H0, _W, _D, _DP, _DH0), (*inputs, *outputs), strict=True)
    )
    return _launches(_gru_backward, arrays, inputs[0].shape, 3, True, scratch, precision)


def rnn(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan the hidden states (batch, steps, n) of an Elman network.

    inputs: x (batch, steps, n), the inputs' contribution; h0 (batch, n); the weight (n, n), the bias (n,).
    """
    arrays = dict(zip((_X, _H0, _W, _BIAS, _HS), (*inputs, *outputs), strict=True))
    return _launches(_rnn, arrays, outputs[0].shape, 1, False, scratch, precision)


def rnn_backward(
    inputs: Sequence[Operand],
    outputs: Sequence[Operand],
    scratch: Callable[..., Operand],
    precision: str = "float32",
) -> list[Launch]:
    """Plan the gradients of an Elman network's x and h0.

    inputs: the gradients of hidden states; then hidden states and w.
    """
    arrays = dict(zip((_G_H, _HS, _W, _D, _DH0), (*inputs, *outputs), strict=True))
    return _launches(_rnn_backward, arrays, inputs[0].shape, 1, True, scratch, precision)
