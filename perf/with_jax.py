"""The five models in JAX, written as its users write them: jitted, buffers donated, images NHWC, optax."""

import itertools
import math

import jax
import jax.numpy as jnp
import models
import optax


class Init:
    """Makes first weights; parameters are in the order of layers."""

    def __init__(self):
        self.keys = iter(jax.random.split(jax.random.key(0), 100))

    def weight(self, *shape):
        return jax.random.normal(next(self.keys), shape) / math.sqrt(math.prod(shape[:-1]))

    def dense(self, *sizes):
        return [(self.weight(a, b), jnp.zeros(b)) for a, b in itertools.pairwise(sizes)]

    def norm(self):
        return jnp.ones(128), jnp.zeros(128)

    def cnn(self):
        convolutions = [(self.weight(3, 3, a, b), jnp.zeros(b)) for a, b in ((1, 16), (16, 32))]
        return convolutions, self.dense(1568, 128, 10)

    def gpt(self):
        def block():
            attention = self.norm(), self.weight(128, 384), self.weight(128, 128)
            return (*attention, self.norm(), self.dense(128, 512, 128))

        tables = self.weight(65, 128), self.weight(128, 128)
        return (*tables, [block() for _ in range(4)], self.norm(), self.dense(128, 65))


def apply_dense(params, x, act):
    for w, b in params[:-1]:
        x = act(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


def norm(p, x):
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5) * p[0] + p[1]


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def cnn(params, x):
    convolutions, head = params
    for w, b in convolutions:
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + b)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return apply_dense(head, x.reshape(len(x), -1), jax.nn.relu)


def gpt(params, x):
    tokens, places, blocks, last, head = params
    h = tokens[x] + places
    b, t, _ = h.shape
    for norm1, qkv, out, norm2, mlp in blocks:
        heads = [z.reshape(b, t, 4, 32) for z in jnp.split(norm(norm1, h) @ qkv, 3, axis=-1)]
        h = h + jax.nn.dot_product_attention(*heads, is_causal=True).reshape(b, t, 128) @ out
        h = h + apply_dense(mlp, norm(norm2, h), gelu)
    return apply_dense(head, norm(last, h), jax.nn.relu)


def optimizer(name):
    adam = {"b1": models.B1, "b2": models.B2, "eps": models.EPS}
    if name == "tabular":
        return optax.rmsprop(models.RATE, models.RMS_DECAY, models.EPS, eps_in_sqrt=False)
    if name == "gpt":
        return optax.adamw(models.RATE, **adam, weight_decay=models.WEIGHT_DECAY)
    return optax.adam(models.RATE, **adam)


def arranged(name, weights):
    """Return weights as NHWC has them."""
    if name != "cnn":
        return weights
    after = 4  # the first linear layer reads what was (32, 7, 7) of each image
    moved = [w.transpose(2, 3, 1, 0) if w.ndim == 4 else w for w in weights]
    moved[after] = moved[after].reshape(32, 7, 7, 128).transpose(1, 2, 0, 3).reshape(1568, 128)
    return moved


def step(name, weights=None):
    init = Init()
    params, forward = {
        "xor": lambda: (init.dense(2, 4, 1), lambda p, x: apply_dense(p, x, jnp.tanh)),
        "mlp": lambda: (init.dense(784, 512, 256, 10), lambda p, x: apply_dense(p, x, jax.nn.relu)),
        "tabular": lambda: (init.dense(32, 256, 256, 1), lambda p, x: apply_dense(p, x, jax.nn.relu)),
        "cnn": lambda: (init.cnn(), cnn),
        "gpt": lambda: (init.gpt(), gpt),
    }[name]()
    if weights is not None:
        params = jax.tree.unflatten(jax.tree.structure(params), map(jnp.asarray, arranged(name, weights)))
    rule = optimizer(name)
    image = lambda x: x.transpose(0, 2, 3, 1) if name == "cnn" else x
    turns = itertools.cycle([(jnp.asarray(image(x)), jnp.asarray(y)) for x, y in models.batches(name)])

    def loss(p, x, y):
        out = forward(p, x)
        if name in models.SQUARES:
            return jnp.mean((out - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    @lambda f: jax.jit(f, donate_argnums=(0, 1))
    def step(p, s, x, y):
        value, grads = jax.value_and_grad(loss)(p, x, y)
        updates, s = rule.update(grads, s, p)
        return optax.apply_updates(p, updates), s, value

    held = [params, rule.init(params)]

    def run():
        held[0], held[1], value = step(*held, *next(turns))
        return float(value)

    return run
