"""Callbacks of `Trainer.fit(callbacks=[...])`, and the search for a learning rate.

A callback is an object with some of these methods:

- `on_begin(resumed, st)`, before the first step. resumed: whether its `state` is that of a checkpoint.
- `on_step(step, loss, st)`, after each step, as `report`.
- `on_epoch(epoch, scores, st)`, after an epoch, counted from 1, before the next step and the checkpoint.
  scores: "loss", the mean over the epoch's steps, and those of `validate`.
- `on_end(st)`, after the last step; it may return the state that `fit` returns instead.
- `learning_rate(rate)`, which returns the learning rate of the next step; rate: the optimizer's.

Each but the last two may raise `tp.EarlyStop` to end training, on all ranks. An attribute `state` (numbers,
texts, tensors, training states, and lists, tuples and dicts of them) is saved in checkpoints, and is set by
`fit(resume=True)`. An attribute `rank` is set to the rank; each rank has callbacks of its own, and rank 0
writes files.

>>> import treepie as tp
>>> class Print:
...     def on_epoch(self, epoch, scores, st):
...         print(epoch, sorted(scores))
>>> trainer = tp.Trainer(tp.layer.linear(1, 1), tp.optim.sgd(0.1))
>>> data = tp.Data.prepare((tp.ones((4, 1)), tp.zeros((4, 1))), batch_size=2)
>>> st = trainer.fit(trainer.init(tp.rng.key(0)), data, loss=tp.loss.mse, epochs=2, callbacks=[Print()])
1 ['loss']
2 ['loss']
"""

from ..namespace import public_names as _public_names
from .average import ema as ema
from .finder import LearningRates as LearningRates, lr_finder as lr_finder
from .logs import csv as csv, tensorboard as tensorboard
from .plateau import reduce_on_plateau as reduce_on_plateau
from .stopping import best as best, early_stopping as early_stopping

__all__ = _public_names(globals())


def __dir__() -> list[str]:
    return __all__
