"""Normalisation, embedding and dropout against PyTorch: `python perf/norm.py [CASE ...]`; needs torch.

Forward alone and forward with backward, float32, all gradients. Ratios are PyTorch's best time over ours,
by turns in processes of their own (see `arena.py`).
"""

import sys

import arena
import numpy as np

RNG = np.random.default_rng(0)


def data(*shape):
    return RNG.standard_normal(shape).astype("f4")


def layer(*shape):
    c = shape[-1]
    return {"x": data(*shape), "w": data(c), "b": data(c)}


CASES = {
    "layer norm 2048x128": ("layer_norm", layer(2048, 128)),
    "layer norm 2048x1024": ("layer_norm", layer(2048, 1024)),
    "rms norm 2048x128": ("rms_norm", {k: v for k, v in layer(2048, 128).items() if k != "b"}),
    "group norm 16x64x16x16": ("group_norm", {"x": data(16, 64, 16, 16), "w": data(64), "b": data(64)}),
    "batch norm 64x32x14x14": ("batch_norm", {"x": data(64, 32, 14, 14), "w": data(32), "b": data(32)}),
    "batch norm 1024x256": ("batch_norm", {"x": data(1024, 256), "w": data(256), "b": data(256)}),
    "embedding 16x128 of 65": ("embedding", {"w": data(65, 128)}),
    "embedding 16x128 of 1000": ("embedding", {"w": data(1000, 128)}),
    "embedding 16x128 of 50000": ("embedding", {"w": data(50000, 128)}),
    "dropout 1000x1000": ("dropout", {"x": data(1000, 1000)}),
}
INDICES = {n: RNG.integers(0, n, (16, 128)) for n in (65, 1000, 50000)}
NAMES = [f"{case}, {way}" for case in CASES for way in ("forward", "with backward")]


def ours(kind, arrays, both):
    import treepie as tp
    from treepie.autodiff import tape

    key = tp.rng.key(0)
    functions = {
        "layer_norm": tp.fn.layer_norm,
        "rms_norm": tp.fn.rms_norm,
        "group_norm": lambda x, w, b: tp.fn.group_norm(x, 8, w, b),
        "batch_norm": tp.fn.batch_norm,
        "embedding": lambda w: tp.fn.embedding(ids, w, scale=False),
        "dropout": lambda x: tp.fn.dropout(x, 0.1, key),
    }
    tensors = [tp.tensor(a) for a in arrays.values()]
    if kind == "embedding":
        ids = tp.tensor(INDICES[len(arrays["w"])])
    f = functions[kind]
    if not both:
        return lambda: f(*tensors)
    g = f(*tensors)

    def run():  # what a layer adds to a training step, without the trees of parameters of a whole model
        with tape.trace() as number:
            leaves = [tape.leaf(t, number) for t in tensors]
            y = f(*leaves)
            return tape.backward(number, [y], [g], leaves)

    return run


def theirs(kind, arrays, both):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(arena.threads())
    functions = {
        "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        "rms_norm": lambda x, w: F.rms_norm(x, w.shape, w),
        "group_norm": lambda x, w, b: F.group_norm(x, 8, w, b),
        "batch_norm": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        "embedding": lambda w: F.embedding(ids, w),
        "dropout": lambda x: F.dropout(x, 0.1),
    }
    tensors = [torch.from_numpy(a.copy()).requires_grad_(both) for a in arrays.values()]
    if kind == "embedding":
        ids = torch.from_numpy(INDICES[len(arrays["w"])])
    f = functions[kind]
    if not both:
        return lambda: f(*tensors)
    g = f(*tensors).detach()
    return lambda: torch.autograd.grad(f(*tensors), tensors, g)


def make(library, name):
    case, way = name.rsplit(", ", 1)
    return {"treepie": ours, "torch": theirs}[library](*CASES[case], way != "forward")


def main():
    arena.serve(make)
    wanted = [n for n in NAMES if not sys.argv[1:] or any(a in n for a in sys.argv[1:])]
    found = arena.compete(__file__, wanted, ["treepie", "torch"])
    ratios = []
    print("| case | treepie us | PyTorch us | ratio |\n| --- | --- | --- | --- |")
    for name, times in found.items():
        a, b = (arena.best(times[k]) for k in ("treepie", "torch"))
        ratios.append(b / a)
        print(f"| {name} | {a * 1e6:.0f} | {b * 1e6:.0f} | {b / a:.2f} |")
    print(f"\ngeometric mean {arena.geometric_mean(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
