"""Whole training steps (forward, backward, update) against PyTorch and JAX: the five models of the design.

    python perf/train.py              # all, against what is installed of torch, and jax with optax
    python perf/train.py mlp cnn      # some
    python perf/train.py --write      # and write README's table

Each library trains the same model on one batch of the same numbers: PyTorch eagerly with its fused optimizers
(images channels_last), JAX jitted with donated buffers (images NHWC), treepie as `Trainer.fit` does.
"""

import argparse
import importlib.util
import itertools
import pathlib

import arena
import rivals

MODELS = {
    "xor": "2-4-1 tanh, batch 4, Adam",
    "mlp": "784-512-256-10 relu, batch 128, Adam",
    "tabular": "32-256-256-1 relu, batch 1024, RMSprop",
    "cnn": "1-16-32 3x3 convolutions, max-pool, 1568-128-10, batch 64, Adam",
    "gpt": "4 blocks, 128 wide, 4 heads, 128 tokens, batch 16, AdamW",
}
README = pathlib.Path(__file__).parents[1] / "README.md"
START, END = "<!-- perf/train.py -->\n", "<!-- end -->\n"


def treepie_step(name):
    import treepie as tp
    from treepie.examples import chars, mnist
    from treepie.window import Window

    L = tp.layer

    def dense(*sizes, act=L.relu):
        layers = [part for a, b in itertools.pairwise(sizes) for part in (L.linear(a, b), act())]
        return L.sequential(layers[:-1])

    model, optimizer, loss = {
        "xor": lambda: (dense(2, 4, 1, act=L.tanh), tp.optim.adam(1e-3), tp.loss.mse),
        "mlp": lambda: (dense(784, 512, 256, 10), tp.optim.adam(1e-3), tp.loss.cross_entropy_sparse),
        "tabular": lambda: (dense(32, 256, 256, 1), tp.optim.rmsprop(1e-3), tp.loss.mse),
        "cnn": lambda: (mnist.model(), tp.optim.adam(1e-3), tp.loss.cross_entropy_sparse),
        "gpt": lambda: (chars.gpt(65), tp.optim.adamw(1e-3), tp.loss.cross_entropy_sparse),
    }[name]()
    trainer = tp.Trainer(model, optimizer)
    gradient = lambda vars, x, objective, key: trainer._gradient(vars, x, objective, True, key, None)
    window = Window(optimizer, gradient, loss, None, None, "raise", 1)
    window.begin(trainer.init(rngs=tp.rng.key(0)))
    batch = tuple(map(tp.tensor, rivals.batch(name)))
    for _ in range(3):  # recorded, compared, captured
        window.step([batch])
    return lambda: window.step([batch])


def make(library, case):
    build = {"treepie": treepie_step, "PyTorch": rivals.torch_step, "JAX": rivals.jax_step}
    return build[library](case)


def rows(found):
    lines = [
        "| step | treepie, ms | "
        + " | ".join(f"{r}, ms" for r in next(iter(found.values())) if r != "treepie")
    ]
    lines[0] += " | of the best rival |"
    lines.append("| --- " * (lines[0].count("|") - 1) + "|")
    for case, times in found.items():
        both = {r: (arena.best(t) * 1e3, arena.median(t) * 1e3) for r, t in times.items()}
        best = min(median for r, (_, median) in both.items() if r != "treepie")
        cells = [f"`{case}`: {MODELS[case]}", *(f"{b:.3g} / {m:.3g}" for b, m in both.values())]
        lines.append("| " + " | ".join([*cells, f"{both['treepie'][1] / best:.2f}"]) + " |")
    return lines


def main():
    arena.serve(make)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="write README's table")
    options = parser.parse_args()
    present = {"PyTorch": ("torch",), "JAX": ("jax", "optax")}
    others = [r for r, names in present.items() if all(importlib.util.find_spec(n) for n in names)]
    found = arena.compete(__file__, options.names or list(MODELS), ["treepie", *others], options.turns)
    lines = rows(found)
    print("\n".join(lines))
    if options.write:
        text = README.read_text(encoding="utf-8")
        before, after = text.split(START)[0], text.split(END)[1]
        steps = f"best / median of {options.turns * 10} steps, by turns, a process each"
        README.write_text(
            f"{before}{START}{arena.threads()} threads; {steps}:\n\n" + "\n".join(lines) + f"\n{END}{after}",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
