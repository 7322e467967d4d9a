"""Random calls of activations, layers' functions and losses, ours and PyTorch's."""

import numpy as np

import treepie as tp

from .torch_calls import DIFFERS, Case, elements, installed, kind, shape

ACTIVATIONS = {
    "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "hard_tanh": "hardtanh", "hard_sigmoid":
    "hardsigmoid", "elu": "elu", "selu": "selu", "celu": "celu", "gelu": "gelu", "silu": "silu", "swish":
    "silu", "hard_silu": "hardswish", "mish": "mish", "softplus": "softplus", "softsign": "softsign",
    "log_sigmoid": "logsigmoid",
}  # fmt: skip


#: What PyTorch has under another form, or not at all.
FORMULAS = {
    "gelu_approx": lambda: lambda t: installed().nn.functional.gelu(t, approximate="tanh"),
    "squareplus": lambda: (
        lambda t: installed().where(
            t > 0, (t + installed().sqrt(t * t + 4)) / 2, 2 / (installed().sqrt(t * t + 4) - t)
        )
    ),
    "sparse_plus": lambda: (
        lambda t: installed().where(t <= -1, 0.0, installed().where(t >= 1, t, (t + 1) ** 2 / 4))
    ),
    "sparse_sigmoid": lambda: lambda t: ((t + 1) / 2).clamp(0, 1),
    "hard_swish": lambda: installed().nn.functional.hardswish,
}


def activation(rng):
    functional = installed().nn.functional
    name = str(rng.choice([*ACTIVATIONS, *FORMULAS, "glu", "prelu"]))
    elem = kind(rng)
    if name == "glu":
        x = elements(rng, (*shape(rng, 1), 2 * int(rng.integers(1, 4))), "plain")
        return Case(name, tp.fn.glu, functional.glu, [x], smooth=True)
    x = elements(rng, shape(rng), elem)
    if name in DIFFERS:
        x = np.where(DIFFERS[name](x), 1.5, x)
    if name == "prelu":
        return Case(name, tp.fn.prelu, functional.prelu, [x, np.array(0.25)])
    if name in FORMULAS:
        return Case(name, getattr(tp.fn, name), FORMULAS[name](), [x], smooth=elem == "plain")
    # PyTorch's softplus is the identity beyond 20: an approximation of 2e-9.
    theirs = getattr(functional, ACTIVATIONS[name])
    if name == "hard_sigmoid":  # PyTorch's own multiplies by 1 / 6 in float32, in float64 too
        theirs = lambda t: (t + 3).clamp(0, 6) / 6
    if name == "softplus":
        theirs = lambda t: functional.softplus(t, threshold=500)
    return Case(
        name,
        getattr(tp.fn, name),
        theirs,
        [x],
        smooth=elem == "plain" and name not in ("relu6", "hard_sigmoid"),
    )


def convolution(rng):
    functional = installed().nn.functional
    axes = int(rng.integers(1, 3))
    groups, channels, out = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    window = tuple(int(k) for k in rng.integers(1, 4, size=axes))
    stride, dilation = (tuple(int(k) for k in rng.integers(1, 3, size=axes)) for _ in range(2))
    pads = tuple(int(k) for k in rng.integers(0, 3, size=axes))
    sizes = tuple(int(n) for n in rng.integers(5, 9, size=axes))
    batch = int(rng.integers(0, 3))
    x = elements(rng, (batch, groups * channels, *sizes), "plain")
    w = elements(rng, (groups * out, channels, *window), "plain")
    b = elements(rng, (groups * out,), "plain")
    ours = getattr(tp.fn, f"conv{axes}d")
    theirs = getattr(functional, f"conv{axes}d")
    given = [(p, p) for p in pads]
    return Case(
        f"conv{axes}d",
        lambda t, u, v: ours(t, u, v, stride=stride, dilation=dilation, padding=given, groups=groups),
        lambda t, u, v: theirs(t, u, v, stride, pads, dilation, groups),
        [x, w, b],
        smooth=True,
    )


