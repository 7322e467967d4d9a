"""Writes kernels/polynomials_fast.py: minimax polynomials and quotients of the fast formulas, in mpmath.

Run `python perf/polynomials_fast.py` (10 s); see `polynomials.py` for the fits.
"""

import pathlib
from collections.abc import Callable

from mpmath import mp, mpf
from polynomials import LN2, Fit, alternation, refined, rounded, table

TARGET = pathlib.Path(__file__).parents[1] / "kernels" / "polynomials_fast.py"
SLOPE = 2 * mp.sqrt(2 / mp.pi)
CUBE = mpf("0.044715")
Function = Callable[[mpf], mpf]


def tail(x: mpf) -> mpf:
    """Return Phi(-x): gelu(x) = max(x, 0) - |x| Phi(-|x|)."""
    return mp.ncdf(-x)


def tail_slope(x: mpf) -> mpf:
    """Return the derivative of x Phi(-x)."""
    return mp.ncdf(-x) - x * mp.npdf(x)


def tail_approx(x: mpf) -> mpf:
    """Return what stands for Phi(-x) in gelu_approx."""
    return 1 / (1 + mp.exp(SLOPE * (x + CUBE * x**3)))


def tail_approx_slope(x: mpf) -> mpf:
    """Return the derivative of x tail_approx(x)."""
    y = tail_approx(x)
    return y - x * y * (1 - y) * SLOPE * (1 + 3 * CUBE * x**2)


def shown(coefficients: list[float], note: str) -> dict[str, list[str]]:
    """Return the lines of one table, from the lowest power on."""
    return {"float32": [f"(  # {note}", *(f"    {c!r}," for c in reversed(coefficients)), ")"]}


def fourth_root(
    name: str, meaning: str, function: Function, last: mpf, degree: int
) -> tuple[str, list[float]]:
    """Return the lines and coefficients of a fit to function**(1/4), minimax in that of the 4th power."""
    root = lambda x: function(x) ** mpf("0.25")
    fit = Fit(name, meaning, root, lambda x: 4 * root(x) ** 3, {}, 1)
    kept = refined(fit, mpf(0), last, degree, "float32")
    worst = largest(lambda x: function(x) - mp.polyval(kept[::-1], x) ** 4, last)
    return table(name, meaning, shown(kept, f"degree {degree}, error {note(worst)}")), kept


def cubed(name: str, meaning: str, function: Function, root: list[float], last: mpf, degree: int) -> str:
    """Return the lines of a fit to function / root**3, minimax in the error of the product with root**3."""
    cube = lambda x: mp.polyval(root[::-1], x) ** 3
    fit = Fit(name, meaning, lambda x: function(x) / cube(x), lambda x: abs(cube(x)), {}, 1)
    kept = refined(fit, mpf(0), last, degree, "float32")
    worst = largest(lambda x: function(x) - mp.polyval(kept[::-1], x) * cube(x), last)
    return table(name, meaning, shown(kept, f"degree {degree}, error {note(worst)}"))


def nearest_zero(coefficients: list[float], start: mpf) -> float:
    """Return where a polynomial is nearest to 0, at or a little after the end of its fit.

    Its 4th power is less than 1e-10 there, as the function is from there on.
    """
    points = [start + mpf(k) / 1000 for k in range(500)]
    return rounded(min(points, key=lambda x: abs(mp.polyval(coefficients[::-1], x))), "float32")


def largest(error: Function, last: mpf) -> mpf:
    """Return the largest error over [0, last]."""
    return max(abs(error(last * i / 1000)) for i in range(1001))


def note(error: mpf) -> str:
    """Return an error as a power of 2."""
    return f"2**{float(mp.log(error, 2)):.1f}"


