"""A communicator that notes its sums, and models with batch norm over ranks."""

import numpy as np

import treepie as tp


def numbers(shape, seed=0, dtype="f8"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


X6 = tp.tensor(numbers((6, 4)))


class Recorder:
    """A communicator of `size` equal ranks that notes the shapes of its sums, and may fail at one of them."""

    def __init__(self, size=2, fail_at=None, error=None):
        self.rank, self.size, self.sums = 0, size, []
        self.fail_at, self.error = fail_at, error

    def sum(self, array):
        self.sums.append(array.shape)
        if len(self.sums) - 1 == self.fail_at:
            self.error()
        array *= self.size

    def broadcast(self, array, root=0):
        pass

    def barrier(self):
        pass

    def abort(self, status=1):
        raise SystemExit(status)


def network(comm=None, activation=tp.layer.tanh):
    return tp.layer.sequential(
        [
            tp.layer.linear(4, 6),
            tp.layer.batch_norm(6, comm=comm),
            activation(),
            tp.layer.linear(6, 5),
            tp.layer.batch_norm(5, comm=comm),
        ]
    )


def python_layer():
    """Return a layer of a user's Python, which runs in every step."""

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        return tp.sin(x), state

    return tp.layer.Layer(lambda rngs, dtype: tp.layer.Vars({}, {}, dtype), apply)


MODELS = {
    "pure": network,
    "python": lambda comm=None: network(comm, python_layer),
}


def gradient_step(comm):
    layer = tp.layer.batch_norm(4, comm=comm)
    vars = layer.init(tp.rng.key(0), "f8")
    gradient = tp.grad(lambda p: tp.sin(layer.apply(vars.with_params(p[0]), p[1], True)[0]).sum())
    return gradient, (vars.params, X6)


def run_step(comm, model=network, loss=lambda out: tp.sin(out).sum()):
    trainer = tp.Trainer(model(comm), tp.optim.sgd(0.1))
    st = trainer.init(rngs=tp.rng.key(0), dtype="f8")
    return lambda: trainer.step(st, X6, loss=loss)[0]
