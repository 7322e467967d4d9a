"""Ops that change shapes and dtypes: views, permutations, broadcasting, conversion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treepie.kernels.copy import copy, strides
from treepie.kernels.elementwise import cast
from treepie.kernels.program import Launch, Operand, Spec

from .. import tape
from ..arguments import as_tensor, check_total, index, one_axis, shape_of, some_axes
from ..deferred import Deferred
from ..elementwise import sum_to
from ..table import OPS, BoundArguments, Case, Op, Shape, op
from ..tensor import Axis, DType, Tensor, TensorLike, check_dtype
from ..trace.active import call_under, tracing


def _resolved(x: Tensor, shape: int | Sequence[int]) -> Shape:
    listed = shape if isinstance(shape, tuple | list) else (shape,)
    sizes = [index("reshape", "shape", n) for n in listed]
    if sizes.count(-1) == 1:
        product = -math.prod(sizes)
        if product and x.size % product == 0:
            sizes[sizes.index(-1)] = x.size // product
    if (sizes and min(sizes) < 0) or math.prod(sizes) != x.size:
        raise ValueError(
            f"reshape: shape is {tuple(listed)}, expected sizes for the {x.size} elements of {x.shape}"
        )
    if not x.size:
        check_total("reshape", sizes)
    return tuple(sizes)


@op(
    signature="(...)->(...)",
    infer=lambda x, shape: [Spec(shape, x.dtype)],
    view=lambda array, shape: array.reshape(shape),
    vjp=lambda g, y, x, shape: reshape(g, x.shape),
    oracle=lambda x, shape: np.reshape(x, shape),
    cases=[Case(((2, 6),), {"shape": (3, 4)}), Case(((0, 3),), {"shape": (3, 0)})],
    wrong=Case(((2, 3),), {"shape": (4, 2)}),
    ulp=0,
)
def reshape(x: TensorLike, shape: int | Sequence[int]) -> BoundArguments:
    """Return the same elements in the same order under another shape.

    x: of any dtype.  shape: sizes, one of which may be -1: the size that the others leave.

    Raises ValueError for a shape of another number of elements.

    >>> import treepie as tp
    >>> tp.reshape(tp.tensor([1, 2, 3, 4]), (2, -1)).tolist()
    [[1, 2], [3, 4]]
    """
    t = as_tensor(x)
    return (t,), {"shape": _resolved(t, shape)}


@op(
    signature="(...)->(...)",
    infer=lambda x: [Spec(x.shape, x.dtype)],
    view=lambda array: array,
    vjp=(None,),
    oracle=np.asarray,
    cases=[Case(((3, 5),)), Case(((),)), Case(((0, 2),))],
    ulp=0,
)
def stop_gradient(x: TensorLike) -> BoundArguments:
    """Return x as a constant: no gradient passes through.

    x: of any dtype; no copy is made.

    >>> import treepie as tp
    >>> tp.grad(lambda x: x * tp.stop_gradient(x))(tp.tensor(3.0)).item()
    3.0
    """
    return (as_tensor(x),), {}


def ravel(x: TensorLike) -> Tensor:
    """Return all elements on one axis, in order.

    x: of any dtype and shape.

    >>> import treepie as tp
    >>> tp.ravel(tp.tensor([[1, 2], [3, 4]])).tolist()
    [1, 2, 3, 4]
    """
    return reshape(x, (-1,))


def expand_dims(x: TensorLike, axis: int | tuple[int, ...]) -> Tensor:
    """Return a tensor with new axes of size 1.

    x: of any dtype.  axis: positions of the new axes in the result.

    Raises ValueError for a position outside of the result.

    >>> import treepie as tp
    >>> tp.expand_dims(tp.tensor([1, 2]), -1).shape
    (2, 1)
    """
    t = as_tensor(x)
    count = len(axis) if isinstance(axis, tuple) else 1
    where = some_axes("expand_dims", axis, t.ndim + count)
    sizes = iter(t.shape)
    return reshape(t, tuple(1 if k in where else next(sizes) for k in range(t.ndim + count)))


def squeeze(x: TensorLike, axis: Axis = None) -> Tensor:
    """Return a tensor without axes of size 1, all of them by default.

    x: of any dtype.  axis: the axes to drop.

    Raises ValueError for an axis of another size, or outside of x.

    >>> import treepie as tp
    >>> tp.squeeze(tp.zeros((1, 3, 1)), axis=0).shape
    (3, 1)
    """
    t = as_tensor(x)
    if axis is None:
        drop = tuple(k for k, n in enumerate(t.shape) if n == 1)
    else:
        drop = some_axes("squeeze", axis, t.ndim)
        if any(t.shape[k] != 1 for k in drop):
            raise ValueError(f"squeeze: axis is {axis} of shape {t.shape}, expected axes of size 1")
    return reshape(t, tuple(n for k, n in enumerate(t.shape) if k not in drop))


def _plan_transpose(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, axes: tuple[int, ...]
) -> list[Launch]:
    (x,), (out,) = inputs, outputs
    steps = strides(x.shape)
    return [copy(x, out, out.shape, tuple(steps[a] for a in axes), strides(out.shape))]


def _transposed(x: Spec, axes: tuple[int, ...]) -> list[Spec]:
    return [Spec(tuple(x.shape[a] for a in axes), x.dtype)]


@op(
    name="transpose",
    signature="(...)->(...)",
    infer=_transposed,
    plan=_plan_transpose,
    vjp=lambda g, y, x, axes: transpose(g, tuple(int(k) for k in np.argsort(axes))),
    oracle=lambda x, axes=None: np.transpose(x, axes),
    cases=[
        Case(((3, 4),)),
        Case(((2, 3, 4),), {"axes": (1, 2, 0)}),
        Case(((40, 50),), {"axes": (1, 0)}),
        Case(((2, 1, 3, 4),), {"axes": (0, 2, 1, 3)}),
        Case(((0, 3),)),
        Case(((),)),
    ],
    wrong=Case(((2, 3),), {"axes": (0, 1, 2)}),
    large=Case(((1000, 1000),)),
    ulp=0,
)
def _transpose(x: TensorLike, axes: Sequence[int] | None = None) -> BoundArguments:
    """Return a tensor with its axes permuted, by default reversed."""
    t = as_tensor(x)
    if axes is None:
        return (t,), {"axes": tuple(range(t.ndim - 1, -1, -1))}
    if not isinstance(axes, Iterable):
        raise TypeError(f"transpose: axes is {axes!r}, expected a sequence of ints")
    order = tuple(index("transpose", "axes", a) for a in axes)
    wrapped = tuple(a + t.ndim if a < 0 else a for a in order)
    if sorted(wrapped) != list(range(t.ndim)):
        raise ValueError(f"transpose: axes is {order}, expected each axis of shape {t.shape} once")
    return (t,), {"axes": wrapped}


def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> Tensor:
    """Return a tensor with its axes permuted, by default reversed.

    x: of any dtype.  axes: each axis of x once, in the order of the result. A product reads a matrix whose
    last two axes were exchanged from x itself: `x.T @ y` and `x @ w.T` copy nothing.

    Raises ValueError for axes that are not such an order.

    >>> import treepie as tp
    >>> tp.transpose(tp.zeros((2, 3, 4)), (1, 2, 0)).shape
    (3, 4, 2)
    """
    row = OPS["transpose"]
    (t,), attributes = row.bind(x, axes)
    order, last = attributes["axes"], t.ndim - 1
    exchanged = last > 0 and order == (*range(last - 1), last, last - 1)
    if not exchanged or t._data.dtype.kind != "f":  # products take floats
        return row.apply((t,), attributes)  # type: ignore[no-any-return]
    if t.source is not None:
        return t.source
    result: Tensor = row.apply((t,), attributes) if tracing() else _deferred(row, t, attributes)
    result.source = t
    return result


def _deferred(row: Op, x: Tensor, attributes: dict[str, Any]) -> Tensor:
    """Return a transposition that is computed when it is read."""
    operands = (Tensor(x.array, None),)
    shape = tuple(x.shape[a] for a in attributes["axes"])

    def compute() -> NDArray[Any]:
        return call_under(None, row.run, operands, attributes)[0].array

    result = Tensor(Deferred(shape, x.dtype, compute), None)
    if tape.recording():
        tape.record(row, (x,), attributes, (result,))
    return result


def swapaxes(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """Return a tensor with two axes exchanged.

    x: of any dtype.  axis1, axis2: axes of x.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.swapaxes(tp.zeros((2, 3, 4)), 0, -1).shape
    (4, 3, 2)
    """
    t = as_tensor(x)
    order = list(range(t.ndim))
    a, b = (one_axis("swapaxes", k, t.ndim) for k in (axis1, axis2))
    order[a], order[b] = b, a
    return transpose(t, order)


def _plan_broadcast(
    inputs: list[Operand], outputs: list[Operand], scratch: Any, shape: Shape
) -> list[Launch]:
    return [cast(inputs[0], outputs[0])]


@op(
    signature="(...)->(...)",
    infer=lambda x, shape: [Spec(shape, x.dtype)],
    plan=_plan_broadcast,
    vjp=lambda g, y, x, shape: sum_to(g, x.shape),
    oracle=lambda x, shape: np.broadcast_to(x, shape),
    cases=[Case(((3, 1),), {"shape": (2, 3, 4)}), Case(((),), {"shape": (0, 3)})],
    wrong=Case(((2, 3),), {"shape": (3, 2)}),
    large=Case(((1000, 1),), {"shape": (1000, 1000)}),
    ulp=0,
)
def broadcast_to(x: TensorLike, shape: int | Sequence[int]) -> BoundArguments:
    """Return a tensor with axes of size 1, and new leading ones, repeated up to a shape.

    x: of any dtype.  shape: the sizes of the result.

    Raises ValueError for a shape that x does not broadcast to.

    >>> import treepie as tp
    >>> tp.broadcast_to(tp.tensor([1, 2]), (2, 2)).tolist()
    [[1, 2], [1, 2]]
    """
    t, sizes = as_tensor(x), shape_of("broadcast_to", shape)
    extra = len(sizes) - t.ndim
    if extra < 0 or any(n not in (1, m) for n, m in zip(t.shape, sizes[extra:], strict=True)):
        raise ValueError(f"broadcast_to: x has shape {t.shape}, expected one that broadcasts to {sizes}")
    return (t,), {"shape": sizes}


def _plan_cast(inputs: list[Operand], outputs: list[Operand], scratch: Any, dtype: np.dtype) -> list[Launch]:
    return [cast(inputs[0], outputs[0])]


@op(
    name="astype",
    signature="(...)->(...)",
    infer=lambda x, dtype: [Spec(x.shape, dtype)],
    plan=_plan_cast,
    vjp=lambda g, y, x, dtype: astype(g, x.dtype),
    oracle=lambda x, dtype: np.asarray(x).astype(dtype),
    cases=[Case(((3, 5),), {"dtype": np.dtype("float64")})],
    large=Case(((1000, 1000),), {"dtype": np.dtype("float64")}),
    ulp=0,
)
def _astype(x: TensorLike, dtype: DType) -> BoundArguments:
    """Return the elements converted to another dtype."""
    return (as_tensor(x),), {"dtype": check_dtype("astype", dtype)}


def astype(x: TensorLike, dtype: DType) -> Tensor:
    """Return the elements converted to another dtype.

    x: of any dtype; x itself where it has the dtype.  dtype: float32, float64, int32, int64 or bool. A
    float that an integer dtype can not hold becomes the dtype's least value.

    Raises TypeError for another dtype.

    >>> import treepie as tp
    >>> tp.astype(tp.tensor([1.7, -1.7]), tp.int32).tolist()
    [1, -1]
    """
    t = as_tensor(x)
    if t._data.dtype is dtype:
        return t
    return t if t.dtype == check_dtype("astype", dtype) else _astype(t, dtype)


def copied(x: Tensor) -> Tensor:
    """Return the same elements in separate memory."""
    return _astype(x, x.dtype)
