"""Errors of optimizers, of their compositions and of optimizers of one's own: each names what to change."""

import math

import pytest

import treepie as tp

from .test_optim_compose import data, signed, start

optim = tp.optim
PARAMS = {"layers": [{"weight": tp.ones((2, 3))}, {"weight": tp.ones(2)}]}
A, B = optim.adam(0.1), optim.sgd(0.1)


def begun(parts, labels):
    return optim.partition(parts, labels).init(PARAMS)


def own(init=lambda p: (), update=lambda p, g, s, t: (g, ()), **options):
    opt = optim.Optimizer(init, update, name="mine", **options)
    return opt.update(opt.init(PARAMS), PARAMS, PARAMS)


def after(opt, count):
    """Return a state after some steps."""
    state = opt.init(PARAMS)
    for _ in range(count):
        _, state = opt.update(state, PARAMS, PARAMS)
    return state


def switched():
    first = optim.partition({"a": A, "b": A}, {"": "a", "layers.0": "b"})
    second = optim.partition({"a": A, "b": A}, {"": "a", "layers.1": "b"})
    return second.update(first.init(PARAMS), PARAMS, PARAMS)


def other_state():
    trainer, _ = start(optim.chain(optim.adam(0.1), optim.ema(0.9)))
    return trainer.fit(start(optim.adam(0.1))[1], data(), loss=tp.loss.mse)


