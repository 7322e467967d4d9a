"""Learning rates that callbacks change, with every kind of step and every optimizer."""

import pytest

import treepie as tp
from treepie.optim.rated import RatedStep

from .callback_runs import bits, fit, trainer


def test_a_schedule_is_multiplied():
    class Half:
        def learning_rate(self, rate):
            return rate * 0.5

    rate = tp.optim.schedule.cosine_decay(0.2, 9)
    half = fit(trainer(tp.optim.adam(rate)), callbacks=[Half()], epochs=3)
    assert bits(half) == bits(fit(trainer(tp.optim.adam(lambda step: rate(step) * 0.5)), epochs=3))
    # The rate of a state is the optimizer's again.
    assert type(half.opt_state.count) is int


def test_a_rate_below_0_is_an_error():
    class Negative:
        def learning_rate(self, rate):
            return -rate

    with pytest.raises(ValueError, match=r"adam: the learning rate of step 1 is -0\.1, expected at least 0"):
        fit(trainer(tp.optim.adam(0.1)), callbacks=[Negative()])


@pytest.mark.parametrize("options", [{"accumulate_steps": 2}, {"micro_shards": 3}, {"clip_norm": 0.1}, {}])
def test_the_learning_rate_of_every_kind_of_step(options):
    class Half:
        def learning_rate(self, rate):
            return rate * 0.5

    def loss(out, y):  # reads a value, so that steps run op by op
        return tp.loss.mse(out, y) if tp.sum(y).item() > -1e9 else tp.sum(out)

    for function in (tp.loss.mse, loss):
        half = fit(trainer(tp.optim.sgd(0.2)), callbacks=[Half()], epochs=2, loss=function, **options)
        assert bits(half) == bits(fit(trainer(tp.optim.sgd(0.1)), epochs=2, loss=function, **options))


def parted(part):
    return tp.optim.partition({"all": part, "head": tp.optim.sgd(0.0)}, {"": "all", "2": "head"})


@pytest.mark.parametrize(
    "optimizer",
    [
        *(tp.optim.lamb, tp.optim.lion, tp.optim.nadam, tp.optim.adagrad),
        lambda lr: tp.optim.rmsprop(lr, momentum=0.5, weight_decay=0.1),
        lambda lr: tp.optim.chain(tp.optim.clip_norm(0.1), tp.optim.adamw(lr), tp.optim.ema(0.5)),
        lambda lr: parted(tp.optim.adam(lr)),
        lambda lr: tp.optim.chain(tp.optim.clip_value(0.1), parted(tp.optim.lamb(lr))),
    ],
)
def test_the_learning_rate_of_every_optimizer(optimizer):
    class Half:
        def learning_rate(self, rate):
            return rate * 0.5

    half = fit(trainer(optimizer(0.2)), callbacks=[Half()], epochs=2)
    assert bits(half) == bits(fit(trainer(optimizer(0.1)), epochs=2))
    assert bits(half) != bits(fit(trainer(optimizer(0.2)), epochs=2))


def test_an_optimizer_of_ones_own_has_no_learning_rate_to_change():
    own = tp.optim.Optimizer(lambda p: (), lambda p, g, state, step: (-0.1 * g, state), name="own")
    lower = tp.callback.reduce_on_plateau()
    for optimizer in (own, tp.optim.chain(tp.optim.clip_norm(1.0), own)):
        with pytest.raises(ValueError, match="own: a callback changes the learning rate, which"):
            fit(trainer(optimizer), callbacks=[lower])


def test_a_rated_step_is_its_number():
    step = RatedStep(3, lambda rate: 2 * rate)
    assert step == 3
    assert step + 1 == 4
    assert (step + 1).learning_rate(1.5) == 3.0
