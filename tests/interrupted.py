"""The calls that `test_interrupts.py` interrupts, and what has to be right afterwards."""

import collections
import dataclasses

import numpy as np

import treepie as tp

from . import eager
from .fuzz_steps import difference, seen
from .interrupts import Wrong

KEY = tp.rng.key(4)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 5, 4)).astype("f4"), RNG.standard_normal((6, 5, 4)).astype("f4")
SCALE = np.full(4, 0.5, "f4")

#: How many times a call runs before it is interrupted: programs are compiled by then.
WARM = 4


class Kept:
    """Results that a caller still has, and what they were: no later call may change them."""

    def __init__(self):
        self._rows = collections.deque(maxlen=12)

    def add(self, what, x):
        self._rows.append((what, x, seen(x)))

    def check(self):
        for what, x, before in self._rows:
            if difference(before, seen(x)) is not None:
                self._rows.clear()
                raise Wrong(f"{what} was written to")


def belongs(st, trajectory):
    """Return, for a state that is that of no step, how far each of its parts is from its step."""
    rows = []
    for i, name in enumerate(("count", "params", "model state", "moments"), 2):
        steps = [k - st.step for k, known in enumerate(trajectory) if known[i] == seen(st)[i]]
        if len(steps) < len(trajectory):
            rows.append(f"{name} {min(steps, key=abs):+}" if steps else f"{name} of no step")
    return ", ".join(rows)


class Fit:
    """A `fit` from one state over some elements.

    keep: the steps whose states a report keeps; None for no report.
    trajectory: what is seen of the state after each step, op by op.
    """

    def __init__(self, model, optimizer, elements, keep=None, **options):
        self.trainer, self.elements = tp.Trainer(model, optimizer), elements
        self.keep, self.options = keep, options
        self.size = options.get("accumulate_steps", 1)
        self.start = self.trainer.init(KEY)
        self.trajectory, history, self.kept = [seen(self.start)], tp.History(), Kept()
        report = lambda step, loss, st: self.trajectory.append(seen(st))
        reference = eager.Eager(model, optimizer)
        reference.fit(self.start, self._data(), report=report, history=history, **options)
        self.losses = history.steps
        for _ in range(WARM):
            self._whole()

    def _data(self, step=0):
        return tp.Data.of_array(self.elements[step * self.size :])

    def _report(self):
        """Return what is given to `fit` as report, and the states that it keeps."""
        states = []

        def report(step, loss, st):
            if step in self.keep:
                states.append((step, st))

        return ({} if self.keep is None else {"report": report}), states

    def _same(self, what, st, step):
        if difference(self.trajectory[step], seen(st)) is not None:
            # Told without the step itself, so that equal ones are counted together.
            raise Wrong(f"{what} is not that of one step: {belongs(st, self.trajectory)}")

    def _whole(self, st=None):
        """Train to the end."""
        st = after = self.start if st is None else st
        if st.step < len(self.trajectory) - 1:
            options, states = self._report()
            after = self.trainer.fit(st, self._data(st.step), **options, **self.options)
            for step, known in states:
                self._same("what a report of the next fit was given", known, step)
        self._same("the next fit's result", after, len(self.trajectory) - 1)

    def run(self, interrupt):
        history, (options, states) = tp.History(), self._report()
        found = None
        try:
            with interrupt:
                options |= self.options
                found = self.trainer.fit(self.start, self._data(), history=history, **options)
        except KeyboardInterrupt as error:
            found = getattr(error, "state", None)
        else:
            if interrupt.where is not None:
                raise Wrong("the interrupt got lost")
        if history.steps != self.losses[: len(history.steps)]:
            raise Wrong("the history is wrong")
        done = len(history.steps)
        if found is None:
            if done:
                raise Wrong("the error has no state, and steps were taken")
            found = self.start
        if found.step not in range(len(self.trajectory)):
            raise Wrong(f"the state is of step {found.step}")
        self._same("the state handed out", found, found.step)
        if not done <= found.step <= done + 1:
            raise Wrong(f"the state is older or newer than the history: {found.step - done:+} steps")
        for step, st in states:
            self._same("a state that a report has kept", st, step)
        for st in (found, *(st for _, st in states)):
            self.kept.add("a state", st)
        self._whole(found)
        self._whole()
        self.kept.check()
        self._same("the first state", self.start, 0)


