"""Values of layers without PyTorch, whose side of it is in `torch_blocks.py`, and the errors of layers."""

import numpy as np
import pytest

import treepie as tp

KEY = tp.rng.key(3)
X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("f4")
MEMORY = np.random.default_rng(1).standard_normal((2, 3, 8)).astype("f4")


def run(layer, x, ctx=None, **changed):
    vars = layer.init(KEY)
    return layer.apply(vars.with_params({**vars.params, **changed} if changed else vars.params), x, ctx=ctx)[
        0
    ]


@pytest.mark.parametrize("sequences", [True, False])
def test_bidirectional_is_a_layer_and_one_of_the_reversed_sequence(sequences):
    layer = tp.layer.lstm(8, 3, return_sequences=sequences)
    both = tp.layer.bidirectional(layer)
    vars = both.init(KEY)
    first, second = (
        layer.apply(tp.layer.Vars(vars.params[name], {}, tp.float32), x)[0].numpy()
        for name, x in (("forward", X), ("backward", X[:, ::-1].copy()))
    )
    expected = np.concatenate([first, second[:, ::-1] if sequences else second], axis=-1)
    np.testing.assert_array_equal(both.apply(vars, X)[0], expected)


def test_masks_of_a_decoder_hide_what_they_say():
    layer = tp.layer.transformer_decoder(8, 2, is_causal=False)
    mask, memory_mask = np.array([[1, 1, 1, 1, 0]] * 2), np.array([[1, 1, 0]] * 2)
    ctx = tp.Context().set("attention_mask", mask).set("memory_mask", memory_mask)
    y = run(layer, (X, MEMORY), ctx).numpy()
    x, memory = X.copy(), MEMORY.copy()
    x[:, 4], memory[:, 2] = 7, 7
    np.testing.assert_array_equal(run(layer, (x, memory), ctx).numpy()[:, :4], y[:, :4])
    memory[:, 1] = 7
    assert (run(layer, (x, memory), ctx).numpy()[:, :4] != y[:, :4]).all()


def test_memory_is_taken_from_the_context_too():
    layer = tp.layer.transformer_decoder(8, 2)
    ctx = tp.Context().set("memory", MEMORY)
    np.testing.assert_array_equal(run(layer, X, ctx), run(layer, (X, MEMORY)))
    causal = X.copy()
    causal[:, 3:] = 0
    np.testing.assert_array_equal(run(layer, causal, ctx).numpy()[:, :3], run(layer, X, ctx).numpy()[:, :3])


def test_norm_first_normalizes_before_the_function_and_else_the_sum():
    y = run(tp.layer.transformer_encoder(8, 2, norm_first=False), 10 * X).numpy()
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=-1), 1, atol=1e-3)
    assert (run(tp.layer.transformer_encoder(8, 2), 10 * X).numpy().std(axis=-1) > 3).all()


@pytest.mark.parametrize("norm_first", [False, True])
def test_eps_is_that_of_every_norm_of_a_block(norm_first):
    """The block in float64, from attention and linear layers; eps is larger than the variances."""
    layer = tp.layer.transformer_encoder(8, 2, activation="relu", norm_first=norm_first, eps=3.0)
    vars = layer.init(KEY, tp.float64)
    p = vars.params
    attention = tp.layer.multi_head_attention(8, 2, bias=True)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 3.0)

    def attend(x):
        return attention.apply(vars.with_params(p["self_attention"]), x)[0].numpy()

    def feed_forward(x):
        w1, w2 = p["linear1"]["weight"].numpy(), p["linear2"]["weight"].numpy()
        return np.maximum(x @ w1, 0) @ w2  # biases are zeros at first

    x = X.astype("f8")
    for function in (attend, feed_forward):
        x = x + function(norm(x)) if norm_first else norm(x + function(x))
    np.testing.assert_allclose(layer.apply(vars, X.astype("f8"))[0], x, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="eps"):
        tp.layer.transformer_decoder(8, 2, eps=-1.0)


