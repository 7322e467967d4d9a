"""Sums of products over named axes, as batched matrix products.

Operands are contracted in NumPy's order (`np.einsum_path`, greedy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arguments import as_tensor, same_float_dtype
from ..table import Case, composite
from ..tensor import Tensor, TensorLike
from .arithmetic import mul
from .linalg import batch_matmul
from .reduction import sum as total
from .shape import expand_dims, reshape, transpose
from .slicing import strided_slice

#: A tensor and the label of each of its axes. Axes under an ellipsis are labelled from the last: 1, 2 ...
Label = str | int
Factor = tuple[Tensor, tuple[Label, ...]]


def _labels(subscripts: str, term: str, ndim: int) -> tuple[Label, ...]:
    """Return the labels of an operand with `ndim` axes."""
    before, dots, after = term.partition("...")
    hidden = ndim - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise ValueError(
            f"einsum: the operand {term!r} of {subscripts!r} has {ndim} axes, expected "
            f"{len(before) + len(after)}" + (" or more" if dots else "")
        )
    return (*before, *range(hidden, 0, -1), *after)


def _parsed(subscripts: str, operands: Sequence[Tensor]) -> tuple[list[Factor], tuple[Label, ...]]:
    """Return the operands with their labels, and the labels of the result."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    letters = text.replace("->", "").replace(",", "").replace("...", "")
    if (letters and not (letters.isascii() and letters.isalpha())) or any(
        t.count("...") > 1 for t in (*terms, right)
    ):
        raise ValueError(
            f"einsum: subscripts are {subscripts!r}, expected letters, one ellipsis at most an operand, "
            "commas and an arrow, as in 'ij,jk->ik'"
        )
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {len(operands)} operands given, expected {len(terms)} for {subscripts!r}")
    factors = [(x, _labels(subscripts, t, x.ndim)) for x, t in zip(operands, terms, strict=True)]
    hidden = max((n for _, names in factors for n in names if isinstance(n, int)), default=0)
    counted = left.replace("...", "").replace(",", "")
    if not arrow:
        right = "..." + "".join(sorted(c for c in set(counted) if counted.count(c) == 1))
    before, dots, after = right.partition("...")
    own = before + after
    if len(set(own)) < len(own) or not set(own) <= set(counted):
        raise ValueError(
            f"einsum: the result {right!r} of {subscripts!r}, expected labels of the operands, each once"
        )
    names = (*before, *(range(hidden, 0, -1) if dots else ()), *after)
    return factors, names


def _sizes(subscripts: str, factors: Sequence[Factor]) -> dict[Label, int]:
    """Return the size of each label, where 1 broadcasts to other sizes."""
    sizes: dict[Label, int] = {}
    for x, names in factors:
        for name, n in zip(names, x.shape, strict=True):
            if sizes.get(name, 1) == 1:
                sizes[name] = n
            elif n not in (1, sizes[name]):
                shapes = " and ".join(str(f.shape) for f, _ in factors)
                where = f"the label {name!r}" if isinstance(name, str) else "the ellipsis"
                raise ValueError(
                    f"einsum: operands have shapes {shapes}, and {where} of {subscripts!r} stands for sizes "
                    f"{sizes[name]} and {n}, expected one size"
                )
    return sizes


def _diagonal(factor: Factor, sizes: dict[Label, int]) -> Factor:
    """Join axes of one label into their diagonal, and drop those of size 1 that broadcast."""
    x, names = factor
    kept = [k for k, n in enumerate(names) if x.shape[k] == sizes[n]]
    # If all axes of a label are dropped, other operands have the label too.
    x, names = reshape(x, tuple(x.shape[k] for k in kept)), tuple(names[k] for k in kept)
    for name in dict.fromkeys(names):
        axes = [k for k, n in enumerate(names) if n == name]
        while len(axes) > 1:
            a, b = axes[0], axes.pop()
            rest = [k for k in range(x.ndim) if k not in (a, b)]
            n, others = x.shape[a], tuple(x.shape[k] for k in rest)
            flat = reshape(transpose(x, [*rest, a, b]), (*others, n * n))
            # Of the n * n elements of the two axes, those of the diagonal are n + 1 apart.
            x = strided_slice(flat, (0,) * flat.ndim, (*(1,) * len(rest), n + 1), (*others, n))
            names = (*(names[k] for k in rest), name)
            axes = [k for k, n in enumerate(names) if n == name]
    return x, names


def _without(factor: Factor, labels: set[Label]) -> Factor:
    """Sum over axes."""
    x, names = factor
    axes = tuple(k for k, n in enumerate(names) if n in labels)
    return (total(x, axes), tuple(n for n in names if n not in labels)) if axes else factor


def _ordered(factor: Factor, labels: Sequence[Label]) -> Tensor:
    """Return the tensor with its axes in the order of some labels, without a copy where they are."""
    x, names = factor
    order = [names.index(n) for n in labels]
    return x if order == sorted(order) else transpose(x, order)


