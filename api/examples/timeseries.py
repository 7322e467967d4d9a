"""Forecasts of a time series: `python -m treepie.examples.timeseries --plot forecast.png`.

Two years of an hourly load with daily, weekly and yearly patterns. A GRU reads three days and forecasts the
next one, better than the naive forecasts, which repeat the last day and the last week.
"""

import argparse
import sys

import numpy as np

import treepie as tp

PAST, NEXT, WEEK, YEAR = 72, 24, 168, 8760  # hours


def electric_load(hours: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the load of each hour in MW: patterns, and noise that lasts; and which hours are weekends."""
    rng, t = np.random.default_rng(0), np.arange(hours)
    clock, weekend = 2 * np.pi * t / 24, t % WEEK >= 120
    daily = (np.sin(clock - 2) + 0.4 * np.sin(2 * clock - 1)) * np.where(weekend, 0.5, 1)
    noise = np.convolve(rng.normal(0, 0.1, hours + 47), 0.9 ** np.arange(48), "valid")
    return 50 + 10 * ((1 + 0.3 * np.cos(2 * np.pi * t / YEAR)) * daily - weekend + noise), weekend


def inputs(scaled: np.ndarray, weekend: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the PAST hours before each start, (n, PAST, 4): the load, what time it is, and a hint.

    The time of the day is a point on a circle. The hint is whether the same hour of the next day, which is to
    be predicted, is one of a weekend.
    """
    clock = 2 * np.pi * np.arange(len(scaled)) / 24
    columns = np.stack([scaled, np.sin(clock), np.cos(clock), np.roll(weekend, -NEXT)], axis=1)
    return columns.astype(np.float32)[starts[:, None] + np.arange(-PAST, 0)]


def main() -> None:
    """Train on 20 months, forecast the days of 4 others; exit with 1 if a naive one is better."""
    parser = argparse.ArgumentParser("python -m treepie.examples.timeseries", description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="(default: 20)")
    parser.add_argument("--plot", metavar="FILE", help="draw the forecasts of two weeks")
    arguments = parser.parse_args()

    load, weekend = electric_load(2 * YEAR)
    split, day = 2 * YEAR * 5 // 6 // 24 * 24, np.arange(NEXT)
    mean, std = load[:split].mean(), load[:split].std()
    scaled = ((load - mean) / std).astype(np.float32)
    starts = np.arange(PAST, split - NEXT, 3)
    midnights = np.arange(split, len(load), 24)

    model = tp.layer.sequential([tp.layer.gru(4, 32, return_sequences=False), tp.layer.linear(32, NEXT)])
    examples = inputs(scaled, weekend, starts), scaled[starts[:, None] + day]
    train = tp.Data.prepare(examples, batch_size=64, shuffle=tp.rng.key(1))
    rate = tp.optim.schedule.cosine_decay(5e-3, arguments.epochs * len(train))
    trainer = tp.Trainer(model, tp.optim.adam(rate))
    st = trainer.init(tp.rng.key(0))
    st = trainer.fit(st, train, loss=tp.loss.mse, epochs=arguments.epochs, clip_norm=1.0)

    hours = midnights[:, None] + day
    forecasts = {
        "last day": load[hours - 24],
        "last week": load[hours - WEEK],
        "GRU": mean + std * trainer.predict(st, inputs(scaled, weekend, midnights)).numpy(),
    }
    errors = {name: tp.metric.mae(forecast, load[hours]) for name, forecast in forecasts.items()}
    print(
        f"mean absolute error of {len(hours)} days:", ", ".join(f"{n} {e:.2f} MW" for n, e in errors.items())
    )
    if arguments.plot:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
        shown = slice(14, 28)
        days = np.arange(14 * 24) / 24
        axes.plot(days, load[hours[shown]].ravel(), "k", linewidth=1, label="load")
        axes.plot(days, forecasts["last week"][shown].ravel(), ":", label="last week's load")
        axes.plot(days, forecasts["GRU"][shown].ravel(), label="forecast at midnight")
        axes.set(xlabel="day", ylabel="MW", xticks=range(15))
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        figure.savefig(arguments.plot)
    if errors["GRU"] >= min(errors["last day"], errors["last week"]):
        sys.exit("the naive forecasts were not beaten")


if __name__ == "__main__":
    main()
