"""A convolutional autoencoder of handwritten digits: `python -m treepie.examples.autoencoder --plot out.png`.

The encoder turns 8 x 8 pixels into 8 numbers, the decoder turns them back into pixels. The same is done with
the first 8 principal components, the best that a linear map can do; its error is the one to beat.
"""

import argparse
import sys
from typing import Any

import numpy as np

import treepie as tp

CODE = 8


def encoder() -> tp.layer.Layer:
    """Return (batch, 64) pixels -> (batch, CODE)."""
    return tp.layer.sequential(
        [
            tp.layer.reshape((1, 8, 8)),
            tp.layer.conv2d(1, 16),
            tp.layer.gelu(),
            tp.layer.conv2d(16, 32, stride=2),
            tp.layer.gelu(),
            tp.layer.flatten(),
            tp.layer.linear(32 * 4 * 4, CODE),
        ]
    )


def decoder() -> tp.layer.Layer:
    """Return (batch, CODE) -> (batch, 64) pixels."""
    return tp.layer.sequential(
        [
            tp.layer.linear(CODE, 32 * 4 * 4),
            tp.layer.gelu(),
            tp.layer.reshape((32, 4, 4)),
            tp.layer.conv_transpose2d(32, 16, kernel_size=2, stride=2),
            tp.layer.gelu(),
            tp.layer.conv2d(16, 1),
            tp.layer.sigmoid(),
            tp.layer.flatten(),
        ]
    )


def principal_components(train: np.ndarray, x: np.ndarray) -> Any:
    """Return x after a projection onto the first CODE principal components of the training images."""
    mean = train.mean(axis=0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:CODE]
    return mean + (x - mean) @ axes.T @ axes


def main() -> None:
    """Train on 1437 images, reconstruct 360 others; exit with 1 unless principal components do worse."""
    parser = argparse.ArgumentParser("python -m treepie.examples.autoencoder", description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=60, help="(default: 60)")
    parser.add_argument("--plot", metavar="FILE", help="draw images and their reconstructions")
    arguments = parser.parse_args()

    (x, _), (x_test, y_test) = tp.datasets.digits()
    model = tp.layer.compose(encoder(), decoder())
    print(tp.layer.summary(model, input_shape=(1, 64)))
    train = tp.Data.prepare(x, batch_size=32, shuffle=tp.rng.key(1))
    rate = tp.optim.schedule.cosine_decay(3e-3, arguments.epochs * len(train))
    trainer = tp.Trainer(model, tp.optim.adam(rate))
    st = trainer.init(tp.rng.key(0))
    st = trainer.fit(st, train.map(lambda x: (x, x)), loss=tp.loss.mse, epochs=arguments.epochs)

    rows = {
        "image": x_test.numpy(),
        "autoencoder": trainer.predict(st, x_test).numpy(),
        "components": principal_components(x.numpy(), x_test.numpy()),
    }
    errors = {name: tp.metric.mse(images, x_test) for name, images in rows.items()}
    print("mean squared error:", ", ".join(f"{name} {errors[name]:.4f}" for name in list(rows)[1:]))
    if arguments.plot:
        from matplotlib import pyplot as plt

        shown = [int(np.flatnonzero(y_test.numpy() == k)[0]) for k in range(10)]
        figure, grid = plt.subplots(3, 10, figsize=(10, 3.4), layout="constrained")
        for axes, (name, images) in zip(grid, rows.items(), strict=True):
            axes[0].set_ylabel(name)
            for ax, image in zip(axes, images[shown], strict=True):
                ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
        figure.savefig(arguments.plot)
    if errors["autoencoder"] >= errors["components"]:
        sys.exit("principal components were not beaten")


if __name__ == "__main__":
    main()
