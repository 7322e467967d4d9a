"""ONNX files of every layer and of whole models give the numbers of `model.apply` in onnxruntime."""

import numpy as np
import pytest

import treepie as tp
from treepie.examples import chars, mnist

from .onnx_files import batches, check, compare, evaluate, onnx, randomized, save
from .test_layers import LAYERS, example

#: Names of `tp.layer` that are no constructors of layers.
OTHERS = {"check", "summary"}

#: Further cases to those of the laws of layers: name -> (layer, shape of an input, or the input itself).
MORE = {
    "embedding_negative": (tp.layer.embedding(5, 4), np.array([[-1, 0], [4, -5]])),
    "linear_of_vectors": (tp.layer.linear(5, 3), (4, 2, 3, 5)),
    "conv2d_dilated": (tp.layer.conv2d(2, 4, 3, (1, 2), (2, 1), groups=2), (2, 2, 7, 8)),
    "conv2d_same": (tp.layer.conv2d(2, 3, (2, 4), 2, padding="same"), (2, 2, 7, 9)),
    "conv_transpose2d_uneven": (
        tp.layer.conv_transpose2d(2, 4, 3, stride=3, padding=0, output_padding=2, groups=2), (2, 2, 4, 3)
    ),
    "max_pool2d_padded": (tp.layer.max_pool2d(3, 2, padding=1), (2, 3, 6, 7)),
    "max_pool2d_ceil": (tp.layer.lambda_(lambda x: tp.fn.max_pool2d(x, 2, 3, ceil_mode=True)), (2, 3, 6, 7)),
    "max_pool1d_causal": (tp.layer.max_pool1d(3, 1, padding="causal"), (2, 3, 6)),
    "avg_pool2d_padded": (
        tp.layer.lambda_(
            lambda x: tp.fn.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False, ceil_mode=True)
        ),
        (2, 3, 6, 6),
    ),
    "multi_head_attention_rope_grouped": (
        tp.layer.multi_head_attention(8, 4, 2, is_causal=True, rope=True), (2, 5, 8)
    ),
    "rnn": (tp.layer.rnn(3, 5), (2, 4, 3)),
    "gru_last": (tp.layer.gru(3, 5, return_sequences=False), (2, 4, 3)),
    "bidirectional_gru": (tp.layer.bidirectional(tp.layer.gru(3, 5)), (2, 4, 3)),
    "permute_batch": (tp.layer.permute((1, 0, 2)), (2, 4, 3)),
    "glu_last": (tp.layer.glu(), (4, 6)),
}  # fmt: skip
CASES = {**LAYERS, **MORE}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, dtype, tmp_path):
    layer, x = CASES[name]
    x = example(x, np.random.default_rng(1))
    vars = randomized(layer.init(tp.rng.key(0), np.dtype(dtype)))
    file = tmp_path / "layer.onnx"
    save(file, layer, vars, batches(x, 2, dtype))
    for n in (1, 5):
        check(file, layer, vars, batches(x, n, dtype))


@pytest.mark.parametrize("name", [n for n in tp.layer.__all__ if n[0].islower()])
def test_every_constructor_has_a_case(name):
    assert name in OTHERS or any(case.startswith(name.rstrip("_")) for case in CASES)


# ---- whole models


def lstm_classifier():
    return tp.layer.sequential(
        [
            tp.layer.embedding(50, 12),
            tp.layer.bidirectional(tp.layer.lstm(12, 16)),
            tp.layer.dropout(0.2),
            tp.layer.gru(32, 16, return_sequences=False),
            tp.layer.linear(16, 4),
            tp.layer.softmax(),
        ]
    )


TOKENS = np.random.default_rng(3).integers(0, 50, (6, 20)).astype(np.int32)
MODELS = {
    "cnn": (mnist.model, np.random.default_rng(3).random((6, 1, 28, 28), np.float32)),
    "gpt": (lambda: chars.gpt(50), TOKENS),
    "lstm": (lstm_classifier, TOKENS),
}


@pytest.mark.parametrize("name", MODELS)
def test_trained_model(name, tmp_path):
    build, x = MODELS[name]
    trainer = tp.Trainer(build(), tp.optim.adam(1e-3))
    st = trainer.init(rngs=tp.rng.key(0))
    loss = lambda out: tp.square(out).mean()
    for step in range(3):
        _, st = trainer.step(st, x, loss=loss, rngs=tp.rng.key(step))
    file = tmp_path / "model.onnx"
    tp.onnx.save(trainer.model, st.vars, file, (None, *x.shape[1:]), x.dtype)
    for n in (1, 5, 6):
        (y,) = evaluate(file, {"input": x[:n]})
        compare([y], [trainer.predict(st, x[:n]).numpy()])


def test_a_recurrent_layer_is_a_node_and_its_input_is_not_multiplied_twice(tmp_path):
    model = lstm_classifier()
    tp.onnx.save(model, model.init(tp.rng.key(0)), tmp_path / "m.onnx", (None, 20), tp.int32)
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert (ops.count("LSTM"), ops.count("GRU"), ops.count("MatMul")) == (2, 1, 1)


