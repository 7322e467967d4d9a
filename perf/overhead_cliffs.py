"""The steps of treepie that `overhead.py` times against the same without a change; see `overhead_calls.py`.

Each of them was several times slower, or silently wrong, where a program had recorded what Python read.
"""

import itertools
import warnings

import arena
import models
import numpy as np
import overhead_calls as calls
import with_treepie

import treepie as tp

L = tp.layer


def numbers(changed):
    """Return numbers to take one after another: 1, 2, 3 ..., or always 1."""
    return itertools.count(1) if changed else itertools.repeat(1)


def weight(changed):
    """The loss is weighted by a float."""
    turns = numbers(changed)

    def element(x, y):
        w = 1 + 1 / next(turns)
        return x, lambda out: w * tp.loss.mse(out, y)

    return calls.fit(calls.made_of(element))


class Counting:
    """A layer of one's own that counts its calls."""

    def __init__(self):
        self.n = 0

    def apply(self, params, state, x, **_):
        self.n += 1
        return tp.tanh(x), state


def counter(changed):
    """A layer writes `self.n += 1`."""
    apply = Counting().apply if changed else lambda params, state, x, **_: (tp.tanh(x), state)
    model = L.sequential([L.linear(2, 4), calls.stateless(apply), L.linear(4, 1)])
    return calls.fit(model=model)


def index(changed):
    """The loss takes its targets from a table, by the number of the batch."""
    turns, prepared = numbers(changed), calls.batches()
    table = tp.stack([prepared[k % len(prepared)][1] for k in range(arena.CALLS)])

    def element(x, _):
        i = next(turns) % arena.CALLS
        return x, lambda out: tp.loss.mse(out, table[i])

    return calls.fit(calls.made_of(element))


def epoch(changed):
    """The loss reads the number of the epoch."""
    turns = numbers(changed)

    def element(x, y):
        n = next(turns) // models.BATCHES
        return x, lambda out: tp.loss.mse(out, y) / (1 + n)

    return calls.fit(calls.made_of(element))


def in_place(changed):
    """The loss weights examples by an array, which is written to between steps."""
    turns, weights = numbers(changed), np.ones((4, 1), "f4")

    def element(x, y):
        n = next(turns)
        weights[n % 4] = 1 + 1 / n
        return x, lambda out: (weights * (out - y) ** 2).mean()

    return calls.fit(calls.made_of(element))


def classes():
    """Return a model of 10 classes, some labels, and the same one-hot."""
    labels = np.arange(4) % 3
    model = L.sequential([L.linear(2, 4), L.tanh(), L.linear(4, 10)])
    return model, labels, tp.tensor(np.eye(10)[labels], dtype=tp.float32)


def eye(changed):
    """The loss makes its targets one-hot with NumPy, of labels in its closure."""
    model, labels, hot = classes()
    if changed:
        loss = lambda out: tp.loss.cross_entropy(out, np.eye(10)[labels])
    else:
        loss = lambda out: tp.loss.cross_entropy(out, hot)
    return calls.fit(calls.made_of(lambda x, y: (x, loss)), model)


def eye_target(changed):
    """The same, of the labels that `fit` hands to the loss."""
    model, labels, hot = classes()
    if changed:
        loss = lambda out, y: tp.loss.cross_entropy(out, np.eye(10)[y])
    else:
        loss = lambda out, y: tp.loss.cross_entropy(out, y)
    target = tp.tensor(labels) if changed else hot
    return calls.fit(calls.made_of(lambda x, y: (x, target)), model, loss=loss)


def cut(lengths):
    """Return arena.CALLS batches of given lengths, round and round."""
    x, y = (np.tile(part, (max(lengths) // 4 + 1, 1)) for part in models.batches("xor")[0])
    pairs = [(tp.tensor(x[:n]), tp.tensor(y[:n])) for n in lengths]
    return tp.Data.of_fn(arena.CALLS, lambda k: pairs[k % len(pairs)])


def lengths(changed):
    """Batches have 8 lengths, one after another."""
    return calls.fit(cut(range(1, 9) if changed else [4]), loss=tp.loss.mse)


def structures(changed):
    """Batches have 100 lengths; the reference takes the same steps op by op."""
    data = cut(range(1, 101))
    if changed:
        return calls.fit(data, loss=tp.loss.mse)
    trainer = with_treepie.trainer("xor")
    st = trainer.init(rngs=tp.rng.key(0))
    vars, params, state = st.vars, st.vars.params, st.opt_state

    def loss(params, x, y):
        return tp.loss.mse(trainer.model.apply(vars.with_params(params), x, training=True)[0], y)

    def run():
        nonlocal params, state
        data.reset()
        for x, y in data:
            value, grads = tp.value_and_grad(lambda p, x=x, y=y: loss(p, x, y))(params)
            params, state = trainer.optimizer.update(state, params, grads)
            last = float(value)
        return last

    return run


def nan(changed):
    """The second batch of training had a NaN, and was skipped."""
    pairs = calls.batches()
    if changed:
        pairs[1] = (pairs[1][0].at[2, 0].set(np.nan), pairs[1][1])
    options = {"loss": tp.loss.binary_cross_entropy, "on_nonfinite": "skip"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return calls.fit(first=tp.Data.of_array(pairs), **options)


CASES = {
    "number": lambda _: weight(True),
    "weight": weight,
    "counter": counter,
    "index": index,
    "epoch": epoch,
    "in_place": in_place,
    "eye": eye,
    "eye_target": eye_target,
    "lengths": lengths,
    "structures": structures,
    "nan": nan,
}
