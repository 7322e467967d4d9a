"""Matrix products against MKL (torch.mm) and OpenBLAS (NumPy), and linear layers against PyTorch's.

    python perf/gemm.py              # all of it, a few minutes
    python perf/gemm.py mlp          # cases whose names have a word
    python perf/gemm.py --turns 12   # more of them, on a noisy machine
    python perf/gemm.py --precision bfloat16   # products in bfloat16, against those in float32 and PyTorch's,
                                               # without and with rounding of its operands

Each library writes into memory that is there: torch.mm(out=), np.matmul(out=), a program of one product.
"""

import argparse
import functools

import arena

#: name -> (dtype, form, batch, M, K, N): the products of training steps, A B, A' B and A B' (nn, tn, nt).
SHAPES = {
    f"{form} {m}x{k}x{n}": ("float32", form, 0, m, k, n)
    for form, m, k, n in [
        ("nn", 64, 784, 512), ("nn", 128, 784, 512), ("nn", 128, 512, 256), ("nn", 128, 256, 10),
        ("nn", 256, 256, 256), ("nn", 512, 512, 512), ("nn", 1024, 1024, 1024), ("nn", 2048, 2048, 2048),
        ("nn", 64, 128, 10), ("nn", 8, 64, 64), ("nn", 512, 128, 512),
        ("tn", 784, 64, 512), ("tn", 784, 128, 512), ("tn", 512, 128, 256), ("tn", 1024, 1024, 1024),
        ("tn", 256, 128, 10),
        ("nt", 64, 512, 784), ("nt", 128, 256, 512), ("nt", 1024, 1024, 1024), ("nt", 128, 10, 256),
        ("nn", 2048, 128, 128), ("nn", 2048, 128, 512), ("nn", 2048, 512, 128),
        ("tn", 128, 2048, 128), ("tn", 128, 2048, 512), ("tn", 512, 2048, 128),
        ("nt", 2048, 128, 128), ("nt", 2048, 512, 128), ("nt", 2048, 128, 512),
        ("nn", 1024, 256, 256), ("nn", 1024, 32, 256), ("tn", 256, 1024, 256), ("tn", 32, 1024, 256),
        ("nt", 1024, 256, 256),
    ]
}  # fmt: skip
SHAPES |= {
    f"{form} 64 of {m}x{k}x{n}": ("float32", form, 64, m, k, n)
    for form, m, k, n in [("nn", 128, 128, 32), ("nt", 128, 32, 128), ("tn", 128, 128, 32)]
}
SHAPES |= {
    f"{form} {m}x{k}x{n} float64": ("float64", form, 0, m, k, n)
    for form, m, k, n in [
        ("nn", 128, 784, 512), ("tn", 784, 128, 512), ("nt", 128, 256, 512), ("nn", 512, 512, 512),
        ("nn", 64, 128, 10),
    ]
}  # fmt: skip

#: name -> (M, K, N, activation): act(x @ w + b).
LINEAR = {
    f"{act} {m}x{k}x{n}": (m, k, n, act)
    for act in ("relu", "gelu")
    for m, k, n in [(128, 784, 512), (128, 512, 256), (1024, 256, 256), (2048, 128, 512)]
}


#: Products in bfloat16, of 256 cubed and above. PyTorch's operands are in bfloat16 already, or, as treepie's,
#: float32, which it rounds first.
BFLOAT16 = {
    f"bfloat16 {name}": shape
    for name, shape in SHAPES.items()
    if shape[0] == "float32" and not shape[2] and shape[3] * shape[4] * shape[5] >= 256**3
}


def arrays(dtype, form, batch, m, k, n):
    """Return A and B as they lie in memory, and room for C."""
    import numpy as np

    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m) if form == "tn" else (m, k))
    b = rng.standard_normal((n, k) if form == "nt" else (k, n))
    made = [a, b, np.zeros((m, n))]
    return [np.broadcast_to(x, (batch, *x.shape)).astype(dtype) if batch else x.astype(dtype) for x in made]


def program(row, tensors, attributes):
    """Return a function that runs an op's program into memory that is there, and the results."""
    import numpy as np

    from treepie.kernels.memory import aligned

    plan = row.planned([(t.shape, t.dtype) for t in tensors], attributes)
    outputs = [aligned(shape, dtype) for shape, dtype in plan.outputs]
    held = [*outputs, *(aligned((size,), np.dtype("u1")) for size in plan.scratch)]
    addresses = [*(t.address for t in tensors), *(x.ctypes.data for x in held)]
    return functools.partial(plan.program.run, addresses), (outputs, held, tensors)


