"""The five models in treepie, trained as `Trainer.fit` does."""

import itertools

import models
import numpy as np

import treepie as tp
from treepie.examples import mnist
from treepie.train.runner import StepRunner

L = tp.layer


def dense(*sizes, act=L.relu):
    layers = [part for a, b in itertools.pairwise(sizes) for part in (L.linear(a, b), act())]
    return L.sequential(layers[:-1])


def places():
    """Return a layer that adds to each token a vector that belongs to its place."""
    table = L.embedding(128, 128, scale=False)

    def apply(params, state, x, **_):
        return x + params["embedding"], state

    return L.Layer(table.init, tp.pure(apply), "places")


def gpt():
    """Return GPT-2's design, small: places are learned, as in the rivals'."""

    def block():
        attention = L.multi_head_attention(128, 4, is_causal=True)
        mlp = [L.linear(128, 512), L.gelu(), L.linear(512, 128)]
        parts = [[L.layer_norm(128), attention], [L.layer_norm(128), *mlp]]
        return L.sequential([L.residual(L.sequential(part)) for part in parts])

    blocks = [block() for _ in range(4)]
    ends = L.embedding(65, 128, scale=False), L.layer_norm(128), L.linear(128, 65)
    return L.sequential([ends[0], places(), *blocks, *ends[1:]])


def trainer(name):
    model = {
        "xor": lambda: dense(2, 4, 1, act=L.tanh),
        "mlp": lambda: dense(784, 512, 256, 10),
        "tabular": lambda: dense(32, 256, 256, 1),
        "deep": lambda: dense(*[128] * 30, 10),
        "wide": lambda: dense(1024, 1024, 1024, 10),
        "cnn": mnist.model,
        "gpt": gpt,
    }[name]()
    adam = {"b1": models.B1, "b2": models.B2, "eps": models.EPS}
    optimizer = {
        "tabular": lambda: tp.optim.rmsprop(models.RATE, models.RMS_DECAY, models.EPS),
        "gpt": lambda: tp.optim.adamw(models.RATE, **adam, weight_decay=models.WEIGHT_DECAY),
    }.get(name, lambda: tp.optim.adam(models.RATE, **adam))()
    return tp.Trainer(model, optimizer)


def step(name, weights=None):
    assert weights is None, "the others start from these"
    own = trainer(name)
    loss = tp.loss.mse if name in models.SQUARES else tp.loss.cross_entropy_sparse
    runner = StepRunner(own.steps, loss, None, None, "raise", 1)
    runner.begin(own.init(rngs=tp.rng.key(0)))
    turns = itertools.cycle([[tuple(map(tp.tensor, b))] for b in models.batches(name)])
    return lambda: runner.step(next(turns))


def weights(name):
    """Return the first weights of a model in the order of its layers; queries, keys and values are one."""
    found = []
    for path, tensor in tp.ptree.flatten_with_paths(trainer(name).init(rngs=tp.rng.key(0)).vars.params):
        array = np.array(tensor)
        if path.endswith(("k_proj", "v_proj")):
            array = np.concatenate([found.pop(), array], axis=1)
        found.append(array)
    return found