ERRORS = [
    (lambda: optim.adam("0.1"), TypeError, r"^adam: lr is '0.1', expected a number or a schedule$"),
    (lambda: optim.lion(None), TypeError, "lion: lr is None"),
    (lambda: optim.sgd(0.1, momentum="0.9"), TypeError, r"momentum is '0.9', expected a number$"),
    (lambda: optim.lamb(-1), ValueError, "lamb: lr is -1, expected at least 0"),
    (lambda: optim.nadam(0.1, b1=1.0), ValueError, "nadam: b1 is 1.0"),
    (lambda: optim.sgd(0.1, weight_decay=-1), ValueError, "sgd: weight_decay is -1, expected at least 0"),
    (lambda: optim.adagrad(0.1, weight_decay=-1), ValueError, "adagrad: weight_decay is -1"),
    (lambda: optim.lion(0.1, weight_decay="1"), TypeError, "weight_decay is '1', expected a number or a sch"),
    (
        lambda: (o := optim.adamw(0.1, weight_decay=lambda t: 1.0 - t)).update(after(o, 1), PARAMS, PARAMS),
        ValueError,
        r"adamw: the schedule, .* returns -1.0 for step 2, expected a finite number of at least 0",
    ),
    (
        lambda: (o := optim.sgd(lambda t: 1.0 - t)).update(after(o, 1), PARAMS, PARAMS),
        ValueError,
        r"sgd: the schedule, the function <lambda> \(.*test_optim_errors.py:\d+\), returns -1.0 for step 2",
    ),
    (
        lambda: (o := optim.adam(lambda t: math.nan)).update(o.init(PARAMS), PARAMS, PARAMS),
        ValueError,
        "returns nan for step 1, expected a finite number of at least 0$",
    ),
    (
        lambda: (o := optim.nadam(lambda t: None)).update(o.init(PARAMS), PARAMS, PARAMS),
        TypeError,
        "returns None for step 1, expected a number$",
    ),
    (
        lambda: (o := optim.lion(optim.schedule.join([lambda t: -0.5, lambda t: 0.1], [9]))).update(
            o.init(PARAMS), PARAMS, PARAMS
        ),
        ValueError,
        r"lion: the schedule, join\(.*\), returns -0.5 for step 1",
    ),
    (lambda: optim.clip_norm(0), ValueError, "clip_norm: max_norm is 0, expected a positive number"),
    (lambda: optim.clip_value(-1), ValueError, "clip_value: max_value is -1, expected at least 0"),
    (lambda: optim.ema(1.0), ValueError, "ema: decay is 1.0, expected at least 0 and below 1"),
    (lambda: optim.chain(optim.clip_norm(1.0)), ValueError, r"are \(clip_norm\), 0 optimizers, expected one"),
    (lambda: optim.chain(A, B), ValueError, r"are \(adam, sgd\), 2 optimizers, expected one"),
    (lambda: optim.chain(A, optim.clip_norm(1.0)), ValueError, "transformations of gradients, then an opt"),
    (lambda: optim.chain(optim.ema(0.9), A), ValueError, "then an optimizer, then ema"),
    (lambda: optim.chain(A, optim.ema(0.9), optim.ema(0.8)), ValueError, "expected at most one ema"),
    (lambda: optim.chain(optim.clip_norm, A), TypeError, r"chain: part 1 is a function \(clip_norm\)"),
    (lambda: optim.partition([A], {}), TypeError, "partition: optimizers is list, expected a dict"),
    (lambda: optim.partition({"a": 0.1}, {"": "a"}), TypeError, "'a' is a float, expected an optimizer"),
    (lambda: optim.partition({"a": A}, 3), TypeError, "labels is a int, expected a function"),
    (
        lambda: optim.partition({"body": A, "head": B}, {"": "body", "x": "haed"}),
        ValueError,
        r"the label of 'x' is 'haed', expected one of 'body', 'head' \(did you mean 'head'\?\)",
    ),
    (
        lambda: begun({"a": A}, lambda path: "b"),
        ValueError,
        "the label of the parameter 'layers.0.weight' is 'b', expected one of 'a'",
    ),
    (
        lambda: begun({"a": A, "b": B}, lambda path: "a"),
        ValueError,
        "no parameter has the label 'b'; the parameters are 'layers.0.weight', 'layers.1.weight'",
    ),
    (lambda: begun({"a": A}, {"layers.1": "a"}), ValueError, "no beginning of the path 'layers.0.weight'"),
    (
        lambda: begun({"a": A, "b": B}, {"": "a", "layer.1": "b"}),
        ValueError,
        r"no parameter's path begins with 'layer.1' in labels \(did you mean the beginning of 'layers.1",
    ),
    (lambda: begun({"a": optim.frozen()}, {"": "a"}), ValueError, "all parameters are frozen"),
    (
        lambda: begun({"a": A, "b": B}, {"": "a", "layers.1": "b"}) and switched(),
        ValueError,
        "update: the state was in the part b for 'layers.0.weight', expected a",
    ),
    (lambda: own(update=lambda p, g, s, t: g), TypeError, "mine: update returned a Tensor, expected"),
    (lambda: own(update=lambda p, g, s, t: (g, g)), TypeError, "mine: update returned a state that is a T"),
    (lambda: own(init=lambda p: p), TypeError, "mine: init returned a state that is a Tensor, expected a"),
    (
        lambda: own(init=lambda p: (tp.zeros((), tp.int32),)),
        ValueError,
        r"mine: init returned a state of dtype int32 and shape \(\) for 'layers.0.weight', expected the par",
    ),
    (
        lambda: own(init=lambda p: (tp.zeros(()),), elementwise=True),
        ValueError,
        r"expected the parameter's dtype float32 and its shape \(2, 3\)",
    ),
    (lambda: own(update=lambda p, g, s, t: (g.sum(), ())), ValueError, r"a change of shape \(\), dtype fl"),
    (lambda: own(update=lambda p, g, s, t: (g, (g,))), ValueError, r"state of shapes \[\(2, 3\)\], exp"),
    (lambda: own(numbers=lambda t: (float("nan"),)), ValueError, "mine: the hyperparameters of step 1"),
    (lambda: optim.Optimizer(3, signed), TypeError, "Optimizer: init is a int, expected a function"),
    (lambda: optim.ema_params(A.init(PARAMS)), TypeError, "st is a OptState, expected a TrainState"),
    (lambda: optim.ema_params(start(A)[1]), ValueError, "the state is of adam, which keeps no averages"),
    (other_state, ValueError, r"of adam with 2 moments, expected one of chain\(adam, ema\) with 3"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_state_with_other_shapes_of_moments_is_refused():
    first = optim.Optimizer(lambda p: (tp.zeros((), p.dtype),), lambda p, g, s, t: (g, s), name="mine")
    second = optim.Optimizer(lambda p: (tp.zeros((2,), p.dtype),), lambda p, g, s, t: (g, s), name="mine")
    with pytest.raises(ValueError, match="the moments in the state have other shapes than mine's"):
        second.update(first.init(PARAMS), PARAMS, PARAMS)


def test_a_prefix_ends_at_a_component_of_the_path():
    params = {"a": tp.ones(1), "ab": tp.ones(1)}
    state = optim.partition({"x": A, "y": B}, {"": "x", "a": "y"}).init(params)
    assert [t.size for t in tp.ptree.leaves(state.moments)] == [0, 1] * 2
