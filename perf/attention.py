"""Attention and LSTM against PyTorch, forward and backward: `python perf/attention.py [case ...]`."""

import sys
from collections.abc import Callable
from typing import Any

import arena
import numpy as np

#: Name -> (batch, heads, tokens, width of a head), causal.
ATTENTION = {f"attention {tokens} x {d}": (16, 4, tokens, d) for tokens in (128, 1024) for d in (32, 64)}
CASES = [f"{way} {name}" for name in (*ATTENTION, "lstm") for way in ("forward", "both")]


def _treepie(case: str) -> Callable[[], Any]:
    import treepie as tp

    way, name = case.split(" ", 1)
    draw = np.random.default_rng(0).standard_normal
    if name == "lstm":
        layer = tp.layer.lstm(64, 64)
        params = layer.init(tp.rng.key(0)).params
        x = tp.tensor(draw((32, 100, 64)), dtype=tp.float32)
        g = tp.tensor(draw((32, 100, 64)), dtype=tp.float32)

        def run(args: Any) -> Any:
            vars = tp.layer.Vars(args["p"], {}, tp.float32)
            return layer.apply(vars, args["x"])[0]

        args = {"p": params, "x": x}
    else:
        shape = ATTENTION[name]
        args = {k: tp.tensor(draw(shape), dtype=tp.float32) for k in "qkv"}
        g = tp.tensor(draw(shape), dtype=tp.float32)

        def run(args: Any) -> Any:
            return tp.fn.dot_product_attention(args["q"], args["k"], args["v"], is_causal=True)

    if way == "forward":
        return lambda: run(args)

    def both() -> Any:
        _, pullback = tp.vjp(run, args)
        return pullback(g)

    return both


def _torch(case: str) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(arena.threads())
    way, name = case.split(" ", 1)
    draw = torch.Generator().manual_seed(0)
    if name == "lstm":
        layer = torch.nn.LSTM(64, 64, batch_first=True)
        leaves = [torch.randn(32, 100, 64, generator=draw).requires_grad_()]
        g = torch.randn(32, 100, 64, generator=draw)

        def run() -> Any:
            return layer(leaves[0])[0]

        leaves += list(layer.parameters())
    else:
        shape = ATTENTION[name]
        leaves = [torch.randn(shape, generator=draw).requires_grad_() for _ in range(3)]
        g = torch.randn(shape, generator=draw)

        def run() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

    if way == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return run()

        return forward
    return lambda: torch.autograd.grad(run(), leaves, g)


def main() -> None:
    """Print the ratios PyTorch / treepie of the best and the median times."""
    cases = [c for c in CASES if not sys.argv[1:] or any(a in c for a in sys.argv[1:])]
    found = arena.compete(__file__, cases, ["treepie", "torch"], turns=4, count=5)
    ratios = []
    for case, times in found.items():
        mine, theirs = times["treepie"], times["torch"]
        ratios.append(arena.best(theirs) / arena.best(mine))
        middle = arena.median(theirs) / arena.median(mine)
        print(f"{case:30} {1e3 * arena.best(mine):8.2f} ms  best {ratios[-1]:.2f}  median {middle:.2f}")
    print(f"geometric mean of the best: {arena.geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    arena.serve(lambda library, case: {"treepie": _treepie, "torch": _torch}[library](case))
    main()
