"""Handwritten digits with a multilayer perceptron: `python -m treepie.examples.digits`."""

import argparse
import sys
import time
from typing import Any

import treepie as tp


def main() -> None:
    """Train on 1437 images, score 360 others; exit with 1 below 96 % accuracy."""
    parser = argparse.ArgumentParser("python -m treepie.examples.digits", description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=30, help="(default: 30)")
    arguments = parser.parse_args()
    (x_train, y_train), (x_test, y_test) = tp.datasets.digits()
    model = tp.layer.sequential(
        [tp.layer.linear(64, 128), tp.layer.relu(), tp.layer.dropout(0.2), tp.layer.linear(128, 10)]
    )
    comm = tp.distributed.world()  # one rank, outside of a launcher
    if comm.rank == 0:
        print(tp.layer.summary(model, input_shape=(1, 64)))

    trainer = tp.Trainer(model, tp.optim.adam(2e-3))
    st = trainer.init(rngs=tp.rng.key(0))
    train = tp.Data.prepare((x_train, y_train), batch_size=32, shuffle=tp.rng.key(1)).shard(comm)
    times: list[float] = []
    st = trainer.fit(
        st,
        train,
        rngs=tp.rng.key(2),
        loss=tp.loss.cross_entropy_sparse,
        epochs=arguments.epochs,
        report=lambda step, loss, st: times.append(time.perf_counter()),
        comm=comm,
    )

    test = tp.Data.prepare((x_test, y_test), batch_size=120).shard(comm)
    metrics = {"accuracy": tp.metric.Accuracy(), "confusion": tp.metric.ConfusionMatrix()}
    scores = trainer.evaluate(st, test, metrics, comm)

    if comm.rank == 0:
        # The first step compiles if the cache is empty.
        print_scores(scores, f"{st.step} steps in {times[-1] - times[0]:.1f} s")
    if scores["accuracy"] < 0.96:
        sys.exit("the digits were not learned")


def print_scores(scores: dict[str, Any], steps: str) -> None:
    """Print the confusion matrix and the accuracy."""
    print("\ntrue \\ predicted  " + "".join(f"{k:5d}" for k in range(10)))
    for k, row in enumerate(scores["confusion"].tolist()):
        print(f"{k:16d}  " + "".join(f"{n or '.':>5}" for n in row))
    print(f"\ntest accuracy {scores['accuracy']:.1%}, {steps}")


if __name__ == "__main__":
    main()
