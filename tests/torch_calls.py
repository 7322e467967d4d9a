"""Random calls of public functions, ours and PyTorch's: what `fuzz_torch.py` compares."""

import math
from dataclasses import dataclass

import numpy as np

import treepie as tp

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.0,
    3.0,
    88.0,
    -104.0,
    1e-20,
    -1e20,
    1e15,
    math.inf,
    -math.inf,
    math.nan,
]


@dataclass
class Case:
    """One call.

    ours, theirs: functions of the operands, which are floats; whatever else they need is in their closures.
    operands: arrays in float64, exact in float32.  smooth: whether the second order is compared.
    gradient: whether gradients are.
    """

    name: str
    ours: object
    theirs: object
    operands: list
    smooth: bool = False
    gradient: bool = True


# ---- elements
def shape(rng, ndim=None, most=5):
    ndim = int(rng.integers(0, 4)) if ndim is None else ndim
    return tuple(
        int(n) for n in rng.choice([0, 1, 2, 3, 4, most], size=ndim, p=[0.05, 0.2, 0.2, 0.2, 0.2, 0.15])
    )


def elements(rng, shape, kind):
    """Return elements that float32 holds exactly. kind: plain, positive, unit, ties, special."""
    if kind == "ties":
        out = rng.integers(-2, 3, size=shape).astype(np.float64)
    elif kind == "special":
        out = rng.choice(SPECIAL, size=shape)
    else:
        out = rng.normal(size=shape) * 2
        if kind == "positive":
            out = np.abs(out) + 0.1
        elif kind == "unit":
            out = np.tanh(out) * 0.95
    return np.asarray(out).astype(np.float32).astype(np.float64)


def kind(rng, smooth_only=False):
    return "plain" if smooth_only else str(rng.choice(["plain", "ties", "special"], p=[0.5, 0.25, 0.25]))


def axis_of(rng, ndim):
    """Return None, an axis, or several."""
    choice = rng.integers(0, 3)
    if ndim == 0 or choice == 0:
        return None
    if choice == 1:
        return int(rng.integers(-ndim, ndim))
    return tuple(int(a) for a in rng.permutation(ndim)[: rng.integers(1, ndim + 1)])


def installed():
    import torch

    return torch


# ---- families: (rng) -> Case

UNARY = {
    "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "square": "square", "sin": "sin", "cos": "cos", "tanh": "tanh", "sigmoid": "sigmoid", "erf": "erf",
    "abs": "abs", "neg": "neg", "sign": "sign", "floor": "floor", "ceil": "ceil", "round": "round",
}  # fmt: skip
#: Largest magnitude at which a function is compared: beyond it PyTorch's argument reduction differs.
LARGEST = {"sin": 100.0, "cos": 100.0}


#: Elements at which PyTorch's result is not what the function's definition gives, and is not followed.
DIFFERS = {
    "sign": np.isnan,  # 0 at NaN
    **dict.fromkeys(("abs", "clip"), np.isnan),  # a gradient of 0 at NaN
    **dict.fromkeys(("elu", "selu", "celu"), np.isnan),  # a finite gradient at NaN
    "softsign": np.isinf,  # NaN at infinity, instead of the limit
    "mish": np.isinf,  # NaN at -infinity, instead of 0
    "hard_sigmoid": lambda x: np.abs(x) == 3,  # our gradient is PyTorch's, 0, the stand-in's 1 / 6
    **dict.fromkeys(("silu", "swish", "gelu", "gelu_approx"), np.isinf),  # the same
    "squareplus": lambda x: ~(np.abs(x) < 1e10),  # x * x overflows in the stand-in
    "sparse_plus": lambda x: ~np.isfinite(x),
    "sparse_sigmoid": lambda x: np.isnan(x) | (np.abs(x) == 1),
    # At NaN PyTorch's vectors and its single elements differ.
    **dict.fromkeys(("relu6", "hard_tanh", "hard_silu", "hard_swish"), lambda x: ~np.isfinite(x)),
}


def unary(rng):
    name = str(rng.choice(list(UNARY)))
    elem = "positive" if name in ("log", "sqrt", "rsqrt", "log1p") and rng.random() < 0.7 else kind(rng)
    x = elements(rng, shape(rng), elem)
    if name in LARGEST:
        x = np.where(np.abs(x) > LARGEST[name], 1.5, x)
    if name in DIFFERS:
        x = np.where(DIFFERS[name](x), 1.5, x)
    theirs = getattr(installed(), UNARY[name])
    return Case(name, getattr(tp, name), theirs, [x], smooth=elem in ("plain", "positive"))


BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "pow": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
}


def broadcastable(rng, full):
    """Return a shape that broadcasts to `full`."""
    cut = full[int(rng.integers(0, len(full) + 1)) :]
    return tuple(1 if rng.random() < 0.3 else n for n in cut)


def binary(rng):
    name = str(rng.choice(list(BINARY)))
    full, elem = shape(rng), kind(rng)
    a, b = elements(rng, full, elem), elements(rng, broadcastable(rng, full), elem)
    if name == "pow" and elem != "special" and rng.random() < 0.6:
        a = np.abs(a)
    if rng.random() < 0.5:
        a, b = b, a
    return Case(name, getattr(tp, name), getattr(installed(), BINARY[name]), [a, b], smooth=elem == "plain")


COMPARISONS = {
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
    "greater_equal": "ge", "logical_and": "logical_and", "logical_or": "logical_or",
    "logical_not": "logical_not",
}  # fmt: skip


def comparison(rng):
    name = str(rng.choice(list(COMPARISONS)))
    full, elem = shape(rng), kind(rng)
    operands = [elements(rng, full, elem), elements(rng, broadcastable(rng, full), elem)]
    if name.startswith("logical"):
        operands = [np.where(np.isnan(x), 1.0, x) for x in operands]
    operands = operands[: 1 if name == "logical_not" else 2]
    theirs = getattr(installed(), COMPARISONS[name])
    if name.startswith("logical"):
        ours = lambda *t: getattr(tp, name)(*(x != 0 for x in t))
    else:
        ours = getattr(tp, name)
    return Case(name, ours, theirs, operands, gradient=False)


def where(rng):
    full, elem = shape(rng), kind(rng)
    chosen = rng.random(full) < 0.5
    a, b = elements(rng, full, elem), elements(rng, broadcastable(rng, full), elem)
    torch = installed()
    return Case(
        "where",
        lambda x, y: tp.where(chosen, x, y),
        lambda x, y: torch.where(torch.from_numpy(np.asarray(chosen)), x, y),
        [a, b],
    )


def clip(rng):
    x = elements(rng, shape(rng), kind(rng))
    x = np.where(DIFFERS["clip"](x), 1.5, x)
    low, high = sorted(float(v) for v in rng.integers(-2, 3, size=2))
    missing = rng.integers(0, 3)
    if missing:
        low, high = (None, high) if missing == 1 else (low, None)
    ordered = missing or low < high
    return Case("clip", lambda t: tp.clip(t, low, high), lambda t: t.clamp(low, high), [x], gradient=ordered)


def reduction(rng):
    torch = installed()
    name = str(rng.choice(["sum", "mean", "prod", "var", "std", "max", "min", "logsumexp", "norm"]))
    elem = kind(rng)
    x = elements(rng, shape(rng, int(rng.integers(1, 4))), elem)
    axis, keep = axis_of(rng, x.ndim), bool(rng.random() < 0.5)
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    if name in ("var", "std", "logsumexp", "prod") and elem == "special":
        # Gradients of results that are not finite: NaN for the whole row, where PyTorch has some zeros.
        x = np.where(np.isfinite(x), x, 2.5)
    if name in ("logsumexp", "prod"):
        # PyTorch's gradient of logsumexp is exp(x - result), where the result's rounding counts at large
        # elements; a product of large ones overflows in float32.
        x = np.where(np.abs(x) < 1e3, x, 2.5)
    if name in ("max", "min", "logsumexp") and 0 in [x.shape[a] for a in axes]:
        name = "sum"
    ours = lambda t: getattr(tp, name)(t, axis=axis, keepdims=keep)

    def theirs(t):
        if name == "prod":
            for a in sorted((a % t.ndim for a in axes), reverse=True):
                t = t.prod(a, keepdim=keep)
            return t
        if name in ("var", "std"):
            return getattr(t, name)(axes, correction=0, keepdim=keep)
        if name in ("max", "min"):
            return getattr(torch, f"a{name}")(t, axes, keepdim=keep)
        if name == "norm":
            return torch.linalg.vector_norm(t, dim=axes, keepdim=keep)
        return getattr(torch, name)(t, axes, keepdim=keep)

    smooth = elem == "plain" and name not in ("max", "min")
    return Case(f"{name}, axis={axis}", ours, theirs, [x], smooth=smooth)


