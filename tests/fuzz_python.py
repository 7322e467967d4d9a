"""What users' functions do besides computing, for `fuzz_steps.py`: read values, keep tensors, catch errors.

Lines are written as in `fuzz_values.py`; besides, NUMBER stands for a number
from outside, which `filled` puts in, and APPLY for lines that apply the layer of a piece.
"""

from dataclasses import replace

from .fuzz_values import NUMBER_PLACES, NUMBERS, PLACES, Piece

#: Values of tensors that Python reads.
READS = [
    "log.append(float(h.sum()))",
    "log.append(h.mean().item())",
    "log.append(bool(h.sum() > 0))",
    "log.append(int(tp.argmax(h)))",
    "log.append(h.tolist())",
    "log.append(h.numpy().sum().item())",
    "log.append(np.asarray(tp.stop_gradient(h)).tolist())",
    "log.append(f'{h.mean():.3f}')",
    "log.append(f'{h[0]}')",
    "log.append(str(h))",
    "log.append(repr(h[0, 0]))",
    "log.append(h.array.tolist())",
    "log.append(h[0].argmax().item())",
    "log.append((h.shape, h.dtype.name, len(h), h.ndim, h.size, isinstance(h, tp.Tensor)))",
    "log.append(tp.tensor([1.0]).item() + float((h[0] @ h[0]).item()))",
    "print(h[0], file=sink)",
    "log.append(sorted(h[0].tolist())[0])",
    "log.append(np.add(1.0, tp.stop_gradient(h[0])).tolist())",
    "if h.sum() > 0:\n    h = -h",
    "if float(h.mean()) > 0.0:\n    h = h * 2\nelse:\n    log.append('low')",
    "while float(tp.abs(h).max()) > 0.7:\n    h = h * 0.5",
    "for row in h:\n    h = h + 0.01 * row",
    "for row in h.tolist():\n    h = h + 0.01 * row[0]",
    "h = h * (int(tp.sum(h > 0)) / 10)",
    "h = h / (1.0 + abs(h.mean().item()))",
    "i = int(h[0].argmax())\nh = h + h[:, i : i + 1]",
    "h = h + h.numpy().mean(axis=0)",
    "h = h * max(h[0, 0], h[0, 1])",
    "h = h * (2.0 if min(h[0].tolist()) < -0.2 else 1.0)",
    "h = h + float(f'{h.mean():.2f}')",
    "best = max(range(D), key=lambda j: float(h[0, j]))\nh = h.at[:, best].add(0.5)",
    "h = h[:, np.argsort(h[0].numpy())]",
]

#: Tensors that somebody keeps.
KEEPS = [
    "kept.append(h)",
    "kept.append(h[0])",
    "kept.append(h.T)",
    "kept.append(h.reshape(-1)[1:])",
    "kept.append([h, h * 2])",
    "kept.append({'h': h, 'mean': h.mean()})",
    "kept.append(tp.stop_gradient(h))",
    "kept.append(h > 0)",
    "kept.append(h.argmax(axis=1))",
    "kept[:] = [h]",
    "aux['out'] = h",
    "aux['out'] = h\nh = h * 2",
    "me.hidden = h",
    "me.hidden, me.before = h, getattr(me, 'hidden', None)",
    "me.__dict__.setdefault('first', h)",
    "kept.append(tp.exp(h * 0.1))",
    "last = h\nh = tp.tanh(h)\nkept.extend([last, h])",
    "kept.append(tp.ones(3) + float(call))",
    "kept.append(copy.copy(h))",
    "kept.append(copy.deepcopy(tp.stop_gradient(h)))",
    "kept.append(pickle.loads(pickle.dumps(tp.stop_gradient(h))))",
    "kept.append(tp.sort(h, axis=1)[:, ::-1])",
    "total = h.mean()\nkept.append(total)\nh = h + total",
    "kept.append((h * h).sum(axis=0))\nkept.append(kept[-1] * 2)",
    "if 'mean' in aux:\n    h = h + 0.1 * aux['mean']\naux['mean'] = tp.stop_gradient(h.mean(axis=0))",
    "if 'mean' in aux:\n    h = h + 0.1 * aux['mean']\naux['mean'] = h.mean(axis=0)",
    "me.average = 0.9 * getattr(me, 'average', 0.0) + 0.1 * tp.stop_gradient(h).mean()\nh = h - me.average",
    "queue.append(h.mean())\nif len(queue) > 3:\n    h = h + 0.1 * queue.popleft()",
]