def quotient(name: str, meaning: str, function: Function, last: mpf, above: int, below: int) -> str:
    """Return the lines of P(z) / Q(z), Q(0) = 1, minimax in the relative error on [0, last].

    Remez's exchange; the error is linear in the coefficients with Q's last values as the weight.
    """
    count, terms = 30 * (above + below + 2), above + below + 2
    grid = [last / 2 * (1 - mp.cos(mp.pi * (i + mpf(0.5)) / count)) for i in range(count)]
    values = [function(z) for z in grid]
    chosen = [round((i + 0.5) * (count - 1) / terms) for i in range(terms)]
    q = [mpf(1)]
    for _ in range(40):
        for _ in range(3):
            rows, right = [], []
            for i, g in enumerate(chosen):
                z, f = grid[g], values[g]
                weight = 1 / (f * mp.polyval(q[::-1], z))
                powers = [weight * z**k for k in range(max(above, below) + 1)]
                rows.append([*powers[: above + 1], *(-f * w for w in powers[1 : below + 1]), mpf((-1) ** i)])
                right.append(weight * f)
            *solution, level = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
            p, q = solution[: above + 1], [mpf(1), *solution[above + 1 :]]
        errors = [
            mp.polyval(p[::-1], z) / mp.polyval(q[::-1], z) / f - 1 for z, f in zip(grid, values, strict=True)
        ]
        chosen = alternation(errors, terms)
        if max(abs(e) for e in errors) < abs(level) * mpf("1.02"):
            break
    degrees = f"degrees {above} and {below}, relative error {note(max(abs(e) for e in errors))}"
    lines = [f"#: {meaning}", f"{name} = (  # {degrees}"]
    for part in (p, q):
        lines += ["    (", *(f"        {rounded(c, 'float32')!r}," for c in reversed(part)), "    ),"]
    return "\n".join([*lines, ")"])


def exp2() -> str:
    """Return the lines of 2 * 2**f for |f| <= 1/2, its constant exactly 2."""
    fit = Fit("", "", lambda f: 2 * (mp.power(2, f) - 1) / f, lambda f: f / mp.power(2, f), {})
    kept = [2.0, *refined(fit, mpf(-0.5), mpf(0.5), 4, "float32")]
    worst = largest(lambda f: mp.polyval(kept[::-1], f - 0.5) / mp.power(2, f + 0.5) - 1, mpf(1))
    return table("EXP2", "2 * 2**f for |f| <= 1/2; relative.", shown(kept, f"degree 5, error {note(worst)}"))


def main() -> None:
    """Fit everything and write the file."""
    root, kept = fourth_root(
        "GELU_ROOT", "Phi(-x)**(1/4) for 0 <= x <= 5.6; of Phi(-x).", tail, mpf("5.6"), 8
    )
    approx, kept_approx = fourth_root(
        "GELU_APPROX_ROOT",
        "The 4th root of 1 / (1 + exp(u(x))) for 0 <= x <= 5, u as in gelu_approx.",
        tail_approx,
        mpf(5),
        9,
    )
    lasts = {
        "GELU_LAST": nearest_zero(kept, mpf("5.6")),
        "GELU_APPROX_LAST": nearest_zero(kept_approx, mpf(5)),
    }
    constants = {"LOG2E": float(1 / LN2), **lasts}
    head = (
        '"""Coefficients of the fast formulas, float32. Written by perf/polynomials_fast.py.\n\n'
        'Polynomials start at the highest power.\n"""\n\n'
    )
    tables = [
        head + "\n".join(f"{name} = {number!r}" for name, number in constants.items()),
        exp2(),
        root,
        cubed("GELU_SLOPE", "(Phi(-x) - x phi(x)) / GELU_ROOT(x)**3.", tail_slope, kept, mpf("5.6"), 8),
        approx,
        cubed(
            "GELU_APPROX_SLOPE",
            "The derivative of x GELU_APPROX_ROOT(x)**4, over GELU_APPROX_ROOT(x)**3.",
            tail_approx_slope,
            kept_approx,
            mpf(5),
            9,
        ),
        quotient(
            "TANH",
            "tanh(x) / x with z = x**2 and |x| <= 9, as a quotient.",
            lambda z: mp.tanh(mp.sqrt(z)) / mp.sqrt(z),
            mpf(81),
            5,
            3,
        ),
        quotient(
            "ERF",
            "erf(x) / x with z = x**2 and |x| <= 4, as a quotient.",
            lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z),
            mpf(16),
            6,
            4,
        ),
    ]
    TARGET.write_text("\n\n".join(tables).replace("e+", "e") + "\n")


if __name__ == "__main__":
    main()
