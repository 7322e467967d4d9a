"""Training op by op: what `Trainer` is to compute, without a program of its own.

`Eager` has the methods of `Trainer` that the fuzzers use. It knows the layers' functions, the tape and the
optimizers, and nothing of how a step is captured, planned or replayed.
"""

import contextlib
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import treepie as tp
from treepie.autodiff.rng import for_rows
from treepie.layer import Vars
from treepie.train.state import TrainState


def jit(function=None, **options):
    """Return a function as it is: what `tp.jit` is compared with."""
    return (lambda f: f) if function is None else function


@dataclass
class Eager:
    """A `Trainer` whose every op runs when Python calls it."""

    model: Any
    optimizer: Any

    def init(self, rngs, dtype=tp.float32):
        vars = self.model.init(rngs, dtype)
        return TrainState(vars, self.optimizer.init(vars.params), 0)

    def predict(self, st, x, ctx=None):
        return self.model.apply(st.vars, x, ctx=ctx)[0]

    def gradients(self, st, x, loss, training=True, rngs=None, ctx=None):
        """Return the loss, its gradients as a tree, and the model's new state."""

        def objective(params):
            out, after = self.model.apply(st.vars.with_params(params), x, training, rngs, ctx)
            return loss(out), after.state

        return tp.value_and_grad_aux(objective)(st.vars.params)

    def updated(self, st, grads, state):
        """Return the state after an update by these gradients."""
        params, opt_state = self.optimizer.update(st.opt_state, st.vars.params, grads)
        return TrainState(Vars(params, state, st.vars.dtype), opt_state, st.step + 1)

    def step(self, st, x, loss, training=True, rngs=None, ctx=None):
        value, grads, state = self.gradients(st, x, loss, training, rngs, ctx)
        return value, self.updated(st, grads, state)

    def fit(
        self,
        st,
        data,
        rngs=None,
        loss=None,
        report=None,
        epochs=1,
        clip_norm=None,
        accumulate_steps=1,
        history=None,
        on_nonfinite="raise",
    ):
        """Elements of a step are drawn right before it; a step that is skipped is counted."""
        history = tp.History() if history is None else history
        try:
            with contextlib.suppress(tp.EarlyStop):
                for epoch in range(epochs):
                    if epoch:
                        data.reset()
                    elements = iter(data)
                    while batches := list(itertools.islice(elements, accumulate_steps)):
                        value, grads, state = self._mean(st, batches, loss, rngs, accumulate_steps > 1)
                        # The norm is taken of the buffers that the optimizer keeps gradients in: leaf by
                        # leaf it would round differently.
                        flat = self.optimizer.flat(st.opt_state, grads)
                        if not finite(value, flat, st.step + 1, on_nonfinite):
                            st = TrainState(st.vars, st.opt_state, st.step + 1)
                        else:
                            if clip_norm is not None:
                                flat = tp.optim.clip_by_global_norm(clip_norm, flat)
                                grads = self.optimizer.tree(st.opt_state, flat)
                            st = self.updated(st, grads, state)
                        history.add_step(st.step, value)
                        if report is not None:
                            report(st.step, value, st)
                    history.end_epoch(st.step, {})
        except BaseException as error:
            error.state = st
            raise
        return st

    def _mean(self, st, batches, loss, rngs, in_parts):
        """Return the loss of some batches, its gradients, and the model's new state.

        in_parts: whether they are parts of one batch, of which there may be one: each has the random numbers
            of its rows, and gradients of its loss times its number of examples.
        """
        key = None if rngs is None else tp.rng.fold_in(rngs, st.step)
        total, count, summed, state = 0.0, 0, None, st.vars.state
        for x, second in batches:
            objective = second if loss is None else lambda out, y=second: loss(out, y)
            if not in_parts:
                one = TrainState(st.vars.with_state(state), st.opt_state, st.step)
                value, grads, state = self.gradients(one, x, objective, True, key)
                return value.item(), grads, state
            size, own = len(x), key if key is None else for_rows(key, count, len(x))
            value, grads, state = self._weighted(st.vars.with_state(state), x, objective, own, float(size))
            total, count = total + value.item() * size, count + size
            summed = grads if summed is None else tp.ptree.map(lambda a, b: a + b, summed, grads)
        return total / count, tp.ptree.map(lambda g: (g + 0.0) / float(count), summed), state

    def _weighted(self, vars, x, loss, key, weight):
        """Return the loss, the gradients of its product with a weight, and the model's new state."""

        def objective(params):
            out, after = self.model.apply(vars.with_params(params), x, True, key)
            value = loss(out)
            return value * weight, (value, after.state)

        _, grads, (value, state) = tp.value_and_grad_aux(objective)(vars.params)
        return value, grads, state


def finite(value, flat, step, on_nonfinite):
    """Whether a step may be taken; raises or warns where it may not."""
    if math.isfinite(value) and math.isfinite(tp.optim.global_norm(flat).item()):
        return True
    if on_nonfinite == "raise":
        raise FloatingPointError(f"not finite in step {step}")
    warnings.warn(f"not finite in step {step}", RuntimeWarning, stacklevel=2)
    return False