def test_dropout_of_a_block_differs_by_place_and_key():
    layer = tp.layer.transformer_encoder(8, 2, dropout=0.5)
    vars = layer.init(KEY)
    a, b, c = (layer.apply(vars, X, training=True, rngs=tp.rng.key(k))[0].numpy() for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert (a != run(layer, X).numpy()).any()


def test_upsample_interpolates_between_centres():
    x = [[[0.0, 4.0, 8.0]]]
    assert tp.fn.upsample(x, 4, "linear").tolist() == [[[0, 0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8, 8]]]
    assert tp.fn.upsample([x], (2, 1), "bilinear").tolist() == [[[[0, 4, 8]] * 2]]
    assert tp.fn.upsample([x], (2, 2)).tolist() == [[[[0, 0, 4, 4, 8, 8]] * 2]]


def test_adaptive_windows_overlap_where_sizes_do_not_divide():
    x = np.arange(7.0).reshape(1, 1, 1, 7)
    windows = [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert tp.fn.adaptive_avg_pool2d(x, (1, 3)).tolist() == [[[[np.mean(w) for w in windows]]]]
    x[..., 0] = np.inf
    assert tp.fn.adaptive_avg_pool2d(x, (1, 3)).tolist() == [[[[np.inf, 3, 5]]]]


def test_dropping_a_channel_with_infinity_is_zero():
    x = np.ones((4, 50, 3))
    x[..., 1] = np.inf
    y = tp.fn.dropout2d(x, 0.5, KEY).numpy()
    assert not np.isnan(y).any()
    dropped = y[..., 0] == 0
    assert 50 < dropped.sum() < 150
    assert (y[dropped] == 0).all()


def test_initial_weights_of_transposed_convolutions_are_glorots():
    weight = tp.layer.conv_transpose2d(64, 32, 3).init(KEY).params["weight"].numpy()
    bound = np.sqrt(6 / ((64 + 32) * 9))
    assert weight.shape == (64, 32, 3, 3)
    assert 0.99 * bound < np.abs(weight).max() <= bound * 1.0001


def test_reshape_of_an_empty_batch():
    assert run(tp.layer.reshape((2, -1)), np.zeros((0, 6))).shape == (0, 2, 3)


L = tp.layer
ERRORS = [
    (
        lambda: run(L.reshape((2, 2)), X),
        ValueError,
        r"layer.reshape: x has shape \(2, 5, 8\), expected \(batch",
    ),
    (lambda: L.reshape((-1, -1)), ValueError, r"shape is \(-1, -1\), expected -1 at most once"),
    (lambda: L.permute(1), TypeError, "layer.permute: axes is a int, expected the axes in their new order"),
    (lambda: run(L.pad((1, 1)), X), ValueError, "layer.pad: x has shape .*, 2 spatial axes"),
    (lambda: L.upsample(0), ValueError, "layer.upsample: scale is 0, expected at least 1"),
    (
        lambda: L.upsample(2, "cubic"),
        ValueError,
        "mode is 'cubic', expected 'nearest', 'linear' or 'bilinear'",
    ),
    (
        lambda: run(L.upsample(2, "bilinear"), X),
        ValueError,
        r"mode is 'bilinear', expected \(batch, channels, h",
    ),
    (
        lambda: run(L.global_avg_pool(), X[0]),
        ValueError,
        r"global_avg_pool: x has shape \(5, 8\), expected \(n",
    ),
    (lambda: run(L.instance_norm(5), X[:, :, :1]), ValueError, "more than one element a channel"),
    (
        lambda: L.conv_transpose2d(4, 6, 3, groups=4),
        ValueError,
        "groups is 4, expected a divisor of 4 in_chan",
    ),
    (lambda: L.conv_transpose1d(4, 6, 3, output_padding=1), ValueError, "output_padding is 1, expected less"),
    (
        lambda: L.positional(4, 8, "rotary"),
        ValueError,
        "kind is 'rotary', expected 'learned' or 'sinusoidal'",
    ),
    (lambda: run(L.positional(4, 8), X), ValueError, r"expected \(batch, seq, 8\) with at most 4 positions"),
    (lambda: L.bidirectional(8), TypeError, "layer.bidirectional: layer is a int, expected a Layer"),
    (lambda: L.parallel([]), ValueError, "layer.parallel: layers is empty"),
    (lambda: L.parallel([L.relu(), 3]), TypeError, r"layer.parallel: layers\[1\] is a int, expected a Layer"),
    (
        lambda: L.parallel([L.relu()], "mean"),
        ValueError,
        "combine is 'mean', expected 'concatenate' or 'add'",
    ),
    (
        lambda: run(L.parallel([L.linear(8, 3), L.relu()], "add"), X),
        ValueError,
        r"layer.parallel: outputs have the shapes \[\(2, 5, 3\), \(2, 5, 8\)\], expected the same",
    ),
    (
        lambda: L.transformer_encoder(8, 2, activation="swish"),
        ValueError,
        "activation is 'swish', expected one",
    ),
    (
        lambda: run(L.transformer_decoder(8, 2), X),
        ValueError,
        r"there is no memory, expected a tuple \(x, mem",
    ),
    (
        lambda: run(L.multi_head_attention(8, 2, is_causal=True), (X, MEMORY)),
        ValueError,
        "is_causal or rope is True, expected neither for a tuple",
    ),
    (
        lambda: run(L.multi_head_attention(8, 2), (X, MEMORY[:1])),
        ValueError,
        r"x has shape \(2, 5, 8\) and memory \(1, 3, 8\), expected the same batch",
    ),
    (lambda: run(L.multi_head_attention(8, 2), (X, MEMORY[0])), ValueError, r"memory has shape \(3, 8\)"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
