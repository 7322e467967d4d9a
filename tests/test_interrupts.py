"""A KeyboardInterrupt at lines of treepie's modules, one after the other: what follows is right.

Of each scenario some hundred lines, spread evenly; with `--fuzz` above its default all of them, and the
places after calls within lines too. `python -m tests.interrupts` lists all that is wrong.
"""

import threading

import numpy as np
import pytest

import treepie as tp

from . import eager, interrupted, interrupts
from .interrupts import Check, Interrupt

#: The default of `--fuzz`; interrupts of a scenario with it, and how many it must have at least.
DEFAULT, MOST, LEAST = 200, 150, 60


@pytest.mark.parametrize("name", interrupted.SCENARIOS)
def test_what_follows_an_interrupt_is_right(name, request, capsys):
    everything = request.config.getoption("fuzz") > DEFAULT
    check = Check(interrupted.SCENARIOS[name], calls=everything).run(None if everything else MOST)
    with capsys.disabled():
        print(f"\n{name}: {check.points} points, {check.interrupted} interrupted", end=" ")
    if check.wrong:
        pytest.fail(f"{name}: {check}", pytrace=False)
    assert check.interrupted >= LEAST, "hardly anything was interrupted"


def test_what_runs_in_a_warm_call_is_interrupted():
    """The modules of a step are among those traced, those that compile are not."""
    scenario, traced = interrupted.SCENARIOS["fit, a user's layer"](), Interrupt()
    scenario.run(traced)
    names = {file.removeprefix(str(root)) for file in traced.files for root in interrupts._ROOTS}
    assert {
        "/train/trainer.py",
        "/data/pipeline.py",
        "/train/history.py",
        "/tensor.py",
        "/program/program.py",
    } <= names
    assert not names & {"/native.py", "/cache.py", "/kernel.py"}


class Mixed(eager.Eager):
    """A trainer that changes the parts of its state one after the other."""

    def fit(self, st, data, loss, history=None):
        history = history or tp.History()
        self.params, self.opt_state, self.steps = st.vars.params, st.opt_state, st.step
        try:
            for x, y in data:
                self.advance(st, x, lambda out, y=y: loss(out, y), history)
            return self.state(st)
        except BaseException as error:
            error.state = self.state(st)
            raise

    def state(self, st):
        return type(st)(st.vars.with_params(self.params), self.opt_state, self.steps)

    def advance(self, st, x, loss, history):
        value, after = self.step(self.state(st), x, loss)
        self.params = after.vars.params
        self.opt_state = after.opt_state
        self.steps += 1
        history.add_step(self.steps, value.item())


class Whole(Mixed):
    """One that changes them at once."""

    def advance(self, st, x, loss, history):
        value, after = self.step(self.state(st), x, loss)
        self.params, self.opt_state, self.steps = after.vars.params, after.opt_state, after.step
        history.add_step(after.step, value.item())


class Writing(Whole):
    """One that writes the new parameters to where the old ones are."""

    def advance(self, st, x, loss, history):
        before = self.params
        super().advance(st, x, loss, history)
        for old, new in zip(tp.ptree.leaves(before), tp.ptree.leaves(self.params), strict=True):
            old.array.flags.writeable = True
            old.array[...] = new.array


def checked(kind, monkeypatch):
    """Return what is found of a trainer of this file."""
    monkeypatch.setattr(interrupts, "is_runtime", lambda file: file == __file__)

    def scenario():
        fit = interrupted.Fit(interrupted.mlp(), interrupted.ADAM, interrupted.PAIRS, loss=tp.loss.mse)
        fit.trainer = kind(fit.trainer.model, fit.trainer.optimizer)
        return fit

    return Check(scenario).run()


def test_a_state_of_two_steps_is_found(monkeypatch):
    check = checked(Mixed, monkeypatch)
    assert check.count == 12  # two lines in each of six steps
    assert all("the state handed out is not that of one step" in text for text in check.wrong)
    assert "count +0, params +1, moments +0" in str(check)


def test_memory_that_is_written_to_is_found(monkeypatch):
    assert checked(Writing, monkeypatch).wrong


def test_nothing_is_found_where_all_is_right(monkeypatch):
    check = checked(Whole, monkeypatch)
    assert check.interrupted == check.points > 40
    assert not check.wrong, str(check)


def test_a_lock_is_never_left_locked(monkeypatch):
    """The line of `with` comes again at its end, where no signal arrives."""
    monkeypatch.setattr(interrupts, "is_runtime", lambda file: file == __file__)
    lock, done = threading.Lock(), []

    def locked():
        for k in range(3):
            with lock:
                if k == 1:
                    continue
                done.append(np.sqrt(k))
        with lock:
            return len(done)

    for calls in (False, True):
        k, interrupt = 0, None
        while interrupt is None or interrupt.where is not None:
            interrupt = Interrupt(k, calls)
            try:
                with interrupt:
                    locked()
            except KeyboardInterrupt:
                pass
            assert not lock.locked(), interrupt.where
            k += 1
        assert k > 10