class Loop:
    """Calls one after the other, each of what the last one gave: step(k, value) -> (value, result).

    first: makes the first value.  reference: does the same as `step`, op by op.
    resumed: whether calls go on from the last value after an interrupt, which a donated one may not outlive.
    """

    def __init__(self, first, step, count=4, reference=None, resumed=True):
        self.first, self.step, self.count, self.kept, self.resumed = first, step, count, Kept(), resumed
        self.want = [seen(r) for r in self._results(reference or step)]
        for _ in range(WARM):
            self._check("a call is wrong", self._results(step))

    def _results(self, step, value=None, begin=0, results=None):
        results = [] if results is None else results
        value = self.first() if value is None else value
        for k in range(begin, self.count):
            value, result = step(k, value)
            results.append(result)
            self.last = k + 1, value
        return results

    def _check(self, what, results, begin=0):
        for k, result in enumerate(results, begin):
            if difference(self.want[k], seen(result)) is not None:
                raise Wrong(what)

    def run(self, interrupt):
        results, first = [], self.first()
        self.last = 0, first
        try:
            with interrupt:
                self._results(self.step, first, results=results)
        except KeyboardInterrupt:
            pass
        else:
            if interrupt.where is not None:
                raise Wrong("the interrupt got lost")
        begin, value = self.last
        self._check("a result from before the interrupt is wrong", results)
        for result in results:
            self.kept.add("a result", result)
        if self.resumed:
            self._check("the next calls are wrong", self._results(self.step, value, begin), begin)
        self._check("calls from the beginning are wrong", self._results(self.step))
        self._check("a result from before the interrupt was written to", results)
        self.kept.check()


def mlp(*more):
    return tp.layer.sequential([tp.layer.linear(4, 8), tp.layer.tanh(), *more, tp.layer.linear(8, 4)])


def own():
    """A layer whose function is a user's."""

    def init(rngs, dtype):
        return tp.layer.Vars({"w": tp.ones(8, dtype)}, {"n": tp.zeros((), dtype)}, dtype)

    def apply(params, state, x, **_):
        return tp.sin(x * params["w"]) + SCALE[0], {"n": state["n"] + 1}

    return tp.layer.Layer(init, apply, "own")


PAIRS = [(tp.tensor(x), tp.tensor(y)) for x, y in zip(X, Y, strict=True)]
SHORT = [*PAIRS[:4], (PAIRS[4][0][:3], PAIRS[4][1][:3])]
LOSSES = [(x, lambda out, y=y: (tp.square(out - y) * SCALE).mean()) for x, y in PAIRS]
#: Parameters of 144 kB, whose memory is given out again.
LARGE = tp.layer.linear(192, 192)
LARGE_PAIRS = [tuple(tp.tensor(RNG.standard_normal((3, 192)).astype("f4")) for _ in "xy") for _ in range(3)]


def _trained(model, optimizer):
    """Return a loop of `Trainer.step`."""
    trainer, reference = tp.Trainer(model, optimizer), eager.Eager(model, optimizer)

    def by(trainer):
        def step(k, st):
            loss, st = trainer.step(st, PAIRS[k][0], lambda out: tp.loss.mse(out, PAIRS[k][1]), rngs=KEY)
            return st, [loss, st]

        return step

    start = trainer.init(KEY)
    return Loop(lambda: start, by(trainer), reference=by(reference))


def _copied(tree):
    return tp.ptree.map(lambda t: tp.tensor(t.numpy().copy()), tree)


