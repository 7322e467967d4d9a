"""Functions and training steps in fast accuracy, against the default and PyTorch.

    python perf/fast.py             # all, in about a minute
    python perf/fast.py gelu        # some
    python perf/fast.py --write     # and write README's table

Each runs in a process of its own, by turns; functions write a million float32 numbers into memory that is
there.
"""

import arena
import elementwise
import models
import report

STEPS = {name: (models.MODELS | models.CURVED)[name] for name in ("mlp_gelu", "gpt")}
FUNCTIONS = dict.fromkeys(("gelu", "tanh"), "a million elements")
NAMES = FUNCTIONS | STEPS
TURNS, LONG = 8, {"gpt": 3}
HIGH, FAST, RIVAL = "treepie", "treepie, fast", "PyTorch"


def make(library, name):
    """Return a function to time, or a training step."""
    if name in FUNCTIONS:
        ours = {HIGH: "treepie", FAST: "treepie fast"}
        return elementwise.make(ours.get(library, library), f"{name} float32")
    if library == RIVAL:
        import with_torch

        return with_torch.step(name)
    import with_treepie

    import treepie as tp

    step = with_treepie.step(name)

    def run_in_accuracy():
        with tp.accuracy("fast" if library == FAST else "high"):
            return step()

    return run_in_accuracy


def row(name, times):
    """Return the cells of a case."""
    best = {library: arena.best(t) for library, t in times.items()}
    ratios = [f"{best[FAST] / best[other]:.2f}" for other in (HIGH, RIVAL)]
    return [f"`{name}`: {NAMES[name]}", *(f"{t * 1e3:.3g}" for t in best.values()), *ratios]


def main():
    arena.serve(make)
    options, _ = models.options(__doc__, "table", NAMES)
    libraries = [HIGH, FAST, RIVAL]
    header = ["case", *(f"{library}, ms" for library in libraries), "of the default", "of PyTorch"]
    rows = {}
    for name in options.names or NAMES:
        rows[name] = row(name, arena.compete(__file__, [name], libraries, LONG.get(name, TURNS))[name])
    print(*report.table(header, list(rows.values())), sep="\n")
    if options.write:
        caption = f"{arena.threads()} threads; best of {TURNS * 10} runs by turns, `gpt` {LONG['gpt'] * 10}:"
        keyed = {f"`{name}`: {text}": rows.get(name) for name, text in NAMES.items()}
        report.write("perf/fast.py", caption, header, keyed)


if __name__ == "__main__":
    main()
