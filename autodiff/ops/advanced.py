"""Indexing with NumPy's rules: reads by x[index], and updated copies by x.at[index]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arguments import as_tensor
from ..table import Shape
from ..tensor import Index, Tensor, TensorLike, int32, int64
from ..trace.active import tracing
from .arithmetic import add
from .indexing import take
from .scatter import add_at, ravel_multi_index, scatter, strided_slice_update
from .shape import astype, broadcast_to, reshape, transpose
from .slicing import strided_slice


@dataclass
class _Selection:
    """An index, resolved against a shape. x[index] is computed in this order:

    reshape to `merged`, strided slice, reshape to `shape`, gather along `axes` by `arrays`.

    merged: the shape of x, with the axes that one mask covers joined into one.
    starts, steps, sizes: the strided slice of that; integers take one element of their axis.
    shape: of the slice, without the axes of integers, with one of size 1 for each None.
    axes, arrays: axes of `shape` that integer arrays index, and the arrays.
    arrays_first: the axes of the arrays go first, since a slice or None separates integers or arrays.
    integers: whether there are integers in it.
    """

    function: str
    x_shape: Shape
    merged: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    shape: list[int] = field(default_factory=list)
    axes: list[int] = field(default_factory=list)
    arrays: list[Tensor] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)  # axis of x that each array indexes
    arrays_first: bool = False
    integers: bool = False

    def slice(self, start: int, step: int, size: int, n: int) -> None:
        """Add an axis of n elements, of which `size` are selected."""
        self.starts.append(start if size else 0)
        self.steps.append(step)
        self.sizes.append(size)
        self.merged.append(n)

    @property
    def whole(self) -> bool:
        """Whether the strided slice takes all elements."""
        return self.sizes == self.merged and all(s == 1 for s in self.steps)

    @property
    def joined(self) -> Shape:
        """The shape that the arrays broadcast to."""
        try:
            return np.broadcast_shapes(*[a.shape for a in self.arrays])
        except ValueError:
            shapes = " and ".join(str(a.shape) for a in self.arrays)
            raise IndexError(
                f"{self.function}: integer arrays have shapes {shapes}, expected shapes that broadcast"
            ) from None

    def failure(self) -> IndexError:
        """Return the error for an array with an index outside of its axis."""
        text = "an index is outside of its axis"
        for axis, at, array in zip(self.origins, self.axes, self.arrays, strict=True):
            n = self.shape[at]
            wrong = array.array[(array.array < -n) | (array.array >= n)]
            if wrong.size:
                text = f"an index is {wrong.flat[0]} on axis {axis} of shape {self.x_shape}"
                break
        return IndexError(f"{self.function}: {text}, expected {-n} to {n - 1}")


def _parts(function: str, shape: Shape, index: Index) -> list[Any]:
    """Return an index as ints, slices, None, integer tensors and bool tensors, and an ellipsis, expanded."""
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        if part is None or part is Ellipsis or isinstance(part, slice):
            parts.append(part)
        elif isinstance(part, int | np.integer) and not isinstance(part, bool):
            parts.append(int(part))
        else:
            t = as_tensor(part)
            if t.size == 0 and t.dtype.kind == "f":  # an empty list
                t = astype(t, int32)
            if t.dtype.kind == "f" or (t.dtype.kind == "b" and t.ndim == 0):
                raise TypeError(
                    f"{function}: indices have dtype {t.dtype.name}, expected int32 or int64, or a bool mask "
                    "with an axis for each that it covers"
                )
            parts.append(t)
    used = sum(max(p.ndim, 1) if _is_mask(p) else p is not None and p is not Ellipsis for p in parts)
    if sum(p is Ellipsis for p in parts) > 1:
        raise IndexError(f"{function}: two ellipses, expected one at most")
    if used > len(shape):
        raise IndexError(f"{function}: {used} indices for shape {shape}, expected at most {len(shape)}")
    if not any(p is Ellipsis for p in parts):
        parts.append(Ellipsis)
    at = next(k for k, p in enumerate(parts) if p is Ellipsis)
    parts[at + 1 : at + 1] = [slice(None)] * (len(shape) - used)
    return parts


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype.kind == "b"


def _selection(function: str, shape: Shape, index: Index) -> _Selection:
    s = _Selection(function, shape)
    axis = 0
    parts = _parts(function, shape, index)
    for part in parts:
        if part is None:
            s.shape.append(1)
        if part is None or part is Ellipsis:
            continue
        n, count = shape[axis], 1
        if isinstance(part, slice):
            start, stop, step = _bounds(function, part, n)
            size = len(range(start, stop, step))
            s.slice(start, step, size, n)
            s.shape.append(size)
        elif isinstance(part, int):
            if not -n <= part < n:
                raise IndexError(
                    f"{function}: {part} is outside of axis {axis} of shape {shape}, expected {-n} to {n - 1}"
                )
            s.slice(part % n, 1, 1, n)
            s.integers = True
        else:
            if _is_mask(part):
                count = part.ndim
                part = _mask_indices(function, part, shape, axis)
                n = math.prod(shape[axis : axis + count])
            s.slice(0, 1, n, n)
            s.axes.append(len(s.shape))
            s.arrays.append(part)
            s.origins.append(axis)
            s.shape.append(n)
        axis += count
    if s.arrays:
        # An ellipsis separates its neighbours even where it covers no axis.
        where = [k for k, p in enumerate(parts) if isinstance(p, int | Tensor)]
        s.arrays_first = where[-1] - where[0] >= len(where)
    return s


def _bounds(function: str, part: slice, n: int) -> tuple[int, int, int]:
    try:
        return part.indices(n)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{function}: {part} is given, expected integers and a step but 0") from None


def _mask_indices(function: str, mask: Tensor, shape: Shape, axis: int) -> Tensor:
    """Return the indices of a mask's true elements, into its flattened axes."""
    sizes = shape[axis : axis + mask.ndim]
    if mask.shape != sizes:
        raise IndexError(
            f"{function}: a mask has shape {mask.shape} from axis {axis} on of shape {shape}, "
            f"expected {sizes}"
        )
    return Tensor(np.flatnonzero(mask.numpy()).astype(int64), None)


