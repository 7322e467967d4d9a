"""The largest float32 error of an elementwise row over points of all exponents, for tests and OPS.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .elementwise import Elementwise
from .table import OPS
from .tensor import Tensor

Array = NDArray[Any]

#: Points of one call of a kernel and its oracle, so that a sweep of millions takes 100 MB.
_CHUNK = 1 << 19

#: Intervals that are swept densely, where the result neither saturates nor is the operand itself.
RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    "exp": ((-104.5, 89.0), (-2.0, 2.0)),
    "expm1": ((-18.0, 89.0), (-2.0, 2.0)),
    "log": ((0.0, 3.0), (0.0, 100.0)),
    "log1p": ((-1.0, 3.0), (-1.0, 100.0)),
    "sqrt": ((0.0, 4.0),),
    "rsqrt": ((0.0, 4.0),),
    "sin": ((-10.0, 10.0), (-1e3, 1e3), (-1e7, 1e7)),
    "cos": ((-10.0, 10.0), (-1e3, 1e3), (-1e7, 1e7)),
    "tanh": ((-10.0, 10.0), (-1.0, 1.0)),
    "sigmoid": ((-105.0, 20.0), (-4.0, 4.0)),
    "erf": ((-4.0, 4.0), (-1.0, 1.0)),
    "gelu": ((-14.5, 6.0), (-2.0, 2.0), (-1.5, -1.0)),
    "gelu_approx": ((-11.0, 6.0), (-2.0, 2.0)),
    "silu": ((-110.0, 20.0), (-4.0, 4.0)),
    "softplus": ((-105.0, 20.0), (-4.0, 4.0)),
    "log_sigmoid": ((-20.0, 105.0), (-4.0, 4.0)),
    "mish": ((-110.0, 20.0), (-4.0, 4.0)),
    "elu": ((-20.0, 2.0), (-2.0, 2.0)),
    "celu": ((-20.0, 2.0), (-2.0, 2.0)),
    "selu": ((-20.0, 2.0), (-2.0, 2.0)),
    "squareplus": ((-10.0, 10.0), (-5e3, 5e3)),
    "softsign": ((-10.0, 10.0),),
    "scale_shift": ((-3.0, 3.0), (-1e6, 1e6)),
}
USUAL = ((-10.0, 10.0), (-1.0, 1.0))

#: Thresholds: of exp's overflow, subnormal results and 0 in float32; parts of pi; splits of formulas.
_THRESHOLDS = (
    *(88.72284, 87.33655, 103.27893, 103.97208, 104.0, 106.0, 14.4, 13.0, 10.05, 9.01, 16.63554, 17.32868),
    *(math.log(2) / 2, math.log(2), math.pi / 4, math.pi / 2, math.pi, math.sqrt(0.5), math.sqrt(2), 0.55),
    *(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 15.0, 20.0, 40.0, 64.0, 100.0, 1600.0, 2.0**24, 2.0**45, 2.0**60),
    *(2.0**54, 2.0**63, 2.0**64, 2.0**83, 2.0**112, 2.0**-12, 2.0**-24, 2.0**-60, 1e-30, 1e30, 1e34),
)


@dataclass(frozen=True)
class Error:
    """The largest error of a row, in units in the last place, and the operands where it occurs."""

    ulp: float = 0.0
    operands: tuple[float, ...] = ()
    result: float = 0.0
    exact: float = 0.0


def swept() -> list[Elementwise]:
    """Return the rows that have an error: elementwise ops with float32 results."""
    return [
        row
        for row in OPS.values()
        if isinstance(row, Elementwise) and "float32" in row.dtypes and _result_is_float(row)
    ]


def swept_fast() -> list[Elementwise]:
    """Return the fast rows."""
    return [row.fast for row in swept() if row.fast is not None]


def _result_is_float(row: Elementwise) -> bool:
    conditions = row.cases[0].integers
    operands = [
        Tensor(np.zeros((), bool if k in conditions else np.float32), None) for k in range(_arity(row))
    ]
    return bool(row(*operands).dtype == np.float32)


def _arity(row: Elementwise) -> int:
    return len(row.cases[0].shapes)


def largest_error(row: Elementwise, count: int, seed: int = 0) -> Error:
    """Return the largest error of a row over the edges and `count` points, against its float64 oracle.

    Half of the points are spread evenly over the bits of float32, so over all exponents and both signs; half
    are uniform in the row's `RANGES`. An infinity counts as 2**128; NaN must be NaN.
    """
    worst = Error()
    for operands in points(row, count, np.random.default_rng(seed)):
        got = row(*[Tensor(a, None) for a in operands]).array
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in operands]
        with np.errstate(all="ignore"):
            exact = np.asarray(row.oracle(*wide), np.float64)
            size = np.abs(exact if row.magnitude is None else row.magnitude(*wide))
        errors = ulps(got, exact, np.fmax(size, np.abs(exact)))
        k = int(np.argmax(errors))
        if errors[k] > worst.ulp:
            where = tuple(float(a[k]) for a in operands)
            worst = Error(float(errors[k]), where, float(got[k]), float(exact[k]))
    return worst


def ulps(got: Array, exact: Array, size: Array) -> Array:
    """Return the errors of float32 results in units in the last place of a size, inf for a wrong NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        right = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        size = np.fmax(np.where(np.isfinite(size), size, 1.0), 2.0**-126)  # frexp(0) is that of 0.5
        unit = np.ldexp(1.0, np.frexp(size)[1] - 24)
        wide = np.where(np.isinf(got), np.copysign(np.float64(2.0**128), got), got.astype(np.float64))
        error = np.abs(wide - exact) / unit
    return np.where(right & ~np.isfinite(rounded), 0.0, np.where(np.isnan(error), np.inf, error))


