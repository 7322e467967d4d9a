"""Estimators on five tables against scikit-learn's, PyTorch and boosted trees: scores and seconds of a fit.

    python perf/tabular.py                       # all tables, five seeds
    python perf/tabular.py digits --seeds 2      # some
    python perf/tabular.py --write               # and write README's table; 6 minutes on 2 cores

`pip install -e ".[bench]"` has the tables: four are scikit-learn's, the diamonds plotnine's. A seed splits
the rows (4 : 1) and seeds the fit. The three plain perceptrons have scikit-learn's defaults (one hidden layer
of 100, Adam, batches of 200, at most 200 epochs, and its rule of stopping) in float32, on standardized
numbers, one-hot categories and standardized targets; PyTorch's loop is written as its users write it. The
preset and the trees take the table as it is. Each way is a process, by turns, the others stopped
(`arena.py`); before its first fit of a table it fits a part of it, which compiles.
"""

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import arena
import numpy as np
import report

SECTION = "perf/tabular.py"
WAYS = ("treepie", "treepie, realmlp", "scikit-learn", "PyTorch", "boosted trees")
#: Those that take the table as it is.
RAW = ("treepie, realmlp", "boosted trees")
#: Name -> (what it is, whether the target is a number).
TABLES = {
    "wine": ("3 classes", False),
    "breast_cancer": ("2 classes", False),
    "digits": ("10 classes", False),
    "diabetes": ("R2", True),
    "diamonds": ("R2, 3 categories", True),
}
#: Rows of the diamonds, of 53 940, and rows of the fit that compiles.
DIAMONDS, PART = 10_000, 300
#: scikit-learn's defaults, for PyTorch.
WIDTH, BATCH, EPOCHS, RATE, ALPHA, TOLERANCE, PATIENCE = 100, 200, 200, 1e-3, 1e-4, 1e-4, 10
#: The bar: how many times as fast as scikit-learn's, and by how much the mean score may be lower.
FASTER, LOWER = 3.0, 0.01


# ---- the tables
def table(name):
    """Return the columns of a table, a data frame, and its targets."""
    import pandas as pd
    from sklearn import datasets

    if name != "diamonds":
        data = getattr(datasets, f"load_{name}")(as_frame=True)
        return data.data, data.target.to_numpy()
    spec = importlib.util.find_spec("plotnine")  # not imported: its file is all that is needed
    if spec is None:
        sys.exit('perf/tabular.py: the diamonds are a file of plotnine: pip install -e ".[bench]"')
    frame = pd.read_csv(Path(spec.origin).parent / "data" / "diamonds.csv").sample(DIAMONDS, random_state=0)
    categories = dict.fromkeys(("cut", "color", "clarity"), "category")
    return frame.drop(columns="price").astype(categories), np.log(frame["price"].to_numpy(float))


def split(name, seed, raw):
    """Return X and y to train on, and to test on. raw: the table as it is, else an array of float32."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    X, y = table(name)
    stratify = None if TABLES[name][1] else y
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=seed, stratify=stratify)
    if TABLES[name][1]:
        mean, std = y.mean(), y.std()
        y, y_test = ((part - mean) / std for part in (y, y_test))
    if not raw:
        prepare = make_column_transformer(
            (StandardScaler(), make_column_selector(dtype_include="number")),
            (
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                make_column_selector(dtype_include="category"),
            ),
        ).fit(X)
        X, X_test = (prepare.transform(part).astype(np.float32) for part in (X, X_test))
    return X, y, X_test, y_test


# ---- the ways
def estimator(way, regression, seed):
    """Return a new estimator."""
    if way == "PyTorch":
        return Loop(regression, seed)
    kind = "Regressor" if regression else "Classifier"
    if way == "boosted trees":
        from sklearn import ensemble

        return getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=seed)
    if way == "scikit-learn":
        from sklearn import neural_network

        return getattr(neural_network, f"MLP{kind}")(random_state=seed)
    import treepie as tp

    preset = {"preset": "realmlp"} if way == "treepie, realmlp" else {}
    return getattr(tp.sklearn, f"MLP{kind}")(random_state=seed, **preset)


class Loop:
    """The training of scikit-learn's perceptron, as a loop in PyTorch."""

    def __init__(self, regression, seed):
        import torch

        torch.set_num_threads(arena.threads())
        torch.manual_seed(seed)
        self.regression = regression

    def fit(self, X, y):
        import torch
        from torch import nn

        outputs = 1 if self.regression or y.max() == 1 else int(y.max()) + 1
        self.model = nn.Sequential(nn.Linear(X.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs))
        for layer in (self.model[0], self.model[2]):
            bound = math.sqrt(6.0 / (layer.in_features + layer.out_features))
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        inputs = torch.from_numpy(X)
        if outputs == 1:
            target = torch.from_numpy(y.astype(np.float32))[:, None]
            criterion = nn.MSELoss() if self.regression else nn.BCEWithLogitsLoss()
        else:
            target, criterion = torch.from_numpy(y.astype(np.int64)), nn.CrossEntropyLoss()
        size = min(BATCH, len(inputs))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE, weight_decay=ALPHA / size)
        best, waited = math.inf, 0
        for _ in range(EPOCHS):
            total = 0.0
            for rows in torch.randperm(len(inputs)).split(size):
                optimizer.zero_grad()
                loss = criterion(self.model(inputs[rows]), target[rows])
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            mean = (
                total / len(inputs) * (0.5 if self.regression else 1.0)
            )  # scikit-learn's loss has this half
            waited = waited + 1 if mean > best - TOLERANCE else 0
            best = min(best, mean)
            if waited > PATIENCE:
                break
        return self

    def score(self, X, y):
        import torch
        from sklearn.metrics import r2_score

        with torch.no_grad():
            out = self.model(torch.from_numpy(X)).numpy()
        if self.regression:
            return r2_score(y, out[:, 0])
        predicted = out[:, 0] > 0 if out.shape[1] == 1 else out.argmax(axis=1)
        return float((predicted == y).mean())


