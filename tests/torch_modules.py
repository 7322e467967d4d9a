"""Random layers of `tp.layer`, with random parameters, and PyTorch's functions that define them."""

import numpy as np

import treepie as tp

from .torch_calls import Case, elements, installed
from .torch_layers import ACTIVATIONS


def case(name, layer, x, theirs, training=False, key=None):
    """Return the case of a layer: of x and the parameters, which `theirs` takes by their paths."""
    params = layer.init(tp.rng.key(0)).params
    paths = [path for path, _ in tp.ptree.flatten_with_paths(params)]
    leaves, rebuild = tp.ptree.flatten(params)
    rng = np.random.default_rng(1)
    parameters = [elements(rng, leaf.shape, "unit") for leaf in leaves]

    def ours(t, *given):
        own = layer.init(tp.rng.key(0), dtype=t.dtype).with_params(rebuild(list(given)))
        return layer.apply(own, t, training=training, rngs=key)[0]

    return Case(
        f"layer.{name}",
        ours,
        lambda t, *given: theirs(t, dict(zip(paths, given, strict=True))),
        [x, *parameters],
        smooth=True,
    )


def sizes(rng, count, most=5):
    return tuple(int(n) for n in rng.integers(1, most, size=count))


def linear(rng):
    functional = installed().nn.functional
    a, b = sizes(rng, 2)
    bias = bool(rng.random() < 0.5)
    x = elements(rng, (*sizes(rng, int(rng.integers(0, 3))), a), "plain")
    if rng.random() < 0.5:
        theirs = lambda t, p: functional.linear(t, p["weight"].mT, p.get("bias"))
        return case("linear", tp.layer.linear(a, b, bias=bias), x, theirs)
    inner = tp.layer.sequential([tp.layer.linear(a, b), tp.layer.tanh(), tp.layer.linear(b, a)])

    def theirs(t, p):
        hidden = functional.linear(t, p["0.weight"].mT, p["0.bias"]).tanh()
        return t + functional.linear(hidden, p["2.weight"].mT, p["2.bias"])

    return case("residual", tp.layer.residual(inner), x, theirs)


def fused(rng):
    torch = installed()
    a, b = sizes(rng, 2)
    name = [None, "relu", "tanh", "sigmoid", "gelu", "silu"][int(rng.integers(6))]
    after = getattr(torch.nn.functional, name) if name else lambda t: t
    return Case(
        "linear",
        lambda x, w, v: tp.fn.linear(x, w, v, name),
        lambda x, w, v: after(torch.nn.functional.linear(x, w.mT, v)),
        [elements(rng, s, "plain") for s in ((*sizes(rng, int(rng.integers(0, 3))), a), (a, b), (b,))],
        smooth=True,
    )


def convolution(rng):
    functional = installed().nn.functional
    axes = int(rng.integers(1, 3))
    groups, channels, out, window = sizes(rng, 4, 3)
    stride, padding = int(rng.integers(1, 3)), str(rng.choice(["same", "valid"]))
    stride = 1 if padding == "same" else stride
    make, theirs = getattr(tp.layer, f"conv{axes}d"), getattr(functional, f"conv{axes}d")
    layer = make(groups * channels, groups * out, window, stride=stride, padding=padding, groups=groups)
    x = elements(rng, (*sizes(rng, 1), groups * channels, *(5, 6)[:axes]), "plain")
    return case(
        f"conv{axes}d", layer, x, lambda t, p: theirs(t, p["weight"], p["bias"], stride, padding, 1, groups)
    )