def _pair(a: Factor, b: Factor, needed: set[Label]) -> Factor:
    """Multiply two factors, and sum over the labels that no other factor and not the result needs."""
    a = _without(a, set(a[1]) - set(b[1]) - needed)
    b = _without(b, set(b[1]) - set(a[1]) - needed)
    (x, left), (y, right) = a, b
    shared = [n for n in left if n in right]
    batch = [n for n in shared if n in needed]
    inner = [n for n in shared if n not in needed]
    rows = [n for n in left if n not in shared]
    columns = [n for n in right if n not in shared]
    names = (*batch, *rows, *columns)
    if not inner:  # no sum: every element is one product
        x = _ordered(a, [*batch, *rows])
        y = _ordered(b, [*batch, *columns])
        y = reshape(y, (*y.shape[: len(batch)], *(1,) * len(rows), *y.shape[len(batch) :]))
        x = expand_dims(x, tuple(range(x.ndim, x.ndim + len(columns)))) if columns else x
        return mul(x, y), names
    size = dict(zip((*left, *right), (*x.shape, *y.shape), strict=True))
    # An operand whose summed axes come first is passed to the product as transposed, without a copy.
    first = left.index(inner[0]) < min((left.index(n) for n in rows), default=len(left))
    last = right.index(inner[0]) > min((right.index(n) for n in columns), default=len(right))
    x = _ordered(a, [*batch, *inner, *rows] if first else [*batch, *rows, *inner])
    y = _ordered(b, [*batch, *columns, *inner] if last else [*batch, *inner, *columns])
    lead = tuple(size[n] for n in batch)
    m, k, n = (math.prod(size[label] for label in group) for group in (rows, inner, columns))
    x = reshape(x, (*lead, k, m) if first else (*lead, m, k))
    y = reshape(y, (*lead, n, k) if last else (*lead, k, n))
    return reshape(batch_matmul(x, y, first, last), tuple(size[label] for label in names)), names


def _path(factors: Sequence[Factor], result: Sequence[Label]) -> list[tuple[int, ...]]:
    """Return the factors to multiply in each step; the product is appended to the list."""
    if len(factors) < 3:
        return [tuple(range(len(factors)))]
    arguments: list[Any] = []
    numbers: dict[Label, int] = {}
    for x, names in factors:
        arguments.append(np.broadcast_to(np.float32(0), x.shape))
        arguments.append([numbers.setdefault(n, len(numbers)) for n in names])
    arguments.append([numbers[n] for n in result if n in numbers])
    return [tuple(p) for p in np.einsum_path(*arguments, optimize="greedy")[0][1:]]


@composite(
    name="einsum",
    variadic=True,
    oracle=lambda *xs, subscripts: np.einsum(subscripts, *xs),
    magnitude=lambda *xs, subscripts: np.einsum(subscripts, *[np.abs(x) for x in xs]),
    cases=[
        Case(((3, 4), (4, 5)), {"subscripts": "ij,jk->ik"}),
        Case(((3, 4), (4, 5)), {"subscripts": "ij,jk"}),
        Case(((4, 3), (5, 4)), {"subscripts": "ij,ki->kj"}),
        Case(((3, 3),), {"subscripts": "ii"}),
        Case(((3, 3, 2, 3),), {"subscripts": "iiji->ij"}),
        Case(((3, 4),), {"subscripts": "ij->ji"}),
        Case(((2, 3, 4), (2, 4, 5)), {"subscripts": "...ij,...jk->...ik"}),
        Case(((2, 1, 3, 4), (6, 4, 5)), {"subscripts": "...ij,...jk"}),
        Case(((3,), (4,)), {"subscripts": "i,j->ji"}),
        Case(((2, 3), (3, 4), (4, 5), (5,)), {"subscripts": "ab,bc,cd,d->a"}),
        Case(((2, 3, 4, 5), (2, 5, 3, 6)), {"subscripts": "bhqd,bdhk->bqhk"}),
        Case(((2, 3), (2, 3), (2, 3)), {"subscripts": "ij,ij,ij->j"}),
        Case(((0, 3), (3, 2)), {"subscripts": "ij,jk->ik"}),
        Case(((2, 1), (3, 4)), {"subscripts": "ij,jk->ik"}),
        Case(((), (3,)), {"subscripts": ",i->i"}),
        Case(((2, 3, 4), (3,)), {"subscripts": "...,i->i..."}),
    ],
    wrong=Case(((3, 4), (5, 6)), {"subscripts": "ij,jk->ik"}),
    large=Case(((64, 128, 32), (64, 128, 32)), {"subscripts": "bqd,bkd->bqk"}),
    ulp=16,
)
def _einsum(*operands: TensorLike, subscripts: str) -> Tensor:
    """Return the sum of products of operands over labelled axes."""
    if not isinstance(subscripts, str):
        raise TypeError(
            f"einsum: subscripts are a {type(subscripts).__name__}, expected a string as 'ij,jk->ik'"
        )
    xs = [as_tensor(x) for x in operands]
    if xs:
        same_float_dtype("einsum", **{f"operand {k}": x for k, x in enumerate(xs)})
    factors, result = _parsed(subscripts, xs)
    sizes = _sizes(subscripts, factors)
    factors = [_diagonal(f, sizes) for f in factors]
    for chosen in _path(factors, result):
        parts = [factors[k] for k in chosen]
        factors = [f for k, f in enumerate(factors) if k not in chosen]
        while len(parts) > 1:
            needed = {*result, *(n for _, names in (*factors, *parts[2:]) for n in names)}
            parts[:2] = [_pair(parts[0], parts[1], needed)]
        factors.append(parts[0])
    (last,) = factors
    return _ordered(_without(last, set(last[1]) - set(result)), result)


def einsum(subscripts: str, *operands: TensorLike) -> Tensor:
    """Return the sum of products of operands over labelled axes, by NumPy's rules.

    subscripts: "ij,jk->ik": labels of each operand's axes and of the result's. A label that the result
        does not have is summed over, one that repeats in an operand takes the diagonal, an ellipsis
        stands for axes that broadcast. Without an arrow, the result has the labels that occur once, in
        alphabetical order.
    operands: floats of one dtype.

    Raises ValueError for subscripts or sizes that do not fit, TypeError for other dtypes.

    >>> import treepie as tp
    >>> tp.einsum("i,i->", tp.tensor([1.0, 2.0]), tp.tensor([3.0, 4.0])).item()
    11.0
    """
    return _einsum(*operands, subscripts=subscripts)
