"""A state of another model is an error, where its parameters would be used silently."""

import re

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(0)
X, Y = np.ones((4, 3), "f4"), np.zeros((4, 2), "f4")


def trainer(hidden, *more):
    layer = tp.layer
    model = layer.sequential([layer.linear(3, hidden), layer.relu(), layer.linear(hidden, 2), *more])
    return tp.Trainer(model, tp.optim.sgd(0.1))


CALLS = {
    "Trainer.predict": lambda t, st: t.predict(st, X),
    "Trainer.fit": lambda t, st: t.fit(st, tp.Data.of_array([(X, Y)]), loss=tp.loss.mse),
    "Trainer.step": lambda t, st: t.step(st, X, lambda out: tp.loss.mse(out, Y)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_state_of_another_width_is_an_error(name):
    wide, narrow = trainer(16), trainer(8)
    message = f"{name}: '0.weight' of st has shape (3, 8) and that of the model (3, 16), expected a state of"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            CALLS[name](wide, narrow.init(KEY))
        CALLS[name](wide, wide.init(KEY))
        CALLS[name](narrow, narrow.init(KEY, tp.float64))


@pytest.mark.parametrize("name", CALLS)
def test_a_state_with_other_parameters_is_an_error(name):
    more = trainer(8, tp.layer.linear(2, 2))
    with pytest.raises(ValueError, match=rf"^{name}: st has '3.weight', which the model has not"):
        CALLS[name](trainer(8), more.init(KEY))
    with pytest.raises(ValueError, match=rf"^{name}: st has no '3.weight', which the model has"):
        CALLS[name](more, trainer(8).init(KEY))


def test_a_users_layer_may_have_any_parameters():
    sizes = iter([8, 8, 5])

    def init(rngs, dtype):
        return tp.layer.Vars({"w": tp.ones((3, next(sizes)), dtype)}, {}, dtype)

    own = tp.layer.Layer(init, lambda params, state, x, **_: ((x @ params["w"])[:, :2], state))
    t = tp.Trainer(own, tp.optim.sgd(0.1))
    for _ in range(3):
        st = t.init(KEY)
        for call in CALLS.values():
            call(t, st)


def test_a_model_is_evaluated_abstractly_once(monkeypatch):
    t = trainer(8)
    st, other = t.init(KEY), t.init(tp.rng.key(1))
    inits, init = [], type(t.model).init
    monkeypatch.setattr(type(t.model), "init", lambda self, *a: inits.append(self) or init(self, *a))
    for state in (st, other, st, other):
        for call in CALLS.values():
            call(t, state)
    assert inits.count(t.model) == 1
