"""Time convolutions and pooling against PyTorch: `python perf/conv.py [CASE ...]`.

A case is forward alone (`fwd`) or forward and both gradients (`bwd`, by `vjp` and `backward`), float32, on
the arrays as they are, (n, channels, h, w). One process for each library, by turns (see `arena.py`).

With `--precision bfloat16`, convolutions are timed in float32 and in bfloat16, and PyTorch's under autocast,
on images channels_last.
"""

import argparse

import arena
import numpy as np

#: name -> x, weight, groups.
CONVOLUTIONS = {
    "cnn1": ((64, 1, 28, 28), (16, 1, 3, 3), 1),
    "cnn2": ((64, 16, 14, 14), (32, 16, 3, 3), 1),
    "3x3": ((16, 64, 32, 32), (64, 64, 3, 3), 1),
    "depthwise": ((16, 64, 32, 32), (64, 1, 3, 3), 64),
    "1x1": ((16, 64, 32, 32), (128, 64, 1, 1), 1),
    "16@32": ((32, 16, 32, 32), (16, 16, 3, 3), 1),
    "32@16": ((32, 32, 16, 16), (32, 32, 3, 3), 1),
    "64@8": ((32, 64, 8, 8), (64, 64, 3, 3), 1),
    "128@16": ((16, 128, 16, 16), (128, 128, 3, 3), 1),
}
POOL = (64, 16, 28, 28)
CASES = [f"{name} {way}" for name in (*CONVOLUTIONS, "pool") for way in ("fwd", "bwd")]


def arrays(shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def shapes(name):
    if name == "pool":
        return [POOL]
    x, w, _ = CONVOLUTIONS[name]
    return [x, w, w[:1]]


def ours(name, way):
    import treepie as tp

    tp.set_num_threads(arena.threads())
    given = [tp.tensor(a) for a in arrays(shapes(name))]
    if name == "pool":
        function = lambda x: tp.fn.max_pool2d(x, 2)
    else:
        groups = CONVOLUTIONS[name][2]
        function = lambda x, w, b: tp.fn.conv2d(x, w, b, groups=groups)
    if way == "fwd":
        return lambda: function(*given)
    g = tp.tensor(arrays([function(*given).shape])[0])

    def both():
        _, pullback = tp.vjp(function, *given)
        return pullback(g)

    return both


def theirs(name, way, channels_last=False):
    import torch
    from torch.nn import functional

    torch.set_num_threads(arena.threads())
    given = [torch.tensor(a, requires_grad=way == "bwd") for a in arrays(shapes(name))]
    if name == "pool":
        function = lambda x: functional.max_pool2d(x, 2)
    else:
        groups, pad = CONVOLUTIONS[name][2], CONVOLUTIONS[name][1][-1] // 2
        function = lambda x, w, b: functional.conv2d(x, w, b, padding=pad, groups=groups)
    if channels_last:
        given = [a.to(memory_format=torch.channels_last) if a.ndim == 4 else a for a in given]
        given = [a.detach().requires_grad_(way == "bwd") for a in given]
    if way == "fwd":

        def forward():
            with torch.no_grad():
                return function(*given)

        return forward
    with torch.no_grad():
        g = torch.tensor(arrays([function(*given).shape])[0])
    g = g.to(memory_format=torch.channels_last) if channels_last else g
    return lambda: torch.autograd.grad(function(*given), given, g)


def make(library, case):
    name, way = case.split()
    if library == "treepie bfloat16":
        import treepie as tp

        return tp.precision("bfloat16")(ours(name, way))
    if library == "torch autocast":
        import torch

        run = theirs(name, way, channels_last=True)
        return torch.autocast("cpu", dtype=torch.bfloat16)(run)
    return {"treepie": ours, "torch": theirs}[library](name, way)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases, or parts of them; all by default")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    cases = [c for c in CASES if not options.cases or any(o in c for o in options.cases)]
    libraries = ["treepie", "torch"]
    if options.precision == "bfloat16":
        libraries = ["treepie", "treepie bfloat16", "torch autocast"]
        cases = [c for c in cases if not c.startswith("pool")]
    found = arena.compete(__file__, cases, libraries, options.turns)
    print(f"{arena.threads()} threads; best and median times in microseconds; ratios of bests over ours")
    print(f"{'case':16s}" + "".join(f" {name:>16s} {'median':>9s}" for name in libraries))
    *others, rival = [name for name in libraries if name != libraries[-2]]
    ratios = []
    for case, times in found.items():
        ours_best = arena.best(times[libraries[-2]])
        numbers = "".join(
            f" {arena.best(t) * 1e6:16.1f} {arena.median(t) * 1e6:9.1f}" for t in times.values()
        )
        shown = [arena.best(times[name]) / ours_best for name in (*others, rival)]
        ratios.append(shown[-1])
        print(f"{case:16s}{numbers}" + "".join(f" {ratio:7.2f}" for ratio in shown))
    print(f"geometric mean of {rival}: {arena.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    arena.serve(make)
    main()
