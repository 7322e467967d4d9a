"""Training: a model and an optimizer, and the loop around them.

Read here first: `Trainer._step` is a training step of the whole library, in five lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from treepie.autodiff import Tensor, float32, ops, ptree, rng, value_and_grad_aux
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.transform import compilations

from . import optim
from .data import Data, check_not_empty
from .layer import Context, Layer, Vars
from .metric import Metric

Loss = Callable[[Any], Tensor]
Report = Callable[[int, float, "TrainState"], Any]


class EarlyStop(Exception):
    """Raised in `report` to end training."""


@dataclass(frozen=True)
class TrainState:
    """Where training stands: the model's variables, the optimizer's state, the steps taken."""

    vars: Vars
    opt_state: optim.OptState
    step: int


class Trainer:
    """Trains a model with an optimizer. It holds no state: methods take one and return the next."""

    def __init__(self, model: Layer, optimizer: optim.Optimizer) -> None:
        """Take a model and an optimizer, such as tp.optim.adam(1e-3)."""
        if not isinstance(model, Layer):
            raise TypeError(f"Trainer: model is a {type(model).__name__}, expected a Layer")
        if not isinstance(optimizer, optim.Optimizer):
            given = type(optimizer).__name__
            raise TypeError(f"Trainer: optimizer is a {given}, expected one of tp.optim")
        self.model, self.optimizer = model, optimizer

    def init(self, rngs: Tensor, dtype: Any = float32) -> TrainState:
        """Return the state of a new model. rngs: a key.  dtype: float32 or float64."""
        return self.make_state(self.model.init(rngs, dtype))

    def make_state(self, vars: Vars) -> TrainState:
        """Return a fresh state around given variables, such as loaded weights."""
        return TrainState(vars, self.optimizer.init(vars.params), 0)

    def step(
        self,
        st: TrainState,
        x: Any,
        loss: Loss,
        training: bool = True,
        rngs: Tensor | None = None,
        ctx: Context | None = None,
    ) -> tuple[Tensor, TrainState]:
        """Return the loss of one batch, and the state after one step of the optimizer.

        x: the model's input.  loss: the model's output -> a scalar.
        rngs: the key of this step, which dropout draws from.
        """
        return self._step(st, x, loss, training, rngs, ctx, None)

    def _step(
        self,
        st: TrainState,
        x: Any,
        loss: Loss,
        training: bool,
        rngs: Tensor | None,
        ctx: Context | None,
        clip_norm: float | None,
    ) -> tuple[Tensor, TrainState]:
        def objective(params: Any) -> tuple[Tensor, Any]:
            out, vars = self.model.apply(st.vars.with_params(params), x, training, rngs, ctx)
            return loss(out), vars.state

        with compilations.watch():
            value, grads, state = value_and_grad_aux(objective)(st.vars.params)
            if clip_norm is not None:
                grads = optim.clip_by_global_norm(clip_norm, grads)
            params, opt_state = self.optimizer.update(st.opt_state, st.vars.params, grads)
        return value, TrainState(Vars(params, state, st.vars.dtype), opt_state, st.step + 1)

    def fit(
        self,
        st: TrainState,
        data: Data,
        rngs: Tensor | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        report: Report | None = None,
        epochs: int = 1,
        progress: bool | None = None,
        clip_norm: float | None = None,
    ) -> TrainState:
        """Return the state after a step for each element of the data, `epochs` times over.

        data: elements (input, loss_fn); with `loss`, a function of (output, target), elements
            (input, target).
        rngs: a key, into which the number of each step is folded; dropout needs it.
        report: called after every step with its number from 1, its loss, and the state after it;
            `raise tp.EarlyStop` inside it ends training.
        progress: whether to show a bar; None shows it on a terminal.
        clip_norm: the largest global norm of the gradients; larger ones are scaled down.

        Ctrl-C ends training too, and is raised again with the current state as its `state`.
        """
        check_not_empty("Trainer.fit", data)
        if integer("Trainer.fit", "epochs", epochs) < 1:
            raise ValueError(f"Trainer.fit: epochs is {epochs}, expected at least 1")
        total = len(data) * epochs
        with _Progress(progress, data.position, total) as bar:
            try:
                for epoch in range(epochs):
                    if epoch:
                        data.reset()
                    for element in data:
                        x, objective = _example(element, loss)
                        key = None if rngs is None else rng.fold_in(rngs, st.step)
                        value, st = self._step(st, x, objective, True, key, None, clip_norm)
                        bar.advance(float(value))
                        if report is not None:
                            report(st.step, float(value), st)
            except EarlyStop:
                pass
            except KeyboardInterrupt as interrupt:
                interrupt.state = st  # type: ignore[attr-defined]
                raise
        return st

    def predict(
        self, st: TrainState, x: Any, ctx: Context | None = None, batch_size: int | None = None
    ) -> Any:
        """Return the model's output in evaluation mode.

        batch_size: run so many rows at a time, for large inputs (memory-mapped ones too); tensors
            of `ctx` whose first axis is as long as the input's are cut alike.
        """
        if batch_size is None:
            return self.model.apply(st.vars, x, ctx=ctx)[0]
        size = integer("Trainer.predict", "batch_size", batch_size)
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in _arrays(x)}
        if size < 1 or len(lengths) != 1 or not (length := lengths.pop()):
            shapes = " and ".join(str(leaf.shape) for leaf in _arrays(x))
            raise ValueError(
                f"Trainer.predict: batch_size is {batch_size} and x has shape {shapes}, expected "
                "at least 1, and one length that is not 0"
            )
        outputs = []
        for k in range(0, length, size):
            rows = slice(k, k + size)
            part = None if ctx is None else Context(_cut(ctx.values, length, rows))
            outputs.append(self.model.apply(st.vars, _sliced(x, rows), ctx=part)[0])
        return ptree.map(lambda *ys: ops.concatenate(ys), *outputs)

    def evaluate(self, st: TrainState, data: Data, metrics: Mapping[str, Metric]) -> dict[str, Any]:
        """Return the score of each metric over the whole data, in evaluation mode.

        data: elements (input, target).  metrics: name -> accumulator; each is reset first.
        """
        check_not_empty("Trainer.evaluate", data)
        for metric in metrics.values():
            metric.reset()
        for element in data:
            x, target = _two("Trainer.evaluate", element)
            out = self.predict(st, x)
            for metric in metrics.values():
                metric.update(out, target)
        return {name: metric.compute() for name, metric in metrics.items()}


def _two(function: str, element: Any) -> tuple[Any, Any]:
    if not isinstance(element, tuple) or len(element) != 2:
        given = f"tuple of {len(element)}" if isinstance(element, tuple) else type(element).__name__
        raise TypeError(f"{function}: an element of data is a {given}, expected a tuple of 2")
    return element


def _example(element: Any, loss: Callable[[Any, Any], Tensor] | None) -> tuple[Any, Loss]:
    """Return an input and a function of the output."""
    x, second = _two("Trainer.fit", element)
    if loss is not None:
        if callable(second):
            raise TypeError(
                "Trainer.fit: an element of data holds a function and loss is given, expected one of the two"
            )
        return x, lambda out: loss(out, second)
    if not callable(second):
        raise TypeError(
            f"Trainer.fit: an element of data is (input, {type(second).__name__}), expected "
            "(input, loss_fn), or (input, target) with loss="
        )
    return x, second


def _arrays(x: Any) -> list[Any]:
    """Return the tensors or arrays of an input."""
    if isinstance(x, tuple | dict):
        return list(ptree.leaves(x))
    return [x if hasattr(x, "shape") else as_tensor(x)]


def _sliced(x: Any, rows: slice) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: leaf[rows], x)
    return x[rows]


def _cut(values: Mapping[str, Tensor], length: int, rows: slice) -> dict[str, Tensor]:
    return {name: t[rows] if t.ndim and t.shape[0] == length else t for name, t in values.items()}


class _Progress:
    """A bar on stderr, drawn after the first step, which may compile and say so on its own line."""

    def __init__(self, wanted: bool | None, done: int, total: int) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._done, self._total = done, total
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, loss: float) -> None:
        if not self._wanted:
            return
        self._done += 1
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, initial=self._done, unit=" steps", file=sys.stderr)
        else:
            self._bar.update()
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