def positions(rng):
    torch = installed()
    name = str(rng.choice(["argmax", "argmin", "all", "any", "isnan", "isfinite"]))
    x = elements(rng, tuple(max(n, 1) for n in shape(rng, int(rng.integers(1, 4)))), kind(rng))
    if name in ("isnan", "isfinite"):
        return Case(name, getattr(tp, name), getattr(torch, name), [x], gradient=False)
    axis = int(rng.integers(-x.ndim, x.ndim))
    return Case(
        name,
        lambda t: getattr(tp, name)(t, axis=axis),
        lambda t: getattr(torch, name)(t, axis),
        [x],
        gradient=False,
    )


def products(rng):
    torch = installed()
    name = str(rng.choice(["matmul", "outer", "einsum"]))
    if name == "outer":
        a, b = (elements(rng, shape(rng, 1), "plain") for _ in range(2))
        return Case(name, tp.outer, torch.outer, [a, b], smooth=True)
    m, k, n = (int(v) for v in rng.integers(0, 6, size=3))
    if name == "einsum":
        text = str(rng.choice(["ij,jk->ik", "ij,kj->ki", "bij,bjk->bik", "ij,ij->i", "ij->ji", "bij,kj->bk"]))
        sizes = dict(zip("bijk", (2, m, k, n), strict=True))
        arrays = [
            elements(rng, tuple(sizes[c] for c in part), "plain") for part in text.split("->")[0].split(",")
        ]
        return Case(
            f"einsum {text}",
            lambda *t: tp.einsum(text, *t),
            lambda *t: torch.einsum(text, *t),
            arrays,
            smooth=True,
        )
    lead = shape(rng, int(rng.integers(0, 3)), 3)
    a = elements(rng, (*lead, m, k), "plain")
    b = elements(rng, (*broadcastable(rng, lead), k, n), "plain")
    if rng.random() < 0.3 and a.ndim >= 1:
        a = elements(rng, (k,), "plain")
    return Case(name, tp.matmul, torch.matmul, [a, b], smooth=True)


def shapes(rng):
    torch = installed()
    x = elements(rng, shape(rng, int(rng.integers(1, 4))), kind(rng))
    order = tuple(int(a) for a in rng.permutation(x.ndim))
    axis, other = (int(rng.integers(-x.ndim, x.ndim)) for _ in range(2))
    count = int(rng.integers(0, 4))
    repeats = tuple(int(r) for r in rng.integers(0, 3, size=x.ndim))
    widths = [(int(a), int(b)) for a, b in rng.integers(0, 3, size=(x.ndim, 2))]
    spread = [w for pair in reversed(widths) for w in pair]
    cuts = tuple(min(cut, x.shape[axis]) for cut in (1, 2))
    rows = {
        "reshape": (
            lambda t: tp.reshape(t, (-1,)) if x.size else t,
            lambda t: t.reshape(-1) if x.size else t,
        ),
        "transpose": (lambda t: tp.transpose(t, order), lambda t: t.permute(order)),
        "moveaxis": (lambda t: tp.moveaxis(t, axis, other), lambda t: torch.movedim(t, axis, other)),
        "swapaxes": (lambda t: tp.swapaxes(t, axis, other), lambda t: torch.swapaxes(t, axis, other)),
        "flip": (lambda t: tp.flip(t, axis), lambda t: torch.flip(t, (axis,))),
        "roll": (lambda t: tp.roll(t, count, axis), lambda t: torch.roll(t, count, axis)),
        "tile": (lambda t: tp.tile(t, repeats), lambda t: torch.tile(t, repeats)),
        "repeat": (lambda t: tp.repeat(t, count, axis), lambda t: torch.repeat_interleave(t, count, axis)),
        "pad": (lambda t: tp.pad(t, widths), lambda t: torch.nn.functional.pad(t, spread)),
        "expand_dims": (
            lambda t: tp.expand_dims(t, axis),
            lambda t: torch.unsqueeze(t, axis),
        ),
        "stack": (lambda t: tp.stack([t, t * 2], axis), lambda t: torch.stack([t, t * 2], axis)),
        "concatenate": (lambda t: tp.concatenate([t, t * 3], axis), lambda t: torch.cat([t, t * 3], axis)),
        "cumsum": (lambda t: tp.cumsum(t, axis), lambda t: torch.cumsum(t, axis)),
        "sort": (lambda t: tp.sort(t, axis), lambda t: torch.sort(t, dim=axis, stable=True)[0]),
        "ravel": (tp.ravel, torch.ravel),
        "squeeze": (tp.squeeze, torch.squeeze),
        "broadcast_to": (
            lambda t: tp.broadcast_to(t, (count, *x.shape)),
            lambda t: torch.broadcast_to(t, (count, *x.shape)),
        ),
        "split": (
            lambda t: tp.split(t, cuts, axis)[count % 3],
            lambda t: torch.tensor_split(t, cuts, axis)[count % 3],
        ),
        "astype": (lambda t: tp.astype(tp.astype(t, tp.float32), t.dtype), lambda t: t.float().to(t.dtype)),
    }
    if x.ndim >= 2:
        rows["tril"] = (lambda t: tp.tril(t, count - 1), lambda t: torch.tril(t, count - 1))
        rows["triu"] = (lambda t: tp.triu(t, count - 1), lambda t: torch.triu(t, count - 1))
    name = str(rng.choice(list(rows)))
    return Case(name, *rows[name], [x])