def _adjacent(s: _Selection) -> tuple[list[int], int]:
    """Return a permutation of the axes that makes those of the arrays adjacent, and their position."""
    first, count = s.axes[0], len(s.axes)
    if s.axes == list(range(first, first + count)):
        return list(range(len(s.shape))), first
    return [*s.axes, *[k for k in range(len(s.shape)) if k not in s.axes]], 0


def _joined_axes(x: Tensor, s: _Selection) -> tuple[Tensor, Tensor, int]:
    """Return x with one axis in place of those of the arrays, the indices into it, and its position."""
    order, at = _adjacent(s)
    if len(s.axes) == 1:
        return x, s.arrays[0], at
    sizes = tuple(s.shape[k] for k in s.axes)
    moved = transpose(x, order) if order != sorted(order) else x
    shape = (*moved.shape[:at], math.prod(sizes), *moved.shape[at + len(sizes) :])
    return reshape(moved, shape), ravel_multi_index(*s.arrays, shape=sizes), at


def getitem(x: Tensor, index: Index) -> Tensor:
    """Return x[index] by NumPy's rules: integers, slices, None, an ellipsis, integer arrays, bool masks.

    Integer arrays on several axes broadcast together; their axes take the position of the first array, or
    go first where a slice or None separates them. A mask is equivalent to the indices of its nonzero
    elements: the result's shape depends on its values. Raises IndexError for an index outside of its axis.
    """
    s = _selection("index", x.shape, index)
    trace = tracing()
    if trace is not None and trace.user and not s.arrays and s.integers:
        return _by_value(x, _parts("index", x.shape, index))
    out = reshape(x, tuple(s.merged))
    if not s.whole:
        out = strided_slice(out, tuple(s.starts), tuple(s.steps), tuple(s.sizes))
    out = reshape(out, tuple(s.shape))
    if not s.arrays:
        return out
    count = len(s.joined)
    try:
        out, indices, at = _joined_axes(out, s)
        out = take(out, indices, at)
    except IndexError:
        raise s.failure() from None
    if s.arrays_first and at and count:
        out = transpose(out, [*range(at, at + count), *range(at), *range(at + count, out.ndim)])
    return out


def _by_value(x: Tensor, parts: list[Any]) -> Tensor:
    """Return x[index] of slices and integers, where integers are inputs of a program: they may change."""
    out = getitem(x, tuple(slice(None) if isinstance(p, int) else p for p in parts))
    kept = [p for p in parts if p is not Ellipsis]
    for axis, part in reversed(list(enumerate(kept))):
        if isinstance(part, int):
            out = take(out, Tensor(np.array(part % out.shape[axis], np.int64), None), axis)
    return out


