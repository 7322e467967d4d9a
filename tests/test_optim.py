"""Update rules against NumPy in float64, schedules, clipping, and errors."""

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import memory
from treepie.optim import schedule

RNG = np.random.default_rng(0)
PARAMS = {"layers": [{"weight": RNG.normal(size=(3, 2))}, {"bias": RNG.normal(size=2)}]}
GRADS = [tp.ptree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(4)]


def tensors(tree):
    return tp.ptree.map(tp.tensor, tree)


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, decay=lambda p: 0.0):
    def rule(p, g, s, t):
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
        m, v = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
        return p - lr(t) * m / (np.sqrt(v) + eps) - lr(t) * decay(p) * p

    return rule


def sgd(lr, momentum=0.0, nesterov=False):
    def rule(p, g, s, t):
        s["v"] = momentum * s.get("v", 0) + g
        return p - lr(t) * (g + momentum * s["v"] if nesterov else s["v"])

    return rule


def rmsprop(lr, decay=0.9, eps=1e-8, momentum=0.0):
    def rule(p, g, s, t):
        s["v"] = decay * s.get("v", 0) + (1 - decay) * g**2
        s["u"] = momentum * s.get("u", 0) + g / (np.sqrt(s["v"]) + eps)
        return p - lr(t) * s["u"]

    return rule


def adagrad(lr, eps=1e-8):
    def rule(p, g, s, t):
        s["s"] = s.get("s", 0) + g**2
        return p - lr(t) * g / (np.sqrt(s["s"]) + eps)

    return rule


