"""What a call costs besides its arithmetic: steps and predictions of a model that has little to compute.

    python perf/overhead.py              # all rows, against what is installed of torch, and jax with optax
    python perf/overhead.py fit jit      # some
    python perf/overhead.py --write      # and write their rows of README's table

The model is `xor` of `models.py`: 2-4-1 tanh, batches of 4, Adam. A timing covers 200 calls, or the 200 steps
of one `fit`. Each library's calls run in a process of its own, by turns, and so do those of a row's
reference, which are the same without what the row is about. `overhead_calls.py`, `overhead_cliffs.py` and
`overhead_rivals.py` have the calls.
"""

from dataclasses import dataclass

import arena
import models
import overhead_rivals
import report

#: Turns of each process, and timings of a turn: one takes 3 to 150 ms.
TURNS, COUNT = 20, 3

REFERENCE = "reference"


@dataclass(frozen=True)
class Row:
    """A row of the table: its first cell, and its bar, the most that a call may take.

    unit: "us" of a call; with all others the row has a reference, and the bar is relative to it.
    """

    text: str
    bar: float
    unit: str = "us"

    @property
    def has_reference(self):
        return self.unit != "us"


ROWS = {
    "fit": Row("`fit`", 16),
    "clip_norm": Row("`fit` with `clip_norm`", 20),
    "rngs": Row("`fit` with `rngs`", 20),
    "report": Row("`fit` with a `report` that reads nothing", 20),
    "accumulate": Row("`fit` with `accumulate_steps=4`, an element", 20),
    "history": Row("`fit` with `history`", 20),
    "lambda": Row("`fit` with a lambda as `loss`", 30),
    "elements": Row("`fit` of elements `(input, loss_fn)`", 30),
    "number": Row("the same, with another number in each step's loss", 30),
    "own_layer": Row("`fit` with a layer of one's own", 45),
    "pure": Row("`fit` with a loss marked `tp.pure`", 16),
    "step": Row("`Trainer.step`", 45),
    "jit": Row("a step under `tp.jit`", 25),
    "predict": Row("`predict`, to NumPy", 8),
    "layers": Row(
        "30 library layers, called by a layer of one's own (reference: `sequential`)", 10, "us a layer"
    ),
    "operations": Row("30 operations in a layer of one's own (reference: traced once)", 5, "us an op"),
    "weight": Row("a loss weight: another float in each step", 1.5, "times"),
    "counter": Row("`self.n += 1` in a layer", 1.5, "times"),
    "index": Row("an index in a closure: another one in each step", 1.5, "times"),
    "epoch": Row("the number of the epoch, of 8 batches, in a closure", 1.5, "times"),
    "in_place": Row("an array in a closure, written to between steps", 1.5, "times"),
    "eye": Row("`np.eye(10)[y]` in a loss with `y` in its closure", 1.5, "times"),
    "eye_target": Row("`np.eye(10)[y]` in a loss of `y`", 1.5, "times"),
    "lengths": Row("batches of 8 lengths by turns", 1.5, "times"),
    "structures": Row("batches of 100 lengths by turns (reference: op by op)", 1.5, "times"),
    "nan": Row("steps after a batch with a NaN, which was skipped", 1.5, "times"),
}


def treepie_cases():
    """Return treepie's calls. They are imported here: the rivals' processes have no treepie in them."""
    import overhead_calls
    import overhead_cliffs

    return overhead_calls.CASES | overhead_cliffs.CASES


def make(library, name):
    """Return a function that makes `arena.CALLS` calls."""
    if library in overhead_rivals.LIBRARIES:
        return arena.repeated(overhead_rivals.LIBRARIES[library](name))
    return treepie_cases()[name](library == "treepie")


def measure(name, rivals):
    """Return how many microseconds a call takes with each library, and that of the reference, by medians."""
    libraries = ["treepie", *([REFERENCE] if ROWS[name].has_reference else [])]
    libraries += rivals if name in overhead_rivals.CASES else []
    times = arena.compete(__file__, [name], libraries, TURNS, COUNT)[name]
    return {library: arena.median(t) / arena.CALLS * 1e6 for library, t in times.items()}


def cells(name, found, rivals):
    """Return the cells of a row, of what `measure` found."""
    from overhead_calls import PARTS

    row, against = ROWS[name], ""
    times = [f"{found[k]:.3g}" if k in found else "" for k in ("treepie", *rivals, REFERENCE)]
    if row.unit == "times":
        against = f"{found['treepie'] / found[REFERENCE]:.2f} times"
    elif row.has_reference:
        against = f"{(found['treepie'] - found[REFERENCE]) / PARTS:.1f} {row.unit}"
    return [row.text, *times, against, f"{row.bar:g} {row.unit}"]


def main():
    arena.serve(make)
    options, libraries = models.options(__doc__, "table", ROWS)
    rivals = [library for library in libraries if library in overhead_rivals.LIBRARIES]
    timed = [f"{library}, us" for library in ("treepie", *rivals, REFERENCE)]
    header = ["call", *timed, "against it", "bar"]
    print(*report.table(header, []), sep="\n", flush=True)
    made, known = {}, treepie_cases()
    for name in options.names or ROWS:
        if name not in known:
            print(f"{name} is left out: there is no tp.{name}", flush=True)
            continue
        made[name] = cells(name, measure(name, rivals), rivals)
        print(report.table(header, [made[name]])[-1], flush=True)
    if options.write:
        how = f"medians of {TURNS * COUNT} timings of {arena.CALLS} calls each, by turns, a process each"
        keyed = {row.text: made.get(name) for name, row in ROWS.items()}
        report.write("perf/overhead.py", f"{arena.threads()} threads; {how}:", header, keyed)


if __name__ == "__main__":
    main()
