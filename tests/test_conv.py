"""Convolution against loops over every element in float64, and against PyTorch where it is installed."""

import itertools

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops

KEY = tp.rng.key(7)
# (x, weight, stride, dilation, padding, groups); padding as pairs.
CONVOLUTIONS = [
    ((2, 3, 6, 7), (4, 3, 3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1),
    ((1, 2, 5, 5), (3, 2, 2, 4), (1, 1), (1, 1), ((0, 1), (2, 1)), 1),
    ((2, 4, 9, 8), (6, 2, 3, 3), (2, 1), (1, 2), ((1, 1), (2, 2)), 2),
    ((1, 6, 7, 10), (6, 1, 3, 2), (1, 3), (2, 1), ((2, 2), (0, 0)), 6),
    ((2, 3, 7, 7), (12, 1, 3, 3), (3, 3), (1, 1), ((1, 1), (1, 1)), 3),
    ((3, 5, 4, 16), (9, 5, 1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 1),
    ((1, 2, 3, 33), (8, 2, 3, 3), (1, 2), (1, 1), ((1, 1), (1, 1)), 1),
    ((2, 1, 14, 14), (17, 1, 5, 5), (1, 1), (1, 1), ((2, 2), (2, 2)), 1),
    ((1, 3, 15, 17), (2, 3, 4, 4), (4, 4), (1, 1), ((0, 0), (0, 0)), 1),
    ((1, 2, 4, 4), (2, 2, 3, 3), (2, 2), (1, 1), ((5, 5), (6, 6)), 1),
    ((20, 2, 7, 7), (3, 2, 3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1),
    ((1, 2, 40, 31), (2, 2, 3, 3), (1, 1), (3, 3), ((3, 3), (3, 3)), 1),
]


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def loops(x, w, stride, dilation, padding, groups):
    """Convolve one element at a time."""
    (n, _, h, width), (m, channels, kh, kw) = x.shape, w.shape
    out = [
        (size + sum(p) - (k - 1) * d - 1) // s + 1
        for size, p, k, d, s in zip((h, width), padding, (kh, kw), dilation, stride, strict=True)
    ]
    y = np.zeros((n, m, *out))
    for o, i, j, a, b in itertools.product(range(m), range(out[0]), range(out[1]), range(kh), range(kw)):
        r = i * stride[0] + a * dilation[0] - padding[0][0]
        c = j * stride[1] + b * dilation[1] - padding[1][0]
        if 0 <= r < h and 0 <= c < width:
            first = o // (m // groups) * channels
            y[:, o, i, j] += x[:, first : first + channels, r, c] @ w[o, :, a, b]
    return y


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_conv2d_equals_loops(case, dtype):
    x, w, b = draw(case[0]), draw(case[1], 1), draw(case[1][:1], 2)
    result = tp.fn.conv2d(*(a.astype(dtype) for a in (x, w, b)), *case[2:])
    want = loops(x, w, *case[2:]) + b[:, None, None]
    assert result.dtype == dtype
    np.testing.assert_allclose(result, want, rtol=0, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_the_gradients_are_the_adjoints_of_loops(case):
    """<g, conv(u, w)> = <dx, u> and <g, conv(x, v)> = <dw, v>, for any u and v; float64."""
    x, w = draw(case[0]), draw(case[1], 1)
    y, pullback = tp.vjp(lambda x, w: tp.fn.conv2d(x, w, None, *case[2:]), x, w)
    g = draw(y.shape, 2)
    dx, dw = (d.numpy() for d in pullback(tp.tensor(g)))
    u, v = draw(x.shape, 3), draw(w.shape, 4)
    np.testing.assert_allclose((dx * u).sum(), (g * loops(u, w, *case[2:])).sum(), rtol=1e-11)
    np.testing.assert_allclose((dw * v).sum(), (g * loops(x, v, *case[2:])).sum(), rtol=1e-11)


def test_gradients_of_the_gradient():
    x, w, b = draw((2, 2, 5, 4)), draw((4, 1, 3, 2), 1), draw((4,), 2)
    tp.check_grads(lambda *a: tp.fn.conv2d(*a, stride=2, groups=2), (x, w, b), order=3)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv2d_equals_pytorch(case):
    torch = pytest.importorskip("torch")
    x, w, b = draw(case[0]), draw(case[1], 1), draw(case[1][:1], 2)
    _, _, stride, dilation, padding, groups = case
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    padded = torch.nn.functional.pad(inputs[0], (*padding[1], *padding[0]))
    theirs = torch.nn.functional.conv2d(padded, *inputs[1:], stride, 0, dilation, groups)
    ours, pullback = tp.vjp(lambda *a: tp.fn.conv2d(*a, stride, dilation, padding, groups), x, w, b)
    np.testing.assert_allclose(ours, theirs.detach(), rtol=0, atol=1e-12)
    g = draw(ours.shape, 3)
    for d, e in zip(
        pullback(tp.tensor(g)), torch.autograd.grad(theirs, inputs, torch.tensor(g)), strict=True
    ):
        np.testing.assert_allclose(d, e, rtol=0, atol=1e-11)


TRANSPOSED = [  # x, weight, stride, padding, output_padding, groups, dilation
    ((2, 3, 4, 5), (3, 4, 3, 3), 1, 0, 0, 1, 1),
    ((2, 4, 4, 5), (4, 3, 3, 2), (2, 3), 1, (1, 2), 2, 1),
    ((1, 2, 3, 3), (2, 1, 3, 3), 2, (0, 2), 1, 2, 2),
    ((1, 2, 6, 7), (2, 2, 2, 2), 3, 0, 2, 1, 1),
]


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose2d_scatters_the_window(case):
    (n, _, h, width), (_, channels, kh, kw) = case[0], case[1]
    x, w, b = draw(case[0]), draw(case[1], 1), draw((channels * case[5],), 2)
    stride, pad, extra, dilation = ((v, v) if isinstance(v, int) else v for v in (*case[2:5], case[6]))
    groups = case[5]
    whole = np.zeros(
        (
            n,
            channels * groups,
            (h - 1) * stride[0] + dilation[0] * (kh - 1) + 1 + extra[0],
            (width - 1) * stride[1] + dilation[1] * (kw - 1) + 1 + extra[1],
        )
    )
    each = case[1][0] // groups
    for i, y, z, a, c in itertools.product(range(case[1][0]), range(h), range(width), range(kh), range(kw)):
        first = i // each * channels
        at = (y * stride[0] + a * dilation[0], z * stride[1] + c * dilation[1])
        whole[:, first : first + channels, at[0], at[1]] += x[:, i, y, z][:, None] * w[i, :, a, c]
    rows, columns = whole.shape[2] - 2 * pad[0], whole.shape[3] - 2 * pad[1]
    want = whole[:, :, pad[0] : pad[0] + rows, pad[1] : pad[1] + columns] + b[:, None, None]
    np.testing.assert_allclose(tp.fn.conv_transpose2d(x, w, b, *case[2:]), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose2d_equals_pytorch(case):
    torch = pytest.importorskip("torch")
    x, w, b = draw(case[0]), draw(case[1], 1), draw((case[1][1] * case[5],), 2)
    theirs = torch.nn.functional.conv_transpose2d(*(torch.tensor(a) for a in (x, w, b)), *case[2:])
    np.testing.assert_allclose(tp.fn.conv_transpose2d(x, w, b, *case[2:]), theirs, rtol=0, atol=1e-13)


def test_conv_transpose2d_has_gradients():
    x, w, b = draw((2, 2, 3, 4)), draw((2, 3, 3, 2), 1), draw((3,), 2)
    tp.check_grads(lambda *a: tp.fn.conv_transpose2d(*a, 2, 1, 1), (x, w, b), order=2)


@pytest.mark.parametrize(
    ("padding", "pair"),
    [("same", (2, 2)), ("valid", (0, 0)), ("causal", (4, 0)), (3, (3, 3)), ((1, 2), (1, 2))],
)
def test_conv1d(padding, pair):
    x, w, b = draw((2, 4, 19)), draw((6, 2, 3), 1), draw((6,), 2)
    result = tp.fn.conv1d(x, w, b, dilation=2, padding=padding, groups=2)
    want = loops(x[:, :, None], w[:, :, None], (1, 1), (1, 2), ((0, 0), pair), 2)[:, :, 0] + b[:, None]
    np.testing.assert_allclose(result, want, rtol=0, atol=1e-13)


def test_a_causal_convolution_does_not_look_ahead():
    x, w = draw((1, 2, 12)), draw((3, 2, 4), 1)
    later = x.copy()
    later[:, :, 7:] += 1
    a, b = (tp.fn.conv1d(v, w, padding="causal").numpy() for v in (x, later))
    np.testing.assert_array_equal(a[:, :, :7], b[:, :, :7])
    assert a.shape == (1, 3, 12)


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_puts_the_odd_zero_at_the_end(n, stride):
    """ceil(n / stride) results, as TensorFlow and JAX define it."""
    x, w = draw((1, 1, n)), draw((1, 1, 4), 1)
    total = max((-(-n // stride) - 1) * stride + 4 - n, 0)
    padded = np.pad(x[0, 0], (total // 2, total - total // 2))
    want = [padded[k * stride : k * stride + 4] @ w[0, 0] for k in range(-(-n // stride))]
    np.testing.assert_allclose(tp.fn.conv1d(x, w, stride=stride)[0, 0], want, atol=1e-14)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("size", [(5, 7), (4, 8), (6, 12), (6, 32), (14, 14)])
@pytest.mark.parametrize("m", [3, 16])
def test_what_is_not_finite_reaches_its_windows_and_no_others(bad, size, m):
    """Neither vectors that reach beyond a row nor phases of a stride spread it."""
    x, w = np.ones((1, 2, *size), np.float32), np.ones((m, 2, 3, 3), np.float32)
    x[0, 1, 2, 3] = bad
    y = tp.fn.conv2d(x, w).numpy()
    hit = np.zeros(size, bool)
    hit[1:4, 2:5] = True
    np.testing.assert_array_equal(~np.isfinite(y), np.broadcast_to(hit, y.shape))
    attributes = {"stride": (2, 2), "dilation": (1, 1), "padding": (1, 1, 1, 1), "groups": 1}
    g = np.ones(ops.convolution(x, w, **attributes).shape, np.float32)
    g[0, 0, 1, 1] = bad
    dx = ops.convolution_input(g, w, size=size, **attributes).numpy()
    hit = np.zeros(size, bool)
    hit[1:4, 1:4] = True
    np.testing.assert_array_equal(~np.isfinite(dx), np.broadcast_to(hit, dx.shape))
    dw = ops.convolution_weight(np.ones_like(x), g, kernel=(3, 3), **attributes).numpy()
    assert np.isfinite(dw[1:]).all()
    assert not np.isfinite(dw[0]).any()
    dw = ops.convolution_weight(x, np.ones_like(g), kernel=(3, 3), **attributes).numpy()
    assert np.isfinite(dw[:, 0]).all()


def test_a_convolution_in_which_every_place_counts_is_exact():
    """Sums of small integers are exact in float32, whatever the tiles; sizes around those of the tiles."""
    for m, channels, width in itertools.product((1, 3, 8, 9), (1, 2), (4, 7, 8, 12, 15, 16, 17, 31)):
        rng = np.random.default_rng(m * 100 + width)
        x = rng.integers(-8, 9, (2, channels, 3, width)).astype(np.float32)
        w = rng.integers(-8, 9, (m, channels, 3, 3)).astype(np.float32)
        geometry = ((1, 1), (1, 1), ((1, 1), (1, 1)), 1)
        np.testing.assert_array_equal(tp.fn.conv2d(x, w, None, *geometry), loops(x, w, *geometry))


@pytest.mark.parametrize(
    ("layer", "shape", "out", "parameters"),
    [
        (tp.layer.conv2d(3, 8), (2, 3, 9, 7), (2, 8, 9, 7), [(8, 3, 3, 3), (8,)]),
        (
            tp.layer.conv2d(4, 8, 5, 2, padding="valid", groups=2),
            (2, 4, 9, 8),
            (2, 8, 3, 2),
            [(8, 2, 5, 5), (8,)],
        ),
        (tp.layer.conv2d(4, 2, (1, 3), bias=False), (2, 4, 2, 2), (2, 2, 2, 2), [(2, 4, 1, 3)]),
        (tp.layer.conv1d(3, 6, padding="causal", dilation=2), (2, 3, 9), (2, 6, 9), [(6, 3, 3), (6,)]),
        (tp.layer.conv1d(3, 6, 4, stride=2), (2, 3, 9), (2, 6, 5), [(6, 3, 4), (6,)]),
        (tp.layer.max_pool2d(2), (2, 3, 9, 8), (2, 3, 4, 4), []),
        (tp.layer.avg_pool2d((3, 2), 2, "same"), (2, 3, 9, 8), (2, 3, 5, 4), []),
        (tp.layer.max_pool1d(3, padding="same"), (2, 3, 8), (2, 3, 3), []),
        (tp.layer.avg_pool1d(4, 1), (2, 3, 8), (2, 3, 5), []),
    ],
)
def test_layers(layer, shape, out, parameters):
    vars = layer.init(KEY)
    assert [vars.params[k].shape for k in ("weight", "bias") if k in vars.params] == parameters
    x = tp.rng.normal(KEY, shape)
    y, _ = layer.apply(vars, x)
    assert y.shape == out
    assert y.dtype == tp.float32
    assert layer.apply(layer.init(KEY, tp.float64), x)[0].dtype == tp.float64
    _, grads = tp.value_and_grad(lambda p: tp.square(layer.apply(vars.with_params(p), x)[0]).mean())(
        vars.params
    )
    assert all(np.abs(g.numpy()).max() > 0 for g in tp.ptree.leaves(grads))


def test_initial_weights_count_the_window():
    """Glorot: uniform up to sqrt(6 / (fan_in + fan_out)), the window's size in both."""
    w = np.abs(tp.layer.conv2d(32, 64, 5).init(KEY).params["weight"].numpy())
    assert 0.99 < w.max() / np.sqrt(6 / (96 * 25)) <= 1


def test_an_empty_batch():
    assert tp.fn.conv2d(tp.zeros((0, 3, 8, 8)), tp.zeros((4, 3, 3, 3))).shape == (0, 4, 8, 8)
    assert tp.fn.avg_pool2d(tp.zeros((0, 3, 8, 8)), 2).shape == (0, 3, 4, 4)


zeros = tp.zeros
ERRORS = [
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 2, 3, 3))),
        ValueError,
        r"conv2d: x has shape \(1, 3, 8, 8\) and weight \(4, 2, 3, 3\) with groups 1, expected x",
    ),
    (
        lambda: tp.fn.conv2d(zeros((3, 8, 8)), zeros((4, 3, 3, 3))),
        ValueError,
        r"conv2d: x has shape \(3, 8, 8\)",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 4, 8, 8)), zeros((4, 2, 3, 3)), groups=3),
        ValueError,
        "groups 3, expected",
    ),
    (
        lambda: tp.fn.conv1d(zeros((1, 3, 4)), zeros((4, 3, 5)), padding="valid"),
        ValueError,
        r"conv1d: x has shape \(1, 3, 4\), expected at least the window's size, \(5,\)",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 0, 8)), zeros((4, 3, 3, 3)), padding=2),
        ValueError,
        r"conv2d: x has shape \(1, 3, 0, 8\), expected at least the window's size",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), padding="causal"),
        ValueError,
        "conv2d: padding is 'causal', expected 'same', 'valid', ints or pairs",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), padding=-1),
        ValueError,
        "conv2d: padding is -1, expected at least 0",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), stride=0),
        ValueError,
        "conv2d: stride is 0, expected at least 1",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), stride=(1, 1, 1)),
        ValueError,
        r"conv2d: stride is \(1, 1, 1\), expected an int or 2 of them",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), dilation=1.5),
        TypeError,
        "conv2d: dilation is 1.5, expected an int",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3), tp.float64)),
        TypeError,
        "conv2d: x is float32, weight is float64; expected one float dtype",
    ),
    (
        lambda: tp.fn.conv2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3)), zeros((3,))),
        ValueError,
        r"conv2d: bias has shape \(3,\), expected \(4,\)",
    ),
    (
        lambda: tp.fn.conv_transpose2d(zeros((1, 3, 8, 8)), zeros((4, 3, 3, 3))),
        ValueError,
        r"conv_transpose2d: x has shape \(1, 3, 8, 8\) and weight \(4, 3, 3, 3\)",
    ),
    (
        lambda: tp.fn.conv_transpose2d(zeros((1, 4, 8, 8)), zeros((4, 3, 3, 3)), output_padding=1),
        ValueError,
        "output_padding is 1, expected less than the stride or the dilation",
    ),
    (
        lambda: tp.fn.max_pool2d(zeros((1, 4, 8)), 2),
        ValueError,
        r"max_pool2d: x has shape \(1, 4, 8\), expected \(n, channels, h, w\)",
    ),
    (
        lambda: tp.fn.max_pool2d(zeros((1, 4, 8, 8)), 2, padding=2),
        ValueError,
        r"max_pool2d: x has shape .* padding is .*, expected .* padding less than that size",
    ),
    (lambda: tp.fn.avg_pool1d(zeros((1, 4, 2)), 3), ValueError, "avg_pool1d: x has shape"),
    (
        lambda: tp.layer.conv2d(4, 6, groups=4),
        ValueError,
        "layer.conv2d: groups is 4, expected a divisor of 4",
    ),
    (lambda: tp.layer.conv1d(4, 0), ValueError, "layer.conv1d: out_channels is 0, expected at least 1"),
    (lambda: tp.layer.conv2d(4, 6, padding="full"), ValueError, "layer.conv2d: padding is 'full', expected"),
    (lambda: tp.layer.max_pool2d(0), ValueError, "layer.max_pool2d: kernel_size is 0, expected at least 1"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
