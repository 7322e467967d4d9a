"""custom_vjp and checkpoint_activations."""

import numpy as np
import pytest

import treepie as tp


@tp.custom_vjp
def scaled(x, factor):
    """x * factor, whose gradient is the true one times 10."""
    return x * factor


scaled.defvjp(
    lambda x, factor: (x * factor, (x, factor)),
    lambda res, g: (g * res[1] * 10.0, (g * res[0]).sum() * 10.0),
)


def test_the_rule_is_used_and_only_for_gradients():
    x = tp.tensor([1.0, 2.0])
    assert scaled(x, tp.tensor(3.0)).tolist() == [3.0, 6.0]
    gx, gf = tp.grad(lambda p: scaled(p[0], p[1]).sum())([x, tp.tensor(3.0)])
    assert gx.tolist() == [30.0, 30.0]
    assert gf.item() == 30.0


def test_the_rule_nests():
    """The gradient is 10 factor; its derivative by the factor goes through the residuals."""
    x = tp.tensor([1.0, 2.0])
    outer = lambda f: tp.grad(lambda v: scaled(v, f).sum())(x).sum()
    assert tp.grad(outer)(tp.tensor(3.0)).item() == 20.0


def test_trees_and_none():
    @tp.custom_vjp
    def f(p, n):
        return {"y": p["a"] * 2.0, "z": p["b"]}

    f.defvjp(
        lambda p, n: (f._function(p, n), n),
        lambda n, g: ({"a": g["y"] * 7.0, "b": g["z"] * 5.0}, None),
    )
    grads = tp.grad(lambda p: f(p, tp.tensor([1]))["y"].sum())({"a": tp.tensor([1.0]), "b": tp.tensor([1.0])})
    assert grads["a"].tolist() == [7.0]
    assert grads["b"].tolist() == [0.0]


def test_errors_of_custom_rules():
    f = tp.custom_vjp(lambda x: x)
    with pytest.raises(TypeError, match="custom_vjp: <lambda> has no rule, call its defvjp first"):
        tp.grad(lambda x: f(x))(tp.tensor(1.0))
    f.defvjp(lambda x: x, lambda r, g: g)
    with pytest.raises(TypeError, match=r"forward of <lambda> returned Tensor, expected \(result"):
        tp.grad(lambda x: f(x))(tp.tensor(1.0))
    f.defvjp(lambda x: (x, None), lambda r, g: g)
    with pytest.raises(TypeError, match="expected a tuple of 1 gradients"):
        tp.grad(lambda x: f(x))(tp.tensor(1.0))
    f.defvjp(lambda x: (x, None), lambda r, g: (tp.zeros((2,)),))
    with pytest.raises(ValueError, match=r"gave a gradient of shape \(2,\).*expected \(\)"):
        tp.grad(lambda x: f(x))(tp.tensor(1.0))


def layer(x, w):
    return tp.tanh(x @ w)


def data():
    rng = np.random.default_rng(0)
    return [tp.tensor(rng.standard_normal((4, 4))) for _ in range(3)]


def test_recomputation_gives_the_same_bits():
    x, w, v = data()
    plain = lambda p: layer(layer(x, p[0]), p[1]).sum()
    kept = tp.checkpoint_activations(layer)
    again = lambda p: kept(kept(x, p[0]), p[1]).sum()
    for a, b in zip(tp.grad(plain)([w, v]), tp.grad(again)([w, v]), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_recomputation_differentiates_what_a_closure_brings_in():
    """A closed-over parameter must not lose its gradient."""
    x, w, v = data()
    plain = lambda p: tp.tanh(tp.tanh(x @ p["w"]) @ p["v"]).sum()

    def again(p):
        hidden = tp.tanh(x @ p["w"])
        return tp.checkpoint_activations(lambda n: tp.tanh(hidden @ p["v"]) * n)(
            tp.tensor(1.0, dtype=tp.float64)
        ).sum()

    want, got = (tp.grad(f)({"w": w, "v": v}) for f in (plain, again))
    for k in want:
        np.testing.assert_allclose(got[k].numpy(), want[k].numpy(), rtol=1e-14)


def test_recomputation_of_a_closure_that_is_used_twice():
    x, w = tp.tensor([1.0, 2.0]), tp.tensor([3.0, -1.0])
    plain = lambda w: (x * w * w + w).sum()
    again = lambda w: tp.checkpoint_activations(lambda x: x * w * w + w)(x).sum()
    np.testing.assert_array_equal(tp.grad(again)(w), tp.grad(plain)(w))


def test_recomputation_nests():
    x, w, _ = data()
    f = tp.checkpoint_activations(lambda a: layer(a, w))
    tp.check_grads(lambda a: f(f(a)), (x,), order=2)
    g = tp.checkpoint_activations(lambda a: tp.grad(lambda b: (layer(b, w) * a).sum())(a))
    tp.check_grads(g, (x,))


def test_recomputation_frees_what_the_function_computed():
    """Between the passes only arguments and results are alive."""
    import weakref

    references = []

    def f(x):
        y = tp.exp(x)
        references.append(weakref.ref(y.array))
        return tp.sin(y)

    def loss(x):
        out = tp.checkpoint_activations(f)(x).sum()
        assert references[0]() is None
        return out

    tp.grad(loss)(tp.tensor([1.0]))
    assert len(references) == 2


def test_integer_arguments_pass_through():
    x = tp.tensor([1.0, 2.0, 3.0])
    f = tp.checkpoint_activations(lambda a, i: tp.take(a, i) * 2.0)
    assert tp.grad(lambda a: f(a, tp.tensor([2, 2])).sum())(x).tolist() == [0.0, 0.0, 4.0]
