"""The laws that every row of the op table obeys. Adding a row adds its tests."""

from dataclasses import replace

import numpy as np
import pytest

from treepie.autodiff import OPS, Tensor, check_grads, ptree, value_and_grad
from treepie.autodiff.elementwise import Elementwise
from treepie.autodiff.op_inputs import operands, tensors
from treepie.kernels import threads

ROWS = list(OPS.values())
DIFFERENTIABLE = [row for row in ROWS if row.differentiable]
WITH_RULES = [row for row in DIFFERENTIABLE if row.vjp is not None]
CASES = [
    pytest.param(row, case, np.dtype(d), id=f"{row}-{k}-{d}")
    for row in ROWS
    for k, case in enumerate(row.cases)
    for d in row.dtypes
]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)
every_case = pytest.mark.parametrize(("row", "case", "dtype"), CASES)


def outputs(result):
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def wide(arrays):
    return [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]


def assert_close(row, result, want, magnitude):
    """Compare within `row.ulp` units in the last place of the magnitude."""
    want = np.asarray(want)
    assert result.shape == want.shape
    if result.dtype.kind != "f" or row.ulp == 0:
        np.testing.assert_array_equal(result, want.astype(result.dtype))
        return
    assert (np.isnan(result) == np.isnan(want)).all()
    off = np.abs(result.astype(np.float64) - want)
    assert (np.isnan(want) | (off <= row.ulp * np.finfo(result.dtype).eps * magnitude)).all()


@every_case
def test_equals_the_oracle_keeps_the_dtype_and_leaves_its_inputs(row, case, dtype):
    arrays = operands(row, case, dtype)
    before = [a.copy() for a in arrays]
    arguments = tensors(arrays)
    result = row(*arguments, **case.attributes)
    want = row.oracle(*wide(arrays), **case.attributes)
    if row.plan is not None:
        inputs, attributes = row.bind(*arguments, **case.attributes)
        specs = [_spec(t) for t in inputs]
        inferred = list(row.infer(*specs, **attributes))
        assert [(o.shape, o.dtype) for o in outputs(result)] == [(s.shape, s.dtype) for s in inferred]
    for out, expected in zip(outputs(result), outputs(want), strict=True):
        if out.dtype.kind == "f" and "dtype" not in case.attributes:
            assert out.dtype == dtype
        assert out.array.flags.c_contiguous
        if row.magnitude is not None:
            magnitude = row.magnitude(*wide(arrays), **case.attributes)
        else:
            magnitude = np.abs(expected).max() if np.size(expected) else 0.0
        assert_close(row, out.array, expected, magnitude)
    for t, a, b in zip(arguments, arrays, before, strict=True):
        np.testing.assert_array_equal(t.array, b)
        np.testing.assert_array_equal(a, b)


def _spec(t):
    from treepie.kernels.program import Spec

    return Spec(t.shape, t.dtype)


@pytest.mark.parametrize("row", [r for r in ROWS if r.wrong is not None], ids=str)
def test_a_wrong_shape_is_refused_by_name(row):
    """The message names the op, the operands and what was expected."""
    arrays = operands(row, row.wrong, row.dtypes[0])
    with pytest.raises((ValueError, TypeError)) as caught:
        row(*tensors(arrays), **row.wrong.attributes)
    text = str(caught.value)
    assert "expected" in text
    name = row.name.split("_")[0]
    assert name in text or ("random" in name and "rng" in text)
    shown = [str(a.shape) for a in arrays] + [str(v) for v in row.wrong.attributes.values()]
    assert any(s in text for s in shown), text


def check(row, case, seed=0, order=1):
    arrays = operands(row, case, np.float64, seed)
    check_grads(
        lambda *xs: list(outputs(row(*xs, **case.attributes))),
        tuple(tensors(arrays)),
        order=order,
        reference=None
        if order > 1
        else lambda *xs: [
            Tensor(np.asarray(y)) for y in outputs(row.oracle(*[x.array for x in xs], **case.attributes))
        ],
        seed=seed,
    )


GRADIENTS = [
    pytest.param(row, case, id=f"{row}-{k}") for row in DIFFERENTIABLE for k, case in enumerate(row.cases)
]


@pytest.mark.parametrize(("row", "case"), GRADIENTS)
def test_the_vjp_is_the_adjoint_of_the_oracle(row, case):
    check(row, case)


@pytest.mark.parametrize("row", [r for r in DIFFERENTIABLE if r.second_order], ids=str)
def test_the_gradient_has_the_right_gradient(row):
    check(row, row.cases[0], order=2)


@pytest.mark.parametrize("row", WITH_RULES, ids=str)
def test_the_gradient_check_can_fail(row):
    """A VJP that is wrong by a thousandth is caught, on the tape and fused."""

    def scaled(rule):
        def wrong(*args, **kwargs):
            out = rule(*args, **kwargs)
            return None if out is None else out * 1.001

        return None if rule is None else wrong

    wrong = replace(row, vjp=tuple(scaled(r) for r in row.vjp), _plans={})
    caught = 0
    for seed in range(3):
        try:
            check(wrong, wrong.cases[0], seed)
        except AssertionError:
            caught += 1
    assert caught