def pool(rng):
    functional = installed().nn.functional
    axes, name = int(rng.integers(1, 3)), str(rng.choice(["max_pool", "avg_pool"]))
    window = tuple(int(k) for k in rng.integers(1, 4, size=axes))
    stride = tuple(int(k) for k in rng.integers(1, 4, size=axes))
    x = elements(
        rng,
        (int(rng.integers(1, 3)), 2, *(int(n) for n in rng.integers(3, 9, size=axes))),
        str(rng.choice(["plain", "ties"])),
    )
    ours, theirs = getattr(tp.fn, f"{name}{axes}d"), getattr(functional, f"{name}{axes}d")
    return Case(
        f"{name}{axes}d",
        lambda t: ours(t, window, stride),
        lambda t: theirs(t, window, stride),
        [x],
        smooth=name == "avg_pool",
    )


def norm(rng):
    functional = installed().nn.functional
    name = str(rng.choice(["layer_norm", "rms_norm", "group_norm"]))
    c = int(rng.integers(1, 4)) * 2
    x = elements(rng, (int(rng.integers(1, 4)), c, int(rng.integers(2, 5))), "plain")
    if name == "group_norm":
        w, b = elements(rng, (c,), "plain"), elements(rng, (c,), "plain")
        return Case(
            name,
            lambda t, u, v: tp.fn.group_norm(t, 2, u, v),
            lambda t, u, v: functional.group_norm(t, 2, u, v),
            [x, w, b],
            smooth=True,
        )
    x = np.swapaxes(x, 1, 2).copy()
    w, b = elements(rng, (c,), "plain"), elements(rng, (c,), "plain")
    if name == "rms_norm":
        return Case(
            name,
            lambda t, u: tp.fn.rms_norm(t, u, eps=1e-6),
            lambda t, u: functional.rms_norm(t, (c,), u, 1e-6),
            [x, w],
            smooth=True,
        )
    return Case(
        name,
        lambda t, u, v: tp.fn.layer_norm(t, u, v),
        lambda t, u, v: functional.layer_norm(t, (c,), u, v),
        [x, w, b],
        smooth=True,
    )


def attention(rng):
    functional = installed().nn.functional
    b, h, q, k, d, e = (int(v) for v in rng.integers(1, 5, size=6))
    causal = bool(rng.random() < 0.4)
    k = q if causal else k
    arrays = [elements(rng, s, "plain") for s in ((b, h, q, d), (b, h, k, d), (b, h, k, e))]
    return Case(
        "dot_product_attention",
        lambda *t: tp.fn.dot_product_attention(*t, is_causal=causal),
        lambda *t: functional.scaled_dot_product_attention(*t, is_causal=causal),
        arrays,
    )


def loss(rng):
    torch = installed()
    functional = torch.nn.functional
    name = str(
        rng.choice(["cross_entropy_sparse", "cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"])
    )
    if name in ("cross_entropy_sparse", "cross_entropy"):
        n, c = (int(v) for v in rng.integers(1, 6, size=2))
        x = (
            (elements(rng, (n, c), "plain") * float(rng.choice([1.0, 30.0, 1e6])))
            .astype(np.float32)
            .astype(np.float64)
        )
        labels = rng.integers(0, c, size=n)
        index = torch.from_numpy(labels)
        smoothing = float(rng.choice([0.0, 0.1]))
        if name == "cross_entropy_sparse":
            return Case(
                name,
                lambda t: tp.loss.cross_entropy_sparse(t, labels),
                lambda t: functional.cross_entropy(t, index),
                [x],
                smooth=True,
            )
        hot = np.eye(c)[labels]
        return Case(
            name,
            lambda t: tp.loss.cross_entropy(t, tp.tensor(hot, t.dtype), label_smoothing=smoothing),
            lambda t: functional.cross_entropy(t, index, label_smoothing=smoothing),
            [x],
            smooth=True,
        )
    full = tuple(max(n, 1) for n in shape(rng, int(rng.integers(1, 3))))
    x = elements(rng, full, str(rng.choice(["plain", "ties"])))
    if name == "binary_cross_entropy":
        y = np.round(rng.random(full) * 4) / 4
        return Case(
            name, lambda t: tp.loss.binary_cross_entropy(t, tp.tensor(y, t.dtype)),
            lambda t: functional.binary_cross_entropy_with_logits(t, torch.from_numpy(y).to(t.dtype)), [x],
            smooth=True,
        )  # fmt: skip
    y = elements(rng, full, "ties")
    theirs = {"mse": functional.mse_loss, "mae": functional.l1_loss, "huber": functional.huber_loss}[name]
    return Case(name, getattr(tp.loss, name), theirs, [x, y])


