"""LAMB, transformations of gradients and optimizers of one's own against NumPy."""

import numpy as np
import pytest

import treepie as tp
from treepie.distributed import Local

from .test_optim_compose import RNG, fit, matrices

optim = tp.optim


def lamb(p, g, s, t, lr=0.1, b1=0.9, b2=0.999, eps=1e-6, decay=0.2):
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    u = s["m"] / (1 - b1**t) / (np.sqrt(s["v"] / (1 - b2**t)) + eps) + decay * p
    norms = np.sqrt((p**2).sum()), np.sqrt((u**2).sum())
    return p - lr * (norms[0] / norms[1] if all(norms) else 1.0) * u


def test_lamb_against_numpy():
    params = {"w": RNG.normal(size=(4, 3)), "b": RNG.normal(size=3), "zero": np.zeros(2), "still": np.ones(2)}
    want, notes = dict(params), {k: {} for k in params}
    opt = optim.lamb(0.1, weight_decay=0.2, mask=lambda p: {k: k != "still" for k in p})
    values = tp.ptree.map(tp.tensor, params)
    state = opt.init(values)
    for t in range(1, 6):
        grads = {k: RNG.normal(size=v.shape) * (k != "still") for k, v in params.items()}
        values, state = opt.update(state, values, grads)
        for k in want:
            want[k] = lamb(want[k], grads[k], notes[k], t, decay=0.2 * (k != "still"))
            np.testing.assert_allclose(values[k], want[k], rtol=1e-12)
    np.testing.assert_array_equal(values["still"], params["still"])


def test_transformations_against_numpy():
    params, grads = (
        {"w": np.array([[1.0, -2.0]]), "b": np.array([3.0])},
        {"w": np.array([[0.3, -9.0]]), "b": [4.0]},
    )
    grads = {k: np.array(v) for k, v in grads.items()}
    clip = optim.chain(optim.clip_value(0.5), optim.add_decayed_weights(0.1, mask=matrices), optim.sgd(1.0))
    new, _ = clip.update(clip.init(params), params, grads)
    np.testing.assert_allclose(new["w"], [[1 - 0.3 - 0.1, -2 + 0.5 + 0.2]])
    np.testing.assert_allclose(new["b"], [3 - 0.5])
    # In the order of the parts: the decay is clipped too.
    swapped = optim.chain(optim.add_decayed_weights(1.0), optim.clip_value(0.5), optim.sgd(1.0))
    np.testing.assert_allclose(swapped.update(swapped.init(params), params, grads)[0]["w"], [[0.5, -1.5]])
    norm = optim.chain(optim.clip_norm(1.0), optim.sgd(1.0))
    size = np.sqrt(0.09 + 81 + 16)
    np.testing.assert_allclose(
        norm.update(norm.init(params), params, grads)[0]["w"], params["w"] - grads["w"] / size
    )
    parts = optim.partition({"w": norm, "b": norm}, lambda path: path)
    new, _ = parts.update(parts.init(params), params, grads)
    np.testing.assert_allclose(new["b"], [2.0])


def test_an_own_optimizer_is_called_leaf_by_leaf_or_flat():
    shapes = []

    def update(p, g, state, step):
        shapes.append(p.shape)
        return -g * step, ()

    params = {"w": tp.ones((2, 3)), "b": tp.ones(3)}
    for elementwise, want in ((False, [(2, 3), (3,)]), (True, [(9,)])):
        opt = optim.Optimizer(lambda p: (), update, elementwise=elementwise)
        state = opt.init(params)
        shapes.clear()
        first, state = opt.update(state, params, params)
        assert shapes == want
        second, _ = opt.update(state, first, params)
        assert (first["w"][0, 0].item(), second["w"][0, 0].item(), opt.name) == (0.0, -2.0, "update")


def reading(p, g, state, step):
    return (-0.01 * g if float((g * g).sum()) < 1e9 else 0.0 * g), ()


def stateless(p):
    return ()


def values(st):
    return np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])


@pytest.mark.parametrize("elementwise", [False, True])
@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}, {"micro_shards": 2}])
def test_an_own_optimizer_may_read_values(options, elementwise):
    """It then runs op by op, also where ranks share its update."""
    want = values(fit(optim.sgd(0.01), **options))
    opt = optim.Optimizer(stateless, reading, elementwise=elementwise)
    np.testing.assert_allclose(values(fit(opt, **options)), want, rtol=1e-5, atol=1e-6)
    for mine in Local(2).run(lambda comm: values(fit(opt, comm, **options))):
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-6)


DECAYED = ["sgd", "adamw", "rmsprop", "adagrad", "nadam", "lion", "lamb"]


@pytest.mark.parametrize("name", DECAYED)
def test_a_schedule_of_weight_decays_is_each_of_them_in_its_step(name):
    params = {"w": tp.tensor(RNG.normal(size=(4, 3))), "b": tp.tensor(RNG.normal(size=3))}
    rates = [0.5, 0.25, 0.75]

    def scheduled(step):
        return rates[step - 1]

    whole = getattr(optim, name)(0.1, weight_decay=scheduled, mask=matrices)
    ours, state, theirs, other = params, whole.init(params), params, None
    for rate in rates:
        grads = tp.ptree.map(lambda p: tp.tensor(RNG.normal(size=p.shape)), params)
        ours, state = whole.update(state, ours, grads)
        constant = getattr(optim, name)(0.1, weight_decay=rate, mask=matrices)
        other = constant.init(params) if other is None else other
        theirs, other = constant.update(other, theirs, grads)
        np.testing.assert_array_equal(ours["w"], theirs["w"])
        np.testing.assert_array_equal(ours["b"], theirs["b"])
    assert (ours["w"].numpy() != params["w"].numpy()).all()


def test_the_program_of_a_step_takes_another_weight_decay():
    decay = optim.schedule.cosine_decay(1.0, 20)
    trainer = tp.Trainer(tp.layer.linear(3, 1, bias=False), optim.sgd(0.1, weight_decay=decay))
    st = trainer.init(tp.rng.key(0), tp.float64)
    weight = st.vars.params["weight"].numpy()
    data = tp.Data.prepare((np.zeros((4, 3)), np.zeros((4, 1))), batch_size=4)
    st = trainer.fit(st, data, loss=tp.loss.mse, epochs=20)
    factor = np.prod([1 - 0.1 * decay(step) for step in range(1, 21)])
    np.testing.assert_allclose(st.vars.params["weight"], factor * weight, rtol=1e-12)
