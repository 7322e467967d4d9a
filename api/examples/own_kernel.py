"""Kernels of one's own, each with its gradient: `python -m treepie.examples.own_kernel`.

A loss of rows, a stencil over images and a scan over time, in plain Numba. Each is checked against the laws
that the library's own ops obey, then a model is trained with it.
"""

import argparse
from typing import Any

import numpy as np

import treepie as tp

# ---- a loss of rows: quantile regression
QUANTILES = (0.1, 0.5, 0.9)


@tp.kernel(
    out=lambda predicted, target, quantiles: tp.spec(target.shape, predicted.dtype),
    flops=4,
    fastmath={"reassoc"},  # the sum is vectorised
)
def quantile_loss(rows: Any, predicted: Any, target: Any, quantiles: Any, out: Any) -> None:
    """Sum the pinball losses of all quantiles (Koenker and Bassett 1978) of each row.

    predicted: (n, q).  target: (n,).  quantiles: (q,).  out: (n,).
    """
    for i in rows:
        total = 0.0
        for k in range(quantiles.size):
            error = target[i] - predicted[i, k]
            total += max(quantiles[k] * error, (quantiles[k] - 1) * error)
        out[i] = total


@tp.kernel(
    out=lambda g, loss, predicted, target, quantiles: tp.spec(predicted.shape, predicted.dtype), flops=4
)
def quantile_loss_gradient(
    rows: Any, g: Any, loss: Any, predicted: Any, target: Any, quantiles: Any, out: Any
) -> None:
    """Compute the gradient of `quantile_loss` for the predictions."""
    for i in rows:
        for k in range(quantiles.size):
            error = target[i] - predicted[i, k]
            out[i, k] = g[i] * ((1 if error < 0 else 0) - quantiles[k]) + 0 * error  # NaN stays


@quantile_loss.defvjp
def _(g: Any, loss: Any, predicted: Any, target: Any, quantiles: Any) -> Any:
    return quantile_loss_gradient(g, loss, predicted, target, quantiles), None, None


@quantile_loss_gradient.defvjp
def _(h: Any, gradient: Any, g: Any, loss: Any, predicted: Any, target: Any, quantiles: Any) -> Any:
    slopes = (predicted > target[:, None]).astype(h.dtype) - quantiles
    return (h * slopes).sum(axis=1), None, None, None, None


# ---- a stencil over images: diffusion
@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype), flops=5)
def laplacian(rows: Any, x: Any, out: Any) -> None:
    """Add up the differences of each pixel from its four neighbours; at the edge there are none.

    x, out: (n, height, width).
    """
    _, height, width = x.shape
    for i in rows:
        for r in range(height):
            up, down = max(r - 1, 0), min(r + 1, height - 1)
            for c in range(width):
                out[i, r, c] = x[i, up, c] + x[i, down, c] - 4 * x[i, r, c]
            for c in range(width - 1):
                out[i, r, c] += x[i, r, c + 1]
                out[i, r, c + 1] += x[i, r, c]
            if width > 0:
                out[i, r, 0] += x[i, r, 0]
                out[i, r, width - 1] += x[i, r, width - 1]


@laplacian.defvjp
def _(g: Any, y: Any, x: Any) -> Any:
    return laplacian(g)  # the matrix of the stencil is symmetric


# ---- a scan over time: the exponential moving average
@tp.kernel(out=lambda x: tp.spec(x.shape, x.dtype), flops=4)
def moving_average(rows: Any, x: Any, out: Any, *, decay: float) -> None:
    """Compute y[t] = decay y[t - 1] + (1 - decay) x[t] of each series, from y[-1] = 0.

    x, out: (n, time, features).
    """
    for i in rows:
        for c in range(x.shape[2]):
            if x.shape[1] > 0:
                out[i, 0, c] = (1 - decay) * x[i, 0, c]
        for t in range(1, x.shape[1]):
            for c in range(x.shape[2]):
                out[i, t, c] = decay * out[i, t - 1, c] + (1 - decay) * x[i, t, c]


