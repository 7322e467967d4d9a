"""Translations of ops that move elements, of reductions, indexing, sorting and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import Emitter, Term
from .rules import RULES, rule
from .size import Size, Sizes

#: Where a slice with a negative step ends, to include the first element.
_BEFORE_FIRST = np.iinfo(np.int64).min + 1


# ---- shapes
@rule("stop_gradient", "check_range")
def _itself(on: Emitter, x: Term, **attributes: Any) -> Term:
    return x


@rule("reshape")
def _reshape(on: Emitter, x: Term, shape: Sizes) -> Term:
    return on.reshape(x, shape)


@rule("broadcast_to")
def _broadcast_to(on: Emitter, x: Term, shape: Sizes) -> Term:
    return on.expand(x, shape)


@rule("transpose")
def _transpose(on: Emitter, x: Term, axes: Sequence[int]) -> Term:
    return on.transpose(x, axes)


@rule("astype")
def _astype(on: Emitter, x: Term, dtype: np.dtype) -> Term:
    return on.cast(x, dtype)


@rule("concatenate")
def _concatenate(on: Emitter, *xs: Term, axis: int) -> Term:
    return on.Concat(*xs, axis=axis)


@rule("flat_slice")
def _flat_slice(on: Emitter, x: Term, start: Size, shape: Sizes) -> Term:
    return on.reshape(on.slice(x, 0, start, start + _product(shape)), shape)


def _product(sizes: Sizes) -> Size:
    """Return the product of sizes, one of which may depend on the batch."""
    product: Size = 1
    for n in sizes:
        product = product * n if isinstance(n, int) else n * product  # type: ignore[operator]
    return product


# ---- strided slices, and their adjoint
@rule("strided_slice")
def _strided_slice(on: Emitter, x: Term, starts: Sizes, steps: tuple[int, ...], sizes: Sizes) -> Term:
    begins, ends, axes, strides = [], [], [], []
    for axis, (start, step, size, whole) in enumerate(
        zip(starts, steps, sizes, on.inputs[0].shape, strict=True)
    ):
        if (start, step, size) == (0, 1, whole):
            continue
        end = start + step * (size - 1) + (1 if step > 0 else -1)
        begins.append(start)
        ends.append(_BEFORE_FIRST if step < 0 and end == -1 else end)
        axes.append(axis)
        strides.append(step)
    if not axes:
        return x
    return on.Slice(x, tuple(begins), tuple(ends), tuple(axes), tuple(strides))


def _spread(on: Emitter, x: Term, sizes: Sizes, shape: Sizes, starts: Sizes, steps: tuple[int, ...]) -> Term:
    """Return zeros of a shape with x, of some sizes, at `start + step * k` of every axis."""
    before, after, now = [], [], list(sizes)
    for axis, (start, step, n, whole) in enumerate(zip(starts, steps, sizes, shape, strict=True)):
        if step < 0:
            x = on.Slice(x, (-1,), (_BEFORE_FIRST,), (axis,), (-1,))
            start, step = start + step * (n - 1), -step
        if step > 1:  # zeros between the elements: a new axis, padded to the step
            x = on.Unsqueeze(x, (axis + 1,))
            x = on.Pad(
                x, tuple([0] * (len(now) + 1) + [(step - 1) * (k == axis + 1) for k in range(len(now) + 1)])
            )
            now[axis] = n * step
            x = on.reshape(x, tuple(now))
            x = on.slice(x, axis, 0, n * step - (step - 1))
            now[axis] = n * step - (step - 1)
        before.append(start)
        after.append(whole - start - now[axis])
    return on.Pad(x, tuple(before + after)) if any(n != 0 for n in before + after) else x


@rule("strided_slice_grad")
def _strided_slice_grad(on: Emitter, x: Term, shape: Sizes, starts: Sizes, steps: tuple[int, ...]) -> Term:
    (value,) = on.inputs
    if 0 in value.shape:
        return on.expand(on.array(0), shape)
    if value.dtype.kind == "b":  # onnxruntime pads no bools
        return on.cast(_spread(on, on.cast(x, np.int32), value.shape, shape, starts, steps), bool)
    return _spread(on, x, value.shape, shape, starts, steps)


@rule("strided_slice_update")
def _strided_slice_update(on: Emitter, x: Term, v: Term, starts: Sizes, steps: tuple[int, ...]) -> Term:
    whole, part = on.inputs
    if 0 in part.shape:
        return x
    ones = on.expand(on.array(1, np.int32), part.shape)
    inside = on.cast(_spread(on, ones, part.shape, whole.shape, starts, steps), bool)
    if whole.dtype.kind == "b":
        v = on.cast(_spread(on, on.cast(v, np.int32), part.shape, whole.shape, starts, steps), bool)
    else:
        v = _spread(on, v, part.shape, whole.shape, starts, steps)
    return on.choose(inside, v, x, whole.dtype)


# ---- reductions
def _reduced(on: Emitter, op: str, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
    return on.one(op, x, axis, keepdims=int(keepdims)) if axis else x


def _reduction(op: str) -> Any:
    def reduce(on: Emitter, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
        dtype = on.outputs[0].dtype
        work = np.dtype(np.int32) if dtype.kind == "b" else dtype
        if on.dtype != work:
            x = on.cast(x, work)
        y = _reduced(on, op, x, axis, keepdims)
        return y if work == dtype else on.cast(y, dtype)

    return reduce


RULES.update(
    {
        name: _reduction(op)
        for name, op in {
            "max": "ReduceMax",
            "mean": "ReduceMean",
            "min": "ReduceMin",
            "prod": "ReduceProd",
            "sum": "ReduceSum",
        }.items()
    }
)


@rule("norm")
def _norm(on: Emitter, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
    return _reduced(on, "ReduceL2", x, axis, keepdims) if axis else on.Abs(x)


def _truth(on: Emitter, x: Term) -> Term:
    return x if on.dtype.kind == "b" else on.cast(x, bool)


@rule("any")
def _any(on: Emitter, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
    count = _reduced(on, "ReduceSum", on.cast(_truth(on, x), np.int32), axis, keepdims)
    return on.Greater(count, on.array(0, np.int32))


@rule("all")
def _all(on: Emitter, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
    count = _reduced(on, "ReduceSum", on.cast(on.Not(_truth(on, x)), np.int32), axis, keepdims)
    return on.Equal(count, on.array(0, np.int32))


@rule("argmax", "argmin")
def _position(on: Emitter, x: Term, axis: tuple[int, ...], keepdims: bool) -> Term:
    (value,), (out,) = on.inputs, on.outputs
    if value.dtype.kind == "b":
        x = on.cast(x, np.int32)
    if len(axis) != 1:  # of all elements
        x, axis = on.reshape(x, (-1,)), (0,)
    op = "ArgMax" if on.call.op.name == "argmax" else "ArgMin"
    return on.reshape(on.one(op, x, axis=axis[0], keepdims=int(keepdims)), out.shape)


@rule("cumsum")
def _cumsum(on: Emitter, x: Term, axis: int) -> Term:
    dtype = on.outputs[0].dtype
    return on.CumSum(x if on.dtype == dtype else on.cast(x, dtype), on.array(axis, np.int64))


# ---- indices
@rule("take")
def _take(on: Emitter, x: Term, indices: Term, axis: int, function: str) -> Term:
    return on.Gather(x, indices, axis=axis)


@rule("take_along_axis")
def _take_along_axis(on: Emitter, x: Term, indices: Term, axis: int) -> Term:
    return on.GatherElements(x, indices, axis=axis)


@rule("scatter_add_along_axis")
def _scatter_add_along_axis(on: Emitter, g: Term, indices: Term, axis: int, size: Size) -> Term:
    shape = on.inputs[0].shape
    zeros = on.expand(on.array(0), (*shape[:axis], size, *shape[axis + 1 :]))
    return on.ScatterElements(zeros, indices, g, axis=axis, reduction="add")


def _scattered(on: Emitter, x: Term, indices: Term, v: Term, axis: int, rank: int, reduction: str) -> Term:
    """Return x with slices v at indices of an axis: ScatterND, which indexes the first axis."""
    ndim, i = len(on.outputs[0].shape), on.inputs[1]
    order = [axis, *range(axis), *range(axis + 1, ndim)]
    moves = [*range(axis, axis + rank), *range(axis), *range(axis + rank, ndim - 1 + rank)]
    rows = on.reshape(indices, (*i.shape, 1))
    if i.dtype != np.int64:
        rows = on.cast(rows, np.int64)
    out = on.ScatterND(on.transpose(x, order), rows, on.transpose(v, moves), reduction=reduction)
    return on.transpose(out, [order.index(k) for k in range(ndim)])


@rule("scatter", "add_at")
def _scatter(on: Emitter, x: Term, indices: Term, v: Term, axis: int) -> Term:
    reduction = "add" if on.call.op.name == "add_at" else "none"
    return _scattered(on, x, indices, v, axis, len(on.inputs[1].shape), reduction)


@rule("scatter_add")
def _scatter_add(on: Emitter, g: Term, indices: Term, axis: int, size: Size) -> Term:
    zeros = on.expand(on.array(0), on.outputs[0].shape)
    return _scattered(on, zeros, indices, g, axis, len(on.inputs[1].shape), "add")


@rule("ravel_multi_index")
def _ravel_multi_index(on: Emitter, *indices: Term, shape: Sizes) -> Term:
    total, out = None, on.outputs[0]
    for k, (i, n) in enumerate(zip(indices, shape, strict=True)):
        term = on.Mul(on.Mod(i, (n,)), (_product(shape[k + 1 :]),))
        total = term if total is None else total + term
    assert total is not None
    return total if out.shape else on.reshape(total, ())


@rule("argsort")
def _argsort(on: Emitter, x: Term, axis: int, descending: bool) -> Term:
    (value,) = on.inputs
    if value.dtype.kind == "b":
        x = on.cast(x, np.int32)
    # Of equal elements TopK lists the one with the lower index first.
    return on.several("TopK", 2, x, (value.shape[axis],), axis=axis, largest=int(descending))[1]


# ---- products
def _swapped(on: Emitter, x: Term, k: int) -> Term:
    n = len(on.inputs[k].shape)
    return on.transpose(x, [*range(n - 2), n - 1, n - 2])


@rule("matmul")
def _matmul(on: Emitter, a: Term, b: Term, transpose_a: bool, transpose_b: bool) -> Term:
    return (_swapped(on, a, 0) if transpose_a else a) @ (_swapped(on, b, 1) if transpose_b else b)


@rule("linear")
def _linear(on: Emitter, x: Term, w: Term, bias: Term, activation: str | None) -> tuple[Term, ...]:
    total = x @ w + bias
    y = total if activation is None else RULES[activation](on, total)
    return (y, total)[: len(on.outputs)]


# ---- softmax
@rule("softmax")
def _softmax(on: Emitter, x: Term) -> Term:
    return on.Softmax(x, axis=-1)


@rule("log_softmax")
def _log_softmax(on: Emitter, x: Term) -> Term:
    return on.LogSoftmax(x, axis=-1)


@rule("logsumexp")
def _logsumexp(on: Emitter, x: Term) -> Term:
    top = on.ReduceMax(x, (-1,), keepdims=1)
    total = on.ReduceSum(on.Exp(x - top), (-1,), keepdims=0)
    return on.Log(total) + on.Squeeze(top, (-1,))
