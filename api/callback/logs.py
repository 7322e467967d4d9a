"""Callbacks that write scores: to a CSV file, and for TensorBoard."""

from __future__ import annotations

import csv as csv_files
import io
import os
from pathlib import Path
from typing import Any

from treepie.autodiff.arguments import integer

from ..checkpoint.checkpoint import path_of
from ..train.state import TrainState


class CsvFile:
    """Writes a row for each epoch; `csv` constructs it.

    state: what checkpoints hold: the file's columns and its bytes at that time.
    rank: of this process, set by `fit`; rank 0 writes the file.
    """

    rank = 0

    def __init__(self, file: Path) -> None:
        self._file = file
        self.state: dict[str, Any] = {"bytes": 0, "columns": []}

    def __repr__(self) -> str:
        """Return the call that constructs it."""
        return f"csv({os.fspath(self._file)!r})"

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Begin an empty file, or cut off the rows after the checkpoint."""
        if self.rank:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        size = self._file.stat().st_size if self._file.exists() else 0
        if resumed and 0 < self.state["bytes"] <= size:
            os.truncate(self._file, self.state["bytes"])
            return
        self.state = {"bytes": 0, "columns": []}
        self._file.write_bytes(b"")

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Append a row."""
        if self.rank:
            return
        row = {"epoch": epoch, "step": st.step, **{name: _plain(score) for name, score in scores.items()}}
        text = io.StringIO()
        columns = self.state["columns"] or list(row)
        writer = csv_files.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        if not self.state["columns"]:
            writer.writeheader()
        writer.writerow(row)
        with self._file.open("ab") as stream:
            stream.write(text.getvalue().encode())
            self.state = {"bytes": stream.tell(), "columns": columns}


class TensorBoard:
    """Writes scalars for TensorBoard; `tensorboard` constructs it.

    rank: of this process, set by `fit`; rank 0 writes files.
    """

    rank = 0

    def __init__(self, directory: Path, every: int) -> None:
        self._directory, self._every = directory, every
        self._writer: Any = None

    def __repr__(self) -> str:
        """Return the call that constructs it."""
        return f"tensorboard({os.fspath(self._directory)!r}, every={self._every})"

    def on_begin(self, resumed: bool, st: TrainState) -> None:
        """Open the files; TensorBoard hides what was written after the checkpoint of a resumed run."""
        if not self.rank:
            options = {"purge_step": st.step + 1} if resumed else {}
            self._writer = _summary_writer()(str(self._directory), **options)

    def on_step(self, step: int, loss: float, st: TrainState) -> None:
        """Write the loss of some steps."""
        if step % self._every == 0 and not self.rank:
            self._writer.add_scalar("loss", loss, step)

    def on_epoch(self, epoch: int, scores: dict[str, Any], st: TrainState) -> None:
        """Write the scores that are numbers."""
        if self.rank:
            return
        for name, score in scores.items():
            if isinstance(score, int | float):
                self._writer.add_scalar(f"epoch_{name}", score, st.step)
        self._writer.flush()

    def on_end(self, st: TrainState) -> None:
        """Close the files."""
        if not self.rank:
            self._writer.close()


def csv(file: str | os.PathLike[str]) -> CsvFile:
    """Return a callback that writes a row of scores for each epoch to a CSV file.

    file: columns are epoch, step, loss and the scores of `validate`. A run begins it anew, except a resumed
        one, which continues after the rows that its checkpoint knows of.

    >>> import pathlib, tempfile, treepie as tp
    >>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.5))
    >>> data = tp.Data.prepare((tp.zeros((4, 1)), tp.zeros((4, 1))), batch_size=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = tp.callback.csv(folder + "/scores.csv")
    ...     st = trainer.init(tp.rng.key(0))
    ...     st = trainer.fit(st, data, loss=tp.loss.mse, epochs=2, callbacks=[rows])
    ...     print(pathlib.Path(folder, "scores.csv").read_text(), end="")
    epoch,step,loss
    1,2,0.0
    2,4,0.0
    """
    return CsvFile(path_of("callback.csv", file, "file"))


def tensorboard(directory: str | os.PathLike[str], every: int = 50) -> TensorBoard:
    """Return a callback that writes losses and scores for TensorBoard, with tensorboardX.

    directory: a folder for each run.  every: steps between two losses, at least 1. Scores of epochs have the
        names "epoch_loss" and "epoch_" with those of `validate`.

    Raises ModuleNotFoundError if tensorboardX is not installed: `pip install "treepie[tensorboard]"`.

    >>> import treepie as tp
    >>> board = tp.callback.tensorboard("runs/first")  # see it by: tensorboard --logdir runs
    """
    integer("callback.tensorboard", "every", every, least=1)
    folder = path_of("callback.tensorboard", directory, "directory")
    _summary_writer()
    return TensorBoard(folder, every)


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ModuleNotFoundError(
            'callback.tensorboard: tensorboardX is not installed, run pip install "treepie[tensorboard]"'
        ) from None
    return SummaryWriter


def _plain(score: Any) -> Any:
    return score.tolist() if hasattr(score, "tolist") else score
