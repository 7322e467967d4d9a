"""The laws of layers (`tp.layer.check`), over a table of all layers; and that the laws can fail."""

import numpy as np
import pytest

import treepie as tp
from treepie.layer import Layer, Vars

RANDOM = np.random.default_rng(2)
#: (x, memory)
PAIR = (RANDOM.standard_normal((2, 5, 8)), RANDOM.standard_normal((2, 3, 8)))


def two_inputs(call, x):
    """Two inputs, a part that both share, and two outputs."""
    left, right = (call.drop(call.shared(x[name])) for name in ("left", "right"))
    return {"score": call.head(tp.concatenate([left, right], axis=1)), "distance": tp.square(left - right)}


#: Name -> (layer, shape of an input, or the input itself). Append a line for a new layer.
LAYERS = {
    "linear": (tp.layer.linear(5, 3), (4, 5)),
    "linear_without_bias": (tp.layer.linear(5, 3, bias=False), (2, 3, 5)),
    "layer_norm": (tp.layer.layer_norm(7), (2, 3, 7)),
    "rms_norm": (tp.layer.rms_norm(7), (3, 7)),
    "group_norm": (tp.layer.group_norm(2, 6), (2, 6, 4, 3)),
    "group_norm_of_vectors": (tp.layer.group_norm(2, 6), (3, 6)),
    "batch_norm_2": (tp.layer.batch_norm(5), (6, 5)),
    "batch_norm_3": (tp.layer.batch_norm(3), (4, 3, 5)),
    "batch_norm_4": (tp.layer.batch_norm(3), (2, 3, 4, 5)),
    "embedding": (tp.layer.embedding(11, 4), np.arange(22).reshape(2, 11) % 11),
    "embedding_without_scale": (tp.layer.embedding(3, 4, scale=False), np.array([2, 0, 1, 1])),
    "conv1d": (tp.layer.conv1d(2, 4, 3, stride=2, groups=2), (2, 2, 9)),
    "conv1d_causal": (tp.layer.conv1d(2, 3, 3, dilation=2, padding="causal"), (2, 2, 7)),
    "conv2d": (tp.layer.conv2d(2, 3, (3, 2), padding="valid"), (2, 2, 5, 4)),
    "conv_transpose1d": (tp.layer.conv_transpose1d(4, 2, 3, 2, 1, 1, groups=2), (2, 4, 5)),
    "conv_transpose2d": (tp.layer.conv_transpose2d(2, 3, (3, 2), (2, 1), bias=False), (2, 2, 4, 3)),
    "instance_norm_1d": (tp.layer.instance_norm(3), (2, 3, 5)),
    "instance_norm_2d": (tp.layer.instance_norm(3), (2, 3, 4, 5)),
    "global_avg_pool_1d": (tp.layer.global_avg_pool(), (2, 3, 6)),
    "global_avg_pool_2d": (tp.layer.global_avg_pool(), (2, 3, 4, 6)),
    "global_max_pool_1d": (tp.layer.global_max_pool(), (2, 3, 6)),
    "global_max_pool_2d": (tp.layer.global_max_pool(), (2, 3, 4, 6)),
    "adaptive_avg_pool2d": (tp.layer.adaptive_avg_pool2d((2, 3)), (2, 3, 5, 6)),
    "adaptive_avg_pool2d_of_few": (tp.layer.adaptive_avg_pool2d(5), (2, 3, 3, 4)),
    "max_pool1d": (tp.layer.max_pool1d(2), (2, 3, 6)),
    "avg_pool1d": (tp.layer.avg_pool1d(3, 2), (2, 3, 7)),
    "max_pool2d": (tp.layer.max_pool2d(2), (2, 3, 4, 6)),
    "avg_pool2d": (tp.layer.avg_pool2d((2, 3)), (2, 3, 4, 6)),
    "multi_head_attention": (tp.layer.multi_head_attention(8, 2, is_causal=True, rope=True), (2, 5, 8)),
    "multi_head_attention_grouped": (tp.layer.multi_head_attention(8, 4, 2, dropout=0.2), (2, 5, 8)),
    "multi_head_attention_biased": (tp.layer.multi_head_attention(8, 2, bias=True, rope=True), (2, 5, 8)),
    "multi_head_attention_of_memory": (tp.layer.multi_head_attention(8, 2, bias=True), PAIR),
    "transformer_encoder": (tp.layer.transformer_encoder(8, 2, 6, dropout=0.2), (2, 5, 8)),
    "transformer_encoder_post_norm": (
        tp.layer.transformer_encoder(8, 2, activation="tanh", norm_first=False, is_causal=True), (2, 5, 8)
    ),
    "transformer_decoder": (tp.layer.transformer_decoder(8, 2, 6, dropout=0.2), PAIR),
    "transformer_decoder_post_norm": (
        tp.layer.transformer_decoder(8, 2, 6, norm_first=False, bias=False, rope=True), PAIR
    ),
    "positional": (tp.layer.positional(7, 4), (2, 5, 4)),
    "positional_sinusoidal": (tp.layer.positional(7, 5, kind="sinusoidal"), (2, 6, 5)),
    "bidirectional": (tp.layer.bidirectional(tp.layer.lstm(3, 5)), (2, 4, 3)),
    "bidirectional_last": (tp.layer.bidirectional(tp.layer.gru(3, 5, return_sequences=False)), (2, 4, 3)),
    "lstm": (tp.layer.lstm(3, 5), (2, 4, 3)),
    "lstm_last": (tp.layer.lstm(3, 5, return_sequences=False), (2, 4, 3)),
    "gru": (tp.layer.gru(3, 5), (2, 4, 3)),
    "dropout": (tp.layer.dropout(0.3), (5, 40)),
    "dropout2d": (tp.layer.dropout2d(0.3), (5, 8, 3)),
    "relu": (tp.layer.relu(), (4, 5)),
    "gelu": (tp.layer.gelu(), (4, 5)),
    "silu": (tp.layer.silu(), (4, 5)),
    "tanh": (tp.layer.tanh(), (4, 5)),
    "sigmoid": (tp.layer.sigmoid(), (4, 5)),
    "leaky_relu": (tp.layer.leaky_relu(0.2), (4, 5)),
    "prelu": (tp.layer.prelu(), (4, 5)),
    "prelu_of_channels": (tp.layer.prelu(3), (4, 3, 5)),
    "elu": (tp.layer.elu(0.7), (4, 5)),
    "celu": (tp.layer.celu(0.7), (4, 5)),
    "squareplus": (tp.layer.squareplus(2.0), (4, 5)),
    "glu": (tp.layer.glu(axis=1), (4, 6, 2)),
    "softmax": (tp.layer.softmax(axis=1), (4, 5, 2)),
    "log_softmax": (tp.layer.log_softmax(), (4, 5)),
    **{
        name: (getattr(tp.layer, name)(), (4, 5))
        for name in (
            "gelu_approx", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "log_sigmoid", "mish",
            "relu6", "selu", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "swish",
        )
    },
    "reshape": (tp.layer.reshape((2, -1)), (3, 4, 5)),
    "permute": (tp.layer.permute((0, 2, 1)), (3, 4, 5)),
    "pad": (tp.layer.pad((1, (0, 2)), value=1.0), (2, 3, 4, 5)),
    "upsample": (tp.layer.upsample((2, 3)), (2, 3, 4, 5)),
    "upsample_linear": (tp.layer.upsample(3, mode="linear"), (2, 3, 4)),
    "upsample_bilinear": (tp.layer.upsample(2, mode="bilinear"), (2, 3, 4, 5)),
    "scale": (tp.layer.scale(4), (2, 3, 4)),
    "parametric_activation": (tp.layer.parametric_activation(tp.layer.mish(), 4), (2, 3, 4)),
    "periodic_embedding": (tp.layer.periodic_embedding(3, 5, 6, 0.5), (4, 3)),
    "flatten": (tp.layer.flatten(), (2, 3, 4)),
    "lambda": (tp.layer.lambda_(lambda x: x * 2), (4, 5)),
    "residual": (tp.layer.residual(tp.layer.linear(5, 5)), (4, 5)),
    "parallel": (tp.layer.parallel([tp.layer.linear(5, 3), tp.layer.batch_norm(5)]), (4, 5)),
    "parallel_sum": (tp.layer.parallel([tp.layer.linear(5, 5), tp.layer.dropout(0.5)], "add"), (4, 5)),
    "model": (
        tp.layer.model(
            {
                "shared": tp.layer.sequential([tp.layer.linear(5, 4), tp.layer.batch_norm(4)]),
                "drop": tp.layer.dropout(0.5),
                "head": tp.layer.linear(8, 2),
            },
            two_inputs,
        ),
        {"left": np.arange(20.0).reshape(4, 5) % 7, "right": np.arange(20.0).reshape(4, 5) % 3},
    ),
    "compose": (tp.layer.compose(tp.layer.linear(5, 3), tp.layer.layer_norm(3)), (4, 5)),
    "sequential": (
        tp.layer.sequential(
            [tp.layer.linear(5, 8), tp.layer.batch_norm(8), tp.layer.gelu(), tp.layer.dropout(0.5)]
        ),
        (6, 5),
    ),
}  # fmt: skip


