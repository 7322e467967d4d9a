"""Training: a model and an optimizer, and the loop around them.

Read here first: `Trainer._gradient` and `_updated` are a training step of the whole library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from treepie.autodiff import Tensor, float32, ops, ptree, rng, value_and_grad_aux
from treepie.autodiff.arguments import as_tensor, integer
from treepie.autodiff.transform import compilations

from . import optim
from .checkpoint import Every
from .data import Data, check_data, check_not_empty
from .distributed import Communicator, check_communicator
from .history import History, Progress
from .layer import Context, Layer, Vars
from .metric import Metric
from .resume import Run
from .state import TrainState

Loss = Callable[[Any], Tensor]
Report = Callable[[int, float, TrainState], Any]
Validation = tuple[Data, Mapping[str, Metric]]


class EarlyStop(Exception):
    """Raised in `report` to end training."""


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
        with compilations.watch():
            value, grads, state = self._gradient(st, x, loss, training, rngs, ctx)
            flat = self.optimizer.flat(st.opt_state, st.vars.params, grads)
            return value, self._updated(st, flat, state)

    def _gradient(
        self,
        st: TrainState,
        x: Any,
        loss: Loss,
        training: bool,
        rngs: Tensor | None,
        ctx: Context | None,
    ) -> tuple[Tensor, Any, Any]:
        """Return the loss, its gradient, and the model's state after the call."""

        def objective(params: Any) -> tuple[Tensor, Any]:
            out, vars = self.model.apply(st.vars.with_params(params), x, training, rngs, ctx)
            return loss(out), vars.state

        return value_and_grad_aux(objective)(st.vars.params)

    def _updated(self, st: TrainState, flat: list[Tensor], state: Any) -> TrainState:
        params, opt_state = self.optimizer.update_flat(st.opt_state, st.vars.params, flat)
        return TrainState(Vars(params, state, st.vars.dtype), opt_state, st.step + 1)

    def fit(
        self,
        st: TrainState,
        data: Data,
        rngs: Tensor | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        report: Report | None = None,
        epochs: int = 1,
        validate: Validation | None = None,
        progress: bool | None = None,
        clip_norm: float | None = None,
        accumulate_steps: int = 1,
        checkpoint: Every | None = None,
        resume: bool = False,
        history: History | None = None,
        on_nonfinite: str = "raise",
        comm: Communicator | None = None,
    ) -> TrainState:
        """Return the state after training on the data, `epochs` times over.

        data: elements (input, loss_fn); with `loss`, a function of (output, target), elements
            (input, target).
        rngs: a key, into which the number of each step is folded; dropout needs it.
        report: called after every step with its number from 1, its loss, and the state after it;
            `raise tp.EarlyStop` inside it ends training.
        validate: (data, metrics) for `evaluate` after each epoch; the scores go to the history, and to
            stderr where a bar is shown.
        progress: whether to show a bar; None shows it on a terminal.
        clip_norm: the largest global norm of the gradients; larger ones are scaled down.
        accumulate_steps: how many elements make one step. Their gradients are averaged, weighted by how
            many examples each has: a step is that of one big batch, where the loss is a mean over
            examples. The last step of an epoch takes what is left.
        checkpoint: `tp.checkpoint.every(steps, directory)`: when and where to write checkpoints.
        resume: whether to go on from the last checkpoint there, if there is one, in the middle of an epoch
            too: with the same arguments, the result has the same bits as if nothing had happened. `st` gives
            the structure alone; the place in the data, the key and the history are the checkpoint's.
        history: where losses and scores are written.
        on_nonfinite: what to do where a loss or a gradient is NaN or infinite, before the state is touched:
            "raise" FloatingPointError, or "skip" the step with a warning.
        comm: `tp.distributed.world()`.

        Ctrl-C ends training too, and is raised again; any exception has the last good state as `state`.
        """
        for argument, count in (("epochs", epochs), ("accumulate_steps", accumulate_steps)):
            if integer("Trainer.fit", argument, count) < 1:
                raise ValueError(f"Trainer.fit: {argument} is {count}, expected at least 1")
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"Trainer.fit: on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
        if comm is not None:
            check_communicator("Trainer.fit", comm)
        if validate is not None:
            _rewind(_two("Trainer.fit, validate", validate)[0])
        run = Run(self.optimizer.name, data, history, rngs, checkpoint)
        st = run.begin(st, resume)
        window = _Window(self, loss, run.rngs, clip_norm, on_nonfinite, accumulate_steps)
        return self._run(st, run, epochs, window, report, validate, progress)

    def _run(
        self,
        st: TrainState,
        run: Run,
        epochs: int,
        window: _Window,
        report: Report | None,
        validate: Validation | None,
        progress: bool | None,
    ) -> TrainState:
        """Return the state after the epochs that are left."""
        with Progress(progress, run.done, len(run.data) * epochs) as bar:
            try:
                with contextlib.suppress(EarlyStop):
                    for _ in run.epochs(epochs):
                        elements = iter(run.data)
                        while batches := list(itertools.islice(elements, window.size)):
                            value, st = window.step(st, batches)
                            bar.advance(value, len(batches))
                            run.history.add_step(st.step, value)
                            if report is not None:
                                report(st.step, value, st)
                            run.after_step(st)
                        run.history.end_epoch(st.step, self._scores(st, validate))
                        run.after_epoch(st)
                        bar.note(run.history.epochs[-1] if validate else {})
                run.finish(st)
            except BaseException as error:
                error.state = st  # type: ignore[attr-defined]
                raise
        return st

    def _scores(self, st: TrainState, validate: Validation | None) -> dict[str, Any]:
        if validate is None:
            return {}
        data, metrics = validate
        return self.evaluate(st, _rewind(data), metrics)

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


