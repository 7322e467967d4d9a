"""Plots of histories and confusion matrices, with matplotlib, which is imported when the first is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Points of a line of losses; more steps are drawn as means of blocks of one length, with the range of each.
_MOST_POINTS = 400

#: Quotient of the largest and the smallest loss from which on the axis is logarithmic.
_LOGARITHMIC = 30.0

#: Classes up to which a confusion matrix shows its counts, and the name of every class.
_MOST_COUNTS, _MOST_NAMES = 25, 60

#: Characters of a class's name that are shown, and the mean width of one in inches.
_LONGEST, _CHARACTER = 40, 0.085

#: Epochs up to which each has a marker.
_MOST_MARKERS = 40


def pyplot() -> Any:
    """Return `matplotlib.pyplot`; ImportError, which says how to install it, where it is missing."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f'plots are drawn by matplotlib, which can not be imported ({error}): pip install "treepie[plot]"'
        ) from error
    return pyplot


# ---- histories
def plot_history(steps: Sequence[tuple[int, float]], epochs: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Draw losses by step and scores by epoch in a new figure; return an array of its axes.

    Losses among the scores are drawn with those of the steps, other scores in panels of similar ranges.
    """
    plt = pyplot()
    losses, panels = _panels(epochs)
    count = 1 + len(panels)
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (1.2 + 4.8 * columns, 0.4 + 3.4 * rows)
    _, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    axes = grid.ravel()
    for panel in axes:
        # Not by `rc_context`: a notebook's backend, which is set up by the first figure, would be undone.
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    _draw_losses(axes[0], steps, epochs, losses)
    for panel, names in zip(axes[1:], panels, strict=False):
        _draw_scores(panel, epochs, names)
    for unused in axes[count:]:
        unused.remove()
    return np.asarray(axes[:count])


def _panels(epochs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the names of losses among the scores, and those of the other scores for each panel."""
    names = list(dict.fromkeys(name for epoch in epochs for name, x in epoch.items() if _is_number(x)))
    scores = [name for name in names if name not in ("epoch", "step", "loss")]
    losses = [name for name in scores if "loss" in name.lower()]
    others = [name for name in scores if name not in losses]
    shares = [n for n in others if all(0 <= e[n] <= 1 for e in epochs if n in e and math.isfinite(e[n]))]
    panels = [shares] if shares else []
    return losses, panels + [[name] for name in others if name not in shares]


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def _draw_losses(
    axes: Any, steps: Sequence[tuple[int, float]], epochs: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
    drawn: list[float] = []
    if steps:
        x, y = np.array(steps, np.float64).T
        drawn += y.tolist()
        _draw_steps(axes, x, y)
    ends = [epoch["step"] for epoch in epochs]
    # A mean is that of the epoch's middle, a score that of its end.
    middles = [(a + b) / 2 for a, b in zip([0, *ends], ends, strict=False)]
    for name in ["loss", *names]:
        at = middles if name == "loss" else ends
        points = [(x, e[name]) for x, e in zip(at, epochs, strict=True) if _is_number(e.get(name))]
        if points and (len(points) > 1 or name != "loss"):
            drawn += [y for _, y in points]
            label = "mean of the epoch" if name == "loss" else name
            axes.plot(*zip(*points, strict=True), label=label, **_markers(points))
    finite = [y for y in drawn if math.isfinite(y)]
    if finite and min(finite) > 0 and max(finite) > _LOGARITHMIC * min(finite):
        axes.set_yscale("log")
    axes.set(title="Loss", xlabel="step", ylabel="loss")
    _whole_numbers(axes)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)


def _draw_steps(axes: Any, x: NDArray[Any], y: NDArray[Any]) -> None:
    """Draw the losses of steps; of many the mean and the range of each block."""
    colour = "#7fa8cf"
    if len(x) <= _MOST_POINTS:
        marker = "." if len(x) <= 30 else None
        axes.plot(x, y, color=colour, linewidth=1, marker=marker, label="step")
        return
    middles, means, lows, highs = [], [], [], []
    size = -(-len(x) // _MOST_POINTS)
    for part in np.split(np.arange(len(x)), range(size, len(x), size)):
        values = y[part][np.isfinite(y[part])]
        if values.size:
            middles.append(x[part].mean())
            means.append(values.mean())
            lows.append(values.min())
            highs.append(values.max())
    axes.fill_between(middles, lows, highs, color=colour, alpha=0.35, linewidth=0, label="range of the steps")
    axes.plot(middles, means, color="#5b8db8", linewidth=1, label=f"mean of {size} steps")


def _draw_scores(axes: Any, epochs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        points = [(e.get("epoch", k), e[name]) for k, e in enumerate(epochs, 1) if _is_number(e.get(name))]
        axes.plot(*zip(*points, strict=True), label=name, **_markers(points))
    single = len(names) == 1
    axes.set(title=names[0] if single else "Scores", xlabel="epoch", ylabel=names[0] if single else "score")
    _whole_numbers(axes)
    if not single:
        axes.legend(frameon=False)


def _markers(points: Sequence[Any]) -> dict[str, Any]:
    """Return the options of a line: markers, where they do not overlap."""
    return {"marker": "o", "markersize": 4} if len(points) <= _MOST_MARKERS else {}


def _whole_numbers(axes: Any) -> None:
    """Label only whole numbers of steps or epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


# ---- confusion matrices
def plot_confusion(counts: NDArray[Any], labels: Sequence[Any] | None = None, ax: Any = None) -> Any:
    """Draw counts [true class, predicted class], coloured by their share of the true class; return the axes.

    labels: a name for each class, else ValueError.  ax: where to draw; None for a new figure.
    """
    n = len(counts)
    if labels is not None and len(labels) != n:
        raise ValueError(
            f"ConfusionMatrix.plot: labels has {len(labels)} names, expected {n}, one for each class"
        )
    names = [_shortened(str(x)) for x in (range(n) if labels is None else labels)]
    longest = max(map(len, names), default=0)
    # In inches: of the matrix, of one of its cells, and of the longest name.
    side = min(max(0.55 * n, 2.4), 8.6)
    cell, room = side / max(n, 1), _CHARACTER * longest
    steep = n > 12 or room > cell
    plt = pyplot()
    if ax is None:
        width, height = side + room + 2.0, side + (room if steep else 0.1) + 0.9
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    # Of the axes, the colour bar takes a part; a letter is about 6.5 points wide.
    extent = ax.get_window_extent()
    steep = steep or 6.5 * longest * n > 72 / ax.figure.dpi * 0.8 * min(extent.width, extent.height)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label="share of the true class")
    if n <= _MOST_COUNTS:
        # A digit is 0.6 of the font's size wide, and an inch has 72 points.
        size = min(10.0, 0.85 * 72 * cell / (0.6 * len(f"{counts.max():,}")))
        for true, predicted in _pairs(n):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            text = f"{counts[true, predicted]:,}"
            ax.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=size)
    every = range(0, n, -(-n // _MOST_NAMES))
    ax.set_xticks(every, [names[k] for k in every], rotation=90 if steep else 0)
    ax.set_yticks(every, [names[k] for k in every])
    total = int(counts.sum())
    right = int(np.trace(counts)) / max(total, 1)
    ax.set(xlabel="predicted class", ylabel="true class", title=f"{right:.1%} of {total:,} right")
    ax.grid(False)
    return ax


def _shortened(name: str) -> str:
    """Return a class's name, in which an ellipsis replaces the middle of a long one."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[1 - _LONGEST // 2 :]}"


def _pairs(n: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(n) for b in range(n))