def nadam(lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    def rule(p, g, s, t):
        s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
        m = b1 * s["m"] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return p - lr(t) * (m / (np.sqrt(s["v"] / (1 - b2**t)) + eps) + decay * p)

    return rule


def lion(lr, b1=0.9, b2=0.99, decay=lambda p: 1e-3):
    def rule(p, g, s, t):
        m = s.get("m", 0)
        s["m"] = b2 * m + (1 - b2) * g
        return p - lr(t) * (np.sign(b1 * m + (1 - b1) * g) + decay(p) * p)

    return rule


def decayed(rule, lr, decay):
    """Add decoupled weight decay to a rule."""
    return lambda p, g, s, t: rule(p, g, s, t) - lr(t) * decay(p) * p


def falling(t):
    return 0.1 / t


def matrices(params):
    return tp.ptree.map(lambda p: p.ndim == 2, params)


RULES = {
    "sgd": (tp.optim.sgd(falling), sgd(falling)),
    "momentum": (tp.optim.sgd(falling, momentum=0.9), sgd(falling, 0.9)),
    "nesterov": (tp.optim.sgd(falling, momentum=0.9, nesterov=True), sgd(falling, 0.9, True)),
    "adam": (tp.optim.adam(falling), adam(falling)),
    "adam, no momentum": (tp.optim.adam(0.1, 0.0, 0.5, 1e-3), adam(lambda t: 0.1, 0, 0.5, 1e-3)),
    "adamw": (tp.optim.adamw(falling, weight_decay=0.3), adam(falling, decay=lambda p: 0.3)),
    "adamw, mask": (
        tp.optim.adamw(falling, weight_decay=0.3, mask=matrices),
        adam(falling, decay=lambda p: 0.3 * (p.ndim == 2)),
    ),
    "adamw, mask tree": (
        tp.optim.adamw(falling, mask={"layers": [{"weight": False}, {"bias": True}]}),
        adam(falling, decay=lambda p: 0.01 * (p.ndim == 1)),
    ),
    "rmsprop": (tp.optim.rmsprop(falling), rmsprop(falling)),
    "rmsprop, momentum": (tp.optim.rmsprop(falling, 0.8, 1e-5, 0.9), rmsprop(falling, 0.8, 1e-5, 0.9)),
    "adagrad": (tp.optim.adagrad(falling), adagrad(falling)),
    "nadam": (tp.optim.nadam(falling), nadam(falling)),
    "nadam, decay": (tp.optim.nadam(falling, 0.8, 0.9, 1e-4, 0.3), nadam(falling, 0.8, 0.9, 1e-4, 0.3)),
    "lion": (tp.optim.lion(falling), lion(falling)),
    "lion, mask": (
        tp.optim.lion(falling, 0.5, 0.7, 0.3, mask=matrices),
        lion(falling, 0.5, 0.7, lambda p: 0.3 * (p.ndim == 2)),
    ),
    "sgd, decay": (
        tp.optim.sgd(falling, weight_decay=0.3),
        decayed(sgd(falling), falling, lambda p: 0.3),
    ),
    "momentum, decay": (
        tp.optim.sgd(falling, 0.9, weight_decay=0.3, mask=matrices),
        decayed(sgd(falling, 0.9), falling, lambda p: 0.3 * (p.ndim == 2)),
    ),
    "nesterov, decay": (
        tp.optim.sgd(falling, 0.9, True, weight_decay=0.3),
        decayed(sgd(falling, 0.9, True), falling, lambda p: 0.3),
    ),
    "rmsprop, decay": (
        tp.optim.rmsprop(falling, weight_decay=0.3, mask=matrices),
        decayed(rmsprop(falling), falling, lambda p: 0.3 * (p.ndim == 2)),
    ),
    "rmsprop, momentum and decay": (
        tp.optim.rmsprop(falling, momentum=0.9, weight_decay=0.3),
        decayed(rmsprop(falling, momentum=0.9), falling, lambda p: 0.3),
    ),
    "adagrad, decay": (
        tp.optim.adagrad(falling, weight_decay=0.3),
        decayed(adagrad(falling), falling, lambda p: 0.3),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    opt, rule = RULES[name]
    params, want = tensors(PARAMS), tp.ptree.leaves(PARAMS)
    kept = state = opt.init(params)
    notes = [{} for _ in want]
    for t, grads in enumerate(GRADS, 1):
        updates, _ = opt.step(state, params, grads)
        added = tp.optim.apply_updates(params, updates)
        params, state = opt.update(state, params, grads)
        pairs = zip(want, tp.ptree.leaves(grads), notes, strict=True)
        want = [rule(p, g, s, t) for p, g, s in pairs]
        for got, same, p in zip(tp.ptree.leaves(params), tp.ptree.leaves(added), want, strict=True):
            np.testing.assert_allclose(got, p, rtol=1e-12)
            np.testing.assert_allclose(same, p, rtol=1e-12)
    assert (kept.count, state.count) == (0, 4)
    assert all(not m.numpy().any() for m in tp.ptree.leaves(kept.moments))

    count, trees = state.to_trees()
    saved = opt.state_of_trees(count, [tp.ptree.map(np.asarray, tree) for tree in trees])
    after, again = (opt.update(s, params, GRADS[0])[0] for s in (state, saved))
    for a, b in zip(tp.ptree.leaves(after), tp.ptree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_keeps_its_dtype_and_small_bias_corrections():
    opt = tp.optim.adam(1e-3)
    params = [tp.tensor([1.0])]
    params, state = opt.update(opt.init(params), params, [tp.tensor([1e-4])])
    assert params[0].dtype == state.moments[0][0].dtype == tp.float32
    np.testing.assert_allclose(params[0], [1 - 1e-3], rtol=1e-6)


SCHEDULES = [  # schedule, {step: value}
    (schedule.constant(0.5), {0: 0.5, 1: 0.5, 1000: 0.5}),
    (schedule.cosine_decay(2.0, 100), {0: 2.0, 50: 1.0, 75: 1 - np.sqrt(0.5), 100: 0.0, 101: 0.0}),
    (schedule.cosine_decay(2.0, 100, alpha=0.1), {0: 2.0, 50: 1.1, 100: 0.2, 500: 0.2}),
    (schedule.warmup_linear(0.0, 1.0, 10), {0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0, 11: 1.0}),
    (schedule.warmup_linear(0.5, 1.0, 10), {0: 0.5, 5: 0.75, 10: 1.0}),
    (schedule.warmup_cosine(0.0, 1.0, 10), {0: 0.0, 5: 0.5, 2: 0.0954915028, 10: 1.0, 99: 1.0}),
    (schedule.exponential_decay(1.0, 0.5, 10), {0: 1.0, 5: np.sqrt(0.5), 10: 0.5, 20: 0.25}),
    (
        schedule.join(
            [
                schedule.warmup_linear(0.0, 1.0, 10),
                schedule.cosine_decay(1.0, 90),
                schedule.constant(9.0),
            ],
            [10, 100],
        ),
        {5: 0.5, 9: 0.9, 10: 1.0, 55: 0.5, 99: 0.000304586490, 100: 9.0, 200: 9.0},
    ),
    (
        schedule.warmup_cosine_decay(0.1, 1.0, 10, 110, 0.2),
        {0: 0.1, 5: 0.55, 10: 1.0, 35: 0.6 + 0.4 * np.sqrt(0.5), 60: 0.6, 110: 0.2, 999: 0.2},
    ),
    (schedule.cosine_restarts(2.0, 10), {0: 2.0, 5: 1.0, 10: 2.0, 15: 1.0, 10**9 + 5: 1.0}),
    (
        schedule.cosine_restarts(2.0, 10, growth=2.0, decay=0.5, alpha=0.1),
        {0: 2.0, 5: 1.1, 10: 1.0, 20: 0.6, 30: 0.5, 50: 0.35, 70: 0.25},
    ),
    (schedule.cosine_restarts(2.0, 10, growth=1.1), {10: 2.0, 21: 2.0, 34: 1 + np.cos(np.pi * 0.9 / 13.31)}),
    (schedule.cosine_restarts(2.0, 10, growth=2.0), {10: 2.0, 150: 2.0, 20470: 2.0}),
    (schedule.coslog(2.0, 15), {0: 0.0, 1: 0.0, 3: 0.0, 7: 0.0, 15: 0.0, 99: 0.0, 2**1.5 - 1: 2.0}),
    (schedule.coslog(1.0, 300, cycles=2), {50: 0.930431, 100: 0.0, 182.842712: 1.0, 300: 0.0}),
    (schedule.one_cycle(1.0, 100), {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6, 200: 4e-6}),
    (
        schedule.piecewise_constant([3.0, 2.0, 1.0], [10, 20]),
        {0: 3.0, 9: 3.0, 10: 2.0, 19: 2.0, 20: 1.0, 99: 1.0},
    ),
    (schedule.join([float, float, float], [10, 30]), {9: 9.0, 10: 0.0, 29: 19.0, 30: 0.0, 45: 15.0}),
]


@pytest.mark.parametrize(("fn", "values"), SCHEDULES)
def test_schedules(fn, values):
    for step, value in values.items():
        np.testing.assert_allclose(fn(step), value, rtol=1e-5, atol=1e-15)


def test_global_norm_does_not_overflow_and_clipping_keeps_directions():
    big = {"a": tp.full((4,), 1e30), "b": [tp.full((), -3e30)]}
    norm = tp.optim.global_norm(big)
    assert norm.dtype == tp.float64
    np.testing.assert_allclose(norm, np.sqrt(13) * 1e30, rtol=1e-6)
    clipped = tp.optim.clip_by_global_norm(2.0, big)
    np.testing.assert_allclose(clipped["b"][0], -6 / np.sqrt(13), rtol=1e-6)
    assert clipped["a"].dtype == tp.float32
    small = {"a": tp.tensor([0.3, 0.4])}
    np.testing.assert_array_equal(tp.optim.clip_by_global_norm(1.0, small)["a"], small["a"])
    zero = tp.optim.clip_by_global_norm(1.0, [tp.zeros(3)])[0]
    assert zero.tolist() == [0, 0, 0]
    assert tp.optim.global_norm([]).item() == 0


def test_dicts_are_matched_by_key_not_by_order():
    opt = tp.optim.sgd(1.0)
    params = {"a": tp.tensor([1.0]), "b": tp.tensor([2.0])}
    new, _ = opt.update(opt.init(params), params, {"b": tp.tensor([0.5]), "a": tp.tensor([0.0])})
    assert (new["a"].item(), new["b"].item()) == (1.0, 1.5)


def test_leaves_that_are_views_of_one_buffer_in_another_order():
    opt = tp.optim.sgd(1.0)
    params = {"a": tp.tensor([1.0, 2.0]), "b": tp.tensor([3.0, 4.0])}
    params, _ = opt.update(opt.init(params), params, {"a": tp.zeros(2), "b": tp.zeros(2)})
    swapped = {"a": params["b"], "b": params["a"]}
    grads = {"a": tp.tensor([0.5, 0.5]), "b": tp.tensor([0.25, 0.25])}
    new, _ = opt.update(opt.init(swapped), swapped, grads)
    assert (new["a"].tolist(), new["b"].tolist()) == ([2.5, 3.5], [0.75, 1.75])
    twice = {"a": params["a"], "b": params["a"]}
    new, _ = opt.update(opt.init(twice), twice, grads)
    assert (new["a"].tolist(), new["b"].tolist()) == ([0.5, 1.5], [0.75, 1.75])


opt = tp.optim.adam(0.1)
w = {"w": tp.zeros((2, 3))}
ERRORS = [
    (lambda: tp.optim.sgd(-0.1), ValueError, "sgd: lr is -0.1, expected at least 0"),
    (lambda: tp.optim.sgd(float("nan")), ValueError, "sgd: lr is nan"),
    (lambda: tp.optim.sgd(0.1, momentum=1.0), ValueError, "momentum is 1.0, expected at least 0 and b"),
    (lambda: tp.optim.sgd(0.1, nesterov=True), ValueError, "sgd: nesterov is True with momentum 0"),
    (lambda: tp.optim.adam(0.1, b1=1.0), ValueError, "adam: b1 is 1.0, expected at least 0 and below 1"),
    (lambda: tp.optim.adam(0.1, eps=-1), ValueError, "adam: eps is -1, expected at least 0"),
    (lambda: tp.optim.adamw(0.1, weight_decay=-1), ValueError, "adamw: weight_decay is -1"),
    (lambda: tp.optim.rmsprop(0.1, decay=2), ValueError, "rmsprop: decay is 2"),
    (lambda: tp.optim.adagrad(-1), ValueError, "adagrad: lr is -1"),
    (lambda: opt.init({"n": tp.zeros(2, tp.int32)}), TypeError, "adam: the parameter 'n' is int32"),
    (
        lambda: opt.update(opt.init(w), w, {"w": tp.zeros((3, 2))}),
        ValueError,
        r"adam: the gradient of 'w' has shape \(3, 2\) and dtype float32, expected \(2, 3\) and",
    ),
    (
        lambda: opt.update(opt.init({"w": tp.zeros(1)}), w, w),
        ValueError,
        r"adam: the gradient of 'w' has shape \(2, 3\) and dtype float32, expected \(1,\)",
    ),
    (lambda: opt.update(opt.init(w), w, {"v": w["w"]}), ValueError, "at the root the trees differ"),
    (lambda: opt.state_of_trees(1, []), ValueError, "adam: count is 1 with 0 trees, expected 0 or more"),
    (
        lambda: (o := tp.optim.sgd(lambda t: float("inf"))).update(o.init(w), w, w),
        ValueError,
        "sgd: the schedule, the function .*, returns inf for step 1, expected a finite number",
    ),
    (lambda: tp.optim.clip_by_global_norm(0, w), ValueError, "max_norm is 0, expected a positive"),
    (lambda: schedule.cosine_decay(1.0, 0), ValueError, "schedule.cosine_decay: decay_steps is 0"),
    (lambda: schedule.exponential_decay(1.0, 0.0, 5), ValueError, "decay_rate is 0.0, expected a pos"),
    (lambda: schedule.warmup_cosine_decay(0.0, 1.0, 9, 9), ValueError, "decay_steps is 9, expected more"),
    (lambda: schedule.cosine_restarts(1.0, 9, 0.5), ValueError, "growth is 0.5 and decay 1.0, expected at"),
    (lambda: schedule.cosine_restarts(1.0, 9, decay=2), ValueError, "growth is 1.0 and decay 2, expected"),
    (lambda: schedule.coslog(1.0, 9, 0), ValueError, "coslog: cycles is 0, expected at least 1"),
    (lambda: schedule.coslog(-1.0, 9), ValueError, "coslog: peak_value is -1.0, expected 0 or more"),
    (lambda: schedule.one_cycle(1.0, 9, warmup=1.0), ValueError, "warmup is 1.0, start_factor 25.0 and"),
    (lambda: schedule.piecewise_constant([1.0], [3]), ValueError, "1 values and 1 boundaries, expected"),
    (lambda: schedule.join([], []), ValueError, "schedule.join: 0 schedules and 0 boundaries, exp"),
    (
        lambda: schedule.join([schedule.constant(1.0)] * 3, [5, 5]),
        ValueError,
        r"schedule.join: boundaries are \[5, 5\], expected ascending steps",
    ),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_many_tensors_and_one_give_the_same_bits():
    """Leaves of a dtype are one flat buffer, whatever their shapes; with a mask, of two kinds."""
    rng = np.random.default_rng(0)
    values, slopes = (rng.normal(size=60).astype("f4") for _ in range(2))
    cuts, shapes = np.cumsum([6, 1, 20, 0, 12]), [(2, 3), (), (4, 5), (0, 7), (12,), (3, 7)]

    def tree(x):
        return {
            f"p{k}": tp.tensor(v.reshape(s))
            for k, (v, s) in enumerate(zip(np.split(x, cuts), shapes, strict=True))
        }

    opt = tp.optim.adamw(0.1, weight_decay=0.5)
    one, many = [tp.tensor(values)], tree(values)
    masked = tp.optim.adamw(0.1, weight_decay=0.5, mask=lambda p: tp.ptree.map(lambda x: x.ndim > 1, p))
    states = [opt.init(one), opt.init(many), masked.init(many)]
    plain = [tp.tensor(values)]
    state = tp.optim.adam(0.1).init(plain)
    some = many
    for _ in range(3):
        one, states[0] = opt.update(states[0], one, [tp.tensor(slopes)])
        many, states[1] = opt.update(states[1], many, tree(slopes))
        some, states[2] = masked.update(states[2], some, tree(slopes))
        plain, state = tp.optim.adam(0.1).update(state, plain, [tp.tensor(slopes)])
    flat = np.concatenate([x.numpy().ravel() for x in tp.ptree.leaves(many)])
    np.testing.assert_array_equal(flat, one[0])
    unmasked = tree(plain[0].numpy())
    for name, x in some.items():
        np.testing.assert_array_equal(x, many[name] if x.ndim > 1 else unmasked[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_refuses_a_norm_that_is_not_finite(bad):
    with pytest.raises(FloatingPointError, match="clip_by_global_norm: the norm of the gradients is"):
        tp.optim.clip_by_global_norm(1.0, [tp.tensor([1.0, bad]), tp.ones(3)])


KEEPERS = [
    lambda x: x,
    lambda x: x.numpy()[1, 5:],
    lambda x: np.from_dlpack(x),
    lambda x: x.reshape(-1),
]


def test_memory_is_given_out_again_only_when_nobody_sees_it():
    """Parameters, views and arrays that a caller keeps stay as they are, over many updates."""
    n = 2**16
    opt = tp.optim.adam(0.1)
    params = {"a": tp.zeros(n), "b": tp.zeros((2, n))}
    state, grads = opt.init(params), {"a": tp.ones(n), "b": tp.ones((2, n))}
    memory.release()
    seen = []
    for k in range(20):
        params, state = opt.update(state, params, grads)
        if k < len(KEEPERS):
            kept = KEEPERS[k](params["b"])
            seen.append((kept, np.array(kept)))
    for kept, copy in seen:
        np.testing.assert_array_equal(kept, copy)
    # Those kept, two generations of parameters and moments that take turns, the gradients.
    assert len(memory._kept[12 * n]) <= len(KEEPERS) + 6 + 1
    memory.release()
