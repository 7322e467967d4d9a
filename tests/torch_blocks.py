"""Random layers of activations, shapes, pooling and whole blocks, and PyTorch's functions or modules."""

import treepie as tp

from .torch_calls import Case, elements, installed
from .torch_layers import ACTIVATIONS, FORMULAS
from .torch_modules import case, sizes


def activation(rng):
    torch = installed()
    functional = torch.nn.functional
    name = str(rng.choice([*ACTIVATIONS, *FORMULAS, "glu", "prelu", "softmax", "log_softmax"]))
    x = elements(rng, (*sizes(rng, 1), 2 * int(rng.integers(1, 3)), *sizes(rng, 1)), "plain")
    number = float(rng.choice([0.25, 0.5, 2.0]))
    numbers = {"leaky_relu": functional.leaky_relu, "elu": functional.elu, "celu": functional.celu}
    if name in numbers:
        return case(name, getattr(tp.layer, name)(number), x, lambda t, p: numbers[name](t, number))
    if name == "prelu":
        layer = tp.layer.prelu(int(rng.choice([1, x.shape[1]])))
        return case(name, layer, x, lambda t, p: functional.prelu(t, p["weight"]))
    if name in ("glu", "softmax", "log_softmax"):
        theirs = getattr(functional, name)
        return case(name, getattr(tp.layer, name)(axis=1), x, lambda t, p: theirs(t, 1))
    theirs = FORMULAS[name]() if name in FORMULAS else getattr(functional, ACTIVATIONS[name])
    if name == "hard_sigmoid":  # as in torch_layers.py
        theirs = lambda t: (t + 3).clamp(0, 6) / 6
    drawn = case(name, getattr(tp.layer, name)(), x, lambda t, p: theirs(t))
    drawn.smooth = name not in ("relu6", "hard_sigmoid")
    return drawn


def pool(rng):
    functional = installed().nn.functional
    name = str(rng.choice(["global_avg_pool", "global_max_pool", "adaptive_avg_pool2d"]))
    axes = 2 if name == "adaptive_avg_pool2d" else int(rng.integers(1, 4))
    x = elements(rng, (*sizes(rng, 2), *sizes(rng, axes, 8)), "plain")
    ours, layer = getattr(tp.fn, name), getattr(tp.layer, name)
    arguments = (sizes(rng, 2, 6),) if name == "adaptive_avg_pool2d" else ()
    theirs = {
        "global_avg_pool": lambda t: t.flatten(2).mean(2),
        "global_max_pool": lambda t: t.flatten(2).amax(2),
        "adaptive_avg_pool2d": lambda t: functional.adaptive_avg_pool2d(t, *arguments),
    }[name]
    if rng.random() < 0.5:
        return Case(name, lambda t: ours(t, *arguments), theirs, [x], smooth=True)
    return case(name, layer(*arguments), x, lambda t, p: theirs(t))


def transposed(rng):
    functional = installed().nn.functional
    axes = int(rng.integers(1, 3))
    groups, channels, out, window, stride, dilation = sizes(rng, 6, 4)
    pads = int(rng.integers(0, (window - 1) * dilation + 1))
    extra = int(rng.integers(0, max(stride, dilation)))
    x = elements(rng, (*sizes(rng, 1), groups * channels, *(7, 8)[:axes]), "plain")
    theirs = getattr(functional, f"conv_transpose{axes}d")
    arguments = (stride, pads, extra, groups, dilation)
    if axes == 1 and rng.random() < 0.3:
        w = elements(rng, (groups * channels, out, window), "plain")
        b = elements(rng, (groups * out,), "plain")
        ours = lambda t, u, v: tp.fn.conv_transpose1d(t, u, v, *arguments)
        return Case("conv_transpose1d", ours, lambda *t: theirs(*t, *arguments), [x, w, b], smooth=True)
    bias = bool(rng.random() < 0.5)
    layer = getattr(tp.layer, f"conv_transpose{axes}d")(
        groups * channels, groups * out, window, stride, pads, extra, groups, bias, dilation
    )
    return case(
        f"conv_transpose{axes}d",
        layer,
        x,
        lambda t, p: theirs(t, p["weight"], p.get("bias"), *arguments),
    )


