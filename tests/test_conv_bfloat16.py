"""Convolutions in bfloat16: sums of rounded operands, gradients, threads, programs, what is not finite."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import ops
from treepie.autodiff.op_inputs import operands
from treepie.autodiff.table import OPS

from .test_precision import BOTH, needs_bfloat16, normal, rounded

ROWS = [OPS[name] for name in ("convolution", "convolution_bias", "convolution_input", "convolution_weight")]
CASES = [(row, case) for row in ROWS for case in row.cases]


def geometry(stride=1, dilation=1, padding=0, groups=1):
    pair = lambda v: v if isinstance(v, tuple) else (v, v)
    margins = padding if isinstance(padding, tuple) else (padding,) * 4
    return {"stride": pair(stride), "dilation": pair(dilation), "padding": margins, "groups": groups}


#: Odd numbers of channels and columns, groups, strides and sizes around those of vectors of pairs.
GEOMETRIES = [
    ((2, 3, 6, 31), (16, 3, 3, 3), geometry(padding=1)),
    ((2, 5, 6, 33), (33, 5, 3, 3), geometry(padding=1)),
    ((1, 6, 7, 63), (24, 3, 1, 1), geometry(groups=2)),
    ((2, 16, 9, 11), (16, 16, 3, 3), geometry(2, 1, 1)),
    ((2, 9, 13, 17), (27, 3, 3, 3), geometry(2, 2, 2, 3)),
    ((2, 8, 1, 64), (16, 8, 1, 5), geometry((1, 3), (1, 2), (0, 0, 4, 4))),
    ((1, 7, 40, 9), (8, 7, 5, 1), geometry(1, (3, 1), (6, 6, 0, 0))),
    ((3, 16, 6, 6), (16, 1, 3, 3), geometry(padding=1, groups=16)),
    ((17, 64, 7, 7), (64, 64, 3, 3), geometry(padding=1)),
]


def assert_close(result, row, arrays, attributes):
    """Compare a result with that of the rounded operands, to 16 ulp of the sum of magnitudes."""
    exact = [rounded(a) if a.ndim == 4 else a for a in arrays]  # all operands but a bias
    exact = [a.astype(np.float64) for a in exact]
    bound = 16 * np.finfo(np.float32).eps * row.magnitude(*exact, **attributes)
    assert (np.abs(result - row.oracle(*exact, **attributes)) <= bound).all()


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("k", range(len(CASES)), ids=[f"{row.name}-{case.shapes}" for row, case in CASES])
def test_convolutions_are_those_of_rounded_operands(precision, k):
    row, case = CASES[k]
    arrays = operands(row, case, np.float32)
    with tp.precision(precision):
        result = getattr(ops, row.name)(*arrays, **case.attributes).numpy()
    assert_close(result, row, arrays, case.attributes)


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize(("x", "w", "attributes"), GEOMETRIES)
def test_gradients_are_in_the_precision_of_the_convolution(precision, x, w, attributes):
    x, w = normal(*x), normal(*w)
    with tp.precision(precision):
        y, pullback = tp.vjp(lambda x, w: ops.convolution(x, w, **attributes), x, w)
    assert_close(y.numpy(), OPS["convolution"], (x, w), attributes)
    g = normal(*y.shape)
    dx, dw = (d.numpy() for d in pullback(tp.tensor(g)))  # outside of the block
    assert_close(dx, OPS["convolution_input"], (g, w), {"size": x.shape[2:], **attributes})
    assert_close(dw, OPS["convolution_weight"], (x, g), {"kernel": w.shape[2:], **attributes})


def test_gradients_of_a_convolution_in_float32_stay_in_float32():
    x, w = normal(2, 4, 8, 8), normal(16, 4, 3, 3)

    def gradients(precision):
        with tp.precision(precision):
            return [d.numpy().tobytes() for d in pullback(tp.ones(y.shape))]

    y, pullback = tp.vjp(lambda x, w: tp.fn.conv2d(x, w), x, w)
    assert gradients("bfloat16_emulated") == gradients("float32")


@pytest.mark.parametrize("precision", BOTH)
def test_layers_of_one_axis_and_transposed_ones(precision):
    x, w, b = normal(2, 6, 37), normal(16, 6, 3), normal(16)
    image, filters = normal(2, 6, 9, 7), normal(6, 5, 3, 3)

    def results(x, w, image, filters):
        one = tp.fn.conv1d(x, w, b, dilation=2, padding="causal").numpy()
        return one, tp.fn.conv_transpose2d(image, filters, None, 2, 1, 1).numpy()

    with tp.precision(precision):
        lower = results(x, w, image, filters)
    exact = results(*map(rounded, (x, w, image, filters)))
    for a, e in zip(lower, exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", BOTH)
def test_pooling_and_float64_are_as_exact_as_ever(precision):
    x, y, w = normal(2, 3, 8, 8), normal(2, 3, 8, 8).astype(np.float64), normal(4, 3, 3, 3)
    results = lambda: (tp.fn.avg_pool2d(x, 2).numpy(), tp.fn.conv2d(y, w.astype(np.float64)).numpy())
    exact = results()
    with tp.precision(precision):
        lower = results()
    for a, e in zip(lower, exact, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("k", [0, 3, 8])
def test_bits_do_not_depend_on_threads(precision, k):
    x, w, attributes = GEOMETRIES[k]
    x, w = normal(*x), normal(*w)
    results, threads = set(), tp.get_num_threads()
    try:
        for n in (1, 2, 3):
            tp.set_num_threads(min(n, threads))
            with tp.precision(precision):
                y, pullback = tp.vjp(lambda x, w: ops.convolution(x, w, **attributes), x, w)
                results.add(b"".join(t.numpy().tobytes() for t in (y, *pullback(tp.ones(y.shape)))))
    finally:
        tp.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("size", [(5, 7), (6, 12), (4, 31), (6, 32)])
def test_what_is_not_finite_reaches_its_windows_and_no_others(precision, bad, size):
    """Neither the other channel of a pair nor the end of an odd row spreads it."""
    x, w = np.ones((1, 3, *size), np.float32), np.ones((16, 3, 3, 3), np.float32)
    x[0, 1, 2, -1] = bad
    attributes = geometry(padding=1)
    with tp.precision(precision):
        y = ops.convolution(x, w, **attributes).numpy()
        dw = ops.convolution_weight(x, np.ones_like(y), kernel=(3, 3), **attributes).numpy()
        g = np.ones_like(y)
        g[0, 3, 2, -1] = bad
        dx = ops.convolution_input(g, w, size=size, **attributes).numpy()
        dw_g = ops.convolution_weight(np.ones_like(x), g, kernel=(3, 3), **attributes).numpy()
    hit = np.zeros(size, bool)
    hit[1:4, -2:] = True
    np.testing.assert_array_equal(~np.isfinite(y), np.broadcast_to(hit, y.shape))
    np.testing.assert_array_equal(~np.isfinite(dx), np.broadcast_to(hit, dx.shape))
    # The last column is at the taps of the second and the third column, in its channel.
    assert np.isfinite(dw[:, [0, 2]]).all()
    assert np.isfinite(dw[:, 1, :, 0]).all()
    assert not np.isfinite(dw[:, 1, :, 1:]).any()
    assert np.isfinite(dw_g[[0, 1, 2, *range(4, 16)]]).all()


def small():
    layers = [tp.layer.conv2d(3, 16), tp.layer.batch_norm(16), tp.layer.relu()]
    layers += [tp.layer.conv2d(16, 16, 3, 2), tp.layer.global_avg_pool(), tp.layer.linear(16, 4)]
    return tp.layer.sequential(layers)


@pytest.mark.parametrize("precision", BOTH)
def test_programs_have_the_bits_of_a_block(precision):
    data = tp.Data.prepare((normal(32, 3, 9, 9), np.arange(32) % 4), batch_size=16)

    def train(trainer):
        data.reset()
        st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.cross_entropy_sparse)
        return [t.numpy().tobytes() for t in tp.ptree.leaves(st.vars.params)]

    lower = train(tp.Trainer(small(), tp.optim.sgd(0.1), precision=precision))
    trainer = tp.Trainer(small(), tp.optim.sgd(0.1))
    exact = train(trainer)
    with tp.precision(precision):
        assert train(trainer) == lower != exact


@needs_bfloat16
def test_explain_names_the_precision(capsys):
    trainer = tp.Trainer(small(), tp.optim.sgd(0.1), precision="bfloat16")
    trainer.step(trainer.init(rngs=tp.rng.key(0)), tp.ones((4, 3, 8, 8)), lambda out: tp.mean(out))
    tp.explain(trainer)
    shown = capsys.readouterr().out
    for name in ("convolution_bias", "convolution_input", "convolution_weight"):
        assert f"{name} (bfloat16)" in shown
