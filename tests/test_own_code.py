"""Kernels and formulas of one's own: nothing of them is stale, and `tp.math` is the library's."""

import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

import treepie as tp

X = np.random.default_rng(0).standard_normal((33, 7)).astype("f4")


def shifted(x):
    return x + SHIFT


SHIFT = 1.0


@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
def with_helper(rows, x, out):
    for i in rows:
        for j in range(x.shape[1]):
            out[i, j] = shifted(x[i, j])


@with_helper.defvjp
def _(g, y, x):
    return g * SHIFT


scaled = tp.elementwise(lambda x: x * SHIFT, vjp=lambda g, y, x: g * SHIFT, name="scaled")


# ---- nothing stale
def test_another_global_gives_another_kernel(monkeypatch):
    calls = [
        with_helper,
        scaled,
        tp.jit(lambda x: with_helper(x) + scaled(x), check=False),
        tp.grad(lambda x: (with_helper(x) + scaled(x)).sum()),
    ]
    x = tp.tensor(X)
    step = [f(x).numpy() for f in calls]
    np.testing.assert_array_equal(step[0], X + np.float32(1))
    monkeypatch.setitem(globals(), "SHIFT", 2.0)
    np.testing.assert_array_equal(with_helper(x).numpy(), X + np.float32(2))
    np.testing.assert_array_equal(scaled(x).numpy(), X * np.float32(2))
    np.testing.assert_array_equal(calls[3](x).numpy(), np.full_like(X, 4))


HELPERS = types.ModuleType("own_helpers")
exec("RATE = 2.0\ndef rated(x):\n    return x * RATE\n", vars(HELPERS))


def test_a_global_of_a_function_in_another_module_gives_another_kernel():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def scaling(rows, x, out):
        for i in rows:
            out[i] = HELPERS.rated(x[i])

    assert scaling(np.ones(2)).tolist() == [2, 2]
    HELPERS.RATE = 5.0
    assert scaling(np.ones(2)).tolist() == [5, 5]
    HELPERS.RATE = 2.0


TABLE = np.array([1.0, 2.0])


@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
def looked_up(rows, x, out):
    for i in rows:
        out[i] = x[i] * TABLE[i % 2]


def test_an_array_that_changes_gives_another_kernel():
    assert looked_up(np.ones(2)).tolist() == [1, 2]
    TABLE[1] = 5
    assert looked_up(np.ones(2)).tolist() == [1, 5]
    TABLE[1] = 2
    assert looked_up(np.ones(2)).tolist() == [1, 2]


def test_another_rule_replaces_the_first():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def same(rows, x, out):
        for i in rows:
            out[i] = x[i]

    same.defvjp(lambda g, y, x: g)
    assert tp.grad(lambda x: same(x).sum())(tp.ones(2)).tolist() == [1, 1]
    same.defvjp(lambda g, y, x: 3.0 * g)
    assert tp.grad(lambda x: same(x).sum())(tp.ones(2)).tolist() == [3, 3]


def test_an_edit_of_a_body_or_of_a_helper_leaves_no_stale_kernel(tmp_path):
    source = """
    import numba, numpy as np, treepie as tp
    import helpers
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def f(rows, x, out):
        for i in rows:
            out[i] = BODY
    print(f(np.full(4, 3.0)).tolist()[0])
    """
    helper = "import numba\n@numba.njit\ndef {name}(x):\n    return {value}\n{rest}"

    def run(body, value, inner="x"):
        text = textwrap.dedent(source).replace("BODY", body)
        (tmp_path / "script.py").write_text(text)
        inner = "\n@numba.njit\ndef inner(x):\n    return " + inner
        (tmp_path / "helpers.py").write_text(helper.format(name="helped", value=value, rest=inner))
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "script.py"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    call = "helpers.helped(x[i])"
    assert run("x[i] + 1", "x") == 4
    assert run("x[i] + 2", "x") == 5
    assert run(call, "x * 2") == 6
    assert run(call, "x * 3") == 9
    assert run(call, "inner(x) / 2", "x * 4") == 6
    assert run(call, "inner(x) / 2", "x * 8") == 12


# ---- tp.math
FUNCTIONS = [
    ("exp", np.exp), ("expm1", np.expm1), ("log1p", np.log1p), ("sqrt", np.sqrt), ("sin", np.sin),
    ("cos", np.cos), ("tanh", np.tanh), ("sigmoid", None), ("erf", None), ("silu", None), ("gelu", None),
    ("softplus", None), ("abs", np.abs), ("floor", np.floor), ("log", np.log),
]  # fmt: skip


@pytest.mark.parametrize(("name", "of_numpy"), FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_of_elements_have_the_bits_of_the_ops(name, of_numpy, dtype):
    function = getattr(tp.math, name)

    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def mapped(rows, x, out):
        for i in rows:
            out[i] = function(x[i])

    x = np.abs(X.ravel()).astype(dtype)
    want = function(tp.tensor(x)).numpy()
    found = mapped(x).numpy()
    assert found.dtype == want.dtype == dtype
    assert found.tobytes() == want.tobytes()
    formula = tp.elementwise(lambda x: function(x) + 0.0, name="mapped")
    assert formula(tp.tensor(x)).numpy().tobytes() == (want + want.dtype.type(0)).tobytes()
    if of_numpy is not None:
        np.testing.assert_allclose(want, of_numpy(x), rtol=1e-5)


def test_functions_of_two_numbers_and_of_integers():
    @tp.kernel(out=lambda x: tp.spec(x.shape, tp.float64))
    def mapped(rows, x, out):
        for i in rows:
            out[i] = tp.math.maximum(x[i], 2) + tp.math.pow(x[i], 0.5) + tp.math.exp(1)

    x = np.array([1.0, 4.0])
    np.testing.assert_allclose(mapped(x).numpy(), [3 + np.e, 6 + np.e])
