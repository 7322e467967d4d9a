"""The history of losses and scores."""

from __future__ import annotations

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
