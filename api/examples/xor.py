"""XOR, the smallest problem that needs a hidden layer: `python -m treepie.examples.xor`."""

import argparse
import sys

import numpy as np

import treepie as tp


def main() -> None:
    """Train a 2-4-1 network and print its predictions; exit with 1 for an error of 0.05 or more."""
    argparse.ArgumentParser("python -m treepie.examples.xor", description=main.__doc__).parse_args()
    x = tp.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = tp.tensor([[0.0], [1.0], [1.0], [0.0]])

    model = tp.layer.sequential([tp.layer.linear(2, 4), tp.layer.tanh(), tp.layer.linear(4, 1)])
    trainer = tp.Trainer(model, tp.optim.adam(0.05))
    st = trainer.init(rngs=tp.rng.key(42))
    st = trainer.fit(st, tp.Data.repeat(500, (x, y)), loss=tp.loss.mse)

    predicted = trainer.predict(st, x)
    print("  a  b  a xor b  predicted")
    for (a, b), target, p in zip(x.tolist(), y.tolist(), predicted.tolist(), strict=True):
        print(f"{a:3.0f}{b:3.0f}{target[0]:9.0f}{p[0]:11.3f}")
    if np.abs(predicted - y).max() >= 0.05:
        sys.exit("XOR was not learned")


if __name__ == "__main__":
    main()