def fit(way, name, seed):
    """Return the seconds of a fit, and its score on the rows that are held out."""
    X, y, X_test, y_test = split(name, seed, way in RAW)
    model = estimator(way, TABLES[name][1], seed)
    start = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - start
    return seconds, float(model.score(X_test, y_test))


def compile_first(way, name):
    """Fit a part of a table, once."""
    X, y, *_ = split(name, 0, way in RAW)
    estimator(way, TABLES[name][1], 0).fit(X[:PART], y[:PART])


def serve():
    """Answer requests on standard input if this process is a worker, and exit; else return."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--worker")
    way = parser.parse_known_args()[0].worker
    if way is None:
        return
    import warnings

    warnings.simplefilter("ignore")  # of scikit-learn, that 200 epochs were not enough
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    last = None
    for line in sys.stdin:
        name, seed = json.loads(line)
        result = None
        if name != "ready":
            if name != last:
                compile_first(way, name)
                last = name
            result = fit(way, name, seed)
        print(json.dumps(result), file=answers, flush=True)
    sys.exit()


# ---- the table of results
def compete(names, ways, seeds):
    """Yield each table's name with way -> (seconds, score) of each seed."""
    workers = [arena.Worker(__file__, way) for way in ways]
    try:
        for name in names:
            turns = [[worker.turn(name, seed) for worker in workers] for seed in range(seeds)]
            yield name, dict(zip(ways, zip(*turns, strict=True), strict=True))
    finally:
        for worker in workers:
            worker.end()


def score(results):
    """Return the mean score."""
    return statistics.mean(value for _, value in results)


def seconds(results):
    """Return the median of the seconds."""
    return statistics.median(value for value, _ in results)


def row(name, results):
    """Return the cells of a table: score and seconds of each way, and how many times as fast ours is."""
    cells = [f"{score(r):.3f} / {seconds(r):.3g} s" for r in results.values()]
    return [f"`{name}`: {TABLES[name][0]}", *cells, f"{ratio(results):.1f}"]


def ratio(results):
    """Return scikit-learn's seconds over treepie's."""
    return seconds(results["scikit-learn"]) / seconds(results["treepie"])


def below_the_bar(name, results):
    """Return a line for each bar that is missed."""
    lines = []
    if ratio(results) < FASTER:
        lines.append(f"{name}: {ratio(results):.2f} times as fast as scikit-learn's, at least {FASTER}")
    if score(results["treepie"]) < score(results["scikit-learn"]) - LOWER:
        scores = f"{score(results['treepie']):.4f} and {score(results['scikit-learn']):.4f}"
        lines.append(f"{name}: scores are {scores} of scikit-learn's")
    return lines


def main():
    """Print, and write if asked, scores and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write README's table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("names", nargs="*", choices=[*TABLES, []], metavar="table", help=", ".join(TABLES))
    options = parser.parse_args()
    ways = [way for way in WAYS if way != "PyTorch" or importlib.util.find_spec("torch")]
    if options.write and len(ways) < len(WAYS):
        sys.exit("perf/tabular.py: --write needs PyTorch: pip install torch")
    header = ["table", *ways, "times as fast as scikit-learn"]
    rows, missed = {}, []
    for name, results in compete(options.names or list(TABLES), ways, options.seeds):
        rows[name] = row(name, results)
        missed += below_the_bar(name, results)
        print(*report.table(header, [rows[name]]), sep="\n", flush=True)
    if options.write:
        caption = (
            f"Score on the rows held out / seconds of a fit: means and medians of {options.seeds} seeds, "
            f"{arena.threads()} threads:"
        )
        keyed = {f"`{name}`: {text}": rows.get(name) for name, (text, _) in TABLES.items()}
        report.write(SECTION, caption, header, keyed)
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    serve()
    main()