def points(row: Elementwise, count: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Return blocks of operands: combinations of the edges, then about `count` points."""
    numbers = _arity(row) - len(row.cases[0].integers)
    if numbers < 4:
        yield _operands(row, _edges(numbers), rng)
    for start in range(0, count, _CHUNK):
        n = min(_CHUNK, count - start)
        columns = [_spread(row, n, rng) for _ in range(numbers)]
        if numbers > 1:
            for column in columns:
                rng.shuffle(column)
            _related(row, columns, rng)
        yield _operands(row, columns, rng)


def _operands(row: Elementwise, columns: list[Array], rng: np.random.Generator) -> list[Array]:
    """Return float32 operands, and random bools for the conditions."""
    if row.name == "celu":  # alpha is positive; for others exp overflows before the product with alpha
        columns = [columns[0], np.abs(columns[1])]
    with np.errstate(over="ignore", under="ignore"):
        numbers = iter([c.astype(np.float32) for c in columns])
    conditions, size = row.cases[0].integers, columns[0].size
    return [rng.random(size) < 0.5 if k in conditions else next(numbers) for k in range(_arity(row))]


def _edges(count: int) -> list[Array]:
    """Return all combinations of special values and neighbours of thresholds, over two operands at most."""
    near = np.array(_THRESHOLDS if count == 1 else _THRESHOLDS[::4], np.float32)
    steps = [near]
    for towards in (np.float32(np.inf), np.float32(0)):
        x = near
        for _ in range(3 if count == 1 else 1):
            x = np.nextafter(x, towards)
            steps.append(x)
    tiny, top = np.finfo(np.float32).smallest_normal, np.finfo(np.float32).max
    special = np.array(
        [0, 1e-45, 3e-45, 1e-39, np.nextafter(tiny, 0), tiny, 1.5 * tiny, top, top / 2, np.inf]
    )
    x = np.concatenate([*steps, special.astype(np.float32)])
    x = np.concatenate([x, -x, [np.float32(np.nan)]])
    if count == 1:
        return [x]
    first, second = (g.ravel() for g in np.meshgrid(x, x))
    return [first, second] if count == 2 else [first, second, np.roll(second, 7)]


def _spread(row: Elementwise, count: int, rng: np.random.Generator) -> Array:
    """Return numbers, half of them spread over the bits of float32, half over the row's ranges."""
    if row.name == "scale_shift":  # x - mean must neither overflow nor lose all bits of the product
        half = rng.uniform(-30, 30, count // 2)
        by_bits = np.exp2(half) * rng.choice([-1.0, 1.0], half.size)
    else:
        positive = isinstance(row.domain, tuple) and row.domain[0] >= 0
        top = 2.0**31 if positive else 2.0**32
        places = (np.arange(count // 2) + rng.random(count // 2)) * (top / (count // 2))
        with np.errstate(invalid="ignore"):  # signalling NaN
            by_bits = places.astype(np.uint32).view(np.float32).astype(np.float64)
    ranges = RANGES.get(row.name, USUAL)
    rest = count - by_bits.size
    bounds = np.array(ranges)[np.arange(rest) % len(ranges)]
    return np.concatenate([by_bits, rng.uniform(bounds[:, 0], bounds[:, 1])])


def _related(row: Elementwise, columns: list[Array], rng: np.random.Generator) -> None:
    """Make a quarter of the operands' tuples such that the result is neither 0 nor infinite."""
    first, second = columns[0], columns[1]
    quarter = slice(0, first.size // 4)
    if row.name == "pow":
        with np.errstate(all="ignore"):
            second[quarter] = rng.uniform(-104, 89, second[quarter].size) / np.log(np.abs(first[quarter]))
        first[quarter] = np.abs(first[quarter])
    elif row.name == "clip":
        columns[1][quarter], columns[2][quarter] = (
            np.fmin(columns[1], columns[2])[quarter],
            np.fmax(columns[1], columns[2])[quarter],
        )
    elif row.name != "scale_shift":
        with np.errstate(all="ignore"):
            second[quarter] = first[quarter] * rng.uniform(-2, 2, first[quarter].size)
