"""Write tests/recurrence.json: what PyTorch's LSTM, GRU and RNN give. `python -m tests.store_recurrence`."""

import json
from pathlib import Path

import numpy as np

#: Where PyTorch has which of our parameters.
NAMES = {
    "weight_ih": "weight_ih_l0",
    "weight_hh": "weight_hh_l0",
    "bias_ih": "bias_ih_l0",
    "bias_hh": "bias_hh_l0",
}


def reference(kind, x, weights):
    """Return PyTorch's states, and the gradients of the sum of their squares, in our layout."""
    import torch

    n = weights["weight_hh"].shape[0]
    layer = getattr(torch.nn, kind.upper())(x.shape[2], n, batch_first=True, dtype=torch.float64)
    for name, theirs in NAMES.items():
        getattr(layer, theirs).data = torch.tensor(weights[name].T.copy())
    given = torch.tensor(x, requires_grad=True)
    states = layer(given)[0]
    (states**2).sum().backward()
    found = {name: getattr(layer, theirs).grad.numpy().T for name, theirs in NAMES.items()}
    return {"states": states.detach().numpy(), "x": given.grad.numpy(), **found}


def main():
    """Write the file."""
    from .test_recurrence import KINDS, STORED, weights

    found = {}
    for kind in KINDS:
        x, w = np.random.default_rng(2).standard_normal((3, 4, 2)).round(3), weights(kind, 2, 3, seed=3)
        w = {k: a.round(3) for k, a in w.items()}
        made = {k: a.tolist() for k, a in reference(kind, x, w).items()}
        found[kind] = {"x": x.tolist(), "weights": {k: a.tolist() for k, a in w.items()}, "made": made}
    Path(STORED).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
