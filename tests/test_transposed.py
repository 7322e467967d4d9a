"""Transposed operands of products: read as they are, with the bits, gradients and errors of copied ones."""

import threading

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS
from treepie.autodiff.deferred import Deferred

TRANSPOSE, MATMUL = OPS["transpose"], OPS["matmul"]

#: Shapes of a and b as they are stored, and whether each is transposed.
PRODUCTS = [
    ((5, 3), (5, 4), True, False),
    ((5, 3), (4, 3), False, True),
    ((3, 5), (4, 3), True, True),
    ((2, 6, 3), (2, 4, 3), False, True),
    ((2, 3, 6), (2, 3, 4), True, False),
    ((2, 1, 6, 3), (5, 4, 3), False, True),
    ((3, 6), (5, 3, 4), True, False),
    ((2, 3, 6), (3, 4), True, False),
    ((2, 6, 3), (4, 3), False, True),
]


def exchanged(x):
    return tp.swapaxes(x, -1, -2)


def copied(x):
    return TRANSPOSE(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def operands(a_shape, b_shape):
    rng = np.random.default_rng(sum(a_shape))
    return [tp.tensor(rng.standard_normal(s).astype(np.float32)) for s in (a_shape, b_shape)]


def product(a, b, transposes, transpose):
    return (transpose(a) if transposes[0] else a) @ (transpose(b) if transposes[1] else b)


@pytest.mark.parametrize(("a_shape", "b_shape", "ta", "tb"), PRODUCTS)
def test_products_of_transposed_operands_have_the_bits_of_copied_ones(a_shape, b_shape, ta, tb):
    a, b = operands(a_shape, b_shape)
    want = product(a, b, (ta, tb), copied).numpy()
    assert np.array_equal(product(a, b, (ta, tb), exchanged).numpy(), want)
    traced = tp.jit(lambda a, b: product(a, b, (ta, tb), exchanged))
    assert np.array_equal(traced(a, b).numpy(), want)


@pytest.mark.parametrize("nested", [False, True], ids=["gradient", "of a gradient"])
@pytest.mark.parametrize(("a_shape", "b_shape", "ta", "tb"), PRODUCTS)
def test_gradients_of_transposed_operands(a_shape, b_shape, ta, tb, nested):
    def loss(transpose):
        def value(ab):
            return (product(*ab, (ta, tb), transpose) ** 3).sum()

        if not nested:
            return value
        return lambda ab: sum((g**2).sum() for g in tp.grad(value)(ab))

    ab = operands(a_shape, b_shape)
    gradients = tp.grad(loss(exchanged))(ab)
    for g, want in zip(gradients, tp.grad(loss(copied))(ab), strict=True):
        assert np.allclose(g.numpy(), want.numpy(), rtol=2e-4, atol=2e-4 * np.abs(want.numpy()).max())
    for g, want in zip(gradients, tp.jit(tp.grad(loss(exchanged)))(ab), strict=True):
        assert np.array_equal(g.numpy(), want.numpy())


def test_a_product_does_not_compute_the_transposition(monkeypatch):
    a, b = operands((5, 3), (5, 4))
    t = a.T
    monkeypatch.setattr(type(TRANSPOSE), "run", _refuse(type(TRANSPOSE).run))
    assert (t @ b).shape == (3, 4)
    assert (t.shape, t.dtype, t.ndim, t.size, t._data.nbytes) == ((3, 5), np.float32, 2, 15, 60)
    assert type(t._data) is Deferred


def _refuse(run):
    def guarded(row, inputs, attributes):
        assert row is not TRANSPOSE, "the transposition is computed"
        return run(row, inputs, attributes)

    return guarded


def test_a_transposition_that_was_read_keeps_its_source_no_longer():
    a, b = operands((5, 3), (5, 4))
    t = a.T
    before = (t @ b).numpy()
    assert np.array_equal(t.numpy(), a.numpy().T)
    assert t.source is None
    assert np.array_equal((t @ b).numpy(), before)


def test_a_transposition_of_a_transposition_is_the_tensor_itself():
    a, _ = operands((5, 3), (5, 3))
    assert a.T.T is a
    assert tp.transpose(tp.transpose(tp.zeros((2, 3, 4)), (0, 2, 1)), (1, 0, 2)).shape == (4, 2, 3)
    gradient = tp.grad(lambda x: (x.T.T * a).sum())(a)
    assert np.array_equal(gradient, a)


USES = {
    "products": lambda e: e @ (e.T @ e),
    "products, read before": lambda e: tp.tanh(e) + e @ (e.T @ e),
    "products, read in between": lambda e: (e @ (e.T @ e) + tp.tanh(e)) @ e,
    "einsum": lambda e: (lambda h: h @ (h.T @ h))(tp.einsum("bd,d->bd", e, e[0])),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_programs_add_gradients_of_a_transposition_in_the_order_of_eager_ones(use):
    loss = lambda x: tp.square(use(x.T)).sum() + use(x).sum()
    program = tp.jit(tp.grad(loss))
    for seed in range(20):
        x = tp.tensor(np.random.default_rng(seed).standard_normal((4, 4)).astype("f4"))
        assert np.array_equal(program(x), tp.grad(loss)(x))


def test_a_gradient_by_the_transposition_itself():
    a, b = operands((5, 3), (5, 4))
    by_t = tp.grad(lambda t: ((t @ b) ** 2).sum())(a.T)
    by_a = tp.grad(lambda a: ((a.T @ b) ** 2).sum())(a)
    assert np.array_equal(by_t.numpy(), by_a.numpy().T)


def test_a_constant_transposition_gets_no_gradient():
    a, b = operands((5, 3), (5, 4))
    gradient = tp.grad(lambda a: (tp.stop_gradient(a.T) @ b).sum() + a.sum())(a)
    assert np.array_equal(gradient.numpy(), np.ones((5, 3), np.float32))


@pytest.mark.parametrize("how", ["step", "fit"])
def test_a_transposition_of_weights_is_not_changed_by_training(how):
    x, y = operands((8, 30), (8, 40))
    trainer = tp.Trainer(tp.layer.linear(30, 40), tp.optim.sgd(0.5))
    st = trainer.init(rngs=tp.rng.key(0))
    for _ in range(4):
        weight = next(w for w in tp.ptree.leaves(st.vars.params) if w.ndim == 2)
        before, transposed = weight.numpy().copy(), weight.T
        del weight
        if how == "step":
            _, st = trainer.step(st, x, loss=lambda out: tp.loss.mse(out, y))
        else:
            st = trainer.fit(st, tp.Data.prepare((x, y), batch_size=8), loss=tp.loss.mse, progress=False)
        assert np.array_equal(transposed.numpy(), before.T)
        now = next(w for w in tp.ptree.leaves(st.vars.params) if w.ndim == 2)
        assert not np.array_equal(now.numpy(), before)
        del now


def test_errors_name_the_shapes_of_the_operands():
    a, b = operands((5, 3), (4, 4))
    with pytest.raises(ValueError, match=r"a has shape \(3, 5\) and b \(4, 4\), expected b of shape"):
        a.T @ b


def test_threads_read_a_transposition_at_once():
    a, _ = operands((300, 200), (1, 1))
    for _ in range(20):
        t, results = a.T, []
        threads = [threading.Thread(target=lambda t=t, r=results: r.append(t.numpy())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(np.array_equal(r, a.numpy().T) for r in results)
