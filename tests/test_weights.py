"""Weights of samples and classes: of losses, against scikit-learn, and of `fit`, against repeated rows."""

import functools

import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

import treepie as tp
from treepie.distributed import Local

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(12, 3)), RNG.integers(0, 3, 12)
WEIGHTS = RNG.random(12) * 0.05  # their sum is below 1
CLASSES = np.array([0.5, 2.0, 0.25])
TERMS = np.log(np.exp(LOGITS).sum(1)) - LOGITS[np.arange(12), LABELS]
PRED, TARGET = RNG.normal(size=(12, 2)), RNG.normal(size=(12, 2))
BINARY = RNG.integers(0, 2, 12).astype(float)
loss = tp.loss


def near(value, expected):
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_sample_weights_of_each_loss():
    near(loss.cross_entropy_sparse(LOGITS, LABELS, sample_weight=WEIGHTS), np.average(TERMS, weights=WEIGHTS))
    one_hot = np.eye(3)[LABELS]
    near(loss.cross_entropy(LOGITS, one_hot, sample_weight=WEIGHTS), np.average(TERMS, weights=WEIGHTS))
    z = LOGITS[:, 0]
    binary = np.logaddexp(0, np.where(BINARY == 1, -z, z))
    near(loss.binary_cross_entropy(z, BINARY, sample_weight=WEIGHTS), np.average(binary, weights=WEIGHTS))
    d = PRED - TARGET
    for function, terms in (
        (loss.mse, d**2),
        (loss.mae, abs(d)),
        (functools.partial(loss.huber, delta=0.7), np.where(abs(d) < 0.7, d**2 / 2, 0.7 * (abs(d) - 0.35))),
    ):
        near(function(PRED, TARGET, sample_weight=WEIGHTS), np.average(terms.mean(1), weights=WEIGHTS))
        each = RNG.random((12, 2))
        near(function(PRED, TARGET, sample_weight=each), np.average(terms, weights=each))


def test_they_are_those_of_scikit_learn():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    near(
        loss.cross_entropy_sparse(LOGITS, LABELS, sample_weight=WEIGHTS),
        log_loss(LABELS, p, sample_weight=WEIGHTS),
    )
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    expected = log_loss(LABELS, p, sample_weight=balanced[LABELS])
    near(loss.cross_entropy_sparse(LOGITS, LABELS, class_weight=balanced), expected)


def test_class_weights():
    expected = np.average(TERMS, weights=CLASSES[LABELS])
    one_hot = np.eye(3)[LABELS]
    for weights in (CLASSES, CLASSES.tolist(), tp.tensor(CLASSES), dict(enumerate(CLASSES))):
        near(loss.cross_entropy_sparse(LOGITS, LABELS, class_weight=weights), expected)
        near(loss.cross_entropy(LOGITS, one_hot, class_weight=weights), expected)
    both = np.average(TERMS, weights=CLASSES[LABELS] * WEIGHTS)
    near(loss.cross_entropy_sparse(LOGITS, LABELS, sample_weight=WEIGHTS, class_weight=CLASSES), both)
    some = np.average(TERMS, weights=np.array([1.0, 3.0, 1.0])[LABELS])
    near(loss.cross_entropy_sparse(LOGITS, LABELS, class_weight={1: 3.0}), some)
    z = LOGITS[:, 0]
    binary = np.average(
        np.logaddexp(0, np.where(BINARY == 1, -z, z)), weights=np.where(BINARY == 1, 5.0, 2.0)
    )
    near(loss.binary_cross_entropy(z, BINARY, class_weight=[2.0, 5.0]), binary)


def test_with_targets_that_are_ignored():
    kept = LABELS != 1
    options = {"sample_weight": WEIGHTS, "class_weight": CLASSES, "ignore_index": 1}
    expected = np.average(TERMS[kept], weights=(CLASSES[LABELS] * WEIGHTS)[kept])
    near(loss.cross_entropy_sparse(LOGITS, LABELS, **options), expected)
    del options["class_weight"]
    near(loss.cross_entropy_sparse(LOGITS, LABELS, **options), np.average(TERMS[kept], weights=WEIGHTS[kept]))


def test_gradients():
    for function in (
        lambda x: loss.cross_entropy_sparse(x, LABELS, sample_weight=WEIGHTS, class_weight=CLASSES),
        lambda x: loss.mse(x, np.zeros((12, 3)), sample_weight=WEIGHTS),
    ):
        tp.check_grads(function, (tp.tensor(LOGITS),))


def sparse(**options):
    return loss.cross_entropy_sparse(LOGITS, LABELS, **options)