def shape(rng):
    torch = installed()
    functional = torch.nn.functional
    name = str(rng.choice(["upsample", "pad", "reshape", "permute", "positional"]))
    axes = int(rng.integers(1, 3))
    x = elements(rng, (*sizes(rng, 2), *sizes(rng, axes)), "plain")
    if name == "upsample":
        mode = "nearest" if rng.random() < 0.5 else ["linear", "bilinear"][axes - 1]
        scale = sizes(rng, axes, 4)
        options = {"size": tuple(n * s for n, s in zip(x.shape[2:], scale, strict=True)), "mode": mode}
        theirs = lambda t: functional.interpolate(t, **options)
        if rng.random() < 0.5:
            return Case(name, lambda t: tp.fn.upsample(t, scale, mode), theirs, [x], smooth=True)
        return case(name, tp.layer.upsample(scale, mode), x, lambda t, p: theirs(t))
    if name == "pad":
        pairs = [tuple(int(n) for n in rng.integers(0, 3, size=2)) for _ in range(axes)]
        flat = [n for pair in reversed(pairs) for n in pair]
        return case(name, tp.layer.pad(pairs, 0.5), x, lambda t, p: functional.pad(t, flat, value=0.5))
    if name == "reshape":
        return case(name, tp.layer.reshape((-1, 1)), x, lambda t, p: t.reshape(len(t), -1, 1))
    if name == "permute":
        axes = [int(k) for k in rng.permutation(x.ndim)]
        return case(name, tp.layer.permute(axes), x, lambda t, p: t.permute(axes))
    x = elements(rng, sizes(rng, 3), "plain")
    if rng.random() < 0.5:
        layer = tp.layer.positional(6, x.shape[2])
        return case(name, layer, x, lambda t, p: t + p["embedding"][: t.shape[1]])

    def theirs(t, p):
        position, k = (torch.arange(n, dtype=torch.float64) for n in t.shape[1:])
        angle = position[:, None] / 10000 ** ((k - k % 2) / t.shape[2])
        return t + torch.where(k % 2 == 0, angle.sin(), angle.cos()).to(t.dtype)

    return case(name, tp.layer.positional(6, x.shape[2], "sinusoidal"), x, theirs)


def norm(rng):
    functional = installed().nn.functional
    c = int(rng.integers(1, 4))
    x = elements(
        rng, (*sizes(rng, 1), c, *(int(n) for n in rng.integers(2, 5, size=rng.integers(1, 3)))), "plain"
    )
    theirs = lambda t, w, b: functional.instance_norm(t, weight=w, bias=b, eps=1e-2)
    if rng.random() < 0.5:
        operands = [x, elements(rng, (c,), "plain"), elements(rng, (c,), "plain")]
        ours = lambda t, w, b: tp.fn.instance_norm(t, w, b, eps=1e-2)
        return Case("instance_norm", ours, theirs, operands, smooth=True)
    layer = tp.layer.instance_norm(c, eps=1e-2)
    return case("instance_norm", layer, x, lambda t, p: theirs(t, p["scale"], p["bias"]))


def dropout(rng):
    """Draw a dropout of channels, whose choice PyTorch's side takes from the result for ones."""
    torch = installed()
    rate, key = float(rng.choice([0.0, 0.3, 0.9])), tp.rng.key(int(rng.integers(100)))
    x = elements(rng, sizes(rng, int(rng.integers(2, 5))), "plain")
    factors = tp.fn.dropout2d(tp.ones(x.shape), rate, key).numpy().reshape(*x.shape[:2], -1)
    assert (factors == factors[..., :1]).all()
    kept = torch.from_numpy(factors[..., 0].reshape(*x.shape[:2], *(1 for _ in x.shape[2:])) != 0)
    theirs = lambda t: torch.where(kept, t / (1 - rate), 0.0)
    if rng.random() < 0.5:
        return Case("dropout2d", lambda t: tp.fn.dropout2d(t, rate, key), theirs, [x], smooth=True)
    layer = tp.layer.dropout2d(rate)
    return case("dropout2d", layer, x, lambda t, p: theirs(t), training=True, key=key)


def bidirectional(rng):
    torch = installed()
    name = str(rng.choice(["lstm", "gru"]))
    b, steps, i, n = sizes(rng, 4)
    sequences = bool(rng.random() < 0.5)
    layer = tp.layer.bidirectional(getattr(tp.layer, name)(i, n, return_sequences=sequences))
    suffix = {"forward": "", "backward": "_reverse"}

    def theirs(x, p):
        module = getattr(torch.nn, name.upper())(i, n, batch_first=True, bidirectional=True, dtype=x.dtype)
        parameters = {}
        for path, w in p.items():
            direction, weight = path.split(".")
            parameters[f"{weight}_l0{suffix[direction]}"] = w.mT if w.ndim == 2 else w
        states, last = torch.func.functional_call(module, parameters, (x,))
        hidden = last[0] if name == "lstm" else last
        return states if sequences else torch.cat([hidden[0], hidden[1]], -1)

    drawn = case("bidirectional", layer, elements(rng, (b, steps, i), "unit"), theirs)
    drawn.smooth = False  # PyTorch has no second order there
    return drawn