#: Gradients inside, and rules of users: (setup, body).
GRADIENTS = [
    ("", "h = h + 0.1 * tp.grad(lambda z: (tp.tanh(z) * float(NUMBER)).sum())(h)"),
    ("", "g = tp.grad(lambda z: (z * z * z).sum())(h)\nkept.append(g)\nh = h + 0.1 * g * float(NUMBER)"),
    ("", "v, g = tp.value_and_grad(lambda z: tp.sin(z).sum())(h)\nh = h * float(NUMBER) + 0.1 * g + v"),
    ("", "v, g = tp.value_and_grad(lambda z: tp.sin(z).sum())(h)\nlog.append(float(v))\nh = h + g"),
    ("", "v, back = tp.vjp(lambda z: tp.tanh(z * float(NUMBER)), h)\nh = v + back(tp.ones_like(v))[0]"),
    ("", "g = tp.grad(lambda z: tp.square(tp.grad(lambda u: tp.sin(u).sum())(z)).sum())(h)\nh = h + g"),
    ("", "h = tp.stop_gradient(h) * float(NUMBER) + h"),
    # It runs its function twice, which therefore reads nothing that changes by being read.
    (
        "",
        "f = lambda z, a=float(NUMBER): tp.tanh(z * a)\nh = tp.checkpoint_activations(f)(h)",
    ),
    (
        "def again$(z):\n    return tp.tanh(z) * z\nagain$ = tp.checkpoint_activations(again$)",
        "h = again$(h)",
    ),
    (
        "number_of$ = None\n@tp.custom_vjp\ndef own$(x):\n    return x * number_of$()\n"
        "own$.defvjp(lambda x: (x * number_of$(), x), lambda x, g: (g * number_of$(),))",
        "number_of$ = lambda a=float(NUMBER): a\nh = own$(h)",
    ),
    (
        "rate$ = 1.0\n@tp.custom_vjp\ndef own$(x):\n    return x\n"
        "own$.defvjp(lambda x: (x, ()), lambda _, g: (g * rate$,))",
        "rate$ = float(NUMBER)\nh = own$(h)",
    ),
    (
        "@tp.custom_vjp\ndef own$(x):\n    return tp.tanh(x)\n"
        "def back$(y, g):\n    log.append('back')\n    kept.append(g)\n    return (g * (1 - y * y),)\n"
        "own$.defvjp(lambda x: (tp.tanh(x), tp.tanh(x)), back$)",
        "h = own$(h)",
    ),
    (
        "@tp.custom_vjp\ndef own$(x):\n    return x * x\n"
        "own$.defvjp(lambda x: (x * x, x), lambda x, g: (g * x * random.choice([1.0, 2.0]),))",
        "h = own$(h)",
    ),
]

#: Errors that users catch; the last ones are not caught.
ERRORS = [
    (
        "labels = np.arange(len(h)) % D + int(NUMBER > 0.7) * D\n"
        "try:\n    h = h + tp.loss.cross_entropy_sparse(h, labels)\nexcept ValueError:\n    h = h * 2"
    ),
    (
        "try:\n    h = h * tp.loss.cross_entropy_sparse(h, [0, 9, 1, 2][: len(h)])\n"
        "except ValueError as error:\n    log.append(str(error))\n    h = h * 0.5"
    ),
    "try:\n    h = h + tp.take(h, [call], axis=1)\nexcept IndexError as error:\n    log.append(str(error))",
    "try:\n    h = tp.take(h, [0, 1, 2, 2 + call % 4], axis=1)\nexcept IndexError:\n    h = -h",
    "w = tp.ones((D + call % 2, D), FT)\n"
    "try:\n    h = h @ w\nexcept ValueError as error:\n    log.append(str(error))",
    "try:\n    h = h * float('x' if call > 3 else '2')\nexcept ValueError:\n    h = h * 3",
    "try:\n    if NUMBER > 0.7:\n        raise KeyError('a')\n    h = h * 2\nexcept KeyError:\n    h = h * 3",
    "try:\n    h = tp.tanh(h)\n    log.append({}['missing'])\n"
    "except KeyError:\n    h = h * 2\nfinally:\n    h = h + 1",
    "if call == 4:\n    raise RuntimeError(f'call {call}')",
    "h = h + tp.take(h, [3 + (call == 3)], axis=1)",
    "h = h * tp.loss.cross_entropy_sparse(h, np.full(len(h), 3 + (call == 4)))",
]

#: Random numbers of the library.
RANDOM = [
    "h = h + 0.1 * tp.rng.normal(tp.rng.key(call), h.shape, FT)",
    "h = h + tp.rng.uniform(tp.rng.fold_in(tp.rng.key(3), call), (D,), 0.0, abs(float(NUMBER)) + 0.1, FT)",
    "h = tp.fn.dropout(h, min(0.9, abs(float(NUMBER)) / 2), tp.rng.key(call))",
    "h = h * tp.rng.bernoulli(tp.rng.key(5 + call // 4), 0.5, h.shape)",
    "h = h[:, tp.rng.permutation(tp.rng.key(call), D)]",
    "a, b = tp.rng.split(tp.rng.key(call))\nh = h + tp.rng.normal(a, (D,), FT) * tp.rng.normal(b, (), FT)",
    "h = h + tp.rng.categorical(tp.rng.key(call), tp.stop_gradient(h)).astype(FT).reshape((-1, 1))",
]

