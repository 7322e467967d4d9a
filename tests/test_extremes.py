"""Special values through elementwise ops and some reductions: zeros, subnormals, the largest, inf, NaN."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS, Tensor
from treepie.autodiff.elementwise import Elementwise

#: Of up to three operands: the row of four is arithmetic, (x - mean) * scale + shift, and overflows inside.
ROWS = [
    r
    for r in OPS.values()
    if isinstance(r, Elementwise) and "float32" in r.dtypes and len(r.cases[0].shapes) <= 3
]
VALUES = [
    0.0,
    1e-45,
    1e-39,
    1.2e-38,
    1e-10,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    20.0,
    87.5,
    88.0,
    88.8,
    104.0,
    1e10,
    3e38,
]
SPECIAL = np.array([*VALUES, *(-v for v in VALUES), np.inf, -np.inf, np.nan])


def operands(row, dtype):
    """Return all combinations of the special values over a row's operands."""
    count = len(row.cases[0].shapes)
    grids = np.meshgrid(*[SPECIAL] * min(count, 2), indexing="ij")
    arrays = [g.ravel().astype(dtype) for g in grids]
    if count == 3:
        arrays = (
            [np.arange(arrays[0].size) % 3 == 0, *arrays]
            if 0 in row.cases[0].integers
            else [arrays[0], *arrays]
        )
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_special_values(row, dtype):
    """Infinities and NaN where the oracle has them, and the rest within the row's bound."""
    arrays = operands(row, dtype)
    result = row(*[Tensor(a) for a in arrays]).array
    with np.errstate(all="ignore"):
        want = np.asarray(row.oracle(*[a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]))
        if result.dtype.kind == "b":
            np.testing.assert_array_equal(result, want)
            return
        rounded = want.astype(dtype)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(rounded))
    np.testing.assert_array_equal(np.isinf(result) & (result > 0), np.isinf(rounded) & (rounded > 0))
    np.testing.assert_array_equal(np.isinf(result) & (result < 0), np.isinf(rounded) & (rounded < 0))
    finite = np.isfinite(rounded)
    off = np.abs(result[finite].astype(np.float64) - want[finite])
    unit = np.spacing(np.abs(rounded[finite]))
    if row.magnitude is not None:  # terms that cancel
        with np.errstate(all="ignore"):
            size = np.abs(row.magnitude(*arrays))[finite].astype(dtype)
        unit = np.fmax(unit, np.spacing(size))
    bound = max(row.ulp, 0.5) * unit
    if dtype == "float64":  # where the oracle is no more exact than we are; see test_formulas
        bound = bound + 1e-12 * np.abs(want[finite])
    assert (off <= bound).all()
    zeros = finite & (rounded == 0) & (want == 0)
    np.testing.assert_array_equal(np.signbit(result[zeros]), np.signbit(want[zeros]))


def test_logsumexp_of_infinities():
    rows = np.array([[np.inf, 1.0], [-np.inf, -np.inf], [np.inf, -np.inf], [np.nan, np.inf]])
    np.testing.assert_array_equal(tp.logsumexp(rows, 1), [np.inf, -np.inf, np.inf, np.nan])


@pytest.mark.parametrize("places", [[5000], [5000, 9000], [100, 5000], [4095], [4096], [0, 9999]], ids=str)
@pytest.mark.parametrize("inner", [1, 3])
def test_the_first_nan_of_a_long_row_is_its_extreme(places, inner):
    x = np.random.default_rng(0).standard_normal((2, 10000, inner))
    x[1, places, inner - 1] = np.nan
    for f, oracle in ((tp.argmax, np.argmax), (tp.argmin, np.argmin)):
        np.testing.assert_array_equal(f(x, axis=1), oracle(x, axis=1))
    for f, oracle in ((tp.max, np.max), (tp.min, np.min)):
        np.testing.assert_array_equal(f(x, axis=1), oracle(x, axis=1))
