"""What products in bfloat16 cost in quality: models trained in float32 and in bfloat16, over five seeds.

    python perf/quality.py                     # all, in about 8 minutes on 2 cores
    python perf/quality.py digits diamonds     # some
    python perf/quality.py --mnist FOLDER      # which has MNIST's four files; else they are downloaded once
    python perf/quality.py --write             # and write README's table

A seed is that of the weights and of the order of the batches, of the tables' split as well, and a pair of
fits that differ in precision alone shares it. The noise is that of the seeds: the difference is the mean of
the pairs', with its standard error. The network for MNIST and the GPT are those of `treepie.examples`; the
tables are those of `tabular.py`, fitted by scikit-learn's defaults. Models whose data are not there are left
out: the tables need `pip install -e ".[bench]"`.
"""

import argparse
import functools
import importlib.util
import pydoc_data.topics
import statistics
import warnings

import numpy as np
import report
import tabular

import treepie as tp
from treepie.examples import chars, mnist

SECTION = "perf/quality.py"
SEEDS, PRECISIONS = 5, ("float32", "bfloat16")
#: Name -> what it is, and its score.
MODELS = {
    "digits": ("64-256-10 relu, 20 epochs", "test accuracy, %"),
    "mnist": ("CNN of the example, 3 epochs", "test accuracy, %"),
    "chars": ("GPT of the example, 400 steps", "loss of held-out text, nats a character"),
    "diamonds": ("`tp.sklearn.MLPRegressor`", "R2 of rows held out"),
    "diabetes": ("`tp.sklearn.MLPRegressor`", "R2 of rows held out"),
}
#: Digits after the point of a score.
DIGITS = {"digits": 2, "mnist": 2, "diamonds": 5}
BATCH = mnist.BATCH
#: Of the GPT: steps, and the part of the text that is held out.
STEPS, HELD_OUT = 400, 0.05


class MissingError(Exception):
    """Data that this machine does not have."""


# ---- the models: functions of a seed, which train in the precision around them, and return a score
def classified(model, splits, seed, epochs, rate):
    """Train by Adam on the first part of a data set, and return the accuracy on the second, in percent."""
    train, test = splits
    data = tp.Data.prepare(train, batch_size=BATCH, shuffle=tp.rng.key(seed), drop_last=True)
    trainer = tp.Trainer(model, tp.optim.adam(rate(epochs * len(data))))
    st, loss = trainer.init(rngs=tp.rng.key(seed)), tp.loss.cross_entropy_sparse
    st = trainer.fit(st, data, loss=loss, epochs=epochs, progress=False)
    test = tp.Data.prepare(test, batch_size=500)
    return 100 * trainer.evaluate(st, test, {"accuracy": tp.metric.Accuracy()})["accuracy"]


def digits(seed):
    """Train a perceptron on the digits that come with the library."""
    layers = [tp.layer.linear(64, 256), tp.layer.relu(), tp.layer.linear(256, 10)]
    return classified(tp.layer.sequential(layers), tp.datasets.digits(), seed, 20, lambda steps: 3e-3)


@functools.cache
def images(folder):
    """Return MNIST as one-channel images."""
    try:
        splits = tp.datasets.mnist(folder)
    except OSError as error:
        raise MissingError(f"{error}; --mnist FOLDER names a folder with the files") from error
    return [(x.reshape((-1, 1, 28, 28)), y) for x, y in splits]


def convolutions(folder, seed):
    """Train the example's network on MNIST."""
    rate = functools.partial(tp.optim.schedule.cosine_decay, 1e-3)
    return classified(mnist.model(), images(folder), seed, mnist.EPOCHS, rate)


def characters(seed):
    """Train the example's GPT on Python's help topics, of which the end is held out."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[k] for k in sorted(topics))
    alphabet, codes = np.unique(list(text), return_inverse=True)
    codes, tokens = codes.astype(np.int32), chars.TOKENS
    train, held_out = np.split(codes, [int((1 - HELD_OUT) * len(codes))])
    rng = np.random.default_rng(seed)

    def example(_):
        starts = rng.integers(0, len(train) - tokens, chars.BATCH)[:, None] + np.arange(tokens)
        return train[starts], train[starts + 1]

    trainer = tp.Trainer(chars.gpt(len(alphabet)), tp.optim.adamw(1e-3))
    st, loss = trainer.init(rngs=tp.rng.key(seed)), tp.loss.cross_entropy_sparse
    st = trainer.fit(st, tp.Data.of_fn(STEPS, example), loss=loss, progress=False)
    count = (len(held_out) - 1) // tokens * tokens
    x, y = (held_out[k : k + count].reshape(-1, tokens) for k in (0, 1))
    return loss(trainer.predict(st, x, batch_size=chars.BATCH), tp.tensor(y)).item()


def regression(name, seed):
    """Fit a table, and return R2 of a fifth of its rows."""
    for package in ("sklearn", "pandas", *(["plotnine"] if name == "diamonds" else [])):
        if importlib.util.find_spec(package) is None:
            raise MissingError(f'no package {package}: pip install -e ".[bench]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 200 epochs were not enough
        return tabular.fit("treepie", name, seed)[1]


# ---- the table
def scores(train):
    """Return precision -> the scores of the seeds."""
    result = {precision: [] for precision in PRECISIONS}
    for seed in range(SEEDS):
        for precision, values in result.items():
            with tp.precision(precision):
                values.append(float(train(seed)))
    return result


def row(name, values):
    """Return the cells of a model: means and deviations of its scores, and their difference."""
    digits = DIGITS.get(name, 4)

    def cell(scores, sign, deviation):
        return f"{statistics.mean(scores):{sign}.{digits}f} ± {deviation:.{digits}f}"

    pairs = zip(*(values[precision] for precision in reversed(PRECISIONS)), strict=True)
    differences = [lower - exact for lower, exact in pairs]
    cells = [cell(values[precision], "", statistics.stdev(values[precision])) for precision in PRECISIONS]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    text, score = MODELS[name]
    return [f"`{name}`: {text}", score, *cells, cell(differences, "+", error)]


def main():
    """Print, and write if asked, the scores of models in each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], metavar="model", help=", ".join(MODELS))
    parser.add_argument("--mnist", metavar="FOLDER", help="with MNIST's four IDX files")
    parser.add_argument("--write", action="store_true", help="write README's table")
    options = parser.parse_args()
    train = {"digits": digits, "mnist": functools.partial(convolutions, options.mnist), "chars": characters}
    train |= {name: functools.partial(regression, name) for name in ("diamonds", "diabetes")}
    header = ["model", "score", *PRECISIONS, "difference"]
    print(*report.table(header, []), sep="\n", flush=True)
    rows = {}
    for name in options.names or list(MODELS):
        try:
            rows[name] = row(name, scores(train[name]))
        except MissingError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        print(*report.table(header, [rows[name]])[2:], sep="\n", flush=True)
    if options.write:
        caption = f"Mean ± deviation over {SEEDS} seeds; the difference ± its standard error is of pairs:"
        keyed = {f"`{name}`: {text}": rows.get(name) for name, (text, _) in MODELS.items()}
        report.write(SECTION, caption, header, keyed)


if __name__ == "__main__":
    main()