#: Functions under `jit`, of tensors and numbers: (setup, body).
JIT = [
    ("jitted$ = jit(lambda z, a: tp.tanh(z * a))", "h = jitted$(h, float(NUMBER))"),
    (
        "jitted$ = jit(lambda z, a: {'x': z * a, 'y': (z + a,)})",
        "made = jitted$(h, float(NUMBER))\nh = made['x'] + made['y'][0]",
    ),
    ("jitted$ = jit(lambda z: tp.grad(lambda u: tp.sin(u).sum())(z))", "h = jitted$(h) + h"),
    (
        "jitted$ = jit(lambda z: tp.sin(z) + 1)",
        "t = jitted$(tp.full((D,), float(NUMBER), FT))\nkept.append(t)\nh = h * t",
    ),
    (
        "jitted$ = jit(lambda z, a: z + a)",
        "t = jitted$(np.full(D, float(NUMBER), FT), call)\nh = h * t + jitted$(h, 1)",
    ),
    (
        "@jit\ndef jitted$(w, x):\n    return w - 0.1 * tp.grad(lambda w: tp.square(x * w).sum())(w)",
        "w = jitted$(aux.get('w$', tp.ones(D, FT)), tp.full((D,), float(NUMBER), FT))\n"
        "aux['w$'] = w\nh = h * w",
    ),
]

#: Tensors that are used twice, or share memory.
ALIASES = [
    "h = h * h + h",
    "h = tp.maximum(h, h)",
    "t = h\nh = t + t * h",
    "v = h[:, :2]\nh = tp.concatenate([v, v + h[:, 2:]], axis=1)",
    "h = h @ (h.T @ h) * 0.1",
    "h = tp.stack([h, h]).sum(axis=0)",
    "t = h.reshape(-1)\nh = (t + t[::-1]).reshape(h.shape)",
    "t = tp.ones(D, FT)\nh = h * t + t.reshape(1, D)",
    "a, b = tp.split(h, 2, axis=1)\nh = tp.concatenate([b, a], axis=1)",
    "h = h + tp.where(h > 0, h, tp.exp(h) - 1)",
    "parts = [h[:, j] for j in range(D)]\nh = tp.stack(parts[::-1], axis=1)",
    "h = sum((h * a for a in (0.1, 0.2, 0.3)), h)",
    "h, _ = tp.top_k(h, D)",
    "h = (h - h.mean(axis=0)) / (h.std(axis=0) + 0.5)",
]

#: Layers of the library inside of a user's own: (layer, body).
LAYERS = [
    ("tp.layer.linear(D, D)", "APPLY"),
    ("tp.layer.linear(D, D)", "if NUMBER > 0.7:\n    APPLY"),
    ("tp.layer.residual(tp.layer.sequential([tp.layer.linear(D, D), tp.layer.gelu()]))", "APPLY"),
    ("tp.layer.batch_norm(D)", "APPLY"),
    ("tp.layer.layer_norm(D)", "APPLY\nh = h * float(NUMBER)"),
    ("tp.layer.linear(D, D)", "APPLY\nkept.append(h)\nkept.append(params['p$'])"),
    ("tp.layer.linear(D, D)", "for _ in range(1 + call % 2):\n    APPLY"),
    ("tp.layer.linear(D, D)", "h = h + tp.square(params['p$']['weight']).sum() * float(NUMBER)"),
    ("tp.layer.linear(D, D)", "log.append(float(params['p$']['bias'].sum()))\nAPPLY"),
    ("tp.layer.batch_norm(D)", "APPLY\nif float(state['p$']['running_mean'][0]) > 0.01:\n    h = h * 0.5"),
    ("tp.layer.batch_norm(D)", "APPLY\nkept.append(state['p$'])"),
    ("tp.layer.sequential([tp.layer.linear(D, D), tp.layer.lambda_(lambda x: x * (1 + call % 2))])", "APPLY"),
]

