"""The calls of treepie that `overhead.py` times, each as a user writes it.

`CASES[name](changed)` returns a function that makes `arena.CALLS` calls; `changed=False` is the reference of
rows that have one: the same calls without what the row is about.
"""

import itertools

import arena
import models
import numpy as np
import with_treepie

import treepie as tp

L = tp.layer

#: Layers, or operations, of the cases that say what one of them costs.
PARTS = 30


def batches():
    """Return the batches of `xor` as tensors."""
    return [tuple(map(tp.tensor, batch)) for batch in models.batches("xor")]


def made_of(element):
    """Return data whose elements are element(x, y) of one batch after another, made when asked for."""
    prepared = batches()
    return tp.Data.of_fn(arena.CALLS, lambda k: element(*prepared[k % len(prepared)]))


def stateless(apply):
    """Return a layer of one's own that has no parameters."""
    return L.Layer(lambda rngs, dtype: L.Vars({}, {}, dtype), apply)


def fit(data=None, model=None, first=None, **options):
    """Return a function that goes on training for one pass over the data, and returns the state.

    data: elements for `fit`; None stands for batches that lie ready.
    first: data to train on once, before all passes.
    """
    trainer = with_treepie.trainer("xor")
    if model is not None:
        trainer = tp.Trainer(model, trainer.optimizer)
    if data is None:
        data = tp.Data.of_array(list(itertools.islice(itertools.cycle(batches()), arena.CALLS)))
        options = {"loss": tp.loss.mse, **options}
    st = trainer.init(rngs=tp.rng.key(0))
    if first is not None:
        st = trainer.fit(st, first, **options)

    def run():
        nonlocal st
        data.reset()
        st = trainer.fit(st, data, **options)
        return st

    return run


def own_layer():
    """Return the model of `xor`, whose first layer and activation are the user's."""
    library = L.linear(2, 4)

    def apply(params, state, x, **_):
        return tp.tanh(x @ params["weight"] + params["bias"]), state

    return L.sequential([L.Layer(library.init, apply), L.linear(4, 1)])


def trainer_step():
    trainer, turns = with_treepie.trainer("xor"), itertools.cycle(batches())
    st = trainer.init(rngs=tp.rng.key(0))

    def call():
        nonlocal st
        x, y = next(turns)
        loss, st = trainer.step(st, x, loss=lambda out: tp.loss.mse(out, y))
        return float(loss)

    return arena.repeated(call)


def jitted_step():
    trainer, turns = with_treepie.trainer("xor"), itertools.cycle(batches())
    opt, params = trainer.optimizer, trainer.init(rngs=tp.rng.key(0)).vars.params
    state = opt.init(params)

    @tp.jit
    def step(params, state, x, y):
        def loss(p):
            h = tp.tanh(x @ p[0]["weight"] + p[0]["bias"])
            return tp.loss.mse(h @ p[2]["weight"] + p[2]["bias"], y)

        value, grads = tp.value_and_grad(loss)(params)
        params, state = opt.update(state, params, grads)
        return value, params, state

    def call():
        nonlocal params, state
        value, params, state = step(params, state, *next(turns))
        return float(value)

    return arena.repeated(call)


def predict():
    trainer, turns = with_treepie.trainer("xor"), itertools.cycle(batches())
    st = trainer.init(rngs=tp.rng.key(0))
    return arena.repeated(lambda: np.asarray(trainer.predict(st, next(turns)[0])))


def layers(changed):
    """Library layers that a user's own model applies one by one; the reference is `sequential`."""
    kinds = (lambda: L.linear(8, 8), lambda: L.layer_norm(8), L.relu)
    parts = [kind() for _ in range(PARTS // 3) for kind in kinds]
    together = L.sequential(parts)

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        states = []
        for layer, p, s in zip(parts, params, state, strict=True):
            x, after = layer.apply(L.Vars(p, s, dtype), x, training, rngs, ctx)
            states.append(after.state)
        return x, states

    pair = tuple(map(tp.tensor, np.random.default_rng(0).standard_normal((2, 4, 8), "f4")))
    model = L.Layer(together.init, apply) if changed else together
    return fit(tp.Data.repeat(arena.CALLS, pair), model, loss=tp.loss.mse)


def operations(changed):
    """Elementwise operations in a user's layer; the reference traces them once."""

    def chain(x):
        for _ in range(PARTS // 3):
            x = tp.tanh(x * 1.5 + 0.1)
        return x

    function = chain if changed else getattr(tp, "pure", tp.jit)(chain)
    middle = stateless(lambda params, state, x, **_: (function(x), state))
    return fit(model=L.sequential([L.linear(2, 4), middle, L.linear(4, 1)]))


CASES = {
    "fit": lambda _: fit(),
    "clip_norm": lambda _: fit(clip_norm=1.0),
    "rngs": lambda _: fit(rngs=tp.rng.key(1)),
    "report": lambda _: fit(report=lambda step, loss, st: None),
    "accumulate": lambda _: fit(accumulate_steps=4),
    "history": lambda _: fit(history=tp.History()),
    "lambda": lambda _: fit(loss=lambda out, y: ((out - y) ** 2).mean()),
    "elements": lambda _: fit(made_of(lambda x, y: (x, lambda out: tp.loss.mse(out, y)))),
    "own_layer": lambda _: fit(model=own_layer()),
    "step": lambda _: trainer_step(),
    "jit": lambda _: jitted_step(),
    "predict": lambda _: predict(),
    "layers": layers,
    "operations": operations,
}
if hasattr(tp, "pure"):
    CASES["pure"] = lambda _: fit(loss=tp.pure(lambda out, y: ((out - y) ** 2).mean()))