def mse(weights):
    return loss.mse(PRED, TARGET, sample_weight=weights)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: mse(np.ones(3)),
            ValueError,
            r"mse: sample_weight has shape \(3,\), expected \(12,\), a weight",
        ),
        (lambda: mse(2.0), ValueError, r"mse: sample_weight has shape \(\)"),
        (lambda: mse(-WEIGHTS), ValueError, r"mse: a sample_weight is -0.0.*, expected 0 or more"),
        (lambda: mse(0 * WEIGHTS), ValueError, r"mse: the weights of all targets sum to 0\.0, expected more"),
        (lambda: sparse(class_weight=[1.0, 2.0]), ValueError, r"has shape \(2,\), expected \(3,\)"),
        (lambda: sparse(class_weight={3: 2.0}), ValueError, "class_weight has class 3, expected 0 to 2"),
        (lambda: sparse(class_weight={1: -2.0}), ValueError, "expected numbers of 0 or more"),
        (lambda: sparse(class_weight="balanced"), TypeError, "compute_class_weight"),
    ],
)
def test_wrong_weights(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- in fit

X = RNG.normal(size=(20, 4))
LABELS20 = RNG.integers(0, 3, 20)
COUNTS = RNG.integers(0, 4, 20).astype(float)
COUNTS[4:8] = 0.0  # a micro-shard, or a rank's rows
COUNTS[0] = 2.0


def fit(
    weight=COUNTS, comm=None, loss=tp.loss.cross_entropy_sparse, y=LABELS20, batch_size=20, x=X, **options
):
    """Return parameters and losses."""
    model = tp.layer.sequential([tp.layer.linear(4, 5), tp.layer.tanh(), tp.layer.linear(5, 3)])
    trainer, history = tp.Trainer(model, tp.optim.adam(0.1)), tp.History()
    data = tp.Data.prepare((x, y) if weight is None else (x, y, weight), batch_size)
    data = data if comm is None else data.shard(comm)
    st = trainer.init(tp.rng.key(0), tp.float64)
    options = {"epochs": 4, "history": history, "progress": False, "comm": comm, **options}
    st = trainer.fit(st, data, loss=loss, **options)
    flat = np.concatenate([t.numpy().ravel() for t in tp.ptree.leaves(st.vars.params)])
    return flat, [value for _, value in history.steps]


def same(a, b):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-12)


def own(out, y, w):
    return tp.loss.cross_entropy_sparse(out, y, sample_weight=w)


def reading(out, y, sample_weight):
    assert tp.sum(sample_weight).item() >= 0
    return tp.loss.cross_entropy_sparse(out, y, sample_weight=sample_weight)


LOSSES = {
    "library": tp.loss.cross_entropy_sparse,
    "partial": functools.partial(tp.loss.cross_entropy_sparse, ignore_index=None),
    "pure": tp.pure(lambda out, y, sample_weight: own(out, y, sample_weight)),
    "positional": own,
    "reading": reading,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_is_as_many_equal_rows(name):
    rows = np.repeat(np.arange(20), COUNTS.astype(int))
    repeated = fit(None, x=X[rows], y=LABELS20[rows], batch_size=len(rows))
    same(fit(loss=LOSSES[name]), repeated)
    same(fit(COUNTS * 1e-3, loss=LOSSES[name]), repeated)


PARTS = [{"accumulate_steps": 5, "batch_size": 4}, {"micro_shards": 5}, {"micro_shards": 3, "clip_norm": 0.1}]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", PARTS)
def test_parts_of_a_batch_weigh_as_much_as_their_samples(name, options):
    clip = {"clip_norm": options["clip_norm"]} if "clip_norm" in options else {}
    # Where a loss reads values, it runs op by op, and a part without weights is an error.
    weight = COUNTS + 0.5 if name == "reading" else COUNTS
    same(fit(weight, loss=LOSSES[name], **options), fit(weight, loss=LOSSES[name], **clip))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_ranks_weigh_as_much_as_their_samples(n):
    for mine in Local(n).run(lambda comm: fit(comm=comm)):
        same(mine, fit())
    class_weight = {1: 0.2}
    for mine in Local(n).run(lambda comm: fit(comm=comm, class_weight=class_weight)):
        same(mine, fit(class_weight=class_weight))


def test_micro_shards_with_weights_have_the_same_bits_on_any_number_of_ranks():
    results = [fit(micro_shards=5)]
    results += [r for n in (2, 3) for r in Local(n).run(lambda comm: fit(comm=comm, micro_shards=5))]
    for params, losses in results[1:]:
        assert params.tobytes() == results[0][0].tobytes()
        assert losses == results[0][1]


def test_class_weight_of_fit():
    for weights in (CLASSES, CLASSES.tolist(), dict(enumerate(CLASSES.tolist()))):
        same(fit(None, class_weight=weights), fit(CLASSES[LABELS20]))
        same(fit(class_weight=weights), fit(CLASSES[LABELS20] * COUNTS))
    same(fit(None, class_weight=CLASSES, micro_shards=3), fit(CLASSES[LABELS20]))


def test_programs_are_planned_once(monkeypatch):
    from treepie.train import plan

    plans, whole = [], plan.plan
    monkeypatch.setattr("treepie.train.pure_step.plan", lambda *a: (plans.append(1), whole(*a))[1])
    trainer = tp.Trainer(tp.layer.linear(4, 3), tp.optim.sgd(0.1))
    st = trainer.init(tp.rng.key(0))
    for weights in ({1: 2.0}, {1: 2.0}, {1: 3.0}):
        data = tp.Data.prepare((X.astype("f4"), LABELS20, COUNTS), 20)
        st = trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, epochs=3, class_weight=weights)
    assert len(plans) == 2


def test_parts_without_any_weight_are_an_error():
    with pytest.raises(ValueError, match="all targets of step 1 are ignored or have weight 0"):
        fit(0 * COUNTS, micro_shards=2)
    with pytest.raises(ValueError, match=r"the weights of all targets sum to 0\.0, expected more"):
        fit(0 * COUNTS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": lambda out, y: tp.loss.mse(out, out)}, TypeError, "loss <lambda> takes no sample_weight"),
        (
            {"weight": None, "loss": tp.loss.mse, "class_weight": [1.0]},
            TypeError,
            "mse takes no class_weight",
        ),
        ({"weight": None, "class_weight": "balanced"}, TypeError, "class_weight is 'balanced', expected"),
        ({"weight": None, "loss": None, "class_weight": [1.0]}, ValueError, "class_weight is given without"),
        ({"loss": None}, TypeError, "an element of data is a tuple of 3, expected a tuple of 2"),
    ],
)
def test_a_loss_without_weights_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)
