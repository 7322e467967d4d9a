"""Random calls of public functions and layers against PyTorch's: values, gradients, second order.

`make(seed)` draws a function, shapes (sizes of 0 and 1 too), and elements: plain ones, ties, special values.
`check` compares with PyTorch in float64; where that is finite, float32 is within a bound of it too.
"""

import numpy as np

import treepie as tp

from .torch_blocks import BLOCKS
from .torch_calls import CALLS, installed
from .torch_layers import LAYERS
from .torch_modules import MODULES

BOUND = {"float64": 1e-10, "float32": 3e-5}
#: Results that are smaller are what rounding leaves of larger terms.
FLOOR = {"float64": 1e-2, "float32": 1.0}


def make(seed):
    """Return the case of a seed."""
    rng, families = np.random.default_rng(seed), [*CALLS, *LAYERS, *MODULES, *BLOCKS]
    return families[int(rng.integers(len(families)))](rng)


def difference(ours, theirs, dtype, what, single=None):
    """Return what is wrong with a result, or None."""
    if ours.shape != theirs.shape:
        return f"{what}: shape {ours.shape}, PyTorch {theirs.shape}"
    reference = (
        theirs if single is None else np.where(np.isfinite(theirs) & np.isfinite(ours), theirs, single)
    )
    if (np.isnan(ours) != np.isnan(reference)).any():
        return f"{what}: NaN {ours}, PyTorch {reference}"
    infinite = np.isinf(reference)
    if (np.isinf(ours) != infinite).any() or (np.sign(ours[infinite]) != np.sign(reference[infinite])).any():
        return f"{what}: infinite {ours}, PyTorch {reference}"
    finite = np.isfinite(reference) & np.isfinite(theirs)
    if not finite.any():
        return None
    size = max(float(np.abs(theirs[finite]).max()), FLOOR[dtype])
    bound = BOUND[dtype] * size
    off = np.abs(ours[finite] - theirs[finite])
    if single is not None:  # what float32's rounding makes of the operands, such as y - 1 of a large y
        off = np.minimum(off, np.abs(ours[finite] - single[finite]))
    if off.max() > bound:
        return f"{what}: off by {off.max():.3g} of {size:.3g}: {ours}, PyTorch {theirs}"
    return None


def check(case):
    """Return what differs from PyTorch, or None."""
    for dtype in ("float64", "float32"):
        wrong = _check(case, dtype)
        if wrong:
            shapes = [a.shape for a in case.operands]
            return f"{case.name} in {dtype} of {shapes}, {[a.tolist() for a in case.operands]}: {wrong}"
    return None


def _check(case, dtype):
    rng = np.random.default_rng(1)
    arrays = [a.astype(dtype) for a in case.operands]
    y = np.asarray(case.ours(*map(tp.tensor, arrays)).numpy(), np.float64)
    w, v = rng.normal(size=y.shape), [rng.normal(size=a.shape) for a in arrays]
    want = _by_torch(case, "float64", w, v)
    single = _by_torch(case, "float32", w, v) if dtype == "float32" else None
    wrong = difference(y, want[0], dtype, "value", single and single[0])
    if wrong or not case.gradient:
        return wrong
    tensors = list(map(tp.tensor, arrays))
    _, pullback = tp.vjp(case.ours, *tensors)
    grads = pullback(tp.tensor(w, dtype))
    for k, (g, t) in enumerate(zip(grads, want[1], strict=True)):
        mine = np.asarray(g.numpy(), np.float64)
        wrong = difference(mine, t, dtype, f"gradient {k}", single and single[1][k])
        if wrong:
            return wrong
    if not case.smooth or dtype == "float32" or not y.size:
        return None

    def slope(*ts):
        _, back = tp.vjp(case.ours, *ts)
        return sum((g * tp.tensor(d, dtype)).sum() for g, d in zip(back(tp.tensor(w, dtype)), v, strict=True))

    _, pullback = tp.vjp(slope, *tensors)
    for k, (g, t) in enumerate(zip(pullback(tp.tensor(1.0, dtype)), want[2], strict=True)):
        wrong = difference(g.numpy(), t, dtype, f"second order {k}")
        if wrong:
            return wrong
    return None


def _by_torch(case, dtype, w, v):
    torch = installed()
    kind = getattr(torch, dtype)
    tensors = [torch.tensor(a, dtype=kind, requires_grad=True) for a in case.operands]
    y = case.theirs(*tensors)
    value = y.detach().double().resolve_neg().numpy(force=True)
    if not case.gradient:
        return value, [], []
    second = case.smooth and dtype == "float64" and y.numel() > 0
    ones = torch.tensor(w, dtype=kind)
    grads = (
        torch.autograd.grad(y, tensors, ones, create_graph=second, allow_unused=True)
        if y.requires_grad
        else [None] * len(tensors)
    )
    first = [
        np.zeros(a.shape) if g is None else g.detach().double().resolve_neg().numpy(force=True)
        for g, a in zip(grads, case.operands, strict=True)
    ]
    if not second:
        return value, first, []
    slope = sum(
        (g * torch.tensor(d, dtype=kind)).sum() for g, d in zip(grads, v, strict=True) if g is not None
    )
    if not isinstance(slope, torch.Tensor) or not slope.requires_grad:
        return value, first, [np.zeros(a.shape) for a in case.operands]
    seconds = torch.autograd.grad(slope, tensors, allow_unused=True)
    return (
        value,
        first,
        [
            np.zeros(a.shape) if g is None else g.detach().numpy(force=True)
            for g, a in zip(seconds, case.operands, strict=True)
        ],
    )
