"""A generative adversarial network (Goodfellow et al. 2014): `python -m treepie.examples.gan --plot gan.png`.

The generator learns to draw points like those of eight Gaussians on a circle, the critic to tell them apart.
They are two models, each with its own optimizer, whose steps alternate; the generator's loss is the critic's
opinion, and its gradient passes through the critic.
"""

import argparse
import sys
from typing import Any

import numpy as np

import treepie as tp

BATCH, NOISE, MODES, STD = 256, 8, 8, 0.1
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def real_points(key: tp.Tensor, n: int) -> tp.Tensor:
    """Return n points of the mixture, (n, 2)."""
    mode, around = tp.rng.split(key)
    return tp.take(CENTRES, tp.rng.randint(mode, (n,), 0, MODES), 0) + STD * tp.rng.normal(around, (n, 2))


def perceptron(inputs: int, outputs: int) -> tp.layer.Layer:
    """Return a network with two hidden layers."""
    layers = [tp.layer.linear(inputs, 128), tp.layer.relu(), tp.layer.linear(128, 128), tp.layer.relu()]
    return tp.layer.sequential([*layers, tp.layer.linear(128, outputs)])


def quality(points: np.ndarray) -> tuple[float, int]:
    """Return the share of points within 3 standard deviations of a centre, and how many centres have some."""
    distances = np.linalg.norm(points[:, None] - CENTRES, axis=-1)
    near = distances.min(axis=1) < 3 * STD
    return float(near.mean()), len(np.unique(distances.argmin(axis=1)[near]))


def main() -> None:
    """Train both models by turns; exit with 1 if points are wrong, or of some of the Gaussians alone."""
    parser = argparse.ArgumentParser("python -m treepie.examples.gan", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=2500, help="of each model (default: 2500)")
    parser.add_argument("--plot", metavar="FILE", help="draw real and generated points")
    arguments = parser.parse_args()

    # Rates that fall to 0 end the oscillations of the two.
    rate = tp.optim.schedule.cosine_decay
    generator = tp.Trainer(perceptron(NOISE, 2), tp.optim.adam(rate(2e-3, arguments.steps), b1=0.5))
    critic = tp.Trainer(perceptron(2, 1), tp.optim.adam(rate(5e-3, arguments.steps), b1=0.5))
    g, c = generator.init(tp.rng.key(0)), critic.init(tp.rng.key(1))
    is_real, is_fake = tp.ones((BATCH, 1)), tp.zeros((BATCH, 1))
    labels = tp.concatenate([is_real, is_fake])
    sample = tp.rng.normal(tp.rng.key(2), (2000, NOISE))

    for step in range(1, arguments.steps + 1):
        k1, k2, k3 = tp.rng.split(tp.rng.fold_in(tp.rng.key(3), step), 3)
        fake = generator.predict(g, tp.rng.normal(k1, (BATCH, NOISE)))
        points = tp.concatenate([real_points(k2, BATCH), fake])
        c_loss, c = critic.step(c, points, loss=lambda out: tp.loss.binary_cross_entropy(out, labels))

        def fools(out: tp.Tensor, c: Any = c) -> tp.Tensor:
            return tp.loss.binary_cross_entropy(critic.predict(c, out), is_real)

        g_loss, g = generator.step(g, tp.rng.normal(k3, (BATCH, NOISE)), loss=fools)
        if step % 500 == 0 or step == arguments.steps:
            near, modes = quality(generator.predict(g, sample).numpy())
            losses = f"loss of the critic {c_loss.item():.3f}, of the generator {g_loss.item():.3f}"
            print(f"step {step}: {losses}; {near:.1%} near a centre, {modes} of {MODES} centres", flush=True)

    drawn = generator.predict(g, sample).numpy()
    if arguments.plot:
        from matplotlib import pyplot as plt

        figure, grid = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
        for axes, title, xy in zip(grid, ("real", "generated"), (real_points(k2, 2000), drawn), strict=True):
            axes.scatter(*np.asarray(xy).T, s=3, alpha=0.4)
            axes.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
        figure.savefig(arguments.plot)
    near, modes = quality(drawn)
    if near < 0.8 or modes < MODES:
        sys.exit("the mixture was not learned")


if __name__ == "__main__":
    main()
