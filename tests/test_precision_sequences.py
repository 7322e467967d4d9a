"""Products inside of attention and recurrences in bfloat16, against oracles that round the same operands."""

import functools

import numpy as np
import pytest

import treepie as tp
from treepie.autodiff import OPS, ops
from treepie.autodiff.ops import recurrence_formulas as formulas

from .test_precision import BOTH, bits, needs_bfloat16, rounded

EPS = np.finfo(np.float32).eps
NO_MASK, NO_KEY = np.zeros(0, bool), np.zeros(2, np.int64)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def doubled(x):
    return rounded(np.ascontiguousarray(x, np.float32)).astype(np.float64)


def swap(x):
    return np.swapaxes(x, -1, -2)


# ---- attention
def flips(x, error):
    """Return x rounded, and how far off it may be where x has an error: it may cross a midpoint."""
    return doubled(x), doubled(x + error) - doubled(x - error)


class Attention:
    """Attention of rounded operands in float64, with the errors that float32 may make."""

    def __init__(self, q, k, v, kept, scale):
        self.q, self.k, self.v, self.scale = doubled(np.float32(scale) * q), doubled(k), doubled(v), scale
        self.kept = np.broadcast_to(kept, (*q.shape[:3], k.shape[2]))
        self.scores = np.where(self.kept, self.q @ swap(self.k), -np.inf)
        self.error = 16 * EPS * (np.abs(self.q) @ swap(np.abs(self.k)) + 1)  # of scores, and of exp

    def forward(self):
        """Return the result and its bound: exponentials are rounded, relative to the maximum so far."""
        top = np.maximum.accumulate(self.scores, -1)
        ends = np.minimum(np.arange(self.k.shape[2]) // 192 * 192 + 191, self.k.shape[2] - 1)
        running, last = top[..., ends], top[..., -1:]
        e = np.exp(self.scores - running)
        p, off = flips(e, e * self.error)
        factors = np.exp(running - last) / np.exp(self.scores - last).sum(-1, keepdims=True)
        bound = (factors * (off + p * (16 * EPS + 2 * self.error))) @ np.abs(self.v)
        return (factors * p) @ self.v, bound + (factors * p * self.error).max(-1, keepdims=True)

    def backward(self, g, out, lse):
        """Return the gradients of q, k and v, and their bounds."""
        delta, rounded_g = (g.astype(np.float64) * out).sum(-1, keepdims=True), doubled(g)
        p = np.exp(self.scores - lse[..., None])
        dp = rounded_g @ swap(self.v)
        size = np.abs(rounded_g) @ swap(np.abs(self.v)) + (np.abs(g) * np.abs(out)).sum(-1, keepdims=True)
        ds = p * (dp - delta)
        error = p * size * (16 * EPS + self.error)
        (p, off_p), (ds, off_ds) = flips(p, p * self.error), flips(ds, error)
        off_p, off_ds = off_p + 16 * EPS * p, off_ds + 16 * EPS * np.abs(ds)
        gradients = self.scale * (ds @ self.k), swap(ds) @ self.q, swap(p) @ rounded_g
        bounds = (
            abs(self.scale) * (off_ds @ np.abs(self.k)),
            swap(off_ds) @ np.abs(self.q),
            swap(off_p) @ np.abs(rounded_g),
        )
        return gradients, bounds


def assert_within(result, want, bound):
    excess = np.abs(result.numpy() - want) - bound
    assert (excess <= 1e-30).all(), excess.max()


def run(precision, q, k, v, mask=NO_MASK, key=NO_KEY, **options):
    options = {"scale": q.shape[-1] ** -0.5, "is_causal": False, "dropout": 0.0, **options}
    return ops.attention(q, k, v, mask, key, precision=precision, **options), options


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize(
    ("queries", "keys", "d", "dim_v", "is_causal"),
    [
        (1, 1, 1, 1, False),
        (3, 2, 2, 5, True),
        (50, 201, 5, 7, False),
        (97, 97, 33, 64, True),
        (131, 431, 16, 3, True),
        (49, 385, 64, 32, False),
        (200, 60, 8, 8, True),
    ],
)
def test_attention_is_that_of_rounded_operands(precision, queries, keys, d, dim_v, is_causal):
    q, k, v = normal(2, 3, queries, d), normal(2, 3, keys, d, seed=1), normal(2, 3, keys, dim_v, seed=2)
    (out, lse), options = run(precision, q, k, v, is_causal=is_causal)
    kept = np.tril(np.ones((queries, keys), bool)) if is_causal else True
    want = Attention(q, k, v, kept, options["scale"])
    assert_within(out, *want.forward())
    g, none = normal(2, 3, queries, dim_v, seed=3), np.zeros((2, 3, queries), np.float32)
    arguments = g, none, q, k, v, NO_MASK, NO_KEY, out, lse
    gradients = ops.attention_backward(*arguments, precision=precision, **options)
    for result, *wanted in zip(gradients, *want.backward(g, out.numpy(), lse.numpy()), strict=True):
        assert_within(result, *wanted)


@pytest.mark.parametrize("precision", BOTH)
def test_attention_with_masks_and_groups(precision):
    q, k, v = normal(2, 4, 60, 24), normal(2, 2, 250, 24, seed=1), normal(2, 2, 250, 16, seed=2)
    mask = np.random.default_rng(1).random((2, 1, 60, 250)) < 0.5
    (out, _), options = run(precision, q, k, v, mask, scale=0.3)
    want = Attention(q, np.repeat(k, 2, 1), np.repeat(v, 2, 1), mask, options["scale"])
    assert_within(out, *want.forward())
    first = [np.ascontiguousarray(np.swapaxes(x, 1, 2)) for x in (q, k, v)]
    (swapped, _), _ = run(precision, *first, mask, scale=0.3, seq_first=True)
    np.testing.assert_array_equal(np.swapaxes(swapped.numpy(), 1, 2), out.numpy())


def attention_loss(precision, q, k, v):
    with tp.precision(precision):
        return tp.fn.dot_product_attention(
            q, k, v, is_causal=True, dropout=0.25, rngs=tp.rng.key(3), scale=0.25
        )


@needs_bfloat16
def test_attention_with_dropout_is_that_of_the_emulation():
    args = [tp.tensor(normal(1, 2, n, 16, seed=s)) for s, n in enumerate((100, 230, 230))]
    results = []
    for precision in ("bfloat16", "bfloat16_emulated"):
        out, pullback = tp.vjp(functools.partial(attention_loss, precision), *args)
        results.append((out, *pullback(tp.tensor(normal(1, 2, 100, 16, seed=9)))))
    for native, emulated in zip(*results, strict=True):
        # A rounding to the other neighbour, 2^-8, of a few of the terms.
        np.testing.assert_allclose(native, emulated, rtol=0, atol=2**-8 * np.abs(emulated.numpy()).max() / 2)
        assert np.median(np.abs(native.numpy() - emulated.numpy())) < 32 * EPS


@pytest.mark.parametrize("precision", BOTH)
def test_gradients_of_attention_have_the_precision_of_the_block_of_its_call(precision):
    args = [tp.tensor(normal(1, 2, 20, 16, seed=s)) for s in range(3)]
    loss = functools.partial(attention_loss, precision)
    outside = tp.vjp(loss, *args)[1](tp.ones((1, 2, 20, 16)))
    with tp.precision(precision):
        inside = tp.vjp(loss, *args)[1](tp.ones((1, 2, 20, 16)))
        exact = tp.vjp(functools.partial(attention_loss, "float32"), *args)[1](tp.ones((1, 2, 20, 16)))
    plain = tp.vjp(functools.partial(attention_loss, "float32"), *args)[1](tp.ones((1, 2, 20, 16)))
    for a, b, c, d in zip(outside, inside, exact, plain, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes() != c.numpy().tobytes() == d.numpy().tobytes()
        assert np.abs(a.numpy() - c.numpy()).max() < 2**-5


@pytest.mark.parametrize("precision", BOTH)
def test_special_numbers_in_attention(precision):
    q, k, v = normal(1, 1, 5, 3), normal(1, 1, 7, 3, seed=1), normal(1, 1, 7, 3, seed=2)
    q[0, 0, 2, 1], v[0, 0, 4, 0] = np.nan, np.inf
    (out, _), _ = run(precision, q, k, v)
    assert np.isnan(out.numpy()[0, 0, 2]).all()
    others = np.delete(out.numpy(), 2, 2)
    assert (others[..., 0] == np.inf).all()
    assert np.isfinite(others[..., 1:]).all()
    nothing, _ = run(precision, k, k, k, np.zeros((1, 1, 7, 7), bool))
    assert not nothing[0].numpy().any()


# ---- recurrences: each step against the oracle of the step, from the states of the step before
COUNTS = {"lstm": 4, "gru": 3, "rnn": 1}
SIZES = [(1, 2, 1), (3, 4, 5), (30, 3, 33), (13, 2, 64)]


def steps_of(kind, b, t, n):
    states = [normal(b, n, seed=s) for s in range(2 if kind == "lstm" else 1)]
    wide = COUNTS[kind] * n
    return [normal(b, t, wide), *states, normal(n, wide, seed=5) / np.float32(np.sqrt(n)), normal(wide)]


def at(x, t):
    return x[:, t : t + 1].astype(np.float64)


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize(("b", "t", "n"), SIZES)
def test_recurrences_multiply_rounded_states(precision, kind, b, t, n):
    x, h, *c, w, bias = steps_of(kind, b, t, n)
    results = OPS[f"{kind}_steps"](x, h, *c, w, bias, precision=precision)
    results = [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]
    oracle = getattr(formulas, f"{kind}_oracle")
    for step in range(t):
        product = doubled(h) @ doubled(w)
        wants = oracle(at(x, step), h.astype(np.float64), *c, w * 0.0, bias + product)
        size = (np.abs(doubled(h)) @ np.abs(doubled(w))).max() + 8
        for result, want in zip(results, wants if kind != "rnn" else [wants], strict=True):
            np.testing.assert_allclose(at(result, step), want, rtol=0, atol=16 * EPS * size)
        h, c = results[0][:, step], [results[1][:, step].astype(np.float64) for _ in c]


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize(("b", "t", "n"), SIZES)
def test_gradients_of_recurrences_multiply_rounded_gradients(precision, kind, b, t, n):
    x, h, *c, w, bias = steps_of(kind, b, t, n)
    results = OPS[f"{kind}_steps"](x, h, *c, w, bias)
    states, *others = [r.numpy() for r in (results if isinstance(results, tuple) else (results,))]
    g, none = normal(b, t, n, seed=8), np.zeros(0, np.float32)
    kept = {"lstm": lambda: (others[1], others[0], c[0]), "gru": lambda: (others[0], states, h)}
    inputs = kept.get(kind, lambda: (states,))()
    empty = [none] * {"lstm": 2, "gru": 1, "rnn": 0}[kind]
    gradients = OPS[f"{kind}_backward"](g, *empty, *inputs, w, precision=precision)
    gradients = [r.numpy() for r in gradients]
    gradient = getattr(formulas, f"{kind}_gradients")
    carried, cells = np.zeros((b, n)), np.zeros((b, n))
    for step in reversed(range(t)):
        arrays = [at(y, step) for y in inputs[: 1 if kind == "rnn" else 2]]
        if kind != "rnn":
            whole = others[0] if kind == "lstm" else states
            arrays.append(whole[:, step - 1].astype(np.float64) if step else inputs[2].astype(np.float64))
        more = {"lstm": [cells[:, None], none], "gru": [none], "rnn": []}[kind]
        wants = gradient(formulas.NUMPY, at(g, step) + carried[:, None], *more, *arrays, w * 0.0)
        size = np.abs(carried).max() + np.abs(cells).max() + np.abs(g).max() + 8
        own = gradients[1 if kind == "gru" else 0]
        for result, want in zip(gradients[: 2 if kind == "gru" else 1], wants, strict=False):
            np.testing.assert_allclose(at(result, step), want, rtol=0, atol=16 * EPS * size)
        rest = wants[2] if kind == "gru" else 0.0
        cells = wants[2] if kind == "lstm" else cells
        carried = rest + doubled(own[:, step]) @ doubled(w).T
    dh0 = gradients[2 if kind == "gru" else 1]
    np.testing.assert_allclose(dh0, carried, rtol=0, atol=16 * EPS * (np.abs(carried).max() + 8))


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("kind", COUNTS)
def test_gradients_of_recurrences_have_the_precision_of_the_block_of_their_call(precision, kind):
    layer = getattr(tp.layer, kind)(6, 10)
    params, x = layer.init(tp.rng.key(0)).params, tp.tensor(normal(4, 5, 6))

    def gradients(name, order):
        def f(p):
            with tp.precision(name):
                return tp.sum(layer.apply(tp.layer.Vars(p, {}, tp.float32), x)[0][0] ** 2)

        g = tp.grad(f)
        if order == 2:
            g = tp.grad(lambda p: sum(tp.sum(t * t) for t in tp.ptree.leaves(tp.grad(f)(p))))
        return tp.ptree.leaves(g(params))

    for order in (1, 2):
        outside = gradients(precision, order)
        with tp.precision(precision):
            inside, exact = gradients(precision, order), gradients("float32", order)
        for a, b, c, d in zip(outside, inside, exact, gradients("float32", order), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes() != c.numpy().tobytes() == d.numpy().tobytes()
            np.testing.assert_allclose(a, c, rtol=0, atol=0.05 * np.abs(c.numpy()).max())


# ---- both
def language_model(kind):
    block = (
        tp.layer.multi_head_attention(16, 2, is_causal=True)
        if kind == "attention"
        else getattr(tp.layer, kind)(16, 16)
    )
    return tp.layer.sequential([tp.layer.linear(8, 16), block, tp.layer.linear(16, 4)])


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("kind", ["attention", "lstm", "gru", "rnn"])
def test_bits_do_not_depend_on_threads(precision, kind, monkeypatch):
    monkeypatch.setattr("treepie.kernels.config.PARALLEL_GAIN", 0.0)
    model, x, y = language_model(kind), tp.tensor(normal(8, 60, 8)), tp.tensor(normal(8, 60, 4, seed=1))

    def loss(out):
        out = out[0] if isinstance(out, tuple) else out
        return tp.mean((out - y) ** 2)

    results, threads = set(), tp.get_num_threads()
    try:
        for n in (1, 2, 3):
            tp.set_num_threads(n)
            trainer = tp.Trainer(model, tp.optim.sgd(0.1), precision=precision)
            st = trainer.init(rngs=tp.rng.key(0))
            for _ in range(2):
                _, st = trainer.step(st, x, loss)
            results.add(b"".join(bits(st)))
    finally:
        tp.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.parametrize("precision", BOTH)
@pytest.mark.parametrize("kind", ["attention", "lstm", "gru", "rnn"])
def test_programs_have_the_bits_of_eager_calls(precision, kind):
    model, x = language_model(kind), tp.tensor(normal(8, 60, 8))
    variables = model.init(tp.rng.key(0))

    def f(p):
        out = model.apply(tp.layer.Vars(p, variables.state, tp.float32), x)[0]
        return tp.sum((out[0] if isinstance(out, tuple) else out) ** 2)

    with tp.precision(precision):
        eager, compiled = tp.grad(f)(variables.params), tp.jit(tp.grad(f))(variables.params)
    for a, b in zip(tp.ptree.leaves(eager), tp.ptree.leaves(compiled), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@needs_bfloat16
@pytest.mark.parametrize(("kind", "op"), [("attention", "attention"), ("lstm", "lstm_steps")])
def test_explain_names_the_precision(kind, op, capsys):
    trainer = tp.Trainer(language_model(kind), tp.optim.sgd(0.1), precision="bfloat16")
    st = trainer.init(rngs=tp.rng.key(0))
    trainer.step(st, tp.ones((2, 6, 8)), lambda out: tp.mean(out))
    tp.explain(trainer)
    shown = capsys.readouterr().out
    assert f"{op} (bfloat16)" in shown
    assert f"{op.replace('_steps', '')}_backward (bfloat16)" in shown


@pytest.mark.parametrize("precision", BOTH)
def test_float64_is_as_exact_as_ever(precision):
    q = np.random.default_rng(0).standard_normal((1, 1, 9, 4))
    layer = tp.layer.gru(4, 5)
    params = tp.ptree.map(lambda p: p.astype(tp.float64), layer.init(tp.rng.key(0)).params)

    def both():
        states = layer.apply(tp.layer.Vars(params, {}, tp.float64), tp.tensor(q[0]))[0]
        return [tp.fn.dot_product_attention(q, q, q), *tp.ptree.leaves(states)]

    exact = both()
    with tp.precision(precision):
        for a, b in zip(both(), exact, strict=True):
            np.testing.assert_array_equal(a, b)
