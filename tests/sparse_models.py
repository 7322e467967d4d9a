"""Models with sparse embeddings, and batches for them."""

import numpy as np

import treepie as tp

ROWS, DIM, BATCH, STEPS = 40, 6, 8, 7
RNG = np.random.default_rng(0)
#: Indices repeat, some count from the end, and most rows of the table are in few batches or none.
X = RNG.integers(-5, 12, (BATCH * STEPS, 3))
Y = RNG.normal(size=(BATCH * STEPS, 1))


def one_lookup(sparse=True):
    """Return a model that reads a table once."""
    parts = {"table": tp.layer.embedding(ROWS, DIM, sparse=sparse), "head": tp.layer.linear(3 * DIM, 1)}
    return tp.layer.model(parts, lambda call, x: call.head(call.table(x).reshape(len(x), -1)))


def three_lookups(sparse=True):
    """Return a model that reads a table three times, at indices of several shapes and dtypes."""
    parts = {"table": tp.layer.embedding(ROWS, DIM, sparse=sparse), "head": tp.layer.linear(DIM, 1)}

    def forward(call, x):
        first = call.table(x[:, 0])
        both = call.table(x[:, 1:].astype(tp.int32))
        return call.head(tp.tanh(first * both.sum(1)) + call.table(x).mean(1))

    return tp.layer.model(parts, forward)


def masked(sparse=True):
    """Return a model of which the index 0 is padding."""
    parts = {"table": tp.layer.embedding(ROWS, DIM, sparse=sparse), "head": tp.layer.linear(DIM, 1)}

    def forward(call, x):
        mask = (x != 0).astype(tp.float64)
        return call.head((call.table(x) * mask.reshape(len(x), 3, 1)).sum(1))

    return tp.layer.model(parts, forward)


def penalized(sparse=True):
    """Return a model whose output depends on all rows of the table, so that its gradient is dense."""
    table = tp.layer.embedding(ROWS, DIM, sparse=sparse)

    def apply(params, state, x, **_):
        (weight,) = params["table"].values()
        rows = tp.fn.embedding(x, weight)
        return rows.mean((1, 2)).reshape(-1, 1) + 1e-3 * (weight[10:] * weight[10:]).sum(), state

    def init(rngs, dtype):
        vars = table.init(rngs, dtype)
        return vars.with_params({"table": vars.params})

    return tp.layer.Layer(init, tp.pure(apply), "penalized")


MODELS = {"one": one_lookup, "three": three_lookups, "masked": masked, "penalized": penalized}