def indices(rng):
    torch = installed()
    x = elements(rng, tuple(max(n, 1) for n in shape(rng, int(rng.integers(1, 4)))), kind(rng))
    axis = int(rng.integers(0, x.ndim))
    n = x.shape[axis]
    flat = rng.integers(0, n, size=int(rng.integers(1, 5)))
    along = rng.integers(0, n, size=(*x.shape[:axis], int(rng.integers(1, 4)), *x.shape[axis + 1 :]))
    start, stop, step = int(rng.integers(0, n)), int(rng.integers(0, n + 1)), int(rng.integers(1, 3))
    at = (slice(None),) * axis
    v = elements(rng, (*x.shape[:axis], flat.size, *x.shape[axis + 1 :]), "plain")
    index, wide = torch.from_numpy(flat), torch.from_numpy(along)
    rows = {
        "take": (lambda t, u: tp.take(t, flat, axis), lambda t, u: torch.index_select(t, axis, index)),
        "take_along_axis": (
            lambda t, u: tp.take_along_axis(t, along, axis),
            lambda t, u: torch.take_along_dim(t, wide, axis),
        ),
        "slice": (
            lambda t, u: t[(*at, slice(start, stop, step))],
            lambda t, u: t[(*at, slice(start, stop, step))],
        ),
        "at.add": (lambda t, u: t.at[(*at, flat)].add(u), lambda t, u: torch.index_add(t, axis, index, u)),
        "top_k": (  # of equal elements torch.topk takes any
            lambda t, u: tp.top_k(t, 1)[0],
            lambda t, u: torch.sort(t, dim=-1, descending=True, stable=True)[0][..., :1],
        ),
        "gather": (lambda t, u: tp.gather(t, along, axis), lambda t, u: torch.gather(t, axis, wide)),
        "at.set": (
            lambda t, u: t.at[(*at, flat[:1])].set(u[(*at, slice(0, 1))]),
            lambda t, u: torch.index_copy(t, axis, index[:1], u[(*at, slice(0, 1))]),
        ),
        "one_hot": (
            lambda t, u: tp.one_hot(along, n) * t.sum(),
            lambda t, u: torch.nn.functional.one_hot(wide, n) * t.sum(),
        ),
        "argsort": (
            lambda t, u: tp.argsort(t, axis).astype(tp.float64),
            lambda t, u: torch.argsort(t, dim=axis, stable=True).double(),
        ),
    }
    name = str(rng.choice(list(rows)))
    return Case(name, *rows[name], [x, v], gradient=name != "argsort")


def softmaxes(rng):
    torch = installed()
    name = str(rng.choice(["softmax", "log_softmax"]))
    x = elements(
        rng, tuple(max(n, 1) for n in shape(rng, int(rng.integers(1, 4)))), str(rng.choice(["plain", "ties"]))
    )
    x = (x * float(rng.choice([1.0, 50.0, 1e6]))).astype(np.float32).astype(np.float64)
    axis = int(rng.integers(-x.ndim, x.ndim))
    theirs = getattr(torch, name)
    return Case(name, lambda t: getattr(tp, name)(t, axis=axis), lambda t: theirs(t, axis), [x], smooth=True)


CALLS = [unary, binary, comparison, where, clip, reduction, positions, products, shapes, indices, softmaxes]
