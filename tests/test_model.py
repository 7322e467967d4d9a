"""`tp.layer.model`: layers composed by a function, with several inputs, shared parts and several outputs."""

import pickle

import numpy as np
import pytest

import treepie as tp
from treepie.layer import Layer, Vars

from .op_by_op import run_eagerly

KEY = tp.rng.key(5)
X = np.random.default_rng(0).standard_normal((6, 4)).astype("f4")


def spy(rows):
    """A layer that notes the arguments of its calls, and counts them in its state."""

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        rows.append({"dtype": dtype, "training": training, "key": rngs, "ctx": ctx})
        return x * params["scale"], {"calls": state["calls"] + 1}

    def init(rngs, dtype):
        scale = tp.rng.uniform(rngs, (), 1.0, 2.0, dtype)
        return Vars({"scale": scale}, {"calls": tp.zeros((), tp.int32)}, dtype)

    return Layer(init, apply, "spy")


def twice(call, x):
    return call.a(x) + call.a(x) + call.b(x)


def test_parts_share_parameters_and_thread_their_state():
    model = tp.layer.model({"a": spy([]), "b": spy([]), "unused": spy([])}, twice)
    before = model.init(KEY)
    y, after = model.apply(before, X)
    a, b = (before.params[name]["scale"].numpy() for name in "ab")
    assert a != b
    np.testing.assert_allclose(y, (2 * a + b) * X, rtol=1e-6)
    assert [after.state[name]["calls"].item() for name in ("a", "b", "unused")] == [2, 1, 0]
    assert before.state["a"]["calls"].item() == 0
    _, grads = tp.value_and_grad(lambda p: model.apply(before.with_params(p), X)[0].sum())(before.params)
    np.testing.assert_allclose(grads["a"]["scale"], 2 * X.sum(), rtol=1e-5)


def test_each_call_has_another_key_and_parts_get_what_accompanies_the_call():
    rows, ctx = [], tp.Context().set("mask", [1, 0])
    model = tp.layer.model({"a": spy(rows), "b": spy(rows)}, twice)
    model.apply(model.init(KEY, tp.float64), X, training=True, rngs=KEY, ctx=ctx)
    assert len({tuple(row["key"].tolist()) for row in rows} | {tuple(KEY.tolist())}) == 4
    assert all(row["training"] and row["ctx"] is ctx and row["dtype"] == tp.float64 for row in rows)
    first = [row["key"].tolist() for row in rows]
    rows.clear()
    model.apply(model.init(KEY), X, training=True, rngs=KEY)
    assert [row["key"].tolist() for row in rows] == first
    rows.clear()
    model.apply(model.init(KEY), X)
    assert [(row["key"], row["ctx"], row["training"]) for row in rows] == [(None, None, False)] * 3


def test_keywords_are_added_to_the_context_of_one_call():
    rows = []
    model = tp.layer.model({"a": spy(rows)}, lambda call, x: call.a(x, mask=x) + call["a"](x))
    model.apply(model.init(KEY), X, ctx=tp.Context().set("other", [1.0]))
    assert [sorted(row["ctx"].values) for row in rows] == [["mask", "other"], ["other"]]


def test_the_function_has_what_accompanies_the_call():
    def forward(call, x):
        noise = tp.rng.normal(call.rngs, x.shape, call.dtype) if call.training else 0.0
        return call.linear(x + noise), call.ctx.get("weight") * 2.0

    model = tp.layer.model({"linear": tp.layer.linear(4, 2)}, forward)
    vars, ctx = model.init(KEY), tp.Context().set("weight", [3.0])
    (y, w), _ = model.apply(vars, X, ctx=ctx)
    assert (y.shape, w.tolist()) == ((6, 2), [6.0])
    (noisy, _), _ = model.apply(vars, X, training=True, rngs=KEY, ctx=ctx)
    assert (noisy.numpy() != y.numpy()).all()


def towers():
    part = tp.layer.sequential([tp.layer.linear(4, 8), tp.layer.batch_norm(8), tp.layer.dropout(0.3)])
    return {"tower": part, "head": tp.layer.linear(16, 3), "aux": tp.layer.linear(16, 1)}


def two_towers(call, x):
    both = tp.concatenate([call.tower(x["a"]), call.tower(x["b"])], axis=1)
    return {"class": call.head(tp.tanh(both)), "aux": call.aux(both)}


def both_losses(out, labels):
    return tp.loss.cross_entropy_sparse(out["class"], labels) + tp.square(out["aux"]).mean()


def fitted(forward, loss=both_losses):
    calls = []

    def counted(call, x):
        calls.append(1)
        return forward(call, x)

    model = tp.layer.model(towers(), tp.pure(counted) if forward is not two_towers else counted)
    trainer = tp.Trainer(model, tp.optim.adam(0.01))
    elements = [({"a": X, "b": -2 * X}, np.arange(6) % 3)] * 8
    history = tp.History()
    st = trainer.fit(trainer.init(KEY), tp.Data.of_array(elements), rngs=KEY, loss=loss, history=history)
    leaves = [t.numpy() for tree in (st.vars.params, st.vars.state) for t in tp.ptree.leaves(tree)]
    return leaves, history.steps, len(calls), trainer, st