#: What only a layer's function can do.
OWN = [
    "h = h if ctx is None else h * ctx.get('scale')",
    "if ctx is not None and float(ctx.get('scale')[0]) > 0.7:\n    h = -h",
    "if rngs is not None:\n    h = h + 0.1 * tp.rng.normal(rngs, h.shape, FT)",
    "h = tp.fn.dropout(h, 0.5, rngs) if training and rngs is not None and NUMBER > 0.7 else h",
    "h = h * (2.0 if training else 1.0)\nlog.append(training)",
    "kept.append(params['w'])",
    "kept.append([params, state])",
    "aux['params'] = tp.ptree.map(lambda p: p * 2, params)",
    "state = {**state, 'n': state['n'] * 0.5 + h.mean() * float(NUMBER)}",
    "state = {**state, 'n': state['n'] + float(h.mean())}",
    "if float(state['n']) > 3:\n    h = -h",
    "h = h * (1.0 + 0.1 * state['n'])",
    "h = h + 0.1 * tp.grad(lambda w: tp.tanh(h @ w).sum())(params['w'])[0]",
    "average = me.w if hasattr(me, 'w') else tp.zeros((D, D), FT)\n"
    "me.w = 0.9 * average + 0.1 * tp.stop_gradient(params['w'])\nh = h + h @ me.w",
    "aux['w'] = aux.get('w', 0.0) + params['w']\nh = h + 0.1 * tp.stop_gradient(aux['w'][0])",
    "h = h + h @ params['w'] * float(NUMBER)",
]
_APPLY = (
    "h, after = layer$.apply(tp.layer.Vars(params['p$'], state['p$'], dtype), h, training, rngs, ctx)\n"
    "state = {**state, 'p$': after.state}"
)

_TEACHER = (
    "teacher$ = Trainer(tp.layer.linear(D, D), tp.optim.sgd(0.1))\nst$ = teacher$.init(tp.rng.key(1), FT)"
)
#: Models beside the one that is trained: (setup, change, body).
TEACHERS = [
    (
        _TEACHER,
        "st$ = teacher$.init(tp.rng.key(call), FT)",
        "h = h + tp.stop_gradient(teacher$.predict(st$, h))",
    ),
    (
        _TEACHER,
        "_, st$ = teacher$.step(st$, np.ones((2, D), FT), lambda out: (out * out).mean())",
        "h = h + 0.1 * teacher$.predict(st$, h)",
    ),
    (
        _TEACHER,
        "loss, st$ = teacher$.step(st$, np.full((2, D), call, FT), lambda out: (out * call).mean())\n"
        "log.append(float(loss))\nkept.append(loss)",
        "h = h * st$.vars.params['bias'].sum() + h",
    ),
    (
        _TEACHER,
        "aux['teacher'] = teacher$.predict(st$, np.full((1, D), call, FT))",
        "h = h * aux.get('teacher', 2.0) + h",
    ),
]


def filled(rng, name, body, setup="", change="", layer=""):
    """Return a piece with a number from outside in the place of NUMBER."""
    if "NUMBER" in body:
        place = rng.choice(list(PLACES) + list(NUMBER_PLACES))
        own, changing, read = (PLACES | NUMBER_PLACES)[place]
        new = rng.choice(NUMBERS)
        setup = "\n".join(filter(None, [setup, own.replace("INITIAL", "1.0")]))
        change = "\n".join(filter(None, [change, changing.replace("NEW", new)]))
        name, body = f"{name}, {place}", body.replace("NUMBER", read)
    return Piece(name, body, setup, change, layer)


def applied(rng):
    """Return a piece that fits into a layer's function alone; half of them apply a layer of the library."""
    if rng.random() < 0.5:
        return filled(rng, "own layer", rng.choice(OWN))
    layer, body = rng.choice(LAYERS)
    lines = []
    for line in body.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        apply = [indent + part for part in _APPLY.split("\n")]
        lines += apply if line.strip() == "APPLY" else [line]
    return filled(rng, "layer inside", "\n".join(lines), layer=layer)


def other(rng):
    """Return a piece that does something besides computing."""
    kind = rng.choice(
        ["read", "read", "keep", "keep", "gradient", "error", "random", "jit", "alias", "teacher"]
    )
    if kind in ("gradient", "jit"):
        setup, body = rng.choice(GRADIENTS if kind == "gradient" else JIT)
        return filled(rng, kind, body, setup)
    if kind == "teacher":
        setup, change, body = rng.choice(TEACHERS)
        return filled(rng, kind, body, setup, change)
    bodies = {"read": READS, "keep": KEEPS, "error": ERRORS, "random": RANDOM, "alias": ALIASES}[kind]
    return filled(rng, kind, rng.choice(bodies))


def sometimes(rng, piece):
    """Return the piece as it is, or used under a condition, in a loop or in a function of its own."""
    inner = "\n".join("    " + line for line in piece.body.split("\n"))
    way = rng.random()
    if way < 0.7:
        return piece
    if way < 0.9:
        condition = rng.choice(
            ["call > 3", "call % 2", "call == 4", "random.random() < 0.4", "len(log) % 2", "len(kept) < 3"]
        )
        return replace(piece, name=f"{piece.name}, at times", body=f"if {condition}:\n{inner}")
    if way < 0.95:
        return replace(piece, body=f"for _ in range(2):\n{inner}")
    return replace(piece, body=f"with contextlib.nullcontext():\n{inner}")
