"""Training steps with products in bfloat16, against float32 and against PyTorch under autocast.

    python perf/precision.py             # all, in about 5 minutes
    python perf/precision.py mlp         # some
    python perf/precision.py --write     # and write README's table

Each trains the same model on the same batches in a process of its own, by turns: PyTorch eagerly, with its
fused optimizers, the forward pass under torch.autocast, images channels_last. The residual networks and the
vision transformer are those of `families.py`. What bfloat16 costs in quality is measured by `quality.py`.
"""

import os
import subprocess
import sys
import tempfile

import arena
import families
import families_models
import models
import report

#: Name here -> name in `families.py`.
FAMILIES = {"resnet": "resnet 0", "resnet64": "resnet 1", "vit": "vit 1"}
NAMES = {name: (models.MODELS | models.WIDE)[name] for name in ("wide", "mlp", "tabular", "gpt")}
NAMES |= {name: families_models.cases()[case].text for name, case in FAMILIES.items()}
TURNS, LONG = 12, {"gpt": 5, "resnet64": 5, "vit": 5}
OURS, LOWER, RIVAL = "treepie float32", "treepie bfloat16", "PyTorch autocast"


def make(library, name):
    """Return a step of a model."""
    if library == RIVAL:
        import torch

        step = _step("PyTorch", name)

        def run():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return step()

        return run
    import treepie as tp

    step = _step("treepie", name)

    def run_in_precision():
        with tp.precision("bfloat16" if library == LOWER else "float32"):
            return step()

    return run_in_precision


def _step(library, name):
    if name in FAMILIES:
        return families.step(library, FAMILIES[name])
    return models.step(library, name)


def row(name, times):
    """Return the cells of a model."""
    median = {library: arena.median(t) for library, t in times.items()}
    both = [f"{arena.best(t) * 1e3:.3g} / {arena.median(t) * 1e3:.3g}" for t in times.values()]
    ratios = [f"{median[LOWER] / median[other]:.2f}" for other in (OURS, RIVAL)]
    return [f"`{name}`: {NAMES[name]}", *both, *ratios]


def main():
    arena.serve(make)
    options, _ = models.options(__doc__, "table", NAMES)
    names = options.names or list(NAMES)
    libraries = [OURS, LOWER, RIVAL]
    header = ["step", *(f"{library}, ms" for library in libraries), "of float32", "of autocast"]
    print(*report.table(header, []), sep="\n")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[families.FOLDER] = folder
        weights = [FAMILIES[n] for n in names if n in FAMILIES]
        subprocess.run([sys.executable, families.__file__, "--weights", folder, *weights], check=True)
        for n in names:
            rows[n] = row(n, arena.compete(__file__, [n], libraries, LONG.get(n, TURNS))[n])
            print(*report.table(header, [rows[n]])[2:], sep="\n", flush=True)
    if options.write:
        shorter = f"{', '.join(f'`{n}`' for n in LONG)} {LONG['gpt'] * 10}"
        steps = f"best / median of {TURNS * 10} steps, {shorter}, by turns"
        keyed = {f"`{n}`: {text}": rows.get(n) for n, text in NAMES.items()}
        report.write("perf/precision.py", f"{arena.threads()} threads; {steps}:", header, keyed)


if __name__ == "__main__":
    main()
