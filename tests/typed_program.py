"""What type checkers must accept, and the types that they must find: `test_typed.py` checks and runs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import treepie as tp

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type


def tensors() -> tp.Tensor:
    x = tp.tensor([[0.0, 1.0], [2.0, 3.0]])
    array: NDArray[np.float32] = np.ones((2, 2), np.float32)
    y = tp.tensor(array, dtype=tp.float64)
    assert_type(x, tp.Tensor)
    assert_type(y, tp.Tensor)
    assert_type(x + 1, tp.Tensor)
    assert_type(1.0 - x, tp.Tensor)
    assert_type(x @ array, tp.Tensor)
    assert_type(x**2 / 3, tp.Tensor)
    assert_type(-x, tp.Tensor)
    assert_type(x > 0, tp.Tensor)
    assert_type(x == y, tp.Tensor)
    assert_type(~(x > 0) & (x < 2), tp.Tensor)
    assert_type(x[0], tp.Tensor)
    assert_type(x[:, None, ..., np.array([1, 0])], tp.Tensor)
    assert_type(x.at[0].set(1.0), tp.Tensor)
    assert_type(x.sum(axis=0), tp.Tensor)
    assert_type(x.mean(axis=(0, 1), keepdims=True), tp.Tensor)
    assert_type(x.reshape(4).astype(tp.float64), tp.Tensor)
    assert_type(x.T, tp.Tensor)
    assert_type(x.shape, tuple[int, ...])
    assert_type(x.ndim, int)
    assert_type(float(x.sum()), float)
    assert_type(len(x), int)
    assert_type(tp.exp(x), tp.Tensor)
    assert_type(tp.where(x > 1, x, 0.0), tp.Tensor)
    assert_type(tp.einsum("ij,jk->ik", x, x), tp.Tensor)
    assert_type(tp.concatenate([x, x], axis=1), tp.Tensor)
    assert_type(tp.zeros((2, 3)), tp.Tensor)
    assert_type(tp.softmax(x, axis=-1), tp.Tensor)
    values, places = tp.top_k(x, 1)
    assert_type(values, tp.Tensor)
    assert_type(places, tp.Tensor)
    for row in x:
        assert_type(row, tp.Tensor)
    rows: NDArray[Any] = x.numpy()
    assert rows.shape == (2, 2)
    return x


def gradients() -> float:
    key = tp.rng.key(0)
    first, second = tp.rng.split(key)
    params = {"w": tp.rng.normal(first, (3,)), "b": tp.zeros(())}
    x = tp.rng.uniform(second, (8, 3), low=-1.0)

    def objective(p: Mapping[str, tp.Tensor]) -> tp.Tensor:
        return tp.loss.mse(x @ p["w"] + p["b"], tp.ones((8,)))

    value, grads = tp.value_and_grad(objective)(params)
    assert_type(value, tp.Tensor)
    optimizer = tp.optim.sgd(tp.optim.schedule.cosine_decay(0.1, 10), momentum=0.9)
    assert_type(optimizer, tp.optim.Optimizer)
    state = optimizer.init(params)
    assert_type(state, tp.optim.OptState)
    params, state = optimizer.update(state, params, tp.optim.clip_by_global_norm(1.0, grads))
    assert_type(tp.optim.global_norm(grads), tp.Tensor)
    assert_type(tp.ptree.count_parameters(params), int)
    return float(value.item())


@tp.jit
def scaled(x: tp.Tensor, factor: float = 2.0) -> tp.Tensor:
    return x * factor


@tp.jit(static="twice", donate=0)
def shifted(x: tp.Tensor, by: tp.Tensor, *, twice: bool) -> tuple[tp.Tensor, tp.Tensor]:
    return (x + by + by, x) if twice else (x + by, x)


def ones() -> tp.Tensor:
    return tp.ones((2,))


def programs() -> None:
    x = tp.ones((3,))
    assert_type(scaled(x), tp.Tensor)
    assert_type(scaled(x, factor=3.0), tp.Tensor)
    assert_type(shifted(x, x, twice=True), tuple[tp.Tensor, tp.Tensor])
    double = tp.jit(lambda x: 2 * x)
    double(x)
    plain = tp.jit(ones)
    assert_type(plain(), tp.Tensor)
    tp.explain(scaled)


def pipelines() -> None:
    x, y = np.zeros((10, 4), np.float32), np.arange(10) % 3
    pairs = tp.Data.prepare((x, y), batch_size=4, shuffle=tp.rng.key(0), drop_last=True)
    assert_type(pairs, tp.Data[tuple[tp.Tensor, ...]])
    for inputs, targets in pairs:
        assert_type(inputs, tp.Tensor)
        assert_type(targets, tp.Tensor)
    assert_type(tp.Data.prepare(x, batch_size=4), tp.Data[tp.Tensor])
    words = tp.Data.of_array(["a", "bc", "def"])
    assert_type(words, tp.Data[str])
    assert_type(words.map(len), tp.Data[int])
    assert_type(words.batch(2).to_list(), list[list[str]])
    assert_type(words.map(len).shuffle(tp.rng.key(1)).take(2).prefetch(2), tp.Data[int])
    assert_type(words.map_batch(2, "".join).to_list(), list[str])
    assert_type(words.map(str.upper), tp.Data[str])
    words.map(lambda word: word.upper()).iter(print)
    assert_type(tp.Data.of_fn(3, lambda k: k / 2), tp.Data[float])
    assert_type(tp.Data.of_tensor(x), tp.Data[tp.Tensor])
    assert_type(tp.Data.of_array(x), tp.Data[Any])
    tp.Data.of_tensors((x, y)).map(lambda a, b: a + b).iter(print)
    anything: tp.Data = words
    assert len(anything) == 3


def scale(start: float = 1.0) -> tp.layer.Layer:
    """Return a layer of one's own: one learned factor."""

    def init(rngs: tp.Tensor, dtype: Any) -> tp.layer.Vars:
        return tp.layer.Vars({"scale": tp.full((), start, dtype)}, {}, dtype)

    def apply(
        params: Any,
        state: Any,
        x: tp.Tensor,
        *,
        dtype: Any,
        training: bool,
        rngs: tp.Tensor | None,
        ctx: tp.Context | None,
    ) -> tuple[tp.Tensor, Any]:
        return x * params["scale"], state

    return tp.layer.Layer(init, apply, "scale")