@tp.kernel(out=lambda g: tp.spec(g.shape, g.dtype), flops=4)
def moving_average_gradient(rows: Any, g: Any, out: Any, *, decay: float) -> None:
    """Run the scan backwards: the gradient at t decays on its way from later times."""
    for i in rows:
        last = g.shape[1] - 1
        for c in range(g.shape[2]):
            if last >= 0:
                out[i, last, c] = (1 - decay) * g[i, last, c]
        for t in range(last - 1, -1, -1):
            for c in range(g.shape[2]):
                out[i, t, c] = decay * out[i, t + 1, c] + (1 - decay) * g[i, t, c]


@moving_average.defvjp
def _(g: Any, y: Any, x: Any, *, decay: float) -> Any:
    return moving_average_gradient(g, decay=decay)


@moving_average_gradient.defvjp
def _(h: Any, gradient: Any, g: Any, *, decay: float) -> Any:
    return moving_average(h, decay=decay)


# ---- models that are trained with them
def fit(model: Any, x: Any, y: Any, loss: Any, epochs: int) -> tuple[Any, float, float]:
    """Train, and return the parameters with the mean loss of the first and the last 10 steps."""
    trainer, history = tp.Trainer(model, tp.optim.adam(1e-2)), tp.History()
    data = tp.Data.prepare((x, y), batch_size=64, shuffle=tp.rng.key(1))
    st = trainer.fit(
        trainer.init(rngs=tp.rng.key(0)), data, loss=loss, epochs=epochs, history=history, progress=False
    )
    losses = [loss for _, loss in history.steps]
    return st.vars.params, float(np.mean(losses[:10])), float(np.mean(losses[-10:]))


def pinball(predicted: Any, target: Any) -> Any:
    """Return the mean loss of a batch."""
    return quantile_loss(predicted, target, np.array(QUANTILES, np.float32)).mean()


def layer(apply: Any, params: dict[str, float]) -> Any:
    """Return a layer of numbers that are trained."""

    def init(rngs: Any, dtype: Any) -> Any:
        return tp.layer.Vars({k: tp.full((), v, dtype) for k, v in params.items()}, {}, dtype)

    def run(params: Any, state: Any, x: Any, **_: Any) -> Any:
        return apply(params, x), state

    return tp.layer.Layer(init, run)


def diffused(params: Any, x: Any) -> Any:
    """Return images after three steps of diffusion."""
    for _ in range(3):
        x = x + params["rate"] * laplacian(x)
    return x


def smoothed(params: Any, x: Any) -> Any:
    """Return a mixture of two moving averages of series."""
    return params["slow"] * moving_average(x, decay=0.9) + params["fast"] * moving_average(x, decay=0.5)


def main() -> None:
    """Check the kernels, and train with each."""
    argparse.ArgumentParser("python -m treepie.examples.own_kernel", description=main.__doc__).parse_args()
    numbers = np.random.default_rng(0)
    tp.check_kernel(quantile_loss, tp.zeros((9, 3)), tp.zeros(9), QUANTILES)
    tp.check_kernel(laplacian, tp.zeros((2, 5, 7)))
    tp.check_kernel(moving_average, tp.zeros((3, 6, 5)), decay=0.9)

    x = numbers.uniform(-1, 1, (4096, 1)).astype("f4")
    y = (np.sin(3 * x[:, 0]) + (0.1 + 0.2 * (x[:, 0] > 0)) * numbers.standard_normal(4096)).astype("f4")
    model = tp.layer.sequential([tp.layer.linear(1, 32), tp.layer.tanh(), tp.layer.linear(32, 3)])
    _, first, last = fit(model, x, y, pinball, epochs=10)
    print(f"quantiles: loss {first:.3f}, then {last:.3f}")

    images = numbers.standard_normal((512, 16, 16)).astype("f4")
    after = diffused({"rate": 0.15}, tp.tensor(images)).numpy()
    params, _, _ = fit(layer(diffused, {"rate": 0.0}), images, after, tp.loss.mse, epochs=30)
    print(f"diffusion: rate {params['rate'].item():.3f}, of 0.150")

    series = numbers.standard_normal((512, 64, 4)).astype("f4")
    after = smoothed({"slow": 2.0, "fast": -1.0}, tp.tensor(series)).numpy()
    start = {"slow": 0.0, "fast": 0.0}
    params, _, _ = fit(layer(smoothed, start), series, after, tp.loss.mse, epochs=80)
    print(f"moving averages: {params['slow'].item():.3f} and {params['fast'].item():.3f}, of 2 and -1")


if __name__ == "__main__":
    main()