#: (region of x, its indices or None, values, axis of the indices) -> the new region.
_Update = Callable[[Tensor, Tensor | None, Tensor, int], Tensor]


def _updated(function: str, x: Tensor, index: Index, v: TensorLike, change: _Update) -> Tensor:
    """Return x with the region that an index selects replaced by `change` of it and v."""
    s = _selection(function, x.shape, index)
    whole = reshape(x, tuple(s.merged))
    region = whole
    if not s.whole:
        region = strided_slice(whole, tuple(s.starts), tuple(s.steps), tuple(s.sizes))
    region = reshape(region, tuple(s.shape))
    if s.arrays:
        joined = s.joined
        count = len(joined)
        order, at = _adjacent(s)
        rest = [n for k, n in enumerate(s.shape) if k not in s.axes]
        front = 0 if s.arrays_first else at
        value = _fitted(function, x, v, (*rest[:front], *joined, *rest[front:]))
        if front != at and count:  # move the arrays' axes from the front to their position
            value = transpose(
                value, [*range(count, count + at), *range(count), *range(count + at, value.ndim)]
            )
        try:
            joined_region, indices, at = _joined_axes(region, s)
            changed = change(joined_region, indices, value, at)
        except IndexError:
            raise s.failure() from None
        if order != sorted(order):
            changed = reshape(changed, tuple(s.shape[k] for k in order))
            changed = transpose(changed, [order.index(k) for k in range(len(order))])
    else:
        changed = change(region, None, _fitted(function, x, v, tuple(s.shape)), 0)
    changed = reshape(changed, tuple(s.sizes))
    if not s.whole:
        changed = strided_slice_update(whole, changed, tuple(s.starts), tuple(s.steps))
    return reshape(changed, x.shape)


def _fitted(function: str, x: Tensor, v: TensorLike, shape: Shape) -> Tensor:
    """Return v in the dtype of x, broadcast to the shape of the selection."""
    t = as_tensor(v)
    if not np.can_cast(t.dtype, x.dtype, "same_kind"):
        raise TypeError(
            f"{function}: v has dtype {t.dtype.name}, expected one that {x.dtype.name} holds (see astype)"
        )
    shape_of_v = t.shape
    while t.ndim > len(shape) and t.shape[0] == 1:  # as NumPy's assignment
        t = reshape(t, t.shape[1:])
    try:
        return broadcast_to(astype(t, x.dtype), shape)
    except ValueError:
        raise ValueError(
            f"{function}: v has shape {shape_of_v}, expected one that broadcasts to {shape}"
        ) from None


def _set(region: Tensor, indices: Tensor | None, v: Tensor, axis: int) -> Tensor:
    return v if indices is None else scatter(region, indices, v, axis)


def _add(region: Tensor, indices: Tensor | None, v: Tensor, axis: int) -> Tensor:
    return add(region, v) if indices is None else add_at(region, indices, v, axis)


@dataclass(frozen=True)
class At:
    """The value of `x.at`: `x.at[index]` has methods `set` and `add`, which return new tensors."""

    x: Tensor

    def __getitem__(self, index: Index) -> IndexUpdate:
        """Select the elements x[index] for an update."""
        return IndexUpdate(self.x, index)


@dataclass(frozen=True)
class IndexUpdate:
    """An update of the elements x[index]; the index is as for reading."""

    x: Tensor
    index: Index

    def set(self, v: TensorLike) -> Tensor:
        """Return x with v at the index; v broadcasts to the shape of x[index], and takes the dtype of x.

        For an element selected more than once the last value wins, and gets the gradient.

        >>> import treepie as tp
        >>> tp.zeros(3).at[1].set(5.0).tolist()
        [0.0, 5.0, 0.0]
        """
        return _updated("at.set", self.x, self.index, v, _set)

    def add(self, v: TensorLike) -> Tensor:
        """Return x with v added at the index; v broadcasts to the shape of x[index].

        For an element selected more than once all values are added, in order. Bools add as `or`.

        >>> import treepie as tp
        >>> tp.zeros(3).at[[1, 1]].add(5.0).tolist()
        [0.0, 10.0, 0.0]
        """
        if self.x.dtype.kind == "b":
            as_bool = as_tensor(v)
            if as_bool.dtype.kind != "b":
                raise TypeError(f"at.add: v has dtype {as_bool.dtype.name}, expected bool as x")
            return astype(_updated("at.add", astype(self.x, int32), self.index, v, _add), self.x.dtype)
        return _updated("at.add", self.x, self.index, v, _add)
