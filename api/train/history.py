"""The history of losses and scores."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from treepie.autodiff import Tensor, tensor

from ..checkpoint.checkpoint import Store, path_of
from ..display import cut, html_table, number_text
from ..errors import no_attribute
from ..plot import plot_history

#: What there is instead of Keras' `history.history`.
_INSTEAD = 'history.steps, of (step, loss), or history.epochs, of dicts: history.epochs[-1]["loss"]'

#: Epochs that a notebook shows, the last ones.
_MOST_EPOCHS = 30


class History:
    """Losses of all steps and scores of all epochs, filled by `Trainer.fit(history=...)`.

    steps: (step, loss) of every step.  epochs: a dict for each epoch, with "epoch" from 1, "step", "loss"
    (the mean over its steps) and the scores of `validate`.  begun: number of steps when the current epoch
    began.  file: where `fit` saves it when it ends, such as "run/history.jsonl"; see `save`.

    A history that is passed to another `fit` continues.

    >>> import treepie as tp
    >>> history = tp.History()
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1))
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=2)
    >>> st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.mse, history=history)
    >>> [step for step, loss in history.steps], [epoch["epoch"] for epoch in history.epochs]
    ([1, 2], [1])
    """

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        """Begin without any."""
        self.file = None if file is None else path_of("History", file, "file")
        self.steps: list[tuple[int, float]] = []
        self.epochs: list[dict[str, Any]] = []
        self.begun = 0

    if not TYPE_CHECKING:  # type checkers know the attributes

        def __getattr__(self, name: str) -> NoReturn:
            """Raise AttributeError, with what to use for an attribute of Keras' History."""
            message = f"'History' object has no attribute {name!r}"
            known = name in ("history", "losses", "metrics", "scores")
            raise no_attribute(f"{message}, expected {_INSTEAD}") if known else AttributeError(message)

        def __getitem__(self, name: Any) -> NoReturn:
            """Raise TypeError, with what to use."""
            raise TypeError(f"History: there is no item {name!r}, expected {_INSTEAD}")

    def __repr__(self) -> str:
        """Show the numbers of epochs and steps, the last loss and the scores of the last epoch."""
        shown = [f"epochs={len(self.epochs)}", f"steps={len(self.steps)}"]
        if self.steps:
            shown.append(f"loss={number_text(self.steps[-1][1])}")
        if self.epochs:
            scores = {k: v for k, v in self.epochs[-1].items() if k not in ("epoch", "step", "loss")}
            shown += [f"{k}={number_text(v)}" for k, v in scores.items()]
        return cut(f"History({', '.join(shown)})")

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for epoch in self.epochs for name in epoch))
        rows = [[number_text(e[n]) if n in e else "" for n in names] for e in self.epochs[-_MOST_EPOCHS:]]
        return html_table(names, rows, numbers=range(len(names))) if rows else html_table([], [[repr(self)]])

    def plot(self) -> NDArray[Any]:
        """Draw losses by step and scores by epoch, in a new figure of matplotlib.

        Returns an array of its axes, as `matplotlib.pyplot.subplots` does: losses first, then scores.
        `axes[0].figure.savefig("curves.png")` writes it, `matplotlib.pyplot.show()` opens a window.

        Raises ImportError without matplotlib, ValueError for a history without steps and epochs.

        >>> import treepie as tp
        >>> history = tp.History()
        >>> history.add_step(1, 0.5)
        >>> axes = history.plot()  # doctest: +SKIP
        """
        if not self.steps and not self.epochs:
            raise ValueError(
                "History.plot: there are no steps and no epochs yet (pass it to fit(history=...))"
            )
        return plot_history(self.steps, self.epochs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of JSON lines: one for each step and each epoch, in their order.

        path: replaced if it exists; its folder is created. Lines are {"step": 1, "loss": 0.5} and, with the
            scores, {"epoch": 1, "step": 10, "loss": 0.4}; `python -m treepie plot` draws them.

        >>> import tempfile
        >>> import treepie as tp
        >>> history = tp.History()
        >>> history.add_step(1, 0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history.save(f"{folder}/history.jsonl")
        ...     tp.History.load(f"{folder}/history.jsonl").steps
        [(1, 0.5)]
        """
        steps = [(step, 0, {"step": step, "loss": loss}) for step, loss in self.steps]
        epochs = [(e["step"], 1, plain_scores(e)) for e in self.epochs]
        lines = [json.dumps(line) for *_, line in sorted(steps + epochs, key=lambda entry: entry[:2])]
        target = Path(path)
        if target.is_dir():
            raise IsADirectoryError(
                f"History.save: {target} is a folder, expected a file: {target / 'history.jsonl'}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex}")  # a reader sees the whole file or none
        try:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> History:
        """Return the history of a file of `save` or `tp.callback.csv`, or of a folder of checkpoints.

        A file of `tp.callback.csv` has the scores of epochs, and no losses of steps.

        Raises FileNotFoundError without a file or checkpoint, ValueError, with the line, for other content.
        """
        history = History()
        if os.path.isdir(path):
            entry = Store("History.load", path).newest()
            if entry is None or "fit" not in entry.training():
                raise FileNotFoundError(f"History.load: {os.fspath(path)} has no checkpoint of Trainer.fit")
            notes, arrays = entry.training()["fit"], entry.arrays()
            steps, losses = (arrays[f"history.{k}"].tolist() for k in ("steps", "losses"))
            scores = [restored_scores(epoch) for epoch in notes["scores"]]
            history.restore(list(zip(steps, losses, strict=True)), scores, notes["begun"])
            return history
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"History.load: {os.fspath(path)} does not exist, expected a file of History.save or "
                "tp.callback.csv, or a folder of checkpoints"
            )
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            if file.readline().startswith("epoch,step,"):
                file.seek(0)
                return _of_csv(history, path, file)
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    if "epoch" in entry:
                        history.epochs.append(restored_scores(entry))
                        history.begun = len(history.steps)
                    else:
                        history.add_step(int(entry["step"]), float(entry["loss"]))
                except (ValueError, TypeError, KeyError):
                    raise ValueError(
                        f"History.load: line {number} of {os.fspath(path)} is {cut(line, 60)!r}, expected "
                        '{"step": ..., "loss": ...} or {"epoch": ..., "step": ..., "loss": ...}, as '
                        "History.save writes them"
                    ) from None
        return history

    def add_step(self, step: int, loss: float) -> None:
        """Add the loss of a step."""
        self.steps.append((step, loss))

    def add_steps(self, step: int, losses: Sequence[float]) -> None:
        """Add the losses of steps that follow one another, all or none. step: the number of the first."""
        self.steps.extend(zip(range(step, step + len(losses)), losses, strict=True))

    def end_epoch(self, step: int, scores: dict[str, Any]) -> None:
        """Add the scores of an epoch that ended with this step."""
        losses = [loss for _, loss in self.steps[self.begun :]]
        self.begun = len(self.steps)
        mean = sum(losses) / len(losses) if losses else float("nan")
        self.epochs.append({"epoch": len(self.epochs) + 1, "step": step, "loss": mean, **scores})

    def restore(self, steps: list[tuple[int, float]], epochs: list[dict[str, Any]], begun: int) -> None:
        """Restore the history of a checkpoint."""
        self.steps[:], self.epochs[:], self.begun = steps, epochs, begun


def _of_csv(history: History, path: str | os.PathLike[str], file: TextIO) -> History:
    """Add the epochs of a file of `tp.callback.csv` to a history, and return it."""
    reader = csv.DictReader(file)
    for row in reader:
        try:
            epoch, step, *scores = row.items()
            numbers = {name: int(text) for name, text in (epoch, step)}
            history.epochs.append(numbers | {name: _number(text) for name, text in scores})
        except (ValueError, TypeError):
            raise ValueError(
                f"History.load: line {reader.line_num} of {os.fspath(path)} is no row of an epoch, as "
                "tp.callback.csv writes them"
            ) from None
    return history


def _number(text: str) -> float | str:
    """Return a score as a number, or as text where it is none, such as a confusion matrix."""
    try:
        return float(text)
    except ValueError:
        return text


def plain_scores(epoch: dict[str, Any]) -> dict[str, Any]:
    """Return an epoch's scores as values that JSON can hold."""
    return {name: _plain(score) for name, score in epoch.items()}


def _plain(score: Any) -> Any:
    if isinstance(score, Tensor | np.ndarray):
        return {"tensor": score.tolist(), "dtype": score.dtype.name}
    return score.item() if isinstance(score, np.generic) else score


def restored_scores(epoch: dict[str, Any]) -> dict[str, Any]:
    """Return the scores that `plain_scores` was called with."""
    return {name: _score(plain) for name, plain in epoch.items()}


def _score(plain: Any) -> Any:
    if isinstance(plain, dict) and plain.keys() == {"tensor", "dtype"}:
        return tensor(np.array(plain["tensor"], plain["dtype"]))
    return plain
