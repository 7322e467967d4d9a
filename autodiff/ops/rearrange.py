"""Functions that rearrange elements, composed of slices, permutations and concatenations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..arguments import allocated, as_tensor, check_total, filled, index, integer, one_axis, some_axes
from ..promotion import constant
from ..table import Case, composite
from ..tensor import Axis, Tensor, TensorLike, bool_, int64
from .arithmetic import where
from .indexing import take
from .shape import broadcast_to, expand_dims, reshape, transpose
from .slicing import concatenate, strided_slice, strided_slice_grad

#: The most sections that `split` makes of an empty axis.
_MOST_SECTIONS = 1 << 16

_ALL = ("float32", "float64", "int32", "int64", "bool")


@composite(
    oracle=np.moveaxis,
    cases=[
        Case(((2, 3, 4),), {"source": 0, "destination": -1}),
        Case(((0, 3),), {"source": 1, "destination": 0}),
    ],
    wrong=Case(((2, 3),), {"source": 2, "destination": 0}),
    dtypes=_ALL,
    ulp=0,
)
def moveaxis(x: TensorLike, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Tensor:
    """Return a tensor with axes moved to other positions; the others keep their order.

    x: of any dtype.  source, destination: an axis, or as many of each.

    Raises ValueError for an axis that repeats or is outside of x.

    >>> import treepie as tp
    >>> tp.moveaxis(tp.zeros((2, 3, 4)), 0, -1).shape
    (3, 4, 2)
    """
    t = as_tensor(x)
    lists = [list(a) if isinstance(a, tuple | list) else [a] for a in (source, destination)]
    sources, targets = ([one_axis("moveaxis", k, t.ndim) for k in a] for a in lists)
    if len(sources) != len(targets) or len({*sources}) != len(sources) or len({*targets}) != len(targets):
        raise ValueError(
            f"moveaxis: source is {source} and destination {destination}, expected as many axes, each once"
        )
    order = [k for k in range(t.ndim) if k not in sources]
    for target, source_axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, source_axis)
    return transpose(t, order)


@composite(
    oracle=np.split,
    cases=[
        Case(((6, 2),), {"indices_or_sections": 3, "axis": 0}),
        Case(((2, 7),), {"indices_or_sections": (2, 3), "axis": -1}),
        Case(((4,),), {"indices_or_sections": (0, 4), "axis": 0}),
    ],
    wrong=Case(((5, 2),), {"indices_or_sections": 3, "axis": 0}),
    dtypes=_ALL,
    ulp=0,
)
def split(x: TensorLike, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Return an axis cut into equal sections, or before each of some indices.

    x: of any dtype.  indices_or_sections: a number of sections, or ascending indices.

    Raises ValueError for sections that do not divide the axis, or indices that do not ascend.

    >>> import treepie as tp
    >>> [part.tolist() for part in tp.split(tp.arange(5), (2, 3))]
    [[0, 1], [2], [3, 4]]
    """
    t = as_tensor(x)
    k = one_axis("split", axis, t.ndim)
    n = t.shape[k]
    if isinstance(indices_or_sections, tuple | list):
        cuts = [0, *(index("split", "indices", i) for i in indices_or_sections), n]
        if cuts != sorted(cuts):
            raise ValueError(f"split: indices are {indices_or_sections}, expected ascending ones of 0 to {n}")
    else:
        # Each section is a tensor, also of an empty axis.
        most = max(n, _MOST_SECTIONS)
        sections = integer("split", "indices_or_sections", indices_or_sections, most=most)
        if sections < 1 or n % sections:
            raise ValueError(
                f"split: indices_or_sections is {sections} for an axis of {n} of shape {t.shape}, "
                "expected a divisor"
            )
        cuts = list(range(0, n + 1, n // sections)) if n else [0] * (sections + 1)
    return [slice_axis(t, k, a, b) for a, b in itertools.pairwise(cuts)]


def slice_axis(t: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Return the elements start to stop - 1 of an axis."""
    starts, sizes = [0] * t.ndim, list(t.shape)
    starts[axis], sizes[axis] = (start if stop > start else 0), stop - start
    return strided_slice(t, tuple(starts), (1,) * t.ndim, tuple(sizes))


@composite(
    oracle=np.flip,
    cases=[Case(((2, 3),)), Case(((2, 3),), {"axis": 1}), Case(((0, 3),), {"axis": (0, 1)})],
    wrong=Case(((2, 3),), {"axis": 2}),
    dtypes=_ALL,
    ulp=0,
)
def flip(x: TensorLike, axis: Axis = None) -> Tensor:
    """Return a tensor with axes reversed, all of them by default.

    x: of any dtype.  axis: an axis, several, or None for all.

    Raises ValueError for an axis outside of x.

    >>> import treepie as tp
    >>> tp.flip(tp.tensor([1, 2, 3])).tolist()
    [3, 2, 1]
    """
    t = as_tensor(x)
    axes = some_axes("flip", axis, t.ndim)
    if not t.size:
        return t
    steps = tuple(-1 if k in axes else 1 for k in range(t.ndim))
    starts = tuple(n - 1 if k in axes else 0 for k, n in enumerate(t.shape))
    return strided_slice(t, starts, steps, t.shape)


@composite(
    oracle=np.roll,
    cases=[
        Case(((2, 3),), {"shift": 2}),
        Case(((2, 3),), {"shift": -1, "axis": 1}),
        Case(((3, 4),), {"shift": (1, 6), "axis": (0, 1)}),
        Case(((0, 3),), {"shift": 1, "axis": 0}),
    ],
    wrong=Case(((2, 3),), {"shift": 1, "axis": 2}),
    dtypes=_ALL,
    ulp=0,
)
def roll(x: TensorLike, shift: int | tuple[int, ...], axis: Axis = None) -> Tensor:
    """Return a tensor shifted along axes; elements beyond the end re-enter at the start.

    x: of any dtype.  shift: a number of positions, or one for each axis.  axis: None rolls the flattened
    tensor.

    Raises ValueError for an axis outside of x, or another number of shifts than axes.

    >>> import treepie as tp
    >>> tp.roll(tp.tensor([1, 2, 3]), 1).tolist()
    [3, 1, 2]
    """
    t = as_tensor(x)
    if axis is None:
        return reshape(roll(reshape(t, (-1,)), shift, 0), t.shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ValueError(f"roll: shift is {shift} and axis {axis}, expected as many of each")
    for a, s in zip(axes, shifts, strict=True):
        k, n = one_axis("roll", a, t.ndim), t.shape[one_axis("roll", a, t.ndim)]
        cut = -index("roll", "shift", s) % n if n else 0
        if cut:
            t = concatenate([slice_axis(t, k, cut, n), slice_axis(t, k, 0, cut)], k)
    return t


@composite(
    oracle=np.tile,
    cases=[Case(((2, 3),), {"reps": 2}), Case(((3,),), {"reps": (2, 2)}), Case(((1, 2),), {"reps": (0, 3)})],
    wrong=Case(((2, 3),), {"reps": (-1, 2)}),
    dtypes=_ALL,
    ulp=0,
)
def tile(x: TensorLike, reps: int | tuple[int, ...]) -> Tensor:
    """Return a tensor repeated along its axes, and along new leading ones.

    x: of any dtype.  reps: how often, for the last axes of the result.

    Raises ValueError for a negative number.

    >>> import treepie as tp
    >>> tp.tile(tp.tensor([1, 2]), (2, 2)).tolist()
    [[1, 2, 1, 2], [1, 2, 1, 2]]
    """
    t = as_tensor(x)
    listed = tuple(reps) if isinstance(reps, tuple | list) else (reps,)
    counts = tuple(index("tile", "reps", r) for r in listed)
    if counts and min(counts) < 0:
        raise ValueError(f"tile: reps is {reps}, expected 0 or more for x of shape {t.shape}")
    rank = max(t.ndim, len(counts))
    counts = (1,) * (rank - len(counts)) + counts
    sizes = (1,) * (rank - t.ndim) + t.shape
    check_total("tile", (*counts, *sizes))
    once = reshape(t, tuple(v for n in sizes for v in (1, n)))
    tiled = broadcast_to(once, tuple(v for r, n in zip(counts, sizes, strict=True) for v in (r, n)))
    return reshape(tiled, tuple(r * n for r, n in zip(counts, sizes, strict=True)))


@composite(
    oracle=np.repeat,
    cases=[
        Case(((2, 3),), {"repeats": 2}),
        Case(((2, 3),), {"repeats": (1, 0, 2), "axis": 1}),
        Case(((0, 3),), {"repeats": 2, "axis": 0}),
    ],
    wrong=Case(((2, 3),), {"repeats": (1, 2), "axis": 1}),
    dtypes=_ALL,
    ulp=0,
)
def repeat(x: TensorLike, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
    """Return each element of an axis repeated; without an axis, of the flattened tensor.

    x: of any dtype.  repeats: how often, or a count for each element of the axis.

    Raises ValueError for a negative count, or another number of counts than elements.

    >>> import treepie as tp
    >>> tp.repeat(tp.tensor([1, 2]), (1, 3)).tolist()
    [1, 2, 2, 2]
    """
    t = as_tensor(x)
    if axis is None:
        t, axis = reshape(t, (-1,)), 0
    k = one_axis("repeat", axis, t.ndim)
    n = t.shape[k]
    listed = repeats if isinstance(repeats, tuple | list) else [repeats] * n
    counts = [integer("repeat", "repeats", r) for r in listed]
    if len(counts) != n or any(r < 0 for r in counts):
        raise ValueError(
            f"repeat: repeats is {repeats}, expected a count of 0 or more, or {n} of them for shape {t.shape}"
        )
    if not n:
        return t
    total = sum(counts)
    check_total("repeat", (*t.shape[:k], total, *t.shape[k + 1 :]))
    rows = allocated("repeat", (total,), int64, lambda: np.repeat(np.arange(n), counts))
    return take(t, rows, k)


@composite(
    oracle=lambda x, pad_width, value=0.0: np.pad(x, pad_width, constant_values=value),
    cases=[
        Case(((2, 3),), {"pad_width": 1}),
        Case(((2, 3),), {"pad_width": ((0, 2), (1, 0)), "value": 2.0}),
        Case(((0, 3),), {"pad_width": (1, 2)}),
    ],
    wrong=Case(((2, 3),), {"pad_width": ((1, 2), (1, 2), (1, 2))}),
    ulp=0,
)
def pad(
    x: TensorLike, pad_width: int | tuple[int, int] | Sequence[tuple[int, int]], value: float = 0.0
) -> Tensor:
    """Return a tensor surrounded by a constant.

    x: of any dtype.  pad_width: n, (before, after) or such a pair for each axis, as `numpy.pad` takes it.
    value: the constant.

    Raises ValueError for widths that do not fit the axes.

    >>> import treepie as tp
    >>> tp.pad(tp.tensor([1, 2]), (1, 2)).tolist()
    [0, 1, 2, 0, 0]
    """
    t = as_tensor(x)
    try:
        pairs = np.broadcast_to(np.asarray(pad_width, np.int64), (t.ndim, 2)).tolist()
    except (TypeError, ValueError, OverflowError):
        pairs = [[-1, -1]]
    if any(w < 0 for pair in pairs for w in pair):
        raise ValueError(
            f"pad: pad_width is {pad_width}, expected n, (before, after), or a pair for each axis of "
            f"shape {t.shape}, of 0 or more"
        )
    shape = tuple(n + a + b for n, (a, b) in zip(t.shape, pairs, strict=True))
    check_total("pad", shape)
    starts = tuple(a for a, _ in pairs)
    out = strided_slice_grad(t, shape, starts if t.size else (0,) * t.ndim, (1,) * t.ndim)
    if value == 0:
        return out
    inside = filled("pad", shape, bool_)
    inside[tuple(slice(a, a + n) for n, (a, _) in zip(t.shape, pairs, strict=True))] = True
    return where(inside, out, constant(value, t.dtype, "pad"))


def _triangle(name: str, x: TensorLike, k: int, lower: bool) -> Tensor:
    t = as_tensor(x)
    if t.ndim < 2:
        raise ValueError(f"{name}: x has shape {t.shape}, expected at least two axes")
    rows, columns = t.shape[-2:]
    # Beyond the corners all diagonals are equal, and NumPy takes small ones alone.
    diagonal = max(-rows - 1, min(index(name, "k", k), columns + 1)) - (not lower)
    mask = allocated(name, (rows, columns), bool_, lambda: np.tri(rows, columns, diagonal, dtype=bool))
    return where(mask if lower else ~mask, t, constant(0, t.dtype))


_MATRICES = [Case(((3, 4),)), Case(((2, 3, 3),), {"k": 1}), Case(((4, 2),), {"k": -1}), Case(((0, 3),))]


@composite(oracle=np.tril, cases=_MATRICES, wrong=Case(((3,),)), large=Case(((1000, 1000),)), ulp=0)
def tril(x: TensorLike, k: int = 0) -> Tensor:
    """Return the lower triangle of matrices, zeros above it.

    x: (..., rows, columns) of any dtype.  k: the last diagonal kept, 0 the main one, positive above it.

    Raises ValueError for fewer than two axes.

    >>> import treepie as tp
    >>> tp.tril(tp.ones((2, 3))).tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    """
    return _triangle("tril", x, k, lower=True)


@composite(oracle=np.triu, cases=_MATRICES, wrong=Case(((3,),)), large=Case(((1000, 1000),)), ulp=0)
def triu(x: TensorLike, k: int = 0) -> Tensor:
    """Return the upper triangle of matrices, zeros below it.

    x: (..., rows, columns) of any dtype.  k: the first diagonal kept, 0 the main one, positive above it.

    Raises ValueError for fewer than two axes.

    >>> import treepie as tp
    >>> tp.triu(tp.ones((2, 3))).tolist()
    [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    return _triangle("triu", x, k, lower=False)


@composite(
    oracle=np.outer,
    cases=[Case(((3,), (4,))), Case(((2, 2), (3,))), Case(((0,), (3,)))],
    dtypes=("float32", "float64", "int32", "int64"),
    large=Case(((1000,), (1000,))),
)
def outer(a: TensorLike, b: TensorLike) -> Tensor:
    """Return the products of all pairs of elements, (a.size, b.size).

    a, b: numbers or tensors of any shape, which are flattened.

    >>> import treepie as tp
    >>> tp.outer(tp.tensor([1, 2]), tp.tensor([3, 4])).tolist()
    [[3, 4], [6, 8]]
    """
    return expand_dims(reshape(a, (-1,)), 1) * reshape(b, (-1,))
