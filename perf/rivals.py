"""The five models of `train.py` in PyTorch and in JAX, written as their users write them."""

import itertools

import numpy as np


def batch(name):
    """Return the input and the target of a model."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, "f4")
    return {
        "xor": lambda: (
            np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4"),
            np.array([[0], [1], [1], [0]], "f4"),
        ),
        "mlp": lambda: (normal(128, 784), rng.integers(0, 10, 128).astype("i4")),
        "tabular": lambda: (normal(1024, 32), normal(1024, 1)),
        "cnn": lambda: (normal(64, 1, 28, 28), rng.integers(0, 10, 64).astype("i4")),
        "gpt": lambda: tuple(rng.integers(0, 65, (16, 128)).astype("i4") for _ in range(2)),
    }[name]()


def torch_step(name):
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(128), nn.LayerNorm(128)
            self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
            self.up, self.down = nn.Linear(128, 512), nn.Linear(512, 128)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, 4, 32).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, 128))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(65, 128), nn.Embedding(128, 128)
            self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(4))), nn.LayerNorm(128)
            self.head = nn.Linear(128, 65)

        def forward(self, x):
            h = self.tokens(x) + self.places.weight[: x.shape[1]]
            return self.head(self.norm(self.blocks(h))).flatten(0, 1)

    def dense(*sizes, act=nn.ReLU):
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), act())]
        return nn.Sequential(*layers[:-1])

    def cnn():
        first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        parts = [first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return nn.Sequential(*parts, *dense(1568, 128, 10)).to(memory_format=torch.channels_last)

    model = {
        "xor": lambda: dense(2, 4, 1, act=nn.Tanh),
        "mlp": lambda: dense(784, 512, 256, 10),
        "tabular": lambda: dense(32, 256, 256, 1),
        "cnn": cnn,
        "gpt": GPT,
    }[name]()
    if name == "tabular":
        optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, alpha=0.9)
    elif name == "gpt":
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    x, y = map(torch.from_numpy, batch(name))
    loss = F.mse_loss if name in ("xor", "tabular") else F.cross_entropy
    if loss is F.cross_entropy:
        y = y.long().flatten()
    if name == "cnn":
        x = x.to(memory_format=torch.channels_last)

    def run():
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value.item()

    return run


def jax_step(name):
    import jax
    import jax.numpy as jnp
    import optax

    keys = iter(jax.random.split(jax.random.key(0), 100))
    weight = lambda *shape: jax.random.normal(next(keys), shape) / np.sqrt(np.prod(shape[:-1]))

    def dense(*sizes):
        return [(weight(a, b), jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]

    def apply_dense(params, x, act):
        for w, b in params[:-1]:
            x = act(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    def norm(p, x):
        return jax.nn.standardize(x, axis=-1, epsilon=1e-5) * p[0] + p[1]

    def cnn(p, x):
        for w, b in p["conv"]:
            x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + b)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return apply_dense(p["dense"], x.reshape(len(x), -1), jax.nn.relu)

    def gpt(p, x):
        h = p["tokens"][x] + p["places"]
        b, t, _ = h.shape
        for q in p["blocks"]:
            q_, k, v = jnp.split(norm(q["norm1"], h) @ q["qkv"], 3, axis=-1)
            heads = [z.reshape(b, t, 4, 32) for z in (q_, k, v)]
            h = h + jax.nn.dot_product_attention(*heads, is_causal=True).reshape(b, t, 128) @ q["out"]
            h = h + apply_dense(q["mlp"], norm(q["norm2"], h), lambda z: jax.nn.gelu(z, approximate=False))
        return apply_dense(p["head"], norm(p["norm"], h), jax.nn.relu)

    pair = lambda: (jnp.ones(128), jnp.zeros(128))
    block = lambda: {
        "norm1": pair(),
        "norm2": pair(),
        "qkv": weight(128, 384),
        "out": weight(128, 128),
        "mlp": dense(128, 512, 128),
    }
    params, forward = {
        "xor": lambda: (dense(2, 4, 1), lambda p, x: apply_dense(p, x, jnp.tanh)),
        "mlp": lambda: (dense(784, 512, 256, 10), lambda p, x: apply_dense(p, x, jax.nn.relu)),
        "tabular": lambda: (dense(32, 256, 256, 1), lambda p, x: apply_dense(p, x, jax.nn.relu)),
        "cnn": lambda: (
            {
                "conv": [(weight(3, 3, 1, 16), jnp.zeros(16)), (weight(3, 3, 16, 32), jnp.zeros(32))],
                "dense": dense(1568, 128, 10),
            },
            cnn,
        ),
        "gpt": lambda: (
            {
                "tokens": weight(65, 128),
                "places": weight(128, 128),
                "blocks": [block() for _ in range(4)],
                "norm": pair(),
                "head": dense(128, 65),
            },
            gpt,
        ),
    }[name]()
    optimizer = {"tabular": optax.rmsprop, "gpt": optax.adamw}.get(name, optax.adam)(1e-3)
    x, y = batch(name)
    x, y = jnp.asarray(x.transpose(0, 2, 3, 1) if name == "cnn" else x), jnp.asarray(y)

    def loss(p, x, y):
        out = forward(p, x)
        if name in ("xor", "tabular"):
            return jnp.mean((out - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    @lambda f: jax.jit(f, donate_argnums=(0, 1))
    def step(p, s, x, y):
        value, grads = jax.value_and_grad(loss)(p, x, y)
        updates, s = optimizer.update(grads, s, p)
        return optax.apply_updates(p, updates), s, value

    held = [params, optimizer.init(params)]

    def run():
        held[0], held[1], value = step(*held, x, y)
        return float(value)

    return run