def test_float64_has_no_nodes_that_compute_in_float32(tmp_path):
    blocks = [tp.layer.lstm(8, 8), tp.layer.gru(8, 8), tp.layer.transformer_encoder(8, 2)]
    model = tp.layer.sequential(blocks)
    tp.onnx.save(model, model.init(tp.rng.key(0), tp.float64), tmp_path / "m.onnx", (None, 3, 8))
    ops = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert not ops & {"LSTM", "GRU", "LayerNormalization"}


# ---- models of a user


def custom(x):
    @tp.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))
    return square(x)


def last_valid(x):
    """The element of each sequence at an index of its own."""
    lengths = (x > 0).sum(axis=1) - 1
    return x[tp.arange(x.shape[0]), lengths]


def recurrent(x):
    weights = [
        tp.tensor(np.random.default_rng(k).standard_normal(s, np.float32))
        for k, s in enumerate([(3, 16), (4, 16), (16,), (16,)])
    ]
    states, (h, c) = tp.fn.lstm(x, None, None, *weights)
    again, _ = tp.fn.lstm(x, h, c, *weights)
    return {"states": states, "cell": c, "again": again}


def gates(x):
    weights = [
        tp.tensor(np.random.default_rng(k).standard_normal(s, np.float32))
        for k, s in enumerate([(3, 12), (4, 12), (12,), (12,)])
    ]
    return tp.fn.gru(x, None, *weights)


FUNCTIONS = {
    "custom_vjp": (custom, (4, 3)),
    "pure": (tp.pure(lambda x: tp.tanh(x) * 2.0), (4, 3)),
    "checkpoint": (tp.checkpoint_activations(lambda x: tp.exp(x)), (4, 3)),
    "jit": (tp.jit(lambda x: tp.exp(x) + 1.0), (4, 3)),
    "last_valid": (last_valid, np.abs(np.random.default_rng(0).standard_normal((4, 6)))),
    "batch_merged": (lambda x: x.reshape((-1, 2)).sum(axis=1).reshape((x.shape[0], -1)), (4, 6)),
    "batch_last": (lambda x: x.T.reshape((2, 3, -1)).sum(axis=0).T, (4, 6)),
    "batch_flipped": (lambda x: tp.flip(x, 0)[:, ::-2], (4, 6)),
    "batch_doubled": (lambda x: tp.concatenate([x, x[1:], x], axis=0), (4, 6)),
    "repeated": (lambda x: tp.repeat(tp.tile(x, (1, 2)), 3, axis=1), (4, 6)),
    "set": (lambda x: x.at[:, 1].set(0.5).at[:, ::2].add(1.0), (4, 6)),
    "ranked": (lambda x: tp.sort(x) + tp.top_k(x, 1)[0], (4, 6)),
    "one_hot": (lambda x: tp.one_hot(tp.argmax(x, axis=1), 6), (4, 6)),
    "einsum": (lambda x: tp.einsum("bi,bj->bij", x, x), (4, 6)),
    "statistics": (lambda x: (x - x.mean(axis=0)) / x.max(axis=0), (4, 6)),
    "zeros": (lambda x: tp.concatenate([tp.zeros((x.shape[0], 2)), x], axis=1), (4, 6)),
    "the_input": (lambda x: (x, x), (4, 6)),
    "a_constant": (lambda x: {"x": x, "number": tp.tensor([1, 2])}, (4, 6)),
    "cells": (recurrent, (4, 5, 3)),
    "gru": (gates, (4, 5, 3)),
    "steps_of_the_batch": (lambda x: gates(x.reshape((1, -1, 3)))[0], (4, 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_of_a_user(name, tmp_path):
    function, x = FUNCTIONS[name]
    x = example(x, np.random.default_rng(1)).astype(np.float32)
    model = tp.layer.lambda_(function)
    vars = model.init(tp.rng.key(0))
    save(tmp_path / "f.onnx", model, vars, x)
    for n in (1, 2, 5):
        check(tmp_path / "f.onnx", model, vars, batches(x, n, np.float32))


def test_masks_are_inputs(tmp_path):
    """A mask reaches attention by the context; a query that attends to no key gives 0."""
    attention = tp.layer.multi_head_attention(8, 4, 2, is_causal=True)

    def apply(params, state, x, *, dtype, training, rngs, ctx):
        mask = tp.Context().set("attention_mask", x["mask"])
        y, vars = attention.apply(tp.layer.Vars(params, state, dtype), x["x"], training, rngs, mask)
        return y, vars.state

    model = tp.layer.Layer(attention.init, apply, "masked")
    x = {"x": np.ones((2, 5, 8)), "mask": np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])}
    x["x"] += np.random.default_rng(0).standard_normal((2, 5, 8))
    vars = model.init(tp.rng.key(0))
    save(tmp_path / "m.onnx", model, vars, batches(x, 2, np.float32))
    check(tmp_path / "m.onnx", model, vars, batches(x, 5, np.float32))


def test_a_batch_may_be_empty(tmp_path):
    model = tp.layer.sequential([tp.layer.flatten(), tp.layer.linear(6, 2)])
    vars = model.init(tp.rng.key(0))
    tp.onnx.save(model, vars, tmp_path / "m.onnx", (None, 2, 3))
    check(tmp_path / "m.onnx", model, vars, np.zeros((0, 2, 3), np.float32))
