"""`tp.jit`: the bits of eager calls for all kinds of arguments and results, and its errors."""

import dataclasses
import enum
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import treepie as tp
from treepie import Tensor
from treepie.layer import Vars

RNG = np.random.default_rng(5)
KEY = tp.rng.key(1)
MODEL = tp.layer.sequential([tp.layer.linear(6, 8), tp.layer.tanh(), tp.layer.linear(8, 3)])


class Colour(enum.Enum):
    RED = 1


def batch(seed, n=5):
    rng = np.random.default_rng(seed)
    return tp.tensor(rng.standard_normal((n, 6), "f4")), tp.tensor(rng.integers(0, 3, n))


def same(a, b):
    for x, y in zip(tp.ptree.leaves(a), tp.ptree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def training(optimizer, clip=None):
    def step(vars, state, x, y):
        def objective(params):
            out, _ = MODEL.apply(vars.with_params(params), x, training=True)
            return tp.loss.cross_entropy_sparse(out, y)

        loss, grads = tp.value_and_grad(objective)(vars.params)
        params, state = optimizer.update(state, vars.params, grads)
        return loss, vars.with_params(params), state

    return step


def trained(step, optimizer, steps=7):
    vars = MODEL.init(KEY)
    state, losses = optimizer.init(vars.params), []
    for k in range(steps):
        loss, vars, state = step(vars, state, *batch(k))
        losses.append(loss)
    return losses, vars.params, state


@pytest.mark.parametrize("donate", [(), (0, 1)])
@pytest.mark.parametrize(
    "optimizer",
    [
        tp.optim.adam(tp.optim.schedule.cosine_decay(0.1, 6)),
        tp.optim.sgd(0.1),
        tp.optim.adamw(0.1, mask=lambda params: [{"weight": 1, "bias": 0}, {}, {"weight": 1, "bias": 0}]),
    ],
    ids=["adam", "sgd", "adamw"],
)
def test_a_training_step_with_a_schedule(optimizer, donate):
    step = training(optimizer)
    jitted = tp.jit(step, donate=donate)
    losses, params, state = trained(jitted, optimizer)
    want_losses, want, want_state = trained(step, optimizer)
    same(losses, want_losses)
    same(params, want)
    same(list(state.moments), list(want_state.moments))
    assert state.count == want_state.count == 7
    assert jitted.programs


def test_donated_memory_becomes_the_result():
    step = tp.jit(lambda w, g: w - 0.1 * g, donate=0)
    g = tp.ones((1000, 100))
    w = tp.zeros((1000, 100))
    addresses = []
    for _ in range(5):
        w = step(w, g)
        addresses.append(w.address)
    assert addresses[-1] == addresses[-2]
    np.testing.assert_allclose(w.numpy(), -0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "f",
    [tp.flip, lambda x: tp.transpose(x).reshape(x.shape), lambda x: x[tp.arange(x.shape[0] - 1, -1, -1)]],
    ids=["flip", "transpose", "take"],
)
def test_donated_memory_is_not_overwritten_by_an_op_that_moves_elements(f):
    jitted = tp.jit(f, donate=0)
    x = want = tp.tensor(RNG.standard_normal((300, 200), "f4"))
    for _ in range(5):
        x, want = jitted(x), f(want)
        np.testing.assert_array_equal(x.numpy(), want.numpy())


def test_donated_memory_that_is_smaller_than_the_result():
    f = lambda x, y: x + y
    jitted, x, y = tp.jit(f, donate=0), tp.ones(300), tp.tensor(RNG.standard_normal((200, 300), "f4"))
    for _ in range(4):
        want = f(x, y).numpy()
        np.testing.assert_array_equal(jitted(x, y), want)
        x = jitted(x, y).sum(0) * 0.01


def test_donated_memory_of_which_a_call_reads_a_part():
    """The two arguments are adjacent, one block, as large as the result."""
    jitted = tp.jit(lambda ab, c: ab[0] + c, donate=0)
    c = tp.tensor(RNG.standard_normal((2, 300), "f4"))
    for k in range(4):
        block = np.full(600, float(k), "f4")
        ab = (Tensor(block[:300], None), Tensor(block[300:], None))
        np.testing.assert_array_equal(jitted(ab, c), c.numpy() + np.float32(k))


def test_donated_memory_that_another_argument_views():
    jitted = tp.jit(lambda x, y: (tp.exp(x), tp.softmax(y)), donate=0)
    for k in range(4):
        x = tp.tensor(np.random.default_rng(k).standard_normal((300, 200), "f4"))
        want = tp.exp(x).numpy(), tp.softmax(x).numpy()
        same(jitted(x, Tensor(x.array[:], None)), want)


def test_a_larger_program_after_a_smaller_one():
    f = tp.jit(lambda x: tp.softmax(tp.softmax(tp.softmax(x) * 2) * 2))
    for n in (3, 3000, 30, 10000):
        x = tp.tensor(RNG.standard_normal((n, 50), "f4"))
        same(f(x), tp.softmax(tp.softmax(tp.softmax(x) * 2) * 2))


def test_clipping_raises_the_error_of_an_eager_call():
    f = tp.jit(lambda g: tp.optim.clip_by_global_norm(1.0, g))
    for k in range(5):
        g = {"a": tp.full(3, float(k)), "b": tp.full((2, 2), 0.1)}
        same(f(g), tp.optim.clip_by_global_norm(1.0, g))
    assert f.programs
    for bad in (np.nan, np.inf):
        with pytest.raises(
            FloatingPointError, match=f"the norm of the gradients is {bad}, expected a finite"
        ):
            f({"a": tp.full(3, bad), "b": tp.ones((2, 2))})


def test_random_numbers_of_a_key_among_the_arguments():
    def draw(key):
        a, b = tp.rng.split(key)
        return tp.rng.normal(a, (5,)), tp.rng.permutation(b, 20), tp.rng.bernoulli(a, 0.5, (9,))

    f = tp.jit(draw)
    for k in range(5):
        same(f(tp.rng.key(k)), draw(tp.rng.key(k)))
    assert f.programs


def test_results_are_not_changed_by_later_calls():
    f = tp.jit(lambda x: (x * 2, x.sum()))
    inputs = [tp.tensor(RNG.standard_normal((300, 200), "f4")) for _ in range(6)]
    for x, (y, total) in [(x, f(x)) for x in inputs]:
        np.testing.assert_array_equal(y.numpy(), (x * 2).numpy())
        assert total.item() == x.sum().item()


def test_reading_a_value_raises_and_falls_back(capsys):
    def f(x):
        return x * 2 if x.sum() > 0 else x * 3

    with pytest.raises(
        ValueError, match=rf"f can not run as one program: a value is read in {re.escape(__file__)}:\d+"
    ):
        tp.jit(f)(tp.ones(3))
    loose = tp.jit(f, fallback=True)
    for sign in (1, -1, 1, -1, -1):
        same(loose(tp.full(3, float(sign))), f(tp.full(3, float(sign))))
    printed = capsys.readouterr().err
    assert printed.count("calls of f run op by op") == 1
    assert not loose.programs


def test_python_computes_with_a_step_count():
    optimizer = tp.optim.sgd(0.1)

    def step(params, state):
        scaled = tp.ptree.map(lambda p: p * state.count + (state.count & 1) * 0.5, params)
        return *optimizer.update(state, params, scaled), state.count * 2 + 1

    jitted = tp.jit(step)
    mine = other = {"w": tp.ones(3)}
    state = same_state = optimizer.init(mine)
    for k in range(5):
        mine, state, number = jitted(mine, state)
        other, same_state, want = step(other, same_state)
        same(mine, other)
        assert number == want == 2 * k + 1
        assert state.count == k + 1
    assert len(jitted.programs) == 1


def test_a_branch_on_a_step_count_is_a_read():
    optimizer = tp.optim.sgd(0.1)

    def step(params, state):
        grads = params if state.count < 3 else tp.ptree.map(lambda p: -p, params)
        return optimizer.update(state, params, grads)

    params = {"w": tp.ones(3)}
    with pytest.raises(ValueError, match="a value is read in"):
        tp.jit(step)(params, optimizer.init(params))


def test_threads_may_share_a_jitted_function():
    f = tp.jit(lambda x: (x * 2).sum())

    def work(k):
        return [f(tp.full((50, 50), float(k))).item() for _ in range(30)]

    with ThreadPoolExecutor(4) as pool:
        for k, results in enumerate(pool.map(work, range(8))):
            assert results == [2.0 * k * 2500] * 30


def test_empty_results():
    f = tp.jit(lambda x: (x[:0] * 2, x[:0], x.sum()))
    for k in range(5):
        a, b, total = f(tp.full(3, float(k)))
        assert a.shape == b.shape == (0,)
        assert total.item() == 3.0 * k


def test_check_detects_python_that_is_not_pure():
    rng = np.random.default_rng(0)
    f = tp.jit(lambda x: x * float(rng.random()), check=True)
    f(tp.ones(2))
    with pytest.raises(ValueError, match=rf"is not pure: in {re.escape(__file__)}:\d+ operand 1 of mul was"):
        f(tp.ones(2))


def test_gradients_pass_through_and_programs_nest():
    inner = tp.jit(lambda x: (x * x).sum())
    outer = tp.jit(lambda x: inner(x) + tp.grad(inner)(x).sum())
    for k in range(5):
        x = tp.tensor([1.0 + k, 2.0])
        inner(x)
        same(tp.grad(inner)(x), 2 * x)
        assert outer(x).item() == float((x * x).sum() + 2 * x.sum())
    assert outer.programs


def test_types_of_results():
    c = tp.tensor([7.0])

    def f(x, y):
        z = x + y
        return {
            "same": x,
            "twice": (z, z),
            "view": z.reshape((2, 2))[1],
            "constant": c,
            "none": None,
            "number": 3,
        }

    g = tp.jit(f)
    for k in range(6):
        x, y = tp.full(4, float(k)), tp.tensor(RNG.standard_normal(4), tp.float32)
        result, expected = g(x, y), f(x, y)
        assert (result.pop("none"), result.pop("number")) == (expected.pop("none"), expected.pop("number"))
        same(result, expected)
        assert result["same"].address != x.address
    with pytest.raises(TypeError, match=r"the result of <lambda>.* is a set, expected a tree of tensors"):
        tp.jit(lambda x: {1, 2})(c)


@pytest.mark.parametrize("key", [Colour.RED, np.int64(3), (1, 2), 2.5, "a'b"], ids=repr)
def test_any_hashable_is_a_key(key):
    x = tp.tensor([1.0, 2.0])
    double = tp.jit(lambda tree: {key: tree[key] * 2})
    for _ in range(2):
        assert list(double({key: x})) == [key]
        same(double({key: x})[key], x * 2)


@tp.ptree.register_dataclass
@dataclasses.dataclass(kw_only=True)
class ByKeyword:
    b: tp.Tensor
    a: tp.Tensor


def test_dataclasses_with_keyword_only_fields():
    x = tp.tensor([1.0, 2.0])
    double = tp.jit(lambda tree: ByKeyword(a=tree.a * 2, b=tree.b))
    for _ in range(2):
        same(double(ByKeyword(a=x, b=x + 1)), ByKeyword(a=x * 2, b=x + 1))


def test_a_defaultdict_becomes_a_dict():
    x = tp.tensor([1.0, 2.0])
    double = tp.jit(lambda tree: defaultdict(list, a=tree["a"] * 2))
    for _ in range(2):
        result = double(defaultdict(list, a=x))
        assert type(result) is dict
        same(result["a"], x * 2)


def test_numbers_are_values_and_strings_are_structure():
    f = tp.jit(lambda x, n, mode: x * n if mode == "mul" else x + n)
    for k in range(9):
        x = RNG.standard_normal(3)
        n, mode = (2, 3.0)[k % 2], ("mul", "add")[k % 3 == 0]
        want = x * n if mode == "mul" else x + n
        np.testing.assert_array_equal(f(x, n, mode).numpy(), want)


def test_many_structures():
    f = tp.jit(lambda x: (x * 2).sum())
    for n in range(1, 90):
        assert f(tp.ones(n)).item() == 2.0 * n
    assert f(tp.ones(3)).item() == 6.0


def test_arguments_that_share_memory():
    array = tp.tensor(RNG.standard_normal(8), tp.float32)
    a, b = array[:6], array[2:]
    views = [
        (tp.Tensor(array.array[i : i + 6], None), tp.Tensor(array.array[j : j + 6], None))
        for i, j in ((0, 2), (2, 0), (1, 1))
    ]
    f, g = tp.jit(lambda x, y: x * y + x), lambda x, y: x * y + x
    for x, y in [(a, a), (a, b), *views, (b, a)] * 4:
        same(f(x, y), g(x, y))


def test_errors_are_those_of_eager_calls():
    f = tp.jit(lambda x, y: tp.loss.cross_entropy_sparse(x, y))
    x, y = tp.ones((2, 3)), tp.tensor([0, 2])
    for _ in range(3):
        f(x, y)
    with pytest.raises(ValueError, match="label is 3"):
        f(x, tp.tensor([0, 3]))
    assert np.isfinite(f(x, y).item())
    with pytest.raises(TypeError, match="function is a int"):
        tp.jit(3)


def test_it_decorates_and_keeps_the_name():
    @tp.jit(fallback=True)
    def double(x):
        """Twice x."""
        return x * 2

    assert double.__name__ == "double"
    assert double.__doc__ == "Twice x."
    assert repr(double) == "jit(double)"
    assert double(tp.ones(1)).item() == 2.0


def test_a_whole_trainer_step_inside():
    trainer = tp.Trainer(MODEL, tp.optim.adam(0.1))

    def step(st, x, y):
        return trainer.step(st, x, loss=lambda out: tp.loss.cross_entropy_sparse(out, y))

    def run(function):
        st = trainer.init(KEY)
        for k in range(6):
            loss, st = function(st, *batch(k))
        return loss, st

    (loss, st), (want_loss, want) = run(tp.jit(step)), run(step)
    assert st.step == want.step == 6
    assert loss.item() == want_loss.item()
    assert isinstance(st.vars, Vars)
    same(st.vars.params, want.vars.params)


def test_another_number_of_threads():
    before = tp.get_num_threads()
    f = tp.jit(lambda x: (x @ x).sum(0))
    x = tp.tensor(RNG.standard_normal((200, 200), "f4"))
    try:
        outputs = []
        for n in (1, 1, 1, 3, 3, 3, 1):
            tp.set_num_threads(n)
            outputs.append(f(x).numpy().tobytes())
        assert len(set(outputs)) == 1
    finally:
        tp.set_num_threads(before)