def _jitted(**options):
    """Return a loop of a jitted step of one's own; its arguments are fresh copies where they are donated."""
    model, optimizer = mlp(), tp.optim.adam(0.1)
    vars = model.init(KEY)
    start = optimizer.init(vars.params)

    def update(params, opt_state, x, y, scale):
        def objective(p):
            return tp.loss.mse(model.apply(vars.with_params(p), x)[0], y) * scale

        loss, grads = tp.value_and_grad(objective)(params)
        return loss, *optimizer.update(opt_state, params, grads)

    def by(update):
        def step(k, value):
            loss, *value = update(*value, *PAIRS[k], 0.5 + 0.25 * (k > 1))
            # What is donated is no longer the caller's.
            return value, [loss, _copied(value[0]) if options else value[0]]

        return step

    def first():
        buffers = tuple(tuple(map(_copied, row)) for row in start.buffers)
        return [_copied(vars.params), dataclasses.replace(start, buffers=buffers)]

    return Loop(first, by(tp.jit(update, **options)), reference=by(update), resumed=not options)


def _predicted(batch_size=None):
    model = mlp(tp.layer.batch_norm(8), own())
    trainer = tp.Trainer(model, tp.optim.sgd(0.1))
    st = trainer.init(KEY)
    xs = [PAIRS[k % 2][0] for k in range(4)]
    size = batch_size or 5

    def reference(k, _):
        parts = [model.apply(st.vars, xs[k][i : i + size])[0] for i in range(0, 5, size)]
        return 0, tp.concatenate(parts)

    step = lambda k, _: (0, trainer.predict(st, xs[k], batch_size=batch_size))
    return Loop(lambda: 0, step, reference=reference)


def _evaluated():
    trainer = tp.Trainer(mlp(), tp.optim.sgd(0.1))
    st, metrics = trainer.init(KEY), {"mse": tp.metric.MSE(), "mae": tp.metric.MAE()}
    step = lambda k, _: (0, trainer.evaluate(st, tp.Data.of_array(PAIRS[:3]), metrics))
    return Loop(lambda: 0, step, count=2)


NORMED = mlp(tp.layer.batch_norm(8), tp.layer.dropout(0.3))
ADAM, RMSPROP, MSE = tp.optim.adam(0.05), tp.optim.rmsprop(0.02, momentum=0.9), tp.loss.mse
MASKED = tp.optim.adamw(0.05, mask=lambda params: tp.ptree.map(lambda p: p.ndim > 1, params))

#: name -> makes a scenario that is warm.
SCENARIOS = {
    "fit": lambda: Fit(mlp(), ADAM, PAIRS, loss=MSE),
    "fit, report": lambda: Fit(mlp(), ADAM, PAIRS, keep=(), loss=MSE),
    "fit, report that keeps": lambda: Fit(mlp(), ADAM, PAIRS, keep=(1, 2, 4), loss=MSE),
    "fit, clip_norm": lambda: Fit(mlp(), MASKED, PAIRS, loss=MSE, clip_norm=0.1),
    "fit, a user's loss": lambda: Fit(mlp(), ADAM, LOSSES),
    "fit, a user's layer": lambda: Fit(mlp(own()), ADAM, PAIRS, keep=(3,), loss=MSE),
    "fit, accumulate_steps": lambda: Fit(mlp(), ADAM, SHORT, keep=(1,), loss=MSE, accumulate_steps=2),
    "fit, batch_norm and dropout": lambda: Fit(NORMED, RMSPROP, SHORT, loss=MSE, rngs=KEY),
    "fit, large": lambda: Fit(LARGE, tp.optim.sgd(0.1, momentum=0.9), LARGE_PAIRS, keep=(2,), loss=MSE),
    "step": lambda: _trained(NORMED, ADAM),
    "step, a user's layer": lambda: _trained(mlp(own()), ADAM),
    "jit": _jitted,
    "jit, donate": lambda: _jitted(donate=(0, 1)),
    "predict": _predicted,
    "predict, batch_size": lambda: _predicted(batch_size=2),
    "evaluate": _evaluated,
}
