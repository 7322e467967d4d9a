"""The progress of a `fit` on stderr: a bar on a terminal and in Jupyter, lines elsewhere."""

from __future__ import annotations

import math
import numbers
import sys
import time
from collections.abc import Mapping
from typing import Any

from treepie.kernels.compilations import compilations

from .history import History

#: Seconds between two looks at the clock: for the bar, and for lines.
_BAR, _LINES = 0.1, 1.0
#: Seconds between two lines of an epoch, and the least between those of two epochs where none are asked for.
_LONG, _SHORT = 30.0, 1.0
#: The bar, in falling width.
_WIDE = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_SMALL = _WIDE.replace("20", "10")
_NONE = "{desc} {percentage:3.0f}%{postfix}"


class Progress:
    """Shows the mean loss and samples a second of the epoch so far, the last scores and the remaining time.

    left: steps until the clock is read again: a step counts it down, and no more. Infinite if silent.
    """

    def __init__(self, wanted: bool | None, history: History, done: int, length: int, epochs: int) -> None:
        """Begin before the first step.

        wanted: None leaves out the lines of epochs that end within a second, where there is no bar.
        done, length: elements trained on, and of an epoch.
        """
        stream = sys.stderr
        silent = wanted is False or stream is None
        self.left: float = math.inf if silent else 1
        self._silent = silent
        self._draws = not silent and (stream.isatty() or type(stream).__module__.startswith("ipykernel"))
        self._interval = _BAR if self._draws else _LINES
        self._pause = 0.0 if wanted else _SHORT
        self._history, self._done, self._length, self._epochs = history, done, length, epochs
        self._first = done
        self._bar: Any = None
        self._begun = self._printed = time.monotonic()
        self._stride, self._rows = 1, 0
        self._scores = self._unprinted = ""
        self._any = False  # whether a line was printed

    def __enter__(self) -> Progress:
        """Return self; the bar is drawn after the first step, which may print a line about compilation."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar, or print the line of the last epoch."""
        if self._bar is not None:
            self._bar.close()
        elif self._any and self._unprinted:
            self._print(self._unprinted)

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 0."""
        if not self._silent:
            self._epoch = epoch
            self._sum, self._summed = 0.0, self._history.begun
            self._mark, self._marked = time.monotonic(), len(self._history.steps)
            self._rate = ""
            self._begin_rate(self._mark, self._marked)

    def tick(self, done: int, rows: int) -> None:
        """Read the clock, and show what is due.

        done: elements trained on.  rows: examples of the last step, on all ranks.
        """
        self._rows = max(self._rows, rows)  # the last batch may be a short one
        now = self._look()
        before, self._done = self._done, done
        if self._draws:
            self._draw(done - before)
        elif now - self._printed >= _LONG:
            left = (now - self._begun) / max(done - self._first, 1) * (self._length * self._epochs - done)
            self._print(f"{self._line()}  {_duration(left)} left")

    def end_epoch(self, done: int, scores: Mapping[str, Any]) -> None:
        """End an epoch. scores: of the validation."""
        if self._silent:
            return
        now = self._look()
        before, self._done = self._done, done
        self._scores = "  ".join(
            f"{name}: {score}" if isinstance(score, numbers.Integral) else f"{name}: {score:.4f}"
            for name, score in scores.items()
            if isinstance(score, numbers.Real)
        )
        line = self._line()
        if not self._draws:
            self._unprinted = line
            if now - self._printed >= self._pause:
                self._print(line)
        elif self._bar is not None:
            self._draw(done - before)
            if scores:
                self._bar.write(line, file=sys.stderr)  # above the bar, which it draws again

    def _look(self) -> float:
        """Return the time, and note the steps since it was read before."""
        now, steps = time.monotonic(), len(self._history.steps)
        count, seconds = steps - self._marked, max(now - self._mark, 1e-9)
        self._stride = max(1, min(2 * self._stride, int(count * self._interval / seconds)))
        self._mark, self._marked, self.left = now, steps, self._stride
        if steps <= 1:  # the first step may compile
            self._begin_rate(now, steps)
        elif self._rows and steps > self._counted:
            seconds = now - self._timed - (compilations.seconds - self._compiled)
            self._rate = f"{self._rows * (steps - self._counted) / max(seconds, 1e-9):,.0f} samples/s"
        return now

    def _begin_rate(self, now: float, steps: int) -> None:
        """Count steps and time from here on, but for the time of compilations."""
        self._timed, self._counted, self._compiled = now, steps, compilations.seconds

    def _mean_loss(self) -> float:
        steps = self._history.steps
        self._sum += sum(loss for _, loss in steps[self._summed :])
        self._summed = len(steps)
        count = len(steps) - self._history.begun
        return self._sum / count if count else math.nan

    def _texts(self) -> list[str]:
        return [t for t in (f"loss: {self._mean_loss():.4f}", self._scores, self._rate) if t]

    def _line(self) -> str:
        epoch = f"epoch {self._epoch + 1}/{self._epochs}"
        batch = self._done - self._epoch * self._length
        return "  ".join([epoch, f"batch {batch}/{self._length}", *self._texts()])

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._printed, self._unprinted, self._any = time.monotonic(), "", True

    def _draw(self, count: int) -> None:
        """Draw the bar, `count` elements further."""
        if self._bar is None:
            from tqdm import tqdm

            # A delay leaves out the empty bar that is drawn otherwise before there is a description.
            options = {"mininterval": 0, "miniters": 1, "dynamic_ncols": True, "delay": 1e-9}
            total, file = self._length * self._epochs, sys.stderr
            self._bar = tqdm(total=total, initial=self._done - count, file=file, **options)
        self._bar.set_description_str(f"epoch {self._epoch + 1}/{self._epochs}", refresh=False)
        self._bar.n += count
        self._fit_columns()
        self._bar.refresh()

    def _fit_columns(self) -> None:
        """Choose the widest bar and the most texts that the terminal has columns for."""
        bar, (loss, *others) = self._bar, self._texts()
        rate = [self._rate] if self._rate else []
        every = [loss, *others]
        forms = ((_WIDE, every), (_SMALL, every), (_SMALL, [loss, *rate]), (_SMALL, [loss]), (_NONE, [loss]))
        for bar.bar_format, texts in forms:
            bar.set_postfix_str(", ".join(texts), refresh=False)
            shape = bar.format_dict
            if not shape["ncols"] or len(bar.format_meter(**{**shape, "ncols": None})) <= shape["ncols"]:
                break


def _duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
