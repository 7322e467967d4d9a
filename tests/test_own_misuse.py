"""What the misuse of kernels and formulas of one's own is told, with the user's function and line."""

import re
from pathlib import Path

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff.own import Kernel
from treepie.kernels.own_code import KernelError

from .test_own_kernels import weighted_row_sums

THIS = Path(__file__).name
W = np.random.default_rng(1).standard_normal(7).astype("f4")


def line_of(function):
    return function.__code__.co_firstlineno


def no_rule():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def unruled(rows, x, out):
        for i in rows:
            out[i] = x[i]

    tp.grad(lambda x: unruled(x).sum())(tp.ones(3))


def wrong_number():
    @tp.kernel(out=lambda x, y: tp.spec(x.shape, x.dtype))
    def added(rows, x, y, out):
        for i in rows:
            out[i] = x[i] + y[i]

    added.defvjp(lambda g, z, x, y: g)
    tp.grad(lambda x: added(x, x).sum())(tp.ones(3))


def object_argument():
    weighted_row_sums(object(), W)


def raises():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def raising(rows, x, out):
        for i in rows:
            if x[i] < 0:
                raise KeyError("negative")
            out[i] = x[i]

    raising(W)


def large_global():
    table = np.zeros(10000)

    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def looking(rows, x, out):
        for i in rows:
            out[i] = table[i]

    looking(W)


def writes_to_an_input():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def writing(rows, x, out):
        for i in rows:
            x[i] = 0.0

    writing(W)


def allocates():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def allocating(rows, x, out):
        buffer = np.zeros(x.size)
        for i in rows:
            buffer[i] = x[i]
            out[i] = buffer[i]

    allocating(W)


def not_compilable():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def uncompilable(rows, x, out):
        for i in rows:
            out[i] = x[i].nonsense

    uncompilable(W)


def no_spec():
    @tp.kernel(out=lambda x: x.shape)
    def unspecified(rows, x, out):
        for i in rows:
            out[i] = x[i]

    unspecified(W)


def too_few_outputs():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def two_outputs(rows, x, out, other):
        for i in rows:
            out[i] = other[i] = x[i]

    two_outputs(W)


def other_inputs():
    @tp.kernel(out=lambda x, weight: tp.spec(x.shape, x.dtype))
    def renamed(rows, x, w, out):
        out[0] = 0


def branches():
    tp.elementwise(lambda x: x if x > 0 else 0.0 * x, name="branching")


def numpy_in_a_formula():
    tp.elementwise(lambda x: np.exp(x), name="of_numpy")


def calls_itself():
    def deep(x):
        return deep(x)

    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def recursive(rows, x, out):
        for i in rows:
            out[i] = deep(x[i])

    recursive(W)


def number_of_a_program():
    @tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype))
    def scaling(rows, x, out, *, factor):
        for i in rows:
            out[i] = factor * x[i]

    tp.jit(lambda x, factor: scaling(x, factor=factor))(W, 2.0)