@pytest.mark.parametrize("row", DIFFERENTIABLE, ids=str)
def test_gradients_have_the_shapes_and_dtypes_of_the_inputs(row):
    case = row.cases[0]
    arguments = tensors(operands(row, case, np.float32))
    floats = [k for k, t in enumerate(arguments) if t.dtype.kind == "f"]

    def loss(values):
        full = list(arguments)
        for k, v in zip(floats, values, strict=True):
            full[k] = v
        result = outputs(row(*full, **case.attributes))
        return sum(
            ((y.astype("float32") * y.astype("float32")).sum() for y in result),
            Tensor(np.zeros((), "f4")),
        )

    _, grads = value_and_grad(loss)([arguments[k] for k in floats])
    for k, g in zip(floats, grads, strict=True):
        assert g.shape == arguments[k].shape
        assert g.dtype == arguments[k].dtype


@pytest.mark.parametrize("row", [r for r in ROWS if r.nondifferentiable and "float32" in r.dtypes], ids=str)
def test_a_nondifferentiable_op_raises_by_name_or_gives_a_constant(row):
    """Differentiating through it raises; integer and bool results carry no gradient at all."""
    case = row.cases[0]
    arguments = tensors(operands(row, case, np.float32))

    def loss(values):
        result = outputs(row(*values, *arguments[len(values) :], **case.attributes))[0]
        return result.astype("float32").sum()

    floats = [t for t in arguments if t.dtype.kind == "f"]
    if outputs(row(*arguments, **case.attributes))[0].dtype.kind == "f":
        with pytest.raises(TypeError, match=f"{row} is not differentiable"):
            value_and_grad(loss)(floats)
    else:
        _, grads = value_and_grad(loss)(floats)
        assert all(not g.array.any() for g in ptree.leaves(grads))


@pytest.mark.parametrize("row", [r for r in ROWS if r.large is not None], ids=str)
def test_the_bits_are_the_same_at_any_number_of_threads(row, monkeypatch):
    """With every launch forced into the parallel driver."""
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    case = row.large
    dtype = row.dtypes[0]
    arguments = tensors(operands(row, case, dtype))
    results = []
    try:
        for n in (1, 2, 3, 7):
            threads.set_num_threads(n)
            results.append([o.array.tobytes() for o in outputs(row(*arguments, **case.attributes))])
    finally:
        threads.set_num_threads("auto")
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("row", [r for r in ROWS if "float32" in r.dtypes], ids=str)
def test_nan_propagates(row):
    """NaN in every float operand gives NaN where the oracle has it, which is nearly everywhere."""
    case = row.cases[0]
    arrays = [np.full_like(a, np.nan) if a.dtype.kind == "f" else a for a in operands(row, case, np.float32)]
    result = outputs(row(*tensors(arrays), **case.attributes))
    with np.errstate(all="ignore"):
        want = outputs(row.oracle(*wide(arrays), **case.attributes))
    for out, expected in zip(result, want, strict=True):
        if out.dtype.kind == "f":
            np.testing.assert_array_equal(np.isnan(out.array), np.isnan(expected))


@pytest.mark.parametrize("row", [r for r in ROWS if "float32" in r.dtypes], ids=str)
def test_odd_layouts_give_what_contiguous_ones_do(row):
    """Transposed, reversed, strided, read-only and byte-swapped arrays; float32."""
    case = row.cases[0]
    arrays = operands(row, case, np.float32)
    want = [o.array for o in outputs(row(*tensors(arrays), **case.attributes))]
    for odd in (_fortran, _reversed, _strided, _read_only, _swapped):
        result = row(*[odd(a) for a in arrays], **case.attributes)
        for out, expected in zip(outputs(result), want, strict=True):
            np.testing.assert_array_equal(out.array, expected)


def _fortran(a):
    return np.asfortranarray(a)


def _reversed(a):
    return a[::-1].copy()[::-1] if a.ndim else a


def _strided(a):
    if not a.ndim:
        return a
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _read_only(a):
    out = a.copy()
    out.flags.writeable = False
    return out


def _swapped(a):
    return a.astype(a.dtype.newbyteorder())


@pytest.mark.parametrize(
    "row", [r for r in WITH_RULES if isinstance(r, Elementwise) and len(r.vjp) == 2], ids=str
)
def test_a_repeated_operand_gets_both_gradients(row):
    """d f(x, x) is the sum of both partial derivatives."""
    lo, hi = row.domain if isinstance(row.domain, tuple) else row.domain[1]
    x = np.random.default_rng(0).uniform(max(lo, 0.5), hi, 5)
    if row.name in {"maximum", "minimum"}:
        # Half to each at a tie, so f(x, x) = x has the derivative 1.
        _, g = value_and_grad(lambda t: row(t, t).sum())(Tensor(x))
        np.testing.assert_array_equal(g.array, 1.0)
        return
    check_grads(lambda t: row(t, t), (Tensor(x),), reference=lambda t: Tensor(row.oracle(t.array, t.array)))
