"""A table of numbers and categories: `python -m treepie.examples.tabular --plot tabular.png`.

Customers of a phone company, of whom few leave. Numbers are standardized, categories are embedded, the rare
class weighs more, training stops early, and permutation importance shows which columns the model relies on.
"""

import argparse
from typing import Any

import numpy as np

import treepie as tp

NUMBERS, CATEGORIES = ("age", "months", "bill", "calls"), ("plan", "payment", "region")
TRAIN, VALID, TEST = slice(6000), slice(6000, 8000), slice(8000, 10000)


def customers(n: int, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    """Return the columns of a table (a pandas.DataFrame works too), and who leaves (1) or stays (0)."""
    table = {
        "age": rng.integers(18, 90, n),
        "months": rng.exponential(30, n).round(),
        "bill": rng.lognormal(3, 0.5, n),
        "calls": rng.poisson(1.5, n),  # to the support
        "plan": rng.choice(["prepaid", "monthly", "yearly"], n),
        "payment": rng.choice(["card", "cash", "transfer"], n, p=[0.5, 0.2, 0.3]),
        "region": rng.choice(["north", "south", "east", "west"], n),
    }
    monthly, cash = table["plan"] == "monthly", table["payment"] == "cash"
    risk = 0.9 * table["calls"] * (1 + monthly) - table["months"] / 10 + 2 * cash * (table["bill"] > 20)
    return table, (risk + rng.logistic(0, 0.7, n) > 3).astype(np.int32)[:, None]


def encoded(table: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the model's inputs: standardized numbers, and the index of each category."""
    numbers = {c: np.asarray(table[c], np.float32) for c in NUMBERS}
    numbers = {c: (x - x[TRAIN].mean()) / x[TRAIN].std() for c, x in numbers.items()}
    return numbers | {c: np.unique(table[c], return_inverse=True)[1] for c in CATEGORIES}


def network(x: dict[str, np.ndarray]) -> tp.layer.Layer:
    """Return a perceptron of the numbers and of embeddings of the categories."""
    embeddings = {c: tp.layer.embedding(int(x[c].max()) + 1, 4) for c in CATEGORIES}
    layers = [tp.layer.linear(len(NUMBERS) + 4 * len(CATEGORIES), 64), tp.layer.relu(), tp.layer.dropout(0.2)]
    layers += [tp.layer.linear(64, 32), tp.layer.relu(), tp.layer.linear(32, 1)]

    @tp.pure
    def forward(call: Any, x: dict[str, tp.Tensor]) -> Any:
        numbers = tp.stack([x[c] for c in NUMBERS], axis=1)
        return call.head(tp.concatenate([numbers, *(getattr(call, c)(x[c]) for c in CATEGORIES)], axis=1))

    return tp.layer.model({**embeddings, "head": tp.layer.sequential(layers)}, forward)


def main() -> None:
    """Train on 6000 customers, stop by the scores of 2000, report the scores of 2000 others."""
    parser = argparse.ArgumentParser("python -m treepie.examples.tabular", description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=40, help="at most (default: 40)")
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix and the importances")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    table, y = customers(10000, rng)
    inputs = encoded(table)
    train, valid, test = (({c: x[part] for c, x in inputs.items()}, y[part]) for part in (TRAIN, VALID, TEST))
    trainer = tp.Trainer(network(inputs), tp.optim.adamw(3e-3))
    st = trainer.fit(
        trainer.init(tp.rng.key(0)),
        tp.Data.prepare(train, batch_size=128, shuffle=tp.rng.key(1)),
        rngs=tp.rng.key(2),
        loss=tp.loss.binary_cross_entropy,
        class_weight={1: (y == 0).sum() / (y == 1).sum()},  # both classes count as much
        epochs=arguments.epochs,
        validate=(tp.Data.prepare(valid, batch_size=2000), {"auc": tp.metric.AUC()}),
        callbacks=[tp.callback.early_stopping("auc", patience=8)],
    )

    confusion = tp.metric.ConfusionMatrix(from_logits=True)
    metrics = {"auc": tp.metric.AUC(), "recall": tp.metric.Recall(from_logits=True), "confusion": confusion}
    scores = trainer.evaluate(st, tp.Data.prepare(test, batch_size=2000), metrics)
    print(f"{y.mean():.1%} leave; test AUC {scores['auc']:.3f}, balanced accuracy {scores['recall']:.1%}")
    order, lost = rng.permutation(2000), {}
    for c in NUMBERS + CATEGORIES:
        shuffled = test[0] | {c: test[0][c][order]}
        lost[c] = scores["auc"] - tp.metric.auc_roc(trainer.predict(st, shuffled), test[1])
    lost = dict(sorted(lost.items(), key=lambda pair: -pair[1]))
    print("AUC lost without", ", ".join(f"{c} {lost[c]:.3f}" for c in lost))
    if arguments.plot:
        from matplotlib import pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        confusion.plot(["stays", "leaves"], ax=left)
        right.barh(list(lost)[::-1], list(lost.values())[::-1])
        right.set(title="Permutation importance", xlabel="AUC lost when the column is shuffled")
        figure.savefig(arguments.plot)


if __name__ == "__main__":
    main()
