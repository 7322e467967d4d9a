"""Consecutive steps of `fit` as one native call: the results of steps one by one, whatever ends a call."""

import numpy as np
import pytest

import treepie as tp
from treepie.kernels import threads
from treepie.train.run import Run
from treepie.train.runner import StepRunner

KEY = tp.rng.key(0)
X = np.random.default_rng(0).normal(size=(43, 5)).astype(np.float32)
Y = (X @ np.arange(5, dtype=np.float32))[:, None]


def prepared(x=X, y=Y, **options):
    """Return batches of 8 rows, of which the last has 3."""
    return tp.Data.prepare((x, y), batch_size=8, **options)


def listed(x=X, y=Y):
    """Return the same batches in a list."""
    return tp.Data.of_array([(tp.tensor(x[k : k + 8]), tp.tensor(y[k : k + 8])) for k in range(0, len(x), 8)])


def fitted(data, counts=None, model=None, **options):
    """Return the state, the history and the error of a fit; `counts` receives how many steps calls took."""
    model = model or tp.layer.sequential([tp.layer.linear(5, 7), tp.layer.tanh(), tp.layer.linear(7, 1)])
    trainer, history = tp.Trainer(model, tp.optim.adam(0.05)), tp.History()
    st, error = trainer.init(KEY), None
    options = {"loss": tp.loss.mse, "epochs": 3, "history": history, "progress": False} | options
    several = StepRunner.several

    def counted(self, most):
        before = self.steps
        result = several(self, most)
        if counts is not None:
            counts.append(self.steps - before)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "several", counted)
        try:
            st = trainer.fit(st, data, **options)
        except FloatingPointError as raised:
            st, error = raised.state, raised
    return st, history, error


def bits(result):
    st, history, error = result
    moments = [[t.tolist() for t in row] for row in st.opt_state.buffers]
    params = [t.tolist() for t in tp.ptree.leaves(st.vars.params)]
    return repr((params, moments, st.step, history.steps, history.epochs, str(error)))


def one_by_one(data, **options):
    """Return a fit whose `report` has each step taken by itself."""
    return fitted(data, report=lambda *_: None, **options)


@pytest.mark.parametrize(
    "make", [prepared, listed, lambda: prepared(shuffle=KEY), lambda: prepared().take(4)]
)
@pytest.mark.parametrize("options", [{}, {"rngs": KEY}, {"clip_norm": 0.1}])
def test_sequences_have_the_bits_of_steps(make, options):
    counts = []
    found = fitted(make(), counts, **options)
    assert max(counts) >= 3
    assert bits(found) == bits(one_by_one(make(), **options))


def test_dropout_draws_by_step():
    model = tp.layer.sequential([tp.layer.linear(5, 7), tp.layer.dropout(0.5), tp.layer.linear(7, 1)])
    found = fitted(prepared(), model=model, rngs=KEY)
    assert bits(found) == bits(one_by_one(prepared(), model=model, rngs=KEY))


@pytest.mark.filterwarnings("ignore:Trainer.fit")
@pytest.mark.parametrize("how", ["raise", "skip"])
@pytest.mark.parametrize("make", [prepared, listed])
def test_a_step_that_is_not_finite_ends_a_sequence(make, how):
    x = X.copy()
    x[27, 2] = np.nan
    data, again = make(x), make(x)
    found, expected = fitted(data, on_nonfinite=how), one_by_one(again, on_nonfinite=how)
    assert bits(found) == bits(expected)
    assert data.position == again.position


def test_checkpoints_are_written_when_they_are_due(tmp_path, monkeypatch):
    counts, written = [], []
    write = Run._write
    monkeypatch.setattr(Run, "_write", lambda self, st: (written.append(st.step), write(self, st))[1])
    fitted(prepared(), counts, checkpoint=tp.checkpoint.every(4, tmp_path), epochs=3)
    assert max(counts) == 4
    assert written == [4, 8, 12, 16, 18]


def test_python_of_the_user_runs_between_steps():
    seen, counts = [], []
    data = prepared().map(lambda x, y: (seen.append(1), (x, y))[1])
    assert bits(fitted(data, counts)) == bits(one_by_one(prepared()))
    assert max(counts) == 0


def test_lists_of_unlike_elements_are_cut():
    elements = [(tp.tensor(X[:n]), tp.tensor(Y[:n])) for n in (4, 4, 4, 6, 6, 6, 4, 4)]
    counts = []
    found = fitted(tp.Data.of_array(elements), counts)
    assert max(counts) == 3
    assert bits(found) == bits(one_by_one(tp.Data.of_array(elements)))


def test_the_pipeline_has_ended_after_a_fit():
    data = prepared()
    fitted(data)
    assert data.position == len(data) == 6
    with pytest.warns(RuntimeWarning, match="all 6 elements"):
        assert list(data) == []


def test_a_step_after_sequences_reads_its_own_batch():
    trainer = tp.Trainer(tp.layer.linear(5, 1), tp.optim.adam(0.05))
    st = trainer.fit(trainer.init(KEY), prepared(), loss=tp.loss.mse, epochs=3, progress=False)
    other = tp.Trainer(trainer.model, trainer.optimizer)
    options = {"loss": tp.loss.mse, "progress": False, "report": lambda *_: None}
    one, two = (t.fit(st, prepared(X[::-1].copy(), Y), **options) for t in (trainer, other))
    assert one.vars.params["weight"].tolist() == two.vars.params["weight"].tolist()


def test_what_is_worth_waking_helpers_for():
    assert not threads.worth_waking([4e3, 4e3])
    assert threads.worth_waking([4e3, 13e3, 13e3])
