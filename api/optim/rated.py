"""Learning rates that change from outside of the optimizer: by callbacks of `Trainer.fit`."""

from __future__ import annotations

from collections.abc import Callable


class RatedStep(int):
    """The number of a step that has another learning rate than the optimizer's schedule says.

    A program takes the number by value, and the rate with it, so that another rate needs no other program.

    learning_rate: the rate of the schedule -> that of the step.
    """

    learning_rate: Callable[[float], float]

    def __new__(cls, step: int, learning_rate: Callable[[float], float]) -> RatedStep:
        """Return the number of a step."""
        number = super().__new__(cls, step)
        number.learning_rate = learning_rate
        return number

    def __add__(self, other: int) -> RatedStep:
        """Return a later step with the same learning rate."""
        return RatedStep(int(self) + other, self.learning_rate)


def adjusted_rate(step: int, rate: float) -> float:
    """Return the learning rate of a step, where the schedule says `rate`."""
    return step.learning_rate(rate) if isinstance(step, RatedStep) else rate
