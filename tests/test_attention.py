"""Attention and rotary embeddings, against float64 NumPy and, where it is installed, PyTorch."""

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS, rng
from treepie.autodiff.op_inputs import tensors

KEY = tp.rng.key(3)


def drawn(*shapes, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return [draw(s) for s in shapes]


def naive(q, k, v, kept, scale=None, factors=1.0):
    """Softmax attention in float64, 0 where a query sees no key; kept: booleans that broadcast."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    kept = np.broadcast_to(kept, scores.shape)
    e = np.where(kept, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    total = e.sum(-1, keepdims=True)
    return (e / np.where(total == 0, 1.0, total) * factors) @ v


def causal(seq_q, seq_k):
    return np.tril(np.ones((seq_q, seq_k), bool))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 5, 32, 64])
@pytest.mark.parametrize("seq", [1, 7, 64, 129])
@pytest.mark.parametrize("is_causal", [False, True])
def test_equals_the_formula(seq, d, is_causal, dtype):
    q, k, v = drawn((2, 4, seq, d), (2, 2, seq, d), (2, 2, seq, d))
    mask = np.random.default_rng(1).random((2, seq)) < 0.7
    kept = mask[:, None, None, :] & (causal(seq, seq) if is_causal else True)
    result = tp.fn.dot_product_attention(
        *(x.astype(dtype) for x in (q, k, v)), mask=mask.astype(np.int32), is_causal=is_causal
    )
    assert result.dtype == dtype
    np.testing.assert_allclose(result, naive(q, k, v, kept), atol=64 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(1, 1, 50, 200), (2, 1, 50, 200), (1, 6, 1, 200), (2, 6, 50, 1), (2, 200)])
def test_masks_broadcast(shape):
    q, k, v = drawn((2, 6, 50, 8), (2, 2, 200, 8), (2, 2, 200, 3))
    mask = np.random.default_rng(1).random(shape) < 0.5
    kept = mask if mask.ndim == 4 else mask[:, None, None, :]
    for is_causal in (False, True):
        result = tp.fn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, scale=-0.3)
        want = naive(q, k, v, kept & (causal(50, 200) if is_causal else True), -0.3)
        np.testing.assert_allclose(result, want, atol=1e-13)


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    q, k, v = drawn((1, 2, 100, 4), (1, 2, 300, 4), (1, 2, 300, 4))
    mask = np.ones((1, 1, 100, 300), bool)
    mask[0, 0, [0, 50, 99]] = False
    mask[0, 0, 7, :200] = False  # nothing in the first block of keys

    def attend(q, k, v):
        return tp.fn.dot_product_attention(q, k, v, mask=mask)

    out, pullback = tp.vjp(attend, *(tp.tensor(x) for x in (q, k, v)))
    np.testing.assert_allclose(out, naive(q, k, v, mask), atol=1e-13)
    assert not out.numpy()[:, :, [0, 50, 99]].any()
    grads = [g.numpy() for g in pullback(tp.ones(out.shape, dtype=tp.float64))]
    assert all(np.isfinite(g).all() for g in grads)
    assert not grads[0][:, :, [0, 50, 99]].any()
    nothing = tp.fn.dot_product_attention(q, k, v, mask=np.zeros((1, 300), bool))
    assert not nothing.numpy().any()


@pytest.mark.parametrize(("seq_q", "seq_k"), [(60, 1), (60, 200), (200, 60)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients(seq_q, seq_k, is_causal):
    args = drawn((1, 4, seq_q, 3), (1, 2, seq_k, 3), (1, 2, seq_k, 5))
    mask = np.random.default_rng(1).random((1, seq_k)) < 0.8
    tp.check_grads(
        lambda *a: tp.fn.dot_product_attention(*a, mask=mask, is_causal=is_causal, dropout=0.3, rngs=KEY),
        args,
    )


def test_third_order_gradients():
    args = drawn((1, 2, 3, 2), (1, 1, 4, 2), (1, 1, 4, 2))
    tp.check_grads(lambda *a: tp.fn.dot_product_attention(*a, is_causal=True), args, order=3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_is_that_of_the_weights(dtype):
    q, k, v = drawn((2, 2, 60, 8), (2, 2, 250, 8), (2, 2, 250, 8))
    kept = rng.bernoulli(KEY, 0.75, (2, 2, 60, 250)).numpy()
    result = tp.fn.dot_product_attention(*(x.astype(dtype) for x in (q, k, v)), dropout=0.25, rngs=KEY)
    np.testing.assert_allclose(
        result, naive(q, k, v, True, factors=kept / 0.75), atol=64 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_large_scores_do_not_overflow(size):
    q = np.full((1, 1, 3, 4), size, np.float32)
    k = np.array([-1, 1, 1, 0.5], np.float32)[None, None, :, None] * np.ones(4, np.float32)
    v = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    np.testing.assert_array_equal(tp.fn.dot_product_attention(q, k, v), np.full((1, 1, 3, 1), 1.5))


def test_nan_reaches_its_row_alone():
    q, k, v = drawn((1, 1, 5, 4), (1, 1, 6, 4), (1, 1, 6, 4))
    q[0, 0, 2, 1] = np.nan
    result = tp.fn.dot_product_attention(q, k, v).numpy()
    assert np.isnan(result[0, 0, 2]).all()
    assert np.isfinite(np.delete(result, 2, 2)).all()


@pytest.mark.parametrize("name", ["attention", "attention_backward"])
@pytest.mark.parametrize("heads", [1, 64])
def test_memory_grows_linearly_in_the_sequence(name, heads):
    """Scratch for twice the tokens is at most twice as much, and far from the matrix of scores."""
    row, sizes = OPS[name], []
    for seq in (1024, 2048, 4096):
        x = np.zeros((1, heads, seq, 4), np.float32)
        few = [np.zeros(0, bool), np.zeros(2, np.int64)]
        first, last = ([], []) if name == "attention" else ([x, x[..., 0]], [x, x[..., 0]])
        arrays = [*first, x, x, x, *few, *last]
        inputs, attributes = row.bind(*tensors(arrays), scale=0.5, is_causal=True, dropout=0.0)
        sizes.append(sum(row.planned([(t.shape, t.dtype) for t in inputs], attributes).scratch))
    assert sizes[1] <= 2 * sizes[0]
    assert sizes[2] <= 2 * sizes[1]
    assert sizes[2] < heads * 4096 * 4096 * 4 / 8


def test_same_bits_at_any_number_of_threads_with_dropout_and_groups(monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    args = [tp.tensor(x, dtype=tp.float32) for x in drawn((1, 6, 200, 16), (1, 2, 300, 16), (1, 2, 300, 16))]
    hashes = set()
    try:
        for n in (1, 2, 5):
            tp.set_num_threads(n)
            out, pullback = tp.vjp(
                lambda *a: tp.fn.dot_product_attention(*a, is_causal=True, dropout=0.1, rngs=KEY), *args
            )
            hashes.add(b"".join(x.numpy().tobytes() for x in (out, *pullback(out))))
    finally:
        tp.set_num_threads(2)
    assert len(hashes) == 1


@pytest.mark.parametrize(("seq_q", "seq_k"), [(1030, 1030), (600, 1100), (1100, 600)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_one_long_head_is_cut_into_parts_of_queries_and_keys(seq_q, seq_k, is_causal, monkeypatch):
    """Two queries share each key; strips of keys are shorter than parts."""
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    seq_first, shapes = not is_causal, [(1, 2, seq_q, 64), (1, 1, seq_k, 64), (1, 1, seq_k, 64)]
    arrays = [np.swapaxes(x, 1, 2) if seq_first else x for x in drawn(*shapes)]
    mask = np.random.default_rng(1).random((1, 1, seq_q, seq_k)) < 0.9
    options = {"scale": 0.125, "is_causal": is_causal, "dropout": 0.1, "seq_first": seq_first}
    g, g_lse = drawn(arrays[0].shape, (1, 2, seq_q), seed=1)
    forward, backward = OPS["attention"], OPS["attention_backward"]
    first = forward.oracle(*arrays, mask, KEY.numpy(), **options)
    want = (*first, *backward.oracle(g, g_lse, *arrays, mask, KEY.numpy(), *first, **options))
    threads, results = tp.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            tp.set_num_threads(n)
            out = forward(*arrays, mask, KEY, **options)
            results.append((*out, *backward(g, g_lse, *arrays, mask, KEY, *out, **options)))
    finally:
        tp.set_num_threads(threads)
    for x, *others in zip(want, *results, strict=True):
        np.testing.assert_allclose(others[0], x, atol=1e-11)
        assert len({y.numpy().tobytes() for y in others}) == 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": (2, 3, 4)}, ValueError, r"attention: q has shape \(2, 3, 4\).*expected"),
        ({"q": (2, 3, 4, 5)}, ValueError, "divisor"),
        ({"v": (2, 2, 5, 4)}, ValueError, "expected"),
        ({"mask": (2, 7)}, ValueError, r"mask has shape \(2, 1, 1, 7\).*\(2, 4, 4, 6\)"),
        ({"mask": (6,)}, ValueError, "mask has shape"),
        ({"mask": (0, 6)}, ValueError, "mask has shape"),
        ({"dropout": 1.0}, ValueError, "rate is 1.0"),
        ({"dropout": 0.5}, ValueError, "rngs is None"),
    ],
)
def test_what_is_wrong_is_refused(change, error, text):
    shapes = {"q": (2, 4, 4, 5), "k": (2, 2, 6, 5), "v": (2, 2, 6, 5)}
    inputs = {**shapes, **change}
    arrays = {k: np.ones(s, bool if k == "mask" else np.float32) for k, s in inputs.items() if k != "dropout"}
    with pytest.raises(error, match=text):
        tp.fn.dot_product_attention(**arrays, dropout=inputs.get("dropout", 0.0))


def test_float_masks_and_mixed_dtypes_are_refused():
    x = np.ones((1, 1, 2, 2), np.float32)
    with pytest.raises(TypeError, match="mask has dtype float32"):
        tp.fn.dot_product_attention(x, x, x, mask=x)
    with pytest.raises(TypeError, match="float64"):
        tp.fn.dot_product_attention(x, x.astype(np.float64), x)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    q, k, v, g = drawn((2, 4, 70, 16), (2, 2, 70, 16), (2, 2, 70, 16), (2, 4, 70, 16))
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    theirs = attend(*leaves, is_causal=True, enable_gqa=True)
    expected = torch.autograd.grad(theirs, leaves, torch.tensor(g))
    result, pullback = tp.vjp(
        lambda *a: tp.fn.dot_product_attention(*a, is_causal=True), *(tp.tensor(x) for x in (q, k, v))
    )
    np.testing.assert_allclose(result, theirs.detach().numpy(), atol=1e-13)
    for mine, other in zip(pullback(tp.tensor(g)), expected, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), atol=1e-12)


@pytest.mark.parametrize("kv_heads", [6, 2])
def test_both_orders_of_axes_give_the_same_bits(kv_heads):
    shapes = [(2, 70, 6, 20), (2, 250, kv_heads, 20), (2, 250, kv_heads, 7), (2, 70, 6, 7)]
    q, k, v, g = (tp.tensor(x, dtype=tp.float32) for x in drawn(*shapes))
    mask = np.random.default_rng(1).random((2, 6, 70, 250)) < 0.7
    attributes = {"scale": 0.2, "is_causal": True, "dropout": 0.1}

    def run(seq_first, *arrays):
        return OPS["attention"](*arrays, mask, KEY, **attributes, seq_first=seq_first)

    result, pullback = tp.vjp(lambda *a: run(True, *a), q, k, v)
    grads = pullback((g, tp.ones(result[1].shape)))
    want, pullback = tp.vjp(lambda *a: run(False, *a), *(x.swapaxes(1, 2) for x in (q, k, v)))
    others = pullback((g.swapaxes(1, 2), tp.ones(result[1].shape)))
    np.testing.assert_array_equal(result[1], want[1])
    for a, b in zip((result[0], *grads), (want[0], *others), strict=True):
        assert a.shape[1] in (70, 250)
        np.testing.assert_array_equal(a, b.swapaxes(1, 2))
    angles = [x.astype(np.float32) for x in drawn((70, 10), (70, 10))]
    turned, again = (OPS["rope"](x, *angles, seq_first=f) for x, f in ((q, True), (q.swapaxes(1, 2), False)))
    np.testing.assert_array_equal(turned, again.swapaxes(1, 2))


def test_rope_turns_pairs_half_a_row_apart():
    x = drawn((2, 3, 5, 8))[0]
    angles = np.arange(7, 12)[:, None] * 100.0 ** (-np.arange(4) / 4)
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
    np.testing.assert_allclose(
        tp.fn.rope(x, theta=100.0, offset=7), np.concatenate([pairs.real, pairs.imag], -1), atol=1e-14
    )
    assert (tp.fn.rope(x).numpy()[..., 0, :] == x[..., 0, :]).all()
    tp.check_grads(tp.fn.rope, (x,))
    for wrong in ((3, 5), (4,)):
        with pytest.raises(ValueError, match="rope: x has shape"):
            tp.fn.rope(np.ones(wrong))


def test_rope_makes_scores_depend_on_distance_alone():
    q, k = drawn((1, 1, 9, 6), (1, 1, 9, 6))
    q[:], k[:] = q[:, :, :1], k[:, :, :1]
    scores = (tp.fn.rope(q) @ tp.fn.rope(k).swapaxes(-1, -2)).numpy()[0, 0]
    np.testing.assert_allclose(scores[1:, 1:], scores[:-1, :-1], atol=1e-13)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_multi_head_attention_is_its_formula(kv_heads, rope):
    model = tp.layer.multi_head_attention(12, 6 if not rope else 2, None if rope else kv_heads, rope=rope)
    heads = 6 if not rope else 2
    vars = model.init(KEY, dtype=tp.float64)
    x = drawn((2, 5, 12))[0]
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]])
    y, _ = model.apply(vars, x, ctx=tp.Context().set("attention_mask", mask))
    w = {k: p.numpy() for k, p in vars.params.items()}

    def split(name):
        out = (x @ w[name]).reshape(2, 5, -1, 12 // heads).swapaxes(1, 2)
        return tp.fn.rope(out).numpy() if rope and name != "v_proj" else out

    out = naive(split("q_proj"), split("k_proj"), split("v_proj"), mask[:, None, None, :] != 0)
    np.testing.assert_allclose(y, out.swapaxes(1, 2).reshape(2, 5, 12) @ w["out_proj"], atol=1e-13)


def test_multi_head_attention_drops_in_training_alone_and_sees_no_future():
    model = tp.layer.multi_head_attention(8, 2, dropout=0.5, is_causal=True)
    vars, x = model.init(KEY), drawn((1, 6, 8))[0]
    y = model.apply(vars, x)[0].numpy()
    changed = x.copy()
    changed[:, 3:] += 1
    np.testing.assert_array_equal(model.apply(vars, changed)[0].numpy()[:, :3], y[:, :3])
    assert (model.apply(vars, x, training=True, rngs=KEY)[0].numpy() != y).any()
    with pytest.raises(ValueError, match="rngs is None"):
        model.apply(vars, x, training=True)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((8, 3), "embed_dim is 8"),
        ((8, 4, 3), "num_kv_heads 3"),
        ((0, 1), "embed_dim is 0"),
        ((8, 2, 0), "kv"),
    ],
)
def test_multi_head_attention_refuses_sizes_that_do_not_divide(args, text):
    with pytest.raises(ValueError, match=text):
        tp.layer.multi_head_attention(*args)
    with pytest.raises(ValueError, match="even"):
        tp.layer.multi_head_attention(6, 2, rope=True)


def test_a_second_derivative_under_jit_takes_the_mask_of_each_call():
    q, k, v = (tp.tensor(np.random.default_rng(n).normal(size=(1, 2, 3, 4))) for n in range(3))

    def second(x, mask):
        attend = lambda t: tp.square(tp.fn.dot_product_attention(t, k, v, mask=mask)).sum()
        return tp.grad(lambda t: tp.square(tp.grad(attend)(t)).sum())(x)

    jitted = tp.jit(second)
    for mask in ([[1, 1, 1]], [[1, 0, 1]], [[1, 1, 0]]):
        np.testing.assert_array_equal(jitted(q, tp.tensor(mask)), second(q, tp.tensor(mask)))
