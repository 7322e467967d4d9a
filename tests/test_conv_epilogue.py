"""Epilogues of convolutions and batch norm: the bits of the separate calls, for every kind of operand."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.autodiff.ops import batch_normalization as batch
from treepie.kernels import conv_task

from .test_fusion import check, normal
from .test_precision import BOTH

GEOMETRY = {"dilation": (1, 1), "padding": (1, 1, 1, 1)}


def convolve(x, w, stride=1, groups=1):
    return ops.convolution(x, w, stride=(stride, stride), groups=groups, **GEOMETRY)


def spread(g, w, size, stride, groups=1):
    return ops.convolution_input(g, w, size=size, stride=(stride, stride), groups=groups, **GEOMETRY)


def title(program):
    """Return the title of the call that has the epilogue."""
    return next(call.title for call, _ in program.calls if " + " in call.title)


#: (x, weight, stride, groups): whole images, bands of a few images, groups, rows of more than a vector.
FORWARD = [
    ((3, 4, 9, 7), (8, 4, 3, 3), 1, 1),
    ((1, 2, 40, 33), (5, 2, 3, 3), 1, 1),
    ((5, 6, 8, 8), (9, 2, 3, 3), 2, 3),
    ((2, 40, 70, 70), (12, 40, 3, 3), 1, 1),
]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("x", "w", "stride", "groups"), FORWARD)
def test_each_kind_of_operand_of_a_convolution(x, w, stride, groups, dtype):
    x, w = normal(*x, dtype=dtype), normal(*w, dtype=dtype)
    shape = convolve(x, w, stride, groups).shape
    for of in (shape, shape[-1:], (*shape[:-1], 1), ()):
        program = check(
            lambda x, w, other: ops.relu(convolve(x, w, stride, groups) + other),
            *(x, w, normal(*of, dtype=dtype)),
        )
        assert title(program) == "convolution + add + relu"
    # Two results.
    program = check(lambda x, w: (lambda y: (y, ops.relu(y)))(convolve(x, w, stride, groups)), x, w)
    if program.calls[0][0].outputs[0].nbytes < 1 << 20:
        assert title(program) == "convolution + relu"


def test_a_bias_comes_first():
    program = check(
        lambda x, w, b: ops.relu(ops.convolution_bias(x, w, b, stride=(1, 1), groups=1, **GEOMETRY)),
        *(normal(2, 3, 8, 8), normal(4, 3, 3, 3), normal(4)),
    )
    assert title(program) == "convolution_bias + relu"


#: (g, weight, size of the result, stride): all phases, phases without taps, odd sizes, bands, a large stride.
BACKWARD = [
    ((3, 8, 9, 7), (8, 4, 3, 3), (9, 7), 1),
    ((3, 8, 5, 4), (8, 4, 3, 3), (10, 7), 2),
    ((1, 6, 39, 16), (6, 3, 2, 2), (77, 31), 2),
    ((2, 3, 3, 3), (3, 2, 1, 1), (5, 5), 3),
    ((1, 2, 1, 2), (2, 3, 2, 2), (39, 40), 40),
]


@pytest.mark.parametrize(("g", "w", "size", "stride"), BACKWARD)
def test_the_gradient_of_an_input_has_an_epilogue(g, w, size, stride):
    g, w = normal(*g), normal(*w)
    assert (stride > conv_task._MOST_PHASES) == (stride == 40)
    y = normal(g.shape[0], w.shape[1], *size)
    program = check(
        lambda g, w, h, y: ops.where(y <= 0, 0.0, spread(g, w, size, stride) + h), g, w, normal(*y.shape), y
    )
    assert "convolution_input + add" in title(program)


@pytest.mark.parametrize("precision", BOTH)
def test_precisions_have_epilogues(precision):
    with tp.precision(precision):
        program = check(lambda x, w: ops.relu(convolve(x, w)), normal(3, 5, 9, 8), normal(20, 5, 3, 3))
    assert title(program).endswith("+ relu")


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 17), (2, 5, 4, 9), (3, 2, 150, 130)])
def test_each_kind_of_operand_of_batch_norm(shape):
    x, w, b = normal(*shape), normal(shape[1]), normal(shape[1])
    for of in (shape, shape[-1:], (*shape[:-1], 1), ()):
        program = check(
            lambda x, w, b, other: ops.relu(batch.batch_norm(x, w, b, eps=1e-5)[0] + other),
            *(x, w, b, normal(*of)),
        )
        assert title(program) == "batch_norm + add + relu"
    program = check(
        lambda x, w, b: (lambda y, m, v: (ops.relu(y), m, v))(*batch.batch_norm(x, w, b, eps=1e-5)), x, w, b
    )
    assert title(program) == "batch_norm + relu"


@pytest.mark.parametrize(
    "shape", [(40, 33), (9, 3, 127), (2, 5, 129), (7, 4, 64), (3, 2, 20000), (300, 3, 7)]
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sums_over_channels_see_each_element_once(shape, dtype):
    """Of small integers sums are exact: those of the moments, and of the gradients."""
    rng = np.random.default_rng(1)
    x, g = (rng.integers(-4, 5, shape).astype(dtype) for _ in range(2))
    axes = (0, *range(2, x.ndim))
    sums = batch.channel_moments(x, np.zeros(shape[1]), tp.float64).numpy()
    np.testing.assert_array_equal(sums, [x.sum(axes, "f8"), np.square(x).sum(axes, dtype="f8")])
    sums = batch.channel_products(g, x, np.ones(shape[1]), tp.float64).numpy()
    np.testing.assert_array_equal(sums, [g.sum(axes, "f8"), (g * (x - 1)).sum(axes, dtype="f8")])
    db = batch.batch_norm_backward(g, x, np.ones(shape[1], dtype), np.zeros(shape[1], dtype), eps=1e-5)[2]
    np.testing.assert_array_equal(db, g.sum(axes, "f8"))
