"""The tape: closures, reuse, nesting, constants, and its errors."""

import gc
import weakref

import numpy as np
import pytest

import treepie as tp


def scalar(x):
    return tp.tensor(x, dtype=tp.float64)


def test_value_and_grad_over_a_tree():
    params = {"layers": [{"w": tp.tensor([[1.0, 2.0]])}, (tp.tensor([3.0]),)]}
    loss, grads = tp.value_and_grad(lambda p: (p["layers"][0]["w"] * p["layers"][1][0]).sum())(params)
    assert loss.item() == 9.0
    assert grads["layers"][0]["w"].tolist() == [[3.0, 3.0]]
    assert grads["layers"][1][0].tolist() == [3.0]


def test_a_reused_operand_sums_its_gradients():
    f = lambda x: (x * x * x + x).sum()
    assert tp.grad(f)(tp.tensor([2.0])).tolist() == [13.0]


def test_closures_are_constants_and_unused_leaves_get_zeros():
    c = tp.tensor([5.0])
    grads = tp.grad(lambda p: (p["a"] * c).sum())({"a": tp.tensor([1.0]), "b": tp.tensor([[1.0, 2.0]])})
    assert grads["a"].tolist() == [5.0]
    assert grads["b"].tolist() == [[0.0, 0.0]]


def test_control_flow_on_values():
    f = lambda x: x * x if x.item() > 0 else -x
    assert tp.grad(f)(tp.tensor(3.0)).item() == 6.0
    assert tp.grad(f)(tp.tensor(-3.0)).item() == -1.0


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_gradients_of_gradients(order):
    """x^5 and tanh, to the fourth derivative."""
    f, g = lambda x: x**5, tp.tanh
    for _ in range(order):
        f, g = tp.grad(f), tp.grad(g)
    x, t = 0.7, np.tanh(0.7)
    d = 1 - t * t
    fifth = [5 * x**4, 20 * x**3, 60 * x**2, 120 * x]
    hyperbolic = [d, -2 * t * d, d * (6 * t * t - 2), d * (16 * t - 24 * t**3)]
    assert f(scalar(x)).item() == pytest.approx(fifth[order - 1], rel=1e-12)
    assert g(scalar(x)).item() == pytest.approx(hyperbolic[order - 1], rel=1e-12)


def test_an_inner_gradient_sees_the_outer_variable_through_a_closure():
    """d/dx [d/dy (x y^3) at y = 2] = 3 y^2."""
    outer = lambda x: tp.grad(lambda y: x * y * y * y)(scalar(2.0))
    assert tp.grad(outer)(scalar(5.0)).item() == 12.0


def test_an_inner_gradient_at_the_outer_variable():
    """f(x) = d/dy (x y^3) at y = x is 3 x^3."""
    outer = lambda x: tp.grad(lambda y: x * y * y * y)(x)
    assert tp.grad(outer)(scalar(2.0)).item() == 36.0


def test_perturbations_are_not_confused():
    """d/dx (x * d/dy (x + y)) = 1, not 2."""
    assert tp.grad(lambda x: x * tp.grad(lambda y: x + y)(scalar(1.0)))(scalar(1.0)).item() == 1.0


def test_a_tensor_left_over_from_a_gradient_is_a_constant():
    kept = []

    def f(x):
        kept.append(x * x)
        return kept[0].sum()

    tp.grad(f)(tp.tensor([3.0]))
    assert tp.grad(lambda y: (y * kept[0]).sum())(tp.tensor([1.0])).tolist() == [9.0]


def test_an_inner_loss_stays_differentiable():
    def f(x):
        loss, grads = tp.value_and_grad(lambda y: (y * y).sum())(x * 3.0)
        return loss + grads.sum()

    assert tp.grad(f)(tp.tensor([2.0])).tolist() == [2 * 9 * 2.0 + 6.0]


def test_stop_gradient():
    assert tp.grad(lambda x: (x * tp.stop_gradient(x)).sum())(tp.tensor([3.0])).tolist() == [3.0]


def test_value_and_grad_aux():
    loss, grads, aux = tp.value_and_grad_aux(lambda x: ((x * x).sum(), {"double": x * 2.0, "n": 1}))(
        tp.tensor([3.0])
    )
    assert (loss.item(), grads.tolist(), aux["double"].tolist(), aux["n"]) == (9.0, [6.0], [6.0], 1)


