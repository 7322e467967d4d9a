"""Models within losses and layers, users' layers and gradient rules: read in every step."""

import random

import pytest

import treepie as tp
from treepie.layer import Layer, Vars

from .steps import KEY, Box, X, eager_step, follows, same, small

SURFACES = pytest.mark.parametrize("surface", ["fit", "step", "predict", "evaluate"])
TWO = pytest.mark.parametrize("surface", ["fit", "predict"])
TRAINED = pytest.mark.parametrize("surface", ["fit", "step"])


def scaling():
    """Return a function that scales by a number from outside, and one that changes this number."""
    box = Box(scale=1.0)
    return lambda x: x * box.scale, lambda phase: setattr(box, "scale", 1.0 + phase)


@SURFACES
def test_a_layer_that_a_loss_applies(surface):
    def make():
        f, change = scaling()
        teacher = tp.layer.sequential([tp.layer.linear(3, 3), tp.layer.lambda_(f)])
        vars = teacher.init(KEY)
        return lambda out: out - teacher.apply(vars, out)[0], change

    follows(surface, make)


@SURFACES
@pytest.mark.parametrize("of", ["the_output", "an_input"])
def test_a_trainer_that_a_loss_predicts_with(surface, of):
    def make():
        f, change = scaling()
        teacher, st = small(tp.layer.lambda_(f))
        pad = tp.ones((5, 1))
        if of == "an_input":
            return lambda out: out - teacher.predict(st, X), change
        return lambda out: out - teacher.predict(st, tp.concatenate([out, pad], axis=1)), change

    follows(surface, make)


@TWO
def test_a_teacher_that_is_trained_meanwhile(surface):
    def make():
        teacher, first = small()
        box = Box()

        def change(phase):
            box.st = first
            for _ in range(phase):
                box.st = teacher.step(box.st, X, lambda out: tp.square(out - 1.0).mean())[1]

        return lambda out: out - teacher.predict(box.st, X), change

    follows(surface, make)


@SURFACES
def test_a_users_layer_with_a_block_of_the_library(surface):
    def make():
        f, change = scaling()
        block = tp.layer.residual(tp.layer.sequential([tp.layer.linear(3, 3), tp.layer.lambda_(f)]))

        def apply(params, state, x, *, dtype, training, rngs, ctx):
            y, after = block.apply(Vars(params, state, dtype), x, training, rngs, ctx)
            return y, after.state

        return Layer(block.init, apply), change

    follows(surface, make)


@SURFACES
def test_a_users_layer_as_an_object(surface):
    class Block:
        scale = 1.0

        def init(self, rngs, dtype):
            return Vars({"w": tp.ones(3, dtype=dtype)}, {}, dtype)

        def apply(self, params, state, x, **options):
            return x * params["w"] * self.scale, state

    def make():
        block = Block()
        return Layer(block.init, block.apply), lambda phase: setattr(Block, "scale", 1.0 + phase)

    follows(surface, make)


@TRAINED
def test_stochastic_depth_in_a_users_layer(surface):
    def make():
        random.seed(13)  # the first draws below 0.2 are the 5th and the 7th
        block = tp.layer.sequential([tp.layer.linear(3, 3), tp.layer.tanh()])

        def apply(params, state, x, *, dtype, training, rngs, ctx):
            if training and random.random() < 0.2:
                return x, state
            return x + block.apply(Vars(params, state, dtype), x, training)[0], state

        return Layer(block.init, apply), lambda phase: None

    follows(surface, make)


@SURFACES
def test_a_jitted_function_in_a_layer_has_the_bits_of_eager_steps(surface):
    def make():
        f, change = scaling()
        return tp.layer.lambda_(tp.jit(f)), change

    follows(surface, make, varies=False)


@TWO
def test_a_jitted_function_with_a_changing_argument(surface):
    def make():
        box = Box()
        scaled = tp.jit(lambda x, scale: x * scale)
        return lambda out: scaled(out, box.scale), lambda phase: setattr(box, "scale", 1.0 + phase)

    follows(surface, make)


@TRAINED
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_users_gradient_rule(surface, part):
    def make():
        box = Box()

        @tp.custom_vjp
        def f(x):
            return x * 1.0

        def forward(x):
            return x * (box.scale if part == "forward" else 1.0), None

        def backward(_, g):
            return (g * (box.scale if part == "backward" else 1.0),)

        f.defvjp(forward, backward)
        return f, lambda phase: setattr(box, "scale", 1.0 + phase)

    follows(surface, make)


@TRAINED
@pytest.mark.parametrize("wrapped", ["grad", "checkpoint_activations"])
def test_a_function_that_is_differentiated_inside_of_a_loss(surface, wrapped):
    def make():
        class Config:
            scale = 1.0

        if wrapped == "grad":
            f = tp.grad(lambda x: tp.square(tp.sin(x * Config.scale)).sum())
        else:
            f = tp.checkpoint_activations(lambda x: tp.tanh(x * Config.scale))
        return f, lambda phase: setattr(Config, "scale", 1.0 + phase)

    follows(surface, make)


@TRAINED
def test_a_mask_of_attention_in_a_gradient_inside_of_a_loss(surface):
    def make():
        class Config:
            mask = tp.ones((1, 5), tp.int32)

        def f(out):
            q = out.reshape(1, 1, 5, 3)
            attend = lambda q: tp.square(tp.fn.dot_product_attention(q, q, q, Config.mask)).sum()
            return 0.1 * tp.grad(attend)(q)

        def change(phase):
            Config.mask = tp.tensor([[k != phase for k in range(5)]])

        return f, change

    follows(surface, make)


def test_a_rule_that_picks_one_of_the_gradients_that_it_computes():
    """The ops are the same in each step, but another of their results is the gradient."""
    box = Box(which=0)

    @tp.custom_vjp
    def f(w):
        return w * 1.0

    f.defvjp(lambda w: (w * 1.0, None), lambda _, g: ((g * 2.0, g * 3.0)[box.which],))
    own = Layer(
        lambda rngs, dtype: Vars({"w": tp.ones((4,), dtype)}, {}, dtype),
        lambda params, state, x, **_: (x * f(params["w"]), state),
    )
    trainer = tp.Trainer(own, tp.optim.sgd(0.1))
    st = want = trainer.init(KEY)
    loss = lambda out: tp.square(out - 1.0).mean()
    for which in (0, 0, 1, 1, 0, 1):
        box.which = which
        value, st = trainer.step(st, X, loss)
        want_value, want = eager_step(trainer, want, X, loss)
        assert value.item() == want_value.item()
    same(st, want)
