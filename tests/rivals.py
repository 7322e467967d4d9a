"""What PyTorch's optimizers make of 100 steps: `python -m tests.rivals` writes rivals.json.

The parameters lie away from 0, so that 1e-6 of them is a few units in float32's last place; the gradients
depend on them, so that a wrong step grows. PyTorch computes in float64: in float32 its AdamW is off by up to
2.4e-6 after the 100 steps, because it multiplies by 1 - lr * weight_decay, which it rounds.
"""

import json
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_suffix(".json")
STEPS, SIZE = 100, 12
SHOWN = (1, 2, 10, 100)

#: Name of a case -> name in treepie and in PyTorch, and the arguments of each.
CASES = {
    "sgd": ("sgd", {}, "SGD", {}),
    "momentum": ("sgd", {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "nesterov": (
        *("sgd", {"momentum": 0.9, "nesterov": True}),
        *("SGD", {"momentum": 0.9, "nesterov": True}),
    ),
    "adam": ("adam", {}, "Adam", {}),
    "adam, betas": ("adam", {"b1": 0.8, "b2": 0.95}, "Adam", {"betas": (0.8, 0.95)}),
    "adam, eps": ("adam", {"eps": 1e-3}, "Adam", {"eps": 1e-3}),
    "adamw": ("adamw", {"weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
    "adamw, its default": ("adamw", {}, "AdamW", {}),
    "rmsprop": ("rmsprop", {}, "RMSprop", {"alpha": 0.9}),
    "rmsprop, momentum": ("rmsprop", {"momentum": 0.9}, "RMSprop", {"alpha": 0.9, "momentum": 0.9}),
    "adagrad": ("adagrad", {}, "Adagrad", {"eps": 1e-8}),
}
RATE = 1e-3


def hashed(count):
    """Numbers in [-0.5, 0.5) of integers alone, so that they are the same with every NumPy."""
    k = np.arange(count, dtype=np.uint64)
    k = (k * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(2**32)
    k = ((k ^ (k >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    return (k.astype(np.float64) / 2**32 - 0.5).astype(np.float32)


START = np.where(hashed(SIZE) < 0, -1, 1).astype(np.float32) * (2 + hashed(SIZE))
NOISE = hashed(STEPS * SIZE).reshape(STEPS, SIZE)


def gradient(step, params):
    """The gradient before a step, from 0."""
    return NOISE[step].astype(params.dtype) + params.dtype.type(0.125) * params


def by_torch(name, dtype="float64"):
    """Return the parameters after the steps in SHOWN."""
    import torch

    _, _, kind, options = CASES[name]
    p = torch.nn.Parameter(torch.from_numpy(START.astype(dtype)))
    optimizer = getattr(torch.optim, kind)([p], lr=RATE, **options)
    shown = []
    for step in range(STEPS):
        p.grad = torch.from_numpy(gradient(step, p.detach().numpy().copy()))
        optimizer.step()
        if step + 1 in SHOWN:
            shown.append(p.detach().numpy().tolist())
    return shown


if __name__ == "__main__":
    import torch

    rows = {name: by_torch(name) for name in CASES}
    STORED.write_text(json.dumps({"torch": torch.__version__, **rows}, indent=1) + "\n", encoding="utf-8")