def pool(rng):
    functional = installed().nn.functional
    axes, name = int(rng.integers(1, 3)), str(rng.choice(["max_pool", "avg_pool"]))
    window, stride = sizes(rng, 2, 4)
    pads = int(rng.integers(0, window // 2 + 1))
    x = elements(rng, (*sizes(rng, 2, 3), *(7, 5)[:axes]), "plain")
    layer = getattr(tp.layer, f"{name}{axes}d")(window, stride, pads)
    theirs = getattr(functional, f"{name}{axes}d")
    return case(f"{name}{axes}d", layer, x, lambda t, p: theirs(t, window, stride, pads))


def windows(rng):
    """Draw a pool with the options that a layer does not have: dilation, ceil_mode, padding that counts."""
    functional = installed().nn.functional
    window, stride, dilation = sizes(rng, 3, 4)
    pads, ceil = int(rng.integers(0, window // 2 + 1)), bool(rng.random() < 0.5)
    x = elements(rng, (*sizes(rng, 2, 3), *rng.integers(8, 11, size=2)), "ties")
    if rng.random() < 0.5:
        options = {"dilation": dilation, "ceil_mode": ceil}
        ours, theirs = tp.fn.max_pool2d, functional.max_pool2d
    else:
        options = {"ceil_mode": ceil, "count_include_pad": bool(rng.random() < 0.5)}
        ours, theirs = tp.fn.avg_pool2d, functional.avg_pool2d
    return Case(
        ours.__name__,
        lambda t: ours(t, window, stride, pads, **options),
        lambda t: theirs(t, window, stride, pads, **options),
        [x],
    )


def norm(rng):
    functional = installed().nn.functional
    name = str(rng.choice(["layer_norm", "rms_norm", "group_norm", "batch_norm"]))
    n, groups, c = int(rng.integers(2, 5)), int(rng.integers(1, 3)), int(rng.integers(1, 4))
    c *= groups
    if name == "layer_norm":
        x = elements(rng, (n, c), "plain")
        theirs = lambda t, p: functional.layer_norm(t, (c,), p["gamma"], p["beta"], 1e-2)
        return case(name, tp.layer.layer_norm(c, eps=1e-2), x, theirs)
    if name == "rms_norm":
        x = elements(rng, (n, c), "plain")
        theirs = lambda t, p: functional.rms_norm(t, (c,), p["scale"], 1e-2)
        return case(name, tp.layer.rms_norm(c, eps=1e-2), x, theirs)
    x = elements(rng, (n, c, *sizes(rng, int(rng.integers(0, 3)), 4)), "plain")
    if name == "group_norm":
        theirs = lambda t, p: functional.group_norm(t, groups, p["scale"], p["bias"], 1e-2)
        return case(name, tp.layer.group_norm(groups, c, eps=1e-2), x, theirs)
    training = bool(rng.random() < 0.5)
    torch = installed()

    def theirs(t, p):
        mean, var = torch.zeros(c, dtype=t.dtype), torch.ones(c, dtype=t.dtype)
        return functional.batch_norm(t, mean, var, p["scale"], p["bias"], training, eps=1e-2)

    return case(name, tp.layer.batch_norm(c, eps=1e-2), x, theirs, training=training)


def statistics(rng):
    """Draw a batch norm whose running statistics are compared, after two batches."""
    torch = installed()
    n, c, momentum = int(rng.integers(2, 6)), int(rng.integers(1, 4)), float(rng.choice([0.0, 0.1, 0.7, 1.0]))
    layer = tp.layer.batch_norm(c, momentum=momentum)
    batches = [elements(rng, (n, c), "plain") for _ in range(2)]

    def ours(*given):
        vars = layer.init(tp.rng.key(0), dtype=given[0].dtype)
        for t in given:
            vars = layer.apply(vars, t, training=True)[1]
        return tp.stack([vars.state["running_mean"], vars.state["running_var"]])

    def theirs(*given):
        mean, var = (f(c, dtype=given[0].dtype) for f in (torch.zeros, torch.ones))
        for t in given:
            torch.nn.functional.batch_norm(t.detach(), mean, var, training=True, momentum=momentum)
        return torch.stack([mean, var])

    return Case("layer.batch_norm", ours, theirs, batches, gradient=False)


def recurrent(rng):
    torch = installed()
    name = str(rng.choice(["lstm", "gru", "rnn"]))
    b, steps, i, n = sizes(rng, 4)
    sequences = bool(rng.random() < 0.5)
    layer = getattr(tp.layer, name)(i, n, return_sequences=sequences)

    def theirs(x, p):
        module = getattr(torch.nn, name.upper())(i, n, batch_first=True, dtype=x.dtype)
        parameters = {f"{key}_l0": w.mT if w.ndim == 2 else w for key, w in p.items()}
        states = torch.func.functional_call(module, parameters, (x,))[0]
        return states if sequences else states[:, -1]

    made = case(name, layer, elements(rng, (b, steps, i), "unit"), theirs)
    made.smooth = False  # PyTorch has no second order there either
    return made


def tabular(rng):
    torch = installed()
    rows, features, width, cosines = sizes(rng, 4)
    x = elements(rng, (rows, features), "unit")
    if rng.random() < 0.3:
        return case("scale", tp.layer.scale(features), x, lambda t, p: t * p["scale"])
    if rng.random() < 0.5:
        layer, mish = tp.layer.parametric_activation(tp.layer.mish(), features), torch.nn.functional.mish
        return case("parametric_activation", layer, x, lambda t, p: t + p["alpha"] * (mish(t) - t))

    def theirs(t, p):
        waves = torch.cos(2 * torch.pi * p["frequency"] * t[..., None] + p["phase"])
        embedded = torch.einsum("bfk,fkd->bfd", waves, p["weight"]) + p["bias"]
        return torch.cat([embedded.flatten(1), t], 1)

    return case("periodic_embedding", tp.layer.periodic_embedding(features, width + 1, cosines), x, theirs)


def attention(rng):
    torch = installed()
    kv_heads, shared, half = sizes(rng, 3, 3)
    heads, b, steps = kv_heads * shared, *sizes(rng, 2)
    d, causal, rope = 2 * half, bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    embed = heads * d
    layer = tp.layer.multi_head_attention(embed, heads, kv_heads, is_causal=causal, rope=rope)

    def theirs(x, p):
        q, k, v = ((x @ p[f"{n}_proj"]).unflatten(-1, (-1, d)).swapaxes(1, 2) for n in "qkv")
        if rope:
            q, k = rotated(q), rotated(k)
        # By hand: PyTorch's own has no second derivative.
        scores = q @ k.repeat_interleave(shared, 1).mT / d**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(steps, steps).triu(1) > 0, -torch.inf)
        y = scores.softmax(-1) @ v.repeat_interleave(shared, 1)
        return y.swapaxes(1, 2).flatten(2) @ p["out_proj"]

    return case("multi_head_attention", layer, elements(rng, (b, steps, embed), "unit"), theirs)


def rotated(x, theta=10000.0, offset=0):
    """Return PyTorch's rotary embedding, by complex numbers."""
    torch = installed()
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (torch.arange(x.shape[-2], dtype=torch.float64) + offset)[:, None] * speed
    cos, sin = (f(angle).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def rope(rng):
    theta, offset = float(rng.choice([10.0, 10000.0])), int(rng.integers(0, 5))
    lead = sizes(rng, int(rng.integers(0, 3)))
    x = elements(rng, (*lead, int(rng.integers(0, 5)), 2 * int(rng.integers(1, 4))), "plain")
    return Case(
        "rope", lambda t: tp.fn.rope(t, theta, offset), lambda t: rotated(t, theta, offset), [x], smooth=True
    )


def masked(rng):
    """Draw an attention with a mask, a scale, and heads that share keys."""
    torch = installed()
    kv_heads, shared, b, q, k, d = sizes(rng, 6, 4)
    mask = rng.random([(b, 1, q, k), (1, 1, q, k), (b, 1, 1, k)][int(rng.integers(3))]) < 0.7
    mask[..., 0] = True  # PyTorch returns NaN, or 0, for a query without keys
    scale = float(rng.choice([0.5, 2.0]))
    shapes = [(b, kv_heads * shared, q, d), (b, kv_heads, k, d), (b, kv_heads, k, d)]
    given = torch.from_numpy(mask)
    return Case(
        "dot_product_attention",
        lambda *t: tp.fn.dot_product_attention(*t, mask=mask, scale=scale),
        lambda *t: torch.nn.functional.scaled_dot_product_attention(
            *t, attn_mask=given, scale=scale, enable_gqa=True
        ),
        [elements(rng, s, "plain") for s in shapes],
    )


def embedding(rng):
    torch = installed()
    rows, width = sizes(rng, 2)
    scale = bool(rng.random() < 0.5)
    layer, indices = tp.layer.embedding(rows, width, scale=scale), rng.integers(0, rows, size=sizes(rng, 2))
    index, factor = torch.from_numpy(indices), width**0.5 if scale else 1.0
    table = elements(rng, (rows, width), "plain")
    return Case(
        "layer.embedding",
        lambda w: layer.apply(
            layer.init(tp.rng.key(0), dtype=w.dtype).with_params({"embedding": w}), indices
        )[0],
        lambda w: torch.nn.functional.embedding(index, w) * factor,
        [table],
        smooth=True,
    )


def dropout(rng):
    torch = installed()
    rate, key = float(rng.choice([0.0, 0.3, 0.9])), tp.rng.key(int(rng.integers(100)))
    x = elements(rng, sizes(rng, 2), "plain")
    kept = torch.from_numpy(tp.fn.dropout(tp.ones(x.shape), rate, key).numpy() != 0)
    theirs = lambda t: torch.where(kept, t / (1 - rate), 0.0)
    name = str(rng.choice(["function", "training", "evaluation"]))
    if name == "function":
        return Case("dropout", lambda t: tp.fn.dropout(t, rate, key), theirs, [x], smooth=True)
    if name == "evaluation":
        return case("dropout", tp.layer.dropout(rate), x, lambda t, p: t)
    return case("dropout", tp.layer.dropout(rate), x, lambda t, p: theirs(t), training=True, key=key)


def plain(rng):
    """Draw a layer without parameters."""
    torch = installed()
    name = str(rng.choice(["relu", "gelu", "silu", "tanh", "sigmoid", "flatten", "lambda_", "compose"]))
    x = elements(rng, (*sizes(rng, 1), *sizes(rng, int(rng.integers(0, 3)))), "plain")
    if name == "flatten":
        return case(name, tp.layer.flatten(), x, lambda t, p: t.reshape(len(t), -1))
    if name == "lambda_":
        return case(name, tp.layer.lambda_(lambda t: t * 2), x, lambda t, p: t * 2)
    if name == "compose":
        both = tp.layer.compose(tp.layer.tanh(), tp.layer.flatten())
        return case(name, both, x, lambda t, p: t.tanh().reshape(len(t), -1))
    theirs = getattr(torch, name, None) or getattr(torch.nn.functional, ACTIVATIONS.get(name, name))
    return case(name, getattr(tp.layer, name)(), x, lambda t, p: theirs(t))


MODULES = [
    linear, fused, convolution, pool, windows, norm, statistics, recurrent, tabular, attention, rope, masked,
    embedding, dropout, plain,
]  # fmt: skip
