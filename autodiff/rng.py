"""Random numbers with explicit keys: the same key gives the same bits on every machine and thread count.

The generator is Threefry-2x32 with 20 rounds; `treepie.kernels.random` says bit by bit how an element
is computed from the key and its index. Never draw twice from one key: split it, or fold a number in.

Processes that share a global batch draw the numbers of its rows: `for_rows` puts the rows of a process into a
key, and a draw whose first axis has this number of elements is those rows of the global batch's draw.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .arguments import as_float, filled, index, integer, one_axis, shape_of, shown
from .ops.arithmetic import add, mul, neg, sub
from .ops.check_range import check_range
from .ops.compare import less
from .ops.elementary import log
from .ops.minmax import argmax
from .ops.random import (
    check_key,
    random_bits,
    random_fold,
    random_for_rows,
    random_integers,
    random_normal,
    random_split,
    random_uniform,
)
from .ops.sort import argsort
from .table import Shape
from .tensor import DType, Tensor, TensorLike, bool_, check_dtype, float32, float64
from .trace.active import tracing
from .trace.number import computed

__all__ = [
    "bernoulli",
    "categorical",
    "fold_in",
    "key",
    "normal",
    "permutation",
    "randint",
    "split",
    "truncated_normal",
    "uniform",
]


def __dir__() -> list[str]:
    return __all__


def key(seed: int) -> Tensor:
    """Return the key of a seed, int64 (2,): its low and its high word.

    seed: an integer of up to 64 bits.

    Raises ValueError for a larger one, TypeError for another type.

    >>> import treepie as tp
    >>> tp.rng.key(7).tolist()
    [7, 0]
    """
    bits = index("rng.key", "seed", seed)
    if not -(2**63) <= bits < 2**64:
        raise ValueError(f"rng.key: seed is {shown(bits)}, expected an integer of 64 bits")
    bits %= 2**64
    return Tensor(np.array([bits % 2**32, bits >> 32], np.int64), None)


def split(key: Tensor, n: int = 2) -> Tensor:
    """Return n new keys, int64 (n, 2): `k1, k2 = rng.split(key)`.

    key: which must not be used again.  n: at least 1.

    Raises ValueError for a smaller n, TypeError for an invalid key.

    >>> import treepie as tp
    >>> tp.rng.split(tp.rng.key(7), 3).shape
    (3, 2)
    """
    return random_split(key, integer("rng.split", "n", n, least=1))


def fold_in(key: Tensor, data: int) -> Tensor:
    """Return the key of a key and an integer, such as an epoch or a layer's number.

    key: int64 (2,).  data: 0 to 2**62 - 1.

    Raises ValueError for an integer outside of this range, TypeError for an invalid key.

    >>> import treepie as tp
    >>> tp.rng.fold_in(tp.rng.key(7), 3).shape
    (2,)
    """
    return random_fold(key, computed(_folded, data, (), np.dtype(np.int64)))


def _folded(data: int) -> int:
    number = index("rng.fold_in", "data", data)
    if not 0 <= number < 2**62:
        raise ValueError(f"rng.fold_in: data is {data}, expected 0 to 2**62 - 1")
    return number


def for_rows(key: Tensor, first: int, count: int) -> Tensor:
    """Return a key that draws rows first to first + count - 1 of what `key` draws for a global batch.

    key: int64 (2,).  first, count: 0 to 2**31 - 1, or symbolic numbers of a trace. A count of 0 makes a key
    without rows.

    A draw whose first axis has `count` elements is by example: it has the bits of these rows of the draw of
    the global batch by `key`. Other draws, and permutations, have the bits that `key` draws, the same on all
    processes. Keys that `split` and `fold_in` return have the rows of their key.

    Raises ValueError for numbers outside of this range, TypeError for an invalid key.

    >>> import treepie as tp
    >>> from treepie.autodiff.rng import for_rows
    >>> key = tp.rng.key(7)
    >>> whole, rows = tp.rng.uniform(key, (5, 3)), tp.rng.uniform(for_rows(key, 2, 3), (3, 3))
    >>> bool((whole[2:] == rows).all())
    True
    """
    scalars = [
        computed(functools.partial(_row_number, name), number, (), np.dtype(np.int64))
        for name, number in (("first", first), ("count", count))
    ]
    return random_for_rows(key, *scalars)


def _row_number(name: str, value: int) -> int:
    number = index("rng.for_rows", name, value)
    if not 0 <= number < 2**31:
        raise ValueError(f"rng.for_rows: {name} is {value}, expected 0 to 2**31 - 1")
    return number


def _float(name: str, dtype: DType) -> np.dtype:
    out = check_dtype(name, dtype)
    if out.kind != "f":
        raise TypeError(f"{name}: dtype is {out.name}, expected float32 or float64")
    return out


def uniform(
    key: Tensor,
    shape: Shape = (),
    low: TensorLike = 0.0,
    high: TensorLike = 1.0,
    dtype: DType = float32,
) -> Tensor:
    """Return numbers uniform in [low, high).

    key: int64 (2,).  shape: of the result.  low, high: numbers or tensors that broadcast with it.
    dtype: float32 or float64.

    The result is low + (high - low) * u, where rounding can reach `high`; u is a multiple of 2**-24 in
    float32, of 2**-53 in float64, below 1.

    Raises ValueError for numbers low >= high, TypeError for another dtype or an invalid key.

    >>> import treepie as tp
    >>> x = tp.rng.uniform(tp.rng.key(7), (1000,))
    >>> bool(x.min() >= 0), bool(x.max() < 1)
    (True, True)
    """
    u = random_uniform(key, shape_of("rng.uniform", shape), _float("rng.uniform", dtype))
    if isinstance(low, float | int) and isinstance(high, float | int):
        if not low < high:
            raise ValueError(f"rng.uniform: low is {low} and high {high}, expected low < high")
        return u if (low, high) == (0, 1) else add(mul(u, float(high - low)), float(low))
    return add(mul(u, sub(high, low)), low)


def normal(key: Tensor, shape: Shape = (), dtype: DType = float32) -> Tensor:
    """Return numbers of the standard normal distribution.

    key: int64 (2,).  shape: of the result.  dtype: float32 or float64. Box & Muller 1958.

    Raises TypeError for another dtype or an invalid key.

    >>> import treepie as tp
    >>> f"{tp.rng.normal(tp.rng.key(7), (10000,)).std().item():.1f}"
    '1.0'
    """
    return random_normal(key, shape_of("rng.normal", shape), _float("rng.normal", dtype))


def bernoulli(key: Tensor, p: TensorLike, shape: Shape | None = None) -> Tensor:
    """Return bools that are true with probability p.

    key: int64 (2,).  p: numbers in [0, 1].  shape: of the result, by default p's, which broadcasts to it.

    Raises ValueError for a p outside of [0, 1], TypeError for an invalid key.

    >>> import treepie as tp
    >>> f"{tp.rng.bernoulli(tp.rng.key(7), 0.3, (10000,)).mean().item():.1f}"
    '0.3'
    """
    chance = as_float("rng.bernoulli", p)
    chance = check_range(chance, 0.0, 1.0, "rng.bernoulli: p is {}, expected 0 to 1")
    return less(uniform(key, chance.shape if shape is None else shape, dtype=chance.dtype), chance)


def permutation(key: Tensor, n: int) -> Tensor:
    """Return the integers 0..n-1 in random order, int64.

    key: int64 (2,).  n: 0 or more. The order is the one that sorts n draws of 64 bits.

    Raises ValueError for a negative n, TypeError for an invalid key.

    >>> import treepie as tp
    >>> sorted(tp.rng.permutation(tp.rng.key(7), 4).tolist())
    [0, 1, 2, 3]
    """
    sizes = shape_of("rng.permutation", (integer("rng.permutation", "n", n, least=0),))
    check_key("rng.permutation", key)
    draws = random_bits(key, sizes)
    # One order either way: the kernel takes half the time (45 ms for 10^6), and 0.7 s to compile.
    if n > 2**17 or tracing() is not None:
        return argsort(draws)
    return Tensor(np.argsort(draws.numpy(), kind="stable"), None)


def truncated_normal(
    key: Tensor, shape: Shape = (), low: float = -2.0, high: float = 2.0, dtype: DType = float32
) -> Tensor:
    """Return numbers of the standard normal distribution within [low, high].

    key: int64 (2,).  shape: of the result.  low, high: numbers, which may be infinite.
    dtype: float32 or float64.

    An element is the first accepted one of its draws: normal numbers, or, where fewer than a quarter of
    them would be accepted, uniform ones accepted by their density (Robert 1995).

    Raises ValueError for low >= high, TypeError for another dtype or an invalid key.

    >>> import treepie as tp
    >>> x = tp.rng.truncated_normal(tp.rng.key(7), (1000,))
    >>> bool(tp.abs(x).max() <= 2)
    True
    """
    if not low < high:
        raise ValueError(f"rng.truncated_normal: low is {low} and high {high}, expected low < high")
    sizes, kind = shape_of("rng.truncated_normal", shape), _float("rng.truncated_normal", dtype)
    inside = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    nearest = min(max(low, 0.0), high)
    # Beyond this the density is below 1e-16 of its largest.
    reach = math.sqrt(nearest * nearest + 75.0)
    out = filled("rng.truncated_normal", sizes, kind)
    missing = filled("rng.truncated_normal", sizes, bool_, True)
    draw = 0
    while missing.any():
        first, second = split(fold_in(key, draw))
        if inside > 0.25:
            x = normal(first, sizes, kind).numpy()
            accepted = (x >= low) & (x <= high)
        else:
            x = uniform(first, sizes, max(low, -reach), min(high, reach), kind).numpy()
            density = np.exp((nearest * nearest - x.astype(float64) ** 2) / 2)
            accepted = uniform(second, sizes, dtype=float64).numpy() < density
            accepted &= (x >= low) & (x <= high)  # the bounds may have been rounded over
        np.copyto(out, x, where=missing & accepted)
        missing &= ~accepted
        draw += 1
    return Tensor(out, None)


def randint(key: Tensor, shape: Shape, low: int, high: int) -> Tensor:
    """Return integers in [low, high), equally likely.

    key: int64 (2,).  shape: of the result.  low, high: at most 2**32 apart, of 64 bits. The result is int32
    where both bounds fit, else int64.

    Raises ValueError for other bounds, TypeError for an invalid key.

    >>> import treepie as tp
    >>> tp.rng.randint(tp.rng.key(7), (3,), 0, 10).dtype.name
    'int32'
    """
    first, last = index("rng.randint", "low", low), index("rng.randint", "high", high)
    if not first < last or last - first > 2**32 or not -(2**63) <= first < last <= 2**63:
        raise ValueError(
            f"rng.randint: low is {low} and high {high}, expected low < high <= low + 2**32, of 64 bits"
        )
    bounds = Tensor(np.array([first, last - first], np.int64), None)
    integers = random_integers(key, bounds, shape_of("rng.randint", shape))
    return integers.astype("int32") if first >= -(2**31) and last <= 2**31 else integers


def categorical(key: Tensor, logits: TensorLike, axis: int = -1) -> Tensor:
    """Return, for each row of logits along an axis, an index drawn with probability softmax(logits).

    key: int64 (2,).  logits: (..., classes) float.  axis: of the classes, which the result, int64, lacks.

    It is the position of the largest of logits + Gumbel noise (Gumbel 1954), -log(-log(u)), u half a step
    inside of (0, 1).

    Raises ValueError for an axis outside of logits, TypeError for an invalid key.

    >>> import treepie as tp
    >>> tp.rng.categorical(tp.rng.key(7), tp.tensor([[0.0, 100.0], [100.0, 0.0]])).tolist()
    [1, 0]
    """
    x = as_float("rng.categorical", logits)
    k = one_axis("rng.categorical", axis, x.ndim)
    u = uniform(key, x.shape, dtype=x.dtype)
    step = 2.0**-25 if x.dtype == float32 else 2.0**-54
    noise = neg(log(neg(log(add(u, step)))))
    return argmax(add(x, noise), k)
