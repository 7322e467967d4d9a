"""Training steps with products in bfloat16, against float32 and against PyTorch under autocast.

    python perf/precision.py             # all, in about 4 minutes
    python perf/precision.py mlp         # some
    python perf/precision.py --write     # and write README's tables

Each trains the same model on the same batches in a process of its own, by turns: PyTorch eagerly, with its
fused optimizers, the forward pass under torch.autocast. Quality is that of tests of the digits, after as many
epochs in each precision, over five seeds.
"""

import statistics

import arena
import models
import report

NAMES = {name: (models.MODELS | models.WIDE)[name] for name in ("wide", "mlp", "tabular", "gpt")}
TURNS, LONG = 12, {"gpt": 5}
OURS, LOWER, RIVAL = "treepie float32", "treepie bfloat16", "PyTorch autocast"
SEEDS = 5


def make(library, name):
    """Return a step of a model."""
    if library == RIVAL:
        import torch
        import with_torch

        step = with_torch.step(name)

        def run():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return step()

        return run
    import with_treepie

    import treepie as tp

    step = with_treepie.step(name)

    def run_in_precision():
        with tp.precision("bfloat16" if library == LOWER else "float32"):
            return step()

    return run_in_precision


def row(name, times):
    """Return the cells of a model."""
    median = {library: arena.median(t) for library, t in times.items()}
    both = [f"{arena.best(t) * 1e3:.3g} / {arena.median(t) * 1e3:.3g}" for t in times.values()]
    ratios = [f"{median[LOWER] / median[other]:.2f}" for other in (OURS, RIVAL)]
    return [f"`{name}`: {NAMES[name]}", *both, *ratios]


def quality():
    """Return the rows of scores of the digits' tests, in percent, in each precision."""
    import numpy as np

    import treepie as tp

    (x, y), (x_test, y_test) = tp.datasets.digits()
    rows = []
    for precision in ("float32", "bfloat16"):
        scores = []
        for seed in range(SEEDS):
            layers = [tp.layer.linear(64, 256), tp.layer.relu(), tp.layer.linear(256, 10)]
            trainer = tp.Trainer(tp.layer.sequential(layers), tp.optim.adam(3e-3), precision=precision)
            data = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(seed))
            st = trainer.init(rngs=tp.rng.key(seed))
            st = trainer.fit(st, data, loss=tp.loss.cross_entropy_sparse, epochs=20, progress=False)
            right = trainer.predict(st, x_test).numpy().argmax(1) == np.asarray(y_test)
            scores.append(100 * right.mean())
        spread = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        rows.append([f"digits, 64-256-10, 20 epochs, {precision}", spread])
    return rows


def main():
    arena.serve(make)
    options, _ = models.options(__doc__, "tables", NAMES)
    names = options.names or list(NAMES)
    libraries = [OURS, LOWER, RIVAL]
    found = {n: arena.compete(__file__, [n], libraries, LONG.get(n, TURNS))[n] for n in names}
    header = ["step", *(f"{library}, ms" for library in libraries), "of float32", "of autocast"]
    rows = {name: row(name, times) for name, times in found.items()}
    print(*report.table(header, list(rows.values())), sep="\n")
    scores = quality()
    print(*report.table(["model", "test accuracy, %"], scores), sep="\n")
    if options.write:
        steps = f"best / median of {TURNS * 10} steps, `gpt` {LONG['gpt'] * 10}, by turns"
        keyed = {f"`{n}`: {text}": rows.get(n) for n, text in NAMES.items()}
        report.write("perf/precision.py", f"{arena.threads()} threads; {steps}:", header, keyed)
        header, keyed = ["model", "test accuracy, %"], {r[0]: r for r in scores}
        report.write("perf/precision.py quality", f"Mean and deviation of {SEEDS} seeds:", header, keyed)


if __name__ == "__main__":
    main()
