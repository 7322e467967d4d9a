"""Pooling against loops over every window in float64, and against PyTorch where it is installed."""

import itertools

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


POOLS = [  # x, kernel, stride, padding, dilation, ceil_mode
    ((2, 3, 6, 8), 2, None, "valid", 1, False),
    ((1, 2, 7, 9), (3, 2), (2, 1), ((1, 1), (0, 1)), 1, False),
    ((1, 1, 10, 41), 3, 2, 1, 1, True),
    ((2, 1, 8, 9), (2, 3), 3, (1, 1), (2, 1), True),
    ((1, 2, 12, 9), (3, 2), 1, ((2, 1), (0, 1)), (2, 1), False),
    ((1, 1, 6, 50), 3, (2, 3), "same", 1, False),
]


def windows(case):
    """Yield (i, j, (a, b) of all the window's elements, of those in the image) of an unpadded x."""
    (_, _, h, w), kernel, stride, padding, dilation, ceil_mode = case
    pair = lambda v: v if isinstance(v, tuple) else (v, v)
    kernel, dilation = pair(kernel), pair(dilation)
    stride = kernel if stride is None else pair(stride)
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip((h, w), stride, kernel, strict=True)
        ]
        padding = tuple((t // 2, t - t // 2) for t in totals)
    padding = tuple(pair(p) for p in pair(padding))
    counts = []
    for n, k, s, d, p in zip((h, w), kernel, stride, dilation, padding, strict=True):
        span = n + sum(p) - (k - 1) * d - 1
        count = (-(-span // s) if ceil_mode else span // s) + 1
        counts.append(count - 1 if (count - 1) * s >= n + p[0] else count)
    for i, j in itertools.product(*(range(c) for c in counts)):
        rows = [i * stride[0] - padding[0][0] + k * dilation[0] for k in range(kernel[0])]
        cols = [j * stride[1] - padding[1][0] + k * dilation[1] for k in range(kernel[1])]
        padded = [(a, b) for a in rows for b in cols if a < h + padding[0][1] and b < w + padding[1][1]]
        yield i, j, padded, [(a, b) for a, b in padded if 0 <= a < h and 0 <= b < w]


@pytest.mark.parametrize("case", POOLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pooling_equals_loops(case, dtype):
    x = draw(case[0]).astype(dtype)
    most = tp.fn.max_pool2d(x, *case[1:]).numpy()
    means = [tp.fn.avg_pool2d(x, *case[1:], count_include_pad=c).numpy() for c in (True, False)]
    count = 0
    for i, j, padded, inside in windows(case):
        values = np.stack([x[:, :, a, b] for a, b in inside]).astype(np.float64)
        np.testing.assert_array_equal(most[:, :, i, j], values.max(0))
        for mean, size in zip(means, (len(padded), len(inside)), strict=True):
            np.testing.assert_allclose(mean[:, :, i, j], values.sum(0) / size, rtol=0, atol=1e-6)
        count += 1
    assert count == most[0, 0].size == means[0][0, 0].size


@pytest.mark.parametrize("case", [c for c in POOLS if c[3] in ("valid", 1, (1, 1))])
def test_pooling_equals_pytorch(case):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    shape, kernel, stride, padding, dilation, ceil_mode = case
    padding = 0 if padding == "valid" else padding
    x = draw(shape)
    t = torch.tensor(x, requires_grad=True)
    pairs = [
        (
            lambda x: tp.fn.max_pool2d(x, *case[1:]),
            functional.max_pool2d(t, kernel, stride, padding, dilation, ceil_mode),
        )
    ]
    if dilation == 1:
        pairs += [
            (
                lambda x, c=c: tp.fn.avg_pool2d(x, *case[1:], count_include_pad=c),
                functional.avg_pool2d(t, kernel, stride, padding, ceil_mode, c),
            )
            for c in (True, False)
        ]
    for ours, theirs in pairs:
        y, pullback = tp.vjp(ours, x)
        np.testing.assert_allclose(y, theirs.detach(), rtol=1e-13, atol=1e-14)
        g = draw(y.shape, 1)
        dx = torch.autograd.grad(theirs, t, torch.tensor(g))[0]
        np.testing.assert_allclose(pullback(tp.tensor(g))[0], dx, rtol=1e-12, atol=1e-13)


def test_pooling_in_one_dimension_and_its_gradients():
    x = draw((2, 3, 11))
    want = np.maximum(np.maximum(x[:, :, :9:2], x[:, :, 1:10:2]), x[:, :, 2::2])
    np.testing.assert_array_equal(tp.fn.max_pool1d(x, 3, 2), want)
    want = (x[:, :, :9:2] + x[:, :, 1:10:2] + x[:, :, 2::2]) / 3
    np.testing.assert_allclose(tp.fn.avg_pool1d(x, 3, 2), want, rtol=0, atol=1e-15)
    tp.check_grads(lambda x: tp.fn.max_pool1d(x, 3, 2), (x,), order=2)
    tp.check_grads(lambda x: tp.fn.avg_pool1d(x, 3, 2, "same", count_include_pad=False), (x,), order=2)


def test_max_pool_takes_nan_and_the_first_of_equals():
    x = np.zeros((1, 1, 2, 6), np.float32)
    x[0, 0, 1, 3], x[0, 0, :, 4:] = np.nan, -np.inf
    y, places = ops.max_pool(x, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0))
    np.testing.assert_array_equal(y, [[[[0, np.nan, -np.inf]]]])
    assert places.tolist() == [[[[0, 9, 4]]]]
    g = tp.grad(lambda x: tp.fn.max_pool2d(x, 2).sum())(tp.tensor(x))
    assert g.tolist() == [[[[1, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0]]]]


@pytest.mark.parametrize(("size", "kernel", "stride", "expected"), [(4, 5, 2, [9.0]), (3, 4, 3, [7.0])])
def test_ceil_mode_takes_a_window_longer_than_the_input(size, kernel, stride, expected):
    """As in PyTorch: the one window reaches beyond the end."""
    x = tp.tensor(np.array([[[1.0, 7.0, 3.0, 9.0][:size]]]))
    assert tp.fn.max_pool1d(x, kernel, stride, ceil_mode=True).tolist() == [[expected]]
    with pytest.raises(ValueError, match="at least the window's size"):
        tp.fn.max_pool1d(x, kernel, stride)
