"""Edits of functions in fast accuracy."""

from .edit import Edit

EDITS = [
    Edit(
        "accuracy-programs-of-another",
        "autodiff/program/cache.py",
        "            key = (state.precision, state.accuracy, key)\n",
        "            key = (state.precision, key)\n",
        "a step in fast accuracy replays the program of the default",
        "tests/test_fast.py -k 'programs or jitted'",
    ),
    Edit(
        "accuracy-traced-models-of-another",
        "api/train/pure_step.py",
        "        key = (active.state.precision, active.state.accuracy, key)\n",
        "        key = (active.state.precision, key)\n",
        "a model that was traced in the default accuracy stays in it in a block of fast accuracy",
        "tests/test_fast.py -k programs",
    ),
    Edit(
        "accuracy-gradient-of-linear",
        "autodiff/ops/linalg.py",
        "row.at(accuracy, z).gradient(of_result, y, z)",
        "row.gradient(of_result, y, z)",
        "the gradient of a linear layer's activation is not in fast accuracy",
        "tests/test_fast.py -k linear",
    ),
    Edit(
        "fast-exp-of-nan",
        "kernels/fast.py",
        "    return p * (shifted.as_int() << 23).as_float()\n",
        "    return (p.as_int() + (shifted.as_int() - 0x4B40007F << 23)).as_float()\n",
        "exp of a NaN with other low bits is a number",
        "tests/test_fast.py -k 'special or bounds'",
    ),
    Edit(
        "fast-silu-at-infinity",
        "kernels/fast.py",
        "    x = _above(x, -89.0)  #",
        "    #",
        "silu is NaN at -inf",
        "tests/test_fast.py -k special",
    ),
    Edit(
        "fast-gelu-without-limit",
        "kernels/fast.py",
        "    a = _below(fabs(x), last)\n    r = polynomial(a, root)\n    r = r * r\n",
        "    a = fabs(x)\n    r = polynomial(a, root)\n    r = r * r\n",
        "gelu's polynomial is taken beyond its interval",
        "tests/test_fast.py -k 'special or bounds'",
    ),
    Edit(
        "fast-results-beyond-one",
        "kernels/fast.py",
        "    return _below(_above(y, -1.0), 1.0)\n",
        "    return y\n",
        "tanh and erf are larger than 1",
        "tests/test_fast.py -k range",
    ),
]
