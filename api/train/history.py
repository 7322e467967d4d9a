"""The history of losses and scores, and the progress bar."""

from __future__ import annotations

import sys
from typing import Any


class History:
    """Losses of all steps and scores of all epochs, filled by `Trainer.fit(history=...)`.

    steps: (step, loss) of every step.  epochs: a dict for each epoch, with "epoch" from 1, "step", "loss"
    (the mean over its steps) and the scores of `validate`.  begun: number of steps when the current epoch
    began.

    A history that is passed to another `fit` continues.

    >>> import treepie as tp
    >>> history = tp.History()
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1))
    >>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=2)
    >>> st = trainer.fit(trainer.init(rngs=tp.rng.key(0)), data, loss=tp.loss.mse, history=history)
    >>> [step for step, loss in history.steps], [epoch["epoch"] for epoch in history.epochs]
    ([1, 2], [1])
    """

    def __init__(self) -> None:
        """Begin without any."""
        self.steps: list[tuple[int, float]] = []
        self.epochs: list[dict[str, Any]] = []
        self.begun = 0

    def add_step(self, step: int, loss: float) -> None:
        """Add the loss of a step."""
        self.steps.append((step, loss))

    def end_epoch(self, step: int, scores: dict[str, Any]) -> None:
        """Add the scores of an epoch that ended with this step."""
        losses = [loss for _, loss in self.steps[self.begun :]]
        self.begun = len(self.steps)
        mean = sum(losses) / len(losses) if losses else float("nan")
        self.epochs.append({"epoch": len(self.epochs) + 1, "step": step, "loss": mean, **scores})

    def restore(self, steps: list[tuple[int, float]], epochs: list[dict[str, Any]], begun: int) -> None:
        """Restore the history of a checkpoint."""
        self.steps[:], self.epochs[:], self.begun = steps, epochs, begun


class Progress:
    """A bar on stderr, drawn after the first step, which may print a line about compilation."""

    def __init__(self, wanted: bool | None, done: int, total: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._done, self._total = done, total
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Return self; the bar is drawn later."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float, count: int) -> None:
        """Advance by the elements of a step, and show its loss."""
        if not self._wanted:
            return
        self._done += count
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit=" steps", file=sys.stderr)
        else:
            self._bar.update(count)
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    def note(self, scores: dict[str, Any]) -> None:
        """Print a line of scores above the bar."""
        if self._bar is None or not scores:
            return
        shown = [f"{k}: {v:.4f}" if isinstance(v, float) else f"{k}: {v}" for k, v in scores.items()]
        self._bar.write("  ".join(shown), file=sys.stderr)
