"""What training shows and keeps of itself: the history of losses and scores, the progress bar."""

from __future__ import annotations

import sys
from typing import Any


class History:
    """Losses of all steps and scores of all epochs, written by `Trainer.fit(history=...)`.

    steps: (step, loss) of every step.  epochs: one dict an epoch, with "epoch" from 1, "step", "loss" (the
    mean of its steps') and the scores of `validate`. A history that is used again goes on.
    begun: how many steps there were when the current epoch began.
    """

    def __init__(self) -> None:
        """Start without any."""
        self.steps: list[tuple[int, float]] = []
        self.epochs: list[dict[str, Any]] = []
        self.begun = 0

    def add_step(self, step: int, loss: float) -> None:
        """Take the loss of a step."""
        self.steps.append((step, loss))

    def end_epoch(self, step: int, scores: dict[str, Any]) -> None:
        """Take the scores after an epoch, which ended with a step."""
        losses = [loss for _, loss in self.steps[self.begun :]]
        self.begun = len(self.steps)
        mean = sum(losses) / len(losses) if losses else float("nan")
        self.epochs.append({"epoch": len(self.epochs) + 1, "step": step, "loss": mean, **scores})

    def restore(self, steps: list[tuple[int, float]], epochs: list[dict[str, Any]], begun: int) -> None:
        """Become what a checkpoint has."""
        self.steps[:], self.epochs[:], self.begun = steps, epochs, begun


class Progress:
    """A bar on stderr, drawn after the first step, which may compile and say so on its own line."""

    def __init__(self, wanted: bool | None, done: int, total: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._done, self._total = done, total
        self._bar: Any = None

    def __enter__(self) -> Progress:
        """Begin without a bar."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float, count: int) -> None:
        """Show that a step took `count` elements."""
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