def same(a, b):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left, right)


def test_fit_runs_it_as_a_program_with_the_bits_of_eager_steps(monkeypatch, capsys):
    leaves, losses, calls, trainer, st = fitted(two_towers)
    assert calls >= 8  # a function of one's own runs in every step
    out = trainer.predict(st, {"a": X, "b": X})
    assert (out["class"].shape, out["aux"].shape) == ((6, 3), (6, 1))
    assert "op by op" not in capsys.readouterr().err
    assert losses[-1][1] < losses[0][1]
    marked, marked_losses, traced, *_ = fitted(lambda call, x: two_towers(call, x))
    assert traced < 8  # a pure function is traced
    same(leaves, marked)
    assert losses == marked_losses
    run_eagerly(monkeypatch)
    eager, eager_losses, *_ = fitted(two_towers)
    same(leaves, eager)
    assert losses == eager_losses


def test_it_is_pure_only_if_its_function_and_its_parts_are():
    own = tp.layer.lambda_(lambda x: x)
    parts = {"a": tp.layer.relu(), "b": tp.layer.relu()}
    assert tp.layer.model(parts, tp.pure(twice)).pure
    assert not tp.layer.model(parts, twice).pure
    assert not tp.layer.model({**parts, "b": own}, tp.pure(twice)).pure
    assert tp.layer.transformer_decoder(4, 2).pure
    assert not tp.layer.parallel([tp.layer.relu(), own]).pure
    assert not tp.layer.bidirectional(own).pure


def test_a_model_is_a_part_of_another_and_is_pickled():
    inner = tp.layer.model({"a": tp.layer.linear(4, 4), "b": tp.layer.linear(4, 4)}, twice)
    outer = tp.layer.model({"a": inner, "b": tp.layer.linear(4, 4)}, twice)
    vars = outer.init(KEY)
    assert sorted(vars.params["a"]) == ["a", "b"]
    again = pickle.loads(pickle.dumps(outer))
    same([outer.apply(vars, X)[0]], [again.apply(vars, X)[0]])
    with pytest.raises(pickle.PicklingError, match="define it by name at the top level"):
        pickle.dumps(tp.layer.model({"a": inner}, lambda call, x: call.a(x)))


def test_summary_names_parts_and_counts_shared_parameters_once():
    table = tp.layer.summary(tp.layer.model(towers(), two_towers), {"a": (2, 4), "b": (2, 4)})
    assert [line.split("  ")[0] for line in table.split("\n")[2:-2]] == [
        *["tower: linear(4, 8)", "tower: batch_norm(8)", "tower: dropout(0.3)"] * 2,
        "head: linear(16, 3)",
        "aux: linear(16, 1)",
    ]
    counts = [int(line.split()[-1]) for line in table.split("\n")[2:-2]]
    assert counts == [40, 16, 0, 0, 0, 0, 51, 17]
    assert table.split("\n")[-1].split() == ["total", "124"]


def test_summary_of_a_tuple_of_inputs_with_dtypes():
    def forward(call, x):
        ids, features = x
        return call.embed(ids).mean(axis=1) + call.linear(features)

    parts = {"embed": tp.layer.embedding(10, 3), "linear": tp.layer.linear(4, 3)}
    table = tp.layer.summary(
        tp.layer.model(parts, forward), ((2, 5), (2, 4)), input_dtype=(tp.int32, tp.float32)
    )
    assert "embed: embedding(10, 3)  (2, 5, 3)" in table


parts = {"a": tp.layer.relu()}
other = tp.layer.model({"b": tp.layer.relu()}, lambda call, x: call.b(x))
ERRORS = [
    (
        lambda: tp.layer.model([tp.layer.relu()], twice),
        TypeError,
        r"parts is \[.*, expected a dict of layers",
    ),
    (lambda: tp.layer.model({}, twice), TypeError, "parts is {}, expected a dict of layers"),
    (lambda: tp.layer.model({"a": 3}, twice), TypeError, r"parts\['a'\] is a int, expected a Layer"),
    (
        lambda: tp.layer.model({"a.b": tp.layer.relu()}, twice),
        ValueError,
        "has the name 'a.b', expected a Py",
    ),
    (lambda: tp.layer.model({"_a": tp.layer.relu()}, twice), ValueError, "has the name '_a'"),
    (lambda: tp.layer.model({"ctx": tp.layer.relu()}, twice), ValueError, "has the name 'ctx'.* none of tr"),
    (
        lambda: tp.layer.model(parts, tp.layer.relu()),
        TypeError,
        r"forward is .*, expected a function \(call, x",
    ),
    (lambda: run(tp.layer.model(parts, twice)), AttributeError, "no part is named 'b', expected one of a"),
    (
        lambda: run(tp.layer.model(parts, lambda call, x: call["encodr"](x))),
        KeyError,
        "no part is named 'encodr'",
    ),
    (
        lambda: other.apply(tp.layer.model(parts, twice).init(KEY), X),
        ValueError,
        "layer.model: params has the entries a and state a, expected b",
    ),
]


def run(model):
    return model.apply(model.init(KEY), X)


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
