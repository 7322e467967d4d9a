"""What can not be pickled: the error says which function is in the way, and copies are made all the same."""

import copy
import functools
import pickle

import pytest

import treepie as tp

from . import pickled
from .test_pickle import KEY, PROTOCOLS, content, fitted, schedule


def local():
    def shifted(x, *rest, **given):
        return x

    return shifted


anonymous = lambda x, *rest: x
FUNCTION = local()
REFUSED = {
    "Layer '<lambda>'": (tp.layer.lambda_(anonymous), anonymous),
    "Layer 'shifted'": (tp.layer.lambda_(FUNCTION), FUNCTION),
    "Layer 'mine'": (tp.layer.Layer(pickled.init, FUNCTION, "mine"), FUNCTION),
    "Layer 'lambda_'": (tp.layer.lambda_(functools.partial(pickled.halved, [anonymous])), anonymous),
    "Layer 'linear(2, 3)'": (tp.layer.linear(2, 3, bias_init=FUNCTION), FUNCTION),
    "Function 'join'": (schedule.join([schedule.constant(1.0), anonymous], [3]), anonymous),
    "Optimizer 'sgd'": (tp.optim.sgd(FUNCTION), FUNCTION),
    "Optimizer 'adamw'": (tp.optim.adamw(0.1, mask=anonymous), anonymous),
    "metric.Mean": (tp.metric.Mean(FUNCTION), FUNCTION),
}


@pytest.mark.parametrize("owner", REFUSED)
def test_the_error_names_the_function_and_its_place(owner):
    x, function = REFUSED[owner]
    place = f"{function.__qualname__} at {__file__}:{function.__code__.co_firstlineno}"
    for protocol in PROTOCOLS:
        with pytest.raises(pickle.PicklingError) as caught:
            pickle.dumps({"some": [x]}, protocol)
        assert str(caught.value).startswith(f"{owner}: {place} can not be pickled; define it")
    for again in (copy.copy(x), copy.deepcopy(x)):
        assert (again is x) == (owner != "metric.Mean")


@pytest.mark.parametrize("wrap", [tp.custom_vjp, tp.jit, tp.checkpoint_activations])
def test_the_error_names_a_function_under_a_decorator(wrap):
    with pytest.raises(pickle.PicklingError, match=f"<lambda> at .*:{anonymous.__code__.co_firstlineno} can"):
        pickle.dumps(tp.layer.lambda_(wrap(anonymous)))


def test_a_trainer_with_a_lambda_in_it_can_be_copied_and_not_pickled():
    model = tp.layer.sequential([tp.layer.linear(6, 6), tp.layer.lambda_(lambda x: x * 2)])
    trainer = tp.Trainer(model, tp.optim.sgd(lambda step: 0.1))
    st = trainer.init(KEY)
    want = content(fitted(trainer, st))
    assert content(fitted(copy.deepcopy(trainer), copy.deepcopy(st))) == want
    with pytest.raises(pickle.PicklingError, match=r"Layer '<lambda>': .*<lambda> at .*unpicklable\.py:\d+"):
        pickle.dumps(trainer)


def test_picklers_that_save_functions_by_their_code_may():
    cloudpickle = pytest.importorskip("cloudpickle")
    for x, _ in REFUSED.values():
        assert type(pickle.loads(cloudpickle.dumps(x))) is type(x)
    rate = pickle.loads(cloudpickle.dumps(schedule.join([schedule.constant(1.0), lambda step: 7.0], [3])))
    assert [rate(2), rate(3)] == [1.0, 7.0]
