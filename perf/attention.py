"""Attention and LSTM against PyTorch, forward and backward.

python perf/attention.py [case ...]
python perf/attention.py --precision bfloat16    # products in bfloat16, against PyTorch's autocast too
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import arena
import numpy as np

#: Name -> (batch, heads, tokens, width of a head), causal.
ATTENTION = {f"attention {tokens} x {d}": (16, 4, tokens, d) for tokens in (128, 1024) for d in (32, 64)}
#: Of `--precision`: as many scores' rows in each.
LOWER = {f"attention {tokens}": (4096 // tokens, 4, tokens, 64) for tokens in (256, 1024, 4096)}
#: Name -> (batch, steps, width).
LSTM = {"lstm": (32, 100, 64), "lstm 256": (32, 64, 256), "lstm 512": (32, 64, 512)}
WAYS = ("forward", "both")
CASES = [f"{way} {name}" for name in (*ATTENTION, "lstm") for way in WAYS]
CASES_LOWER = [f"{way} {name}" for name in (*LOWER, "lstm 256", "lstm 512") for way in WAYS]


def _treepie(case: str) -> Callable[[], Any]:
    import treepie as tp

    way, name = case.split(" ", 1)
    draw = np.random.default_rng(0).standard_normal
    if name in LSTM:
        shape = LSTM[name]
        layer = tp.layer.lstm(shape[2], shape[2])
        params = layer.init(tp.rng.key(0)).params
        x = tp.tensor(draw(shape), dtype=tp.float32)
        g = tp.tensor(draw(shape), dtype=tp.float32)

        def run(args: Any) -> Any:
            vars = tp.layer.Vars(args["p"], {}, tp.float32)
            return layer.apply(vars, args["x"])[0]

        args = {"p": params, "x": x}
    else:
        shape = (ATTENTION | LOWER)[name]
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


def _torch(case: str, autocast: bool = False) -> Callable[[], Any]:
    """Return a call of PyTorch; its attention does not change under autocast, but takes bfloat16."""
    import torch

    torch.set_num_threads(arena.threads())
    way, name = case.split(" ", 1)
    draw = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if autocast else torch.float32
    if name in LSTM:
        shape = LSTM[name]
        layer = torch.nn.LSTM(shape[2], shape[2], batch_first=True)
        leaves = [torch.randn(shape, generator=draw).requires_grad_()]
        g = torch.randn(shape, generator=draw).to(dtype)

        def run() -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return layer(leaves[0])[0]

        leaves += list(layer.parameters())
    else:
        shape = (ATTENTION | LOWER)[name]
        leaves = [torch.randn(shape, generator=draw).to(dtype).requires_grad_() for _ in range(3)]
        g = torch.randn(shape, generator=draw).to(dtype)

        def run() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

    if way == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return run()

        return forward
    return lambda: torch.autograd.grad(run(), leaves, g)


def _treepie_lower(case: str) -> Callable[[], Any]:
    import treepie as tp

    return tp.precision("bfloat16")(_treepie(case))


_MAKE = {
    "treepie": _treepie,
    "torch": _torch,
    "treepie bfloat16": _treepie_lower,
    "torch bfloat16": functools.partial(_torch, autocast=True),
}


def main() -> None:
    """Print the ratios PyTorch / treepie, or float32 / bfloat16 and PyTorch / bfloat16, of the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    lower = options.precision == "bfloat16"
    cases = [
        c
        for c in (CASES_LOWER if lower else CASES)
        if not options.cases or any(a in c for a in options.cases)
    ]
    own, *rivals = ("treepie bfloat16", "treepie", "torch bfloat16") if lower else ("treepie", "torch")
    for rival in rivals:
        print(f"{rival} / {own}")
    ratios: dict[str, list[float]] = {rival: [] for rival in rivals}
    for case, times in arena.compete(__file__, cases, [own, *rivals], turns=4, count=5).items():
        cells = []
        for rival in rivals:
            ratios[rival].append(arena.best(times[rival]) / arena.best(times[own]))
            middle = arena.median(times[rival]) / arena.median(times[own])
            cells.append(f"best {ratios[rival][-1]:.2f}  median {middle:.2f}")
        print(f"{case:30} {1e3 * arena.best(times[own]):8.2f} ms  {'   '.join(cells)}")
    for rival in rivals:
        print(f"{rival}: geometric mean of the best: {arena.geometric_mean(ratios[rival]):.2f}")


if __name__ == "__main__":
    arena.serve(lambda library, case: _MAKE[library](case))
    main()
