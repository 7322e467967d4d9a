"""Writes kernels/polynomials.py: minimax polynomials of the formulas, by Remez exchange in mpmath.

Run `python perf/polynomials.py` (20 s). Each fit states what it approximates, where, and the
weight that turns its error into the relative error of the function that uses it.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from mpmath import mp, mpf

mp.dps = 60
TARGET = pathlib.Path(__file__).parents[1] / "kernels" / "polynomials.py"
Function = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Fit:
    """One table: coefficients of `function`, minimax in `weight * error`."""

    name: str
    meaning: str
    function: Function
    weight: Function
    domains: dict[str, tuple[mpf, mpf, int]]  # dtype of the coefficients -> low, high, degree
    refits: int = 0  # coefficients after whose rounding the rest is fitted again


def remez(fit: Fit, low: mpf, high: mpf, degree: int) -> list[mpf]:
    """Return the minimax coefficients, lowest power first (Remez 1934, all extrema exchanged)."""
    count = 40 * (degree + 2)
    half, middle = (high - low) / 2, (high + low) / 2
    # The half step keeps the points off the removable singularity at 0 of most functions here.
    grid = [middle - half * mp.cos(mp.pi * (i + mpf(0.5)) / count) for i in range(count)]
    values, weights = [fit.function(x) for x in grid], [abs(fit.weight(x)) for x in grid]
    chosen = [round((i + 0.5) * (count - 1) / (degree + 2)) for i in range(degree + 2)]
    for _ in range(40):
        rows = [
            [weights[g] * grid[g] ** k for k in range(degree + 1)] + [mpf((-1) ** i)]
            for i, g in enumerate(chosen)
        ]
        right = mp.matrix([weights[g] * values[g] for g in chosen])
        *coefficients, level = list(mp.lu_solve(mp.matrix(rows), right))
        errors = [
            w * (v - mp.polyval(coefficients[::-1], x)) for x, v, w in zip(grid, values, weights, strict=True)
        ]
        chosen = alternation(errors, degree + 2)
        if max(abs(e) for e in errors) < abs(level) * mpf("1.01"):
            break
    return coefficients


def alternation(errors: list[mpf], count: int) -> list[int]:
    """Return `count` places of largest error with alternating signs."""
    places: list[int] = []
    for i, error in enumerate(errors):
        if places and (error > 0) == (errors[places[-1]] > 0):
            if abs(error) > abs(errors[places[-1]]):
                places[-1] = i
        else:
            places.append(i)
    while len(places) > count:
        places.pop(0 if abs(errors[places[0]]) < abs(errors[places[-1]]) else -1)
    if len(places) < count:
        raise ArithmeticError(f"{len(places)} alternations of {count}: raise mp.dps")
    return places


def rounded(number: mpf, dtype: str) -> float:
    """Round a number to a dtype, once."""
    with mp.workprec(24 if dtype == "float32" else 53):
        return float(+number)


def remainder(fit: Fit, first: float) -> Fit:
    """Return the fit of what is left when the constant term is `first`, divided by x."""
    return replace(
        fit,
        function=lambda x: (fit.function(x) - first) / x,
        weight=lambda x: fit.weight(x) * x,
    )


def refined(fit: Fit, low: mpf, high: mpf, degree: int, dtype: str) -> list[float]:
    """Return rounded coefficients, lowest power first, refitting the rest after rounding one.

    The refit makes up for the rounding, of up to 2**-25 of a float32, away from 0. After two the
    errors of rounding are below the fit's. Where 0 is well inside, what is left has a pole there.
    """
    kept: list[float] = []
    for k in range(fit.refits):
        kept.append(rounded(remez(fit, low, high, degree - k)[0], dtype))
        fit = remainder(fit, kept[-1])
    rest = remez(fit, low, high, degree - len(kept))
    return kept + [rounded(c, dtype) for c in rest]


def write_fit(fit: Fit) -> str:
    """Return the lines of one table."""
    rows = {}
    for dtype, (low, high, degree) in fit.domains.items():
        kept = refined(fit, low, high, degree, dtype)
        points = [low + (high - low) * (i + mpf(0.5)) / 1000 for i in range(1000)]
        worst = max(abs(fit.weight(x) * (fit.function(x) - mp.polyval(kept[::-1], x))) for x in points)
        head = f"(  # degree {degree}, error 2**{float(mp.log(worst, 2)):.1f}"
        rows[dtype] = [head, *(f"    {c!r}," for c in reversed(kept)), ")"]
    return table(fit.name, fit.meaning, rows)


def table(name: str, meaning: str, rows: dict[str, list[str]]) -> str:
    """Return the lines of a table by dtype; one of a single dtype is not indexed."""
    if len(rows) == 1:
        (only,) = rows.values()
        return "\n".join([f"#: {meaning}", f"{name} = {only[0]}", *only[1:]])
    lines = [f"#: {meaning}", f"{name} = {{"]
    for dtype, row in rows.items():
        text = "\n    ".join(row)
        lines.append(f'    "{dtype}": {text},')
    return "\n".join([*lines, "}"])


def parts(name: str, meaning: str, number: mpf, count: int, bits: dict[str, int]) -> str:
    """Return the lines of a constant split into parts of `bits` each, the last one rounded."""
    rows = {}
    for dtype, width in bits.items():
        left, out = number, []
        for k in range(count):
            with mp.workprec(width if k < count - 1 else BOTH[dtype]):
                piece = +left
            out.append(float(piece))
            left -= piece
        rows[dtype] = [f"({', '.join(map(repr, out))})"]
    return table(name, meaning, rows)


def quadrants() -> str:
    """Return the lines of 2/pi in pieces of 29 bits, each with what follows rounded."""
    left = 2 / mp.pi
    rows: list[tuple[float, ...]] = []
    pieces: list[float] = []
    for k in range(5):
        piece = mp.floor(left * 2 ** (29 * (k + 1))) / mpf(2) ** (29 * (k + 1))
        left -= piece
        pieces.append(float(piece))
        if k:
            rows.append((pieces[k - 1], pieces[k], rounded(left, "float64")))
    lines = ["#: 2/pi after its first 0, 29, 58 and 87 bits: two pieces of 29 bits, and the rest."]
    lines += ["QUADRANTS = (", *(f"    {row}," for row in rows), ")"]
    return "\n".join(lines)


def double_quadrants() -> str:
    """Return the lines of 2/pi after its first 16 k bits, as sums of three."""
    lines = ["#: 2**200 times 2/pi after its first 16 k bits, as a sum.", "QUADRANTS_DOUBLE = ("]
    with mp.workprec(1300):
        for k in range(61):
            left, row = 2 / mp.pi, []
            left -= mp.floor(left * 2 ** (16 * k)) / mpf(2) ** (16 * k)
            left *= mpf(2) ** 200
            for _ in range(3):
                row.append(rounded(left, "float64"))
                left -= row[-1]
            lines.append(f"    {tuple(row)},")
    return "\n".join([*lines, ")"])


BOTH = {"float32": 24, "float64": 53}
ONE = mpf(1)
LN2 = mp.log(2)
ROOT = mp.sqrt(2)
QUARTER = mp.pi / 4 * mpf("1.01")  # a little more: the quadrant comes from a rounded product
ERF_SLOPE = 2 / mp.sqrt(mp.pi)
GELU_SLOPE = 2 * mp.sqrt(2 / mp.pi)
MILLS_SHIFT = mpf(4)  # near it, gelu's polynomial needs the least degree


def erf_exponent(x: mpf) -> mpf:
    """Return (-log(erfc(x)) / x - 2 / sqrt(pi)) / x."""
    return (-mp.log(mp.erfc(x)) / x - ERF_SLOPE) / x


def mills_argument(x: int) -> mpf:
    """Return t for x."""
    return (x - MILLS_SHIFT) / (x + MILLS_SHIFT)


def mills(t: mpf) -> mpf:
    """Return exp(x*x/2) * Phi(-x) * (x + shift) with x = shift * (1 + t) / (1 - t)."""
    x = MILLS_SHIFT * (1 + t) / (1 - t)
    return mp.exp(x * x / 2) * mp.erfc(x / ROOT) / 2 * (x + MILLS_SHIFT)


def phi(z: mpf) -> mpf:
    """Return (Phi(x) - 1/2) / x with z = x*x."""
    return mp.erf(mp.sqrt(z / 2)) / 2 / mp.sqrt(z)


def sinc(z: mpf, angle: mpf = ONE) -> mpf:
    """Return sin(angle * x) / x with z = x*x."""
    return mp.sin(angle * mp.sqrt(z)) / mp.sqrt(z)


def cosine(z: mpf, angle: mpf = ONE) -> mpf:
    """Return cos(angle * x) with z = x*x."""
    return mp.cos(angle * mp.sqrt(z))


def same(low: mpf, high: mpf, single: int, double: int) -> dict[str, tuple[mpf, mpf, int]]:
    """Return the domains of a fit over one interval, with the degrees of both dtypes."""
    return {"float32": (low, high, single), "float64": (low, high, double)}


FITS = [
    Fit(
        "EXPM1",
        "(exp(r) - 1 - r) / r**2 for |r| <= log(2)/2; the error is relative to exp(r) - 1.",
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / mp.expm1(r),
        same(-LN2 / 2 * mpf("1.001"), LN2 / 2 * mpf("1.001"), 4, 9),
    ),
    Fit(
        "LOG1P",
        "(log(1+f) - f + f**2/2) / f**3 for 1+f in [sqrt(1/2), sqrt(2)]; relative to the log.",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log1p(f),
        same(1 / ROOT - 1, ROOT - 1, 7, 18),
    ),
    Fit(
        "TANH",
        "(tanh(x)/x - 1) / z with z = x**2 and |x| < 0.55; relative to tanh.",
        lambda z: (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z * mp.sqrt(z) / mp.tanh(mp.sqrt(z)),
        same(mpf(0), mpf("0.55") ** 2, 4, 10),
        2,
    ),
    Fit(
        "ERF",
        "(-log(erfc(x)) / x - 2 / sqrt(pi)) / x for 0 <= x, up to where erf(x) is 1; relative to erf.",
        erf_exponent,
        lambda x: x**2 * mp.erfc(x) / mp.erf(x),
        {"float32": (mpf(0), mpf(4), 7), "float64": (mpf(0), mpf(6), 22)},
        2,
    ),
    Fit(
        "MILLS",
        "exp(x*x/2) * Phi(-x) * (x + 4) for x >= 1, a function of t = (x - 4) / (x + 4); relative.",
        mills,
        lambda t: 1 / mills(t),
        {
            "float32": (mills_argument(1), mills_argument(15), 8),
            "float64": (mills_argument(1), mills_argument(39), 19),
        },
        2,
    ),
    Fit(
        "PHI",
        "(Phi(x) - 1/2) / x with z = x**2 and |x| <= 1; relative to Phi(-1) and more.",
        phi,
        lambda z: mp.sqrt(z) / mp.ncdf(-mp.sqrt(z)),
        same(mpf(0), mpf(1), 5, 11),
        2,
    ),
    Fit(
        "SIN",
        "(sin(x)/x - 1) / z with z = x**2 and |x| <= pi/4; relative to sin.",
        lambda z: (sinc(z) - 1) / z,
        lambda z: z / sinc(z),
        same(mpf(0), QUARTER**2, 2, 5),
        2,
    ),
    Fit(
        "COS",
        "(cos(x) - 1 + z/2) / z**2 with z = x**2 and |x| <= pi/4; relative to cos.",
        lambda z: (cosine(z) - 1 + z / 2) / z**2,
        lambda z: z**2 / cosine(z),
        same(mpf(0), QUARTER**2, 2, 5),
        2,
    ),
    Fit(
        "SIN_EIGHTHS",
        "(sin(pi/4 x)/x - pi/4) / z with z = x**2 and |x| <= 1; relative to the sine.",
        lambda z: (sinc(z, mp.pi / 4) - mp.pi / 4) / z,
        lambda z: z / sinc(z, mp.pi / 4),
        same(mpf(0), mpf(1), 2, 6),
        2,
    ),
    Fit(
        "COS_EIGHTHS",
        "(cos(pi/4 x) - 1) / z with z = x**2 and |x| <= 1; relative to the cosine.",
        lambda z: (cosine(z, mp.pi / 4) - 1) / z,
        lambda z: z / cosine(z, mp.pi / 4),
        same(mpf(0), mpf(1), 3, 7),
        2,
    ),
    Fit(
        "ATANH",
        "(log((1+s)/(1-s)) / s - 2 - 2 z / 3) / z**2 with z = s**2 and |s| <= 0.1716; relative.",
        lambda z: (2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 2 - 2 * z / 3) / z**2,
        lambda z: z**2 / 2,
        {"float64": (mpf(0), (ROOT - 1) ** 4, 6)},
        2,
    ),
    Fit(
        "EXPM1_NARROW",
        "EXPM1 for a float32 result in float64 arithmetic.",
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        {"float64": (-LN2 / 2 * mpf("1.001"), LN2 / 2 * mpf("1.001"), 4)},
    ),
    Fit(
        "LOG1P_NARROW",
        "LOG1P for a float32 power in float64 arithmetic: exp magnifies the error by up to 2**7.",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log1p(f),
        {"float64": (1 / ROOT - 1, ROOT - 1, 9)},
    ),
]


def main() -> None:
    """Fit everything and write the file."""
    head = (
        '"""Coefficients and constants of the formulas. Written by perf/polynomials.py.\n\n'
        "Tables go by the dtype of the arithmetic; polynomials start at the highest power.\n"
        '"""\n'
    )
    constants = [
        f"LOG2E = {float(1 / LN2)!r}\nROOT_HALF = {float(1 / ROOT)!r}\n"
        f"TWO_OVER_PI = {float(2 / mp.pi)!r}\nMILLS_SHIFT = {float(MILLS_SHIFT)!r}",
        parts("LN2", "log(2), as a sum.", LN2, 2, BOTH),
        parts("LN2_SHORT", "log(2), the first part of 40 bits.", LN2, 2, {"float64": 40}),
        parts("HALF_PI", "pi/2, as a sum.", mp.pi / 2, 3, {"float64": 53}),
        parts("EIGHTH", "An eighth of a turn, as a sum.", mp.pi / 4, 2, {"float64": 53}),
        parts("ERF_SLOPE", "2 / sqrt(pi), as a sum.", ERF_SLOPE, 2, {"float64": 53}),
        parts("GELU_APPROX", "2 sqrt(2/pi), as a sum.", GELU_SLOPE, 2, {"float64": 53}),
        parts(
            "GELU_APPROX_CUBE",
            "0.044715 times that, as a sum.",
            GELU_SLOPE * mpf("0.044715"),
            2,
            {"float64": 53},
        ),
        parts("TWO_THIRDS", "2/3, as a sum.", mpf(2) / 3, 2, {"float64": 53}),
        quadrants(),
        double_quadrants(),
    ]
    text = "\n\n".join([head.rstrip(), *constants, *map(write_fit, FITS)]) + "\n"
    TARGET.write_text(text.replace("e+", "e"))  # as ruff formats numbers


if __name__ == "__main__":
    main()
