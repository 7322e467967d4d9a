"""A network of digits 0 to 4, adapted to 5 to 9: `python -m treepie.examples.finetune --plot scores.png`.

The new task has five images of each digit. A new head is trained on the frozen body, then all layers are, the
early ones at the lowest rate; beside it, the same network is trained from scratch.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import treepie as tp

FEW, FROZEN, ALL = 5, 10, 20  # images of each new digit, epochs of the head alone and of all layers


def network() -> tp.layer.Layer:
    """Return a body of two convolutions with batch norm, and a head of two linear layers for five classes."""
    body = [tp.layer.reshape((1, 8, 8))]
    for channels, more in ((1, 16), (16, 32)):
        body += [tp.layer.conv2d(channels, more), tp.layer.batch_norm(more), tp.layer.relu()]
    body += [tp.layer.max_pool2d(2), tp.layer.flatten()]
    head = [tp.layer.dropout(0.3), tp.layer.linear(512, 64), tp.layer.relu(), tp.layer.linear(64, 5)]
    parts = {"body": tp.layer.sequential(body), "head": tp.layer.sequential(head)}
    return tp.layer.model(parts, lambda call, x: call.head(call.body(x)))


def digits(first: int, few: int | None = None) -> tuple[tp.Data, tp.Data]:
    """Return the digits first to first + 4 as data, for training at most `few` of each, and for the test."""
    (x, y), (x_test, y_test) = ((x.numpy(), y.numpy() - first) for x, y in tp.datasets.digits())
    rows = np.concatenate([np.flatnonzero(y == k)[:few] for k in range(5)])
    test = (y_test >= 0) & (y_test < 5)
    train = tp.Data.prepare((x[rows], y[rows]), batch_size=25, shuffle=tp.rng.key(1))
    return train, tp.Data.prepare((x_test[test], y_test[test]), batch_size=60)


def fit(
    vars: tp.layer.Vars, optimizer: tp.optim.Optimizer, data: tuple[tp.Data, tp.Data], epochs: int
) -> tuple[tp.layer.Vars, list[float]]:
    """Return the variables after training, and the test accuracy after each epoch."""
    trainer, history, (train, test) = tp.Trainer(network(), optimizer), tp.History(), data
    train.reset()
    test.reset()
    st = trainer.fit(
        trainer.make_state(vars),
        train,
        rngs=tp.rng.key(2),
        loss=tp.loss.cross_entropy_sparse,
        epochs=epochs,
        validate=(test, {"accuracy": tp.metric.Accuracy()}),
        history=history,
        progress=False,
    )
    return st.vars, [epoch["accuracy"] for epoch in history.epochs]


def main() -> None:
    """Train both; exit with 1 unless the adapted network is better, after 5 epochs and at the end."""
    parser = argparse.ArgumentParser("python -m treepie.examples.finetune", description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="draw accuracies by epoch")
    arguments = parser.parse_args()

    old, accuracies = fit(network().init(tp.rng.key(0)), tp.optim.adam(2e-3), digits(0), epochs=15)
    print(f"digits 0 to 4: test accuracy {accuracies[-1]:.1%}")
    new = network().init(tp.rng.key(3))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        tp.checkpoint.save(file, {"params": old.params, "state": old.state})
        weights = tp.hub.rename(tp.checkpoint.load(file), {r"^(params|state)\.": "", r"^head\.": None})
        vars, report = tp.hub.assign(new, weights, strict=False)  # the head is missing: it stays new
    print(f"weights for 5 to 9: {report}")

    data = digits(5, FEW)
    adam, frozen, partition = tp.optim.adam, tp.optim.frozen, tp.optim.partition
    head = partition({"body": frozen(), "head": adam(3e-3)}, {"body": "body", "head": "head"})
    vars, adapted = fit(vars, head, data, FROZEN)
    rates = {"early": adam(1e-4), "late": adam(3e-4), "head": adam(1e-3)}
    layers = {"body": "early", "body.4": "late", "body.5": "late", "head": "head"}
    vars, more = fit(vars, partition(rates, layers), data, ALL)
    adapted += more
    _, scratch = fit(new, adam(2e-3), data, FROZEN + ALL)

    print(f"\n{'test accuracy, epoch':24}{'5':>8}{FROZEN:>8}{FROZEN + ALL:>8}")
    for name, row in (("adapted", adapted), ("from scratch", scratch)):
        print(f"{name:24}" + "".join(f"{row[k - 1]:8.1%}" for k in (5, FROZEN, FROZEN + ALL)))
    if arguments.plot:
        draw(adapted, scratch, arguments.plot)
    if adapted[4] <= scratch[4] or adapted[-1] <= scratch[-1]:
        sys.exit("the weights of the other digits did not help")


def draw(adapted: list[float], scratch: list[float], file: str) -> None:
    """Draw the accuracies."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, row in (("adapted", adapted), ("from scratch", scratch)):
        axes.plot(range(1, len(row) + 1), row, label=name)
    axes.axvline(FROZEN + 0.5, color="gray", linestyle=":")
    axes.text(FROZEN + 0.8, 0.02, "all layers", transform=axes.get_xaxis_transform(), color="gray")
    axes.text(
        FROZEN + 0.2, 0.02, "head alone", transform=axes.get_xaxis_transform(), color="gray", ha="right"
    )
    axes.set(xlabel="epoch", ylabel="test accuracy", title=f"Digits 5 to 9 from {FEW} images each")
    axes.legend()
    figure.savefig(file)


if __name__ == "__main__":
    main()