MISUSE = [
    (number_of_a_program, TypeError, "kernel scaling .*: factor is an argument of a jitted function", 2),
    (no_rule, TypeError, "kernel unruled .* has no gradient rule: give it one with @unruled.defvjp", 2),
    (wrong_number, TypeError, "returned 1 gradients, expected 2, one for each argument of kernel added", 2),
    (object_argument, TypeError, "kernel weighted_row_sums .*: x is of type object, expected a tensor", None),
    (raises, RuntimeError, r"^KeyError: raising: 'negative' \(.*, line {5}\)", None),
    (large_global, TypeError, "kernel looking .* reads the array table, of 80000 bytes", 4),
    (writes_to_an_input, KernelError, "kernel writing .* line {4}", 2),
    (allocates, KernelError, "kernel allocating .* allocates memory", 2),
    (not_compilable, KernelError, "kernel uncompilable .* line {4}", 2),
    (no_spec, TypeError, r"kernel unspecified .*: out returned \(7,\), expected tp.spec", 2),
    (too_few_outputs, TypeError, "kernel two_outputs .* 1 inputs, 1 outputs and 0 of scratch", 2),
    (other_inputs, TypeError, r"kernel renamed .*: out takes \(x, weight\)", 2),
    (branches, KernelError, "elementwise branching .* has no branches", None),
    (numpy_in_a_formula, KernelError, "elementwise of_numpy .* tp.math", None),
    (calls_itself, KernelError, "kernel recursive .* is not what Numba compiles", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("misuse", "error", "text", "line"), MISUSE, ids=lambda x: getattr(x, "__name__", "")
)
def test_misuse_is_told_with_the_line(misuse, error, text, line):
    """Lines count from that of the misuse's `def`: in the texts from 0, in `line` from 1."""
    first = line_of(misuse)
    text = re.sub(r"\{(\d+)\}", lambda m: str(first + int(m[1])), text)
    with pytest.raises(error, match=text) as caught:
        misuse()
    assert THIS in str(caught.value) or misuse is object_argument
    if line is not None:
        assert f"line {first + line - 1}" in str(caught.value)


def broken(body, **options):
    options = {"out": lambda x: tp.spec(x.shape, x.dtype)} | options
    return tp.kernel(**options)(body)


def outside(rows, x, out):
    for i in rows:
        out[i] = x[i + 1]


def unwritten(rows, x, out):
    for i in rows:
        if i > 0:
            out[i] = x[i]


def shared_row(rows, x, out):
    for i in rows:
        out[i] = x[i] + out[i - 1]


def blind_to_nan(rows, x, out):
    for i in rows:
        out[i] = 1.0 if x[i] > 0 else 0.0


def inner_write(rows, x, out):
    for i in rows:
        x[i] = out[i]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (outside, r"line {2}, out\[i\] = x\[i \+ 1\]: an index is out of bounds"),
        (unwritten, "an element of an output is not written"),
        (shared_row, "another order|not written|differ"),
        (blind_to_nan, "NaN in argument 0 gives no NaN"),
        (inner_write, "line {2}, x.i. = out.i.: writes to an input"),
    ],
)
def test_check_kernel_finds_what_is_broken(body, text, capsys):
    text = text.replace("{2}", str(line_of(body) + 2))
    with pytest.raises(AssertionError, match=text):
        tp.check_kernel(broken(body), tp.zeros(9))
    assert f"check_kernel: {body.__name__}" in capsys.readouterr().out


def beside(rows, x, out):
    for i in rows:
        out[i] = x[i]
        if i == x.size - 1 and x.size > 1 and rows.stop == x.size:
            out[i + 1] = 1.0


def test_check_kernel_sees_writes_beside_an_output(monkeypatch):
    """The bands see it too, where Python would not: an index computed in another way, say."""
    kernel = broken(beside)
    monkeypatch.setattr(kernel, "run_in_python", lambda tensors, statics: [t.array for t in tensors])
    with pytest.raises(AssertionError, match="the kernel writes outside of an output or of scratch"):
        tp.check_kernel(kernel, tp.zeros(8))


@pytest.mark.parametrize("wrong", [lambda g: g.sum(), lambda g: g.astype(tp.float64)])
def test_a_gradient_of_another_shape_or_dtype_is_an_error(wrong):
    def same(rows, x, out):
        for i in rows:
            out[i] = x[i]

    kernel = broken(same)
    kernel.defvjp(lambda g, y, x: wrong(g))
    with pytest.raises(ValueError, match=r"returned a gradient of shape .* for argument 0, expected \(3,\)"):
        tp.grad(lambda x: kernel(x).sum())(tp.ones(3))


def test_check_kernel_finds_a_wrong_rule():
    def double(rows, x, out):
        for i in rows:
            out[i] = 2.0 * x[i]

    kernel = broken(double)
    kernel.defvjp(lambda g, y, x: g)
    with pytest.raises(AssertionError, match=r"gradient: .* by central differences"):
        tp.check_kernel(kernel, tp.zeros(9))
    kernel.defvjp(lambda g, y, x: 2.0 * g * g)
    with pytest.raises(AssertionError, match="gradient is linear"):
        tp.check_kernel(kernel, tp.zeros(9))


def test_a_kernel_is_shown_with_its_place():
    assert (
        repr(weighted_row_sums)
        == f"kernel weighted_row_sums (test_own_kernels.py, line {line_of(weighted_row_sums.function)})"
    )
    assert isinstance(weighted_row_sums, Kernel)
