"""Elementary functions over 10^6 numbers against PyTorch, both into memory that is there.

python perf/elementwise.py             # all
python perf/elementwise.py gelu tanh   # some
python perf/elementwise.py --fast      # in fast accuracy, where there is one
"""

import argparse

import arena
from gemm import program

SIZE = 1_000_000
FUNCTIONS = (
    *("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "gelu", "silu"),
    *("softplus", "sin", "cos", "rsqrt", "sqrt", "relu"),
)
FAST = ("exp", "tanh", "sigmoid", "erf", "gelu", "silu")


def numbers(name, dtype):
    import numpy as np

    x = np.random.default_rng(0).standard_normal(SIZE)
    return (np.abs(x) + 0.1 if name in ("log", "log1p", "rsqrt", "sqrt") else x).astype(dtype)


def make(library, case):
    name, dtype = case.split()
    x = numbers(name, dtype)
    if library != "PyTorch":
        import treepie as tp
        from treepie.autodiff import OPS

        row = OPS[name].fast if library == "treepie fast" else OPS[name]
        run, kept = program(row, (tp.tensor(x),), {})
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
    parser.add_argument("--fast", action="store_true", help="float32 functions in fast accuracy")
    options = parser.parse_args()
    ours, dtypes = ("treepie fast", ("float32",)) if options.fast else ("treepie", ("float32", "float64"))
    names = options.names or (FAST if options.fast else FUNCTIONS)
    cases = [f"{n} {d}" for n in names for d in dtypes]
    found = arena.compete(__file__, cases, [ours, "PyTorch"], options.turns)
    print(f"{arena.threads()} threads, {SIZE} elements, {options.turns * 10} timings by turns; best, in us")
    print(f"{'':18s} {'ours':>7s} {'PyTorch':>7s} {'ratio':>6s} {'of medians':>10s}")
    for case, times in found.items():
        own, theirs = times[ours], times["PyTorch"]
        best, typical = (f(theirs) / f(own) for f in (arena.best, arena.median))
        both = f"{arena.best(own) * 1e6:7.0f} {arena.best(theirs) * 1e6:7.0f}"
        print(f"{case:18s} {both} {best:6.2f} {typical:10.2f}")


if __name__ == "__main__":
    main()