def example(x, generator):
    """Return an input of the table: random numbers for a shape."""
    shape = isinstance(x, tuple) and isinstance(x[0], int)
    return generator.standard_normal(x) if shape else x


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_obeys_the_laws(name):
    layer, x = LAYERS[name]
    tp.layer.check(layer, example(x, np.random.default_rng(1)))


@pytest.mark.parametrize("name", [n for n in tp.layer.__all__ if n[0].islower()])
def test_every_constructor_is_in_the_table(name):
    """By the name that the constructor is given in the table, up to a suffix."""
    if name not in ("check", "summary"):
        assert any(row.startswith(name.rstrip("_")) for row in LAYERS)


def broken(apply, params=None, state=None):
    """A layer with parameter w, that multiplies, unless `apply` says otherwise."""

    def init(rngs, dtype):
        made = {"w": tp.full((3,), 2.0, dtype)} if params is None else params(dtype)
        return Vars(made, {"n": tp.zeros((), dtype)} if state is None else state(dtype), dtype)

    return Layer(init, apply, "broken")


calls = []


def noisy(params, state, x, **given):
    calls.append(1)
    return x * params["w"] + float(len(calls)), state


def wrong_rule():
    @tp.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))
    return square


BROKEN = {
    "two calls in evaluation with the same key gave different results": broken(noisy),
    "parameter 'w' is float32, expected float64": broken(
        lambda p, s, x, **given: (x * p["w"], s), params=lambda dtype: {"w": tp.ones((3,))}
    ),
    "result of evaluation '' is float64, expected float32": broken(
        lambda p, s, x, **given: ((x * p["w"]).astype("float64"), s)
    ),
    "evaluation changed the state": broken(lambda p, s, x, **given: (x * p["w"], {"n": s["n"] + 1.0})),
    "state after training: .*, expected": broken(
        lambda p, s, x, *, training, **given: (x * p["w"], {} if training else s)
    ),
    "the gradient of 'w' in evaluation is all zero": broken(
        lambda p, s, x, **given: (x * tp.stop_gradient(p["w"]) + p["w"] * 0.0, s)
    ),
    "gradients in evaluation: .* by central differences": broken(
        lambda p, s, x, **given: (wrong_rule()(x * p["w"]), s)
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_the_laws_can_fail(message):
    with pytest.raises(AssertionError, match=f"layer.check: broken in float.*{message}"):
        tp.layer.check(BROKEN[message], np.random.default_rng(1).standard_normal((2, 3)))


def test_check_takes_a_context_and_trees():
    def apply(params, state, x, *, ctx, **given):
        return {"sum": (x["a"] + x["b"]) * params["w"] * ctx.get("mask").astype(x["a"].dtype)}, state

    layer = broken(apply)
    x = {"a": np.ones((2, 3)), "b": np.array([[1.0, 2.0, 3.0]])}
    tp.layer.check(layer, x, ctx=tp.Context().set("mask", [1, 0, 1]).set("unused", [2]))
