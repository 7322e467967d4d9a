"""The five models of the benchmarks: what they are, what they are trained on, and which libraries train them.

`with_treepie.py`, `with_torch.py` and `with_jax.py` each have `step(name, weights)`, which returns a function
that takes one training step, on the next of the same batches, and returns its loss.
"""

import argparse
import importlib
import importlib.util
import shutil

import numpy as np

MODELS = {
    "xor": "2-4-1 tanh, batch 4, Adam",
    "mlp": "784-512-256-10 relu, batch 128, Adam",
    "tabular": "32-256-256-1 relu, batch 1024, RMSprop",
    "cnn": "1-16-32 3x3 convolutions, max-pool, 1568-128-10, batch 64, Adam",
    "gpt": "4 blocks, 128 wide, 4 heads, 128 tokens, batch 16, AdamW",
}

#: Another one, of many small products, which `shared.py` trains.
DEEP = {"deep": "30 layers of 128 relu, batch 64, Adam"}

#: One of large products, which `precision.py` trains.
WIDE = {"wide": "1024-1024-1024-10 relu, batch 512, Adam"}

#: Of the optimizers of all libraries.
RATE, B1, B2, EPS, WEIGHT_DECAY, RMS_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.9

#: Models whose loss is the mean of squares; the others' is cross-entropy of labels.
SQUARES = ("xor", "tabular")

#: Batches that training goes round.
BATCHES = 8

LIBRARIES = {
    "treepie": "with_treepie",
    "PyTorch": "with_torch",
    "torch.compile": "with_torch",
    "JAX": "with_jax",
}


def step(library, name, weights=None):
    """Return a library's training step of a model, from its own first weights or from given ones."""
    module = importlib.import_module(LIBRARIES[library])
    return (module.compiled_step if library == "torch.compile" else module.step)(name, weights)


def installed():
    """Return the libraries that are here, and a line for each that is left out."""
    need = {"treepie": (), "PyTorch": ("torch",), "torch.compile": ("torch",), "JAX": ("jax", "optax")}
    missing = {
        library: ", ".join(n for n in names if not importlib.util.find_spec(n))
        for library, names in need.items()
    }
    if not missing["torch.compile"] and not (shutil.which("g++") or shutil.which("clang++")):
        missing["torch.compile"] = "C++ compiler (g++), which it starts"
    left_out = [f"{library} is left out: there is no {what}" for library, what in missing.items() if what]
    return [library for library, what in missing.items() if not what], left_out


def batches(name):
    """Return [(input, target)], which can be learned: targets follow from inputs by a rule."""
    rng = np.random.default_rng(0)
    rule = rng.standard_normal((784, 10), "f4")

    def example():
        if name == "xor":
            x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4")[rng.permutation(4)]
            return x, (x[:, :1] != x[:, 1:]).astype("f4")
        if name == "tabular":
            x = rng.standard_normal((1024, 32), "f4")
            return x, np.sin(x @ rule[:32, :1] / 4)
        if name == "gpt":  # numbers that rise by the same amount, round the vocabulary
            start, rise = rng.integers(0, 65, (16, 1)), rng.integers(1, 9, (16, 1))
            codes = ((start + rise * np.arange(129)) % 65).astype("i4")
            return codes[:, :-1].copy(), codes[:, 1:].copy()
        if name == "deep":
            x = rng.standard_normal((64, 128), "f4")
            return x, (x @ rule[:128]).argmax(1).astype("i4")
        if name == "wide":
            x = rng.standard_normal((512, 1024), "f4")
            return x, (x[:, :784] @ rule).argmax(1).astype("i4")
        # As in MNIST, most pixels are 0 and none is above 1.
        x = rng.standard_normal((64 if name == "cnn" else 128, 784), "f4").clip(0.5, 1.5) - np.float32(0.5)
        y = (x @ rule).argmax(1).astype("i4")
        return (x.reshape(-1, 1, 28, 28) if name == "cnn" else x), y

    return [example() for _ in range(BATCHES)]


def options(doc, writes, names=MODELS):
    """Return a script's options, and the libraries that are here; says which are left out.

    names: what may be named to run alone.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*names, []])
    parser.add_argument("--write", action="store_true", help=f"write README's {writes}")
    given = parser.parse_args()
    libraries, left_out = installed()
    for line in left_out:
        print(line)
    return given, libraries