def container(rng):
    torch = installed()
    functional = torch.nn.functional
    a, b, c = sizes(rng, 3)
    x = elements(rng, (*sizes(rng, 1), a), "plain")
    if rng.random() < 0.5:
        combine = str(rng.choice(["concatenate", "add"]))
        c = b if combine == "add" else c
        layer = tp.layer.parallel([tp.layer.linear(a, b), tp.layer.linear(a, c, bias=False)], combine)

        def theirs(t, p):
            first = functional.linear(t, p["0.weight"].mT, p["0.bias"])
            second = functional.linear(t, p["1.weight"].mT)
            return first + second if combine == "add" else torch.cat([first, second], 1)

        return case("parallel", layer, x, theirs)

    def forward(call, t):
        return call.head(call.square(call.square(t)) * t)

    parts = {
        "square": tp.layer.sequential([tp.layer.linear(a, a), tp.layer.tanh()]),
        "head": tp.layer.linear(a, b),
    }

    def theirs(t, p):
        y = t
        for _ in range(2):
            y = functional.linear(y, p["square.0.weight"].mT, p["square.0.bias"]).tanh()
        return functional.linear(y * t, p["head.weight"].mT, p["head.bias"])

    return case("model", tp.layer.model(parts, forward), x, theirs)


def _by_name(p, decoder):
    """Return PyTorch's parameters of a block for ours, by their paths."""
    torch, renamed = installed(), {}
    names = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
    for ours, theirs in names.items() if decoder else [*names.items()][:1]:
        parts = [p[f"{ours}.{part}_proj"].mT for part in "qkv"]
        renamed[f"{theirs}.in_proj_weight"] = torch.cat(parts, 0)
        renamed[f"{theirs}.in_proj_bias"] = torch.cat([p[f"{ours}.{part}_bias"] for part in "qkv"], 0)
        renamed[f"{theirs}.out_proj.weight"] = p[f"{ours}.out_proj"].mT
        renamed[f"{theirs}.out_proj.bias"] = p[f"{ours}.out_bias"]
    for path, w in p.items():
        part, _, name = path.partition(".")
        if part.startswith("linear"):
            renamed[path] = w.mT if name == "weight" else w
        elif part.startswith("norm"):
            renamed[f"{part}.{ {'gamma': 'weight', 'beta': 'bias'}[name] }"] = w
    return renamed


def transformer(rng):
    """Draw a block of an encoder or decoder, with masks of keys, and PyTorch's module of the same weights."""
    torch = installed()
    decoder, norm_first, causal = (bool(rng.random() < 0.5) for _ in range(3))
    heads, half, hidden, b, steps, others = sizes(rng, 6, 4)
    embed = 2 * half * heads
    name = str(rng.choice(["relu", "gelu", "silu", "tanh"]))
    kind = "Decoder" if decoder else "Encoder"
    make = tp.layer.transformer_decoder if decoder else tp.layer.transformer_encoder
    eps = float(rng.choice([1e-5, 1e-12, 0.1]))
    layer = make(embed, heads, hidden, activation=name, norm_first=norm_first, is_causal=causal, eps=eps)
    keep, keep_memory = rng.random((b, steps)) < 0.7, rng.random((b, others)) < 0.7
    keep[:, 0] = keep_memory[:, 0] = True
    ctx = tp.Context().set("attention_mask", keep).set("memory_mask", keep_memory)
    params = layer.init(tp.rng.key(0)).params
    leaves, rebuild = tp.ptree.flatten(params)
    paths = [path for path, _ in tp.ptree.flatten_with_paths(params)]
    inputs = [elements(rng, (b, n, embed), "unit") for n in ((steps, others) if decoder else (steps,))]

    def ours(*operands):
        x, own = operands[: len(inputs)], rebuild(list(operands[len(inputs) :]))
        vars = layer.init(tp.rng.key(0), dtype=x[0].dtype).with_params(own)
        return layer.apply(vars, x if decoder else x[0], ctx=ctx)[0]

    def theirs(*operands):
        x, p = operands[: len(inputs)], dict(zip(paths, operands[len(inputs) :], strict=True))
        after = torch.tanh if name == "tanh" else getattr(torch.nn.functional, name)
        module = getattr(torch.nn, f"Transformer{kind}Layer")(
            *(embed, heads, hidden, 0.0, after, eps),
            batch_first=True,
            norm_first=norm_first,
            dtype=x[0].dtype,
        )
        mask = torch.ones(steps, steps).triu(1) > 0 if causal else None
        padding = {"key_padding_mask": torch.from_numpy(~keep)}
        if decoder:
            options = {"tgt_mask": mask, "tgt_key_padding_mask": padding["key_padding_mask"]}
            options["memory_key_padding_mask"] = torch.from_numpy(~keep_memory)
        else:
            options = {"src_mask": mask, "src_key_padding_mask": padding["key_padding_mask"]}
        return torch.func.functional_call(module, _by_name(p, decoder), x, options)

    # Small, since the gradient of k_bias is a difference of equal terms: what their rounding leaves.
    operands = [*inputs, *(elements(rng, leaf.shape, "unit") / 4 for leaf in leaves)]
    return Case(f"layer.transformer_{kind.lower()}", ours, theirs, operands)


BLOCKS = [
    activation, pool, transposed, shape, norm, dropout, bidirectional, container, transformer, transformer,
]  # fmt: skip