def test_vjp_gives_the_pullback_of_trees():
    y, pullback = tp.vjp(
        lambda a, b: {"p": a * b, "s": a.sum()}, tp.tensor([1.0, 2.0]), tp.tensor([3.0, 4.0])
    )
    assert y["p"].tolist() == [3.0, 8.0]
    a, b = pullback({"p": tp.tensor([1.0, 10.0]), "s": tp.tensor(100.0)})
    assert a.tolist() == [103.0, 140.0]
    assert b.tolist() == [1.0, 20.0]
    with pytest.raises(ValueError, match=r"pullback: a cotangent has shape \(\).*expected \(2,\)"):
        pullback({"p": tp.tensor(1.0), "s": tp.tensor(1.0)})


def test_integers_and_bools_carry_no_gradient():
    f = lambda x: (x * x.argmax().astype(tp.float32) + (x > 1.0).astype(tp.float32)).sum()
    assert tp.grad(f)(tp.tensor([1.0, 2.0])).tolist() == [1.0, 1.0]


def test_memory_of_a_step_is_freed_without_the_garbage_collector():
    """A cycle between tensors and nodes would hold every activation until a collection."""
    references = []

    def f(x):
        y = tp.tanh(x)
        references.append(weakref.ref(y))
        return (y * y).sum()

    gc.disable()
    try:
        tp.grad(f)(tp.tensor([1.0]))
        assert references[0]() is None
    finally:
        gc.enable()


def test_ties():
    """max and min share a gradient among ties; relu, abs and sign have 0 at 0."""
    g = tp.grad(lambda x: x.max())(tp.tensor([2.0, 1.0, 2.0]))
    assert g.tolist() == [0.5, 0.0, 0.5]
    zero = tp.tensor([0.0])
    for f in (tp.fn.relu, tp.abs, tp.sign):
        assert tp.grad(lambda x, f=f: f(x).sum())(zero).tolist() == [0.0]
    a, b = tp.grad(lambda p: tp.maximum(p[0], p[1]).sum())([zero, zero])
    assert (a.item(), b.item()) == (0.5, 0.5)


ERRORS = [
    (
        lambda: tp.grad(lambda x: x)(tp.tensor([1.0])),
        ValueError,
        r"tensor of shape \(1,\), expected a scalar",
    ),
    (
        lambda: tp.grad(lambda x: 1.0)(tp.tensor([1.0])),
        TypeError,
        "returned a float, expected a scalar tensor",
    ),
    (
        lambda: tp.grad(lambda x: x.argmax())(tp.tensor([1.0])),
        TypeError,
        "returned int64, expected float32",
    ),
    (
        lambda: tp.grad(lambda p: p["w"].sum())({"w": tp.tensor([1.0]), "n": [tp.tensor([1])]}),
        TypeError,
        r"grad: the leaf 'n\.0' has dtype int32, expected float32 or float64",
    ),
    (
        lambda: tp.grad(lambda p: p["w"].sum())({"w": tp.tensor([1.0]), "v": scalar(1.0)}),
        TypeError,
        "the leaf 'v' is float64 but 'w' is float32, expected one float dtype",
    ),
    (
        lambda: tp.value_and_grad_aux(lambda x: x.sum())(tp.tensor([1.0])),
        TypeError,
        r"value_and_grad_aux: the function returned Tensor, expected \(loss, aux\)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS)
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_mixed_float_dtypes_on_request():
    params = {"w": tp.tensor([2.0]), "v": scalar(3.0)}
    _, grads = tp.value_and_grad(lambda p: (p["w"] * p["v"]).sum(), mixed=True)(params)
    assert (grads["w"].dtype, grads["v"].dtype) == (tp.float32, tp.float64)
    assert (grads["w"].item(), grads["v"].item()) == (3.0, 2.0)


def test_check_grads_passes_and_fails():
    good = lambda x: tp.tanh(x) * x
    tp.check_grads(good, (np.array([0.3, -0.7]),), order=2)

    def bad(x):
        return tp.stop_gradient(tp.tanh(x)) * x

    with pytest.raises(AssertionError, match="check_grads: the derivative of f along a random"):
        tp.check_grads(bad, (np.array([0.3, -0.7]),))
