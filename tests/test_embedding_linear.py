"""Recurrent layers behind an embedding: in training they multiply the table's rows, not each token's."""

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(3)
L = tp.layer
WIDTH, HIDDEN, ROWS, BATCH, STEPS = 70, 9, 5, 12, 7
RECURRENT = {
    "lstm": lambda: L.lstm(WIDTH, HIDDEN),
    "gru": lambda: L.gru(WIDTH, HIDDEN),
    "rnn": lambda: L.rnn(WIDTH, HIDDEN),
    "last": lambda: L.lstm(WIDTH, HIDDEN, return_sequences=False),
    "both ways": lambda: L.bidirectional(L.gru(WIDTH, HIDDEN)),
}
CODES = np.random.default_rng(0).integers(-3, 3, (BATCH, STEPS)).astype("i4")


def chain(kind, scale=True, rows=ROWS, python=False, sparse=False):
    """A chain that begins with an embedding; with a layer of the user's Python at the end."""
    last = [L.lambda_(lambda x: x * 1.0)] if python else []
    return L.sequential([L.embedding(rows, WIDTH, scale, sparse), RECURRENT[kind](), *last])


def separate(kind, scale=True, rows=ROWS):
    """The same layers, between which a tensor is multiplied by 1: no layer has a table behind it."""
    parts = [L.embedding(rows, WIDTH, scale), L.lambda_(lambda x: x * 1.0), RECURRENT[kind]()]
    return L.sequential(parts)


def run(model, params, dtype, training=True):
    """The output, and the gradients of a sum that weights all of its elements differently."""
    vars = L.Vars(params, model.init(KEY).state, np.dtype(dtype))
    out = model.apply(vars, CODES, training)[0]
    factors = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)

    def loss(p):
        return (model.apply(vars.with_params(p), CODES, training)[0] * factors).sum()

    return out, tp.grad(loss)(params)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kind", RECURRENT)
def test_equals_the_layers_one_by_one(kind, scale, dtype):
    """Bits of the results, and gradients to rounding."""
    model, other = chain(kind, scale), separate(kind, scale)
    params = model.init(KEY, dtype).params
    out, grads = run(model, params, dtype)
    expected, others = run(other, [params[0], {}, params[1]], dtype)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(out, run(model, params, dtype, training=False)[0])
    atol = 200 * np.finfo(dtype).eps
    for a, b in zip(tp.ptree.leaves(grads), tp.ptree.leaves(others), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=atol, atol=atol * max(1, np.abs(b).max()))
    # Rows that no token has.
    table = grads[0]["embedding"].numpy()
    assert (np.flatnonzero(np.abs(table).max(1)) == np.unique(CODES % ROWS)).all()


def kernels(model, capsys, rows=ROWS):
    """The names of the kernels of a training step."""
    trainer = tp.Trainer(model, tp.optim.sgd(0.1))
    st = trainer.init(rngs=KEY)
    data = tp.Data.of_array([(CODES, np.zeros((), np.float32))] * 2)
    trainer.fit(st, data, loss=lambda y, _: (y * y).mean())
    tp.explain(trainer)
    return [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[:2].strip().isdigit()]


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_step_gathers_products(kind, capsys):
    """Neither the tokens' rows nor products of them."""
    names = kernels(chain(kind), capsys)
    assert "embedding_linear" in names
    assert not {"take", "linear"} & set(names)


