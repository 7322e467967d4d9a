"""Handwritten digits with a small convolutional network: `python -m treepie.examples.mnist [FOLDER]`.

The network of Kaun's MNIST example. FOLDER has the four IDX files; without one they are downloaded once.
"""

import argparse
import sys
import time

import treepie as tp

EPOCHS, BATCH = 3, 64


def model() -> tp.layer.Layer:
    """Return two 3x3 convolutions (16 and 32 channels), each with 2x2 max-pooling, and two linear layers."""
    return tp.layer.sequential(
        [
            tp.layer.conv2d(1, 16),
            tp.layer.relu(),
            tp.layer.max_pool2d(2),
            tp.layer.conv2d(16, 32),
            tp.layer.relu(),
            tp.layer.max_pool2d(2),
            tp.layer.flatten(),
            tp.layer.linear(1568, 128),
            tp.layer.relu(),
            tp.layer.linear(128, 10),
        ]
    )


def main() -> None:
    """Train for 3 epochs on 60000 images, score 10000 others; exit with 1 below 98.8 % accuracy."""
    parser = argparse.ArgumentParser("python -m treepie.examples.mnist", description=main.__doc__)
    parser.add_argument(
        "folder", nargs="?", help="with the four IDX files; by default they are downloaded once"
    )
    (x, y), (x_test, y_test) = tp.datasets.mnist(parser.parse_args().folder)
    net = model()
    print(tp.layer.summary(net, input_shape=(BATCH, 1, 28, 28)))

    images = x.reshape((-1, 1, 28, 28))
    train = tp.Data.prepare((images, y), batch_size=BATCH, shuffle=tp.rng.key(1), drop_last=True)
    # With 1e-3 throughout, three seeds ended at 98.6 to 98.9 %; with a cosine to 0, at 98.9 %.
    rate = tp.optim.schedule.cosine_decay(1e-3, EPOCHS * len(train))
    trainer = tp.Trainer(net, tp.optim.adam(rate))
    st = trainer.init(rngs=tp.rng.key(0))
    test = tp.Data.prepare((x_test.reshape((-1, 1, 28, 28)), y_test), batch_size=500)
    accuracy = 0.0
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        st = trainer.fit(st, train, loss=tp.loss.cross_entropy_sparse)
        seconds = time.perf_counter() - start
        accuracy = trainer.evaluate(st, test, {"accuracy": tp.metric.Accuracy()})["accuracy"]
        train.reset()
        test.reset()
        step = seconds / len(train) * 1e3
        print(
            f"epoch {epoch}: test accuracy {accuracy:.2%}, {seconds:.1f} s, {step:.2f} ms a step", flush=True
        )
    if accuracy < 0.988:
        sys.exit("the digits were not learned")


if __name__ == "__main__":
    main()
