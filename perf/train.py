"""Whole training steps (forward, backward, update) of five models against PyTorch and JAX.

    python perf/train.py              # all, against what is installed of torch, and jax with optax
    python perf/train.py mlp cnn      # some
    python perf/train.py --write      # and write their rows of README's table, and its plot; README has
                                      # another table of CPUs without AVX-512

Each library trains the same model on the same batches (`losses.py` proves it), in a process of its own, by
turns: PyTorch eagerly with its fused optimizers (images channels_last), and by torch.compile, which needs a
C++ compiler and starts for 10 to 60 s; JAX jitted with donated buffers (images NHWC); treepie as
`Trainer.fit` does.
"""

import os
import sys
import tempfile

import arena
import models
import plot
import report

#: One turn in ten of `xor` takes 1.6 times as long as the others, in each library: in 8 turns that moves the
#: median, in 40 hardly. A turn of `gpt` takes 4.5 s.
TURNS, LONG = 40, {"gpt": 8}


def treepie_step(name):
    """Return treepie's step of a model, for scripts that profile it."""
    import with_treepie

    return with_treepie.step(name)


def row(name, times):
    """Return the cells of a model: best and median of each library, and ours of the best rival's median."""
    rivals = [arena.median(t) for library, t in times.items() if library != "treepie"]
    both = [f"{arena.best(t) * 1e3:.3g} / {arena.median(t) * 1e3:.3g}" for t in times.values()]
    ratio = f"{arena.median(times['treepie']) / min(rivals):.2f}" if rivals else ""
    return [f"`{name}`: {models.MODELS[name]}", *both, ratio]


def main():
    arena.serve(models.step)
    options, libraries = models.options(__doc__, "table and plot")
    if options.write and len(libraries) == 1:
        sys.exit("--write needs a rival: install torch, or jax and optax")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        names = options.names or list(models.MODELS)
        turns = {name: LONG.get(name, TURNS) for name in names}
        found = {n: arena.compete(__file__, [n], libraries, turns[n])[n] for n in names}
    header = ["step", *(f"{library}, ms" for library in libraries), "of the best rival"]
    made = {name: row(name, times) for name, times in found.items()}
    print(*report.table(header, list(made.values())), sep="\n")
    if options.write:
        long = "".join(f", {name} {turns * 10}" for name, turns in LONG.items())
        steps = f"best / median of {TURNS * 10} steps{long}, by turns, a process each"
        keyed = {f"`{name}`: {text}": made.get(name) for name, text in models.MODELS.items()}
        from treepie.kernels import config  # the rivals' processes, of this file too, have no treepie in them

        wide = config.isa() == "avx512"
        section = "perf/train.py" if wide else f"perf/train.py {config.isa()}"
        report.write(section, f"{arena.threads()} threads; {steps}:", header, keyed)
        if wide:
            plot.draw(*report.rows(section))


if __name__ == "__main__":
    main()
