"""The rivals' calls that `overhead.py` times: the same model, batches and trees, as their users write them.

Each function takes the name of a case and returns a function that makes one call.
"""

import functools
import itertools

import models
import numpy as np

#: The rows of rivals; in the others they would do what they do in `fit`.
CASES = ("fit", "clip_norm", "accumulate", "number", "step", "jit", "predict")


def torch(case):
    import torch
    import with_torch
    from torch.nn.functional import mse_loss

    torch.manual_seed(0)
    model = with_torch.dense(2, 4, 1, act=torch.nn.Tanh)
    adam = {"lr": models.RATE, "betas": (models.B1, models.B2), "eps": models.EPS, "fused": True}
    optimizer = torch.optim.Adam(model.parameters(), **adam)
    turns, numbers = itertools.cycle(with_torch.batches("xor")), itertools.count(1)

    def step():
        x, y = next(turns)
        optimizer.zero_grad()
        value = mse_loss(model(x), y)
        if case == "number":
            value = (1 + 1 / next(numbers)) * value
        value.backward()
        if case == "clip_norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value.item()

    def accumulate():
        x, y = next(turns)
        value = mse_loss(model(x), y)
        (value / 4).backward()
        if next(numbers) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return value.item()

    @torch.no_grad()
    def predict():
        return model(next(turns)[0]).numpy()

    return {"accumulate": accumulate, "predict": predict}.get(case, step)


def jax(case):
    import jax
    import jax.numpy as jnp
    import optax
    import with_jax

    layers = [{"weight": w, "bias": b} for w, b in with_jax.Init().dense(2, 4, 1)]
    params = [layers[0], {}, layers[1]]  # treepie's tree: the activation has no parameters
    rule = with_jax.optimizer("xor")
    if case == "clip_norm":
        rule = optax.chain(optax.clip_by_global_norm(1.0), rule)
    if case == "accumulate":
        rule = optax.MultiSteps(rule, 4)
    pairs = [(jnp.asarray(x), jnp.asarray(y)) for x, y in models.batches("xor")]
    turns, numbers = itertools.cycle(pairs), itertools.count(1)

    def forward(p, x):
        return jnp.tanh(x @ p[0]["weight"] + p[0]["bias"]) @ p[2]["weight"] + p[2]["bias"]

    def loss(p, x, y, weight=None):
        value = jnp.mean((forward(p, x) - y) ** 2)
        return value if weight is None else weight * value

    # `fit` owns its state, as a JAX loop does that donates it; the other calls leave theirs as it was.
    @functools.partial(jax.jit, donate_argnums=() if case in ("step", "jit") else (0, 1))
    def update(p, s, *batch):
        value, grads = jax.value_and_grad(loss)(p, *batch)
        updates, s = rule.update(grads, s, p)
        return optax.apply_updates(p, updates), s, value

    state = rule.init(params)

    def step():
        nonlocal params, state
        weight = (1 + 1 / next(numbers),) if case == "number" else ()
        params, state, value = update(params, state, *next(turns), *weight)
        return float(value)

    predicted = jax.jit(forward)
    return (lambda: np.asarray(predicted(params, next(turns)[0]))) if case == "predict" else step


LIBRARIES = {"PyTorch": torch, "JAX": jax}
