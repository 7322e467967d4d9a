"""Elementary functions over 10^6 numbers against PyTorch, both into memory that is there.

python perf/elementwise.py             # all
python perf/elementwise.py gelu tanh   # some
"""

import argparse

import arena
from gemm import program

SIZE = 1_000_000
FUNCTIONS = (
    *("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "gelu", "silu"),
    *("softplus", "sin", "cos", "rsqrt", "sqrt", "relu"),
)


def numbers(name, dtype):
    import numpy as np

    x = np.random.default_rng(0).standard_normal(SIZE)
    return (np.abs(x) + 0.1 if name in ("log", "log1p", "rsqrt", "sqrt") else x).astype(dtype)


def make(library, case):
    name, dtype = case.split()
    x = numbers(name, dtype)
    if library == "treepie":
        import treepie as tp
        from treepie.autodiff import OPS

        run, kept = program(OPS[name], (tp.tensor(x),), {})
        return lambda kept=kept: run()
    import torch

    t, out = torch.from_numpy(x), torch.empty(SIZE, dtype=getattr(torch, dtype))
    if name in ("gelu", "silu", "softplus", "relu"):
        from torch._C import _nn

        own = {"gelu": _nn.gelu, "silu": _nn.silu, "softplus": _nn.softplus, "relu": torch.relu}[name]
        return (lambda: torch.clamp_min(t, 0, out=out)) if name == "relu" else (lambda: own(t, out=out))
    function = getattr(torch, name)
    return lambda: function(t, out=out)


def main():
    arena.serve(make)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    cases = [f"{n} {d}" for n in options.names or FUNCTIONS for d in ("float32", "float64")]
    found = arena.compete(__file__, cases, ["treepie", "PyTorch"], options.turns)
    print(f"{arena.threads()} threads, {SIZE} elements, {options.turns * 10} timings by turns; best, in us")
    print(f"{'':18s} {'ours':>7s} {'PyTorch':>7s} {'ratio':>6s} {'of medians':>10s}")
    for case, times in found.items():
        ours, theirs = times["treepie"], times["PyTorch"]
        best, typical = (f(theirs) / f(ours) for f in (arena.best, arena.median))
        both = f"{arena.best(ours) * 1e6:7.0f} {arena.best(theirs) * 1e6:7.0f}"
        print(f"{case:18s} {both} {best:6.2f} {typical:10.2f}")


if __name__ == "__main__":
    main()
