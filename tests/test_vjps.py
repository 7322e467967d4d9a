"""Gradients at the borders of a function's domain, where a comparison with differences does not go."""

import numpy as np

import treepie as tp


def gradients(f, *operands):
    """Return the gradients of the sum of f's elements, in float64."""
    operands = [tp.tensor(np.asarray(x, np.float64)) for x in operands]
    return [g.tolist() for g in tp.grad(lambda xs: f(*xs).sum())(operands)]


def test_the_gradient_of_a_power_at_zero():
    """Of the base b * a**(b - 1); of the exponent 0, the limit of y log(a)."""
    of_base, of_exponent = gradients(tp.pow, [0.0, 0.0, 0.0, 2.0], [1.0, 2.0, 3.0, 2.0])
    assert of_base == [1.0, 0.0, 0.0, 4.0]
    np.testing.assert_allclose(of_exponent, [0.0, 0.0, 0.0, 4 * np.log(2)])


def test_the_gradient_of_a_power_of_a_negative_base():
    of_base, of_exponent = gradients(tp.pow, [-2.0, -3.0], [2.0, 3.0])
    assert of_base == [-4.0, 27.0]
    assert np.isnan(of_exponent).all()  # log(a) is not real


def test_derivatives_at_kinks():
    """The derivative of abs at 0 is 0; an element at a bound of clip passes its gradient."""
    assert gradients(tp.abs, [-1.0, 0.0, 2.0]) == [[-1.0, 0.0, 1.0]]
    of_x = gradients(lambda x: tp.clip(x, -1.0, 1.0), [-2.0, -1.0, 0.0, 1.0, 2.0])
    assert of_x == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_elements_that_tie_share_their_gradient():
    x = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
    want = [[0.0, 0.5, 0.5], [1 / 3] * 3]
    np.testing.assert_allclose(gradients(lambda x: tp.max(x, 1), x)[0], want)
    np.testing.assert_allclose(gradients(lambda x: tp.min(-x, 1), x)[0], np.negative(want))


def test_norms_and_deviations_have_a_gradient_at_zero():
    zeros = [[0.0, 0.0], [3.0, 4.0]]
    np.testing.assert_allclose(gradients(lambda x: tp.norm(x, 1), zeros)[0], [[0.0, 0.0], [0.6, 0.8]])
    assert gradients(tp.std, [2.0, 2.0, 2.0]) == [[0.0, 0.0, 0.0]]
    assert gradients(tp.optim.global_norm, [0.0, 0.0]) == [[0.0, 0.0]]


def test_a_gradient_has_the_dtype_of_what_was_converted():
    g = tp.grad(lambda x: (tp.astype(x, tp.float64) * 2.0).sum())(tp.ones(3))
    assert g.dtype == tp.float32