def treepie_product(shape, precision="float32"):
    import numpy as np

    import treepie as tp
    from treepie.autodiff import OPS

    a, b, _ = arrays(*shape)
    attributes = {"transpose_a": shape[1] == "tn", "transpose_b": shape[1] == "nt"}
    given, attributes = OPS["matmul"].bind(tp.tensor(a), tp.tensor(b), **attributes, precision=precision)
    run, kept = program(OPS["matmul"], given, attributes)
    run()
    want = OPS["matmul"].oracle(a, b, **attributes)
    error = 1e-2 if precision == "float32" else 0.02 * want.std()
    np.testing.assert_allclose(kept[0][0], want, rtol=1e-3, atol=error)
    return lambda kept=kept: run()


def torch_product(shape, dtype="float32"):
    import torch

    a, b, c = (torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays(*shape))
    a, b = (a.mT if shape[1] == "tn" else a), (b.mT if shape[1] == "nt" else b)
    multiply = torch.bmm if shape[2] else torch.mm
    return lambda: multiply(a, b, out=c)


def torch_rounded_product(shape):
    import torch

    operands = [torch.from_numpy(x) for x in arrays(*shape)[:2]]
    rounded = [torch.empty_like(x, dtype=torch.bfloat16) for x in operands]
    a, b = (x.mT if turned == shape[1] else x for x, turned in zip(rounded, ("tn", "nt"), strict=True))
    c = torch.empty(shape[3], shape[5], dtype=torch.bfloat16)

    def run():
        for x, out in zip(operands, rounded, strict=True):
            out.copy_(x)
        torch.mm(a, b, out=c)

    return run


def numpy_product(shape):
    import numpy as np

    a, b, c = arrays(*shape)
    a, b = (a.swapaxes(-1, -2) if shape[1] == "tn" else a), (b.swapaxes(-1, -2) if shape[1] == "nt" else b)
    return lambda: np.matmul(a, b, out=c)


def treepie_linear(m, k, n, act):
    import treepie as tp
    from treepie.autodiff import OPS

    x, w, _ = arrays("float32", "nn", 0, m, k, n)
    given, attributes = OPS["linear"].bind(tp.tensor(x), tp.tensor(w), tp.zeros(n), activation=act)
    run, kept = program(OPS["linear"], given, attributes)
    return lambda kept=kept: run()


def torch_linear(m, k, n, act):
    import torch

    x, w, _ = (torch.from_numpy(v) for v in arrays("float32", "nn", 0, m, k, n))
    w, b = w.T.contiguous(), torch.zeros(n)
    function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[act]

    def run():
        with torch.no_grad():
            return function(torch.nn.functional.linear(x, w, b))

    return run


def make(library, case):
    if case in BFLOAT16:
        if library == "PyTorch":
            return torch_product(BFLOAT16[case], "bfloat16")
        if library == "rounding":
            return torch_rounded_product(BFLOAT16[case])
        return treepie_product(BFLOAT16[case], "bfloat16" if library == "treepie" else "float32")
    if case in SHAPES:
        build = {"treepie": treepie_product, "MKL": torch_product, "OpenBLAS": numpy_product}[library]
        return build(SHAPES[case])
    return {"treepie": treepie_linear, "PyTorch": torch_linear}[library](*LINEAR[case])


def flops(case):
    if case in SHAPES or case in BFLOAT16:
        _, _, batch, m, k, n = (SHAPES | BFLOAT16)[case]
        return 2.0 * max(batch, 1) * m * k * n
    m, k, n, _ = LINEAR[case]
    return 2.0 * m * k * n


def show(found, rivals):
    print(
        f"{'case':28s} {'GF/s':>6s} {'us':>8s}" + "".join(f" {'of ' + r:>12s} {'median':>7s}" for r in rivals)
    )
    for case, times in found.items():
        ours = times["treepie"]
        numbers = f"{flops(case) / arena.best(ours) / 1e9:6.0f} {arena.best(ours) * 1e6:8.1f}"
        for r in rivals:
            numbers += f" {arena.best(times[r]) / arena.best(ours):12.2f}"
            numbers += f" {arena.median(times[r]) / arena.median(ours):7.2f}"
        print(f"{case:28s} {numbers}")
    for r in rivals:
        ratios = [arena.best(t[r]) / arena.best(t["treepie"]) for t in found.values()]
        print(f"of {r}: geometric mean {arena.geometric_mean(ratios):.2f}, least {min(ratios):.2f}")


def main():
    arena.serve(make)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="run the cases whose names have one of these words")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    print(f"{arena.threads()} threads, {options.turns * 10} timings by turns; speed against each rival's")
    tables = [(SHAPES, ["MKL", "OpenBLAS"]), (LINEAR, ["PyTorch"])]
    if options.precision == "bfloat16":
        tables = [(BFLOAT16, ["float32", "PyTorch", "rounding"])]
    for cases, rivals in tables:
        chosen = [c for c in cases if not options.words or any(w in c for w in options.words)]
        if chosen:
            show(arena.compete(__file__, chosen, ["treepie", *rivals], options.turns), rivals)


if __name__ == "__main__":
    main()
