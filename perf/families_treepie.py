"""The families in treepie, trained as `fit` does, or under `tp.jit` where a loss needs the model itself."""

import itertools
from collections.abc import Callable
from typing import Any

import families_models as models
import numpy as np
import with_treepie

import treepie as tp

L = tp.layer


def _mean_of_tokens(x: Any) -> Any:
    return x.mean(axis=1)


def _pair(call: Any, x: Any) -> Any:
    return tp.concatenate([call.users(x[0]), call.items(x[1])], axis=1)


def _tables(users: int, items: int, width: int) -> Any:
    tables = {
        "users": L.embedding(users, width, scale=False, sparse=True),
        "items": L.embedding(items, width, scale=False, sparse=True),
    }
    return L.model(tables, tp.pure(_pair))


#: Kind of part -> its layer.
_LAYERS: dict[str, Callable[..., Any]] = {
    "conv": lambda a, b, k, stride, pad, groups, bias: L.conv2d(
        a, b, k, stride, padding=pad, groups=groups, bias=bias
    ),
    "transposed": lambda a, b, k: L.conv_transpose2d(a, b, k, stride=2, padding=(k - 1) // 2),
    "conv1d": lambda a, b, k, dilation: L.conv1d(a, b, k, dilation=dilation, padding="causal"),
    "batch_norm": L.batch_norm,
    "layer_norm": L.layer_norm,
    "relu": L.relu,
    "tanh": L.tanh,
    "gelu": L.gelu,
    "linear": L.linear,
    "lstm": L.lstm,
    "gru": L.gru,
    "embedding": lambda n, width: L.embedding(n, width, scale=False),
    "positions": L.positional,
    "attention": lambda width, heads: L.multi_head_attention(width, heads, bias=True),
    "tokens": lambda width: L.sequential([L.reshape((width, -1)), L.permute((0, 2, 1))]),
    "global_pool": L.global_avg_pool,
    "mean": lambda: L.lambda_(tp.pure(_mean_of_tokens)),
    "tables": _tables,
    "residual": lambda parts: L.residual(build(parts)),
    "sum": lambda *branches: L.parallel([build(parts) for parts in branches], combine="add"),
}


def build(parts: list[models.Part]) -> Any:
    """Return the model of some parts."""
    return L.sequential([_LAYERS[kind](*sizes) for kind, *sizes in parts])


def _trainer(case: models.Case) -> Any:
    adam = {"b1": models.B1, "b2": models.B2, "eps": models.EPS}
    optimizer = {
        "sgd": lambda: tp.optim.sgd(models.RATE, momentum=models.MOMENTUM),
        "adagrad": lambda: tp.optim.adagrad(models.RATE, eps=models.EPS),
    }.get(case.optimizer, lambda: tp.optim.adam(models.RATE, **adam))()
    return tp.Trainer(build(case.parts), optimizer)


def _initial(trainer: Any) -> Any:
    return trainer.init(rngs=tp.rng.key(0))


def weights(case: models.Case) -> list[dict[str, np.ndarray]]:
    """Return the first weights: a dict for each layer that has some, in the order of layers."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    if case.parts:
        for path, tensor in tp.ptree.flatten_with_paths(_initial(_trainer(case)).vars.params):
            layer, _, name = path.rpartition(".")
            layers.setdefault(layer, {})[name.removeprefix("sparse_")] = np.array(tensor)
    return list(layers.values())


def _tensors(tree: Any) -> Any:
    if tree is None:
        return None
    return tuple(map(tp.tensor, tree)) if isinstance(tree, tuple) else tp.tensor(tree)


def step(case: models.Case) -> Callable[[], float]:
    """Return a function that takes one step on the next batch and returns a number to compare."""
    turns = itertools.cycle([(_tensors(x), _tensors(y)) for x, y in case.batches()])
    if not case.parts:
        return _attention(case, turns)
    trainer = _trainer(case)
    if not case.optimizer:
        return _prediction(trainer, turns)
    if case.loss in ("burgers", "returns"):
        return _jitted(trainer, _burgers if case.loss == "burgers" else _returns, turns)
    losses = {"squares": tp.loss.mse, "logits": tp.loss.binary_cross_entropy}
    loss = losses.get(case.loss, tp.loss.cross_entropy_sparse)
    return with_treepie.fitting(trainer, loss, turns)


def _attention(case: models.Case, turns: Any) -> Callable[[], float]:
    causal = case.options["causal"]

    def run() -> float:
        qkv, g = next(turns)
        out, pullback = tp.vjp(lambda q, k, v: tp.fn.dot_product_attention(q, k, v, is_causal=causal), *qkv)
        return sum(float(x[0, 0, 7, 3].item()) for x in (out, *pullback(g)))

    return run


def _prediction(trainer: Any, turns: Any) -> Callable[[], float]:
    st = _initial(trainer)
    return lambda: float(np.asarray(trainer.predict(st, next(turns)[0])).flat[1])


def _jitted(trainer: Any, loss: Callable[..., Any], turns: Any) -> Callable[[], float]:
    """Return a function that takes steps under `tp.jit`. loss: (model, x, target) -> a scalar."""
    optimizer, vars = trainer.optimizer, _initial(trainer).vars
    params, state = vars.params, optimizer.init(vars.params)

    @tp.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def of_params(params: Any) -> Any:
            return loss(lambda x: trainer.model.apply(vars.with_params(params), x)[0], x, y)

        value, grads = tp.value_and_grad(of_params)(params)
        params, state = optimizer.update(state, params, grads)
        return value, params, state

    def run() -> float:
        nonlocal params, state
        value, params, state = step(params, state, *next(turns))
        return float(value.item())

    return run


def _burgers(u: Callable[[Any], Any], x: Any, values: Any) -> Any:
    inside, start = x

    def first(x: Any) -> Any:
        y, pullback = tp.vjp(u, x)
        (d,) = pullback(tp.ones(y.shape))
        return d[:, :1].sum(), (y, d)

    _, second, (y, d) = tp.value_and_grad_aux(first)(inside)
    residual = d[:, 1:] + y * d[:, :1] - models.VISCOSITY * second[:, :1]
    return tp.square(residual).mean() + tp.loss.mse(u(start), values)


def _returns(model: Callable[[Any], Any], x: Any, y: Any) -> Any:
    actions, returns = y
    chosen = tp.take_along_axis(tp.fn.log_softmax(model(x)), actions[:, None], 1)[:, 0]
    return -(returns * chosen).mean()