def _rewind(data: Any) -> Data:
    """Return validation data at the beginning of a pass; an epoch or a fit before has used it up."""
    if check_data("Trainer.fit, validate", data).position:
        data.reset()
    return check_not_empty("Trainer.fit, validate", data)


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


class _Window:
    """What makes one step of `fit`: some batches, whose gradients are averaged by their sizes."""

    def __init__(
        self,
        trainer: Trainer,
        loss: Callable[[Any, Any], Tensor] | None,
        rngs: Tensor | None,
        clip_norm: float | None,
        on_nonfinite: str,
        size: int,
    ) -> None:
        self.trainer, self.loss, self.rngs, self.clip_norm = trainer, loss, rngs, clip_norm
        self.on_nonfinite, self.size = on_nonfinite, size

    def step(self, st: TrainState, batches: list[Any]) -> tuple[float, TrainState]:
        """Return the mean loss of the batches, and the state after one step on them."""
        with compilations.watch():
            value, grads, state = self._mean(st, batches)
            flat = self.trainer.optimizer.flat(st.opt_state, st.vars.params, grads)
            if not self._finite(st.step + 1, value, flat, grads):
                # The step is counted, so that the keys go on.
                return value, dataclasses.replace(st, step=st.step + 1)
            if self.clip_norm is not None:
                flat = optim.clip_by_global_norm(self.clip_norm, flat)
            return value, self.trainer._updated(st, flat, state)

    def _mean(self, st: TrainState, batches: list[Any]) -> tuple[float, Any, Any]:
        key = None if self.rngs is None else rng.fold_in(self.rngs, st.step)
        total, count, grads, state = 0.0, 0, None, st.vars.state
        for k, element in enumerate(batches):
            x, objective = _example(element, self.loss)
            own = rng.fold_in(key, k) if key is not None and len(batches) > 1 else key
            before = dataclasses.replace(st, vars=st.vars.with_state(state))
            value, slopes, state = self.trainer._gradient(before, x, objective, True, own, None)
            if len(batches) == 1:
                return value.item(), slopes, state
            size = _length(x)
            total, count = total + value.item() * size, count + size
            slopes = ptree.map(lambda g, n=size: g * float(n), slopes)
            grads = slopes if grads is None else ptree.map(lambda a, b: a + b, grads, slopes)
        return total / count, ptree.map(lambda g: g / float(count), grads), state

    def _finite(self, step: int, value: float, flat: list[Tensor], grads: Any) -> bool:
        """Whether a step may be taken; raise or warn where it may not."""
        what = f"the loss is {value}"
        if math.isfinite(value):
            norm = optim.global_norm(flat).item()
            if math.isfinite(norm):
                return True
            bad = [p for p, g in ptree.flatten_with_paths(grads) if not ops.all(ops.isfinite(g)).item()]
            what = f"the gradient of {', '.join(map(repr, bad)) or 'all'} is not finite"
        if self.on_nonfinite == "raise":
            raise FloatingPointError(
                f"Trainer.fit: {what} in step {step}; the state before it is this error's `state`. Lower the "
                "learning rate, set clip_norm, or leave such steps out with on_nonfinite='skip'"
            )
        warnings.warn(f"Trainer.fit: {what} in step {step}, which is skipped", RuntimeWarning, stacklevel=4)
        return False


def _length(x: Any) -> int:
    """Return how many examples an input has: the length of its first axis."""
    first = _arrays(x)[0]
    return int(first.shape[0]) if first.ndim else 1