def training() -> None:
    (x_train, y_train), (x_test, y_test) = tp.datasets.digits()
    model = tp.layer.sequential(
        [tp.layer.linear(64, 16), tp.layer.relu(), tp.layer.dropout(0.1), tp.layer.linear(16, 10), scale()]
    )
    trainer = tp.Trainer(model, tp.optim.adamw(1e-3, weight_decay=0.01))
    st = trainer.init(rngs=tp.rng.key(0))
    train = tp.Data.prepare((x_train, y_train), batch_size=64, shuffle=tp.rng.key(1))
    test = tp.Data.prepare((x_test, y_test), batch_size=120)
    history = tp.History()

    def report(step: int, loss: float, now: object) -> None:
        if loss < 0:
            raise tp.EarlyStop

    st = trainer.fit(
        st,
        train,
        rngs=tp.rng.key(2),
        loss=tp.loss.cross_entropy_sparse,
        report=report,
        validate=(test, {"accuracy": tp.metric.Accuracy()}),
        history=history,
        clip_norm=1.0,
    )
    loss, st = trainer.step(
        st, x_train[:32], lambda out: tp.loss.cross_entropy_sparse(out, y_train[:32]), rngs=tp.rng.key(3)
    )
    assert_type(loss, tp.Tensor)
    assert_type(st.vars, tp.layer.Vars)
    assert_type(st.step, int)
    logits = trainer.predict(st, x_test, batch_size=100)
    assert_type(logits, tp.Tensor)
    assert_type(tp.metric.accuracy(logits, y_test), float)
    scores = trainer.evaluate(
        st, tp.Data.prepare((x_test, y_test), 50), {"accuracy": tp.metric.Accuracy(), "f1": tp.metric.F1()}
    )
    assert_type(scores, dict[str, Any])
    tracker = tp.metric.Tracker()
    tracker.observe("loss", loss)
    assert_type(tracker.mean("loss"), float)
    out, variables = model.apply(st.vars, x_test[:2])
    assert_type(variables, tp.layer.Vars)
    assert_type(tp.layer.summary(model, input_shape=(1, 64)), str)
    assert out.shape == (2, 10)


if __name__ == "__main__":
    tensors()
    gradients()
    programs()
    pipelines()
    training()
