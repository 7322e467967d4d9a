"""The largest errors of elementwise rows, for the table of ops: float32 by a sweep, float64 by mpmath."""

import numpy as np
from mpmath import mp, mpf

from treepie.autodiff import Tensor
from treepie.autodiff.op_accuracy import RANGES, USUAL, largest_error

#: Points of float64 per row: mpmath takes 0.1 ms each.
SPOTS = 2000


def _half_line(x):
    """Return sqrt(x^2 + 4), as squareplus has it."""
    return mp.sqrt(x * x + 4)


def _softplus(x):
    return mp.log1p(mp.exp(x))


#: Row -> its definition, of mpmath numbers. The other rows are a few IEEE operations.
DEFINITIONS = {
    "sqrt": mp.sqrt,
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "exp": mp.exp,
    "expm1": mp.expm1,
    "log": mp.log,
    "log1p": mp.log1p,
    "sin": mp.sin,
    "cos": mp.cos,
    "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "erf": mp.erf,
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "softplus": _softplus,
    "log_sigmoid": lambda x: -_softplus(-x),
    "gelu_approx": lambda x: x / (1 + mp.exp(-mp.sqrt(8 / mp.pi) * (x + mpf("0.044715") * x**3))),
    "mish": lambda x: x * mp.tanh(_softplus(x)),
    "squareplus": lambda x: (x + _half_line(x)) / 2 if x > 0 else 2 / (_half_line(x) - x),
    "softsign": lambda x: x / (1 + abs(x)),
    "pow": lambda a, b: a**b,
}
_POSITIVE = {"sqrt", "rsqrt", "log", "pow"}


def spots(name, count, rng):
    """Return float64 operands, one array per operand: all sizes from 2**-40 to 2**9, and the row's ranges."""
    x = np.exp2(rng.uniform(-40, 9, count // 2)) * rng.choice([-1.0, 1.0], count // 2)
    for low, high in (ranges := RANGES.get(name, USUAL)):
        x = np.append(x, rng.uniform(low, high, count // 2 // len(ranges)))
    x = np.abs(x) if name in _POSITIVE else x[x > -1] if name == "log1p" else x
    return [x, rng.uniform(-700, 700, x.size) / np.log(x)] if name == "pow" else [x]


def ulps(result, exact):
    """Return the error of a float64 result in units in the last place."""
    if exact == 0:
        return 0.0 if result == 0 else float("inf")
    return float(abs(mpf(result) - exact) / mpf(2) ** max(mp.frexp(exact)[1] - 53, -1074))


def double_error(row, count=SPOTS):
    """Return the largest error of a row in float64, or None for a row without a definition here."""
    if row.name not in DEFINITIONS:
        return None
    operands = spots(row.name, count, np.random.default_rng(0))
    results = row(*[Tensor(x) for x in operands]).array.tolist()
    worst = 0.0
    with mp.workprec(3000 if row.name == "mish" else 300):
        for result, *x in zip(results, *[x.tolist() for x in operands], strict=True):
            if abs(result) < float("inf"):
                worst = max(worst, ulps(result, DEFINITIONS[row.name](*map(mpf, x))))
    return worst


def measure(rows, count):
    """Return name -> (largest float32 error, float64's) of rows; print both, and the bounds exceeded."""
    measured, exceeded = {}, []
    for row in rows:
        error, double = largest_error(row, count), double_error(row)
        measured[row.name] = error.ulp, double
        print(f"{row.name:16s} {error.ulp:8.4f} of {row.ulp:<5g}", "" if double is None else f"{double:8.4f}")
        if error.ulp > row.ulp:
            exceeded.append(
                f"{row.name} of {', '.join(map(repr, error.operands))} is {error.result!r}, "
                f"{error.ulp:.4g} ulp from {error.exact!r}; its bound is {row.ulp:g}"
            )
    return measured, exceeded