def test_a_large_table_is_gathered(capsys):
    names = kernels(chain("gru", rows=BATCH * STEPS), capsys)
    assert "embedding_linear" not in names
    assert names.count("take") == 1


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_captured_step_has_the_bits_of_an_eager_one(kind, python):
    model = chain(kind, python=python)
    trainer = tp.Trainer(model, tp.optim.adam(0.01))
    st = trainer.init(rngs=KEY)
    data = tp.Data.of_array([(CODES, np.zeros((), np.float32))] * 3)
    fitted = trainer.fit(st, data, loss=lambda y, _: tp.square(y - 1).mean())
    params, optimizer = st.vars.params, tp.optim.adam(0.01)
    state = optimizer.init(params)
    for _ in range(3):

        def loss(p):
            y, _ = model.apply(st.vars.with_params(p), CODES, training=True)
            return tp.square(y - 1).mean()

        params, state = optimizer.update(state, params, tp.grad(loss)(params))
    for a, b in zip(tp.ptree.leaves(fitted.vars.params), tp.ptree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_without_tokens_may_be_infinite_or_nan():
    model = chain("lstm", rows=7)
    params = model.init(KEY).params
    expected = run(model, params, "float32")
    table = params[0]["embedding"].numpy().copy()
    assert 3 not in CODES % 7
    table[3] = np.nan
    result = run(model, [{"embedding": tp.tensor(table)}, params[1]], "float32")
    for a, b in zip(tp.ptree.leaves(result), tp.ptree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    table[CODES[0, 0]] = np.inf
    _, (_, weights) = run(model, [{"embedding": tp.tensor(table)}, params[1]], "float32")
    assert not np.isfinite(weights["weight_ih"].numpy()).all()


@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_emulated"])
def test_precision(precision):
    model, other = chain("gru"), separate("gru")
    params = model.init(KEY).params
    with tp.precision(precision):
        out, grads = run(model, params, "float32")
        expected, others = run(other, [params[0], {}, params[1]], "float32")
    np.testing.assert_array_equal(out, expected)
    for a, b in zip(tp.ptree.leaves(grads), tp.ptree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.03 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("rows", [5, 200])
def test_sparse_tables(rows):
    """Rows that no token has stay as they are."""
    results = []
    for sparse in (False, True):
        trainer = tp.Trainer(chain("rnn", rows=rows, sparse=sparse), tp.optim.sgd(0.1))
        st = trainer.init(rngs=KEY)
        before = tp.ptree.leaves(st.vars.params)[0].numpy().copy()
        data = tp.Data.of_array([(CODES, np.zeros((), np.float32))] * 2)
        st = trainer.fit(st, data, loss=lambda y, _: tp.square(y - 1).mean())
        results.append([t.numpy() for t in tp.ptree.leaves(st.vars.params)])
    changed = np.flatnonzero((results[1][0] != before).any(axis=1))
    assert (changed == np.unique(CODES % rows)).all()
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_errors_name_the_layer():
    model = chain("lstm")
    vars = model.init(KEY)
    with pytest.raises(IndexError, match=r"^layers\.0: embedding\(5, 70\): an index is 5, expected -5 to 4"):
        model.apply(vars, CODES * 0 + 5, training=True)
    with pytest.raises(
        ValueError, match=r"^layers\.1: lstm\(70, 9\): x has shape \(7, 70\), expected \(batch"
    ):
        model.apply(vars, CODES[0], training=True)
    with pytest.raises(TypeError, match=r"^layers\.0: embedding\(5, 70\): indices have dtype float32"):
        model.apply(vars, CODES * 1.0, training=True)
    narrow = L.sequential([L.embedding(5, 4), L.lstm(3, 2)])
    with pytest.raises(ValueError, match=r"^layers\.1: lstm\(3, 2\): x has shape \(12, 7, 4\), expected"):
        narrow.apply(narrow.init(KEY), CODES, training=True)


@pytest.mark.parametrize("changed", [(0,), (1,), (0, 1)])
def test_parameters_of_another_dtype(changed):
    """As in evaluation, where the layers run one by one: the input of a layer is converted."""
    model = chain("lstm")
    vars = model.init(KEY)
    params = [
        tp.ptree.map(lambda t: t.astype("float64"), p) if k in changed else p
        for k, p in enumerate(vars.params)
    ]
    vars = vars.with_params(params)
    if 1 in changed:
        for training in (False, True):
            with pytest.raises(TypeError, match=r"^layers\.1: lstm\(70, 9\): linear: x is float32"):
                model.apply(vars, CODES, training)
    else:
        expected, result = (model.apply(vars, CODES, training)[0] for training in (False, True))
        assert result.dtype == expected.dtype == "float32"
        np.testing.assert_array_equal(result, expected)


def test_more_layers_follow():
    """Each layer has its own parameters and state."""
    both = L.sequential([L.embedding(ROWS, WIDTH), RECURRENT["gru"](), L.batch_norm(STEPS), L.linear(9, 2)])
    nested = L.compose(chain("gru"), L.sequential([L.batch_norm(STEPS), L.linear(9, 2)]))
    vars = both.init(KEY)
    y, after = both.apply(vars, CODES, training=True)
    first, second = ([*tree[:2]], [*tree[2:]]) if (tree := vars.params) else ([], [])
    state = {"left": vars.state[:2], "right": vars.state[2:]}
    same = L.Vars({"left": first, "right": second}, state, vars.dtype)
    other, others = nested.apply(same, CODES, training=True)
    np.testing.assert_array_equal(y, other)
    assert len(after.state) == 4
    pairs = zip(tp.ptree.leaves(after.state[2:]), tp.ptree.leaves(others.state["right"]), strict=True)
    assert all((a.numpy() == b.numpy()).all() for a, b in pairs)
