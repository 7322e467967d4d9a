"""What functions read from outside, their closures, globals and attributes, in every call of a program."""

import functools
import types
from dataclasses import dataclass

import mpmath
import numpy as np
import pytest

import treepie as tp

from .test_jit import KEY, MODEL, RNG, same

SCALE = 2.0


def test_closures_globals_and_defaults_are_looked_at_in_every_call():
    box = {"w": tp.ones(3), "power": 2, "rows": [np.arange(3.0)]}
    state = types.SimpleNamespace(shift=tp.zeros(3))

    def helper(x):
        return x * box["w"] ** box["power"]

    f = tp.jit(lambda x: helper(x) * SCALE + state.shift + tp.tensor(box["rows"][0], tp.float32))
    g = lambda x: helper(x) * SCALE + state.shift + tp.tensor(box["rows"][0], tp.float32)
    for k in range(12):
        box["w"] = tp.full(3, 1.0 + k % 5)
        box["rows"] = [np.arange(3.0) + k]
        box["power"] = 2 + (k > 8)
        state.shift = tp.full(3, float(k))
        same(f(tp.ones(3)), g(tp.ones(3)))
    assert f.programs


def test_an_array_computed_from_one_outside_is_refused():
    labels = np.array([0, 1, 2])

    def loss(x):
        return tp.loss.cross_entropy_sparse(x, labels + 0)

    with pytest.raises(ValueError, match=r"it makes a NumPy array of shape \(3,\)"):
        tp.jit(loss)(tp.ones((3, 3)))


def test_an_array_made_inside_is_a_constant_where_none_comes_from_outside():
    f = tp.jit(lambda x: x + np.arange(3, dtype="f4"))
    for k in range(5):
        np.testing.assert_array_equal(f(tp.full(3, float(k))).numpy(), k + np.arange(3, dtype="f4"))
    assert f.programs


@pytest.mark.parametrize(
    "what", [iter([1]), (k for k in range(3)), object()], ids=["iterator", "generator", "object"]
)
def test_things_whose_content_is_not_known_are_refused(what):
    def f(x):
        return x * (1 if what is None else 2)

    with pytest.raises(ValueError, match=r"it reads 'what', a .* whose content is not known"):
        tp.jit(f)(tp.ones(2))


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (np.zeros(1 << 23), "'what', an array of 64 MB, which would be copied"),
        (list(range(10_000)), "'what', a list of 10000 things"),
        ({k: [k] for k in range(3000)}, "more than 2000 things"),
    ],
    ids=["array", "list", "dict"],
)
def test_what_takes_long_to_look_at_is_refused(what, why):
    with pytest.raises(ValueError, match=why):
        tp.jit(lambda x: x * len(what))(tp.ones(2))


@dataclass
class Pair:
    """Two numbers, of which one has no default."""

    low: float
    high: float = 1.0

    def middle(self):
        return (self.low + self.high) / 2 * SCALE


def test_classes_dataclasses_and_installed_packages():
    pair = Pair(0.0)
    f = tp.jit(lambda x: x * pair.middle() + Pair(1.0, 3.0).middle() + float(mpmath.sqrt(4)))
    for k in range(6):
        pair.high = 1.0 + k // 3
        same(f(tp.full(2, float(k))), tp.full(2, k * pair.high / 2 * SCALE + 2 * SCALE + 2))
    assert len(f.programs) == 2


class Net:
    """A model as an object, whose weights are rebound."""

    def __init__(self):
        self.w, self.rate = tp.ones((3, 3)), 0.5

    def forward(self, x, *, flip=False):
        return (-x if flip else x) @ self.w * self.rate


def test_methods_partials_and_keywords():
    net = Net()
    f, g = tp.jit(net.forward), functools.partial(tp.jit(Net.forward), net)
    for k in range(8):
        net.w = tp.full((3, 3), float(k))
        x = tp.tensor(RNG.standard_normal((2, 3), "f4"))
        same(f(x, flip=bool(k % 2)), net.forward(x, flip=bool(k % 2)))
        same(tp.jit(functools.partial(net.forward, flip=True))(x), net.forward(x, flip=True))
    with pytest.raises(TypeError, match=r"forward, \(args, kwargs\)\[0\]\[0\] is a Net, expected"):
        g(x)


def test_an_optimizer_with_a_mask_may_be_an_argument_or_outside():
    mask = [{"weight": True, "bias": False}, {}, {"weight": True, "bias": False}]
    optimizer = tp.optim.adamw(0.1, mask=mask)
    params = MODEL.init(KEY).params

    def update(optimizer, params, state):
        return optimizer.update(state, params, params)

    f, g = tp.jit(update), tp.jit(lambda params, state: optimizer.update(state, params, params))
    state = optimizer.init(params)
    for _ in range(4):
        same(f(optimizer, params, state)[0], update(optimizer, params, state)[0])
        same(g(params, state)[0], update(optimizer, params, state)[0])
    assert f.programs
    assert g.programs
