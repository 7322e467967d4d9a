"""Elementwise rows against their bounds; reductions of 10^6 and 10^7 elements, against sums in long double.

A float32 accumulator would be off by 1e-4 in these, NumPy's pairwise one by 1e-7.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS
from treepie.autodiff.op_accuracy import largest_error, swept

LONG = np.longdouble
wide = pytest.mark.skipif(np.finfo(LONG).eps > 1e-18, reason="long double is no wider than double")


@pytest.mark.parametrize("row", swept(), ids=str)
def test_elementwise_rows_are_within_their_bounds(row):
    """In float32, at the edges and at 20,000 operands; `perf/ops.py --accuracy` takes 4 million."""
    error = largest_error(row, 20_000)
    assert error.ulp <= row.ulp, f"{row} of {error.operands} is {error.result}, {error.ulp} ulp off"


@pytest.mark.parametrize("name", [r.name for r in swept() if r.ulp])
def test_bounds_are_not_much_larger_than_the_errors(name):
    """So that a formula that gets worse by an ulp is noticed."""
    assert largest_error(OPS[name], 200_000).ulp >= OPS[name].ulp - 1


def test_a_wrong_formula_exceeds_its_bound():
    row = OPS["exp"]
    for wrong in (
        lambda x: np.exp(x) * (1 + 3e-7),
        lambda x: np.where(x < -87.4, 0, np.exp(x)),
        lambda x: np.where(np.isnan(x), 1, np.exp(x)),
        lambda x: np.where(x > 88.722, np.inf, np.exp(x)),
    ):
        assert largest_error(replace(row, oracle=wrong, _plans={}), 20_000).ulp > row.ulp


def long_sum(x, axis):
    return np.sum(x, axis, dtype=LONG)


def long_mean(x, axis):
    return np.mean(x, axis, dtype=LONG)


def long_var(x, axis):
    return np.mean((x - np.mean(x, axis, dtype=LONG, keepdims=True)) ** 2, axis)


def long_logsumexp(x, axis):
    top = np.max(x, axis, keepdims=True)
    return np.log(np.sum(np.exp((x - top).astype(LONG)), axis)) + np.squeeze(top, axis)


#: name -> oracle, the samples' range, and the largest error in units in the last place of the result: in
#: float32, of a line in float64, and of columns, whose pieces of 1024 rows are summed in plain float64.
REDUCTIONS = {
    "sum": (long_sum, (0, 1), 0.51, 1, 3),
    "mean": (long_mean, (0, 1), 0.51, 1, 3),
    # Deviations are rounded once each, in the dtype; in float32 their mean's rounding is all that is left.
    "var": (long_var, (3, 5), 1, 1, 3),
    "std": (lambda x, axis: np.sqrt(long_var(x, axis)), (3, 5), 1, 1, 3),
    "norm": (lambda x, axis: np.sqrt(np.sum(x.astype(LONG) ** 2, axis)), (-1, 1), 0.51, 1, 3),
    # None: the root of n, with which the error of n rounded products usually grows; in the worst case with n.
    "prod": (lambda x, axis: np.prod(x, axis, dtype=LONG), (0.999, 1.001), 0.51, None, None),
    "logsumexp": (long_logsumexp, (-5, 5), 0.51, 1, 1),
    "max": (np.max, (-1, 1), 0, 0, 0),
    "min": (np.min, (-1, 1), 0, 0, 0),
    "argmax": (np.argmax, (-1, 1), 0, 0, 0),
    "argmin": (np.argmin, (-1, 1), 0, 0, 0),
    "all": (np.all, (0, 1), 0, 0, 0),
    "any": (np.any, (0, 0), 0, 0, 0),
}


@wide
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [10**6, 10**7])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_many_elements(name, n, dtype):
    """As one line, and as the columns of ten-element rows."""
    oracle, (lo, hi), single, *double = REDUCTIONS[name]
    x = np.random.default_rng(0).uniform(lo, hi, n).astype(dtype)
    for seen, wide in ((x, double[0]), (x.reshape(-1, 10), double[1])):
        made, want = getattr(tp, name)(seen, axis=0).numpy(), oracle(seen, 0)
        if made.dtype.kind != "f":
            np.testing.assert_array_equal(made, want)
            continue
        assert made.dtype == dtype
        many = math.sqrt(len(seen)) if wide is None else wide
        bound = single if dtype == "float32" else many
        unit = np.spacing(np.abs(want).astype(dtype)).astype(LONG)
        off = float((np.abs(made.astype(LONG) - want) / unit).max())
        assert off <= bound, f"{name} is off by {off} ulp"
