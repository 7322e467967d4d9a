"""Training: a model and an optimizer, and the loop around them.

`fit` runs one step after another (`runner.py`), each as one program (`steps.py`, `step.py`); `step` takes a
single one in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from treepie.autodiff import Tensor, float32, ops, ptree
from treepie.autodiff.accuracy import Arithmetic, checked_accuracy
from treepie.autodiff.arguments import integer
from treepie.autodiff.precision import checked_precision
from treepie.autodiff.trace import active
from treepie.kernels.compilations import compilations

from .. import optim
from ..checkpoint.checkpoint import Every
from ..data.check import check_has_elements
from ..data.pipeline import Data
from ..display import ShownAsCall
from ..distributed.communicator import Communicator, check_communicator
from ..layer import Context, Layer, Vars
from ..metric.accumulators import Metric
from . import checks
from .callbacks import Callbacks, EarlyStop as EarlyStop, Report
from .eager import loss_and_gradients
from .history import History
from .inputs import StepCounter, StepInputs
from .loop import Loop
from .options import Validation, check_options, check_same_options
from .parts import arrays, length, parts_of
from .predict import Predictor
from .ranks import Ranks
from .run import Run
from .runner import runner_of
from .state import FlatBuffers, TrainState, check_state, has_parts, snapshot_of, trained_snapshot_of
from .steps import Steps
from .weights import ClassWeight, two

Loss = Callable[[Any], Tensor]


class Trainer(ShownAsCall):
    """Trains a model with an optimizer.

    A trainer holds no state of the training: methods take a `TrainState` and return the next. It holds the
    programs of steps and predictions.

    model: a `Layer`.  optimizer: one of `tp.optim`.
    precision: of matrix products in steps and predictions: "float32", "bfloat16" or "bfloat16_emulated", see
        `tp.precision`; by default that of the block. Parameters, gradients and checkpoints stay float32.
    accuracy: of gelu, tanh and other functions in steps and predictions: "high" or "fast", see `tp.accuracy`;
        by default that of the block.

    Raises ValueError for another precision or accuracy.

    >>> import treepie as tp
    >>> x = tp.rng.normal(tp.rng.key(0), (64, 2))
    >>> data = tp.Data.prepare((x, x @ tp.tensor([[2.0], [-1.0]])), batch_size=16)
    >>> trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.adam(0.1))
    >>> st = trainer.fit(trainer.init(rngs=tp.rng.key(1)), data, loss=tp.loss.mse, epochs=50)
    >>> abs(trainer.predict(st, tp.tensor([[1.0, 1.0]])).item() - 1.0) < 0.1
    True
    """

    def __init__(
        self,
        model: Layer,
        optimizer: optim.Optimizer,
        precision: str | None = None,
        accuracy: str | None = None,
    ) -> None:
        self.model, self.optimizer = checks.check_model(model), checks.check_optimizer(optimizer)
        self.precision, self.accuracy = precision, accuracy
        arithmetic = Arithmetic(
            None if precision is None else checked_precision("Trainer", precision),
            None if accuracy is None else checked_accuracy("Trainer", accuracy),
        )
        #: The programs of steps, and those of predictions.
        self.steps, self.predictor = Steps(model, optimizer, arithmetic), Predictor(model, arithmetic)

    def __reduce__(self) -> Any:
        """Return the constructor's call, for pickle and copy; programs are not copied."""
        return type(self), (self.model, self.optimizer, self.precision, self.accuracy)

    def init(self, rngs: Tensor, dtype: Any = float32) -> TrainState:
        """Return the state of a new model.

        rngs: a pseudo-random key, of which the parameters are drawn.  dtype: float32 or float64.
        """
        return self.make_state(self.model.init(rngs, dtype))

    def make_state(self, vars: Vars) -> TrainState:
        """Return a state around variables, such as loaded weights, with a new optimizer's state."""
        return TrainState(vars, self.optimizer.init(vars.params), 0)

    def step(
        self,
        st: TrainState,
        x: Any,
        loss: Loss,
        training: bool = True,
        rngs: Tensor | None = None,
        ctx: Context | None = None,
        comm: Communicator | None = None,
        loss_reduction: str = "mean",
    ) -> tuple[Tensor, TrainState]:
        """Return the loss of one batch, and the state after one step of the optimizer.

        x: the model's input.  loss: function of the model's output, which returns a scalar.
        training: whether dropout drops, and batch norm uses the batch.  rngs: the key of this step, which
            dropout draws from.  ctx: tensors for layers, such as an attention mask.
        comm: the ranks that take the step together, each on its own rows of the batch, from one state.
        loss_reduction: as for `fit`.

        Unlike `fit`, it takes the step also where the loss is not finite.

        >>> import treepie as tp
        >>> trainer = tp.Trainer(tp.layer.linear(2, 1), tp.optim.sgd(0.1))
        >>> st = trainer.init(rngs=tp.rng.key(0))
        >>> loss, st = trainer.step(st, tp.ones((4, 2)), loss=lambda out: tp.loss.mse(out, tp.ones((4, 1))))
        >>> st.step
        1
        """
        trace = active.state.trace
        if trace is not None and not trace.closed and not trace.user:  # in a function traced as a whole
            value, grads, state = loss_and_gradients(self.model, st.vars, x, loss, (), training, rngs, ctx)
            params, opt_state = self.optimizer.update(st.opt_state, st.vars.params, grads)
            return value, TrainState(Vars(params, state, st.vars.dtype), opt_state, st.step + 1)
        with compilations.watch():
            at = trained_snapshot_of("Trainer.step", self.optimizer, st)
            self.predictor.model_of.check("Trainer.step", at)
            buffers = [at.buffers.empty_like()]
            inputs = StepInputs(
                at, buffers[0], at.state, rngs, (), training, ctx, StepCounter(), x, loss, check=False
            )

            def commit(out: FlatBuffers, _: Any) -> None:
                buffers[0] = out

            summed = checks.is_summed("Trainer.step", loss_reduction)
            if comm is not None and check_communicator("Trainer.step", comm).size > 1:
                result = self.steps.in_parts(comm, summed).take(inputs, [(x, loss, ())], commit)
            else:
                result = self.steps.take(inputs, commit)
            after = at.next(result.buffers or buffers[0], result.state)
            return Tensor(np.array(result.loss, result.dtype), None), TrainState.of(after)

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
        micro_shards: int | None = None,
        loss_reduction: str = "mean",
        compare_every: int = 100,
        shard_optimizer: bool = True,
        callbacks: Sequence[object] = (),
        class_weight: ClassWeight | None = None,
    ) -> TrainState:
        """Return the state after training on the data for some epochs.

        data: elements (input, loss_fn), or (input, target) with `loss`, a function of (output, target), or
            (input, target, sample_weight), which `loss` takes as its argument `sample_weight`.
        rngs: a key, into which the number of each step is folded. Dropout draws for an example by its index
            in the step's batch.
        report: called after every step with its number from 1, its loss and the state after it; raise
            tp.EarlyStop in it to end training.
        validate: (data, metrics) for `evaluate` after each epoch.
        progress: whether to show epoch, mean loss, scores, samples a second and remaining time on stderr: a
            bar on a terminal and in Jupyter, else a line for each epoch and every 30 s. None leaves out lines
            of epochs that end within a second of the last line.
        clip_norm: largest global norm of the gradients, which are scaled down to it.
        accumulate_steps: elements of a step, which equal one big batch. The last step of an epoch takes the
            rest.
        checkpoint: `tp.checkpoint.every(steps, directory)`; on SIGTERM, one more and `tp.Preempted`.
        resume: continue from the last checkpoint there, if there is one: with the same arguments the result
            has the same bits as an uninterrupted run. `st` gives the structure only.
        history: receives losses and scores.
        on_nonfinite: where a loss or gradient is NaN or infinite, "raise" FloatingPointError, or "skip" the
            step with a warning; the state is unchanged.
        comm: `tp.distributed.world()`. Each rank trains on its rows of every batch of `data.shard(comm)`,
            from rank 0's state; gradients, losses and running statistics are means over all rows. `report` is
            called on every rank; only rank 0 shows progress and writes checkpoints.
        micro_shards: into how many parts each batch is cut, for the same bits at any number of ranks (whose
            number need not divide it). Batch norm normalizes by the rows of a part.
        loss_reduction: how the losses of a batch's parts (of ranks, micro-shards and accumulated elements)
            make up that of the batch: "mean", weighted by examples, or by targets for a loss that ignores
            some; or "sum".
        compare_every: steps after which ranks compare a digest of their parameters; RuntimeError for a
            difference.
        shard_optimizer: whether ranks that share memory share the update (ZeRO, stage 1): each computes a
            part of it, and holds that part of the optimizer's state. Results have the same bits.
        callbacks: see `tp.callback`; they are called in this order, after `report`.
        class_weight: the argument `class_weight` of `loss`: a weight for each class, or a dict of weights of
            some classes, where others have 1.

        Ctrl-C ends training and is raised again. Any exception has the last good state as `state`.
        """
        same = {
            "epochs": epochs,
            "accumulate_steps": accumulate_steps,
            "compare_every": compare_every,
            "micro_shards": micro_shards,
            "clip_norm": clip_norm,
            "loss_reduction": loss_reduction,
            "shard_optimizer": shard_optimizer,
        }
        check_options(same, on_nonfinite, comm, validate)
        ranks = Ranks(comm, "Trainer.fit", data, micro_shards, compare_every)
        check_same_options(ranks, same, class_weight, rngs)
        called = Callbacks(callbacks, report, ranks, ["loss", *(validate[1] if validate else ())])
        run = Run(self.optimizer.name, data, history, rngs, checkpoint, ranks, called)
        st = ranks.agreed(run.begin(st, resume))
        self.predictor.model_of.check("Trainer.fit", snapshot_of("Trainer.fit", self.optimizer, st))
        # The norm of parts has other bits than that of the whole, which clipping would pass on.
        own = (micro_shards is None or clip_norm is None) and has_parts(self.optimizer, st)
        summed, shares = loss_reduction == "sum", shard_optimizer and own
        parts = parts_of(self.steps, ranks, accumulate_steps, micro_shards, summed, shares)
        options = loss, run.rngs, clip_norm, on_nonfinite, accumulate_steps, parts, class_weight
        runner = runner_of(st, data, called.learning_rate, self.steps, *options)
        loop = Loop(run, runner, called, self.evaluate, validate, progress if ranks.first else False)
        try:
            try:
                # Assigned first: an interrupt after the call, in `return` itself, is outside of the try.
                last = loop.through(epochs)
                return last
            except BaseException as error:
                error.state = runner.end()  # type: ignore[attr-defined]
                raise
        except BaseException as error:  # a KeyboardInterrupt in the handler above
            if not hasattr(error, "state"):
                error.state = runner.end()  # type: ignore[attr-defined]
            raise

    def predict(
        self, st: TrainState, x: Any, ctx: Context | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Return the model's output in evaluation mode.

        x: the model's input: a tensor or an array, or a tuple or dict of them.  ctx: tensors for layers.
        batch_size: rows to run at a time, for large inputs, memory-mapped ones included; tensors of `ctx`
            with as many rows as the input are sliced with it. None runs all rows at once.

        Raises ValueError where `batch_size` is given and inputs differ in length.

        >>> import treepie as tp
        >>> trainer = tp.Trainer(tp.layer.linear(2, 3), tp.optim.sgd(0.1))
        >>> trainer.predict(trainer.init(rngs=tp.rng.key(0)), tp.ones((5, 2)), batch_size=2).shape
        (5, 3)
        """
        now = active.state
        if now.gradients or (now.trace is not None and not now.trace.closed):
            return self.model.apply(st.vars, x, ctx=ctx)[0]  # type: ignore[no-any-return]
        if batch_size is None:
            return self.predictor(snapshot_of("Trainer.predict", self.optimizer, st), lambda: st.vars, x, ctx)
        size = integer("Trainer.predict", "batch_size", batch_size)
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in arrays(x)}
        if size < 1 or len(lengths) != 1 or not (length := lengths.pop()):
            shapes = " and ".join(str(leaf.shape) for leaf in arrays(x))
            raise ValueError(
                f"Trainer.predict: batch_size is {batch_size} and x has shape {shapes}, expected "
                "at least 1, and one length that is not 0"
            )
        outputs, at = [], snapshot_of("Trainer.predict", self.optimizer, st)
        for k in range(0, length, size):
            rows = slice(k, k + size)
            part = None if ctx is None else Context(_context_rows(ctx.values, length, rows))
            outputs.append(self.predictor(at, lambda: st.vars, _rows(x, rows), part))
        return ptree.map(lambda *ys: ops.concatenate(ys), *outputs)  # type: ignore[no-any-return]

    def evaluate(
        self,
        st: TrainState,
        data: Data,
        metrics: Mapping[str, Metric],
        comm: Communicator | None = None,
    ) -> dict[str, Any]:
        """Return the score of each metric over the whole data, in evaluation mode.

        data: elements (input, target). The whole current pass is read from its beginning, whatever has been
            read of it; its position does not change.
        metrics: name -> accumulator; each is reset first.
        comm: the ranks that the data was sharded to; each returns the scores of all of them.

        Raises ValueError for a pipeline that is empty.

        >>> import treepie as tp
        >>> trainer = tp.Trainer(tp.layer.linear(2, 3), tp.optim.sgd(0.1))
        >>> st = trainer.init(rngs=tp.rng.key(0))
        >>> data = tp.Data.prepare((tp.zeros((5, 2)), tp.zeros((5,), tp.int32)), batch_size=2)
        >>> trainer.evaluate(st, data, {"accuracy": tp.metric.Accuracy()})
        {'accuracy': 1.0}
        """
        check_has_elements("Trainer.evaluate", data)
        checks.check_metrics("Trainer.evaluate", metrics)
        check_state("Trainer.evaluate", st)
        ranks = Ranks(comm, "Trainer.evaluate", data)
        for metric in metrics.values():
            metric.reset()
        with checks.naming_batch("Trainer.evaluate", data) as elements:
            for element in elements:
                x, target = two("Trainer.evaluate", element)
                if comm is not None and not length(x):
                    continue  # an element of fewer examples than ranks
                out = self.predict(st, x)
                for metric in metrics.values():
                    metric.update(out, target)
        ranks.merge(metrics)
        return {name: metric.compute() for name, metric in metrics.items()}


def _rows(x: Any, rows: slice) -> Any:
    if isinstance(x, tuple | dict):
        return ptree.map(lambda leaf: leaf[rows], x)
    return x[rows]


def _context_rows(values: Mapping[str, Tensor], length: int, rows: slice) -> dict[str, Tensor]:
    return {name: t[rows] if t.ndim and t.shape[0] == length else t for name, t in values.items()}
