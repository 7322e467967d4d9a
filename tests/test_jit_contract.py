"""The contract of `tp.jit`: a pure function, traced once for each structure of its arguments."""

import functools
import operator
import random
from pathlib import Path

import numpy as np
import pytest

import treepie as tp

from .steps import KEY, Box, X, same, small

SCALE = 2.0
ONES = tp.ones(3)


def counted(f):
    """Return a wrapper of f, and the list to which each of its calls appends."""
    calls = []

    @functools.wraps(f)
    def g(*args, **kwargs):
        calls.append(1)
        return f(*args, **kwargs)

    return g, calls


# ---- what a function reads from outside is fixed


def of_a_number():
    box = Box(scale=2.0)
    return lambda x: x * box.scale, lambda: setattr(box, "scale", 5.0)


def of_a_global():
    return lambda x: x * globals()["SCALE"], lambda: globals().update(SCALE=globals()["SCALE"] + 1)


def of_a_class():
    class Config:
        scale = 2.0

    return lambda x: x * Config.scale, lambda: setattr(Config, "scale", 5.0)


def of_a_tensor():
    box = Box(scale=tp.full(3, 2.0))
    return lambda x: x * box.scale, lambda: setattr(box, "scale", tp.full(3, 5.0))


def of_another_array():
    box = Box(scale=np.full(3, 2.0, "f4"))
    return lambda x: x * box.scale, lambda: setattr(box, "scale", np.full(3, 5.0, "f4"))


def of_an_array_in_place():
    w = np.full(3, 2.0, "f4")
    return lambda x: x * w, lambda: w.fill(5.0)


def of_an_element_of_an_array():
    w = np.full(3, 2.0, "f4")
    return lambda x: x * w[0].item(), lambda: w.fill(5.0)


def of_a_branch():
    box = Box(negative=False)
    return lambda x: -x if box.negative else x * 2.0, lambda: setattr(box, "negative", True)


def of_a_function():
    box = Box(f=tp.tanh)
    return lambda x: box.f(x), lambda: setattr(box, "f", tp.exp)


def of_chance():
    random.seed(1)
    return lambda x: x * random.random(), lambda: random.seed(2)


OUTSIDE = [
    of_a_number,
    of_a_global,
    of_a_class,
    of_a_tensor,
    of_another_array,
    of_an_array_in_place,
    of_an_element_of_an_array,
    of_a_branch,
    of_a_function,
    of_chance,
]


@pytest.mark.parametrize("calls", [1, 4])
@pytest.mark.parametrize("make", OUTSIDE, ids=lambda f: f.__name__)
def test_reads_from_outside_are_fixed_at_the_first_call(make, calls):
    f, change = make()
    jitted = tp.jit(f)
    expected = [jitted(ONES).tolist() for _ in range(calls)]
    change()
    assert f(ONES).tolist() != expected[0]
    assert [jitted(ONES).tolist() for _ in range(4)] + expected == [expected[0]] * (calls + 4)
    assert jitted(tp.ones((2, 3))).shape == (2, 3)  # another structure is traced again


def test_a_function_is_traced_once_for_each_structure():
    f, calls = counted(lambda tree, mode="mul", **more: tp.ptree.map(lambda t: t * 2, tree))
    jitted = tp.jit(f)
    structures = [
        ((ONES,), {}),
        ((tp.ones(4),), {}),
        ((tp.ones(3, tp.float64),), {}),
        (([ONES],), {}),
        (([ONES, ONES * 2],), {}),
        (({"a": ONES},), {}),
        (({"b": ONES},), {}),
        ((ONES, "add"), {}),
        ((ONES,), {"extra": ONES}),
        ((ONES,), {"extra": None}),
    ]
    for _ in range(3):
        for args, kwargs in structures:
            same(jitted(*args, **kwargs), f(*args, **kwargs))
    assert len(calls) == len(structures) * (1 + 3)


def test_the_first_call_plans_a_program(capsys):
    f = tp.jit(lambda x: tp.tanh(x).sum())
    f(ONES)
    tp.explain(f)
    assert "tanh" in capsys.readouterr().out


# ---- numbers among the arguments


@pytest.mark.parametrize("kind", [int, float])
def test_numbers_are_values(kind):
    f, calls = counted(lambda x, n, *, options: (x * n + options["shift"][0]) / n)
    jitted = tp.jit(f)
    numbers = [kind(k) for k in (2, 3, -7, 1, 100)]
    numbers += [-0.0, 0.1, 1e30, float("inf"), float("nan")] if kind is float else [2**20, -1]
    for n in numbers:
        options = {"shift": [n]}
        expected = ((ONES * 3.0) * n + n) / n
        same(jitted(ONES * 3.0, n, options=options), expected)
    assert len(calls) == 1


def test_numbers_promote_like_python_numbers():
    """A number is weakly typed: it takes the tensor's dtype, and an int is not promoted to float."""
    f = tp.jit(lambda x, n: x * n)
    for x in (ONES, tp.ones(3, tp.float64), tp.tensor([1, 2, 3]), tp.tensor([True, False, True])):
        for n in (2, 3, 0.5, 0.25):
            same(f(x, n), x * n)


BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]
BITS = ["and_", "or_", "xor", "lshift", "rshift"]


