"""The same training in all libraries: weights, batches and rules of one; losses side by side.

    python perf/losses.py              # all models
    python perf/losses.py mlp gpt      # some
    python perf/losses.py --write      # and write README's table

Each library trains in a process of its own, from treepie's first weights. Fails where a loss of the first 10
steps is off treepie's by more than 1e-3 of it: then they do not do the same work, and times mean nothing.
Later losses drift apart, and all of them from those of float64 (`tabular` at step 80, against PyTorch in
float64: treepie 6e-3, PyTorch 9e-3, JAX 1e-2): Adam and RMSprop divide a gradient by its size, so that where
it is all but 0 its rounding is a step like others.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import models
import numpy as np
import report

STEPS = {"gpt": 20}
FIRST, MOST = 10, 1e-3


def steps(name):
    return STEPS.get(name, 100)


def train(library, name, folder):
    """Train in this process; print the losses. treepie leaves its first weights for the others."""
    file = pathlib.Path(folder, f"{name}.npz")
    weights = None
    if library == "treepie":
        import with_treepie

        np.savez(file, *with_treepie.weights(name))
    else:
        with np.load(file) as given:
            weights = list(given.values())
    run = models.step(library, name, weights)
    print(json.dumps([run() for _ in range(steps(name))]))


def losses(library, name, folder):
    """Return the losses of a library's process."""
    command = [sys.executable, __file__, "--train", library, name, folder]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return np.array(json.loads(out.splitlines()[-1]))


def main():
    options, libraries = models.options(__doc__, "table")
    rivals = [r for r in libraries if r not in ("treepie", "torch.compile")]
    if not rivals:
        sys.exit("there is nothing to compare treepie with: install torch, or jax and optax")
    header = ["after", "treepie", *(part for r in rivals for part in (r, "off by"))]
    header.append(f"first {FIRST} off by at most")
    found = {f"`{name}`, {steps(name)} steps": None for name in models.MODELS}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or models.MODELS:
            ours = losses("treepie", name, folder)
            off = {r: losses(r, name, folder) / ours - 1 for r in rivals}
            worst = max(np.abs(d[:FIRST]).max() for d in off.values())
            row = [f"`{name}`, {steps(name)} steps", f"{ours[-1]:.6f}"]
            for d in off.values():
                row += [f"{ours[-1] * (1 + d[-1]):.6f}", f"{d[-1]:+.0e}"]
            found[row[0]] = [*row, f"{worst:.0e}"]
            print(*report.table(header, [found[row[0]]]), sep="\n", flush=True)
            if not worst <= MOST:
                sys.exit(f"{name}: a loss of the first {FIRST} steps is off by {worst:.1e}, expected {MOST}")
    if options.write:
        caption = "The loss of the last step, from the same weights on the same batches:"
        report.write("perf/losses.py", caption, header, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(*sys.argv[2:])
    else:
        main()
