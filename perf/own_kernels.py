"""Kernels of one's own against plain ops and PyTorch, value and gradient: `python perf/own_kernels.py`.

    python perf/own_kernels.py              # all cases
    python perf/own_kernels.py --write      # and write README's table

The kernels are those of `treepie.examples.own_kernel`. Plain ops run one by one, as PyTorch's do, and as one
program under `jit`.
"""

import argparse

import arena
import numpy as np
import report

QUANTILES = np.array([0.1, 0.5, 0.9], np.float32)
SECTION = "perf/own_kernels.py"

#: Case -> shapes of the arguments; the gradient is that of the first one.
CASES = {
    "quantile loss, 65536 x 3": [(65536, 3), (65536,)],
    "quantile loss, 4096 x 99": [(4096, 99), (4096,)],
    "stencil, 64 images of 128 x 128": [(64, 128, 128)],
    "moving average, 64 x 256 x 32": [(64, 256, 32)],
    "moving average, 8 x 1024 x 8": [(8, 1024, 8)],
}
WAYS = ("own", "own, program", "ops", "ops, program", "torch")
DECAY = 0.9


def arguments(case):
    """Return the arguments, and the gradient of the result."""
    draw = np.random.default_rng(0)
    arrays = [draw.standard_normal(s).astype("f4") for s in CASES[case]]
    if case.startswith("quantile"):
        levels = np.linspace(0.01, 0.99, CASES[case][0][1]).astype("f4")
        return [*arrays, levels], np.ones(CASES[case][1], "f4")
    return arrays, draw.standard_normal(CASES[case][0]).astype("f4")


def plain(xp, case):
    """Return a function of the arguments in the ops of treepie or PyTorch, which have the same names here."""
    if case.startswith("quantile"):

        def function(predicted, target, levels):
            error = target[:, None] - predicted
            return xp.maximum(levels * error, (levels - 1) * error).sum(1)

    elif case.startswith("stencil"):

        def function(x):
            if hasattr(xp, "cat"):
                inner = xp.cat([x[:, :1], x, x[:, -1:]], 1)
                wide = xp.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
            else:
                inner = xp.concatenate([x[:, :1], x, x[:, -1:]], 1)
                wide = xp.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)
            return inner[:, :-2] + inner[:, 2:] + wide[:, :, :-2] + wide[:, :, 2:] - 4.0 * x

    else:

        def function(x):
            y, rows = (1 - DECAY) * x[:, 0], []
            rows.append(y)
            for t in range(1, x.shape[1]):
                y = DECAY * y + (1 - DECAY) * x[:, t]
                rows.append(y)
            return xp.stack(rows, 1)

    return function


def of_treepie(way, case):
    import treepie as tp
    from treepie.examples import own_kernel as own

    arrays, g = arguments(case)
    x, *rest = (tp.tensor(a) for a in arrays)
    g = tp.tensor(g)
    if way.startswith("ops"):
        function = plain(tp, case)
    elif case.startswith("quantile"):
        function = own.quantile_loss
    elif case.startswith("stencil"):
        function = own.laplacian
    else:

        def function(x):
            return own.moving_average(x, decay=DECAY)

    def both(x, g, *rest):
        y, pullback = tp.vjp(lambda x: function(x, *rest), x)
        return y, pullback(g)

    step = tp.jit(both) if way.endswith("program") else both
    return lambda: step(x, g, *rest)


def of_torch(case):
    import torch

    torch.set_num_threads(arena.threads())
    arrays, g = arguments(case)
    x, *rest = (torch.from_numpy(a) for a in arrays)
    x.requires_grad_()
    g, function = torch.from_numpy(g), plain(torch, case)

    def both():
        y = function(x, *rest)
        return y, torch.autograd.grad(y, x, g)

    return both


def make(library, case):
    """Return the function to time; each way is a process of its own."""
    return of_torch(case) if library == "torch" else of_treepie(library, case)


def main():
    """Print, and write if asked, the times of each way as multiples of the own kernel's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    cases = [c for c in CASES if not options.cases or any(a in c for a in options.cases)]
    found = arena.compete(__file__, cases, list(WAYS), turns=4, count=5)
    header = ["value and gradient", "own kernel, ms", "in a program", "plain ops", "in a program", "PyTorch"]
    rows = {}
    for case, times in found.items():
        mine = arena.median(times["own"])
        rows[case] = [case, f"{1e3 * mine:.3f}", *(f"{arena.median(times[w]) / mine:.2f}" for w in WAYS[1:])]
        print(*report.table(header, [rows[case]]), sep="\n", flush=True)
    if options.write:
        caption = f"Medians on {arena.threads()} cores, the others as multiples of the first:"
        report.write(SECTION, caption, header, {case: rows.get(case) for case in CASES})


if __name__ == "__main__":
    arena.serve(make)
    main()