def transposed(rng):
    functional = installed().nn.functional
    groups, channels, out = (int(n) for n in rng.integers(1, 3, size=3))
    window, stride, dilation = (tuple(int(k) for k in rng.integers(1, 4, size=2)) for _ in range(3))
    reach = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    pads = tuple(int(rng.integers(0, r + 1)) for r in reach)
    most = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    extra = tuple(int(rng.integers(0, m)) for m in most)
    x = elements(rng, (int(rng.integers(0, 3)), groups * channels, *rng.integers(7, 10, size=2)), "plain")
    w, b = elements(rng, (groups * channels, out, *window), "plain"), elements(rng, (groups * out,), "plain")
    return Case(
        "conv_transpose2d",
        lambda t, u, v: tp.fn.conv_transpose2d(t, u, v, stride, pads, extra, groups, dilation),
        lambda t, u, v: functional.conv_transpose2d(t, u, v, stride, pads, extra, groups, dilation),
        [x, w, b],
        smooth=True,
    )


def batch_norm(rng):
    functional = installed().nn.functional
    n, c = int(rng.integers(2, 5)), int(rng.integers(1, 5))
    x = elements(rng, (n, c, *rng.integers(1, 4, size=int(rng.integers(0, 3)))), "plain")
    w, b = elements(rng, (c,), "plain"), elements(rng, (c,), "plain")
    return Case(
        "batch_norm",
        lambda t, u, v: tp.fn.batch_norm(t, u, v, eps=0.1),
        lambda t, u, v: functional.batch_norm(t, None, None, u, v, training=True, eps=0.1),
        [x, w, b],
        smooth=True,
    )


def embedding(rng):
    torch = installed()
    rows, width = (int(n) for n in rng.integers(1, 5, size=2))
    indices = rng.integers(0, rows, size=shape(rng, int(rng.integers(1, 3))))
    index = torch.from_numpy(indices)
    return Case(
        "embedding",
        lambda w: tp.fn.embedding(indices, w, scale=False),
        lambda w: torch.nn.functional.embedding(index, w),
        [elements(rng, (rows, width), "plain")],
        smooth=True,
    )


def recurrent(rng):
    torch = installed()
    name, gates = [("lstm", 4), ("gru", 3), ("rnn", 1)][int(rng.integers(3))]
    b, steps, i, n = (int(v) for v in rng.integers(1, 5, size=4))
    shapes = [(b, steps, i), (i, gates * n), (n, gates * n), (gates * n,), (gates * n,)]
    states = (None, None) if name == "lstm" else (None,)

    def theirs(x, *weights):
        module = getattr(torch.nn, name.upper())(i, n, batch_first=True, dtype=x.dtype)
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        parameters = {k: w.mT if w.ndim == 2 else w for k, w in zip(names, weights, strict=True)}
        return torch.func.functional_call(module, parameters, (x,))[0]

    return Case(
        name,
        lambda x, *weights: getattr(tp.fn, name)(x, *states, *weights)[0],
        theirs,
        [elements(rng, s, "unit") for s in shapes],
    )


LAYERS = [activation, convolution, transposed, pool, norm, batch_norm, attention, embedding, recurrent, loss]
