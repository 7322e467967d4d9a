"""Training: a model and an optimizer, and the loop around them.

Read here first: `Trainer._inline` is a training step in the plainest form; `steps.py` takes it as a program,
and `runner.py` one after another for `fit`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float32, ops, ptree, tape, value_and_grad_aux
from treepie.autodiff.arguments import integer
from treepie.autodiff.tensor import address_of
from treepie.autodiff.trace.active import tracing
from treepie.kernels.compilations import compilations

from .. import optim
from ..checkpoint.checkpoint import Every
from ..data.pipeline import Data, check_data, check_not_empty
from ..distributed import Communicator, check_communicator
from ..layer import Context, Layer, Vars
from ..metric.accumulators import Metric
from .history import History, Progress
from .inputs import StepInputs
from .predict import Outputs
from .run import Run
from .runner import StepRunner, arrays, two
from .state import Generation, TrainState, generation_of
from .steps import Steps

Loss = Callable[[Any], Tensor]
Report = Callable[[int, float, TrainState], Any]
Validation = tuple[Data, Mapping[str, Metric]]


class EarlyStop(Exception):
    """Raised in `report` to end training."""


class Trainer:
    """Trains a model with an optimizer. It holds no state: methods take one and return the next.

    It holds the programs of steps and predictions.
    """

    def __init__(self, model: Layer, optimizer: optim.Optimizer) -> None:
        """Take a model and an optimizer, such as tp.optim.adam(1e-3)."""
        if not isinstance(model, Layer):
            raise TypeError(f"Trainer: model is a {type(model).__name__}, expected a Layer")
        if not isinstance(optimizer, optim.Optimizer):
            given = type(optimizer).__name__
            raise TypeError(f"Trainer: optimizer is a {given}, expected one of tp.optim")
        self.model, self.optimizer = model, optimizer
        #: Programs of steps and of predictions.
        self.steps, self.outputs = Steps(model, optimizer), Outputs(model)

    def __reduce__(self) -> Any:
        """Return how to make it again, without programs, for pickle and copy."""
        return type(self), (self.model, self.optimizer)

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
        if (trace := tracing()) is not None and not trace.user:
            return self._inline(st, x, loss, training, rngs, ctx)
        with compilations.watch():
            at = generation_of(self.optimizer, st)
            out, tick = at.buffers.like(), np.zeros((), np.int64)
            given = StepInputs(
                at.buffers,
                out,
                at.count,
                at.state,
                at.dtype,
                x,
                loss,
                (),
                rngs,
                (),
                training,
                ctx,
                tick,
                address_of(tick),
            )
            given.checked = False
            outcome = self.steps.take(given, lambda state: None)
            after = Generation(
                outcome.buffers or out, at.moments, at.count + 1, at.step + 1, outcome.state, at.dtype
            )
            return Tensor(np.array(outcome.loss, outcome.dtype)), TrainState.of(after)

    def _inline(
        self,
        st: TrainState,
        x: Any,
        loss: Loss,
        training: bool,
        rngs: Tensor | None,
        ctx: Context | None,
    ) -> tuple[Tensor, TrainState]:
        """Return what `step` does in ops, for a function that is traced whole."""

        def objective(params: Any) -> tuple[Tensor, Any]:
            out, after = self.model.apply(st.vars.with_params(params), x, training, rngs, ctx)
            return loss(out), after.state

        value, grads, state = value_and_grad_aux(objective)(st.vars.params)
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
        _check_counts(epochs=epochs, accumulate_steps=accumulate_steps)
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"Trainer.fit: on_nonfinite is {on_nonfinite!r}, expected 'raise' or 'skip'")
        if clip_norm is not None:
            optim.clip_by_global_norm(clip_norm, [])  # which refuses what no norm can be
        if comm is not None:
            check_communicator("Trainer.fit", comm)
        if validate is not None:
            _rewind(two("Trainer.fit, validate", validate)[0])
        run = Run(self.optimizer.name, data, history, rngs, checkpoint)
        st = run.begin(st, resume)
        runner = StepRunner(self.steps, loss, run.rngs, clip_norm, on_nonfinite, accumulate_steps)
        runner.begin(st)
        try:
            try:
                # Assigned first: what `return` itself does is outside of the try.
                last = self._run(run, epochs, runner, report, validate, progress)
                return last
            except BaseException as error:
                error.state = runner.end()  # type: ignore[attr-defined]
                raise
        except BaseException as error:  # a KeyboardInterrupt that came in the handler above has none yet
            if not hasattr(error, "state"):
                error.state = runner.end()  # type: ignore[attr-defined]
            raise

    def _run(
        self,
        run: Run,
        epochs: int,
        runner: StepRunner,
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
                        while batches := list(itertools.islice(elements, runner.size)):
                            value = runner.step(batches)
                            bar.advance(value, len(batches))
                            run.history.add_step(runner.steps, value)
                            if report is not None:
                                report(runner.steps, value, runner.state())
                            run.after_step(runner)
                        run.history.end_epoch(runner.steps, self._scores(runner, validate))
                        run.after_epoch(runner)
                        bar.note(run.history.epochs[-1] if validate else {})
                run.finish(runner)
            finally:
                self.steps.cache.release()
        return runner.end()

    def _scores(self, runner: StepRunner, validate: Validation | None) -> dict[str, Any]:
        if validate is None:
            return {}
        data, metrics = validate
        return self.evaluate(runner.state(), _rewind(data), metrics)

    def predict(
        self, st: TrainState, x: Any, ctx: Context | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Return the model's output in evaluation mode.

        batch_size: run so many rows at a time, for large inputs (memory-mapped ones too); tensors
            of `ctx` whose first axis is as long as the input's are cut alike.
        """
        if tracing() is not None or tape.recording():
            return self.model.apply(st.vars, x, ctx=ctx)[0]  # type: ignore[no-any-return]
        if batch_size is None:
            return self.outputs(generation_of(self.optimizer, st), lambda: st.vars, x, ctx)  # type: ignore[no-any-return]
        size = integer("Trainer.predict", "batch_size", batch_size)
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in arrays(x)}
        if size < 1 or len(lengths) != 1 or not (length := lengths.pop()):
            shapes = " and ".join(str(leaf.shape) for leaf in arrays(x))
            raise ValueError(
                f"Trainer.predict: batch_size is {batch_size} and x has shape {shapes}, expected "
                "at least 1, and one length that is not 0"
            )
        outputs, at = [], generation_of(self.optimizer, st)
        for k in range(0, length, size):
            rows = slice(k, k + size)
            part = None if ctx is None else Context(_cut(ctx.values, length, rows))
            outputs.append(self.outputs(at, lambda: st.vars, _sliced(x, rows), part))
        return ptree.map(lambda *ys: ops.concatenate(ys), *outputs)  # type: ignore[no-any-return]

    def evaluate(self, st: TrainState, data: Data, metrics: Mapping[str, Metric]) -> dict[str, Any]:
        """Return the score of each metric over the whole data, in evaluation mode.

        data: elements (input, target).  metrics: name -> accumulator; each is reset first.
        """
        check_not_empty("Trainer.evaluate", data)
        for metric in metrics.values():
            metric.reset()
        for element in data:
            x, target = two("Trainer.evaluate", element)
            out = self.predict(st, x)
            for metric in metrics.values():
                metric.update(out, target)
        return {name: metric.compute() for name, metric in metrics.items()}


def _check_counts(**counts: int) -> None:
    for argument, count in counts.items():
        if integer("Trainer.fit", argument, count) < 1:
            raise ValueError(f"Trainer.fit: {argument} is {count}, expected at least 1")


def _rewind(data: Any) -> Data:
    """Return validation data at the beginning of a pass; an epoch or a fit before has used it up."""
    if check_data("Trainer.fit, validate", data).position:
        data.reset()
    return check_not_empty("Trainer.fit, validate", data)


def _sliced(x: Any, rows: slice) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: leaf[rows], x)
    return x[rows]


def _cut(values: Mapping[str, Tensor], length: int, rows: slice) -> dict[str, Tensor]:
    return {name: t[rows] if t.ndim and t.shape[0] == length else t for name, t in values.items()}
