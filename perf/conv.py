"""Time convolutions and pooling against PyTorch: `python perf/conv.py [CASE ...]`.

A case is forward alone (`fwd`) or forward and both gradients (`bwd`, by `vjp` and `backward`), float32, on
the arrays as they are, (n, channels, h, w). One process for each library, by turns (see `arena.py`).
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


def theirs(name, way):
    import torch
    from torch.nn import functional

    torch.set_num_threads(arena.threads())
    given = [torch.tensor(a, requires_grad=way == "bwd") for a in arrays(shapes(name))]
    if name == "pool":
        function = lambda x: functional.max_pool2d(x, 2)
    else:
        groups, pad = CONVOLUTIONS[name][2], CONVOLUTIONS[name][1][-1] // 2
        function = lambda x, w, b: functional.conv2d(x, w, b, padding=pad, groups=groups)
    if way == "fwd":

        def forward():
            with torch.no_grad():
                return function(*given)

        return forward
    with torch.no_grad():
        g = torch.tensor(arrays([function(*given).shape])[0])
    return lambda: torch.autograd.grad(function(*given), given, g)


def make(library, case):
    name, way = case.split()
    return {"treepie": ours, "torch": theirs}[library](name, way)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of cases, or parts of them; all by default")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    cases = [c for c in CASES if not options.cases or any(o in c for o in options.cases)]
    found = arena.compete(__file__, cases, ["treepie", "torch"], options.turns)
    print(
        f"{arena.threads()} threads; best and median times in microseconds; ratio: PyTorch's best over ours"
    )
    print(f"{'case':16s} {'treepie':>9s} {'median':>9s} {'torch':>9s} {'median':>9s} {'ratio':>7s}")
    ratios = []
    for case, times in found.items():
        a, b = times["treepie"], times["torch"]
        ratios.append(arena.best(b) / arena.best(a))
        numbers = "".join(f" {f(t) * 1e6:9.1f}" for t in (a, b) for f in (arena.best, arena.median))
        print(f"{case:16s}{numbers} {ratios[-1]:7.2f}")
    print(f"geometric mean {arena.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    arena.serve(make)
    main()
