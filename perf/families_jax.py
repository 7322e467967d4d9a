"""Some of the families in JAX: jitted, buffers donated, optax. Convolutions are left out.

`cnn` of `train.py` shows how slow they are on CPUs. Weights are treepie's, a dict for each layer.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import families_models as models
import jax
import jax.numpy as jnp
import numpy as np
import optax

Weights = list[dict[str, Any]]
#: Families that are here.
FAMILIES = ("lstm", "gru", "vit", "attention", "pinn", "recommender", "deep", "policy", "bert")


def _linear(w: Any, x: Any) -> Any:
    return x @ w["weight"] + w["bias"]


def _patches(w: Any, x: Any, stride: int) -> Any:
    dims = ("NCHW", "OIHW", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, w["weight"], (stride, stride), "VALID", dimension_numbers=dims)
        + w["bias"]
    )


def _norm(w: Any, x: Any) -> Any:
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5) * w["gamma"] + w["beta"]


def _attend(w: Any, x: Any, heads: int) -> Any:
    b, t, n = x.shape
    every = jnp.concatenate([w[f"{p}_proj"] for p in "qkv"], 1)
    bias = jnp.concatenate([w[f"{p}_bias"] for p in "qkv"])
    qkv = [z.reshape(b, t, heads, n // heads) for z in jnp.split(x @ every + bias, 3, axis=-1)]
    return jax.nn.dot_product_attention(*qkv).reshape(b, t, n) @ w["out_proj"] + w["out_bias"]


def _lstm(w: Any, x: Any) -> Any:
    def step(carry: Any, xt: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(xt + h @ w["weight_hh"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    inputs = (x @ w["weight_ih"] + w["bias_ih"] + w["bias_hh"]).transpose(1, 0, 2)
    zeros = jnp.zeros((len(x), len(w["weight_hh"])))
    return jax.lax.scan(step, (zeros, zeros), inputs)[1].transpose(1, 0, 2)


def _gru(w: Any, x: Any) -> Any:
    def step(h: Any, xt: Any) -> Any:
        xr, xz, xn = jnp.split(xt, 3, axis=-1)
        hr, hz, hn = jnp.split(h @ w["weight_hh"] + w["bias_hh"], 3, axis=-1)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + r * hn) + z * h
        return h, h

    inputs = (x @ w["weight_ih"] + w["bias_ih"]).transpose(1, 0, 2)
    zeros = jnp.zeros((len(x), len(w["weight_hh"])))
    return jax.lax.scan(step, zeros, inputs)[1].transpose(1, 0, 2)


#: Kind of part -> function of its weights, x and its sizes.
_WITH_WEIGHTS: dict[str, Callable[..., Any]] = {
    "linear": lambda w, x, *_: _linear(w, x),
    "conv": lambda w, x, a, b, k, stride, *_: _patches(w, x, stride),
    "layer_norm": lambda w, x, *_: _norm(w, x),
    "attention": lambda w, x, width, heads: _attend(w, x, heads),
    "lstm": lambda w, x, *_: _lstm(w, x),
    "gru": lambda w, x, *_: _gru(w, x),
    "embedding": lambda w, x, *_: w["embedding"][x],
    "positions": lambda w, x, *_: x + w["embedding"],
}
_WITHOUT: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tokens": lambda x, width: x.reshape(len(x), -1, width),
    "mean": lambda x: x.mean(1),
}


def _forward(parts: list[models.Part], weights: Iterator[Any], x: Any) -> Any:
    for kind, *sizes in parts:
        if kind == "residual":
            x = x + _forward(sizes[0], weights, x)
        elif kind == "tables":
            x = jnp.concatenate([next(weights)["embedding"][codes] for codes in x], 1)
        elif kind in _WITHOUT:
            x = _WITHOUT[kind](x, *sizes)
        else:
            x = _WITH_WEIGHTS[kind](next(weights), x, *sizes)
    return x


def _cross_entropy(out: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


def _returns(out: Any, y: Any) -> Any:
    return (optax.softmax_cross_entropy_with_integer_labels(out, y[0]) * y[1]).mean()


_LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "squares": lambda out, y: jnp.mean((out - y) ** 2),
    "logits": lambda out, y: optax.sigmoid_binary_cross_entropy(out, y).mean(),
    "returns": _returns,
    "labels": _cross_entropy,
}


def _burgers(u: Callable[[Any], Any], x: Any, values: Any) -> Any:
    inside, start = x
    scalar = lambda point: u(point[None])[0, 0]

    def residual(point: Any) -> Any:
        value, d = jax.value_and_grad(scalar)(point)
        second = jax.jvp(jax.grad(scalar), (point,), (jnp.array([1.0, 0.0]),))[1][0]
        return d[1] + value * d[0] - models.VISCOSITY * second

    return jnp.mean(jax.vmap(residual)(inside) ** 2) + jnp.mean((u(start) - values) ** 2)


def _optimizer(case: models.Case) -> Any:
    if case.optimizer == "adagrad":
        # Its eps is added inside of the square root.
        return optax.chain(optax.scale_by_rss(0.0, models.EPS**2), optax.scale(-models.RATE))
    return optax.adam(models.RATE, models.B1, models.B2, models.EPS)


def step(case: models.Case, weights: Weights) -> Callable[[], float]:
    """Return a function that takes one step on the next batch and returns a number to compare."""
    turns = itertools.cycle([jax.tree.map(jnp.asarray, batch) for batch in case.batches()])
    if not case.parts:
        return _attention(case, turns)
    params = jax.tree.map(jnp.asarray, weights)
    model = lambda p, x: _forward(case.parts, iter(p), x)
    if not case.optimizer:
        predict = jax.jit(model)
        return lambda: float(np.asarray(predict(params, next(turns)[0])).flat[1])
    rule = _optimizer(case)

    def loss(p: Any, x: Any, y: Any) -> Any:
        if case.loss == "burgers":
            return _burgers(lambda points: model(p, points), x, y)
        return _LOSSES[case.loss](model(p, x), y)

    @lambda f: jax.jit(f, donate_argnums=(0, 1))
    def step(p: Any, s: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(p, x, y)
        updates, s = rule.update(grads, s, p)
        return optax.apply_updates(p, updates), s, value

    held = [params, rule.init(params)]

    def run() -> float:
        held[0], held[1], value = step(*held, *next(turns))
        return float(value)

    return run


def _attention(case: models.Case, turns: Any) -> Callable[[], float]:
    causal = case.options["causal"]

    @jax.jit
    def both(qkv: Any, g: Any) -> Any:
        attend = lambda *args: jax.nn.dot_product_attention(
            *(x.transpose(0, 2, 1, 3) for x in args), is_causal=causal
        ).transpose(0, 2, 1, 3)
        out, pullback = jax.vjp(attend, *qkv)
        return (out, *pullback(g))

    return lambda: sum(float(x[0, 0, 7, 3]) for x in both(*next(turns)))