@pytest.mark.parametrize("name", [*BINARY, *BITS])
@pytest.mark.parametrize("side", ["left", "right"])
def test_arithmetic_of_numbers(name, side):
    operation = getattr(operator, name)
    by = (lambda n: operation(n, 3)) if side == "left" else (lambda n: operation(7, n))
    f, calls = counted(lambda x, n: x * by(n))
    jitted = tp.jit(f)
    for n in (1, 2, 5, 12):
        same(jitted(ONES, n), ONES * by(n))
    assert len(calls) == 1
    if name in BINARY:
        for n in (0.1, 2.5, 3.0):
            same(jitted(ONES, n), ONES * by(n))
        assert len(calls) <= 2


def test_a_number_that_does_not_fit_the_dtype_raises():
    f = tp.jit(lambda x, n: x + n)
    x = tp.tensor([1, 2], dtype=tp.int32)
    assert f(x, 2**31 - 3).tolist() == [2**31 - 2, 2**31 - 1]
    assert f(x, -(2**31)).tolist() == [1 - 2**31, 2 - 2**31]
    for n in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match="does not fit int32"):
            f(x, n)


def test_signs_of_numbers():
    jitted = tp.jit(lambda x, n: x * -n + abs(n) - (+n))
    for n in (1, -2, 5, 0.3, -0.7):
        same(jitted(ONES, n), ONES * -n + abs(n) - n)


def test_a_step_count_is_a_number():
    optimizer = tp.optim.adam(tp.optim.schedule.cosine_decay(0.1, 6))

    def step(params, state):
        grads = tp.ptree.map(lambda p: p * state.count + (state.count & 1), params)
        return optimizer.update(state, params, grads)

    f, calls = counted(step)
    for jitted in (tp.jit(f), tp.jit(f, fallback=True)):
        params = expected = {"w": tp.ones(3), "b": tp.zeros(2)}
        state = expected_state = optimizer.init(params)
        calls.clear()
        for k in range(8):
            params, state = jitted(params, state)
            expected, expected_state = step(expected, expected_state)
            same(params, expected)
            same(list(state.moments), list(expected_state.moments))
            assert state.count == expected_state.count == k + 1
            assert type(state.count) is int
        assert len(calls) == 1


def test_a_step_of_training_is_a_number():
    trainer, st = small()

    def step(st, x):
        return trainer.step(st, x, lambda out: tp.square(out).mean() * (0.5 + st.step))

    f, calls = counted(step)
    jitted, expected = tp.jit(f), st
    for k in range(6):
        loss, st = jitted(st, X)
        expected_loss, expected = step(expected, X)
        assert loss.item() == expected_loss.item()
        assert st.step == k + 1
        same(st, expected)
    assert len(calls) == 1


# ---- results


def test_results_may_be_numbers():
    def f(x, n, h):
        return {"x": x * n, "same": n, "more": n + 1, "half": h / 2, "one": 1, "pi": 3.5}

    g, calls = counted(f)
    jitted = tp.jit(g)
    for n, h in ((1, 0.1), (5, 0.2), (-3, 1e300), (2**40, -0.0)):
        result, expected = jitted(ONES, n, h), f(ONES, n, h)
        same(result.pop("x"), expected.pop("x"))
        assert result == expected
        assert [type(result[k]) for k in expected] == [type(v) for v in expected.values()]
    assert len(calls) == 1


def test_a_number_from_outside_is_fixed():
    random.seed(1)
    f = tp.jit(lambda x: (x * 2, random.random(), None, "text"))
    results = [f(ONES)[1:] for _ in range(5)]
    assert len(set(results)) == 1
    random.seed(1)
    assert results[0] == (random.random(), None, "text")


# ---- static arguments


def test_static_arguments_belong_to_the_structure():
    def power(x, n, *, flip=False):
        y = x
        for _ in range(n - 1):
            y = y * x
        return -y if flip else y

    f, calls = counted(power)
    jitted = tp.jit(f, static=("n", "flip"))
    x = ONES * 3.0
    with pytest.raises(ValueError, match=Path(__file__).name):
        tp.jit(power)(x, 3)
    for _ in range(2):
        for n in (1, 2, 4):
            for flip in (False, True):
                same(jitted(x, n, flip=flip), power(x, n, flip=flip))
                same(jitted(x, n=n, flip=flip), power(x, n, flip=flip))
    assert 6 <= len(calls) <= 12


def test_static_refuses_a_name_that_is_not_an_argument():
    with pytest.raises(ValueError, match="static"):
        tp.jit(lambda x, n: x * n, static=("m",))(ONES, 2)


# ---- rules that read values


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_of_attention_use_the_mask_of_the_call(order):
    rng = np.random.default_rng(0)
    q, k, v = (tp.tensor(rng.standard_normal((2, 2, 5, 4)), tp.float32) for _ in range(3))

    def loss(q, mask):
        return tp.square(tp.fn.dot_product_attention(q, k, v, mask)).sum()

    def f(q, mask):
        grad = lambda q: tp.grad(lambda q: loss(q, mask))(q)
        return grad(q) if order == 1 else tp.grad(lambda q: tp.square(grad(q)).sum())(q)

    jitted = tp.jit(f)
    for seed in range(6):
        mask = tp.tensor(np.random.default_rng(seed).random((2, 5)) < 0.6)
        same(jitted(q, mask), f(q, mask))


def test_random_numbers_are_those_of_the_key_of_the_call():
    f, calls = counted(lambda key, n: tp.rng.normal(tp.rng.fold_in(key, n), (4,)))
    jitted = tp.jit(f)
    for n in range(6):
        same(jitted(KEY, n), tp.rng.normal(tp.rng.fold_in(KEY, n), (4,)))
    assert len(calls) == 1
